//! Policies at their places in a hop: a server judges who calls it, a client judges where its call went.

use futures::{StreamExt, TryStreamExt};
use nsm_api::*;
use nsm_hop::role::{Admit, Draft, Issuer};
use nsm_policy::{PolicySet, Question, discretion::shown_to};
use std::sync::Arc;

/// The policies of a process that others call, and of one that starts connections. As elsewhere, a policy file in one
/// of these directories, below the working directory, is added, or takes the place of the built-in one of its name.
const SERVER_MASKS: [&str; 2] = ["etc/nsm/opa/common/.*.rego", "etc/nsm/opa/server/.*.rego"];
const CLIENT_MASKS: [&str; 2] = ["etc/nsm/opa/common/.*.rego", "etc/nsm/opa/client/.*.rego"];

/// The rules of a process that others call.
pub fn server(issuer: &Arc<dyn Issuer>) -> Result<Vec<Box<dyn Admit>>> {
    Ok(vec![Box::new(Server { policies: load(SERVER_MASKS)?, issuer: issuer.clone() })])
}

/// The rules of a process that makes interfaces for others.
pub fn forwarder(issuer: &Arc<dyn Issuer>) -> Result<Vec<Box<dyn Admit>>> {
    let mut rules = server(issuer)?;
    rules.push(Box::new(nsm_linux::OnlyNamespaces));
    Ok(rules)
}

/// The rules of a process that starts connections.
pub fn client(issuer: &Arc<dyn Issuer>) -> Result<Vec<Box<dyn Admit>>> {
    Ok(vec![Box::new(Client { policies: load(CLIENT_MASKS)?, issuer: issuer.clone() })])
}

fn load(masks: [&str; 2]) -> Result<PolicySet> {
    let policies = PolicySet::load(&masks.map(str::to_owned))?;
    policies.files().for_each(|file| tracing::info!(file, "policy of the user"));
    Ok(policies)
}

struct Server {
    policies: PolicySet,
    issuer: Arc<dyn Issuer>,
}

impl Admit for Server {
    fn admit(&self, draft: &Draft, caller: &Caller) -> Result<()> {
        let connection = &draft.connection;
        let question = Question::server(&connection.path, caller.certificate.as_deref(), self.issuer.now());
        self.policies.check(&object(connection), &question)
    }
    fn admit_close(&self, connection: &Connection, caller: &Caller) -> Result<()> {
        let question = Question::close(&connection.path, caller.certificate.as_deref(), self.issuer.now());
        self.policies.check(&object(connection), &question)
    }
}

struct Client {
    policies: PolicySet,
    issuer: Arc<dyn Issuer>,
}

impl Admit for Client {
    fn approve(&self, answer: &Answer) -> Result<()> {
        let question = Question::client(&answer.connection.path, answer.certificate.as_deref(), self.issuer.now());
        self.policies.check(&object(&answer.connection), &question)
    }
}

/// A hop as others see it: monitors get the tokens of their own connections only.
///
/// Anybody may monitor, because other implementations do so before they have any connection.
pub struct Discreet(pub Arc<dyn NetworkServiceApi>);

#[async_trait::async_trait]
impl NetworkServiceApi for Discreet {
    async fn request(&self, request: Request, caller: Caller) -> Result<Answer> {
        self.0.request(request, caller).await
    }
    async fn close(&self, connection: Connection, files: Files, caller: Caller) -> Result<()> {
        self.0.close(connection, files, caller).await
    }
    async fn monitor(&self, selector: Selector, caller: Caller) -> Result<Events> {
        let viewer = caller.identity.clone();
        let show = move |mut event: ConnectionEvent| {
            event.connections = event.connections.into_iter().map(|(id, seen)| (id, shown_to(seen, viewer.as_ref()))).collect();
            event
        };
        Ok(self.0.monitor(selector, caller).await?.map_ok(show).boxed())
    }
}

fn object(connection: &Connection) -> String {
    format!("connection {:?}", connection.id.as_str())
}
