//! From a question to its answer: cache, search domains, all servers at once.

use crate::{
    exchange::exchange,
    lock,
    table::{MAX_PEERS, MAX_SERVERS, Server, Table, View},
    wire::{self, Answer, Incoming, MAX_UDP_MESSAGE, Question, Verdict},
    zone::{self, MARK, Zone},
};
use futures::{
    FutureExt, StreamExt,
    future::{BoxFuture, Shared, WeakShared},
    stream::{self, FuturesUnordered},
};
use hickory_proto::{
    op::{Message, ResponseCode},
    rr::{Name, RecordType},
};
use nsm_api::DnsConfig;
use serde::Serialize;
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::{
    sync::Semaphore,
    time::{Instant, timeout_at},
};

/// A question has its answer, or SERVFAIL, after this time.
pub const QUERY_TIME: Duration = Duration::from_secs(5);
/// How long a "no" of one server waits for a better answer of the others.
pub const GRACE: Duration = Duration::from_secs(1);
/// Most sockets towards servers at a time; further ones wait.
pub const MAX_SOCKETS: usize = 512;

/// How a message came, which decides how long its reply may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Carrier {
    Udp,
    Tcp,
}

/// A server that questions go to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ServerStatus {
    /// Where it listens.
    pub address: SocketAddr,
    /// Questions since its last reply that waited for it in vain; 0 when it is well.
    pub unanswered: u32,
}

/// What a resolver knows and has done.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    /// Where it listens.
    pub listen: SocketAddr,
    /// Configurations by owner.
    pub configs: BTreeMap<String, Vec<DnsConfig>>,
    /// The servers that questions go to.
    pub servers: Vec<ServerStatus>,
    /// The search domains that are tried, in order.
    pub search_domains: Vec<String>,
    /// Entries of the configurations that are not used: malformed, ourselves, or over a bound.
    pub ignored: Vec<String>,
    /// Answers that are remembered.
    pub cached: usize,
    /// Questions so far.
    pub queries: u64,
    /// Of these, answered from memory.
    pub cache_hits: u64,
    /// Questions without an answer of any server.
    pub failures: u64,
    /// Questions that came back to us.
    pub loops: u64,
    /// Messages that were malformed or of a kind that is not served.
    pub refused: u64,
    /// Questions that were turned away because too many were under way.
    pub overloads: u64,
    /// Exchanges with a server that brought no reply.
    pub server_failures: u64,
}

#[derive(Debug, Default)]
struct Counters {
    queries: AtomicU64,
    cache_hits: AtomicU64,
    failures: AtomicU64,
    loops: AtomicU64,
    refused: AtomicU64,
    overloads: AtomicU64,
    server_failures: AtomicU64,
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Relaxed);
}

/// An answer that is being looked for, for all who want it.
type Search = BoxFuture<'static, Arc<Answer>>;
type Flight = Shared<Search>;
/// What is recognised when it comes back.
type Mark = (u16, Name, RecordType);

pub(crate) struct Engine {
    listen: SocketAddr,
    /// Names of our own; then the servers are peers that have names of theirs.
    zone: Option<Zone>,
    pub(crate) table: Table,
    flights: Mutex<HashMap<Question, WeakShared<Search>>>,
    /// The questions that we have sent and wait for.
    asked: Mutex<HashSet<Mark>>,
    sockets: Semaphore,
    counters: Counters,
}

impl Engine {
    pub(crate) fn new(listen: SocketAddr, zone: Option<Zone>) -> Engine {
        let most = if zone.is_some() { MAX_PEERS } else { MAX_SERVERS };
        Engine {
            listen,
            zone,
            table: Table::new(listen, most),
            flights: Mutex::default(),
            asked: Mutex::default(),
            sockets: Semaphore::new(MAX_SOCKETS),
            counters: Counters::default(),
        }
    }

    /// The reply to any bytes; `None` when there must be none.
    pub(crate) async fn answer(self: &Arc<Self>, bytes: &[u8], carrier: Carrier) -> Option<Vec<u8>> {
        let request = match self.read(bytes) {
            Ok(request) => request,
            Err(refusal) => return refusal,
        };
        let (answer, age) = self.find(&request).await?;
        let limit = match carrier {
            Carrier::Udp => request.max_payload().min(MAX_UDP_MESSAGE),
            Carrier::Tcp => u16::MAX,
        };
        wire::encode(&answer.reply(&request, age), limit)
    }

    /// The reply to any bytes when there is no time for them.
    pub(crate) fn turn_away(&self, bytes: &[u8]) -> Option<Vec<u8>> {
        count(&self.counters.overloads);
        match self.read(bytes) {
            Ok(request) => wire::encode(&wire::refusal(&request, ResponseCode::ServFail), MAX_UDP_MESSAGE),
            Err(refusal) => refusal,
        }
    }

    /// A question to answer; or the refusal of anything else, if there may be one.
    fn read(&self, bytes: &[u8]) -> Result<Message, Option<Vec<u8>>> {
        let refusal = match wire::read(bytes) {
            Incoming::Ask(request) => {
                count(&self.counters.queries);
                return Ok(request);
            }
            Incoming::Refuse(refusal) => wire::encode(&refusal, MAX_UDP_MESSAGE),
            Incoming::Nothing => None,
        };
        count(&self.counters.refused);
        Err(refusal)
    }

    /// The answer and its age.
    async fn find(self: &Arc<Self>, request: &Message) -> Option<(Arc<Answer>, Duration)> {
        let mut question = Question::of(request)?;
        if let Some(zone) = &self.zone {
            if let Some(answer) = zone.answer(&question) {
                return Some((Arc::new(answer), Duration::ZERO));
            }
            question.recursion = false;
            if !request.metadata.recursion_desired || self.table.view().servers.is_empty() {
                return Some((Arc::new(unknown(zone, &question.name)), Duration::ZERO));
            }
        }
        let known = lock(&self.table.view().cache).get(&question, Instant::now());
        if known.is_some() {
            count(&self.counters.cache_hits);
            return known;
        }
        let mark = (request.metadata.id, question.name.clone(), question.kind);
        let is_loop = lock(&self.asked).contains(&mark);
        if is_loop {
            count(&self.counters.loops);
        }
        if is_loop || !request.metadata.recursion_desired {
            return Some((Arc::new(Answer::refused(&question.name)), Duration::ZERO));
        }
        let foreign = self.zone.as_ref().filter(|zone| !zone.covers(&question.name)).map(|_| question.name.clone());
        let mut answer = self.flight(question).await;
        if let (Verdict::Failed, Some(name)) = (answer.verdict(), foreign) {
            answer = Arc::new(Answer::refused(&name)); // as the peers did: others know it, not we
        } else if answer.verdict() == Verdict::Failed {
            count(&self.counters.failures);
        }
        Some((answer, Duration::ZERO))
    }

    /// What the peers know of a name, whatever we know.
    pub(crate) async fn elsewhere(self: &Arc<Self>, name: &str) -> Elsewhere {
        let Some(name) = zone::parse(name).filter(|_| !self.table.view().servers.is_empty()) else { return Elsewhere::Nobody };
        let answer = self.flight(Question::about_name(name, RecordType::TXT)).await;
        match answer.verdict() {
            Verdict::Failed | Verdict::NoName => Elsewhere::Nobody,
            Verdict::NoRecord => Elsewhere::Somebody(None),
            Verdict::Found => Elsewhere::Somebody(answer.texts().find_map(|text| text.strip_prefix(MARK).map(str::to_owned))),
        }
    }

    /// Joins the search for this answer, or begins it. It lives as long as somebody waits for it.
    fn flight(self: &Arc<Self>, question: Question) -> Flight {
        let mut flights = lock(&self.flights);
        if let Some(flight) = flights.get(&question).and_then(WeakShared::upgrade) {
            return flight;
        }
        let landing = Landing { engine: self.clone(), question: question.clone() };
        let flight = async move { landing.engine.search(&landing.question).await }.boxed().shared();
        if let Some(weak) = flight.downgrade() {
            flights.insert(question, weak);
        }
        flight
    }

    /// Asks with the present table, and again when nothing was found and the table has changed meanwhile.
    async fn search(&self, question: &Question) -> Arc<Answer> {
        let deadline = Instant::now() + QUERY_TIME;
        loop {
            let view = self.table.view();
            let answer = Arc::new(self.candidates(&view, question, deadline).await);
            let now = Instant::now();
            let is_stale = !Arc::ptr_eq(&view, &self.table.view());
            if answer.verdict() != Verdict::Found && is_stale && now < deadline {
                continue;
            }
            // What peers know is theirs to change: a workload may have gone a moment ago.
            if self.zone.is_none() {
                lock(&view.cache).put(question.clone(), answer.clone(), now);
            }
            return answer;
        }
    }

    /// The best answer about the name as it is and below the search domains.
    async fn candidates(&self, view: &View, question: &Question, deadline: Instant) -> Answer {
        let mut best = Best::default();
        for names in view.candidates(&question.name) {
            let most = names.len().max(1);
            let asked = names.into_iter().map(|name| self.servers(view, question.about(name), deadline));
            let mut answers = stream::iter(asked).buffered(most);
            while let Some(answer) = answers.next().await {
                if answer.verdict() >= Verdict::NoRecord {
                    return answer;
                }
                best.add(answer);
            }
        }
        best.answer(&question.name)
    }

    /// The best answer of all servers about one name.
    async fn servers(&self, view: &View, question: Question, deadline: Instant) -> Answer {
        let question = &question;
        let ask = |server| async move { (server, self.ask(server, question).await) };
        let mut asked: FuturesUnordered<_> = view.servers.iter().map(ask).collect();
        let mut awaited = awaited(&view.servers);
        let (mut best, mut until) = (Best::default(), deadline);
        while !awaited.is_empty() {
            let Ok(Some((server, answer))) = timeout_at(until, asked.next()).await else { break };
            match answer.verdict() {
                Verdict::Found => return answer,
                Verdict::Failed => {}
                Verdict::NoName | Verdict::NoRecord => until = until.min(Instant::now() + GRACE),
            }
            awaited.retain(|one| *one != server);
            best.add(answer);
        }
        if !asked.is_empty() {
            best.add(Answer::failure(&question.name));
        }
        best.answer(&question.name)
    }

    async fn ask(&self, server: &Server, question: &Question) -> Answer {
        let Ok(_socket) = self.sockets.acquire().await else { return Answer::failure(&question.name) };
        let mut asked = Asked::new(self, server, question);
        match exchange(server.address, asked.mark.0, question).await {
            Ok(reply) => {
                asked.has_reply = true;
                server.has_replied();
                Answer::from_reply(question, reply)
            }
            Err(error) => {
                count(&self.counters.server_failures);
                tracing::debug!(server = %server.address, name = %question.name, %error, "no DNS reply");
                Answer::failure(&question.name)
            }
        }
    }

    pub(crate) fn status(&self) -> Status {
        let (view, now) = (self.table.view(), |counter: &AtomicU64| counter.load(Relaxed));
        Status {
            listen: self.listen,
            configs: self.table.owners(),
            servers: view.servers.iter().map(Server::status).collect(),
            search_domains: view.search.iter().map(Name::to_ascii).collect(),
            ignored: view.ignored.clone(),
            cached: lock(&view.cache).len(),
            queries: now(&self.counters.queries),
            cache_hits: now(&self.counters.cache_hits),
            failures: now(&self.counters.failures),
            loops: now(&self.counters.loops),
            refused: now(&self.counters.refused),
            overloads: now(&self.counters.overloads),
            server_failures: now(&self.counters.server_failures),
        }
    }
}

/// What peers know of a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Elsewhere {
    /// None of them has it, or says so.
    Nobody,
    /// One has it, for this holder; for whom is not said by other implementations.
    Somebody(Option<String>),
}

/// What is said of a name that we do not have when nobody else is asked.
fn unknown(zone: &Zone, name: &Name) -> Answer {
    if zone.covers(name) { Answer::absent(name) } else { Answer::refused(name) }
}

/// The servers that must have answered before "no" is believed: all that usually answer, or all.
fn awaited(servers: &[Server]) -> Vec<&Server> {
    let usual: Vec<&Server> = servers.iter().filter(|server| server.is_awaited()).collect();
    if usual.is_empty() { servers.iter().collect() } else { usual }
}

/// The best of several answers that found nothing.
#[derive(Default)]
struct Best {
    answer: Option<Answer>,
    /// One of them was not sure.
    doubt: bool,
}

impl Best {
    /// The earlier one stays where both are worth the same.
    fn add(&mut self, answer: Answer) {
        self.doubt |= !answer.sure;
        if self.answer.as_ref().is_none_or(|best| best.verdict() < answer.verdict()) {
            self.answer = Some(answer);
        }
    }

    /// The best one, about `name` where there was none.
    fn answer(self, name: &Name) -> Answer {
        let mut answer = self.answer.unwrap_or_else(|| Answer::failure(name));
        answer.sure &= !self.doubt;
        answer
    }
}

/// Takes a search off the list when it has ended, also when all who waited have left.
struct Landing {
    engine: Arc<Engine>,
    question: Question,
}

impl Drop for Landing {
    fn drop(&mut self) {
        lock(&self.engine.flights).remove(&self.question);
    }
}

/// A question under way to one server: recognised when it comes back to us, and noticed when nothing came of it.
struct Asked<'a> {
    engine: &'a Engine,
    server: &'a Server,
    mark: Mark,
    since: Instant,
    has_reply: bool,
}

impl<'a> Asked<'a> {
    /// A fresh id: nobody can guess it, and so nobody can forge the reply.
    fn new(engine: &'a Engine, server: &'a Server, question: &Question) -> Asked<'a> {
        let mark = (rand::random(), question.name.clone(), question.kind);
        lock(&engine.asked).insert(mark.clone());
        Asked { engine, server, mark, since: Instant::now(), has_reply: false }
    }
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        lock(&self.engine.asked).remove(&self.mark);
        if !self.has_reply && self.since.elapsed() >= GRACE {
            self.server.was_silent();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::op::{MessageType, OpCode, Query};
    use tokio::net::UdpSocket;

    /// Who asked has left: nothing of the question stays, on the list or in the air.
    #[tokio::test]
    async fn a_search_ends_with_the_last_who_waits_for_it() {
        let silent = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let engine = Arc::new(Engine::new("127.0.0.1:53".parse().unwrap(), None));
        let config = DnsConfig { dns_server_ips: vec![silent.local_addr().unwrap().to_string()], ..DnsConfig::default() };
        engine.table.set("c", &[config]).unwrap();
        let mut request = Message::new(1, MessageType::Query, OpCode::Query);
        request.metadata.recursion_desired = true;
        request.add_query(Query::query(Name::from_ascii("a.b.").unwrap(), RecordType::A));
        let bytes = request.to_vec().unwrap();
        let (first, second) = (engine.answer(&bytes, Carrier::Udp), engine.answer(&bytes, Carrier::Udp));
        let mut both = Box::pin(futures::future::join(first, second));
        let mut buffer = [0; 512];
        tokio::select! {
            _ = &mut both => panic!("nobody answers"),
            length = silent.recv(&mut buffer) => assert!(length.unwrap() > 0),
        }
        let held = || (lock(&engine.flights).len(), lock(&engine.asked).len(), MAX_SOCKETS - engine.sockets.available_permits());
        assert_eq!(held(), (1, 1, 1), "two who ask the same wait for one search");
        drop(both);
        assert_eq!((held(), Arc::strong_count(&engine)), ((0, 0, 0), 1));
    }
}
