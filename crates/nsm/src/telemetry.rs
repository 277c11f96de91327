//! The log: lines on standard error, with a level that changes at run time.
//!
//! SIGUSR1 shows everything, SIGUSR2 goes back to what was configured. Level names are upstream's; the filter
//! syntax of tracing (`info,nsm_hop=debug`) is understood too.

use nsm_api::{Error, Result};
use std::{
    io::{self, IsTerminal},
    str::FromStr,
};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt, layer::SubscriberExt, reload, util::SubscriberInitExt};

/// How a line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// For people: colours on a terminal, plain in a pipe.
    Text,
    /// One JSON object for each line.
    Json,
}

/// Which lines are shown: a level name of upstream or a filter of tracing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Level(String);

impl Level {
    /// Everything of ours, and what other libraries say at INFO.
    pub fn trace() -> Level {
        Level("info,nsm=trace".into())
    }
    /// Warnings of ours, and what other libraries cannot go on with.
    pub fn quiet() -> Level {
        Level("error,nsm=warn".into())
    }
}

impl FromStr for Level {
    type Err = String;
    fn from_str(text: &str) -> Result<Level, String> {
        let filter = match text.trim().to_ascii_uppercase().as_str() {
            "TRACE" => return Ok(Level::trace()),
            // Filters are prefixes: `nsm` is every crate of ours. Other libraries speak of their own insides, so they are one level quieter.
            "DEBUG" => "info,nsm=debug",
            "INFO" => "warn,nsm=info",
            "WARN" | "WARNING" => "error,nsm=warn",
            "ERROR" => "error",
            // Nothing is logged above ERROR; a fatal error is printed when the process ends.
            "FATAL" | "PANIC" => "off",
            "" => return Err("is empty".into()),
            _ => text.trim(),
        };
        EnvFilter::try_new(filter).map_err(|_| "is neither a level nor a filter".to_owned())?;
        Ok(Level(filter.to_owned()))
    }
}

/// A handle on the log of this process.
#[derive(Clone)]
pub struct Telemetry {
    filter: reload::Handle<EnvFilter, Registry>,
    configured: Level,
}

impl Telemetry {
    /// Starts logging to standard error. Once in a process.
    pub fn start(level: Level, format: Format) -> Result<Telemetry> {
        let (filter, handle) = reload::Layer::new(EnvFilter::new(&level.0));
        let coloured = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        let lines = fmt::layer().with_writer(io::stderr).with_ansi(coloured);
        let lines = match format {
            Format::Json => lines.json().flatten_event(true).boxed(),
            Format::Text if coloured => lines.compact().boxed(),
            Format::Text => lines.boxed(),
        };
        let subscriber = Registry::default().with(filter).with(lines);
        subscriber.try_init().map_err(|problem| Error::internal("the log", problem.to_string()))?;
        Ok(Telemetry { filter: handle, configured: level })
    }
    /// Shows other lines from now on.
    pub fn show(&self, level: &Level) {
        // Fails only when the subscriber is gone, and then there is no log to say so.
        let _ = self.filter.reload(EnvFilter::new(&level.0));
    }
    /// Shows what was configured.
    pub fn restore(&self) {
        self.show(&self.configured);
    }
    /// Obeys SIGUSR1 and SIGUSR2. Must be called inside a tokio runtime.
    pub fn follow_signals(&self) -> io::Result<()> {
        let (mut more, mut usual) = (signal(SignalKind::user_defined1())?, signal(SignalKind::user_defined2())?);
        let telemetry = self.clone();
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    Some(()) = more.recv() => telemetry.show(&Level::trace()),
                    Some(()) = usual.recv() => telemetry.restore(),
                    else => return,
                }
                tracing::info!("the log level was changed by a signal");
            }
        });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_of_upstream_and_filters_are_understood() {
        for (text, filter) in [
            ("TRACE", "info,nsm=trace"),
            ("debug", "info,nsm=debug"),
            ("Info", "warn,nsm=info"),
            ("WARNING", "error,nsm=warn"),
            ("ERROR", "error"),
            ("PANIC", "off"),
            ("info,nsm_hop=debug", "info,nsm_hop=debug"),
        ] {
            assert_eq!(text.parse(), Ok(Level(filter.into())), "{text}");
        }
        for bad in ["", "a=b=c", "nsm=loud"] {
            assert!(bad.parse::<Level>().is_err(), "{bad}");
        }
    }
}
