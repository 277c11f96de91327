//! A disk in memory that forgets what was not synced, tears what was being written, is full, or fails an fsync.

use crate::common::Seeded;
use nsm_store::{Medium, StorageBackend};
use std::{
    io,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

/// Bytes that a disk writes whole.
const SECTOR: usize = 512;

/// What happens at the chosen operation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Fault {
    /// The process is gone: nothing after it happens.
    Crash,
    /// If it is an fsync, or at the next one: it fails, and what it should have kept is lost at the next crash.
    Sync,
    /// Operations fail without a crash from then on.
    Broken,
}

#[derive(Clone, Debug)]
enum Pending {
    Write(u64, Vec<u8>),
    Length(u64),
}

/// The bytes of one file.
#[derive(Debug, Default)]
struct Image {
    /// What a crash leaves for certain.
    durable: Vec<u8>,
    /// What a read shows.
    seen: Vec<u8>,
    pending: Vec<Pending>,
}

#[derive(Debug, Default)]
struct State {
    /// The store, once there is one.
    store: Option<Image>,
    /// The place where one is made.
    blank: Image,
    operations: u64,
    syncs: u64,
    fault: Option<(u64, Fault)>,
    /// Backends opened before the last crash belong to a dead process.
    life: u64,
    dead: bool,
    room: Option<u64>,
    lies: bool,
    slow: bool,
}

/// The disk; clones are the same one.
#[derive(Clone, Debug, Default)]
pub(crate) struct FaultDisk(Arc<Mutex<State>>);

#[derive(Debug)]
struct Opened {
    disk: FaultDisk,
    life: u64,
    blank: bool,
}

fn apply(image: &mut Vec<u8>, change: &Pending) {
    match change {
        Pending::Length(length) => image.resize(usize::try_from(*length).unwrap(), 0),
        Pending::Write(offset, data) => {
            let offset = usize::try_from(*offset).unwrap();
            if image.len() < offset + data.len() {
                image.resize(offset + data.len(), 0);
            }
            image[offset..offset + data.len()].copy_from_slice(data);
        }
    }
}

impl FaultDisk {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// One that says it synced, and has not.
    pub(crate) fn lying() -> FaultDisk {
        let disk = FaultDisk::default();
        disk.state().lies = true;
        disk
    }

    /// From now on every fsync takes some milliseconds.
    pub(crate) fn slow(&self) {
        self.state().slow = true;
    }

    pub(crate) fn operations(&self) -> u64 {
        self.state().operations
    }

    pub(crate) fn syncs(&self) -> u64 {
        self.state().syncs
    }

    pub(crate) fn length(&self) -> u64 {
        self.state().store.as_ref().map_or(0, |store| store.seen.len() as u64)
    }

    /// Has `fault` happen `after` so many more operations.
    pub(crate) fn plan(&self, after: u64, fault: Fault) {
        let mut state = self.state();
        state.fault = Some((state.operations + after, fault));
    }

    /// How many bytes the store may have.
    pub(crate) fn room(&self, room: Option<u64>) {
        self.state().room = room;
    }

    pub(crate) fn is_dead(&self) -> bool {
        self.state().dead
    }

    /// The machine starts again: of what was not synced, some is there, some is not, some in parts.
    pub(crate) fn restart(&self, chance: &mut Seeded) {
        let mut state = self.state();
        if let Some(store) = &mut state.store {
            store.restart(chance);
        }
        (state.fault, state.dead) = (None, false);
        state.life += 1;
    }
}

impl Image {
    fn restart(&mut self, chance: &mut Seeded) {
        let pending = std::mem::take(&mut self.pending);
        let kept = chance.below(4);
        for change in pending {
            // Nothing, everything, or by chance.
            if kept == 0 || kept > 1 && chance.below(2) == 0 {
                continue;
            }
            match change {
                Pending::Length(_) => apply(&mut self.durable, &change),
                Pending::Write(offset, data) => tear(&mut self.durable, offset, &data, kept, chance),
            }
        }
        self.seen = self.durable.clone();
    }
}

/// Sectors reach the disk in any order; the one under the head may be cut.
fn tear(image: &mut Vec<u8>, offset: u64, data: &[u8], kept: u64, chance: &mut Seeded) {
    if kept < 3 {
        return apply(image, &Pending::Write(offset, data.to_vec()));
    }
    for (number, sector) in data.chunks(SECTOR).enumerate() {
        let bytes = match chance.below(4) {
            0 => 0,
            1 => usize::try_from(chance.below(sector.len() as u64 + 1)).unwrap(),
            _ => sector.len(),
        };
        apply(image, &Pending::Write(offset + (number * SECTOR) as u64, sector[..bytes].to_vec()));
    }
}

impl Medium for FaultDisk {
    fn object(&self) -> String {
        "registry store \"test\"".to_owned()
    }
    fn open(&self) -> io::Result<Option<Box<dyn StorageBackend>>> {
        let state = self.state();
        Ok(state.store.is_some().then(|| Box::new(Opened { disk: self.clone(), life: state.life, blank: false }) as Box<_>))
    }
    fn blank(&self) -> io::Result<Box<dyn StorageBackend>> {
        let mut state = self.state();
        state.blank = Image::default();
        Ok(Box::new(Opened { disk: self.clone(), life: state.life, blank: true }))
    }
    fn adopt(&self) -> io::Result<()> {
        let life = self.state().life;
        let directory = Opened { disk: self.clone(), life, blank: true };
        let mut state = directory.operation(true)?;
        let made = std::mem::take(&mut state.blank);
        state.store = Some(made);
        Ok(())
    }
}

impl State {
    fn image(&mut self, blank: bool) -> &mut Image {
        if blank { &mut self.blank } else { self.store.as_mut().unwrap() }
    }
}

impl Opened {
    fn alive(&self) -> io::Result<MutexGuard<'_, State>> {
        let state = self.disk.state();
        if state.dead || state.life != self.life {
            return Err(io::Error::other("the process is dead"));
        }
        Ok(state)
    }

    /// Counts an operation that changes something, and has the planned fault happen.
    fn operation(&self, sync: bool) -> io::Result<MutexGuard<'_, State>> {
        let mut state = self.alive()?;
        state.operations += 1;
        state.syncs += u64::from(sync);
        match state.fault {
            Some((at, Fault::Crash)) if state.operations >= at => {
                state.dead = true;
                Err(io::Error::other("the process dies"))
            }
            Some((at, Fault::Sync)) if sync && state.operations >= at => {
                state.fault = None;
                // Until a crash, reads show what never reached the disk.
                state.image(self.blank).pending.clear();
                Err(io::Error::other("the fsync failed"))
            }
            Some((at, Fault::Broken)) if state.operations >= at => Err(io::Error::other("the disk is broken")),
            _ => Ok(state),
        }
    }

    fn change(&self, change: Pending, end: u64) -> io::Result<()> {
        let mut state = self.operation(false)?;
        if state.room.is_some_and(|room| end > room) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let image = state.image(self.blank);
        apply(&mut image.seen, &change);
        image.pending.push(change);
        Ok(())
    }
}

impl StorageBackend for Opened {
    fn len(&self) -> io::Result<u64> {
        Ok(self.alive()?.image(self.blank).seen.len() as u64)
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let mut state = self.alive()?;
        let offset = usize::try_from(offset).unwrap();
        let present = state.image(self.blank).seen.get(offset..offset + out.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(present);
        Ok(())
    }
    fn set_len(&self, length: u64) -> io::Result<()> {
        self.change(Pending::Length(length), length)
    }
    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.operation(true)?;
        if state.slow {
            let pause = Duration::from_millis(state.syncs % 5);
            drop(state);
            std::thread::sleep(pause);
            state = self.alive()?;
        }
        if !state.lies {
            let image = state.image(self.blank);
            for change in &std::mem::take(&mut image.pending) {
                apply(&mut image.durable, change);
            }
        }
        Ok(())
    }
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.change(Pending::Write(offset, data.to_vec()), offset + data.len() as u64)
    }
}
