//! What a process uses, as the kernel tells it.

use nsm_api::{Error, Result};

/// Resident memory, KiB.
pub(crate) fn resident(pid: u32) -> Result<f64> {
    let (path, text) = told(pid, "status")?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.and_then(|line| line.trim().trim_end_matches(" kB").trim().parse().ok());
    number.ok_or_else(|| Error::internal(path, "does not tell VmRSS"))
}

/// Processor time of all its threads since it started, user's and kernel's, seconds; in steps of a hundredth.
pub(crate) fn processor(pid: u32) -> Result<f64> {
    let (path, text) = told(pid, "stat")?;
    // The name, in parentheses, may contain anything; the 12th and 13th word behind it are the times.
    let mut words = text.rsplit(')').next().unwrap_or_default().split_whitespace().skip(11).map(str::parse::<u64>);
    match (words.next(), words.next()) {
        (Some(Ok(user)), Some(Ok(kernel))) => Ok((user + kernel) as f64 / rustix::param::clock_ticks_per_second() as f64),
        _ => Err(Error::internal(path, "does not tell the time used")),
    }
}

fn told(pid: u32, what: &str) -> Result<(String, String)> {
    let path = format!("/proc/{pid}/{what}");
    let text = std::fs::read_to_string(&path).map_err(|error| Error::internal(path.clone(), error.to_string()))?;
    Ok((path, text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_memory_and_spends_time() {
        let own = std::process::id();
        assert!(resident(own).unwrap() > 100.0);
        let before = processor(own).unwrap();
        let begun = std::time::Instant::now();
        while processor(own).unwrap() == before {
            assert!(begun.elapsed().as_secs() < 20, "the time used does not grow");
        }
    }
}
