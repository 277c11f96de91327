//! `nsm endpoint vl3`: clients of all endpoints of one service share one layer 3 network (T-09, E-34).
//!
//! A server hop for clients and younger endpoints, an origin hop for the wires to older endpoints, and streams to the
//! prefix servers. The kernel of the pod routes between the wires.

use super::{
    authorize,
    endpoint::{self, Config, Parts},
    guard,
    liveness::Echoes,
    process::{self, CONNECT_TO, DIAL_TIMEOUT, MAX_TOKEN_LIFETIME, Process, STATE_DIR, WORKLOAD_API},
    registration::own_netns,
    vl3_names::{OwnNames, named},
};
use crate::{
    context::Context,
    settings::{Opt, Settings, Shape},
};
use nsm_api::*;
use nsm_endpoints::vl3::{Addresses, Changes, Dialled, LeastMtu, Names, PeerNames, Peers, Template, ask_again, lease};
use nsm_hop::{
    hop::Hop,
    kernel::Netns,
    mechanism::{KernelEnd, Negotiate},
    onward::{End, Fixed},
    reserve::Environment,
    role::{NoWires, Reserve, Role, Standing, Timing},
};
use std::{net::SocketAddr, sync::Arc, time::Duration};
use tokio::task::JoinSet;

/// Its settings.
pub const OPTIONS: &[Opt] = &[
    WORKLOAD_API,
    MAX_TOKEN_LIFETIME,
    DIAL_TIMEOUT,
    STATE_DIR,
    CONNECT_TO,
    Opt::new("name", "NSM_NAME", "vL3-server", Shape::Text, "Name of this process in paths and in the registry"),
    endpoint::DIR,
    Opt::new("service-names", "NSM_SERVICE_NAMES", "vL3", Shape::List, "The network: services that it provides with others"),
    endpoint::LABELS,
    endpoint::REGISTER_SERVICE,
    endpoint::UNREGISTER,
    guard::CLIENT_POLICIES,
    Opt::new("request-labels", "NSM_REQUEST_LABELS", "", Shape::Map, "Labels of its Requests to other endpoints of the network"),
    Opt::new(
        "prefix-server-url",
        "NSM_PREFIX_SERVER_URL",
        "vl3-ipam:5006",
        Shape::Targets,
        "Prefix servers; of several, as one for each family, it gets a prefix each",
    ),
    Opt::new("liveness-check-enabled", "NSM_LIVENESS_CHECK_ENABLED", "true", Shape::Bool, "Look whether packets pass to other endpoints"),
    Opt::new("liveness-check-interval", "NSM_LIVENESS_CHECK_INTERVAL", "1200ms", Shape::Duration, "Pause between two looks at a wire"),
    Opt::new(
        "liveness-check-timeout",
        "NSM_LIVENESS_CHECK_TIMEOUT",
        "1s",
        Shape::Duration,
        "Silence after which a wire is taken to be dead",
    ),
    endpoint::IDLE_TIMEOUT,
    Opt::new(
        "dns-templates",
        "NSM_DNS_TEMPLATES",
        "{{ index .Labels \"podName\" }}.{{ .NetworkService }}.",
        Shape::List,
        "Names of its clients; {{ .Identity }} is the last part of a client's SPIFFE ID",
    ),
    Opt::new("dns-listen", "", "[::]:53", Shape::Text, "Where its name server listens; empty: nowhere, and clients have no names"),
];
/// Longest pause between tries to mend a wire to another endpoint.
const MEND_PAUSE: Duration = Duration::from_secs(2);

/// What was set.
struct Given {
    config: Config,
    servers: Vec<Target>,
    labels: Labels,
    /// Pause and silence of looks at wires to other endpoints.
    looks: Option<(Duration, Duration)>,
    templates: Vec<Template>,
    listen: Option<SocketAddr>,
    idle: Duration,
}

impl Given {
    fn read(mut settings: Settings) -> Result<Given> {
        let config = Config::read(&mut settings);
        let (servers, labels): (Vec<Target>, Labels) = (settings.list("prefix-server-url"), settings.map("request-labels"));
        let looks = settings.boolean("liveness-check-enabled");
        let times = (settings.duration("liveness-check-interval"), settings.duration("liveness-check-timeout"));
        let (templates, listen) = (settings.list("dns-templates"), settings.optional("dns-listen"));
        let idle = settings.duration("idle-timeout");
        if config.services.is_empty() {
            settings.mistake("--service-names names no service");
        }
        if servers.is_empty() {
            settings.mistake("--prefix-server-url names no server");
        }
        settings.finish()?;
        Ok(Given { config, servers, labels, looks: looks.then_some(times), templates, listen, idle })
    }
}

/// `nsm endpoint vl3`
pub async fn run(settings: Settings, context: Context) -> Result<()> {
    let Given { config, servers, labels, looks, templates, listen, idle } = Given::read(settings)?;
    let here = own_netns()?;
    endpoint::forward(&here)?;
    let process = Process::start(&config.common, &context).await?;
    let changes = Changes::default();
    let mut addresses = Addresses::new(servers.len(), changes.clone());
    if let Some(file) = process.state_file(&config.name, "prefixes") {
        addresses = addresses.remembering(file);
    }
    let mut tasks = JoinSet::new(); // ends with this function
    for (number, target) in servers.iter().enumerate() {
        tasks.spawn(lease(process.dialer.prefixes(target), number, addresses.clone()));
    }
    let mut told = changes.listen();
    tokio::select! {
        _ = told.wait_for(|_| addresses.complete()) => {}
        () = context.shutdown.started() => return Ok(()),
    }

    let names = match listen {
        Some(listen) => named(&config, templates, &addresses, listen).await,
        None => None,
    };
    let dialled = Dialled::new(addresses.clone());
    let (answering, dialling) =
        reserves(&addresses, (&dialled, Environment(context.labels.clone())), LeastMtu::new(changes.clone()), &here, names.as_ref());
    let hop = process.hop(config.role(&process, Parts { reserve: answering, onward: Box::new(End), wiring: Box::new(NoWires) })?);
    if addresses.moved() {
        changes.tell(); // what was agreed with a former process is to be agreed on anew
    }
    let mut client = Hop::new(origin(&config, &process, dialling)?);
    if let Some((interval, silence)) = looks {
        client = client.with_liveness(Arc::new(Echoes::new(here.clone(), interval, silence)));
    }
    let (served, registration) = config.open(&process, hop.clone(), &context).await?;
    let peers = Arc::new(Peers {
        hop: client,
        registry: config.registry(&process),
        dialled,
        own: config.name.as_str().parse()?,
        services: config.services.clone(),
        labels,
        netns: here,
        changes,
    });
    let (dialling, notify) = (peers.clone(), context.notify.clone());
    tasks.spawn(async move { dialling.run(|| notify.ready()).await });
    tasks.spawn(endpoint::end_when_idle(hop.clone(), idle, is_client, context.shutdown.clone()));
    let own =
        names.map(|names| OwnNames { names, labels: config.all_labels(&context), service: config.services[0].clone(), id: process.id() });
    own.iter().for_each(OwnNames::publish);
    if let Some(own) = &own {
        let running = own.names.clone();
        tasks.spawn(async move { running.run().await });
    }
    tasks.spawn(async move {
        while told.changed().await.is_ok() {
            own.iter().for_each(OwnNames::publish);
            ask_again(&hop);
        }
    });
    let ended = process::ended(served).await;
    tasks.shutdown().await;
    peers.close().await;
    registration.end().await;
    ended
}

type Reserves = Vec<Box<dyn Reserve>>;

/// What is held for wires that end here, and for those that begin here.
fn reserves(
    addresses: &Addresses,
    (dialled, place): (&Dialled, Environment),
    least: LeastMtu,
    here: &Netns,
    names: Option<&Names>,
) -> (Reserves, Reserves) {
    let mut answering: Reserves =
        vec![Box::new(Negotiate(vec![Box::new(KernelEnd(here.clone()))])), Box::new(addresses.clone()), Box::new(least.clone())];
    let mut dialling: Reserves = vec![Box::new(dialled.clone()), Box::new(place), Box::new(least)];
    if let Some(names) = names {
        answering.push(Box::new(names.clone()));
        dialling.push(Box::new(PeerNames(names.clone())));
    }
    (answering, dialling)
}

/// Whether somebody needs this endpoint besides others of its kind.
fn is_client(connection: &Connection) -> bool {
    !nsm_endpoints::vl3::is_endpoint(&connection.context)
}

/// The hop where wires to other endpoints begin.
fn origin(config: &Config, process: &Process, reserve: Vec<Box<dyn Reserve>>) -> Result<Role> {
    Ok(Role {
        name: config.name.clone(),
        standing: Standing::Origin,
        issuer: process.issuer.clone(),
        admit: authorize::client(&process.issuer)?,
        reserve,
        onward: Box::new(Fixed(config.manager.clone())),
        dial: process.dial(),
        wiring: Box::new(NoWires),
        kernel: Arc::new(nsm_linux::LinuxKernel::new()?),
        generation: process.generation,
        timing: Timing { retry_max: MEND_PAUSE, ..Timing::default() },
    })
}
