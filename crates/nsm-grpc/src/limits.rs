//! Every bound of the edge, by name.

use std::time::Duration;

/// Bytes of the largest message that is read, the same as in other implementations.
pub const MAX_MESSAGE_BYTES: usize = 4 << 20;
/// Bytes of all headers of one call. Tokens and long refusals travel there.
pub const MAX_HEADER_BYTES: u32 = 1 << 20;
/// Calls and streams at once on one connection; a hop has one monitor stream per vWire towards its neighbour.
pub const MAX_STREAMS_PER_CONNECTION: u32 = 8192;
/// Connections at once that one `serve` accepts; further ones wait in the kernel's backlog.
pub const MAX_CONNECTIONS: usize = 1024;
/// Targets with a connection kept open for the next call; the least recently used makes room.
pub const MAX_POOLED_TARGETS: usize = 1024;
/// Calls that work at once for one `serve`, counting those whose callers have left.
pub const MAX_CALLS_AT_WORK: usize = 4096;
/// Of those connections, what one identity may have.
pub const MAX_CONNECTIONS_PER_IDENTITY: usize = 256;
/// Of those calls, what one identity may have.
pub const MAX_CALLS_PER_IDENTITY: usize = 1024;
/// Monitor and watch streams of one identity at one `serve`. A manager has one for each of its vWires.
pub const MAX_STREAMS_PER_IDENTITY: usize = 8192;
/// Connections that the kernel queues before they are accepted.
pub const LISTEN_BACKLOG: u32 = 1024;

/// Files received on one connection and not claimed by a message yet; the oldest makes room.
pub const MAX_UNCLAIMED_FILES: usize = 1024;
/// How long a received file waits to be claimed, at most until the next files come after that time.
pub const UNCLAIMED_LIFE: Duration = Duration::from_secs(30);
/// Files queued on one connection and not sent yet.
pub const MAX_QUEUED_FILES: usize = 4096;
/// Files in one `sendmsg`: what other implementations have room for in one read.
pub const MAX_FILES_PER_SEND: usize = 64;
/// Files in one `recvmsg`: the kernel's own limit for a sender.
pub const MAX_FILES_PER_RECEIVE: usize = 253;
/// How long a file named by a message is waited for.
pub const FD_WAIT: Duration = Duration::from_secs(1);

/// How long an accepted connection may take for its TLS handshake.
pub const TLS_HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long calls in flight may go on after shutdown has begun.
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause after a failed accept, for instance when this process has no file descriptors left.
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// What a call gets whose caller set no timeout.
pub const DEFAULT_CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// How often one call is sent again because the peer surely did not process it.
pub const MAX_TRANSPARENT_RETRIES: u32 = 4;
/// Handshakes tried for one connection: one more covers the moment in which certificates rotate.
pub const MAX_HANDSHAKES: u32 = 2;
/// First pause before an absent peer is dialled again; doubles each time, with jitter.
pub const BACKOFF_MIN: Duration = Duration::from_millis(5);
/// Longest pause before an absent peer is dialled again.
pub const BACKOFF_MAX: Duration = Duration::from_millis(250);
/// Addresses of one name that are tried.
pub const MAX_ADDRESSES_PER_NAME: usize = 8;

/// Bytes of one part of an error that crosses a process.
pub const MAX_ERROR_PART_BYTES: usize = 4096;

/// Unacknowledged bytes of one stream.
pub(crate) const STREAM_WINDOW_BYTES: u32 = 1 << 20;
/// Unacknowledged bytes of one connection.
pub(crate) const CONNECTION_WINDOW_BYTES: u32 = 4 << 20;
/// Idle time after which the kernel asks whether a TCP peer still lives.
pub(crate) const TCP_KEEPALIVE_IDLE: Duration = Duration::from_secs(30);
/// Time between such questions.
pub(crate) const TCP_KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
/// Unanswered questions after which the peer counts as dead.
pub(crate) const TCP_KEEPALIVE_PROBES: u32 = 3;
