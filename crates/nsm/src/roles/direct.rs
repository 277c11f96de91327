//! Calls between the roles of one process.

use nsm_api::*;
use nsm_identity::Source;
use std::{sync::Arc, time::Duration};

/// A call between roles of one process: the same words as over a wire, so the path that others see is the same.
pub(super) struct Direct {
    pub(super) hop: Arc<dyn NetworkServiceApi>,
    pub(super) source: Source,
    pub(super) max_life: Duration,
}

impl Direct {
    fn sign(&self, mut caller: Caller) -> Result<Caller> {
        let id = self.source.id();
        let token = self.source.token(Some(&id), self.max_life, None)?;
        caller.identity = Some(id);
        caller.token = token.text;
        caller.token_expires = Some(token.expires);
        caller.certificate = Some(token.certificate);
        Ok(caller)
    }
}

#[async_trait::async_trait]
impl NetworkServiceApi for Direct {
    async fn request(&self, request: Request, caller: Caller) -> Result<Answer> {
        let caller = self.sign(caller)?;
        let certificate = caller.certificate.clone();
        let answer = self.hop.request(request, caller).await?;
        Ok(Answer { certificate, ..answer })
    }
    async fn close(&self, connection: Connection, files: Files, caller: Caller) -> Result<()> {
        self.hop.close(connection, files, self.sign(caller)?).await
    }
    async fn monitor(&self, selector: Selector, caller: Caller) -> Result<Events> {
        self.hop.monitor(selector, self.sign(caller)?).await
    }
}
