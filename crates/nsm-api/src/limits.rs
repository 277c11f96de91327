//! Every bound on what a peer may send, by name. Honest peers of any version stay far below them.

/// Hops in one path; the longest useful one (interdomain with three passthrough endpoints) has 20.
pub const MAX_PATH_SEGMENTS: usize = 32;
/// Bytes of a connection id, a hop name, a service name, an endpoint name.
pub const MAX_NAME_BYTES: usize = 253;
/// Entries of a label, parameter, metric or extra-context map.
pub const MAX_MAP_ENTRIES: usize = 64;
/// Bytes of one key or one value in such a map.
pub const MAX_MAP_VALUE_BYTES: usize = 4096;
/// Bytes of one token in a path segment.
pub const MAX_TOKEN_BYTES: usize = 16 * 1024;
/// Mechanism preferences of one Request.
pub const MAX_PREFERENCES: usize = 16;
/// Excluded prefixes of one Request.
pub const MAX_EXCLUDED_PREFIXES: usize = 256;
/// Addresses of one end of a vWire.
pub const MAX_ADDRESSES: usize = 64;
/// Routes of one end of a vWire.
pub const MAX_ROUTES: usize = 256;
/// Policy routes of one vWire.
pub const MAX_POLICIES: usize = 64;
/// Neighbour entries of one vWire.
pub const MAX_NEIGHBORS: usize = 256;
/// DNS configurations of one vWire, and servers or domains in one of them.
pub const MAX_DNS: usize = 64;
/// Matches of one service, and routes of one match.
pub const MAX_MATCHES: usize = 1024;
/// Services of one endpoint.
pub const MAX_SERVICES_PER_ENDPOINT: usize = 256;
/// File descriptors that one Request may bring.
pub const MAX_FILES_PER_REQUEST: usize = 16;
/// The largest MTU the kernel accepts on a device of ours.
pub const MAX_MTU: u32 = 65_535;
