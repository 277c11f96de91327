//! `nsm node`: identity, registry, manager and forwarder of one node in one process, joined by direct calls.

use super::{
    forwarder, guard, identity, manager,
    process::{self, Common, DIAL_TIMEOUT, MAX_TOKEN_LIFETIME, Process, STATE_DIR, WORKLOAD_API},
    registration::Registration,
    tunnels,
};
use crate::{
    context::Context,
    metrics::Metrics,
    settings::{Opt, Settings, Shape},
};
use nsm_api::*;
use nsm_hop::services;
use nsm_identity::{Identity, WorkloadSocket};
use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

/// Settings of `nsm node`.
pub const OPTIONS: &[Opt] = &[
    WORKLOAD_API,
    MAX_TOKEN_LIFETIME,
    DIAL_TIMEOUT,
    STATE_DIR,
    Opt::new("name", "NSM_NAME", "node", Shape::Text, "Name of this node; its manager and forwarder are NAME-manager and NAME-forwarder"),
    manager::LISTEN_ON,
    Opt::new("registry-url", "NSM_REGISTRY_URL", "", Shape::Target, "The registry; empty: one in this process"),
    manager::FORWARDER_SERVICE,
    guard::SERVER_POLICIES,
    guard::CLIENT_POLICIES,
    manager::EXCLUDED_PREFIXES,
    tunnels::TUNNEL_IP,
    tunnels::VXLAN_PORT,
    tunnels::WIREGUARD_PORT,
    tunnels::PACKET_ENGINE,
    tunnels::MECHANISM_PRIORITY,
    tunnels::ENCRYPTED_ONLY,
    forwarder::METRICS,
    forwarder::METRICS_CERTIFICATE,
    forwarder::METRICS_KEY,
    forwarder::METRICS_AUTHORITIES,
    forwarder::METRICS_WATCHED,
    forwarder::METRICS_PATIENCE,
    identity::TRUST_DOMAIN,
    identity::AUTHORITY_DIR,
    Opt::new(
        "authority",
        "NSM_AUTHORITY",
        "true",
        Shape::Bool,
        "Serve identities at the Workload API socket; false: use the one that is there",
    ),
];

/// Serves until it is told to stop.
pub async fn run(mut settings: Settings, context: Context) -> Result<()> {
    let common = Common::read(&mut settings);
    let config = manager::Config::read(&mut settings);
    let tunnel = tunnels::Tunnel::read(&mut settings);
    let (socket, domain, dir): (Target, String, Option<PathBuf>) =
        (settings.text("workload-api"), settings.text("trust-domain"), settings.optional("authority-dir"));
    let own_authority = settings.boolean("authority");
    let metrics = forwarder::metrics(&mut settings);
    settings.finish()?;

    if own_authority {
        let sockets = vec![WorkloadSocket::new(identity::socket_path(&socket)?, Identity::PeerUser)];
        let shutdown = context.shutdown.clone();
        let serving = identity::authority(&domain, dir)?.serve(sockets, async move { shutdown.started().await })?;
        tokio::spawn(async move {
            if let Err(error) = serving.await {
                tracing::error!(%error, "the authority ended");
            }
        });
    }
    serve(Process::start(&common, &context).await?, config, (tunnel, metrics), context).await
}

async fn serve(
    process: Process,
    mut config: manager::Config,
    (tunnel, metrics): (tunnels::Tunnel, Option<Metrics>),
    context: Context,
) -> Result<()> {
    let node = config.name.clone();
    config.name = HopName::new(format!("{node}-manager"))?;
    let forwarder_name = HopName::new(format!("{node}-forwarder"))?;
    let service: ServiceName = config.forwarder_service.clone();

    let registry = config.registry(&process, &context)?;
    let in_process: Arc<dyn RegistryApi> = Arc::new(registry.in_process());
    let forwarder = forwarder::hop(forwarder_name.clone(), &process, process.dial(), in_process.clone(), tunnel).await?;
    if let Some(metrics) = metrics {
        crate::metrics::serve(metrics, vec![forwarder.clone()], context.shutdown.clone()).await?;
    }
    let local = BTreeMap::from([(forwarder_name.to_string(), Arc::new(forwarder) as Arc<dyn NetworkServiceApi>)]);
    let hop = config.hop(&process, process.dial_with(local), in_process.clone(), &context)?;
    tokio::spawn(services::follow(hop.clone(), in_process.clone()));

    let mut endpoint = NetworkServiceEndpoint::new(
        forwarder_name.as_str().parse()?,
        vec![service.clone()],
        Target::InProcess(forwarder_name.to_string()).to_string(),
    );
    endpoint.network_service_labels.insert(service, Labels::from([("p2p".to_owned(), "true".to_owned())]));
    let registration = Registration::start(in_process, endpoint, Files::default(), &context).await;
    let registry = guard::server(Arc::new(registry), config.server_policies);
    let served = process.serve(config.listen_on, Some(Arc::new(hop)), Some(registry), &context).await?;
    context.notify.ready();
    let ended = process::ended(served).await;
    registration.end().await;
    ended
}
