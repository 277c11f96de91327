//! What every role and tool is given beside its settings.

use crate::{notify::Notify, shutdown::Shutdown};
use nsm_api::Labels;

/// Where results go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Output {
    /// Tables and sentences.
    #[default]
    Text,
    /// JSON.
    Json,
}

/// The surroundings of a role. Clones share them.
#[derive(Clone, Debug)]
pub struct Context {
    /// When to end, and how long that may take.
    pub shutdown: Shutdown,
    /// Whom to tell when the role serves. Not telling is never an error.
    pub notify: Notify,
    /// Where results go.
    pub output: Output,
    /// Labels that the environment gives to requests and registrations: `nodeName`, `podName`, `clusterName`.
    pub labels: Labels,
}

/// Which variable becomes which label. The variable counts when it exists, even empty.
const LABEL_VARIABLES: [(&str, &str); 3] = [("NODE_NAME", "nodeName"), ("POD_NAME", "podName"), ("CLUSTER_NAME", "clusterName")];

impl Context {
    /// The surroundings of this process.
    pub fn new(shutdown: Shutdown, output: Output) -> Context {
        Context { shutdown, notify: Notify::from_environment(), output, labels: environment_labels(|name| std::env::var(name).ok()) }
    }
}

/// The labels that the variables give.
fn environment_labels(variable: impl Fn(&str) -> Option<String>) -> Labels {
    LABEL_VARIABLES.iter().filter_map(|(name, label)| Some(((*label).to_owned(), variable(name)?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_that_exist_become_labels() {
        let labels = environment_labels(|name| match name {
            "NODE_NAME" => Some("n1".into()),
            "POD_NAME" => Some(String::new()),
            _ => None,
        });
        assert_eq!(labels.into_iter().collect::<Vec<_>>(), [("nodeName".into(), "n1".into()), ("podName".into(), String::new())]);
    }
}
