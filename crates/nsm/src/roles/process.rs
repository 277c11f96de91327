//! What the process of every role has: an identity, a way to call others, a way to be called.

use super::{
    authorize::Discreet,
    direct::Direct,
    ids::{Ids, ProcessIssuer},
};
use crate::{
    context::Context,
    journal::{FileJournal, Opened, file_name},
    settings::{GoDuration, Opt, Settings, Shape},
};
use nsm_api::*;
use nsm_grpc::{DialOptions, Dialer, ServeOptions};
use nsm_hop::{
    hop::Hop,
    role::{Dial, Issuer, Role},
};
use nsm_identity::{HopIds, Source};
use nsm_linux::{Forgotten, LinuxKernel};
use std::{
    collections::BTreeMap,
    net::IpAddr,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tracing::warn;

/// Longest wait for the first identity. The authority may start at the same time as we do.
const IDENTITY_TIMEOUT: Duration = Duration::from_secs(20);

/// Where the identity comes from.
pub const WORKLOAD_API: Opt = Opt::new(
    "workload-api",
    "SPIFFE_ENDPOINT_SOCKET",
    "unix:///run/nsm/workload.sock",
    Shape::Target,
    "SPIFFE Workload API that gives this process its identity",
);
/// How long a token lives.
pub const MAX_TOKEN_LIFETIME: Opt = Opt::new(
    "max-token-lifetime",
    "NSM_MAX_TOKEN_LIFETIME",
    "10m",
    Shape::Duration,
    "Longest life of a token, so of a connection without refresh",
);
/// How long a dial may take, for processes near each other.
pub const DIAL_TIMEOUT: Opt =
    Opt::new("dial-timeout", "NSM_DIAL_TIMEOUT", "750ms", Shape::Duration, "Longest wait for a peer to accept a connection");
/// Where a process that others call keeps what must survive its restart.
pub const STATE_DIR: Opt = Opt::new(
    "state-dir",
    "NSM_STATE_DIR",
    "",
    Shape::Directory,
    "Keeps the key of connection ids and a journal of connections, so that a restart disturbs nobody; empty: $XDG_STATE_HOME/nsm, /var/lib/nsm or ~/.local/state/nsm",
);
/// The manager of this node.
pub const CONNECT_TO: Opt =
    Opt::new("connect-to", "NSM_CONNECT_TO", "unix:///var/lib/networkservicemesh/nsm.io.sock", Shape::Target, "The manager of this node");

/// What the tables above hold.
pub struct Common {
    workload_api: Target,
    max_token_life: Duration,
    dial_timeout: Duration,
    ids: Ids,
}

impl Common {
    /// Reads [`WORKLOAD_API`], [`MAX_TOKEN_LIFETIME`] and [`DIAL_TIMEOUT`]; [`STATE_DIR`] where the role has it.
    pub fn read(settings: &mut Settings) -> Common {
        Common {
            workload_api: settings.text("workload-api"),
            // Below zero, as other implementations take it: tokens that have ended when they are made.
            max_token_life: settings.read("max-token-lifetime", |text| Ok(text.parse::<GoDuration>()?.to_std().unwrap_or_default())),
            dial_timeout: settings.duration("dial-timeout"),
            ids: Ids::read(settings),
        }
    }
}

/// A process with an identity.
#[derive(Clone)]
pub struct Process {
    source: Source,
    /// Calls others.
    pub dialer: Dialer,
    /// Tokens, ids, clock.
    pub issuer: Arc<dyn Issuer>,
    /// What connections are called, and their secrets.
    pub ids: HopIds,
    /// Grows with every start, as long as the clock does.
    pub generation: u64,
    /// Where what must survive a restart is kept.
    state: Option<PathBuf>,
    max_token_life: Duration,
}

impl Process {
    /// Waits for the identity, unless it is told to stop first.
    pub async fn start(common: &Common, context: &Context) -> Result<Process> {
        let socket = common.workload_api.to_string();
        let source = tokio::select! {
            source = Source::connect(&socket, IDENTITY_TIMEOUT) => source?,
            () = context.shutdown.started() => {
                return Err(Error::new(Kind::Unavailable, format!("Workload API {socket}"), "had given no identity when this process was told to stop", "start `nsm identity`, or name another socket in SPIFFE_ENDPOINT_SOCKET"));
            }
        };
        let dialer = Dialer::new(
            source.clone(),
            DialOptions {
                dial_timeout: common.dial_timeout,
                max_token_life: common.max_token_life,
                // Whoever dials here tries again by itself, or has another peer to try.
                wait_for_ready: Duration::ZERO,
            },
        );
        let (ids, state) = common.ids.load()?;
        let issuer = Arc::new(ProcessIssuer { source: source.clone(), ids: ids.clone(), max_life: common.max_token_life });
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let generation = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
        Ok(Process { source, dialer, issuer, ids, generation, state, max_token_life: common.max_token_life })
    }

    /// Where the process of this name keeps something over its restarts, if it can.
    pub fn state_file(&self, name: &HopName, what: &str) -> Option<PathBuf> {
        self.state.as_ref().map(|dir| dir.join(format!("{}.{what}", file_name(name.as_str()))))
    }

    /// The hop of a role, with the connections that its former process had.
    pub fn hop(&self, mut role: Role) -> Hop {
        let Some(dir) = self.state_file(&role.name, "journal") else { return Hop::new(role) };
        match FileJournal::open(&dir, role.generation) {
            Ok(Opened { journal, records, generation }) => {
                role.generation = generation;
                Hop::new(role).with_journal(Arc::new(journal), records)
            }
            Err(error) => {
                warn!(%error, "a sudden end of this process will disturb its connections");
                Hop::new(role)
            }
        }
    }

    /// What a former process of the hop has made and nobody knows of goes when all tokens of that time have ended.
    pub fn sweep(&self, hop: &Hop, kernel: LinuxKernel) {
        let known = hop.clone();
        let (hop, known) = ((hop.name().clone(), hop.generation()), Arc::new(move || known.known()));
        tokio::spawn(kernel.sweep(Forgotten { hop, after: self.max_token_life, known }));
    }

    /// Listens, and serves until the shutdown; answers as soon as everything listens.
    pub async fn serve(
        &self,
        listen: Vec<Target>,
        network: Option<Arc<dyn NetworkServiceApi>>,
        registry: Option<Arc<dyn RegistryApi>>,
        context: &Context,
    ) -> Result<nsm_grpc::Served> {
        let network = network.map(|hop| Arc::new(Discreet(hop)) as Arc<dyn NetworkServiceApi>);
        self.serve_all(listen, (network, registry, None), context).await
    }
    /// The same for a server of prefixes.
    pub async fn serve_prefixes(&self, listen: Vec<Target>, prefixes: Arc<dyn PrefixApi>, context: &Context) -> Result<nsm_grpc::Served> {
        self.serve_all(listen, (None, None, Some(prefixes)), context).await
    }
    async fn serve_all(&self, listen: Vec<Target>, (network, registry, prefixes): Apis, context: &Context) -> Result<nsm_grpc::Served> {
        let (source, max_token_life) = (self.source.clone(), self.max_token_life);
        let options = ServeOptions { listen, network, registry, prefixes, source, max_token_life };
        let shutdown = context.shutdown.clone();
        nsm_grpc::serve(options, async move { shutdown.started().await }).await
    }

    /// Who this process is.
    pub fn id(&self) -> SpiffeId {
        self.source.id()
    }

    /// The certificate that this process shows now, as DER.
    pub fn certificate(&self) -> Arc<[u8]> {
        self.source.certificate()
    }

    /// Calls other processes.
    pub fn dial(&self) -> Arc<dyn Dial> {
        self.dial_with(BTreeMap::new())
    }
    /// Calls other processes, and `local` hops of this one without a wire.
    pub fn dial_with(&self, local: BTreeMap<String, Arc<dyn NetworkServiceApi>>) -> Arc<dyn Dial> {
        let direct =
            |hop| Arc::new(Direct { hop, source: self.source.clone(), max_life: self.max_token_life }) as Arc<dyn NetworkServiceApi>;
        Arc::new(ProcessDial { dialer: self.dialer.clone(), local: local.into_iter().map(|(name, hop)| (name, direct(hop))).collect() })
    }
}

/// What a process answers.
type Apis = (Option<Arc<dyn NetworkServiceApi>>, Option<Arc<dyn RegistryApi>>, Option<Arc<dyn PrefixApi>>);

struct ProcessDial {
    dialer: Dialer,
    local: BTreeMap<String, Arc<dyn NetworkServiceApi>>,
}

impl Dial for ProcessDial {
    fn dial(&self, target: &Target, socket: &Files) -> Arc<dyn NetworkServiceApi> {
        match target {
            Target::InProcess(name) if self.local.contains_key(name) => self.local[name].clone(),
            _ => self.dialer.network_service(target, socket),
        }
    }
}

/// Waits until a server has ended as it should.
pub async fn ended(served: nsm_grpc::Served) -> Result<()> {
    served.ended.await.map_err(|problem| Error::internal("the server of this process", problem.to_string()))
}

/// The first address of this node that others can reach: global, not loopback, IPv4 before IPv6.
pub fn node_address() -> Result<IpAddr> {
    let here = nsm_linux::netns::current()?;
    let net = nsm_linux::net::Net::new(&here)?;
    let mut addresses: Vec<IpAddr> = net.addresses()?.into_iter().map(|entry| entry.address.addr()).filter(reachable).collect();
    addresses.sort_by_key(IpAddr::is_ipv6);
    addresses.into_iter().next().ok_or_else(|| {
        Error::new(
            Kind::NotFound,
            "this node",
            "has no address besides loopback",
            "give it one, or name one with --tunnel-ip or --listen-on",
        )
    })
}

fn reachable(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => !address.is_loopback() && !address.is_link_local() && !address.is_unspecified(),
        IpAddr::V6(address) => !address.is_loopback() && !address.is_unicast_link_local() && !address.is_unspecified(),
    }
}
