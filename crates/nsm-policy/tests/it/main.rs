//! Tests of policies: against each other, and against what an attacker may send.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod differential;
mod speed;
mod tokens;
mod world;
