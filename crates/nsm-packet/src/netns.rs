//! Work inside a network namespace, on a thread made for it, so that no other thread ever is in the wrong one.

use crate::error::refused;
use nsm_api::{Error, InodeKey, Kind, Result};
use rustix::thread::LinkNameSpaceType;
use std::{
    os::fd::{AsFd, BorrowedFd},
    thread,
};

/// Which namespace a descriptor is.
pub(crate) fn key(netns: impl AsFd) -> Result<InodeKey> {
    let stat = rustix::fs::fstat(netns).map_err(|errno| refused("a network namespace", "look at it", errno))?;
    Ok(InodeKey { dev: stat.st_dev, ino: stat.st_ino })
}

/// Runs `work` in the namespace and waits for it; with `None`, where the process is.
pub(crate) fn run_in<T: Send>(netns: Option<BorrowedFd<'_>>, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let Some(netns) = netns else { return work() };
    let enter_and_work = || {
        rustix::thread::move_into_link_name_space(netns, Some(LinkNameSpaceType::Network))
            .map_err(|errno| refused("a network namespace", "enter it", errno))?;
        work()
    };
    thread::scope(|scope| {
        let visiting = thread::Builder::new().name("netns".into()).spawn_scoped(scope, enter_and_work);
        let visiting = visiting.map_err(|error| {
            Error::new(Kind::Exhausted, "a thread", format!("it cannot be started: {error}"), "raise the limit of processes (ulimit -u)")
        })?;
        visiting.join().unwrap_or_else(|_| Err(Error::internal("a thread in a network namespace", "it ended before its work was done")))
    })
}
