//! The network: every call of one process to another takes its time, and may not arrive.

use crate::{
    issuer::SimIssuer,
    life::Life,
    world::{Process, World},
};
use async_trait::async_trait;
use futures::{StreamExt, stream, stream::BoxStream};
use nsm_api::*;
use nsm_hop::role::{Dial, Issuer};
use std::{sync::Arc, time::Duration};
use tokio::time::sleep;

/// After so long without a sign of life a transport is given up (two keepalives).
pub(crate) const KEEPALIVE: Duration = Duration::from_secs(10);
/// Longest wait for a transport to a node that cannot be reached.
pub(crate) const CONNECT: Duration = Duration::from_secs(5);
/// One way between two nodes when all is well, milliseconds.
const ONE_WAY: (u64, u64) = (1, 4);
/// A Request that arrives twice does so within this, milliseconds.
const TWICE_WITHIN: u64 = 50;

/// How one process reaches others.
#[derive(Clone)]
pub(crate) struct Dialler {
    pub(crate) world: World,
    pub(crate) name: String,
    pub(crate) node: usize,
    pub(crate) life: Life,
    pub(crate) issuer: Arc<dyn Issuer>,
}

impl Dial for Dialler {
    fn dial(&self, target: &Target, _: &Files) -> Arc<dyn NetworkServiceApi> {
        Arc::new(Line { from: self.clone(), to: target.clone() })
    }
}

impl Dialler {
    /// How somebody on `node` reaches others who is no process of the domain, and lives as long as the run.
    pub(crate) fn of_nobody(world: &World, name: String, node: usize) -> Dialler {
        let issuer: Arc<dyn Issuer> = Arc::new(SimIssuer { world: world.clone(), name: name.clone() });
        Dialler { world: world.clone(), name, node, life: Life::default(), issuer }
    }
    /// The registry of a process: of a node's manager, or the one of the domain.
    pub(crate) fn registry(&self, process: &str) -> Arc<dyn RegistryApi> {
        Arc::new(Line { from: self.clone(), to: Target::InProcess(process.to_owned()) })
    }
}

/// From one process to one address.
struct Line {
    from: Dialler,
    to: Target,
}

fn broken(to: &Target, reason: &str) -> Error {
    Error::new(Kind::Unavailable, to.to_string(), reason, "look whether it runs")
}

impl Line {
    /// As the other side's edge would present us.
    fn signed(&self, caller: Caller) -> Result<Caller> {
        let (token, end) = self.from.issuer.token(&caller)?;
        let identity = SpiffeId::new(format!("spiffe://sim/{}", self.from.name))?;
        Ok(Caller { identity: Some(identity), token, token_expires: Some(end), timeout: caller.timeout, ..Caller::default() })
    }

    /// One call, there and back.
    async fn carry<T, F>(&self, what: &str, effect: impl FnOnce(Process) -> F) -> Result<T>
    where
        F: Future<Output = Result<T>>,
    {
        let (world, here) = (&self.from.world, self.from.node);
        world.tick().await;
        self.arrive(what).await?;
        let Some(there) = world.at(&self.to) else {
            world.note(format_args!("{} {what} {}: nobody", self.from.name, self.to));
            return Err(broken(&self.to, "nobody listens there"));
        };
        self.pass(here, there.node).await?;
        let answer = tokio::select! {
            biased;
            () = there.life.ended() => Err(broken(&self.to, "it ended")),
            answer = effect(there.clone()) => answer,
        };
        let outcome = if answer.is_ok() { "done" } else { "refused" };
        world.note(format_args!("{} {what} {}: {outcome}", self.from.name, there.name));
        let unheard = world.state().weather.unheard;
        if here != there.node && world.chance().happens(unheard) {
            world.note(format_args!("{} {what} {}: answer lost", self.from.name, there.name));
            sleep(KEEPALIVE).await;
            return Err(broken(&self.to, "the transport broke before the answer"));
        }
        self.pass(there.node, here).await?;
        answer
    }

    async fn arrive(&self, what: &str) -> Result<()> {
        let world = &self.from.world;
        let lost = world.state().weather.lost;
        let remote = world.at(&self.to).is_some_and(|there| there.node != self.from.node);
        if remote && world.chance().happens(lost) {
            world.note(format_args!("{} {what} {}: lost", self.from.name, self.to));
            sleep(KEEPALIVE).await;
            return Err(broken(&self.to, "the transport broke"));
        }
        Ok(())
    }

    /// One way. Within a node it takes no time that could be measured here, mostly.
    async fn pass(&self, from: usize, to: usize) -> Result<()> {
        let world = &self.from.world;
        if from == to {
            let late = world.chance().below(4) == 0;
            if late {
                sleep(Duration::from_millis(1)).await;
            }
            return Ok(());
        }
        let slow = world.state().weather.slow;
        sleep(world.chance().millis(ONE_WAY.0, ONE_WAY.1 + slow)).await;
        if world.is_cut(from, to) {
            sleep(CONNECT).await;
            return Err(broken(&self.to, "its node cannot be reached"));
        }
        Ok(())
    }

    /// What comes on a stream, later, until one of the two ends or the nodes have been apart for too long.
    fn tail<T: Send + 'static>(&self, there: &Process, items: BoxStream<'static, Result<T>>) -> BoxStream<'static, Result<T>> {
        let (world, here, to) = (self.from.world.clone(), self.from.node, self.to.clone());
        let (ours, theirs, node) = (self.from.life.clone(), there.life.clone(), there.node);
        stream::unfold(Some(items), move |items| {
            let (world, to, ours, theirs) = (world.clone(), to.clone(), ours.clone(), theirs.clone());
            async move {
                let mut items = items?;
                let item = async {
                    let item = items.next().await;
                    if here != node {
                        let slow = world.state().weather.slow;
                        sleep(world.chance().millis(ONE_WAY.0, ONE_WAY.1 + slow)).await;
                        world.joined(here, node).await;
                    }
                    item
                };
                let end = tokio::select! {
                    biased;
                    () = ours.ended() => "we ended",
                    () = theirs.ended() => "it ended",
                    () = world.severed(here, node, KEEPALIVE) => "the transport broke",
                    item = item => return Some((item?, Some(items))),
                };
                Some((Err(broken(&to, end)), None))
            }
        })
        .boxed()
    }
}

fn hop(process: &Process, to: &Target) -> Result<nsm_hop::hop::Hop> {
    process.hop.clone().ok_or_else(|| broken(to, "it is no hop"))
}

#[async_trait]
impl NetworkServiceApi for Line {
    async fn request(&self, request: Request, caller: Caller) -> Result<Answer> {
        self.from.life.point();
        let caller = self.signed(caller)?;
        let answer = self
            .carry("request", async |there| {
                let hop = hop(&there, &self.to)?;
                let world = &self.from.world;
                // To ask for another endpoint twice is to ask for a third.
                let repeatable = request.connection.state != State::ReselectRequested;
                let twice = world.state().weather.twice;
                if repeatable && world.chance().happens(twice) {
                    // As of somebody who gave up and asks again: what comes last is what is heard.
                    let (first, other, (request, caller)) =
                        (world.chance().millis(0, TWICE_WITHIN), hop.clone(), (request.clone(), caller.clone()));
                    world.note(format_args!("{} request {}: comes twice", self.from.name, there.name));
                    tokio::spawn(async move { other.request(request, caller).await });
                    sleep(first).await;
                }
                hop.request(request, caller).await
            })
            .await;
        self.from.life.point();
        answer
    }
    async fn close(&self, connection: Connection, files: Files, caller: Caller) -> Result<()> {
        self.from.life.point();
        let caller = self.signed(caller)?;
        let closed = self.carry("close", async |there| hop(&there, &self.to)?.close(connection, files, caller).await).await;
        self.from.life.point();
        closed
    }
    async fn monitor(&self, selector: Selector, caller: Caller) -> Result<Events> {
        self.from.life.point();
        let caller = self.signed(caller)?;
        self.carry("monitor", async |there| {
            let events = hop(&there, &self.to)?.monitor(selector, caller).await?;
            Ok(self.tail(&there, events))
        })
        .await
    }
}

fn registry(process: &Process, to: &Target) -> Result<Arc<dyn RegistryApi>> {
    process.registry.clone().ok_or_else(|| broken(to, "it is no registry"))
}

/// Calls to a registry may be made on behalf of others, in their tasks.
#[async_trait]
impl RegistryApi for Line {
    async fn register_service(&self, service: NetworkService, caller: Caller) -> Result<NetworkService> {
        self.from.life.point_for_others().await;
        let caller = self.signed(caller)?;
        self.carry("register", async |there| registry(&there, &self.to)?.register_service(service, caller).await).await
    }
    async fn find_services(&self, query: ServiceQuery, caller: Caller) -> Result<ServiceUpdates> {
        self.from.life.point_for_others().await;
        let caller = self.signed(caller)?;
        self.carry("find-services", async |there| {
            let watch = query.watch;
            let found = registry(&there, &self.to)?.find_services(query, caller).await?;
            Ok(if watch { self.tail(&there, found) } else { found })
        })
        .await
    }
    async fn unregister_service(&self, service: NetworkService, caller: Caller) -> Result<()> {
        self.from.life.point_for_others().await;
        let caller = self.signed(caller)?;
        self.carry("unregister", async |there| registry(&there, &self.to)?.unregister_service(service, caller).await).await
    }
    async fn register_endpoint(&self, endpoint: NetworkServiceEndpoint, files: Files, caller: Caller) -> Result<NetworkServiceEndpoint> {
        self.from.life.point_for_others().await;
        let caller = self.signed(caller)?;
        let answer =
            self.carry("register", async |there| registry(&there, &self.to)?.register_endpoint(endpoint, files, caller).await).await;
        self.from.life.point_for_others().await;
        answer
    }
    async fn find_endpoints(&self, query: EndpointQuery, caller: Caller) -> Result<EndpointUpdates> {
        self.from.life.point_for_others().await;
        let caller = self.signed(caller)?;
        self.carry("find-endpoints", async |there| {
            let watch = query.watch;
            let found = registry(&there, &self.to)?.find_endpoints(query, caller).await?;
            Ok(if watch { self.tail(&there, found) } else { found })
        })
        .await
    }
    async fn unregister_endpoint(&self, endpoint: NetworkServiceEndpoint, caller: Caller) -> Result<()> {
        self.from.life.point_for_others().await;
        let caller = self.signed(caller)?;
        self.carry("unregister", async |there| registry(&there, &self.to)?.unregister_endpoint(endpoint, caller).await).await
    }
}
