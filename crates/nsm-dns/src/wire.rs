//! Messages: which questions we take, what is kept of an answer, and how a reply looks. Pure.

use hickory_proto::{
    op::{Edns, Message, MessageType, Metadata, OpCode, Query, ResponseCode},
    rr::{DNSClass, Name, RData, Record, RecordType},
};
use std::time::Duration;

/// Largest UDP message in bytes that we send or announce: fits the smallest usual MTU unfragmented.
pub const MAX_UDP_MESSAGE: u16 = 1232;
/// Bytes of a header.
const HEADER: usize = 12;

/// Most records of an answer that is remembered. With [`MAX_KEPT_SIZE`] it bounds the memory of all that is.
const MAX_KEPT_RECORDS: usize = 64;
/// Largest reply in bytes that is remembered.
const MAX_KEPT_SIZE: usize = 4096;

/// What is asked, apart from who asks.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Question {
    /// In lower case.
    pub(crate) name: Name,
    pub(crate) kind: RecordType,
    /// The asker wants signatures.
    pub(crate) dnssec_ok: bool,
    /// The asker validates itself.
    pub(crate) checking_disabled: bool,
    /// Whom we ask may ask others.
    pub(crate) recursion: bool,
}

impl Question {
    /// The question of a request that [`read`] let pass.
    pub(crate) fn of(request: &Message) -> Option<Question> {
        let query = request.queries.first()?;
        Some(Question {
            name: query.name().to_lowercase(),
            kind: query.query_type(),
            dnssec_ok: wants_signatures(request),
            checking_disabled: request.metadata.checking_disabled,
            recursion: true,
        })
    }

    /// A question of ours to a peer, which answers from its own knowledge.
    pub(crate) fn about_name(name: Name, kind: RecordType) -> Question {
        Question { name, kind, dnssec_ok: false, checking_disabled: false, recursion: false }
    }

    /// The same about another name.
    pub(crate) fn about(&self, name: Name) -> Question {
        Question { name, ..self.clone() }
    }

    /// The message that asks it.
    pub(crate) fn message(&self, id: u16, dialect: Dialect) -> Message {
        let mut message = Message::new(id, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = self.recursion;
        message.metadata.checking_disabled = self.checking_disabled;
        message.add_query(Query::query(self.name.clone(), self.kind));
        if dialect == Dialect::Extended {
            message.set_edns(edns(self.dnssec_ok));
        }
        message
    }

    /// Whether `reply` answers what [`Question::message`] asked. Servers that do not understand a message may leave
    /// the question out of their refusal.
    pub(crate) fn is_answered_by(&self, id: u16, reply: &Message) -> bool {
        let same = |query: &Query| query.name() == &self.name && query.query_type() == self.kind && query.query_class() == DNSClass::IN;
        let about = match reply.queries.as_slice() {
            [query] => same(query),
            [] => is_not_understood(reply),
            _ => false,
        };
        about && reply.metadata.id == id && reply.metadata.message_type == MessageType::Response
    }
}

/// With or without EDNS; some old servers refuse it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dialect {
    Extended,
    Plain,
}

/// Whether the server refused the form of the message, not its content.
pub(crate) fn is_not_understood(reply: &Message) -> bool {
    matches!(reply.metadata.response_code, ResponseCode::FormErr | ResponseCode::NotImp)
}

fn wants_signatures(message: &Message) -> bool {
    message.edns.as_ref().is_some_and(|edns| edns.flags().dnssec_ok)
}

fn edns(dnssec_ok: bool) -> Edns {
    let mut edns = Edns::new();
    edns.set_max_payload(MAX_UDP_MESSAGE).set_dnssec_ok(dnssec_ok);
    edns
}

/// What came from a workload.
#[derive(Debug)]
pub(crate) enum Incoming {
    /// A question to answer.
    Ask(Message),
    /// Something to refuse, with the refusal.
    Refuse(Message),
    /// Something that nobody may be answered for.
    Nothing,
}

/// Reads any bytes.
pub(crate) fn read(bytes: &[u8]) -> Incoming {
    let Ok(request) = Message::from_vec(bytes) else { return malformed(bytes) };
    if request.metadata.message_type == MessageType::Response {
        return Incoming::Nothing;
    }
    let code = match request.queries.as_slice() {
        _ if request.metadata.op_code != OpCode::Query => ResponseCode::NotImp,
        _ if request.version() > 0 => ResponseCode::BADVERS,
        [query] if query.query_class() != DNSClass::IN => ResponseCode::Refused,
        [query] if matches!(query.query_type(), RecordType::AXFR | RecordType::IXFR) => ResponseCode::Refused,
        [_] => return Incoming::Ask(request),
        _ => ResponseCode::FormErr,
    };
    Incoming::Refuse(refusal(&request, code))
}

fn malformed(bytes: &[u8]) -> Incoming {
    match bytes {
        [high, low, flags, ..] if bytes.len() >= HEADER && flags & 0x80 == 0 => {
            Incoming::Refuse(Message::error_msg(u16::from_be_bytes([*high, *low]), OpCode::Query, ResponseCode::FormErr))
        }
        _ => Incoming::Nothing,
    }
}

/// An empty reply with `code`.
pub(crate) fn refusal(request: &Message, code: ResponseCode) -> Message {
    let mut reply = Message::response(request.metadata.id, request.metadata.op_code);
    reply.metadata = Metadata::response_from_request(&request.metadata);
    reply.metadata.recursion_available = true;
    reply.metadata.response_code = code;
    reply.queries.clone_from(&request.queries);
    reply.edns = request.edns.as_ref().map(|_| edns(wants_signatures(request)));
    reply
}

/// What an answer is worth; the greater of two is preferred.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Verdict {
    /// Nobody knows.
    Failed,
    /// There is no such name.
    NoName,
    /// The name has no such record.
    NoRecord,
    /// Here it is.
    Found,
}

/// A reply without the record, an alias apart, is "no"; unless it refers to other servers: that is no answer at all.
fn verdict(kind: RecordType, reply: &Message) -> Verdict {
    let is_wanted = |record: &Record| kind == RecordType::ANY || record.record_type() == kind;
    let is_referral = reply.answers.is_empty() && !reply.authorities.is_empty() && negative_ttl(&reply.authorities).is_none();
    match reply.metadata.response_code {
        ResponseCode::NoError if reply.answers.iter().any(is_wanted) => Verdict::Found,
        ResponseCode::NoError if !is_referral => Verdict::NoRecord,
        ResponseCode::NXDomain => Verdict::NoName,
        _ => Verdict::Failed,
    }
}

/// How long a "no" holds by the record of its zone, in seconds.
fn negative_ttl(authorities: &[Record]) -> Option<u32> {
    authorities.iter().find_map(|record| match &record.data {
        RData::SOA(soa) => Some(record.ttl.min(soa.minimum)),
        _ => None,
    })
}

/// What a server sent.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) message: Message,
    /// In bytes.
    pub(crate) size: usize,
}

impl Reply {
    /// `None` when it is malformed.
    pub(crate) fn read(bytes: &[u8]) -> Option<Reply> {
        Message::from_vec(bytes).ok().map(|message| Reply { message, size: bytes.len() })
    }
}

/// What was found out, without what concerns one asker only.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    /// The name that was asked for in the end: the asker's, or that below a search domain.
    name: Name,
    verdict: Verdict,
    code: ResponseCode,
    answers: Vec<Record>,
    authorities: Vec<Record>,
    /// Of the reply, in bytes.
    size: usize,
    /// Every server that was asked has said so. A "no" that is not sure is told, but not remembered.
    pub(crate) sure: bool,
    /// It is about a name of our own.
    own: bool,
}

impl Answer {
    /// Nobody answered.
    pub(crate) fn failure(name: &Name) -> Answer {
        let (answers, authorities) = (Vec::new(), Vec::new());
        let (verdict, code) = (Verdict::Failed, ResponseCode::ServFail);
        Answer { name: name.clone(), verdict, code, answers, authorities, size: 0, sure: false, own: false }
    }

    /// What we know ourselves of a name that there is.
    pub(crate) fn own(name: &Name, answers: Vec<Record>) -> Answer {
        let verdict = if answers.is_empty() { Verdict::NoRecord } else { Verdict::Found };
        Answer { verdict, code: ResponseCode::NoError, answers, sure: true, own: true, ..Answer::failure(name) }
    }

    /// There is no such name, as we know ourselves.
    pub(crate) fn absent(name: &Name) -> Answer {
        Answer { verdict: Verdict::NoName, code: ResponseCode::NXDomain, sure: true, own: true, ..Answer::failure(name) }
    }

    /// The text records.
    pub(crate) fn texts(&self) -> impl Iterator<Item = String> {
        self.answers.iter().filter_map(|record| match &record.data {
            RData::TXT(text) => Some(text.to_string()),
            _ => None,
        })
    }
    /// What the records say.
    #[cfg(test)]
    pub(crate) fn shown(&self) -> Vec<String> {
        self.answers.iter().map(|record| record.data.to_string()).collect()
    }

    /// We do not pass this question on.
    pub(crate) fn refused(name: &Name) -> Answer {
        Answer { code: ResponseCode::Refused, ..Answer::failure(name) }
    }

    /// What a server said. Additional records are left out: nobody asked for them.
    pub(crate) fn from_reply(question: &Question, reply: Reply) -> Answer {
        let (message, size) = (reply.message, reply.size);
        let verdict = verdict(question.kind, &message);
        if verdict == Verdict::Failed {
            return Answer::failure(&question.name);
        }
        let (code, name) = (message.metadata.response_code, question.name.clone());
        Answer { name, verdict, code, answers: message.answers, authorities: message.authorities, size, sure: true, own: false }
    }

    pub(crate) fn verdict(&self) -> Verdict {
        self.verdict
    }

    /// How long it holds by its records; `None` when that is not said, for what may be otherwise at once, and for what
    /// is too large to be kept.
    pub(crate) fn lifetime(&self) -> Option<Duration> {
        if self.size > MAX_KEPT_SIZE || self.answers.len() + self.authorities.len() > MAX_KEPT_RECORDS {
            return None;
        }
        let shortest = self.answers.iter().map(|record| record.ttl).min();
        let seconds = match self.verdict {
            Verdict::Found => shortest,
            Verdict::NoRecord | Verdict::NoName if self.sure => negative_ttl(&self.authorities).map(|ttl| ttl.min(shortest.unwrap_or(ttl))),
            _ => None,
        };
        seconds.filter(|seconds| *seconds > 0).map(|seconds| Duration::from_secs(seconds.into()))
    }

    /// The reply to `request`, `age` after the answer was found. The asker sees the name as it wrote it.
    pub(crate) fn reply(&self, request: &Message, age: Duration) -> Message {
        let mut reply = refusal(request, self.code);
        reply.metadata.authoritative = self.own;
        let age = u32::try_from(age.as_secs()).unwrap_or(u32::MAX);
        let asked = request.queries.first().map_or(&self.name, Query::name);
        let aged = |record: &Record| {
            let mut record = record.clone();
            record.ttl = record.ttl.saturating_sub(age);
            if record.name == self.name {
                record.name.clone_from(asked);
            }
            record
        };
        reply.answers = self.answers.iter().map(aged).collect();
        reply.authorities = self.authorities.iter().map(aged).collect();
        reply
    }
}

/// The bytes of a reply of at most `limit` bytes; without its records, and marked, where it is longer.
pub(crate) fn encode(reply: &Message, limit: u16) -> Option<Vec<u8>> {
    let whole = reply.to_vec().ok().filter(|bytes| bytes.len() <= usize::from(limit));
    whole.or_else(|| reply.truncate().to_vec().ok())
}
