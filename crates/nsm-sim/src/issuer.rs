//! Tokens, ids and the clock of one process.

use crate::{chance::fingerprint, world::World};
use nsm_api::*;
use nsm_hop::role::Issuer;
use std::time::SystemTime;

/// The issuer of a process. Its key survives the process, as the file with the key of a hop's ids does.
pub(crate) struct SimIssuer {
    pub(crate) world: World,
    pub(crate) name: String,
}

impl SimIssuer {
    /// Half of an id: from one place in a path, by the key of this name.
    fn half(&self, segment: &Segment, what: u64) -> u64 {
        let key = fingerprint(what, &self.name);
        fingerprint(fingerprint(key, segment.name.as_str()), segment.id.as_str())
    }
}

impl Issuer for SimIssuer {
    fn token(&self, _: &Caller) -> Result<(String, SystemTime)> {
        Ok((format!("{}:{}", self.name, self.world.number()), self.now() + self.world.options().token_life))
    }
    fn connection_id(&self, path: &Path, _: &Caller) -> ConnectionId {
        let (near, far) = (self.half(&path.segments[path.index as usize], 1), self.half(&path.segments[0], 2));
        ConnectionId::new(format!("{near:016x}{far:016x}")).expect("hexadecimal digits are a name")
    }
    fn gave(&self, id: &ConnectionId, path: &Path, _: &Caller) -> bool {
        path.segments
            .first()
            .is_some_and(|origin| id.as_str().len() == 32 && id.as_str().ends_with(&format!("{:016x}", self.half(origin, 2))))
    }
    fn now(&self) -> SystemTime {
        self.world.wall()
    }
    fn random(&self, below: u64) -> u64 {
        self.world.chance().below(below)
    }
}
