//! I7: clients that write to the registry about the same names, and whether what they were told could have happened one call after
//! the other. They meet the same losses as everybody; what they do not hear may or may not have been done.

use crate::{
    linear::{self, Call, Event, MAX_CALLS, Reply},
    net::Dialler,
    process::REGISTRY,
    world::World,
};
use futures::StreamExt;
use nsm_api::*;
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::time::{sleep, timeout};

/// Names that all write to.
const NAMES: u64 = 2;
/// Who writes.
const WRITERS: u8 = 3;
/// Pause between two calls of one writer, milliseconds.
const PAUSE: (u64, u64) = (500, 20_000);
/// Longest wait for one answer.
const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Default)]
struct Book {
    ticks: u64,
    values: u32,
    over: bool,
    events: BTreeMap<u64, Vec<Event>>,
}

/// What all writers did and heard.
pub(crate) struct Ledger(Arc<Mutex<Book>>);

fn lock(book: &Mutex<Book>) -> std::sync::MutexGuard<'_, Book> {
    book.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One writer.
struct Writer {
    world: World,
    registry: Arc<dyn RegistryApi>,
    owner: u8,
    book: Arc<Mutex<Book>>,
}

impl Ledger {
    /// All writers begin.
    pub(crate) fn begin(world: &World) -> Ledger {
        let book = Arc::new(Mutex::default());
        for owner in 1..=WRITERS {
            let writer = Writer::new(world, owner, &book);
            tokio::spawn(async move {
                while !lock(&writer.book).over {
                    sleep(writer.world.chance().millis(PAUSE.0, PAUSE.1)).await;
                    writer.act().await;
                }
            });
        }
        Ledger(book)
    }

    /// The last look, and the judgement.
    pub(crate) async fn judge(self, world: &World) -> Option<()> {
        lock(&self.0).over = true;
        sleep(PATIENCE + Duration::from_millis(PAUSE.1)).await;
        let reader = Writer::new(world, 0, &self.0);
        for name in 0..NAMES {
            reader.make(name, Call::Find).await;
        }
        let book = lock(&self.0);
        for (name, history) in &book.events {
            if let Err(reason) = linear::check(history) {
                world.violate(format!("I7: what was heard of {} cannot have happened: {reason}", called(*name)));
                return None;
            }
        }
        Some(())
    }
}

fn called(name: u64) -> String {
    format!("ledger-{name}")
}

impl Writer {
    fn new(world: &World, owner: u8, book: &Arc<Mutex<Book>>) -> Writer {
        let node = usize::from(owner) % world.topology().nodes.len();
        let dialler = Dialler::of_nobody(world, format!("writer-{owner}"), node);
        Writer { world: world.clone(), registry: dialler.registry(REGISTRY), owner, book: book.clone() }
    }

    async fn act(&self) {
        let name = self.world.chance().below(NAMES);
        let call = match self.world.chance().below(10) {
            0..5 => Call::Register { owner: self.owner, value: self.value() },
            5..7 => Call::Unregister { owner: self.owner },
            _ => Call::Find,
        };
        // The judge takes so many, and a last look.
        let room = lock(&self.book).events.get(&name).is_none_or(|events| events.len() + 1 + usize::from(WRITERS) < MAX_CALLS);
        if room {
            self.make(name, call).await;
        }
    }

    fn value(&self) -> u32 {
        let mut book = lock(&self.book);
        book.values += 1;
        book.values
    }

    fn tick(&self) -> u64 {
        let mut book = lock(&self.book);
        book.ticks += 1;
        book.ticks
    }

    async fn make(&self, name: u64, call: Call) {
        let begin = self.tick();
        let outcome = timeout(PATIENCE, self.perform(&called(name), call)).await;
        let reply = match outcome {
            Ok(Ok(reply)) => reply,
            Ok(Err(error)) if error.kind == Kind::Denied => Reply::Denied,
            _ if call == Call::Find => return,
            _ => Reply::Unknown,
        };
        let end = self.tick();
        lock(&self.book).events.entry(name).or_default().push(Event { call, reply, begin, end });
    }

    async fn perform(&self, called: &str, call: Call) -> Result<Reply> {
        let mut service = NetworkService::new(called.parse()?, Payload::Ethernet);
        match call {
            Call::Register { owner, value } => {
                service.payload = Payload::Other(format!("{owner}.{value}"));
                self.registry.register_service(service, Caller::default()).await?;
                Ok(Reply::Done)
            }
            Call::Unregister { .. } => {
                self.registry.unregister_service(service, Caller::default()).await?;
                Ok(Reply::Done)
            }
            Call::Find => {
                let query = ServiceQuery { name: Some(service.name), ..ServiceQuery::default() };
                let Some(update) = self.registry.find_services(query, Caller::default()).await?.next().await else {
                    return Ok(Reply::Found(None));
                };
                let found = update?.service;
                let state = found.payload.as_str().split_once('.').and_then(|(owner, value)| owner.parse().ok().zip(value.parse().ok()));
                Ok(Reply::Found(state))
            }
        }
    }
}
