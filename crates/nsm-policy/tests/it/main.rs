//! Tests of policies: against each other, and against what an attacker may send.

mod differential;
mod speed;
mod tokens;
mod world;
