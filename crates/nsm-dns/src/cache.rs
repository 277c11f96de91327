//! Answers that still hold, positive and negative. Two halves: when the young one is full it becomes the old one and
//! what was old is forgotten; so the size is bounded without any search for a victim.

use crate::wire::{Answer, Question, Verdict};
use std::{collections::HashMap, mem, sync::Arc, time::Duration};
use tokio::time::Instant;

/// Most answers that are remembered.
pub const MAX_CACHED: usize = 2048;
/// An answer is asked for again after this time, whatever its records say.
pub const MAX_TTL: Duration = Duration::from_secs(3600);
/// The same for a "no": names of workloads appear at any time.
pub const MAX_NEGATIVE_TTL: Duration = Duration::from_secs(30);

#[derive(Clone, Debug)]
struct Entry {
    answer: Arc<Answer>,
    since: Instant,
    until: Instant,
}

/// The answers of one table of servers. A changed table begins with an empty one.
#[derive(Debug, Default)]
pub(crate) struct Cache {
    young: HashMap<Question, Entry>,
    old: HashMap<Question, Entry>,
}

impl Cache {
    /// The answer and its age at `now`.
    pub(crate) fn get(&self, question: &Question, now: Instant) -> Option<(Arc<Answer>, Duration)> {
        let entry = self.young.get(question).or_else(|| self.old.get(question))?;
        (now < entry.until).then(|| (entry.answer.clone(), now.saturating_duration_since(entry.since)))
    }

    /// Remembers an answer that was found at `now`, if it says for how long.
    pub(crate) fn put(&mut self, question: Question, answer: Arc<Answer>, now: Instant) {
        let Some(lifetime) = answer.lifetime() else { return };
        let most = if answer.verdict() == Verdict::Found { MAX_TTL } else { MAX_NEGATIVE_TTL };
        if self.young.len() >= MAX_CACHED / 2 {
            self.old = mem::take(&mut self.young);
        }
        self.young.insert(question, Entry { answer, since: now, until: now + lifetime.min(most) });
    }

    /// How many are remembered.
    pub(crate) fn len(&self) -> usize {
        self.young.len() + self.old.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Reply;
    use hickory_proto::{
        op::{Message, OpCode, Query, ResponseCode},
        rr::{
            Name, RData, Record, RecordType,
            rdata::{A, SOA},
        },
    };

    fn request(name: &str) -> Message {
        let mut request = Message::response(1, OpCode::Query);
        request.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
        request
    }

    fn question(name: &str) -> Question {
        Question::of(&request(name)).unwrap()
    }

    fn yes(name: &str, ttl: u32) -> Arc<Answer> {
        sized(name, &[ttl + 5, ttl], 99)
    }

    /// As many addresses as `ttls`, in a reply of `size` bytes.
    fn sized(name: &str, ttls: &[u32], size: usize) -> Arc<Answer> {
        let mut message = request(name);
        let question = Question::of(&message).unwrap();
        let record = |ttl: &u32| Record::from_rdata(question.name.clone(), *ttl, RData::A(A::new(1, 1, 1, 1)));
        message.add_answers(ttls.iter().map(record));
        Arc::new(Answer::from_reply(&question, Reply { message, size }))
    }

    fn no(ttl: u32, minimum: u32) -> Answer {
        let mut reply = request("a.");
        reply.metadata.response_code = ResponseCode::NXDomain;
        let soa = SOA::new(Name::root(), Name::root(), 1, 1, 1, 1, minimum);
        reply.add_authority(Record::from_rdata(Name::root(), ttl, RData::SOA(soa)));
        Answer::from_reply(&question("a."), Reply { message: reply, size: 99 })
    }

    /// The seconds for which an answer is remembered.
    fn seconds(answer: Arc<Answer>) -> u64 {
        let (mut cache, begun) = (Cache::default(), Instant::now());
        cache.put(question("a."), answer, begun);
        let holds = |seconds: &u64| cache.get(&question("a."), begun + Duration::from_secs(*seconds)).is_some();
        (0..10_000).take_while(holds).count() as u64
    }

    #[test]
    fn an_answer_holds_as_long_as_its_records_say_within_bounds() {
        let mut unsure = no(9, 9);
        unsure.sure = false;
        let failure = Answer::failure(&Name::root());
        let table = [
            ("the shortest of its records", yes("a.", 7), 7),
            ("not at all", yes("a.", 0), 0),
            ("at most", yes("a.", 1_000_000), MAX_TTL.as_secs()),
            ("a no, by the record of its zone", Arc::new(no(9, 600)), 9),
            ("or that zone's minimum", Arc::new(no(600, 8)), 8),
            ("a no at most", Arc::new(no(600, 600)), MAX_NEGATIVE_TTL.as_secs()),
            ("a no while one server is silent", Arc::new(unsure), 0),
            ("what is large", sized("a.", &[60], 4097), 0),
            ("what is much", sized("a.", &[60; 65], 99), 0),
            ("a failure", Arc::new(failure), 0),
        ];
        for (what, answer, expected) in table {
            assert_eq!(seconds(answer), expected, "{what}");
        }
    }

    #[test]
    fn the_asker_is_told_what_time_is_left() {
        let (mut cache, begun) = (Cache::default(), Instant::now());
        cache.put(question("a."), yes("a.", 60), begun);
        let (answer, age) = cache.get(&question("A."), begun + Duration::from_secs(40)).unwrap();
        let left: Vec<u32> = answer.reply(&request("A."), age).answers.iter().map(|record| record.ttl).collect();
        assert_eq!(left, [25, 20]);
    }

    #[test]
    fn it_is_bounded_and_keeps_the_newest() {
        let (mut cache, now) = (Cache::default(), Instant::now());
        let name = |n: usize| format!("n{n}.");
        for n in 0..3 * MAX_CACHED {
            cache.put(question(&name(n)), yes(&name(n), 60), now);
            assert!(cache.len() <= MAX_CACHED);
        }
        let kept = (0..3 * MAX_CACHED).filter(|n| cache.get(&question(&name(*n)), now).is_some());
        assert!(kept.eq(2 * MAX_CACHED..3 * MAX_CACHED));
    }
}
