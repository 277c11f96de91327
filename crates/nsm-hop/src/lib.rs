//! What one hop does with a Request.
//!
//! Start at [`conn`]: the five steps and settle. [`hop`] is the handle that others call; [`role`] the parts that a role
//! plugs in and the seams to the outside; [`kernel`] what may exist in the kernel; [`journal`] what survives a
//! sudden end; the rest are pure rules
//! ([`path`], [`matching`], [`select`], [`diff`], [`template`]) and the parts themselves
//! ([`reserve`], [`mechanism`], [`onward`], [`wiring`]).
//!
//! Not here: sockets, the environment, the kernel itself, any gRPC type, the wall clock, randomness.
#![forbid(unsafe_code)]

pub mod adoption;
pub mod conn;
pub mod diff;
pub mod hop;
pub mod journal;
pub mod kernel;
pub mod matching;
pub mod mechanism;
pub mod monitor;
pub mod onward;
pub mod path;
pub mod reserve;
pub mod role;
pub mod select;
pub mod services;
pub mod template;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod watch;
pub mod wiring;
