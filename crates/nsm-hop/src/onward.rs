//! Who comes next: nobody (an endpoint), one known hop (a client), a forwarder (a manager), an endpoint (a
//! forwarder), or the next service function (a passthrough endpoint).

mod avoid;
mod chain;
mod endpoints;
mod forwarders;
mod lookup;

pub use avoid::{AVOIDED_FOR, MAX_AVOIDED};
pub use chain::Chain;
pub use endpoints::Endpoints;
pub use forwarders::Forwarders;
pub use lookup::MAX_QUESTIONS;
pub(crate) use lookup::named;

use crate::role::{Candidate, Draft, Next, Onward, Sent};
use async_trait::async_trait;
use nsm_api::*;

/// The path ends here.
pub struct End;

#[async_trait]
impl Onward for End {
    async fn next(&self, _: &Draft, _: Option<&Sent>) -> Result<Next> {
        Ok(Next::End)
    }
    fn request(&self, draft: &Draft, _: &Candidate, _: Option<&Sent>) -> Result<Request> {
        Ok(pass_on(draft))
    }
    fn accept(&self, _: &mut Draft, _: &Answer) {}
}

/// One next hop, always the same: a client's manager.
pub struct Fixed(pub Target);

#[async_trait]
impl Onward for Fixed {
    async fn next(&self, _: &Draft, _: Option<&Sent>) -> Result<Next> {
        Ok(Next::Hops(vec![Candidate { target: self.0.clone(), socket: Files::default(), registered: None, payload: Payload::Unset }]))
    }
    fn request(&self, draft: &Draft, _: &Candidate, _: Option<&Sent>) -> Result<Request> {
        Ok(pass_on(draft))
    }
    fn accept(&self, draft: &mut Draft, answer: &Answer) {
        take_over(draft, answer);
    }
}

/// What came in goes out: mechanisms, files and all.
fn pass_on(draft: &Draft) -> Request {
    Request { connection: draft.connection.clone(), preferences: draft.preferences.clone(), files: draft.files.clone() }
}

/// The answer is the connection.
fn take_over(draft: &mut Draft, answer: &Answer) {
    draft.connection = answer.connection.clone();
    draft.files.extend(&answer.files);
}

/// The answer is the connection, except for what this hop agreed with its own client.
fn take_over_but_mechanism(draft: &mut Draft, answer: &Answer) {
    let mechanism = draft.connection.mechanism.take();
    take_over(draft, answer);
    draft.connection.mechanism = mechanism;
}
