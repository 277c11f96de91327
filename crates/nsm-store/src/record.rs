//! Records as bytes: the messages of the registry API, which keep fields that this version does not know.

use buffa::Message;
use nsm_api::{EndpointName, Error, NetworkService, NetworkServiceEndpoint, Result, ServiceName, proto::registry};
use nsm_registry::{Engine, Record, Store};

/// A record that has a form outside this process.
pub(crate) trait Persist: Record {
    /// Where records of this kind are kept.
    const TABLE: &'static str;

    fn key(name: &Self::Name) -> &str;
    fn encode(&self) -> Vec<u8>;
    fn decode(bytes: &[u8]) -> Result<Self>;
    fn store(engine: &dyn Engine) -> &dyn Store<Self>;
}

impl Persist for NetworkService {
    const TABLE: &'static str = "services";

    fn key(name: &ServiceName) -> &str {
        name.as_str()
    }
    fn encode(&self) -> Vec<u8> {
        registry::NetworkService::from(self.clone()).encode_to_vec()
    }
    fn decode(mut bytes: &[u8]) -> Result<NetworkService> {
        registry::NetworkService::decode(&mut bytes).map_err(|error| unreadable(&error))?.try_into()
    }
    fn store(engine: &dyn Engine) -> &dyn Store<NetworkService> {
        engine.services()
    }
}

impl Persist for NetworkServiceEndpoint {
    const TABLE: &'static str = "endpoints";

    fn key(name: &EndpointName) -> &str {
        name.as_str()
    }
    fn encode(&self) -> Vec<u8> {
        registry::NetworkServiceEndpoint::from(self.clone()).encode_to_vec()
    }
    fn decode(mut bytes: &[u8]) -> Result<NetworkServiceEndpoint> {
        registry::NetworkServiceEndpoint::decode(&mut bytes).map_err(|error| unreadable(&error))?.try_into()
    }
    fn store(engine: &dyn Engine) -> &dyn Store<NetworkServiceEndpoint> {
        engine.endpoints()
    }
}

fn unreadable(error: &impl ToString) -> Error {
    Error::invalid("a stored record", format!("cannot be read: {}", error.to_string()), "restore a backup")
}
