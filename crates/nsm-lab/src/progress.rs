//! What a person sees while an example runs: one live line on a terminal, plain lines in a pipe. All on standard error.

use crate::report::coloured;
use indicatif::{ProgressBar, ProgressStyle};
use std::{io::IsTerminal, time::Duration};

/// How often the live line moves.
const TICK: Duration = Duration::from_millis(80);

/// The line of one example.
pub(crate) struct Progress {
    name: String,
    bar: Option<ProgressBar>,
    colour: bool,
}

/// Whether colours are wanted on this stream.
pub(crate) fn wants_colour(terminal: bool) -> bool {
    terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

impl Progress {
    /// Begins the line of one example.
    pub(crate) fn new(name: &str) -> Progress {
        let terminal = std::io::stderr().is_terminal();
        let bar = terminal.then(|| {
            let bar = ProgressBar::new_spinner();
            if let Ok(style) = ProgressStyle::with_template("{spinner} {prefix}  {wide_msg}") {
                bar.set_style(style);
            }
            bar.set_prefix(format!("{name:<22}"));
            bar.enable_steady_tick(TICK);
            bar
        });
        Progress { name: name.to_owned(), bar, colour: wants_colour(terminal) }
    }
    /// What is being done now.
    pub(crate) fn step(&self, what: &str) {
        match &self.bar {
            Some(bar) => bar.set_message(what.to_owned()),
            None => eprintln!("{}: {what}", self.name),
        }
    }
    /// Something to remember, above the live line.
    pub(crate) fn remark(&self, what: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| eprintln!("{what}")),
            None => eprintln!("{}: {what}", self.name),
        }
    }
    /// Ends the line.
    pub(crate) fn done(&self, ok: bool, what: &str) {
        let line = format!("{} {:<22}  {what}", if ok { "✓" } else { "✗" }, self.name);
        let line = if self.colour { coloured(&line) } else { line };
        match &self.bar {
            Some(bar) => {
                bar.finish_and_clear();
                eprintln!("{line}");
            }
            None => eprintln!("{line}"),
        }
    }
}
