//! The file that tells a workload whom to ask, usually `/etc/resolv.conf`. While we run it names us and keeps the
//! former lines as comments, so nothing else must be remembered: [`restore`] needs the text only, also after a kill,
//! and in another process. A change that somebody else made meanwhile stays.
//!
//! [`rewrite`], [`restore`] and [`parse`] are pure; [`ResolvConf`] applies them to a file.

use nsm_api::{DnsConfig, Error, Kind, Result};
use std::{
    fs::{self, OpenOptions},
    io::{self, Read, Write},
    net::IpAddr,
    os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, fchown},
    path::{Path, PathBuf},
};

/// The beginning of our line; our address follows.
const OURS: &[u8] = b"# nsm resolver: ";
/// Before a former line.
const KEPT: &[u8] = b"# nsm kept: ";
/// Before the former last line when no newline ended it.
const KEPT_OPEN: &[u8] = b"# nsm kept, open: ";
/// Largest file in bytes that is written or read, with our lines. Resolvers read some hundred.
pub const MAX_SIZE: usize = 64 * 1024;

/// `text` as it is while a resolver listens on `listen`. What an earlier run left is undone first.
pub fn rewrite(text: &[u8], listen: IpAddr) -> Vec<u8> {
    let mut new = [OURS, format!("{listen}\nnameserver {listen}\n").as_bytes()].concat();
    for line in restore(text).split_inclusive(|byte| *byte == b'\n') {
        let is_open = !line.ends_with(b"\n");
        new.extend([if is_open { KEPT_OPEN } else { KEPT }, line, if is_open { b"\n" } else { b"" }].concat());
    }
    new
}

/// `text` without what [`rewrite`] did to it: the former lines, then those that others have added since. A text that
/// bears none of our marks is answered as it is.
pub fn restore(text: &[u8]) -> Vec<u8> {
    let (mut former, mut foreign): (Vec<u8>, Vec<u8>) = Default::default();
    let mut ours: Option<Vec<u8>> = None;
    for line in text.split_inclusive(|byte| *byte == b'\n') {
        if let Some(address) = line.strip_prefix(OURS) {
            ours = Some([b"nameserver ", address].concat());
        } else if let Some(open) = line.strip_prefix(KEPT_OPEN) {
            former.extend(open.strip_suffix(b"\n").unwrap_or(open));
        } else if let Some(kept) = line.strip_prefix(KEPT) {
            former.extend(kept);
        } else if ours.as_deref() == Some(line) {
            ours = None;
        } else {
            foreign.extend(line);
        }
    }
    if !former.is_empty() && !former.ends_with(b"\n") && !foreign.is_empty() {
        former.push(b'\n');
    }
    former.extend(foreign);
    former
}

/// The servers and search domains that `text` names, as resolvers read it: the last `search` or `domain` line counts,
/// comments do not.
pub fn parse(text: &[u8]) -> DnsConfig {
    let text = String::from_utf8_lossy(text);
    let mut config = DnsConfig::default();
    for line in text.lines() {
        let line = line.split(['#', ';']).next().unwrap_or_default();
        let mut words = line.split_whitespace().map(str::to_owned);
        match words.next().as_deref() {
            Some("nameserver") => config.dns_server_ips.extend(words.next()),
            Some("search") => config.search_domains = words.collect(),
            Some("domain") => config.search_domains = words.take(1).collect(),
            _ => {}
        }
    }
    config
}

/// A file that names us. It is restored with [`ResolvConf::restore`], or, at the latest, when this value ends.
#[derive(Debug)]
pub struct ResolvConf {
    path: PathBuf,
    is_ours: bool,
}

impl ResolvConf {
    /// Makes the file at `path` name `listen`, where a resolver must listen on port 53 already, and answers what the
    /// file said before. It blocks for a few file operations. A link is followed; a missing file is made and will be left empty.
    ///
    /// # Errors
    /// [`Kind::Kernel`] when the file cannot be read or written, [`Kind::Invalid`] when it would be larger than
    /// [`MAX_SIZE`]. It is unchanged then.
    pub fn take_over(path: &Path, listen: IpAddr) -> Result<(ResolvConf, DnsConfig)> {
        let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let text = read(&path)?;
        let new = rewrite(&text, listen);
        if new.len() > MAX_SIZE {
            return Err(too_large(&path));
        }
        write(&path, &text, &new).map_err(|error| failed(&path, "written", &error))?;
        Ok((ResolvConf { path, is_ours: true }, parse(&restore(&text))))
    }

    /// Takes our lines out of the file again.
    ///
    /// # Errors
    /// As [`ResolvConf::take_over`]; the next run restores what this one could not.
    pub fn restore(mut self) -> Result<()> {
        self.undo()
    }

    fn undo(&mut self) -> Result<()> {
        if !std::mem::take(&mut self.is_ours) {
            return Ok(());
        }
        let text = read(&self.path)?;
        write(&self.path, &text, &restore(&text)).map_err(|error| failed(&self.path, "restored", &error))
    }
}

impl Drop for ResolvConf {
    fn drop(&mut self) {
        if let Err(error) = self.undo() {
            tracing::warn!(%error, "resolv.conf still names this process");
        }
    }
}

fn failed(path: &Path, what: &str, error: &io::Error) -> Error {
    let fix = "let the process write it, or switch the local DNS server off";
    Error::new(Kind::Kernel, format!("resolver file {}", path.display()), format!("cannot be {what}: {error}"), fix)
}

fn too_large(path: &Path) -> Error {
    let (object, reason) = (format!("resolver file {}", path.display()), format!("is or would be larger than {MAX_SIZE} bytes"));
    Error::invalid(object, reason, "remove what no resolver reads from it")
}

fn read(path: &Path) -> Result<Vec<u8>> {
    let mut text = Vec::new();
    let most = u64::try_from(MAX_SIZE).expect("a small number") + 1;
    match fs::File::open(path).and_then(|file| file.take(most).read_to_end(&mut text)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(path, "read", &error)),
        _ if text.len() > MAX_SIZE => Err(too_large(path)),
        _ => Ok(text),
    }
}

/// Makes `new` of the file that says `old`. In one step where that is possible; in a container the file is a mount
/// point, or its directory cannot be written, and then it is overwritten.
fn write(path: &Path, old: &[u8], new: &[u8]) -> io::Result<()> {
    if old == new && path.exists() {
        return Ok(());
    }
    replace(path, new).or_else(|_| overwrite(path, old.len(), new))
}

fn replace(path: &Path, new: &[u8]) -> io::Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = path.with_file_name(format!(".{name}.nsm"));
    // What a killed run may have left.
    let _ = fs::remove_file(&temporary);
    let done = fill(&temporary, path, new).and_then(|()| fs::rename(&temporary, path));
    if done.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    done
}

/// Makes the file `temporary` with the owner and mode of `path`, where that exists.
fn fill(temporary: &Path, path: &Path, new: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o644).open(temporary)?;
    if let Ok(of) = fs::metadata(path) {
        fchown(&file, Some(of.uid()), Some(of.gid()))?;
        file.set_permissions(of.permissions())?;
    }
    file.write_all(new)?;
    file.sync_all()
}

/// A kill between the two steps leaves nothing but empty lines too many.
fn overwrite(path: &Path, old_length: usize, new: &[u8]) -> io::Result<()> {
    let file = OpenOptions::new().write(true).create(true).truncate(false).open(path)?;
    file.write_all_at(&padded(new, old_length), 0)?;
    file.set_len(u64::try_from(new.len()).map_err(io::Error::other)?)?;
    file.sync_all()
}

/// `text` with empty lines up to `length` bytes.
fn padded(text: &[u8], length: usize) -> Vec<u8> {
    let mut padded = text.to_vec();
    padded.resize(length.max(text.len()), b'\n');
    padded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kill_while_a_mount_point_is_overwritten_leaves_empty_lines_at_most() {
        let (old, listen) = (b"search a\nnameserver 10.96.0.10\n", IpAddr::from([127, 0, 0, 1]));
        let ours = rewrite(old, listen);
        let written = padded(&ours, old.len());
        assert_eq!(written, ours, "ours is the longer one");
        let restored = padded(&restore(&written), written.len());
        assert_eq!(restored.len(), written.len(), "nothing of ours shows behind it");
        assert_eq!(restored.trim_ascii_end(), old.trim_ascii_end());
        assert_eq!((restore(&restored), parse(&restored)), (restored.clone(), parse(old)), "the next run begins with the former lines");
    }
}
