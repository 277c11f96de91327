//! Which cluster, and how it is reached.

use super::cluster::CONNECT_TIMEOUT;
use nsm_api::{Error, Result};
use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity};

/// Members of one cluster that are tried.
pub const MAX_ENDPOINTS: usize = 16;
/// Where our keys begin unless said otherwise; the number is the form of the values.
pub const DEFAULT_PREFIX: &str = "/nsm/registry/1/";

/// Two of these without an answer end a connection.
const KEEP_ALIVE: Duration = Duration::from_secs(2);

/// Which etcd cluster.
#[derive(Clone, Debug)]
pub struct EtcdOptions {
    /// Its members, such as `http://10.0.0.1:2379`; `https://` with [`EtcdOptions::tls`].
    pub endpoints: Vec<String>,
    /// What all keys begin with; ends with `/`.
    pub prefix: String,
    /// Certificates, for `https://`.
    pub tls: EtcdTls,
}

/// Files with certificates, as PEM.
#[derive(Clone, Debug, Default)]
pub struct EtcdTls {
    /// Who may have signed the members' certificates.
    pub authority: Option<PathBuf>,
    /// Our certificate and its key, for clusters that ask for one.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// The name in the members' certificates, where it is not the host of the URL.
    pub server_name: Option<String>,
}

impl EtcdOptions {
    /// The cluster with these members, without certificates.
    pub fn new(endpoints: impl IntoIterator<Item = impl Into<String>>) -> EtcdOptions {
        let endpoints = endpoints.into_iter().map(Into::into).collect();
        EtcdOptions { endpoints, prefix: DEFAULT_PREFIX.to_owned(), tls: EtcdTls::default() }
    }

    pub(super) fn object(&self) -> String {
        format!("etcd cluster {}", self.endpoints.join(","))
    }

    pub(super) fn members(&self) -> Result<Vec<Endpoint>> {
        let wrong = |reason: String| Err(Error::invalid(self.object(), reason, "name its members, such as http://10.0.0.1:2379"));
        if self.endpoints.is_empty() || self.endpoints.len() > MAX_ENDPOINTS {
            return wrong(format!("has {} members; 1 to {MAX_ENDPOINTS} can be named", self.endpoints.len()));
        }
        if !self.prefix.ends_with('/') {
            return Err(Error::invalid(format!("etcd prefix {:?}", self.prefix), "does not end with a slash", "end it with one"));
        }
        let tls = self.endpoints.iter().any(|url| url.starts_with("https:")).then(|| self.tls.config()).transpose()?;
        self.endpoints.iter().map(|url| self.member(url, tls.as_ref())).collect()
    }

    fn member(&self, url: &str, tls: Option<&ClientTlsConfig>) -> Result<Endpoint> {
        let wrong =
            |reason: String| Error::invalid(format!("etcd member {url:?}"), reason, "write it as http://HOST:2379 or https://HOST:2379");
        if !url.starts_with("http://") && !url.starts_with("https://") {
            return Err(wrong("is no URL of http or https".to_owned()));
        }
        let endpoint = Endpoint::from_shared(url.to_owned()).map_err(|error| wrong(format!("is no URL: {error}")))?;
        let endpoint = endpoint.connect_timeout(CONNECT_TIMEOUT).tcp_nodelay(true);
        let endpoint = endpoint.http2_keep_alive_interval(KEEP_ALIVE).keep_alive_timeout(KEEP_ALIVE).keep_alive_while_idle(true);
        match tls {
            Some(tls) if url.starts_with("https://") => {
                endpoint.tls_config(tls.clone()).map_err(|error| wrong(format!("cannot be used with these certificates: {error}")))
            }
            _ => Ok(endpoint),
        }
    }
}

impl EtcdTls {
    fn config(&self) -> Result<ClientTlsConfig> {
        let mut config = ClientTlsConfig::new();
        if let Some(file) = &self.authority {
            config = config.ca_certificate(Certificate::from_pem(read(file)?));
        }
        if let Some((certificate, key)) = &self.identity {
            config = config.identity(Identity::from_pem(read(certificate)?, read(key)?));
        }
        if let Some(name) = &self.server_name {
            config = config.domain_name(name);
        }
        Ok(config)
    }
}

fn read(file: &Path) -> Result<Vec<u8>> {
    fs::read(file).map_err(|error| Error::invalid(format!("file {file:?}"), format!("cannot be read: {error}"), "name a readable PEM file"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_a_cluster_is_refused_at_once() {
        let many = vec!["http://a:1"; MAX_ENDPOINTS + 1];
        for (members, reason) in
            [(vec![], "has 0 members"), (many, "has 17 members"), (vec!["tcp://a:1"], "http or https"), (vec!["http://a b"], "is no URL")]
        {
            let refused = EtcdOptions::new(members).members().unwrap_err().to_string();
            assert!(refused.contains(reason), "{refused}");
        }
        let prefix = EtcdOptions { prefix: "/nsm".into(), ..EtcdOptions::new(["http://a:1"]) };
        assert!(prefix.members().unwrap_err().to_string().contains("slash"));
        let missing = EtcdTls { authority: Some("/nowhere/ca.pem".into()), ..EtcdTls::default() };
        let missing = EtcdOptions { tls: missing, ..EtcdOptions::new(["https://a:1"]) };
        assert!(missing.members().unwrap_err().to_string().contains("/nowhere/ca.pem"));
    }
}
