//! Bytes and files through a real socket pair.

use super::*;
use crate::{
    descriptors::inode_key,
    limits::{MAX_QUEUED_FILES, UNCLAIMED_LIFE},
};
use nsm_api::{InodeKey, Kind};
use rand::{Rng, SeedableRng, rngs::StdRng};
use rustix::fs::{MemfdFlags, memfd_create};
use std::{future::Future, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::{Instant, timeout},
};

const BOUND: Duration = Duration::from_secs(20);
const SEEDS: u64 = 300;
/// Below the usual limit of open files, which both ends share here.
const MAX_FILES_PER_SEED: usize = 200;

async fn bounded<T>(step: impl Future<Output = T>) -> T {
    timeout(BOUND, step).await.expect("the step did not end in time")
}

fn file() -> (InodeKey, Arc<OwnedFd>) {
    let file = memfd_create("test", MemfdFlags::CLOEXEC).unwrap();
    (inode_key(&file).unwrap(), Arc::new(file))
}

fn pair() -> (FdStream, FdStream) {
    let (a, b) = UnixStream::pair().unwrap();
    (FdStream::new(a), FdStream::new(b))
}

fn soon() -> Instant {
    Instant::now() + BOUND
}

/// Writes `data` in random pieces with random files before each; then two bytes for the files queued last.
async fn write_all(mut stream: FdStream, data: Vec<u8>, seed: u64) -> Vec<InodeKey> {
    let mut random = StdRng::seed_from_u64(seed);
    let (mut keys, mut offset) = (vec![], 0);
    while offset < data.len() {
        if random.random_bool(0.3) && keys.len() < MAX_FILES_PER_SEED {
            let most = if random.random_bool(0.1) { 100 } else { 4 };
            for (key, file) in (0..random.random_range(1..most)).map(|_| file()) {
                stream.files().queue([&file]).unwrap();
                keys.push(key);
            }
        }
        let length = random.random_range(1..=(data.len() - offset).min(9000));
        let piece = &data[offset..offset + length];
        let (head, tail) = piece.split_at(length / 2);
        offset += match random.random_bool(0.5) {
            true => stream.write_vectored(&[IoSlice::new(head), IoSlice::new(tail)]).await.unwrap(),
            false => stream.write(piece).await.unwrap(),
        };
    }
    // A piece may have been shorter than the batches it had to carry: at most two, see above.
    stream.write_all(b"!!").await.unwrap();
    stream.shutdown().await.unwrap();
    keys
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_pieces_with_files_at_random_offsets_arrive_whole() {
    for seed in 0..SEEDS {
        let mut random = StdRng::seed_from_u64(seed);
        let (writer, mut reader) = pair();
        if random.random_bool(0.5) {
            rustix::net::sockopt::set_socket_send_buffer_size(&writer.socket, 4608).unwrap();
        }
        let length = random.random_range(1..200_000);
        let data: Vec<u8> = (0..length).map(|_| random.random()).collect();
        let writing = tokio::spawn(write_all(writer, data.clone(), seed ^ 1));
        let mut got = vec![];
        loop {
            let mut buffer = vec![0; random.random_range(1..5000)];
            match bounded(reader.read(&mut buffer)).await.unwrap() {
                0 => break,
                count => got.extend_from_slice(&buffer[..count]),
            }
        }
        let keys = bounded(writing).await.unwrap();
        assert!(got[..data.len()] == data, "seed {seed}: the bytes differ");
        for key in keys {
            let file = bounded(reader.files().take(key, soon())).await;
            assert_eq!(file.map(|file| inode_key(&file).unwrap()), Some(key), "seed {seed}");
        }
        assert_eq!(reader.files().unclaimed(), 0, "seed {seed}");
    }
}

/// Sends `files` with `bytes` in one message, as a peer may.
fn send_raw(socket: &std::os::unix::net::UnixStream, bytes: &[u8], files: &[Arc<OwnedFd>]) {
    let files: Vec<_> = files.iter().map(|file| file.as_fd()).collect();
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(MAX_FILES_PER_RECEIVE))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(control.push(SendAncillaryMessage::ScmRights(&files)));
    assert_eq!(sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::empty()).unwrap(), bytes.len());
}

#[tokio::test]
async fn all_files_leave_before_the_last_byte_of_what_was_written_after_them() {
    let (mut writer, mut reader) = pair();
    let (keys, files): (Vec<_>, Vec<_>) = (0..MAX_FILES_PER_SEND * 3 + 1).map(|_| file()).unzip();
    writer.files().queue(&files).unwrap();
    writer.write_all(b"four").await.unwrap();
    bounded(reader.read_exact(&mut [0; 4])).await.unwrap();
    for key in keys {
        assert!(reader.files().take(key, Instant::now()).await.is_some());
    }
}

#[tokio::test]
async fn other_ways_to_send_files_are_understood() {
    let (peer, socket) = UnixStream::pair().unwrap();
    let peer = peer.into_std().unwrap();
    let mut reader = FdStream::new(socket);
    let (mut keys, mut expected) = (vec![], vec![]);
    // One byte with each file, as grpcfd does it.
    for byte in 0..64 {
        let (key, file) = file();
        send_raw(&peer, &[byte], &[file]);
        keys.push(key);
        expected.push(byte);
    }
    // As many files as the kernel takes.
    let (more, files): (Vec<_>, Vec<_>) = (0..MAX_FILES_PER_RECEIVE).map(|_| file()).unzip();
    send_raw(&peer, &[7; 1000], &files);
    keys.extend(more);
    expected.extend([7; 1000]);
    drop(peer);
    let mut got = vec![];
    bounded(reader.read_to_end(&mut got)).await.unwrap();
    assert_eq!(got, expected);
    for key in keys {
        assert!(reader.files().take(key, soon()).await.is_some());
    }
}

#[tokio::test]
async fn a_file_can_be_taken_as_often_as_it_came() {
    let (mut writer, mut reader) = pair();
    let (key, file) = file();
    let files = reader.files().clone();
    let early = tokio::spawn(async move { files.take(key, soon()).await });
    for _ in 0..3 {
        writer.files().queue([&file]).unwrap();
        writer.write_all(b"x").await.unwrap();
    }
    bounded(reader.read_exact(&mut [0; 3])).await.unwrap();
    assert!(bounded(early).await.unwrap().is_some());
    for _ in 0..2 {
        assert!(reader.files().take(key, Instant::now()).await.is_some());
    }
    assert!(reader.files().take(key, Instant::now()).await.is_none());
    writer.files().queue([&file]).unwrap();
    writer.write_all(b"x").await.unwrap();
    bounded(reader.read_exact(&mut [0; 1])).await.unwrap();
    reader.files().forget(key);
    assert_eq!(reader.files().unclaimed(), 0);
}

#[tokio::test(start_paused = true)]
async fn what_nobody_claims_is_dropped_when_more_comes() {
    let files = Descriptors::default();
    let [(old, first), (new, second)] = [file(), file()];
    files.arrived([first].into_iter().filter_map(Arc::into_inner));
    tokio::time::advance(UNCLAIMED_LIFE).await;
    files.arrived([second].into_iter().filter_map(Arc::into_inner));
    assert!(files.take(old, Instant::now()).await.is_none());
    assert!(files.take(new, Instant::now()).await.is_some());
}

#[tokio::test]
async fn the_end_of_a_connection_wakes_who_waits_and_keeps_what_came() {
    let (mut writer, mut reader) = pair();
    let (key, file) = file();
    writer.files().queue([&file]).unwrap();
    writer.write_all(b"x").await.unwrap();
    bounded(reader.read_exact(&mut [0; 1])).await.unwrap();
    let files = reader.files().clone();
    let waiting = tokio::spawn({
        let files = files.clone();
        async move { files.take(InodeKey { dev: 0, ino: 0 }, soon()).await }
    });
    drop(reader);
    assert!(bounded(waiting).await.unwrap().is_none());
    assert!(files.take(key, Instant::now()).await.is_some());
    assert_eq!(files.queue([&file]).unwrap_err().kind, Kind::Unavailable);
}

#[tokio::test]
async fn no_bytes_take_no_files_and_the_queue_is_bounded() {
    let (mut writer, reader) = pair();
    let (key, file) = file();
    writer.files().queue([&file]).unwrap();
    assert_eq!(writer.write(b"").await.unwrap(), 0);
    let (batch, more) = writer.files().next_batch();
    assert!(batch.len() == 1 && !more);
    writer.files().queue(vec![&file; MAX_QUEUED_FILES]).unwrap();
    assert_eq!(writer.files().queue([&file]).unwrap_err().kind, Kind::Exhausted);
    assert!(reader.files().take(key, Instant::now()).await.is_none());
}
