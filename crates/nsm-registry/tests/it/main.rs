//! The crate as others use it.

mod bypass;
mod common;
mod manifest;
mod registry;
mod timing;
