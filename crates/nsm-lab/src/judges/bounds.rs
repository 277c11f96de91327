//! The sampler of bounds: once in a while, how much each process has of what must not grow.

use super::descriptors::Held;
use nsm_api::{Error, Result};
use serde::Serialize;
use std::fs;

/// What a process has at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Sample {
    /// Resident memory, KiB.
    pub(crate) resident: usize,
    /// Descriptors.
    pub(crate) descriptors: usize,
    /// Threads.
    pub(crate) threads: usize,
}

impl Sample {
    /// What this process has now.
    pub(crate) fn of(pid: u32) -> Result<Sample> {
        let path = format!("/proc/{pid}/status");
        let text = fs::read_to_string(&path).map_err(|error| Error::internal(&*path, format!("cannot be read: {error}")))?;
        let number = |key: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
            line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
        };
        Ok(Sample { resident: number("VmRSS"), threads: number("Threads"), descriptors: Held::of(pid)?.count })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_some_of_everything() {
        let sample = Sample::of(std::process::id()).unwrap();
        assert!(sample.resident > 100 && sample.descriptors >= 3 && sample.threads >= 1, "{sample:?}");
        assert!(Sample::of(u32::MAX).is_err());
    }
}
