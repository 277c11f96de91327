//! The side of those who want devices.

use super::{MAX_MESSAGE, message, message::Answer, open, trusted};
use crate::{Device, DeviceId, DeviceState, error::refused};
use nsm_api::{Error, Kind, Result};
use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
    net::{
        RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, connect, recv, sendmsg,
        sockopt::{Timeout, set_socket_timeout},
    },
};
use std::{
    io::IoSlice,
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::Duration,
};
use zeroize::Zeroizing;

/// How long the engine may take for one answer: the kernel needs tens of milliseconds to remove an interface.
const PATIENCE: Duration = Duration::from_secs(30);

/// A way to an engine in another process. Calls wait for their answers, one at a time; from asynchronous code make them
/// where waiting is allowed. A connection that broke is made anew, and the engine has the same devices.
#[derive(Debug)]
pub struct Client {
    path: PathBuf,
    connection: Mutex<Option<OwnedFd>>,
}

impl Client {
    /// For the engine behind this socket. Connects with the first call.
    pub fn new(path: impl Into<PathBuf>) -> Client {
        Client { path: path.into(), connection: Mutex::new(None) }
    }
    /// As [`crate::Engine::add`].
    pub fn add(&self, device: &Device) -> Result<DeviceState> {
        let mut devices = self.ask(&message::add(device), Some(device.netns.as_fd()))?;
        devices.pop().ok_or_else(|| Error::internal("the packet engine", "it did not say what it had added"))
    }
    /// As [`crate::Engine::remove`].
    pub fn remove(&self, id: &DeviceId) -> Result<()> {
        self.ask(&message::remove(id), None).map(|_| ())
    }
    /// As [`crate::Engine::find`].
    pub fn find(&self, id: &DeviceId) -> Result<Option<DeviceState>> {
        self.ask(&message::find(id), None).map(|mut devices| devices.pop())
    }
    /// As [`crate::Engine::list`]. Devices that come and go meanwhile may be in it or not.
    pub fn list(&self) -> Result<Vec<DeviceState>> {
        let mut all: Vec<DeviceState> = Vec::new();
        while all.len() <= crate::MAX_DEVICES {
            let page = self.ask(&message::list(all.last().map(|state| &state.id)), None)?;
            if page.is_empty() {
                break;
            }
            all.extend(page);
        }
        Ok(all)
    }
    /// Returns when the engine is gone, or at once when it is not there.
    pub fn wait_gone(&self) {
        let Ok(connection) = dial(&self.path) else { return };
        // Nothing is ever sent without being asked for, so what comes is the end.
        let mut ends = [PollFd::new(&connection, PollFlags::IN)];
        while let Err(Errno::INTR) = poll(&mut ends, None) {}
    }
    /// One request and its answer; once more on a new connection if the old one broke. All requests may be repeated.
    fn ask(&self, request: &[u8], descriptor: Option<BorrowedFd<'_>>) -> Result<Vec<DeviceState>> {
        let mut connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(open) = connection.take()
            && let Ok(answer) = exchange(&open, request, descriptor)
        {
            *connection = Some(open);
            return finish(&answer);
        }
        let open = dial(&self.path)?;
        let answer = exchange(&open, request, descriptor).map_err(|errno| self.lost(errno))?;
        *connection = Some(open);
        finish(&answer)
    }
    fn lost(&self, errno: Errno) -> Error {
        let object = format!("the packet engine at {}", self.path.display());
        let kind = if errno == Errno::AGAIN { Kind::Timeout } else { Kind::Unavailable };
        let reason = format!("it gave no answer: {}", std::io::Error::from(errno));
        Error::new(kind, object, reason, "see the log of the engine's process")
    }
}

fn dial(path: &Path) -> Result<OwnedFd> {
    let (socket, address) = open(path)?;
    let object = || format!("the packet engine at {}", path.display());
    connect(&socket, &address).map_err(|errno| {
        let reason = format!("it cannot be reached: {}", std::io::Error::from(errno));
        Error::new(Kind::Unavailable, object(), reason, "start it, or wait until it has started")
    })?;
    trusted(&socket)?;
    for side in [Timeout::Recv, Timeout::Send] {
        set_socket_timeout(&socket, side, Some(PATIENCE)).map_err(|errno| refused(object(), "limit its time", errno))?;
    }
    Ok(socket)
}

fn exchange(socket: &OwnedFd, request: &[u8], descriptor: Option<BorrowedFd<'_>>) -> std::result::Result<Zeroizing<Vec<u8>>, Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut beside = SendAncillaryBuffer::new(&mut space);
    let descriptors: Vec<BorrowedFd<'_>> = descriptor.into_iter().collect();
    if !descriptors.is_empty() {
        beside.push(SendAncillaryMessage::ScmRights(&descriptors));
    }
    sendmsg(socket, &[IoSlice::new(request)], &mut beside, SendFlags::NOSIGNAL)?;
    let mut answer = Zeroizing::new(vec![0; MAX_MESSAGE]);
    match recv(socket, answer.as_mut_slice(), RecvFlags::empty())? {
        (0, _) => Err(Errno::CONNRESET),
        (read, _) => {
            answer.truncate(read);
            Ok(answer)
        }
    }
}

fn finish(answer: &[u8]) -> Result<Vec<DeviceState>> {
    match Answer::read(answer)? {
        Answer::Devices(devices) => Ok(devices),
        Answer::Refused(error) => Err(error),
    }
}
