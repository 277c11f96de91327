//! Policies at their places in a hop: a server judges who calls it, a client judges where its call went.

use nsm_api::*;
use nsm_hop::role::{Admit, Draft, Issuer};
use nsm_policy::{PolicySet, Question};
use std::sync::Arc;

/// The rules of a process that others call.
pub fn server(issuer: &Arc<dyn Issuer>) -> Vec<Box<dyn Admit>> {
    vec![Box::new(Server { policies: PolicySet::server(), issuer: issuer.clone() })]
}

/// The rules of a process that starts connections.
pub fn client(issuer: &Arc<dyn Issuer>) -> Vec<Box<dyn Admit>> {
    vec![Box::new(Client { policies: PolicySet::client(), issuer: issuer.clone() })]
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

fn object(connection: &Connection) -> String {
    format!("connection {:?}", connection.id.as_str())
}
