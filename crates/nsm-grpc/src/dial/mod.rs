//! Dialling: a target becomes the same trait that the server's handlers call.
//!
//! `pool` keeps one connection for each target, `connect` makes it, `channel` sends one call on it with its token,
//! its timeout and its files; `network`, `registry` and `health` are the calls.

mod body;
mod channel;
mod connect;
mod health;
mod ipam;
mod network;
mod pool;
mod registry;
mod resolve;
mod stream;

pub use ipam::{HeldPrefix, PrefixClient};
pub(crate) use resolve::Resolver;

use channel::Channel;
use nsm_api::{Files, NetworkServiceApi, RegistryApi, Result, Target};
use nsm_identity::Source;
use pool::Pool;
use std::{sync::Arc, time::Duration};

/// How to dial.
#[derive(Clone, Debug)]
pub struct DialOptions {
    /// How long one attempt to connect may take, TLS included.
    pub dial_timeout: Duration,
    /// How long the tokens of our calls are good.
    pub max_token_life: Duration,
    /// How long a peer that is not there yet (no socket, connection refused) is waited for, within the timeout of the
    /// call that wants it. Zero lets the call fail at once, for those who have another peer to try.
    pub wait_for_ready: Duration,
}

impl Default for DialOptions {
    /// 5 s to connect, tokens of 10 min, and as long a wait as the call allows.
    fn default() -> DialOptions {
        DialOptions { dial_timeout: Duration::from_secs(5), max_token_life: Duration::from_secs(600), wait_for_ready: Duration::MAX }
    }
}

/// Makes clients. Cheap to clone; clones share their connections.
#[derive(Clone)]
pub struct Dialer(Arc<Pool>);

impl Dialer {
    /// A dialer with the identity of `source`. Dials nothing yet.
    pub fn new(source: Source, options: DialOptions) -> Dialer {
        Dialer(Arc::new(Pool::new(source, options)))
    }

    /// The network service at `target`. `files` holds the socket when the target is `inode://`; else it may be empty.
    /// Connects with the first call; every failure is that of a call.
    pub fn network_service(&self, target: &Target, files: &Files) -> Arc<dyn NetworkServiceApi> {
        Arc::new(network::NetworkClient::new(self.channel(target, files)))
    }

    /// The registry at `target`. Connects with the first call; every failure is that of a call.
    pub fn registry(&self, target: &Target) -> Arc<dyn RegistryApi> {
        Arc::new(registry::RegistryClient::new(self.channel(target, &Files::default())))
    }

    /// The prefix server at `target`. Connects with the first call; every failure is that of a call.
    pub fn prefixes(&self, target: &Target) -> PrefixClient {
        PrefixClient::new(self.channel(target, &Files::default()))
    }

    /// Whether `service` (a full name, or empty for the whole process) is served at `target`; the error says why not.
    pub async fn health(&self, target: &Target, service: &str, timeout: Duration) -> Result<()> {
        health::check(self.channel(target, &Files::default()), service, timeout).await
    }

    fn channel(&self, target: &Target, files: &Files) -> Channel {
        Channel::new(self.0.slot(target, files))
    }
}
