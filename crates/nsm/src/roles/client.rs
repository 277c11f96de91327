//! `nsm client`: asks for network services, keeps them, and closes them when it is told to stop.

use super::{
    authorize,
    keep::Client,
    liveness::Echoes,
    names,
    process::{CONNECT_TO, Common, MAX_TOKEN_LIFETIME, Process, WORKLOAD_API},
    registration::own_netns,
};
use crate::{
    context::Context,
    nsurl::ServiceUrl,
    settings::{self, Opt, Settings, Shape},
};
use nsm_api::*;
use nsm_hop::{
    adoption,
    hop::Hop,
    kernel::{IfName, Netns},
    mechanism::{own_kernel, service_interface_name},
    onward::Fixed,
    reserve::{Environment, Siblings},
    role::{Liveness, NoWires, Reserve, Role, Standing, Timing},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

/// Settings of `nsm client`.
pub const OPTIONS: &[Opt] = &[
    WORKLOAD_API,
    MAX_TOKEN_LIFETIME,
    CONNECT_TO,
    Opt::new("dial-timeout", "NSM_DIAL_TIMEOUT", "5s", Shape::Duration, "Longest wait for the manager to accept a connection"),
    Opt::new("name", "NSM_NAME", "nsc", Shape::Text, "Name of this process in paths; its connections are called NAME-0, NAME-1, ..."),
    Opt::new("request-timeout", "NSM_REQUEST_TIMEOUT", "15s", Shape::Duration, "Longest wait for one try"),
    Opt::new("network-services", "NSM_NETWORK_SERVICES", "", Shape::Services, "What to ask for: kernel://SERVICE/INTERFACE?LABEL=VALUE"),
    Opt::new("payload", "", "", Shape::Text, "Insist on this payload, IP or ETHERNET; empty: whatever the service carries"),
    Opt::new(
        "mode",
        "NSM_MODE",
        "stay",
        Shape::OneOf(&["stay", "init"]),
        "stay: keep the wires, close them at the end; init: end as soon as they are up",
    ),
    Opt::accepted("labels", "NSM_LABELS"),
    Opt::accepted("mechanism", "NSM_MECHANISM"),
    Opt::new(
        "awareness-groups",
        "NSM_AWARENESS_GROUPS",
        "",
        Shape::Text,
        "[URL,URL],[URL,URL]: services of one group may have the same addresses",
    ),
    Opt::new(
        "local-dns-server-enabled",
        "NSM_LOCAL_DNS_SERVER_ENABLED",
        "auto",
        Shape::Text,
        "true, false or auto: resolve names by the servers that services bring, by way of /etc/resolv.conf; auto: where that file is a mount of its own, as in a container",
    ),
    Opt::new("local-dns-server-address", "NSM_LOCAL_DNS_SERVER_ADDRESS", "127.0.0.1:53", Shape::Text, "Where that resolver listens"),
    Opt::new(
        "liveness-check-enabled",
        "NSM_LIVENESS_CHECK_ENABLED",
        "true",
        Shape::Bool,
        "Look whether packets pass, and go to another endpoint when they do not",
    ),
    Opt::new("liveness-check-interval", "NSM_LIVENESS_CHECK_INTERVAL", "200ms", Shape::Duration, "Pause between two looks at a wire"),
    Opt::new(
        "liveness-check-timeout",
        "NSM_LIVENESS_CHECK_TIMEOUT",
        "1s",
        Shape::Duration,
        "Silence after which a wire is taken to be dead",
    ),
];
/// Longest pause between tries to mend a wire: soon after its cause has gone, and no more than one try a second.
const MEND_PAUSE: Duration = Duration::from_secs(2);

/// Asks until everything is up; in mode `stay`, keeps it until it is told to stop.
pub async fn run(mut settings: Settings, context: Context) -> Result<()> {
    let common = Common::read(&mut settings);
    let (name, manager): (HopName, Target) = (settings.text("name"), settings.text("connect-to"));
    let timeout = settings.duration("request-timeout");
    let stay = settings.choice("mode") == "stay";
    let urls: Vec<ServiceUrl> = settings.list("network-services");
    let payload: Payload = settings.text::<String>("payload").as_str().into();
    let looks = settings.boolean("liveness-check-enabled");
    let groups: Vec<Vec<ServiceUrl>> = settings.groups("awareness-groups");
    let dns = settings.read("local-dns-server-enabled", |text| match text {
        "auto" => Ok(names::has_own_resolv_conf()),
        other => settings::boolean(other),
    });
    let dns_address: SocketAddr = settings.text("local-dns-server-address");
    let (interval, silence) = (settings.duration("liveness-check-interval"), settings.duration("liveness-check-timeout"));
    if urls.is_empty() {
        settings.mistake("--network-services names no service");
    }
    settings.finish()?;

    let process = Process::start(&common, &context).await?;
    let here = own_netns()?;
    let requests = urls.iter().enumerate().map(|(i, url)| request(&name, i, url, &here));
    let mut requests: Vec<Request> =
        requests.collect::<Result<_>>().map_err(|error| error.at(&name)).inspect_err(|error| context.notify.status(&error.to_string()))?;
    requests.iter_mut().for_each(|request| request.connection.payload = payload.clone());
    let liveness = looks.then(|| Arc::new(Echoes::new(here, interval, silence)) as Arc<dyn Liveness>);
    let at = process.dial().dial(&manager, &Files::default());
    let former = tokio::select! {
        former = adoption::former(at.as_ref(), &name) => former,
        () = context.shutdown.started() => BTreeMap::new(),
    };
    let mut reserve: Vec<Box<dyn Reserve>> =
        vec![Box::new(Environment(context.labels.clone())), Box::new(Siblings::new(aware(&groups, &urls, &requests)))];
    let (names, serving) = dns.then(|| names::serve(dns_address, context.shutdown.clone())).unzip();
    reserve.extend(names.map(|names| Box::new(names) as Box<dyn Reserve>));
    let mut hop = hop(name, &process, (manager, reserve), timeout)?;
    if let Some(liveness) = &liveness {
        hop = hop.with_liveness(liveness.clone());
    }
    let client = Client { hop, context, timeout, liveness, former };
    let ended = client.keep(requests, stay).await;
    if let Some(serving) = serving.filter(|_| stay) {
        client.context.shutdown.start(); // also when there is nothing (more) to keep
        let _ = serving.await; // resolv.conf is as it was
    }
    ended
}

/// The connections of each awareness group.
fn aware(groups: &[Vec<ServiceUrl>], urls: &[ServiceUrl], requests: &[Request]) -> Vec<BTreeSet<ConnectionId>> {
    let ids = |group: &Vec<ServiceUrl>| {
        urls.iter().zip(requests).filter(|(url, _)| group.contains(url)).map(|(_, request)| request.connection.id.clone()).collect()
    };
    groups.iter().map(ids).collect()
}

fn hop(name: HopName, process: &Process, (manager, reserve): (Target, Vec<Box<dyn Reserve>>), timeout: Duration) -> Result<Hop> {
    Ok(Hop::new(Role {
        name,
        standing: Standing::Origin,
        issuer: process.issuer.clone(),
        admit: authorize::client(&process.issuer)?,
        reserve,
        onward: Box::new(Fixed(manager)),
        dial: process.dial(),
        wiring: Box::new(NoWires),
        kernel: Arc::new(nsm_linux::LinuxKernel::new()?),
        generation: process.generation,
        timing: Timing { request_timeout: timeout, retry_max: MEND_PAUSE, ..Timing::default() },
    }))
}

/// The Request for the `i`-th service.
fn request(name: &HopName, i: usize, url: &ServiceUrl, here: &Netns) -> Result<Request> {
    let id = ConnectionId::new(format!("{name}-{i}"))?;
    let mut connection = Connection::new(id.clone(), url.service.clone());
    connection.labels.clone_from(&url.labels);
    let mut files = Files::default();
    let mechanism = match url.mechanism.kind {
        MechanismKind::Kernel => {
            let generated = || service_interface_name(&url.service, &id);
            let interface = url.interface().map_or_else(generated, str::to_owned);
            IfName::new(&interface)?;
            own_kernel(here, Some(&interface), &mut files)
        }
        _ => url.mechanism.clone(),
    };
    Ok(Request { connection, preferences: vec![mechanism], files })
}
