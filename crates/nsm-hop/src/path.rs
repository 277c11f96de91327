//! The rules by which a hop enters a path, signs it and hands it back. Pure functions.
//!
//! Not here: tokens themselves (the issuer makes them) and policy (admission decides).

use nsm_api::{Connection, ConnectionId, Error, HopName, Path, Result, Segment};
use std::time::{Duration, SystemTime};

/// Makes `connection` this hop's own: appends or takes over the segment after the caller's, and moves id and
/// index there. Answers the caller's index, which [`leave`] needs. `id` says what the connection is called here; it
/// is told the path, and the id that the path gives us.
///
/// A segment that carries our name keeps its id if `id` agrees: that is what makes a restart of this hop hitless.
pub fn enter(
    connection: &mut Connection,
    name: &HopName,
    id: impl FnOnce(&Path, Option<&ConnectionId>) -> Result<ConnectionId>,
) -> Result<u32> {
    let path = &mut connection.path;
    let caller_index = path.index;
    let Some(caller) = path.segments.get(caller_index as usize) else {
        return Err(refused(connection, "its path has no segment of the sender", "put your own segment first and send its index"));
    };
    if caller.id != connection.id {
        let reason = format!("its path calls it {:?} at the sender's segment", caller.id.as_str());
        return Err(refused(connection, reason, "send the id of your own segment"));
    }
    if caller.name == *name {
        let reason = format!("its sender is called {name}, as this process is");
        return Err(refused(connection, reason, "give every process a --name of its own"));
    }
    let own = caller_index as usize + 1;
    let named = path.segments.get(own).filter(|segment| segment.name == *name).map(|segment| &segment.id);
    let id = id(path, named)?;
    if named != Some(&id) {
        let segment = Segment::new(name.clone(), id);
        // Another process may have stood here (a forwarder that has been replaced). What lies behind stays until
        // an endpoint trims it: it may be the way to the same endpoint.
        match path.segments.get_mut(own) {
            Some(former) => *former = segment,
            None => path.segments.push(segment),
        }
    }
    path.index += 1;
    connection.id = path.segments[own].id.clone();
    Ok(caller_index)
}

/// Starts a path at this hop: the client's own segment.
pub fn begin(connection: &mut Connection, name: &HopName) {
    if connection.path.segments.is_empty() {
        connection.path.segments.push(Segment::new(name.clone(), connection.id.clone()));
    }
    connection.path.index = 0;
}

/// Hands a connection back to the hop at `index`: its index, its id.
pub fn leave(connection: &mut Connection, index: u32) {
    if let Some(segment) = connection.path.segments.get(index as usize) {
        connection.id = segment.id.clone();
        connection.path.index = index;
    }
}

/// Drops everything behind the own segment: the path ends here.
pub fn trim(path: &mut Path) {
    path.segments.truncate(path.index as usize + 1);
}

/// Whether `answer` is an answer to `sent`: same id, same index, and the way up to us untouched.
pub fn check_answer(sent: &Connection, answer: &Connection) -> Result<()> {
    let own = sent.path.index as usize;
    let same_way = sent.path.segments.len() > own
        && answer.path.segments.len() > own
        && sent.path.segments[..=own]
            .iter()
            .zip(&answer.path.segments)
            .all(|(ours, theirs)| ours.id == theirs.id && ours.name == theirs.name);
    if sent.id == answer.id && sent.path.index == answer.path.index && same_way {
        return Ok(());
    }
    Err(Error::new(
        nsm_api::Kind::Internal,
        format!("connection {:?}", sent.id.as_str()),
        "the next hop answered with another id or another path",
        "check that the next hop is a Network Service Mesh process of a compatible version",
    ))
}

/// Time until the first segment ends; zero when one has ended, `None` when no segment says.
pub fn life(path: &Path, now: SystemTime) -> Option<Duration> {
    path.segments
        .iter()
        .map(|segment| segment.expires.map(|end| end.duration_since(now).unwrap_or_default()))
        .collect::<Option<Vec<_>>>()?
        .into_iter()
        .min()
}

/// When the process at the path's index asks again: a share of what is left that grows along the path, so that
/// a client is early and the hops behind it are not asked twice. `None` means at once.
pub fn refresh_delay(path: &Path, now: SystemTime) -> Option<Duration> {
    let left = life(path, now).filter(|left| !left.is_zero())?;
    let hops = path.segments.len();
    let share = if hops <= 1 { 1.0 / 3.0 } else { 0.2 + 0.2 * f64::from(path.index) / hops as f64 };
    Some(left.mul_f64(share))
}

fn refused(connection: &Connection, reason: impl Into<String>, fix: &str) -> Error {
    Error::invalid(format!("connection {:?}", connection.id.as_str()), reason, fix)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> HopName {
        HopName::new(text).unwrap()
    }
    fn id(text: &str) -> ConnectionId {
        ConnectionId::new(text).unwrap()
    }
    fn connection(segments: &[(&str, &str)], index: u32) -> Connection {
        let mut connection = Connection::new(id(segments[index as usize].1), "svc".parse().unwrap());
        connection.path.index = index;
        connection.path.segments = segments.iter().map(|(n, i)| Segment::new(name(n), id(i))).collect();
        connection
    }
    fn shape(connection: &Connection) -> String {
        let segments: Vec<_> = connection.path.segments.iter().map(|s| format!("{}:{}", s.name, s.id)).collect();
        format!("{} {} [{}]", connection.id, connection.path.index, segments.join(" "))
    }

    /// wire.md 2.2, each branch.
    #[test]
    fn entering_appends_takes_over_or_keeps() {
        for (before, index, after) in [
            (&[("c", "c0")][..], 0, "new 1 [c:c0 m:new]"),
            (&[("c", "c0"), ("m", "m7"), ("f", "f7")], 0, "m7 1 [c:c0 m:m7 f:f7]"),
            (&[("c", "c0"), ("x", "x7"), ("f", "f7")], 0, "new 1 [c:c0 m:new f:f7]"),
        ] {
            let mut connection = connection(before, index);
            let kept = |_: &Path, named: Option<&ConnectionId>| Ok(named.cloned().unwrap_or(id("new")));
            assert_eq!(enter(&mut connection, &name("m"), kept).unwrap(), index);
            assert_eq!(shape(&connection), after);
            leave(&mut connection, index);
            assert_eq!(connection.id.as_str(), "c0");
        }
    }

    #[test]
    fn an_id_that_is_not_agreed_to_is_replaced_with_all_that_was_said_of_it() {
        let mut connection = connection(&[("c", "c0"), ("m", "m7"), ("f", "f7")], 0);
        connection.path.segments[1].token = "of somebody else".to_owned();
        enter(&mut connection, &name("m"), |_, named| Ok(id(&format!("not-{}", named.unwrap())))).unwrap();
        assert_eq!(shape(&connection), "not-m7 1 [c:c0 m:not-m7 f:f7]");
        assert!(connection.path.segments[1].token.is_empty());
        let refused = |_: &Path, _: Option<&ConnectionId>| Err(Error::internal("it", "refused"));
        leave(&mut connection, 0);
        assert!(enter(&mut connection, &name("m"), refused).is_err());
    }

    #[test]
    fn entering_refuses_paths_that_do_not_add_up() {
        let mut no_segment = Connection::new(id("a"), "svc".parse().unwrap());
        let mut wrong_id = connection(&[("c", "c0")], 0);
        wrong_id.id = id("other");
        let mut own_name = connection(&[("m", "c0")], 0);
        for connection in [&mut no_segment, &mut wrong_id, &mut own_name] {
            assert!(enter(connection, &name("m"), |_, _| Ok(id("new"))).is_err());
        }
    }

    #[test]
    fn refresh_comes_earlier_nearer_the_client() {
        let now = SystemTime::now();
        let mut path = connection(&[("c", "1"), ("m", "2"), ("f", "3"), ("e", "4")], 0).path;
        assert_eq!(refresh_delay(&path, now), None, "a segment without expiry asks for a refresh at once");
        for segment in &mut path.segments {
            segment.expires = Some(now + Duration::from_secs(600));
        }
        assert_eq!(refresh_delay(&path, now), Some(Duration::from_secs(120)));
        path.index = 2;
        assert_eq!(refresh_delay(&path, now), Some(Duration::from_secs(180)));
        path.segments[3].expires = Some(now);
        assert_eq!(refresh_delay(&path, now), None);
    }

    #[test]
    fn answers_of_strangers_are_noticed() {
        let sent = connection(&[("c", "c0"), ("m", "m0")], 1);
        let good = connection(&[("c", "c0"), ("m", "m0"), ("f", "f0")], 1);
        assert!(check_answer(&sent, &good).is_ok());
        for bad in [connection(&[("c", "c0"), ("m", "m1")], 1), connection(&[("x", "c0"), ("m", "m0")], 1), connection(&[("c", "c0")], 0)] {
            assert!(check_answer(&sent, &bad).is_err());
        }
    }
}
