//! A passthrough endpoint asks for the same service again, with labels of its own, and so reaches the next function.

use super::take_over_but_mechanism;
use crate::{
    kernel::Netns,
    mechanism::{endpoint_interface_name, own_kernel},
    role::{Candidate, Draft, Next, Onward, Sent},
};
use async_trait::async_trait;
use nsm_api::*;

/// The way from a passthrough endpoint to the next.
pub struct Chain {
    /// The manager of this node.
    pub manager: Target,
    /// Labels of the onward Request, instead of the client's.
    pub labels: Labels,
    /// Where both interfaces live.
    pub netns: Netns,
}

#[async_trait]
impl Onward for Chain {
    async fn next(&self, _: &Draft, _: Option<&Sent>) -> Result<Next> {
        Ok(Next::Hops(vec![Candidate {
            target: self.manager.clone(),
            socket: Files::default(),
            registered: None,
            payload: Payload::Unset,
        }]))
    }

    fn request(&self, draft: &Draft, _: &Candidate, before: Option<&Sent>) -> Result<Request> {
        let mut connection = draft.connection.clone();
        connection.labels = self.labels.clone();
        connection.network_service_endpoint_name = before.and_then(|sent| sent.connection.network_service_endpoint_name.clone());
        connection.mechanism = before.and_then(|sent| sent.connection.mechanism.clone());
        let mut files = Files::default();
        let onward_id = ConnectionId::new(format!("{}/onward", connection.id))?;
        let name = endpoint_interface_name(&connection.network_service, &onward_id);
        let preference = own_kernel(&self.netns, Some(&name), &mut files);
        Ok(Request { connection, preferences: vec![preference], files })
    }

    fn accept(&self, draft: &mut Draft, answer: &Answer) {
        // To its client this endpoint is the endpoint: the labels and the name of the onward stretch stay behind it.
        let (labels, name) = (draft.connection.labels.clone(), draft.connection.network_service_endpoint_name.clone());
        take_over_but_mechanism(draft, answer);
        draft.connection.labels = labels;
        draft.connection.network_service_endpoint_name = name;
    }
}
