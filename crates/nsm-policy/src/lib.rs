//! Who may do what: the default policies of the mesh as code, and policies that users write in Rego.
//!
//! A role loads a [`PolicySet`] once, from the masks in its settings, and puts a [`Question`] to it for each call.
//! All policies of a set must agree. A set of built-in policies has no Rego engine on its way; a file of the user is
//! compiled once and bounded in time. Whatever cannot be decided is refused.
//!
//! With the built-in policies comes [`strict`]: what no honest process of any version ever sends is refused, too.
//!
//! Not here: where in a call the question is put (roles), and how tokens are made (`nsm-identity`).

#![forbid(unsafe_code)]

pub mod discretion;
mod facts;
pub mod jwt;
pub mod native;
mod question;
pub mod registration;
pub mod rego;
mod set;
pub mod strict;

pub use facts::Facts;
pub use native::Builtin;
pub use question::{Hop, Monitored, Question, Resource};
pub use set::PolicySet;

/// Yes, or why not: the end of a sentence.
pub type Verdict = Result<(), String>;
