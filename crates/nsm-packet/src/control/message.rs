//! Requests and answers. A message begins with the version and with what it is.

use super::{
    PAGE,
    codec::{Reader, Writer},
};
use crate::{Counters, Device, DeviceId, DeviceState, PresharedKey, PrivateKey, PublicKey};
use nsm_api::{Error, InodeKey, Kind, Result};
use std::os::fd::OwnedFd;
use zeroize::Zeroizing;

/// Of all messages; both sides must have the same.
const VERSION: u8 = 1;
const ADD: u8 = 1;
const REMOVE: u8 = 2;
const LIST: u8 = 3;
const FIND: u8 = 4;
const REFUSED: u8 = 0x80;
const DEVICES: u8 = 0x81;

/// What a client asks for.
#[derive(Debug)]
pub(super) enum Request {
    /// With the namespace as descriptor beside the message.
    Add(Device),
    Remove(DeviceId),
    /// The devices after this one, in the order of their ids.
    List(Option<DeviceId>),
    Find(DeviceId),
}

/// What it is told.
#[derive(Debug, PartialEq)]
pub(super) enum Answer {
    /// The device that was added or found; none for one that was removed; a page of a list.
    Devices(Vec<DeviceState>),
    Refused(Error),
}

fn head(reader: &mut Reader<'_>) -> Result<u8> {
    let version = reader.u8()?;
    if version == VERSION {
        return reader.u8();
    }
    let reason = format!("it has version {version}, this side speaks {VERSION}");
    Err(Error::new(Kind::Unsupported, "a control message", reason, "use the same version of the program on both sides"))
}

fn unknown(what: u8) -> Error {
    Error::invalid("a control message", format!("its kind {what} is not known"), "use the same version on both sides")
}

pub(super) fn add(device: &Device) -> Zeroizing<Vec<u8>> {
    let mut writer = start(ADD);
    writer.text(&device.name);
    writer.text(&device.tag);
    writer.u32(device.group);
    writer.u32(device.mtu);
    writer.raw(device.private.expose());
    writer.raw(device.peer.bytes());
    writer.option(device.preshared.as_ref(), |writer, key| writer.raw(key.expose()));
    writer.address(device.listen);
    writer.address(device.endpoint);
    writer.finish()
}

pub(super) fn remove(id: &DeviceId) -> Zeroizing<Vec<u8>> {
    let mut writer = start(REMOVE);
    write_id(&mut writer, id);
    writer.finish()
}

pub(super) fn list(after: Option<&DeviceId>) -> Zeroizing<Vec<u8>> {
    let mut writer = start(LIST);
    writer.option(after, write_id);
    writer.finish()
}

pub(super) fn find(id: &DeviceId) -> Zeroizing<Vec<u8>> {
    let mut writer = start(FIND);
    write_id(&mut writer, id);
    writer.finish()
}

fn start(kind: u8) -> Writer {
    let mut writer = Writer::new();
    writer.u8(VERSION);
    writer.u8(kind);
    writer
}

impl Request {
    /// Reads a request and the descriptor that came with it.
    pub(super) fn read(bytes: &[u8], descriptor: Option<OwnedFd>) -> Result<Request> {
        let mut reader = Reader::new(bytes);
        let request = match head(&mut reader)? {
            ADD => {
                let missing = || Error::invalid("a new device", "its namespace did not come along", "send the descriptor with the message");
                Request::Add(read_device(&mut reader, descriptor.ok_or_else(missing)?)?)
            }
            REMOVE => Request::Remove(read_id(&mut reader)?),
            LIST => Request::List(reader.option(read_id)?),
            FIND => Request::Find(read_id(&mut reader)?),
            other => return Err(unknown(other)),
        };
        reader.end()?;
        Ok(request)
    }
}

fn read_device(reader: &mut Reader<'_>, netns: OwnedFd) -> Result<Device> {
    Ok(Device {
        netns,
        name: reader.text()?,
        tag: reader.text()?,
        group: reader.u32()?,
        mtu: reader.u32()?,
        private: PrivateKey::new(*Zeroizing::new(reader.array()?))?,
        peer: PublicKey::new(reader.array()?)?,
        preshared: reader.option(|reader| Ok(PresharedKey::new(*Zeroizing::new(reader.array()?))))?,
        listen: reader.address()?,
        endpoint: reader.address()?,
    })
}

fn write_id(writer: &mut Writer, id: &DeviceId) {
    writer.u64(id.netns.dev);
    writer.u64(id.netns.ino);
    writer.text(&id.name);
}

fn read_id(reader: &mut Reader<'_>) -> Result<DeviceId> {
    Ok(DeviceId { netns: InodeKey { dev: reader.u64()?, ino: reader.u64()? }, name: reader.text()? })
}

impl Answer {
    pub(super) fn write(&self) -> Zeroizing<Vec<u8>> {
        match self {
            Answer::Devices(devices) => {
                let mut writer = start(DEVICES);
                writer.u32(devices.len() as u32);
                devices.iter().for_each(|state| write_state(&mut writer, state));
                writer.finish()
            }
            Answer::Refused(error) => {
                let mut writer = start(REFUSED);
                writer.u8(KINDS.iter().position(|kind| *kind == error.kind).unwrap_or(0) as u8);
                for text in [&error.hop, &error.object, &error.reason, &error.fix] {
                    let end = text.floor_char_boundary(MAX_SENTENCE);
                    writer.text(&text[..end]);
                }
                writer.finish()
            }
        }
    }
    pub(super) fn read(bytes: &[u8]) -> Result<Answer> {
        let mut reader = Reader::new(bytes);
        let answer = match head(&mut reader)? {
            DEVICES => {
                let count = reader.u32()? as usize;
                Answer::Devices((0..count.min(PAGE)).map(|_| read_state(&mut reader)).collect::<Result<_>>()?)
            }
            REFUSED => Answer::Refused(read_error(&mut reader)?),
            other => return Err(unknown(other)),
        };
        reader.end()?;
        Ok(answer)
    }
}

/// Bytes of the longest part of an error that is passed on.
const MAX_SENTENCE: usize = 4096;
/// Classes of errors by their number on the wire.
const KINDS: [Kind; 10] = [
    Kind::Internal,
    Kind::Invalid,
    Kind::NotFound,
    Kind::Denied,
    Kind::Exhausted,
    Kind::Unsupported,
    Kind::Conflict,
    Kind::Unavailable,
    Kind::Timeout,
    Kind::Kernel,
];

fn read_error(reader: &mut Reader<'_>) -> Result<Error> {
    let kind = KINDS.get(usize::from(reader.u8()?)).copied().unwrap_or(Kind::Internal);
    Ok(Error { kind, hop: reader.text()?, object: reader.text()?, reason: reader.text()?, fix: reader.text()? })
}

fn write_state(writer: &mut Writer, state: &DeviceState) {
    write_id(writer, &state.id);
    writer.u32(state.index);
    writer.text(&state.tag);
    writer.u32(state.group);
    writer.u32(state.mtu);
    writer.raw(state.public.bytes());
    writer.raw(state.peer.bytes());
    writer.address(state.listen);
    writer.address(state.endpoint);
    let Counters { rx_packets, rx_bytes, rx_dropped, tx_packets, tx_bytes, tx_dropped } = state.counters;
    [rx_packets, rx_bytes, rx_dropped, tx_packets, tx_bytes, tx_dropped].into_iter().for_each(|count| writer.u64(count));
    writer.option(state.handshake_age, Writer::duration);
    writer.u8(state.gone.into());
}

fn read_state(reader: &mut Reader<'_>) -> Result<DeviceState> {
    Ok(DeviceState {
        id: read_id(reader)?,
        index: reader.u32()?,
        tag: reader.text()?,
        group: reader.u32()?,
        mtu: reader.u32()?,
        public: PublicKey::new(reader.array()?)?,
        peer: PublicKey::new(reader.array()?)?,
        listen: reader.address()?,
        endpoint: reader.address()?,
        counters: Counters {
            rx_packets: reader.u64()?,
            rx_bytes: reader.u64()?,
            rx_dropped: reader.u64()?,
            tx_packets: reader.u64()?,
            tx_bytes: reader.u64()?,
            tx_dropped: reader.u64()?,
        },
        handshake_age: reader.option(Reader::duration)?,
        gone: reader.u8()? != 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    fn state(name: String, tag: String, v6: bool, count: u64) -> DeviceState {
        let key = |byte| PublicKey::new([byte; 32]).unwrap();
        let address = if v6 { "[2001:db8::1]:7" } else { "192.0.2.1:51820" };
        DeviceState {
            id: DeviceId { netns: InodeKey { dev: 4, ino: count }, name },
            index: 9,
            tag,
            group: 3,
            mtu: 1420,
            public: key(1),
            peer: key(2),
            listen: address.parse().unwrap(),
            endpoint: address.parse().unwrap(),
            counters: Counters { rx_packets: count, tx_dropped: 1, ..Counters::default() },
            handshake_age: count.is_multiple_of(2).then(|| Duration::from_nanos(count)),
            gone: v6,
        }
    }

    proptest! {
        #[test]
        fn answers_arrive_as_they_were(names in proptest::collection::vec(("[a-z]{1,15}", "[ -~]{0,255}", any::<bool>(), any::<u64>()), 0..PAGE), reason in ".{0,50}", kind in 0..10usize) {
            let devices = names.into_iter().map(|(name, tag, v6, count)| state(name, tag, v6, count)).collect();
            for answer in [Answer::Devices(devices), Answer::Refused(Error::new(KINDS[kind], "x", reason, "y"))] {
                let bytes = answer.write();
                prop_assert!(bytes.len() <= super::super::MAX_MESSAGE);
                prop_assert_eq!(Answer::read(&bytes).unwrap(), answer);
            }
        }

        #[test]
        fn strange_bytes_are_refused_without_a_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..300), kind in any::<u8>(), with in any::<bool>()) {
            if bytes.len() > 2 {
                (bytes[0], bytes[1]) = (VERSION, kind % 6);
            }
            let descriptor = with.then(|| std::fs::File::open("/dev/null").unwrap().into());
            let _ = Request::read(&bytes, descriptor);
            if bytes.len() > 2 {
                bytes[1] = 0x80 | (kind % 3);
            }
            let _ = Answer::read(&bytes);
        }
    }

    #[test]
    fn requests_arrive_as_they_were() {
        let device = || Device {
            netns: std::fs::File::open("/dev/null").unwrap().into(),
            name: "wg".into(),
            tag: "nsm:a:b:1".into(),
            group: 7,
            mtu: 1420,
            private: PrivateKey::new([1; 32]).unwrap(),
            peer: PublicKey::new([2; 32]).unwrap(),
            preshared: Some(PresharedKey::new([3; 32])),
            listen: "192.0.2.1:1".parse().unwrap(),
            endpoint: "[2001:db8::1]:2".parse().unwrap(),
        };
        let bytes = add(&device());
        assert!(Request::read(&bytes, None).unwrap_err().to_string().contains("namespace"));
        let Request::Add(read) = Request::read(&bytes, Some(device().netns)).unwrap() else { panic!("another request") };
        assert_eq!((&read.name, &read.tag, read.group, read.mtu), (&"wg".into(), &"nsm:a:b:1".into(), 7, 1420));
        assert!(read.private == device().private && read.preshared == device().preshared && read.peer == device().peer);
        assert_eq!((read.listen, read.endpoint), (device().listen, device().endpoint));
        let id = DeviceId { netns: InodeKey { dev: 1, ino: 2 }, name: "wg".into() };
        assert!(matches!(Request::read(&remove(&id), None).unwrap(), Request::Remove(read) if read == id));
        assert!(matches!(Request::read(&list(Some(&id)), None).unwrap(), Request::List(Some(read)) if read == id));
        assert!(matches!(Request::read(&list(None), None).unwrap(), Request::List(None)));
        let mut longer = list(None).to_vec();
        longer.push(0);
        assert!(Request::read(&longer, None).is_err());
        let mut other = list(None).to_vec();
        other[0] = 2;
        assert_eq!(Request::read(&other, None).unwrap_err().kind, Kind::Unsupported);
    }
}
