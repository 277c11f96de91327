//! The program `nsm`: command line, settings, telemetry, shutdown, and the roles.
//!
//! [`settings`] turns flags, variables and a file into one checked configuration; `roles` puts the
//! parts of the other crates together. Not here: anything a hop decides, anything the kernel does.

#![forbid(unsafe_code)]

pub mod settings;
