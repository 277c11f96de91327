//! What engines are tested by, in this crate and in those that have engines of their own.

#![allow(clippy::unwrap_used)] // a test fails by it

pub mod model;
