//! Monitor streams added up: what somebody who has followed every event believes must be what is.

use nsm_api::{Error, Result};
use serde::Deserialize;
use std::{
    collections::BTreeMap,
    process::Stdio,
    sync::{Arc, Mutex, PoisonError},
};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    task::JoinHandle,
};

/// A line of `nsm watch connections --json`.
#[derive(Deserialize)]
struct Line {
    #[serde(rename = "type")]
    kind: String,
    object: serde_json::Value,
}

/// What is compared of a connection: who answers, by what, and whether it is up. Tokens are renewed all the time.
pub(crate) type Believed = BTreeMap<String, String>;

/// The part of a connection that a follower and the server must agree on.
fn essence(connection: &serde_json::Value) -> (String, String) {
    let id = connection["id"].as_str().unwrap_or("?").to_owned();
    let parts = [&connection["state"], &connection["network_service_endpoint_name"], &connection["mechanism"]["type"]];
    (id, parts.map(ToString::to_string).join(" "))
}

/// What a list of connections says.
pub(crate) fn believed(text: &str) -> Result<Believed> {
    let list: Vec<serde_json::Value> =
        serde_json::from_str(text.trim()).map_err(|error| Error::internal("list of connections", error.to_string()))?;
    Ok(list.iter().map(essence).collect())
}

/// Follows one monitor until it is dropped, or the monitor ends.
pub(crate) struct Follower {
    _child: Child,
    task: JoinHandle<()>,
    sum: Arc<Mutex<Believed>>,
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Follower {
    /// Starts `command`, which prints events.
    pub(crate) fn start(mut command: Command) -> Result<Follower> {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
        let failed = |reason: String| Error::internal("follower of a monitor", reason);
        let mut child = command.spawn().map_err(|error| failed(error.to_string()))?;
        let out = child.stdout.take().ok_or_else(|| failed("has no output".to_owned()))?;
        let sum = Arc::new(Mutex::new(Believed::new()));
        let adding = sum.clone();
        let task = tokio::spawn(async move {
            let mut lines = BufReader::new(out).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                if let Ok(line) = serde_json::from_str::<Line>(&line) {
                    fold(&mut adding.lock().unwrap_or_else(PoisonError::into_inner), &line);
                }
            }
        });
        Ok(Follower { _child: child, task, sum })
    }
    /// The stream has ended.
    pub(crate) fn has_ended(&self) -> bool {
        self.task.is_finished()
    }
    /// The sum of all events so far.
    pub(crate) fn sum(&self) -> Believed {
        self.sum.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn fold(sum: &mut Believed, line: &Line) {
    let (id, essence) = essence(&line.object);
    match line.kind.as_str() {
        "DELETE" => drop(sum.remove(&id)),
        _ => drop(sum.insert(id, essence)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_add_up_to_what_a_list_says() {
        let connection = |id: &str, end: &str| {
            format!(r#"{{"id":"{id}","state":"UP","network_service_endpoint_name":"{end}","mechanism":{{"type":"KERNEL"}}}}"#)
        };
        let line = |kind: &str, object: String| serde_json::from_str::<Line>(&format!(r#"{{"type":"{kind}","object":{object}}}"#)).unwrap();
        let mut sum = Believed::new();
        fold(&mut sum, &line("INITIAL_STATE_TRANSFER", connection("1", "a")));
        fold(&mut sum, &line("UPDATE", connection("2", "a")));
        fold(&mut sum, &line("UPDATE", connection("1", "b")));
        fold(&mut sum, &line("DELETE", connection("2", "a")));
        assert_eq!(sum, believed(&format!("[{}]", connection("1", "b"))).unwrap());
        assert_ne!(sum, believed(&format!("[{}]", connection("1", "a"))).unwrap());
        assert!(believed("oops").is_err());
    }
}
