//! A subcommand that does something: its words, its options, and the function behind it.

use crate::{
    context::Context,
    exit::Exit,
    settings::{Opt, Settings},
};
use futures::future::{BoxFuture, FutureExt};
use nsm_api::Result;

/// Whether a subcommand serves until it is told to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Serves: logs its settings, obeys signals, tells the service manager.
    Role,
    /// Answers and ends, at once when it is told to stop; logs warnings only unless told otherwise.
    Tool,
    /// The same, but it cleans up after itself when it is told to stop.
    Job,
}

type Run = Box<dyn Fn(Settings, Context) -> BoxFuture<'static, Result<Exit>>>;

/// One subcommand.
pub struct Program {
    /// Its words, for instance `get services`.
    pub name: &'static str,
    /// One sentence for `--help`.
    pub about: &'static str,
    /// Its options beside the common ones.
    pub options: &'static [Opt],
    /// Whether it serves.
    pub kind: Kind,
    run: Run,
}

impl Program {
    /// A role: `run` returns when it was told to stop and has let go of everything, or when it cannot go on.
    pub fn role<F>(name: &'static str, about: &'static str, options: &'static [Opt], run: fn(Settings, Context) -> F) -> Program
    where
        F: Future<Output = Result<()>> + Send + 'static,
    {
        let run: Run = Box::new(move |settings, context| run(settings, context).map(|done| done.map(|()| Exit::Ok)).boxed());
        Program { name, about, options, kind: Kind::Role, run }
    }
    /// A tool: `run` says how the program ends.
    pub fn tool<F>(name: &'static str, about: &'static str, options: &'static [Opt], run: fn(Settings, Context) -> F) -> Program
    where
        F: Future<Output = Result<Exit>> + Send + 'static,
    {
        let run: Run = Box::new(move |settings, context| run(settings, context).boxed());
        Program { name, about, options, kind: Kind::Tool, run }
    }
    /// A tool that must clean up: `run` watches the shutdown.
    pub fn job<F>(name: &'static str, about: &'static str, options: &'static [Opt], run: fn(Settings, Context) -> F) -> Program
    where
        F: Future<Output = Result<Exit>> + Send + 'static,
    {
        Program { kind: Kind::Job, ..Program::tool(name, about, options, run) }
    }
    /// Runs it.
    pub fn run(&self, settings: Settings, context: Context) -> BoxFuture<'static, Result<Exit>> {
        (self.run)(settings, context)
    }
}
