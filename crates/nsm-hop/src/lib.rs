//! What one hop does with a Request.
//!
//! Not here: sockets, the environment, the kernel itself, any gRPC type.
#![forbid(unsafe_code)]

pub mod kernel;
