//! What a process must remember of a connection to have it again after its sudden end.
//!
//! Only what cannot be found elsewhere: who agreed on what. Kernel objects are not in it; they follow from the agreement
//! by [`crate::role::Wiring`], and the kernel says which of them exist. A record is written before the outside may change
//! because of it, so that a successor finds every next hop that may hold something and every place where an object may be.
//!
//! Not here: files; a program keeps records where it likes.

use crate::role::Sent;
use async_trait::async_trait;
use nsm_api::*;
use std::time::SystemTime;

/// Agreements of one connection of which something may be left besides the one that holds; the oldest is forgotten first.
pub const MAX_FORMER: usize = 4;

/// What a hop and its neighbours have agreed on.
#[derive(Clone, Debug)]
pub struct Agreed {
    /// As this hop sees it.
    pub connection: Connection,
    /// The open files of both stretches.
    pub files: Files,
    /// The stretch towards the endpoint.
    pub sent: Option<Sent>,
    /// Who asked for it last, as the transport proved.
    pub asked_by: Option<SpiffeId>,
    /// Whose index and id the answer carries.
    pub return_index: u32,
}

/// A Close that a next hop still has to hear.
#[derive(Clone, Debug)]
pub struct Debt {
    /// What it closes.
    pub sent: Sent,
    /// From then on the next hop's own expiry has ended it.
    pub until: SystemTime,
}

/// Everything about one connection.
#[derive(Clone, Debug)]
pub struct Record {
    /// This hop's id.
    pub id: ConnectionId,
    /// What holds.
    pub up: Option<Agreed>,
    /// What was not brought to its end, or has ended: something of it may be left. At most [`MAX_FORMER`].
    pub former: Vec<Agreed>,
    /// Closes that are owed.
    pub owed: Vec<Debt>,
    /// Tokens of this hop's latest answers, latest first.
    pub given: Vec<String>,
    /// The next hop may have agreed to something else than what holds.
    pub drifted: bool,
}

/// Where records are kept. What cannot be kept costs a connection its protection against a sudden end and nothing else:
/// so nothing here fails, and the implementation says what is wrong.
#[async_trait]
pub trait Journal: Send + Sync {
    /// When it returns, a successor of this process would find `record` instead of any earlier one of the connection.
    async fn keep(&self, record: Record);
    /// There is nothing to be remembered of the connection any more.
    async fn forget(&self, id: &ConnectionId);
}
