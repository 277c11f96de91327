//! Policies at their places around a registry: a server judges who calls it, a client judges who answered it.

use crate::settings::{Opt, Settings, Shape};
use nsm_api::*;
use nsm_policy::{
    PolicySet,
    registration::{Name, Registrations, proven_path_ids},
};
use std::{sync::Arc, time::SystemTime};

/// Policies for those who register here.
pub const SERVER_POLICIES: Opt = Opt::new(
    "registry-server-policies",
    "NSM_REGISTRY_SERVER_POLICIES",
    "etc/nsm/opa/common/.*.rego,etc/nsm/opa/registry/.*.rego,etc/nsm/opa/server/.*.rego",
    Shape::List,
    "Policies for those who register here: expressions for the paths of built-in policies and of Rego files; empty: none",
);
/// Policies for the registry that this process calls.
pub const CLIENT_POLICIES: Opt = Opt::new(
    "registry-client-policies",
    "NSM_REGISTRY_CLIENT_POLICIES",
    "etc/nsm/opa/common/.*.rego,etc/nsm/opa/registry/.*.rego,etc/nsm/opa/client/.*.rego",
    Shape::List,
    "Policies for the answers of the registry, likewise",
);

/// Reads [`SERVER_POLICIES`].
pub fn server_policies(settings: &mut Settings) -> PolicySet {
    policies(settings, SERVER_POLICIES.flag)
}

/// Reads [`CLIENT_POLICIES`].
pub fn client_policies(settings: &mut Settings) -> PolicySet {
    policies(settings, CLIENT_POLICIES.flag)
}

fn policies(settings: &mut Settings, flag: &'static str) -> PolicySet {
    let masks: Vec<String> = settings.list(flag);
    PolicySet::load(&masks).unwrap_or_else(|error| {
        settings.mistake(format!("--{flag}: {error}"));
        PolicySet::default()
    })
}

/// `registry`, for those who call this process.
pub fn server(registry: Arc<dyn RegistryApi>, policies: PolicySet) -> Arc<dyn RegistryApi> {
    Arc::new(Server { registry, rules: Registrations::new(policies) })
}

/// `registry`, which is another process.
pub fn client(registry: Arc<dyn RegistryApi>, policies: PolicySet) -> Arc<dyn RegistryApi> {
    Arc::new(Client { registry, rules: Registrations::new(policies) })
}

fn service_name(service: &NetworkService) -> Name {
    Name::Service(service.name.to_string())
}

fn endpoint_name(endpoint: &NetworkServiceEndpoint) -> Name {
    Name::Endpoint(endpoint.name.to_string())
}

struct Server {
    registry: Arc<dyn RegistryApi>,
    rules: Registrations,
}

impl Server {
    fn enter(&self, name: &Name, path_ids: &mut Vec<String>, caller: &Caller) -> Result<()> {
        self.rules.admit(name, caller, SystemTime::now())?;
        *path_ids = proven_path_ids(name, path_ids, caller)?;
        Ok(())
    }
}

#[async_trait::async_trait]
impl RegistryApi for Server {
    async fn register_service(&self, mut service: NetworkService, caller: Caller) -> Result<NetworkService> {
        self.enter(&service_name(&service), &mut service.path_ids, &caller)?;
        let answer = self.registry.register_service(service, caller).await?;
        self.rules.keep(service_name(&answer), answer.path_ids.clone(), None);
        Ok(answer)
    }
    async fn find_services(&self, query: ServiceQuery, caller: Caller) -> Result<ServiceUpdates> {
        self.registry.find_services(query, caller).await
    }
    async fn unregister_service(&self, mut service: NetworkService, caller: Caller) -> Result<()> {
        let name = service_name(&service);
        self.enter(&name, &mut service.path_ids, &caller)?;
        self.registry.unregister_service(service, caller).await?;
        self.rules.forget(&name);
        Ok(())
    }
    async fn register_endpoint(
        &self,
        mut endpoint: NetworkServiceEndpoint,
        files: Files,
        caller: Caller,
    ) -> Result<NetworkServiceEndpoint> {
        self.enter(&endpoint_name(&endpoint), &mut endpoint.path_ids, &caller)?;
        let answer = self.registry.register_endpoint(endpoint, files, caller).await?;
        self.rules.keep(endpoint_name(&answer), answer.path_ids.clone(), answer.expiration_time);
        Ok(answer)
    }
    async fn find_endpoints(&self, query: EndpointQuery, caller: Caller) -> Result<EndpointUpdates> {
        self.registry.find_endpoints(query, caller).await
    }
    async fn unregister_endpoint(&self, mut endpoint: NetworkServiceEndpoint, caller: Caller) -> Result<()> {
        let name = endpoint_name(&endpoint);
        self.enter(&name, &mut endpoint.path_ids, &caller)?;
        self.registry.unregister_endpoint(endpoint, caller).await?;
        self.rules.forget(&name);
        Ok(())
    }
}

struct Client {
    registry: Arc<dyn RegistryApi>,
    rules: Registrations,
}

#[async_trait::async_trait]
impl RegistryApi for Client {
    async fn register_service(&self, service: NetworkService, caller: Caller) -> Result<NetworkService> {
        let (answer, now) = (self.registry.register_service(service, caller.clone()).await?, SystemTime::now());
        let name = service_name(&answer);
        if let Err(error) = self.rules.approve(&name, &caller, now) {
            if !self.rules.knows(&name, now) {
                let _ = self.registry.unregister_service(answer, caller).await; // the refusal is what counts
            }
            return Err(error);
        }
        self.rules.keep(name, answer.path_ids.clone(), None);
        Ok(answer)
    }
    async fn find_services(&self, query: ServiceQuery, caller: Caller) -> Result<ServiceUpdates> {
        self.registry.find_services(query, caller).await
    }
    async fn unregister_service(&self, service: NetworkService, caller: Caller) -> Result<()> {
        let name = service_name(&service);
        self.registry.unregister_service(service, caller).await?;
        self.rules.forget(&name);
        Ok(())
    }
    async fn register_endpoint(&self, endpoint: NetworkServiceEndpoint, files: Files, caller: Caller) -> Result<NetworkServiceEndpoint> {
        let (answer, now) = (self.registry.register_endpoint(endpoint, files, caller.clone()).await?, SystemTime::now());
        let name = endpoint_name(&answer);
        if let Err(error) = self.rules.approve(&name, &caller, now) {
            if !self.rules.knows(&name, now) {
                let _ = self.registry.unregister_endpoint(answer, caller).await; // the refusal is what counts
            }
            return Err(error);
        }
        self.rules.keep(name, answer.path_ids.clone(), answer.expiration_time);
        Ok(answer)
    }
    async fn find_endpoints(&self, query: EndpointQuery, caller: Caller) -> Result<EndpointUpdates> {
        self.registry.find_endpoints(query, caller).await
    }
    async fn unregister_endpoint(&self, endpoint: NetworkServiceEndpoint, caller: Caller) -> Result<()> {
        let name = endpoint_name(&endpoint);
        self.registry.unregister_endpoint(endpoint, caller).await?;
        self.rules.forget(&name);
        Ok(())
    }
}
