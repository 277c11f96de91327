//! The journal of a process: it survives the process, record by record.

use crate::{life::Life, world::World};
use async_trait::async_trait;
use nsm_api::ConnectionId;
use nsm_hop::journal::{Journal, Record};

/// What one process writes to.
pub(crate) struct Disk {
    pub(crate) world: World,
    pub(crate) name: String,
    pub(crate) life: Life,
}

#[async_trait]
impl Journal for Disk {
    async fn keep(&self, record: Record) {
        self.life.point();
        self.world.state().journals.entry(self.name.clone()).or_default().insert(record.id.clone(), record);
        self.life.point();
    }
    async fn forget(&self, id: &ConnectionId) {
        self.life.point();
        self.world.state().journals.entry(self.name.clone()).or_default().remove(id);
        self.life.point();
    }
}

/// What a former process of this name left.
pub(crate) fn records(world: &World, name: &str) -> Vec<Record> {
    world.state().journals.get(name).map(|records| records.values().cloned().collect()).unwrap_or_default()
}
