//! A network service that the kernel of its pod carries: a network behind it becomes a route of every client. And a rule of
//! its own: who does not say for which department he works is refused, with a sentence that he sees.

use nsm::sdk::Endpoint;
use nsm_api::{ConnectionId, Error, Kind, Result};
use nsm_hop::role::{Draft, Reserve};
use std::process::ExitCode;

fn main() -> ExitCode {
    let endpoint = Endpoint::new("kernel-endpoint").service("intranet").label("app", "gateway");
    endpoint.addresses("10.78.0.0/24").route("172.31.0.0/16").with(OnlyDepartments).run()
}

/// Lets in who has a label `department`.
struct OnlyDepartments;

impl Reserve for OnlyDepartments {
    fn reserve(&self, draft: &mut Draft) -> Result<()> {
        if draft.connection.labels.contains_key("department") {
            return Ok(());
        }
        let client = draft.connection.path.segments.first().map_or("a client", |segment| segment.name.as_str());
        let fix = "ask with kernel://intranet/nsm-1?department=...";
        Err(Error::new(Kind::Denied, client.to_owned(), "does not say for which department it works", fix))
    }
    /// Nothing is held, so nothing is given back.
    fn release(&self, _: &ConnectionId) {}
}
