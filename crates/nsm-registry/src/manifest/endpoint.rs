//! NetworkServiceEndpoint documents.

use super::{
    node::{Document, Node},
    reader::{KeyNames, Reader},
};
use nsm_api::{
    EndpointName, Labels, NetworkServiceEndpoint, Result, ServiceName,
    limits::{MAX_MAP_ENTRIES, MAX_SERVICES_PER_ENDPOINT},
};
use std::collections::BTreeMap;

const SPEC: &[KeyNames] = &[
    ("name", &[]),
    ("network_service_names", &["networkServiceNames"]),
    ("network_service_labels", &["networkServiceLabels"]),
    ("url", &[]),
    ("expiration_time", &["expirationTime"]),
    ("initial_registration_time", &["initialRegistrationTime"]),
    ("path_ids", &["pathIds"]),
];
const LABELS: &[KeyNames] = &[("labels", &[])];

/// What the registry adds to a record: found in what Kubernetes exports, wrong in what is applied.
const SAID_BY_REGISTRY: [&str; 3] = ["expiration_time", "initial_registration_time", "path_ids"];

impl Reader<'_> {
    pub(super) fn endpoint(&mut self, document: &Document<'_>) -> Result<NetworkServiceEndpoint> {
        let ((line, name), spec) = self.frame(document, SPEC)?;
        let name = self.located(line, EndpointName::new(name))?;
        let mut services = Vec::new();
        for node in self.list(spec.get("network_service_names"), "network_service_names", MAX_SERVICES_PER_ENDPOINT)? {
            services.push(self.service_name(node.line, &self.text(node, "a service name")?)?);
        }
        let url = spec.get("url").map(|node| self.text(node, "url")).transpose()?.unwrap_or_default();
        let mut endpoint = NetworkServiceEndpoint::new(name, services, url);
        endpoint.network_service_labels = self.service_labels(spec.get("network_service_labels"))?;
        for key in SAID_BY_REGISTRY {
            if let Some(node) = spec.get(key) {
                self.warn(node.line, format!("{key} is said by the registry, and not read from a file"), "");
            }
        }
        Ok(endpoint)
    }

    fn service_labels(&mut self, node: Option<&Node>) -> Result<BTreeMap<ServiceName, Labels>> {
        let mut all = BTreeMap::new();
        let Some(node) = node else { return Ok(all) };
        let entries = self.entries(node, "network_service_labels")?;
        if entries.len() > MAX_MAP_ENTRIES {
            let reason = format!("has {} entries, the limit is {MAX_MAP_ENTRIES}", entries.len());
            return self.error(node.line, "network_service_labels", reason, "write fewer");
        }
        for (key, value) in entries {
            let labels = self.object(value, "the labels for a service", LABELS)?.get("labels");
            let labels = self.labels(labels, "labels")?;
            all.insert(self.service_name(key.line, &key.text)?, labels);
        }
        Ok(all)
    }

    fn service_name(&self, line: usize, text: &str) -> Result<ServiceName> {
        self.located(line, ServiceName::new(text))
    }
}
