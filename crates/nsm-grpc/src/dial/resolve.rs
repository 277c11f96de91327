//! Names to addresses, without the C library: the binary is static.

use crate::limits::MAX_ADDRESSES_PER_NAME;
use hickory_resolver::TokioResolver;
use nsm_api::{Error, Kind, Result};
use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::OnceLock,
};

/// Reads the system's configuration when the first name comes.
#[derive(Default)]
pub(crate) struct Resolver(OnceLock<TokioResolver>);

impl Resolver {
    /// The addresses of `host`, which may be a literal one, or empty for loopback.
    pub(crate) async fn addresses(&self, host: &str) -> Result<Vec<IpAddr>> {
        if host.is_empty() {
            return Ok(vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]);
        }
        if let Ok(address) = host.parse() {
            return Ok(vec![address]);
        }
        let unknown = |reason: String| {
            Error::new(Kind::Unavailable, format!("host {host:?}"), reason, "check the name and the name servers in /etc/resolv.conf")
        };
        let found = self.resolver().map_err(&unknown)?.lookup_ip(host).await.map_err(|error| unknown(error.to_string()))?;
        let addresses: Vec<IpAddr> = found.iter().take(MAX_ADDRESSES_PER_NAME).collect();
        if addresses.is_empty() { Err(unknown("has no address".to_owned())) } else { Ok(addresses) }
    }

    fn resolver(&self) -> Result<&TokioResolver, String> {
        if let Some(resolver) = self.0.get() {
            return Ok(resolver);
        }
        let made = TokioResolver::builder_tokio().and_then(|builder| builder.build()).map_err(|error| error.to_string())?;
        Ok(self.0.get_or_init(|| made))
    }
}
