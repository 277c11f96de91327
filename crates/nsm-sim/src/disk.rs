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
    let records: Vec<Record> = world.state().journals.get(name).map(|records| records.values().cloned().collect()).unwrap_or_default();
    for record in &records {
        let up = record.up.as_ref().map_or("", |agreed| agreed.connection.path.segments[0].id.as_str());
        let (former, owed) = (record.former.len(), record.owed.len());
        world.note(format_args!("{name} finds {} in its journal: {up:?} up, {former} former, {owed} closes owed", record.id));
    }
    records
}
