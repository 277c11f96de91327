//! Holds a prefix of a prefix server: one question, and a stream that stays open as long as the prefix is used.

use super::{
    body::{Holder, hold},
    channel::{Channel, Outgoing},
    stream::Incoming,
};
use crate::codec::BuffaCodec;
use futures::{StreamExt, stream::BoxStream};
use http::uri::PathAndQuery;
use nsm_api::{Caller, Error, Kind, PrefixGrant, PrefixRequest, Result, proto::ipam as pi};
use std::future::ready;
use tokio::time::timeout_at;
use tonic::{Status, client::Grpc};

const METHOD: &str = "/ipam.IPAM/ManagePrefixes";

/// A prefix server. Cheap to clone.
#[derive(Clone)]
pub struct PrefixClient(Channel);

/// A prefix that is held. Dropped, it is given back.
pub struct HeldPrefix {
    /// What was lent first.
    pub first: PrefixGrant,
    later: BoxStream<'static, Result<PrefixGrant>>,
    _holder: Holder,
}

impl HeldPrefix {
    /// Another prefix instead, pushed by the server; `None` or an error when the stream has ended, and with it the loan.
    pub async fn next(&mut self) -> Option<Result<PrefixGrant>> {
        self.later.next().await
    }
}

impl PrefixClient {
    pub(super) fn new(channel: Channel) -> PrefixClient {
        PrefixClient(channel)
    }

    /// Asks for a prefix, that is the wanted one if it can be had. Ends within the caller's timeout, the loan does not.
    pub async fn hold(&self, request: PrefixRequest, caller: Caller) -> Result<HeldPrefix> {
        let (holder, held) = hold();
        let call = Outgoing::endless(&caller).held(held);
        let deadline = call.deadline;
        let opening = self.0.within(deadline, open(self.0.clone(), call.wrap(request.into())));
        let mut later = Incoming::new(&self.0, opening.await?, None).read(|message, _| ready(PrefixGrant::try_from(message)));
        let first = timeout_at(deadline, later.next()).await.map_err(|_| silent("gave none in time"))?;
        Ok(HeldPrefix { first: first.ok_or_else(|| silent("ended the stream"))??, later, _holder: holder })
    }
}

async fn open(
    channel: Channel,
    request: tonic::Request<pi::PrefixRequest>,
) -> Result<tonic::Response<tonic::Streaming<pi::PrefixResponse>>, Status> {
    let origin = channel.origin();
    let mut grpc = Grpc::with_origin(channel, origin);
    grpc.ready().await?;
    grpc.server_streaming(request, PathAndQuery::from_static(METHOD), BuffaCodec::default()).await
}

fn silent(reason: &str) -> Error {
    Error::new(Kind::Unavailable, "prefix", format!("the prefix server {reason}"), "see its log; it may still be settling after a start")
}
