//! What is said when a Request cannot be carried on, in one sentence each.

use nsm_api::*;
use std::future::Future;
use tokio::time::{Instant, timeout_at};

/// Bounds one call to the outside by the Request's deadline.
pub(super) async fn within<T>(deadline: Instant, what: &str, call: impl Future<Output = Result<T>>) -> Result<T> {
    timeout_at(deadline, call).await.unwrap_or_else(|_| {
        let fix = "check that it runs and can be reached, or allow more time with --request-timeout";
        Err(Error::new(Kind::Timeout, what, "did not answer before the Request's deadline", fix))
    })
}

/// One error for all candidates: the only one as it is, several as a sentence with each cause once.
pub(super) fn combined(connection: &Connection, mut failures: Vec<Error>) -> Error {
    match failures.len() {
        0 => Error::new(
            Kind::NotFound,
            format!("network service {:?}", connection.network_service.as_str()),
            "nobody can carry it on",
            "start a forwarder and an endpoint of the service",
        ),
        1 => failures.remove(0),
        count => {
            let mut causes: Vec<String> = failures.iter().map(ToString::to_string).collect();
            causes.dedup();
            let kind = failures.iter().find(|error| error.retryable()).unwrap_or(&failures[0]).kind;
            let object = format!("network service {:?}", connection.network_service.as_str());
            Error::new(kind, object, format!("all {count} candidates refused: {}", causes.join(" | ")), "mend any one of them")
        }
    }
}

/// The refusal of a connection that another process has asked for.
pub(crate) fn not_yours(id: &ConnectionId) -> Error {
    let reason = "belongs to another process, and the caller does not show that it took its place";
    Error::new(
        Kind::Denied,
        format!("connection {:?}", id.as_str()),
        reason,
        "send the path of the last answer, or ask for a connection of your own",
    )
}
