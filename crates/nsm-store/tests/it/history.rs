//! Histories of many clients at once over a registry, judged name by name.

use crate::{
    common::*,
    linear::{self, Call, Event, Reply},
    medium::{Fault, FaultDisk},
};
use futures::StreamExt;
use nsm_api::{EndpointQuery, Files, Kind, RegistryApi};
use nsm_registry::{MemoryEngine, Registry};
use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

/// What all clients wrote down.
#[derive(Clone, Default)]
pub(crate) struct Record {
    time: Arc<AtomicU64>,
    values: Arc<AtomicU32>,
    events: Arc<Mutex<BTreeMap<u8, Vec<Event>>>>,
}

impl Record {
    fn tick(&self) -> u64 {
        self.time.fetch_add(1, Ordering::SeqCst)
    }

    /// One call of a client, chosen by `chance`.
    pub(crate) async fn act(&self, registry: &Registry, owner: u8, names: u8, chance: &mut Seeded) {
        let number = u8::try_from(chance.below(u64::from(names))).unwrap();
        let value = self.values.fetch_add(1, Ordering::SeqCst);
        let call = match chance.below(10) {
            0..5 => Call::Register { owner, value },
            5..7 => Call::Unregister { owner },
            _ => Call::Find,
        };
        self.make(registry, number, call).await;
    }

    pub(crate) async fn make(&self, registry: &Registry, number: u8, call: Call) -> Reply {
        let begin = self.tick();
        let outcome = perform(registry, &format!("e{number}"), call).await;
        let (end, reply) = (
            self.tick(),
            match outcome {
                Ok(reply) => reply,
                Err(error) if error.kind == Kind::Denied => Reply::Denied,
                // Refused before anything was done, or a question without an answer.
                Err(error) if matches!(error.kind, Kind::Exhausted | Kind::Conflict) || call == Call::Find => return Reply::Unknown,
                Err(_) => Reply::Unknown,
            },
        );
        self.events.lock().unwrap().entry(number).or_default().push(Event { call, reply, begin, end });
        reply
    }

    /// Waits until so many calls have begun or ended, or `work` is over.
    pub(crate) async fn reaches(&self, ticks: u64, work: &tokio::task::JoinHandle<()>) {
        while self.time.load(Ordering::SeqCst) < ticks && !work.is_finished() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Every name's history can have happened. Answers how many calls were known to succeed, and how many were unknown.
    pub(crate) fn judge(&self, what: &str) -> (usize, usize) {
        let events = self.events.lock().unwrap();
        for (number, history) in &*events {
            linear::check(history).unwrap_or_else(|error| panic!("{what}, e{number}: {error}"));
        }
        let unknown = events.values().flatten().filter(|event| event.reply == Reply::Unknown).count();
        (events.values().map(Vec::len).sum::<usize>() - unknown, unknown)
    }

    /// Asks for every name once: so the last writes count.
    pub(crate) async fn look(&self, registry: &Registry, names: u8) {
        for number in 0..names {
            let mut tries = 0;
            while self.make(registry, number, Call::Find).await == Reply::Unknown {
                tries += 1;
                assert!(tries < 50, "the registry does not come back");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn perform(registry: &Registry, called: &str, call: Call) -> nsm_api::Result<Reply> {
    match call {
        Call::Register { owner, value } => {
            let endpoint = endpoint(called, "s", &format!("tcp://{owner}.{value}"));
            registry.register_endpoint(endpoint, Files::default(), caller(&owner.to_string())).await?;
            Ok(Reply::Done)
        }
        Call::Unregister { owner } => {
            registry.unregister_endpoint(endpoint(called, "s", ""), caller(&owner.to_string())).await?;
            Ok(Reply::Done)
        }
        Call::Find => {
            // By an index, not by name: so the path of most Finds is judged.
            let query = EndpointQuery { url: "tcp://".to_owned(), ..of_service("s") };
            let mut found = registry.find_endpoints(query, caller("x")).await?;
            while let Some(update) = found.next().await {
                let (update, _) = update?;
                if update.endpoint.name.as_str() == called {
                    let (owner, value) = update.endpoint.url.trim_start_matches("tcp://").split_once('.').unwrap();
                    return Ok(Reply::Found(Some((owner.parse().unwrap(), value.parse().unwrap()))));
                }
            }
            Ok(Reply::Found(None))
        }
    }
}

const CLIENTS: u8 = 6;
const NAMES: u8 = 4;

/// Every client makes `calls` calls at once with the others.
pub(crate) async fn storm(record: &Record, registries: &[Arc<Registry>], calls: usize, seed: u64) {
    let mut clients = tokio::task::JoinSet::new();
    for client in 0..CLIENTS {
        let (record, registry) = (record.clone(), registries[usize::from(client) % registries.len()].clone());
        let mut chance = Seeded(seed * 1000 + u64::from(client));
        clients.spawn(async move {
            for _ in 0..calls {
                record.act(&registry, client % 3, NAMES, &mut chance).await;
            }
        });
    }
    while let Some(done) = clients.join_next().await {
        done.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i7_histories_over_memory() {
    for seed in 0..20 {
        let (record, registry) = (Record::default(), Arc::new(Registry::new(Arc::new(MemoryEngine::new()), real())));
        storm(&record, &[registry], 25, seed).await;
        record.judge(&format!("memory, seed {seed}"));
    }
}

/// I7, C2: clients at once, and the machine stops somewhere in between, twice; every second disk is slow.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i7_histories_over_a_disk_that_crashes() {
    let (mut known, mut unknown) = (0, 0);
    for seed in 0..40 {
        let (disk, clock, mut chance, record) = (FaultDisk::default(), TestClock::new(), Seeded(seed), Record::default());
        if seed % 2 == 0 {
            disk.slow();
        }
        for life in 0..3 {
            let engine = Arc::new(open(&disk, clock).await.unwrap());
            let registry = Arc::new(Registry::new(engine, real()).with_expire_period(LONG * 10));
            if life > 0 {
                record.look(&registry, NAMES).await;
            }
            if life < 2 {
                disk.plan(1 + chance.below(120), Fault::Crash);
            }
            storm(&record, std::slice::from_ref(&registry), 5, seed * 3 + life).await;
            if life == 2 {
                record.look(&registry, NAMES).await;
            }
            drop(registry);
            disk.restart(&mut chance);
        }
        let (some, others) = record.judge(&format!("crashing disk, seed {seed}"));
        (known, unknown) = (known + some, unknown + others);
    }
    println!("{known} calls judged, {unknown} with unknown outcome");
    assert!(unknown > 50, "{unknown} calls of {known} met a crash");
}
