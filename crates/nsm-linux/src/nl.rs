//! Netlink by hand: build messages, send several at once, read answers.
//!
//! The kernel does the work of a change inside `send`, so everything here blocks and belongs on a thread that may.
//! Not here: what the messages mean.

use crate::{error::refused, netns, sys, uapi::*};
use nsm_api::Result;
use nsm_hop::kernel::Netns;
use rustix::{
    io::Errno,
    net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, sockopt},
};
use std::{fmt, net::IpAddr, os::fd::OwnedFd, time::Duration};

/// Largest number of messages in one send: their acknowledgements must fit the receive buffer.
const BATCH_MESSAGES: usize = 64;
/// The kernel fills at most this much per read of a dump.
const READ_BYTES: usize = 32 * 1024;
/// A dump during which the table changed is read again this often before the last reading is taken.
const DUMP_ATTEMPTS: usize = 5;
/// An acknowledgement is queued before `send` returns; waiting longer than this means that it was lost.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Routing netlink has the protocol number 0, for which the wrapper wants nothing.
const NETLINK_ROUTE: Option<rustix::net::Protocol> = None;
const HEADER_BYTES: usize = 16;
const ATTRIBUTE_TYPE_MASK: u16 = 0x3fff;

/// The kernel's No, with the sentence that it sent along, if any.
#[derive(Clone, Debug)]
pub(crate) struct Refusal {
    pub(crate) errno: Errno,
    pub(crate) text: Option<String>,
}

impl From<Errno> for Refusal {
    fn from(errno: Errno) -> Refusal {
        Refusal { errno, text: None }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let system = std::io::Error::from(self.errno);
        match &self.text {
            Some(text) => write!(f, "{text} ({system})"),
            None => write!(f, "{system}"),
        }
    }
}

/// One message being built.
#[derive(Clone)]
pub(crate) struct Message {
    bytes: Vec<u8>,
}

impl Message {
    /// A message with its fixed part; `flags` without REQUEST and ACK, which sending adds.
    pub(crate) fn new(kind: u16, flags: u16, fixed: &[u8]) -> Message {
        let mut bytes = Vec::with_capacity(256);
        bytes.extend([0; 4]);
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        bytes.extend([0; 8]);
        bytes.extend(fixed);
        Message { bytes }
    }
    /// An attribute with raw content.
    pub(crate) fn bytes(mut self, kind: u16, content: &[u8]) -> Message {
        self.bytes.extend((content.len() as u16 + 4).to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend(content);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
        self
    }
    /// A number in the machine's order.
    pub(crate) fn u32(self, kind: u16, value: u32) -> Message {
        self.bytes(kind, &value.to_ne_bytes())
    }
    /// A text with its closing zero.
    pub(crate) fn text(self, kind: u16, text: &str) -> Message {
        let mut content = text.as_bytes().to_vec();
        content.push(0);
        self.bytes(kind, &content)
    }
    /// An address in network order.
    pub(crate) fn ip(self, kind: u16, address: IpAddr) -> Message {
        match address {
            IpAddr::V4(v4) => self.bytes(kind, &v4.octets()),
            IpAddr::V6(v6) => self.bytes(kind, &v6.octets()),
        }
    }
    /// An attribute that holds attributes.
    pub(crate) fn nest(mut self, kind: u16, fill: impl FnOnce(Message) -> Message) -> Message {
        let start = self.bytes.len();
        self.bytes.extend([0; 2]);
        self.bytes.extend(kind.to_ne_bytes());
        let mut filled = fill(self);
        let length = (filled.bytes.len() - start) as u16;
        filled.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        filled
    }
    /// Bytes that are not an attribute, as the fixed part of a nested message.
    pub(crate) fn raw(mut self, content: &[u8]) -> Message {
        self.bytes.extend(content);
        self
    }
    /// What stands after the header.
    #[cfg(test)]
    pub(crate) fn body(&self) -> &[u8] {
        &self.bytes[HEADER_BYTES..]
    }
    fn finish(&mut self, sequence: u32, flags: u16) {
        let length = self.bytes.len() as u32;
        let flags = u16::from_ne_bytes([self.bytes[6], self.bytes[7]]) | flags;
        self.bytes[0..4].copy_from_slice(&length.to_ne_bytes());
        self.bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        self.bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
    }
}

/// One message from the kernel: its type and what follows the header.
pub(crate) struct Reply {
    pub(crate) kind: u16,
    pub(crate) body: Vec<u8>,
}

/// Walks over attributes; stops at the first that does not fit.
pub(crate) struct Attributes<'a>(pub(crate) &'a [u8]);

impl<'a> Attributes<'a> {
    /// Those after a fixed part of `fixed` bytes.
    pub(crate) fn after(body: &'a [u8], fixed: usize) -> Attributes<'a> {
        Attributes(body.get(fixed..).unwrap_or_default())
    }
    /// The first attribute of this type.
    pub(crate) fn find(self, kind: u16) -> Option<&'a [u8]> {
        let mut this = self;
        this.find_map(|(found, content)| (found == kind).then_some(content))
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);
    fn next(&mut self) -> Option<(u16, &'a [u8])> {
        let length = read_u16(self.0, 0)? as usize;
        let kind = read_u16(self.0, 2)? & ATTRIBUTE_TYPE_MASK;
        let content = self.0.get(4..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, content))
    }
}

/// Two bytes in the machine's order.
pub(crate) fn read_u16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}
/// Four bytes in the machine's order.
pub(crate) fn read_u32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}
/// Eight bytes in the machine's order.
pub(crate) fn read_u64(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}
/// A text up to its closing zero.
pub(crate) fn read_text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}
/// An address of 4 or 16 bytes.
pub(crate) fn read_ip(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => Some(IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?)),
        16 => Some(IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?)),
        _ => None,
    }
}

/// Which part of the kernel a socket speaks with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// Links, addresses, routes, rules, neighbours, queueing.
    Routing,
    /// Packet filters.
    Filter,
    /// Whatever has registered there: WireGuard.
    Generic,
}

/// A socket that speaks to the kernel about one namespace: that of the thread which opened it. It keeps that namespace
/// alive, so it must not outlive the work for which it was opened.
pub(crate) struct Socket {
    fd: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Socket {
    /// About the namespace of the calling thread.
    pub(crate) fn open() -> Result<Socket> {
        Socket::open_to(Part::Routing)
    }
    /// About the namespace of the calling thread, with another part of the kernel.
    pub(crate) fn open_to(part: Part) -> Result<Socket> {
        Socket::try_open(part).map_err(|errno| refused("netlink", "open a socket", errno))
    }
    /// About another namespace.
    pub(crate) fn open_in(netns: &Netns) -> Result<Socket> {
        netns::run_in_blocking(netns, Socket::open)?
    }
    fn try_open(part: Part) -> std::result::Result<Socket, Errno> {
        let protocol = match part {
            Part::Routing => NETLINK_ROUTE,
            Part::Filter => Some(netlink::NETFILTER),
            Part::Generic => Some(netlink::GENERIC),
        };
        let fd = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, protocol)?;
        for option in [NETLINK_CAP_ACK, NETLINK_EXT_ACK, NETLINK_GET_STRICT_CHK] {
            sys::set_option(&fd, libc::SOL_NETLINK, option, 1)?;
        }
        sockopt::set_socket_timeout(&fd, sockopt::Timeout::Recv, Some(ANSWER_TIMEOUT))?;
        Ok(Socket { fd, sequence: 0, buffer: vec![0; READ_BYTES] })
    }

    /// Sends changes in as few sends as possible and returns the kernel's word on each. The kernel goes on after a refusal.
    pub(crate) fn change(&mut self, messages: Vec<Message>) -> Vec<std::result::Result<(), Refusal>> {
        let mut messages = messages;
        let mut answers = Vec::with_capacity(messages.len());
        for batch in messages.chunks_mut(BATCH_MESSAGES) {
            answers.extend(self.change_batch(batch));
        }
        answers
    }
    fn change_batch(&mut self, batch: &mut [Message]) -> Vec<std::result::Result<(), Refusal>> {
        match self.exchange(batch, NLM_F_REQUEST | NLM_F_ACK) {
            Ok(exchange) => exchange.answers.into_iter().map(|answer| answer.unwrap_or(Err(Errno::IO.into()))).collect(),
            Err(errno) => batch.iter().map(|_| Err(errno.into())).collect(),
        }
    }
    /// One request; returns what the kernel tells beside its acknowledgement.
    pub(crate) fn ask(&mut self, message: Message) -> std::result::Result<Vec<Reply>, Refusal> {
        let mut exchange = self.exchange(&mut [message], NLM_F_REQUEST | NLM_F_ACK)?;
        exchange.answers.remove(0).unwrap_or(Err(Errno::IO.into()))?;
        Ok(exchange.replies)
    }
    /// All objects that the request selects.
    pub(crate) fn dump(&mut self, message: Message) -> std::result::Result<Vec<Reply>, Refusal> {
        let mut attempt = 1;
        loop {
            let mut exchange = self.exchange(&mut [message.clone()], NLM_F_REQUEST | NLM_F_DUMP)?;
            exchange.answers.remove(0).unwrap_or(Err(Errno::IO.into()))?;
            if !exchange.interrupted || attempt == DUMP_ATTEMPTS {
                return Ok(exchange.replies);
            }
            attempt += 1;
        }
    }

    /// Changes of packet filters: all of them, or none. `begin` and `end` are the transaction's brackets, which the kernel
    /// answers only when the whole fails. The error says which change was refused.
    pub(crate) fn transaction(&mut self, begin: Message, changes: Vec<Message>, end: Message) -> std::result::Result<(), (usize, Refusal)> {
        let mut messages: Vec<Message> = std::iter::once(begin).chain(changes).chain([end]).collect();
        let last = messages.len() - 1;
        let asks = |place: usize| if place == 0 || place == last { NLM_F_REQUEST } else { NLM_F_REQUEST | NLM_F_ACK };
        let exchange = self.exchange_with(&mut messages, asks).map_err(|errno| (0, errno.into()))?;
        let refused = |(place, answer): (usize, Option<_>)| answer.and_then(Result::err).map(|refusal| (place.saturating_sub(1), refusal));
        exchange.answers.into_iter().enumerate().find_map(refused).map_or(Ok(()), Err)
    }

    fn exchange(&mut self, messages: &mut [Message], flags: u16) -> std::result::Result<Exchange, Errno> {
        self.exchange_with(messages, |_| flags)
    }
    fn exchange_with(&mut self, messages: &mut [Message], flags: impl Fn(usize) -> u16) -> std::result::Result<Exchange, Errno> {
        let first = self.sequence.wrapping_add(1);
        let mut bytes = Vec::with_capacity(messages.len() * 128);
        for (place, message) in messages.iter_mut().enumerate() {
            self.sequence = self.sequence.wrapping_add(1);
            message.finish(self.sequence, flags(place));
            bytes.extend(&message.bytes);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
        rustix::io::retry_on_intr(|| rustix::net::send(&self.fd, &bytes, SendFlags::empty()))?;
        #[cfg(debug_assertions)]
        sudden_end::after(&bytes);
        let mut exchange = Exchange { first, replies: vec![], answers: vec![None; messages.len()], interrupted: false };
        let silent = |place: usize| flags(place) == NLM_F_REQUEST;
        while exchange.answers.iter().enumerate().any(|(place, answer)| answer.is_none() && !silent(place))
            && !exchange.failed_as_a_whole(&silent)
        {
            let (read, _) = rustix::io::retry_on_intr(|| rustix::net::recv(&self.fd, &mut self.buffer[..], RecvFlags::empty()))?;
            exchange.take(&self.buffer[..read]);
        }
        Ok(exchange)
    }
}

/// In builds for tests: the end of this process right after a change of the kernel, whichever a test asks for.
#[cfg(debug_assertions)]
mod sudden_end {
    use super::read_u16;
    use rustix::process::{Signal, getpid, kill_process};
    use std::sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering},
    };

    /// The number of the change, from 1 on; nothing is counted when it is not said.
    static AT: LazyLock<Option<u64>> = LazyLock::new(|| std::env::var("NSM_TEST_END_AFTER_CHANGE").ok()?.parse().ok());
    static CHANGES: AtomicU64 = AtomicU64::new(0);

    /// One send that the kernel has acted on. Questions do not count: the lowest bits of their types are 2.
    pub(super) fn after(bytes: &[u8]) {
        let Some(at) = *AT else { return };
        let question = read_u16(bytes, 4).is_some_and(|kind| kind & 3 == 2);
        if !question && CHANGES.fetch_add(1, Ordering::SeqCst) + 1 == at {
            let _ = kill_process(getpid(), Signal::KILL); // nothing of ours runs after this
        }
    }
}

/// What has come back so far for one send.
struct Exchange {
    first: u32,
    replies: Vec<Reply>,
    answers: Vec<Option<std::result::Result<(), Refusal>>>,
    interrupted: bool,
}

impl Exchange {
    /// A message that asks for no answer got one: nothing more will come.
    fn failed_as_a_whole(&self, silent: &impl Fn(usize) -> bool) -> bool {
        self.answers.iter().enumerate().any(|(place, answer)| silent(place) && matches!(answer, Some(Err(_))))
    }
    fn take(&mut self, bytes: &[u8]) {
        for (header, body) in messages(bytes) {
            let place = header.sequence.wrapping_sub(self.first) as usize;
            if place >= self.answers.len() {
                continue;
            }
            self.interrupted |= header.flags & NLM_F_DUMP_INTR != 0;
            match header.kind {
                NLMSG_ERROR | NLMSG_DONE => self.answers[place] = Some(verdict(&header, body)),
                kind => self.replies.push(Reply { kind, body: body.to_vec() }),
            }
        }
    }
}

/// The part of a message header that matters.
pub(crate) struct Header {
    pub(crate) kind: u16,
    flags: u16,
    sequence: u32,
}

/// Splits what was read into messages.
pub(crate) fn messages(bytes: &[u8]) -> impl Iterator<Item = (Header, &[u8])> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let length = read_u32(rest, 0)? as usize;
        let header = Header { kind: read_u16(rest, 4)?, flags: read_u16(rest, 6)?, sequence: read_u32(rest, 8)? };
        let body = rest.get(HEADER_BYTES..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((header, body))
    })
}

fn verdict(header: &Header, body: &[u8]) -> std::result::Result<(), Refusal> {
    let code = read_u32(body, 0).unwrap_or(0) as i32;
    if code == 0 {
        return Ok(());
    }
    // After the code: an error repeats the request (only its header when capped); the end of a dump does not.
    let repeated = match header.kind {
        NLMSG_DONE => 0,
        _ if header.flags & NLM_F_CAPPED != 0 => HEADER_BYTES,
        _ => read_u32(body, 4).unwrap_or(0) as usize,
    };
    let text = (header.flags & NLM_F_ACK_TLVS != 0)
        .then(|| Attributes::after(body, 4 + repeated).find(NLMSGERR_ATTR_MSG).map(read_text))
        .flatten();
    Err(Refusal { errno: Errno::from_raw_os_error(code.saturating_neg()), text })
}

/// A socket that hears of every change of some kinds in one namespace: that of the calling thread. Non-blocking.
pub(crate) fn events(groups: u32) -> std::result::Result<OwnedFd, Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let fd = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, NETLINK_ROUTE)?;
    // Bound, as the kernel sends no news to a socket without an address of its own.
    rustix::net::bind(&fd, &netlink::SocketAddrNetlink::new(0, groups))?;
    Ok(fd)
}
