//! Every process of the domain: put together from the parts that the roles of the program have, started, and ended.
//!
//! What the program's roles do beside their hop (asking until it is had, staying registered) is done here in the same way on
//! the simulated clock.

use crate::{
    disk::{Disk, records},
    flag::Flag,
    issuer::SimIssuer,
    kernel::SimKernel,
    life::Life,
    net::Dialler,
    topology::{self, Client, Endpoint},
    world::{Process, SOCKET_DEV, World, address, url},
};
use async_trait::async_trait;
use futures::StreamExt;
use nsm_api::*;
use nsm_hop::{
    adoption,
    hop::Hop,
    kernel::UnderlayMtu,
    mechanism::{KernelEnd, KernelLeg, KernelOffer, Negotiate, VniPool, Vxlan, own_kernel, service_interface_name},
    onward::{End, Endpoints, Fixed, Forwarders},
    reserve::{Environment, Excluded, Ipam, IpamPolicy, UnknownMtu},
    role::{Issuer, Liveness, NoWires, Onward, Reserve, Role, Standing, Timing, Wiring},
    services,
    wiring::ForwarderWiring,
};
use nsm_registry::{Cache, LocalBypass, Registry};
use std::{
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::time::{Instant, sleep, sleep_until, timeout};

/// The name of the registry's process.
pub(crate) const REGISTRY: &str = "registry";
/// As in the program: pauses between tries of a client, its longest wait for one, and the pause between tries to mend.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));
pub(crate) const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);
const MEND_PAUSE: Duration = Duration::from_secs(2);
/// As in the program: longest wait for a registration, pauses between tries, and how long the farewell may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
const REGISTER_PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
const FAREWELL: Duration = Duration::from_secs(1);
/// Silence after which a wire is taken to be dead, and the pause between two looks at it within that time.
pub(crate) const SILENCE: Duration = Duration::from_secs(1);
const LOOK: Duration = Duration::from_millis(100);
const FORWARDER: &str = "forwarder";
const VXLAN_PORT: u16 = 4789;
const UNDERLAY_MTU: u32 = 1500;
const DEFAULT_MTU: u32 = 1500;

/// The parts that differ from role to role.
struct Parts {
    standing: Standing,
    reserve: Vec<Box<dyn Reserve>>,
    onward: Box<dyn Onward>,
    wiring: Box<dyn Wiring>,
}

/// A process that is being started.
struct Start {
    world: World,
    name: String,
    node: usize,
    life: Life,
    dialler: Dialler,
    issuer: Arc<dyn Issuer>,
    stop: Flag,
}

impl World {
    /// Starts the process of this name, unless it runs.
    pub(crate) fn start(&self, name: &str) {
        if self.process(name).is_some() {
            return;
        }
        self.note(format_args!("{name} starts"));
        let topology = self.topology();
        let node_of = |role: fn(&str) -> String| topology.nodes.iter().position(|node| role(node) == name);
        if name == REGISTRY {
            return self.begin(name, 0).registry();
        }
        if let Some(node) = node_of(topology::manager) {
            return self.begin(name, node).manager();
        }
        if let Some(node) = node_of(topology::forwarder) {
            return self.begin(name, node).forwarder();
        }
        if let Some(endpoint) = topology.endpoints.iter().find(|endpoint| endpoint.name == name) {
            let home = self.state().homes.get(name).copied();
            return self.begin(name, home.unwrap_or(endpoint.node)).endpoint(endpoint);
        }
        if let Some(client) = topology.clients.iter().find(|client| client.name == name) {
            self.state().wanted.insert(name.to_owned());
            self.state().vanished.remove(name);
            self.begin(name, client.node).client(client);
        }
    }

    fn begin(&self, name: &str, node: usize) -> Start {
        let (life, world) = (Life::default(), self.clone());
        let issuer: Arc<dyn Issuer> = Arc::new(SimIssuer { world: self.clone(), name: name.to_owned() });
        let dialler = Dialler { world: self.clone(), name: name.to_owned(), node, life: life.clone(), issuer: issuer.clone() };
        Start { world, name: name.to_owned(), node, life, dialler, issuer, stop: Flag::default() }
    }

    /// Ends a process without a word.
    pub(crate) fn crash(&self, name: &str) {
        let process = self.state().processes.remove(name);
        if let Some(process) = process {
            self.note(format_args!("{name} dies"));
            process.life.end();
            process.main.iter().for_each(tokio::task::AbortHandle::abort);
        }
    }

    /// Asks a process to end; it says goodbye first.
    pub(crate) fn stop(&self, name: &str) {
        self.state().wanted.remove(name);
        if let Some(process) = self.process(name) {
            self.note(format_args!("{name} is told to stop"));
            process.stop.set(true);
        }
    }
}

impl Start {
    fn role(&self, parts: Parts) -> Role {
        let retry_max = if parts.standing == Standing::Origin { MEND_PAUSE } else { Timing::default().retry_max };
        Role {
            name: self.name.parse().expect("the topology was checked"),
            standing: parts.standing,
            issuer: self.issuer.clone(),
            admit: vec![],
            reserve: parts.reserve,
            onward: parts.onward,
            dial: Arc::new(self.dialler.clone()),
            wiring: parts.wiring,
            kernel: Arc::new(SimKernel { world: self.world.clone(), node: self.node, life: self.life.clone() }),
            generation: self.world.number(),
            timing: Timing { request_timeout: REQUEST_TIMEOUT, retry_max, ..Timing::default() },
        }
    }

    /// A hop that remembers what it agreed on.
    fn hop(&self, parts: Parts) -> Hop {
        let disk = Disk { world: self.world.clone(), name: self.name.clone(), life: self.life.clone() };
        Hop::new(self.role(parts)).with_journal(Arc::new(disk), records(&self.world, &self.name))
    }

    /// From now on it is there for others; `main` runs as long as it lives, and it ends with it.
    fn run(self, hop: Option<Hop>, registry: Option<Arc<dyn RegistryApi>>, main: impl Future<Output = ()> + Send + 'static) {
        let Start { world, name, node, life, stop, .. } = self;
        let process = Process { name: name.clone(), node, life: life.clone(), hop, registry, stop, main: None };
        world.state().processes.insert(name.clone(), process);
        let (own, here) = (life.clone(), world.clone());
        let (told, called) = (name.clone(), life.clone());
        let main = tokio::spawn(async move {
            main.await;
            if !called.is_over() {
                here.note(format_args!("{told} has ended"));
            }
            own.end();
        });
        if let Some(process) = world.state().processes.get_mut(&name) {
            process.main = Some(main.abort_handle());
        }
    }

    fn registry(self) {
        let world = self.world.clone();
        let registry = Registry::new(self.world.engine(), Arc::new(move || world.wall()));
        let stopped = stopped(&self.stop);
        self.run(None, Some(Arc::new(registry)), stopped);
    }

    fn manager(self) {
        let world = self.world.clone();
        let here = world.clone();
        let upstream = Arc::new(Cache::new(self.dialler.registry(REGISTRY), Arc::new(move || here.wall())));
        let environment = Labels::from([("nodeName".to_owned(), self.world.topology().nodes[self.node].clone())]);
        let own_url = url(self.node);
        let bypass = LocalBypass::new(upstream, own_url.clone(), environment.clone(), Arc::new(move || world.wall()));
        let registry: Arc<dyn RegistryApi> = Arc::new(bypass);
        let service = FORWARDER.parse().expect("a plain word is a name");
        let hop = self.hop(Parts {
            standing: Standing::Server,
            reserve: vec![Box::new(Environment(environment)), Box::new(Excluded(Box::new(Arc::default)))],
            onward: Box::new(Forwarders { registry: registry.clone(), service, own_url }),
            wiring: Box::new(NoWires),
        });
        let follow = services::follow(hop.clone(), registry.clone());
        self.run(Some(hop), Some(registry), follow);
    }

    fn forwarder(self) {
        let registry = self.own_registry();
        let vnis = Arc::new(Mutex::new(VniPool::default()));
        let tunnel_ip = address(self.node);
        let vxlan = Vxlan { tunnel_ip, port: VXLAN_PORT, underlay_mtu: UnderlayMtu::new(UNDERLAY_MTU), issuer: self.issuer.clone(), vnis };
        let issuer = self.issuer.clone();
        let offers: Vec<Box<dyn nsm_hop::mechanism::Offer>> = vec![Box::new(KernelOffer), Box::new(vxlan.clone())];
        let hop = self.hop(Parts {
            standing: Standing::Server,
            reserve: vec![Box::new(Negotiate(vec![Box::new(KernelLeg), Box::new(vxlan)])), Box::new(UnknownMtu(DEFAULT_MTU))],
            onward: Box::new(Endpoints::new(registry.clone(), offers, issuer)),
            wiring: Box::new(ForwarderWiring { keys: None }),
        });
        let labels = Labels::from([("p2p".to_owned(), "true".to_owned())]);
        let keeper = self.keeper(registry, &[FORWARDER.to_owned()], &labels);
        self.run(Some(hop), None, keeper);
    }

    fn endpoint(self, endpoint: &Endpoint) {
        let netns = self.world.pod(&self.name);
        let pools = endpoint.pools.iter().map(|pool| vec![*pool]).collect();
        let hop = self.hop(Parts {
            standing: Standing::Server,
            reserve: vec![Box::new(Negotiate(vec![Box::new(KernelEnd(netns))])), Box::new(Ipam::new(pools, IpamPolicy::Polite))],
            onward: Box::new(End),
            wiring: Box::new(NoWires),
        });
        let keeper = self.keeper(self.own_registry(), &endpoint.services, &endpoint.labels);
        self.run(Some(hop), None, keeper);
    }

    fn client(self, client: &Client) {
        let (world, name) = (self.world.clone(), self.name.clone());
        let netns = world.pod(&name);
        let manager = Target::Unix(PathBuf::from(format!("/{}.sock", topology::manager(&world.topology().nodes[self.node]))));
        let eyes: Arc<dyn Liveness> = Arc::new(Eyes { world: world.clone(), pod: netns.key.ino });
        let hop = Hop::new(self.role(Parts {
            standing: Standing::Origin,
            reserve: vec![Box::new(Environment(Labels::from([("podName".to_owned(), name.clone())])))],
            onward: Box::new(Fixed(manager.clone())),
            wiring: Box::new(NoWires),
        }))
        .with_liveness(eyes.clone());
        let requests: Vec<Request> = (0..)
            .zip(&client.services)
            .map(|(i, (service, labels))| {
                let id: ConnectionId = format!("{name}-{i}").parse().expect("the topology was checked");
                let mut connection = Connection::new(id.clone(), service.parse().expect("the topology was checked"));
                connection.labels.clone_from(labels);
                let mut files = Files::default();
                let interface = service_interface_name(&connection.network_service, &id);
                let mechanism = own_kernel(&netns, Some(&interface), &mut files);
                Request { connection, preferences: vec![mechanism], files }
            })
            .collect();
        let at = nsm_hop::role::Dial::dial(&self.dialler, &manager, &Files::default());
        let (stop, own) = (stopped(&self.stop), hop.clone());
        let main = async move {
            let keeping = async {
                let hop_name: HopName = name.parse().expect("the topology was checked");
                let former = adoption::former(at.as_ref(), &hop_name).await;
                let tries =
                    requests.iter().map(|request| connect(&world, &own, request, former.get(&request.connection.id), eyes.as_ref()));
                futures::future::join_all(tries).await;
                std::future::pending::<()>().await;
            };
            tokio::select! {
                biased;
                () = stop => {}
                () = keeping => {}
            }
            let close = |request: &Request| own.close(request.connection.clone(), Files::default(), Caller::within(REQUEST_TIMEOUT));
            for error in futures::future::join_all(requests.iter().map(close)).await.into_iter().filter_map(Result::err) {
                world.note(format_args!("{name} is not closed everywhere: {error}"));
            }
        };
        self.run(Some(hop), None, main);
    }

    fn own_registry(&self) -> Arc<dyn RegistryApi> {
        self.dialler.registry(&topology::manager(&self.world.topology().nodes[self.node]))
    }

    /// Keeps this process registered until it is told to stop; then takes it out.
    fn keeper(&self, registry: Arc<dyn RegistryApi>, services: &[String], labels: &Labels) -> impl Future<Output = ()> + Send + 'static {
        let (world, stop) = (self.world.clone(), stopped(&self.stop));
        let key = InodeKey { dev: SOCKET_DEV, ino: world.number() };
        world.state().sockets.insert(key.ino, (self.name.clone(), self.life.clone()));
        let services: Vec<ServiceName> = services.iter().map(|name| name.parse().expect("the topology was checked")).collect();
        let mut endpoint =
            NetworkServiceEndpoint::new(self.name.parse().expect("the topology was checked"), services.clone(), key.to_string());
        endpoint.network_service_labels = services.into_iter().map(|service| (service, labels.clone())).collect();
        let mut socket = Files::default();
        socket.insert(key, world.file());
        async move {
            tokio::select! {
                biased;
                () = stop => {}
                () = register(&world, registry.as_ref(), &endpoint, &socket) => {}
            }
            let farewell = registry.unregister_endpoint(endpoint.clone(), Caller::within(FAREWELL));
            if !matches!(timeout(FAREWELL, farewell).await, Ok(Ok(()))) {
                world.note(format_args!("{} is not unregistered; its record expires", endpoint.name));
            }
            world.state().sockets.remove(&key.ino);
        }
    }
}

fn stopped(stop: &Flag) -> impl Future<Output = ()> + Send + 'static {
    let stop = stop.clone();
    async move { stop.until(true).await }
}

/// Asks until it is had.
async fn connect(world: &World, hop: &Hop, request: &Request, former: Option<&Connection>, eyes: &dyn Liveness) {
    let (mut former, mut pause) = (former.cloned(), PAUSE.0);
    loop {
        let adopted = match &former {
            Some(former) => adoption::adopted(request, former, Some(eyes)).await,
            None => None,
        };
        match hop.request(adopted.unwrap_or_else(|| request.clone()), Caller::within(REQUEST_TIMEOUT)).await {
            Ok(answer) => {
                let endpoint = answer.connection.network_service_endpoint_name.as_ref().map_or("", EndpointName::as_str);
                return world.note(format_args!("{} is connected to {endpoint}", request.connection.id));
            }
            Err(error) => {
                world.note(format_args!("{} is not connected: {error}", request.connection.id));
                former.iter_mut().for_each(|former| former.state = State::Down);
            }
        }
        sleep(pause.mul_f64(0.7 + world.chance().below(300) as f64 / 1000.0)).await;
        pause = (pause * 2).min(PAUSE.1);
    }
}

/// Registers again and again.
async fn register(world: &World, registry: &dyn RegistryApi, endpoint: &NetworkServiceEndpoint, socket: &Files) {
    let mut failures = 0;
    loop {
        let call = registry.register_endpoint(endpoint.clone(), socket.clone(), Caller::within(CALL_TIMEOUT));
        match timeout(CALL_TIMEOUT, call).await {
            Ok(Ok(stored)) => {
                failures = 0;
                let left = stored.expiration_time.and_then(|end| end.duration_since(world.wall()).ok()).unwrap_or_default();
                tokio::select! {
                    biased;
                    () = sleep_until(Instant::now() + left.mul_f64(2.0 / 3.0)) => {}
                    () = lost(world, registry, &endpoint.name) => {
                        world.note(format_args!("{} is no longer registered", endpoint.name));
                        if world.state().quiet {
                            world.violate(format!("I7: nothing went wrong, and {} is no longer registered", endpoint.name));
                        }
                    }
                }
            }
            Ok(Err(_)) | Err(_) => failures += 1,
        }
        if failures > 0 {
            let pause = REGISTER_PAUSE.0.saturating_mul(1 << failures.min(10)).min(REGISTER_PAUSE.1);
            sleep(pause.mul_f64(0.5 + world.chance().below(500) as f64 / 1000.0)).await;
        }
    }
}

/// Resolves when the registry no longer has the endpoint, or has gone.
async fn lost(world: &World, registry: &dyn RegistryApi, name: &EndpointName) {
    let query = EndpointQuery { name: Some(name.clone()), watch: true, ..EndpointQuery::default() };
    let Ok(mut updates) = registry.find_endpoints(query, Caller::default()).await else { return sleep(REGISTER_PAUSE.1).await };
    while let Some(Ok((update, _))) = updates.next().await {
        if update.deleted {
            return;
        }
    }
    sleep(world.chance().millis(0, 500)).await;
}

/// A client's eyes: packets through the simulated wires.
struct Eyes {
    world: World,
    pod: u64,
}

#[async_trait]
impl Liveness for Eyes {
    async fn alive(&self, connection: &Connection) -> bool {
        let end = Instant::now() + SILENCE;
        while self.world.packets().answers(self.pod, connection).is_none() {
            if Instant::now() >= end {
                self.world.note(format_args!("{} is silent", connection.id));
                if self.world.state().quiet {
                    self.world.violate(format!("I13: nothing went wrong, and {} is silent", connection.id));
                }
                self.world.state().silent.insert(connection.id.clone(), Instant::now());
                return false;
            }
            sleep(LOOK).await;
        }
        true
    }
    fn interval(&self) -> Duration {
        self.world.options().look_every
    }
}
