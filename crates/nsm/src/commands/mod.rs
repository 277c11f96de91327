//! The tools of a user: each asks, shows, and ends.

use crate::program::Program;

/// Every tool, in the order of `--help`.
pub(crate) fn all() -> Vec<Program> {
    vec![]
}
