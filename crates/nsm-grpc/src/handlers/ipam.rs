//! ManagePrefixes: one stream of questions, one of answers.

use super::{Link, answer, ipam_server::IPAM};
use crate::{drain::Drain, share::Share, status::to_status};
use futures::{
    StreamExt,
    stream::{BoxStream, unfold},
};
use nsm_api::{Error, PrefixApi, PrefixRequest, PrefixStream, Result, proto::ipam as pi};
use std::sync::Arc;
use tonic::{Response, Status, Streaming};

#[derive(Clone)]
pub(super) struct Prefixes {
    pub(super) api: Arc<dyn PrefixApi>,
    pub(super) drain: Drain,
}

#[tonic::async_trait]
impl IPAM for Prefixes {
    type ManagePrefixesStream = BoxStream<'static, Result<pi::PrefixResponse, Status>>;

    async fn manage_prefixes(
        &self,
        request: tonic::Request<Streaming<pi::PrefixRequest>>,
    ) -> Result<Response<Self::ManagePrefixesStream>, Status> {
        answer(self.manage(request))
    }
}

/// One stream; what it holds goes back when this is dropped.
struct Open {
    questions: Streaming<pi::PrefixRequest>,
    stream: Box<dyn PrefixStream>,
    _share: Share,
}

impl Prefixes {
    fn manage(
        &self,
        request: tonic::Request<Streaming<pi::PrefixRequest>>,
    ) -> Result<BoxStream<'static, Result<pi::PrefixResponse, Status>>> {
        let link = request.extensions().get::<Arc<Link>>().ok_or_else(|| Error::internal("call", "its connection is unknown"))?;
        let peer = link.peer.id.clone();
        let (share, stream) = (self.drain.stream(&peer)?, self.api.open(peer));
        let open = Open { questions: request.into_inner(), stream, _share: share };
        let drain = self.drain.clone();
        let answers = unfold(Some(open), |open| async {
            let mut open = open?;
            let item = open.next().await?;
            let rest = item.is_ok().then_some(open);
            Some((item, rest))
        });
        Ok(answers.take_until(async move { drain.closing().await }).boxed())
    }
}

impl Open {
    /// The answer to the next question that has one.
    async fn next(&mut self) -> Option<Result<pi::PrefixResponse, Status>> {
        loop {
            let question = match self.questions.message().await {
                Ok(question) => question?,
                Err(status) => return Some(Err(status)),
            };
            let asked = match PrefixRequest::try_from(question) {
                Ok(question) => self.stream.ask(question).await,
                Err(error) => Err(error),
            };
            match asked {
                Ok(None) => {}
                Ok(Some(grant)) => return Some(Ok(grant.into())),
                Err(error) => return Some(Err(to_status(error))),
            }
        }
    }
}
