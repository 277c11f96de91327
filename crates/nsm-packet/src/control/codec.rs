//! Numbers, texts and keys as bytes, little-endian, each with its length where that varies. What was written is wiped.

use nsm_api::{Error, Result};
use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};
use zeroize::Zeroizing;

/// A message being written.
pub(super) struct Writer(Zeroizing<Vec<u8>>);

impl Writer {
    /// An empty message; its room is taken at once, so that no part of it stays behind in freed memory.
    pub(super) fn new() -> Writer {
        Writer(Zeroizing::new(Vec::with_capacity(super::MAX_MESSAGE)))
    }
    pub(super) fn finish(self) -> Zeroizing<Vec<u8>> {
        self.0
    }
    pub(super) fn raw(&mut self, bytes: &[u8]) {
        self.0.extend(bytes);
    }
    pub(super) fn u8(&mut self, value: u8) {
        self.raw(&[value]);
    }
    pub(super) fn u32(&mut self, value: u32) {
        self.raw(&value.to_le_bytes());
    }
    pub(super) fn u64(&mut self, value: u64) {
        self.raw(&value.to_le_bytes());
    }
    /// A text, of which at most 65535 bytes are kept.
    pub(super) fn text(&mut self, text: &str) {
        let end = text.floor_char_boundary(usize::from(u16::MAX));
        self.raw(&(end as u16).to_le_bytes());
        self.raw(&text.as_bytes()[..end]);
    }
    pub(super) fn address(&mut self, address: SocketAddr) {
        match address.ip() {
            IpAddr::V4(ip) => {
                self.u8(4);
                self.raw(&ip.octets());
            }
            IpAddr::V6(ip) => {
                self.u8(6);
                self.raw(&ip.octets());
            }
        }
        self.raw(&address.port().to_le_bytes());
    }
    /// Something that may be missing.
    pub(super) fn option<T>(&mut self, value: Option<T>, write: impl FnOnce(&mut Writer, T)) {
        self.u8(value.is_some().into());
        if let Some(value) = value {
            write(self, value);
        }
    }
    pub(super) fn duration(&mut self, duration: Duration) {
        self.u64(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX));
    }
}

/// A message being read. Nothing of it is trusted.
pub(super) struct Reader<'a>(&'a [u8]);

fn broken() -> Error {
    Error::invalid("a control message", "it is shorter than it says, or says what cannot be", "use the same version on both sides")
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader(bytes)
    }
    pub(super) fn raw(&mut self, length: usize) -> Result<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or_else(broken)?;
        self.0 = rest;
        Ok(taken)
    }
    pub(super) fn array<const LENGTH: usize>(&mut self) -> Result<[u8; LENGTH]> {
        self.raw(LENGTH)?.try_into().map_err(|_| broken())
    }
    pub(super) fn u8(&mut self) -> Result<u8> {
        Ok(self.array::<1>()?[0])
    }
    pub(super) fn u16(&mut self) -> Result<u16> {
        self.array().map(u16::from_le_bytes)
    }
    pub(super) fn u32(&mut self) -> Result<u32> {
        self.array().map(u32::from_le_bytes)
    }
    pub(super) fn u64(&mut self) -> Result<u64> {
        self.array().map(u64::from_le_bytes)
    }
    pub(super) fn text(&mut self) -> Result<String> {
        let length = self.u16()?.into();
        String::from_utf8(self.raw(length)?.to_vec()).map_err(|_| broken())
    }
    pub(super) fn address(&mut self) -> Result<SocketAddr> {
        let ip = match self.u8()? {
            4 => IpAddr::from(self.array::<4>()?),
            6 => IpAddr::from(self.array::<16>()?),
            _ => return Err(broken()),
        };
        Ok(SocketAddr::new(ip, self.u16()?))
    }
    pub(super) fn option<T>(&mut self, read: impl FnOnce(&mut Reader<'a>) -> Result<T>) -> Result<Option<T>> {
        match self.u8()? {
            0 => Ok(None),
            1 => read(self).map(Some),
            _ => Err(broken()),
        }
    }
    pub(super) fn duration(&mut self) -> Result<Duration> {
        self.u64().map(Duration::from_nanos)
    }
    /// Nothing may be left.
    pub(super) fn end(self) -> Result<()> {
        if self.0.is_empty() { Ok(()) } else { Err(broken()) }
    }
}
