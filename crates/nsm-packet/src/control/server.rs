//! The engine's side: one thread that answers one request after another.

use super::{
    MAX_MESSAGE, PAGE,
    message::{Answer, Request},
    open, trusted,
};
use crate::{Engine, Options, error::refused};
use nsm_api::{Error, Kind, Result};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::Mode,
    io::Errno,
    net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, SocketFlags, accept_with, bind, connect, listen, recvmsg, send,
    },
    process::{Resource, getrlimit, setrlimit},
};
use std::{
    io::IoSliceMut,
    mem::MaybeUninit,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    time::Duration,
};
use zeroize::Zeroizing;

/// Most clients at a time; the oldest gives way to a new one.
const MAX_CLIENTS: usize = 16;
/// Clients that may wait to be accepted.
const BACKLOG: i32 = 16;

/// How the process of an engine works.
#[derive(Debug)]
pub struct RunOptions {
    /// The socket at which clients find it. A file that a dead process left is replaced.
    pub socket: PathBuf,
    /// The engine in it.
    pub engine: Options,
    /// Ends by itself after so long without a device and without a client; `None`: never.
    pub idle_exit: Option<Duration>,
}

/// Is the process of an engine: serves clients until it is killed, or until it has been idle for as long as the options
/// say. `ready` is called when it serves.
///
/// Conflict: another engine serves the socket.
pub fn run(options: RunOptions, ready: impl FnOnce()) -> Result<()> {
    raise_limits();
    let listener = bind_socket(&options.socket)?;
    let engine = Engine::start(options.engine)?;
    tracing::info!(socket = %options.socket.display(), "packet engine serves");
    ready();
    serve(&listener, &engine, options.idle_exit)?;
    // A client that comes now finds nobody and starts another one.
    rustix::fs::unlink(&options.socket).map_err(|errno| refused("the control socket", "remove it", errno))
}

/// Each device needs up to two descriptors. Where more are not allowed, the limit says so when it is reached.
fn raise_limits() {
    let mut files = getrlimit(Resource::Nofile);
    files.current = files.maximum;
    let _ = setrlimit(Resource::Nofile, files);
}

fn bind_socket(path: &Path) -> Result<OwnedFd> {
    let failed = |doing: &'static str| move |errno: Errno| refused(format!("control socket {}", path.display()), doing, errno);
    let (socket, address) = open(path)?;
    if path.exists() {
        if connect(&socket, &address).is_ok() {
            let object = format!("control socket {}", path.display());
            return Err(Error::new(Kind::Conflict, object, "another engine serves it", "end that process or name another socket"));
        }
        rustix::fs::unlink(path).map_err(failed("remove what a dead process left"))?;
    }
    let (socket, address) = open(path)?;
    bind(&socket, &address).map_err(failed("bind it"))?;
    rustix::fs::chmod(path, Mode::RUSR | Mode::WUSR).map_err(failed("close it to others"))?;
    listen(&socket, BACKLOG).map_err(failed("listen at it"))?;
    Ok(socket)
}

fn serve(listener: &OwnedFd, engine: &Engine, idle_exit: Option<Duration>) -> Result<()> {
    let mut clients: Vec<OwnedFd> = Vec::with_capacity(MAX_CLIENTS);
    let patience = idle_exit.and_then(|idle| Timespec::try_from(idle).ok());
    loop {
        let mut watched: Vec<PollFd<'_>> = std::iter::once(listener).chain(&clients).map(|fd| PollFd::new(fd, PollFlags::IN)).collect();
        let idle = clients.is_empty() && engine.is_empty();
        match poll(&mut watched, patience.as_ref()) {
            Ok(0) if idle => return Ok(()),
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(refused("the control socket", "wait for clients", errno)),
        }
        let ready: Vec<bool> = watched.iter().map(|fd| !fd.revents().is_empty()).collect();
        let mut place = 0;
        clients.retain(|client| {
            place += 1;
            !ready[place] || answer(client, engine)
        });
        if ready[0] {
            admit(listener, &mut clients);
        }
    }
}

fn admit(listener: &OwnedFd, clients: &mut Vec<OwnedFd>) {
    // A client that was gone again before it was accepted is none.
    let Ok(client) = accept_with(listener, SocketFlags::CLOEXEC) else { return };
    if let Err(error) = trusted(&client) {
        tracing::warn!(%error, "client refused");
        return;
    }
    if clients.len() == MAX_CLIENTS {
        clients.remove(0);
    }
    clients.push(client);
}

/// Answers one request. Whether the client stays.
fn answer(client: &OwnedFd, engine: &Engine) -> bool {
    let (message, descriptor) = match receive(client) {
        Ok(received) => received,
        Err(Errno::AGAIN | Errno::INTR) => return true,
        Err(_) => return false,
    };
    if message.is_empty() {
        return false;
    }
    let result = Request::read(&message, descriptor).and_then(|request| obey(request, engine));
    let answer = result.map_or_else(Answer::Refused, Answer::Devices);
    // One that asks and does not listen is left.
    send(client, &answer.write(), SendFlags::NOSIGNAL | SendFlags::DONTWAIT).is_ok()
}

fn obey(request: Request, engine: &Engine) -> Result<Vec<crate::DeviceState>> {
    match request {
        Request::Add(device) => engine.add(device).map(|state| vec![state]),
        Request::Remove(id) => engine.remove(&id).map(|()| Vec::new()),
        Request::Find(id) => Ok(engine.find(&id).into_iter().collect()),
        Request::List(after) => Ok(engine.page(after.as_ref(), PAGE)),
    }
}

/// One message and the first descriptor beside it; further ones are closed.
fn receive(client: &OwnedFd) -> std::result::Result<(Zeroizing<Vec<u8>>, Option<OwnedFd>), Errno> {
    let mut message = Zeroizing::new(vec![0; MAX_MESSAGE]);
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut beside = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let read = recvmsg(client, &mut [IoSliceMut::new(&mut message)], &mut beside, flags)?.bytes;
    message.truncate(read);
    let mut descriptor = None;
    for part in beside.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = part {
            descriptor = descriptors.into_iter().next().or(descriptor);
        }
    }
    Ok((message, descriptor))
}
