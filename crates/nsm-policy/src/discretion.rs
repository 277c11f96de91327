//! What a monitor shows of a connection to those who have no part in it.

use crate::jwt;
use nsm_api::{Connection, SpiffeId};

/// Whether `viewer` stands on the connection's way. `None` is this process itself.
pub fn takes_part(connection: &Connection, viewer: Option<&SpiffeId>) -> bool {
    let Some(viewer) = viewer else { return true };
    connection.path.segments.iter().any(|segment| jwt::subject(&segment.token).is_some_and(|subject| subject == viewer.as_str()))
}

/// The connection as strangers may see it: without tokens, which prove to other hops that one was told of it.
pub fn shown_to(mut connection: Connection, viewer: Option<&SpiffeId>) -> Connection {
    if !takes_part(&connection, viewer) {
        connection.path.segments.iter_mut().for_each(|segment| segment.token.clear());
    }
    connection
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
    use nsm_api::{ConnectionId, HopName, Segment};

    #[test]
    fn strangers_see_everything_but_tokens() {
        let mut connection = Connection::new(ConnectionId::new("a").unwrap(), "svc".parse().unwrap());
        for name in ["client", "manager"] {
            let mut segment = Segment::new(HopName::new(name).unwrap(), ConnectionId::new(format!("{name}-0")).unwrap());
            segment.token = format!("e30.{}.AA", URL_SAFE_NO_PAD.encode(format!(r#"{{"sub":"spiffe://d/{name}"}}"#)));
            connection.path.segments.push(segment);
        }
        let seen_by = |viewer: Option<&str>| shown_to(connection.clone(), viewer.map(|id| SpiffeId::new(id).unwrap()).as_ref());
        for part in [None, Some("spiffe://d/client"), Some("spiffe://d/manager")] {
            assert_eq!(seen_by(part), connection, "{part:?}");
        }
        let strange = seen_by(Some("spiffe://d/other"));
        assert!(strange.path.segments.iter().all(|segment| segment.token.is_empty() && !segment.id.as_str().is_empty()));
        assert_eq!((strange.id, strange.path.segments.len()), (connection.id.clone(), 2));
    }
}
