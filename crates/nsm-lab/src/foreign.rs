//! Programs of somebody else: whether they serve is seen from outside, because they do not say it.

use crate::{
    checks::{Listed, connections_of},
    plan::{Role, Spec, registry_url, unix},
    world::{World, names},
};
use nsm_api::Result;
use std::{collections::BTreeSet, time::Duration};
use tokio::time::Instant;

/// How long such a program may take until it serves. A client of another implementation tries for 15 s at a time.
const READY_BOUND: Duration = Duration::from_secs(40);
/// Between two looks; each is a process that is started.
const PAUSE: Duration = Duration::from_millis(100);

impl World {
    /// Waits until it is seen to serve. Its end before that is an error with its last words.
    pub(crate) async fn ready_outside(&mut self, name: &str) -> Result<()> {
        let until = Instant::now() + READY_BOUND;
        loop {
            self.look_outside(name).await?;
            let process = self.process(name)?;
            if process.notice.borrow().ready {
                return Ok(());
            }
            if process.has_ended() {
                return Err(process.failed("ended before it served".to_owned()));
            }
            if Instant::now() > until {
                return Err(process.failed(format!("was not seen to serve within {} s", READY_BOUND.as_secs())));
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Notes that a foreign program serves, when it does. Ours say it themselves.
    pub(crate) async fn look_outside(&mut self, name: &str) -> Result<()> {
        let spec = self.process(name)?.spec.clone();
        if spec.program.is_some() && serves(self, &spec).await? {
            self.process(name)?.seen_ready();
        }
        Ok(())
    }
}

async fn serves(world: &World, spec: &Spec) -> Result<bool> {
    Ok(match spec.role {
        Role::Registry => answers(world, &["get", "services", "--registry-url", &registry_url(&world.file.lab)]).await.is_some(),
        Role::Manager => {
            let node = world.file.lab.nodes.iter().find(|node| spec.name == format!("{}-manager", node.name));
            let socket = node.map(|node| unix(&world.files.manager(&node.name))).unwrap_or_default();
            answers(world, &["get", "connections", "--connect-to", &socket]).await.is_some()
        }
        Role::Forwarder | Role::Endpoint => {
            let list = answers(world, &["get", "endpoints", "--registry-url", &registry_url(&world.file.lab)]).await;
            list.is_some_and(|text| names(&text).is_ok_and(|names| names.contains(&spec.name)))
        }
        Role::Client => {
            let wanted = world.file.lab.client(&spec.name).map_or(0, |client| client.services.len());
            connections_of(world, &spec.name).await.is_ok_and(|all| up(&all) >= wanted)
        }
        Role::Identity => world.plan.processes.iter().all(|other| other.name == spec.name || world.files.workload(&other.name).exists()),
        Role::Packet | Role::Ipam | Role::Node | Role::App => true,
    })
}

/// What `nsm` says when it gets an answer.
async fn answers(world: &World, words: &[&str]) -> Option<String> {
    let args: Vec<String> = words.iter().chain(&["--json"]).map(|word| (*word).to_owned()).collect();
    world.ask(&args).await.ok()
}

/// Connections that are whole: of each, no stretch is without a mechanism, none is down, and an endpoint is at its end.
fn up(all: &[Listed]) -> usize {
    let whole = |listed: &&Listed| listed.mechanism.is_some() && listed.network_service_endpoint_name.is_some() && listed.state != "DOWN";
    let ids: BTreeSet<&str> = all.iter().filter(whole).map(Listed::first_id).collect();
    ids.len()
}
