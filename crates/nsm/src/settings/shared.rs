//! Options that several roles have; a role puts those it needs into its own table.

use super::{Opt, Shape};

/// Where the process gets its identity.
pub const WORKLOAD_API: Opt = Opt::new(
    "spiffe-endpoint-socket",
    "SPIFFE_ENDPOINT_SOCKET",
    "unix:///run/nsm/workload.sock",
    Shape::Target,
    "SPIFFE Workload API that gives this process its identity",
);
/// The manager of this node.
pub const CONNECT_TO: Opt =
    Opt::new("connect-to", "NSM_CONNECT_TO", "unix:///var/lib/networkservicemesh/nsm.io.sock", Shape::Target, "The manager of this node");
/// How long a token of ours is good; also how often a connection is refreshed.
pub const MAX_TOKEN_LIFETIME: Opt = Opt::new(
    "max-token-lifetime",
    "NSM_MAX_TOKEN_LIFETIME",
    "10m",
    Shape::Duration,
    "How long a connection lives without being refreshed; a negative value makes every token invalid",
);
/// Longest wait for a peer to accept a connection.
pub const DIAL_TIMEOUT: Opt = Opt::new("dial-timeout", "NSM_DIAL_TIMEOUT", "750ms", Shape::Duration, "Longest wait for a peer to accept");
/// Longest wait for an answer.
pub const REQUEST_TIMEOUT: Opt = Opt::new("request-timeout", "NSM_REQUEST_TIMEOUT", "15s", Shape::Duration, "Longest wait for an answer");
/// Upstream's policy files for answers of the registry.
pub const REGISTRY_CLIENT_POLICIES: Opt = Opt::accepted("registry-client-policies", "NSM_REGISTRY_CLIENT_POLICIES");
/// Upstream's policy files for calls to the registry.
pub const REGISTRY_SERVER_POLICIES: Opt = Opt::accepted("registry-server-policies", "NSM_REGISTRY_SERVER_POLICIES");
