//! Prefixes that a server lends: the words of `/ipam.IPAM/ManagePrefixes`.

use crate::{Error, Kind, Result, SpiffeId, limits::MAX_EXCLUDED_PREFIXES, proto::ipam as pi};
use async_trait::async_trait;
use ipnet::IpNet;
use std::net::IpAddr;

/// What a client asks on its stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PrefixRequest {
    /// A prefix to use as long as the stream lasts.
    Allocate {
        /// The one it had before, if any.
        wanted: Option<IpNet>,
        /// What it must not overlap.
        excluded: Vec<IpNet>,
    },
    /// It is no longer used.
    Release(IpNet),
}

/// What the server lends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PrefixGrant {
    /// The prefix.
    pub prefix: IpNet,
    /// What the client excluded.
    pub excluded: Vec<IpNet>,
}

/// A server of prefixes.
pub trait PrefixApi: Send + Sync {
    /// Begins a stream of `holder`. Its end is that of what is returned here.
    fn open(&self, holder: SpiffeId) -> Box<dyn PrefixStream>;
}

/// One stream of one client. Dropped, it gives back all that it holds.
#[async_trait]
pub trait PrefixStream: Send {
    /// A prefix for [`PrefixRequest::Allocate`], nothing for a release. An error ends the stream.
    async fn ask(&mut self, request: PrefixRequest) -> Result<Option<PrefixGrant>>;
}

fn prefix(text: &str) -> Result<IpNet> {
    let parsed = text.parse::<IpNet>().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from));
    parsed.ok_or_else(|| Error::invalid("message of a prefix server", format!("{text:?} is no prefix"), "write it as 172.16.0.0/24"))
}

fn prefixes(list: &[String]) -> Result<Vec<IpNet>> {
    if list.len() > MAX_EXCLUDED_PREFIXES {
        let reason = format!("excludes {} prefixes, the limit is {MAX_EXCLUDED_PREFIXES}", list.len());
        return Err(Error::new(Kind::Exhausted, "message of a prefix server", reason, "exclude fewer, larger prefixes"));
    }
    list.iter().map(|text| prefix(text)).collect()
}

fn texts(list: &[IpNet]) -> Vec<String> {
    list.iter().map(ToString::to_string).collect()
}

impl TryFrom<pi::PrefixRequest> for PrefixRequest {
    type Error = Error;
    fn try_from(message: pi::PrefixRequest) -> Result<PrefixRequest> {
        match message.r#type.as_known() {
            Some(pi::Type::ALLOCATE) => {
                let wanted = if message.prefix.is_empty() { None } else { Some(prefix(&message.prefix)?) };
                Ok(PrefixRequest::Allocate { wanted, excluded: prefixes(&message.exclude_prefixes)? })
            }
            Some(pi::Type::DELETE) => Ok(PrefixRequest::Release(prefix(&message.prefix)?)),
            _ => Err(Error::invalid("message to a prefix server", "its type is neither ALLOCATE nor DELETE", "send one of these")),
        }
    }
}

impl From<PrefixRequest> for pi::PrefixRequest {
    fn from(request: PrefixRequest) -> pi::PrefixRequest {
        match request {
            PrefixRequest::Allocate { wanted, excluded } => pi::PrefixRequest {
                r#type: pi::Type::ALLOCATE.into(),
                prefix: wanted.map(|prefix| prefix.to_string()).unwrap_or_default(),
                exclude_prefixes: texts(&excluded),
                ..Default::default()
            },
            PrefixRequest::Release(prefix) => {
                pi::PrefixRequest { r#type: pi::Type::DELETE.into(), prefix: prefix.to_string(), ..Default::default() }
            }
        }
    }
}

impl TryFrom<pi::PrefixResponse> for PrefixGrant {
    type Error = Error;
    fn try_from(message: pi::PrefixResponse) -> Result<PrefixGrant> {
        Ok(PrefixGrant { prefix: prefix(&message.prefix)?, excluded: prefixes(&message.exclude_prefixes)? })
    }
}

impl From<PrefixGrant> for pi::PrefixResponse {
    fn from(grant: PrefixGrant) -> pi::PrefixResponse {
        pi::PrefixResponse { prefix: grant.prefix.to_string(), exclude_prefixes: texts(&grant.excluded), ..Default::default() }
    }
}
