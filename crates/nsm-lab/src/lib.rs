//! `nsm lab`: topologies on this machine, with real processes, real namespaces and real packets.
//!
//! A lab is a tutorial, a test bed and an acceptance test in one YAML file; [`schema`] says what one may write. Reading
//! it ([`read()`]) and deciding what must exist ([`plan`]) are pure; a world then brings it up, looks at it, and takes
//! everything away again. [`cli()`] is the whole command.
//!
//! Not here: what the roles do. Every process of a lab is this very program, or one that the author names, started in its
//! namespace as a person would.

#![forbid(unsafe_code)]

mod chaos;
mod checks;
mod cli;
pub mod client;
mod faults;
mod foreign;
mod graph;
mod inside;
mod judges;
mod look;
mod names;
mod places;
pub mod plan;
mod process;
mod progress;
mod read;
mod relay;
pub mod report;
mod run;
pub mod schema;
mod state;
mod world;

pub use cli::{
    ChaosArgs, DownArgs, ExecArgs, GraphArgs, HealsArgs, LabCommand, LookArgs, PsArgs, RunArgs, SoakArgs, StartArgs, UpArgs, cli,
};
pub use inside::{Inside, inside};
pub use look::{Look, SeenInterface, SeenRoute};
pub use read::{LabFile, Mistake, read, read_file};
pub use state::{State, StateProcess, Store};
