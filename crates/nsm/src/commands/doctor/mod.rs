//! `nsm doctor`: one row for everything a role or a lab needs of this machine; what is missing says what to do.

mod machine;
mod network;

use super::{
    mesh::{self, REQUEST_TIMEOUT},
    table,
};
use crate::{
    context::Context,
    exit::Exit,
    roles::process::WORKLOAD_API,
    settings::{Opt, Settings},
};
use nsm_api::{Result, Target};
use serde::Serialize;
use std::time::Duration;

pub(crate) const OPTIONS: &[Opt] = &[WORKLOAD_API, REQUEST_TIMEOUT];

/// How something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Health {
    /// As it should be.
    Ok,
    /// Something will not work, the rest will.
    Warning,
    /// Nothing useful will work.
    Failed,
}

/// One row.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Finding {
    check: String,
    state: Health,
    seen: String,
    /// Empty when nothing is to be done.
    fix: String,
}

impl Finding {
    fn ok(check: impl Into<String>, seen: impl Into<String>) -> Finding {
        Finding { check: check.into(), state: Health::Ok, seen: seen.into(), fix: String::new() }
    }
    fn warning(check: impl Into<String>, seen: impl Into<String>, fix: impl Into<String>) -> Finding {
        Finding { check: check.into(), state: Health::Warning, seen: seen.into(), fix: fix.into() }
    }
    fn failed(check: impl Into<String>, seen: impl Into<String>, fix: impl Into<String>) -> Finding {
        Finding { state: Health::Failed, ..Finding::warning(check, seen, fix) }
    }
}

pub(crate) async fn run(mut settings: Settings, context: Context) -> Result<Exit> {
    let endpoint: Target = settings.text(WORKLOAD_API.flag);
    let patience = settings.duration(REQUEST_TIMEOUT.flag);
    settings.finish()?;
    let mut findings = machine::findings();
    findings.extend(network::findings());
    findings.push(identity(&endpoint, patience).await);
    table::print(context.output, ["CHECK", "STATE", "SEEN", "WHAT TO DO"], &findings, |finding| {
        let state = match finding.state {
            Health::Ok => "ok",
            Health::Warning => "WARNING",
            Health::Failed => "FAILED",
        };
        [finding.check.clone(), state.to_owned(), finding.seen.clone(), finding.fix.clone()]
    })?;
    Ok(verdict(&findings))
}

/// Warnings do not fail: each says what will not work, and that may not be wanted.
fn verdict(findings: &[Finding]) -> Exit {
    if findings.iter().any(|finding| finding.state == Health::Failed) { Exit::Failed } else { Exit::Ok }
}

async fn identity(endpoint: &Target, patience: Duration) -> Finding {
    let check = "identity";
    match mesh::identity(endpoint, patience).await {
        Ok(source) => Finding::ok(check, format!("{} from {endpoint}", source.id())),
        Err(error) => {
            Finding::warning(check, error.reason, "start `nsm identity` or `nsm node`, or set SPIFFE_ENDPOINT_SOCKET; a lab brings its own")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_failure_fails() {
        let (ok, warning) = (Finding::ok("a", "b"), Finding::warning("a", "b", "c"));
        assert_eq!(verdict(&[ok.clone(), warning]), Exit::Ok);
        assert_eq!(verdict(&[ok, Finding::failed("a", "b", "c")]), Exit::Failed);
    }

    #[tokio::test]
    async fn a_missing_workload_api_is_told_at_once() {
        let endpoint = Target::Unix("/nonexistent/nsm/workload.sock".into());
        let finding = identity(&endpoint, Duration::from_secs(1)).await;
        assert_eq!(finding.state, Health::Warning);
        assert!(finding.seen.contains("/nonexistent/nsm/workload.sock") || !finding.seen.is_empty());
    }
}
