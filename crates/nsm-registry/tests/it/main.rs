//! The crate as others use it.

#![allow(clippy::unwrap_used)] // a test fails by it

mod bad_input;
mod bypass;
mod common;
mod manifest;
mod registry;
mod timing;
