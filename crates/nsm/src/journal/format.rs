//! A record as a file: one line that says what it is and a checksum, then JSON. Messages in it are the wire's own, so that
//! fields of newer versions survive.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use buffa::Message;
use nsm_api::*;
use nsm_hop::{
    journal::{Agreed, Debt, Record},
    role::{Candidate, Sent},
};
use nsm_linux::find::{self, Place};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    os::fd::OwnedFd,
    path::PathBuf,
    sync::Arc,
    time::{Duration, UNIX_EPOCH},
};

/// What the first line of a file of ours begins with.
const MAGIC: &str = "nsm-journal";
/// Grows when a record can no longer be read as before.
const VERSION: u32 = 1;

/// Why a file is no record.
pub(super) type Unreadable = String;

#[derive(Serialize, Deserialize)]
pub(super) struct Written {
    id: String,
    up: Option<WrittenAgreed>,
    former: Vec<WrittenAgreed>,
    owed: Vec<WrittenDebt>,
    given: Vec<String>,
    drifted: bool,
}

#[derive(Serialize, Deserialize)]
struct WrittenAgreed {
    connection: String,
    files: Vec<WrittenFile>,
    sent: Option<WrittenSent>,
    asked_by: Option<String>,
    return_index: u32,
}

#[derive(Serialize, Deserialize)]
struct WrittenSent {
    target: String,
    socket: Vec<WrittenFile>,
    registered: Option<String>,
    payload: String,
    request: String,
    request_files: Vec<WrittenFile>,
    connection: String,
    files: Vec<WrittenFile>,
}

#[derive(Serialize, Deserialize)]
struct WrittenDebt {
    sent: WrittenSent,
    /// Milliseconds of the Unix time.
    until: u64,
}

/// An open file: which one, and where it may be found again. Without a path it is a namespace.
#[derive(Serialize, Deserialize)]
struct WrittenFile {
    dev: u64,
    ino: u64,
    path: Option<PathBuf>,
}

/// The bytes of a file.
pub(super) fn write(record: &Record) -> Vec<u8> {
    let body = serde_json::to_string(&Written::of(record)).unwrap_or_default();
    format!("{MAGIC} {VERSION} {:016x}\n{body}\n", checksum(body.as_bytes())).into_bytes()
}

/// Reads a file, not yet what it names.
pub(super) fn read(bytes: &[u8]) -> Result<Written, Unreadable> {
    let text = std::str::from_utf8(bytes).map_err(|_| "is no text")?;
    let (head, body) = text.split_once('\n').ok_or("is cut off")?;
    let [MAGIC, version, sum] = head.split(' ').collect::<Vec<_>>()[..] else { return Err("is none of ours".to_owned()) };
    if version != VERSION.to_string() {
        return Err(format!("has version {version}, this program reads {VERSION}"));
    }
    let body = body.strip_suffix('\n').ok_or("is cut off")?;
    if u64::from_str_radix(sum, 16) != Ok(checksum(body.as_bytes())) {
        return Err("is damaged".to_owned());
    }
    serde_json::from_str(body).map_err(|error| error.to_string())
}

/// FNV-1a: finds damage, not malice. Who may write the file may write the sum.
fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

impl Written {
    fn of(record: &Record) -> Written {
        let owed = |debt: &Debt| WrittenDebt {
            sent: WrittenSent::of(&debt.sent),
            until: debt.until.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64,
        };
        Written {
            id: record.id.to_string(),
            up: record.up.as_ref().map(WrittenAgreed::of),
            former: record.former.iter().map(WrittenAgreed::of).collect(),
            owed: record.owed.iter().map(owed).collect(),
            given: record.given.clone(),
            drifted: record.drifted,
        }
    }

    /// The namespaces that it names.
    pub(super) fn namespaces(&self) -> BTreeSet<InodeKey> {
        let sents = self.up.iter().chain(&self.former).filter_map(|agreed| agreed.sent.as_ref());
        let sents = sents.chain(self.owed.iter().map(|debt| &debt.sent));
        let files = sents.flat_map(|sent| [&sent.socket, &sent.request_files, &sent.files]);
        let files = files.chain(self.up.iter().chain(&self.former).map(|agreed| &agreed.files));
        files.flatten().filter(|file| file.path.is_none()).map(WrittenFile::key).collect()
    }

    /// The record, with the files that are still there. A connection of which a namespace has `ended` has ended, too.
    pub(super) fn record(self, found: &Found) -> Result<Record> {
        let agreed = |list: Vec<WrittenAgreed>| list.into_iter().map(|agreed| agreed.agreed(found)).collect::<Result<Vec<_>>>();
        let mut record = Record {
            id: self.id.parse()?,
            up: self.up.map(|up| up.agreed(found)).transpose()?,
            former: agreed(self.former)?,
            owed: self.owed.into_iter().map(|debt| debt.debt(found)).collect::<Result<_>>()?,
            given: self.given,
            drifted: self.drifted,
        };
        if let Some(up) = record.up.take_if(|up| found.ended(up)) {
            tracing::info!(id = %record.id, "the pod of a connection has gone");
            let until = up.connection.path.segments.iter().filter_map(|segment| segment.expires).max();
            record.owed.extend(up.sent.clone().map(|sent| Debt { sent, until: until.unwrap_or(UNIX_EPOCH) }));
            record.former.push(up);
        }
        Ok(record)
    }
}

impl WrittenAgreed {
    fn of(agreed: &Agreed) -> WrittenAgreed {
        WrittenAgreed {
            connection: connection_text(&agreed.connection),
            files: files_of(&agreed.files),
            sent: agreed.sent.as_ref().map(WrittenSent::of),
            asked_by: agreed.asked_by.as_ref().map(ToString::to_string),
            return_index: agreed.return_index,
        }
    }
    fn agreed(self, found: &Found) -> Result<Agreed> {
        Ok(Agreed {
            connection: connection_of(&self.connection)?,
            files: found.files(&self.files),
            sent: self.sent.map(|sent| sent.sent(found)).transpose()?,
            asked_by: self.asked_by.map(|id| id.parse()).transpose()?,
            return_index: self.return_index,
        })
    }
}

impl WrittenSent {
    fn of(sent: &Sent) -> WrittenSent {
        let request: proto::networkservice::NetworkServiceRequest = sent.request.clone().into();
        WrittenSent {
            target: sent.candidate.target.to_string(),
            socket: files_of(&sent.candidate.socket),
            registered: sent.candidate.registered.as_ref().map(ToString::to_string),
            payload: sent.candidate.payload.as_str().to_owned(),
            request: BASE64_STANDARD.encode(request.encode_to_vec()),
            request_files: files_of(&sent.request.files),
            connection: connection_text(&sent.connection),
            files: files_of(&sent.files),
        }
    }
    fn sent(self, found: &Found) -> Result<Sent> {
        let candidate = Candidate {
            target: self.target.parse()?,
            socket: found.files(&self.socket),
            registered: self.registered.map(|name| name.parse()).transpose()?,
            payload: self.payload.as_str().into(),
        };
        let message = proto::networkservice::NetworkServiceRequest::decode_from_slice(&bytes_of(&self.request)?);
        let mut request: Request = message.map_err(|error| damaged(&error))?.try_into()?;
        request.files = found.files(&self.request_files);
        Ok(Sent { candidate, request, connection: connection_of(&self.connection)?, files: found.files(&self.files) })
    }
}

impl WrittenDebt {
    fn debt(self, found: &Found) -> Result<Debt> {
        Ok(Debt { sent: self.sent.sent(found)?, until: UNIX_EPOCH + Duration::from_millis(self.until) })
    }
}

impl WrittenFile {
    fn key(&self) -> InodeKey {
        InodeKey { dev: self.dev, ino: self.ino }
    }
}

fn files_of(files: &Files) -> Vec<WrittenFile> {
    let written = |(key, file): (InodeKey, &Arc<OwnedFd>)| {
        let path = match find::place(file) {
            Place::Namespace => None,
            Place::Path(path) => Some(path),
            Place::Nowhere => return None,
        };
        Some(WrittenFile { dev: key.dev, ino: key.ino, path })
    };
    files.iter().filter_map(written).collect()
}

fn connection_text(connection: &Connection) -> String {
    let message: proto::connection::Connection = connection.clone().into();
    BASE64_STANDARD.encode(message.encode_to_vec())
}

fn connection_of(text: &str) -> Result<Connection> {
    proto::connection::Connection::decode_from_slice(&bytes_of(text)?).map_err(|error| damaged(&error))?.try_into()
}

fn bytes_of(text: &str) -> Result<Vec<u8>> {
    BASE64_STANDARD.decode(text).map_err(|error| damaged(&error))
}

fn damaged(error: &dyn std::fmt::Display) -> Error {
    Error::invalid("a record of a journal", error.to_string(), "nothing: its connection is set up anew")
}

/// The files of all records that are still there.
pub(super) struct Found {
    namespaces: BTreeMap<InodeKey, Arc<OwnedFd>>,
    ended: BTreeSet<InodeKey>,
}

impl Found {
    pub(super) fn look(wanted: &BTreeSet<InodeKey>) -> Found {
        let search = if wanted.is_empty() { find::Namespaces::default() } else { find::namespaces(wanted) };
        let missing = wanted.iter().filter(|key| search.complete && !search.found.contains_key(key));
        Found { ended: missing.copied().collect(), namespaces: search.found }
    }
    fn files(&self, written: &[WrittenFile]) -> Files {
        let mut files = Files::default();
        for file in written {
            let key = file.key();
            let open = match &file.path {
                None => self.namespaces.get(&key).cloned(),
                Some(path) => find::file(path, key),
            };
            if let Some(open) = open {
                files.insert(key, open);
            }
        }
        files
    }
    fn ended(&self, agreed: &Agreed) -> bool {
        let far = agreed.sent.as_ref().and_then(|sent| sent.connection.mechanism.as_ref());
        let both = agreed.connection.mechanism.iter().chain(far);
        both.filter(|mechanism| mechanism.kind == MechanismKind::Kernel).filter_map(Mechanism::inode).any(|key| self.ended.contains(&key))
    }
}
