//! The kernel of a node as one process uses it: calls take time, fail, and may be the last thing that the process does.

use crate::{life::Life, show, world::World};
use async_trait::async_trait;
use nsm_api::{Error, Kind, Result};
use nsm_hop::kernel::*;
use std::{net::IpAddr, time::Duration};
use tokio::time::{Instant, sleep};

/// For so long after a silence a client may give up a wire that has come to life again.
const SILENCE_COUNTS: Duration = Duration::from_secs(60);

/// The kernel survives its processes; this is one process's way to it.
pub(crate) struct SimKernel {
    pub(crate) world: World,
    pub(crate) node: usize,
    pub(crate) life: Life,
}

impl SimKernel {
    /// May be the end of the process, takes its time, and may fail.
    async fn enter(&self) -> Result<()> {
        self.world.tick().await;
        self.life.point();
        if self.world.chance().below(4) == 0 {
            sleep(Duration::from_millis(1)).await;
            self.life.point();
        }
        self.fail()
    }
    fn fail(&self) -> Result<()> {
        let failing = self.world.state().weather.kernel;
        if self.world.chance().happens(failing) {
            return Err(Error::new(Kind::Kernel, "netlink", "the simulated kernel refuses", "try again"));
        }
        Ok(())
    }

    /// Linux gives an identifier and port to one tunnel of a node only.
    fn admit(&self, op: &Op) -> Result<()> {
        let Op::Add(Wire::Link(Link::Vxlan { at, vni, port, .. })) = op else { return Ok(()) };
        let other = |wire: Wire| matches!(wire, Wire::Link(Link::Vxlan { at: other, vni: used, port: on, .. }) if (used, on) == (*vni, *port) && other != *at);
        if self.world.kernel(self.node).wires().into_iter().any(other) {
            return Err(Error::new(Kind::Conflict, format!("VXLAN identifier {vni}"), "another tunnel has it", "use another"));
        }
        Ok(())
    }

    /// I4: who removes a wire over which packets pass, while its client lives, wants it and has heard nothing bad of it?
    fn judge(&self, owner: &Owner, op: &Op) {
        let Op::Del(Wire::Link(link)) = op else { return };
        let ends = link.ifaces();
        for client in &self.world.topology().clients {
            let pod = self.world.pod(&client.name);
            if !ends.iter().any(|iface| iface.netns == pod) || !self.world.state().wanted.contains(&client.name) {
                continue;
            }
            let Some(hop) = self.world.process(&client.name).filter(|process| !process.stop.is()).and_then(|process| process.hop) else {
                continue;
            };
            for connection in hop.monitors().snapshot() {
                let silent = self.world.state().silent.get(&connection.id).copied();
                let suspicious = silent.is_some_and(|at| Instant::now() - at < SILENCE_COUNTS);
                let name = connection.mechanism.as_ref().and_then(|mechanism| mechanism.get(nsm_api::params::NAME));
                let touches = ends.iter().any(|iface| iface.netns == pod && name == Some(iface.name.as_str()));
                if touches && !suspicious && self.world.packets().answers(pod.key.ino, &connection).is_some() {
                    self.world.violate(format!(
                        "I4: {} ({}) removes the wire of {}, over which packets pass",
                        owner.hop, owner.connection, connection.id
                    ));
                }
            }
        }
    }
}

#[async_trait]
impl Kernel for SimKernel {
    async fn observe(&self, owner: &Owner, about: &Wires) -> Result<Wires> {
        self.enter().await?;
        self.world.kernel(self.node).observe(owner, about).await
    }
    async fn apply(&self, owner: &Owner, ops: &[Op]) -> Result<()> {
        for op in ops {
            self.enter().await?;
            self.admit(op)?;
            self.judge(owner, op);
            if let Op::Add(Wire::Link(link)) | Op::Del(Wire::Link(link)) = op {
                let verb = if matches!(op, Op::Add(_)) { "makes" } else { "removes" };
                self.world.note(format_args!("{} {verb} {}", owner.hop, show::link(&self.world, link)));
            }
            let done = self.world.kernel(self.node).apply(owner, std::slice::from_ref(op)).await;
            self.world.changed();
            self.life.point();
            done?;
            self.fail()?;
        }
        Ok(())
    }
    async fn appeared(&self, iface: &Iface) -> Result<()> {
        self.world.kernel(self.node).appeared(iface).await
    }
    async fn counters(&self, owner: &Owner, on: &[Iface]) -> Result<Vec<Option<Counters>>> {
        self.life.point();
        self.world.kernel(self.node).counters(owner, on).await
    }
    async fn underlay_mtu(&self, address: IpAddr) -> Result<u32> {
        self.world.kernel(self.node).underlay_mtu(address).await
    }
}
