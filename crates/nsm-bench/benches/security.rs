//! What security costs: the same hops with mTLS, tokens and policies, and without, in turns.
//!
//!     cargo bench -p nsm-bench --bench security
//!
//! A client, a manager, a forwarder with the real kernel, and an endpoint, each with sockets and an identity of its own
//! in this process. Needs root. Ends with 1 when a bar does not hold.

#![allow(missing_docs)] // a program

use nsm_api::*;
use nsm_grpc::{DialOptions, Dialer, ServeOptions, WithoutSecurity, serve};
use nsm_hop::{
    hop::Hop,
    kernel::Netns,
    mechanism::{KernelEnd, KernelLeg, KernelOffer, Negotiate, own_kernel},
    onward::{End, Endpoints, Fixed},
    reserve::{Ipam, IpamPolicy, UnknownMtu},
    role::{Admit, Dial, Draft, Issuer, NoWires, Onward, Reserve, Role, Standing, Timing, Wiring},
    wiring::ForwarderWiring,
};
use nsm_identity::{Authority, HopIds, Identity, Place, Source, WorkloadSocket, install_crypto_provider};
use nsm_linux::{LinuxKernel, netns};
use nsm_policy::{PolicySet, Question, jwt};
use nsm_registry::{MemoryEngine, Registry};
use std::{
    path::Path as Dir,
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

/// Turns of each side.
const TURNS: usize = 200;
/// Refreshes in one turn.
const REFRESHES: usize = 5;
/// The first turns dial what stays dialled.
const WARM_UPS: usize = 5;
/// How long one call may take, and a token lives.
const BOUND: Duration = Duration::from_secs(20);
const LIFE: Duration = Duration::from_secs(600);
/// Request p50, secured against plain; microseconds of a policy check.
const RATIO_BAR: f64 = 1.5;
const POLICY_BAR: f64 = 50.0;

/// A process of the mesh.
#[derive(Clone)]
struct Process {
    source: Source,
    ids: HopIds,
    dialer: Dialer,
    secured: bool,
}

impl Process {
    async fn new(dir: &Dir, name: &str, secured: bool) -> Result<Process> {
        let source = Source::connect(&format!("unix://{}/{name}.id", dir.display()), BOUND).await?;
        Ok(Process { dialer: Dialer::new(source.clone(), DialOptions::default()), source, ids: HopIds::random()?, secured })
    }
    fn hop(&self, name: &str, (reserve, onward, wiring): Parts) -> Result<Hop> {
        let issuer: Arc<dyn Issuer> = Arc::new(self.clone());
        let admit: Vec<Box<dyn Admit>> = if self.secured { vec![Box::new(Policies(PolicySet::server()))] } else { vec![] };
        Ok(Hop::new(Role {
            name: HopName::new(name)?,
            standing: Standing::Server,
            issuer,
            admit,
            reserve,
            onward,
            dial: Arc::new(self.clone()),
            wiring,
            kernel: Arc::new(LinuxKernel::new()?),
            generation: 1,
            timing: Timing::default(),
        }))
    }
    async fn serve(&self, hop: Hop, at: &Target) -> Result<()> {
        let options = ServeOptions {
            listen: vec![at.clone()],
            network: Some(Arc::new(hop)),
            registry: None,
            prefixes: None,
            source: self.source.clone(),
            max_token_life: LIFE,
        };
        serve(options, std::future::pending()).await.map(drop)
    }
}

impl Dial for Process {
    fn dial(&self, target: &Target, socket: &Files) -> Arc<dyn NetworkServiceApi> {
        self.dialer.network_service(target, socket)
    }
}

impl Issuer for Process {
    fn token(&self, caller: &Caller) -> Result<(String, SystemTime)> {
        if !self.secured {
            return Ok((String::new(), SystemTime::now() + LIFE));
        }
        let not_after = caller.certificate.as_deref().and_then(|leaf| nsm_identity::peer(&[leaf.into()])).map(|peer| peer.not_after);
        let token = self.source.token(caller.identity.as_ref(), LIFE, not_after)?;
        Ok((token.text, token.expires))
    }
    fn connection_id(&self, path: &Path, caller: &Caller) -> ConnectionId {
        let origin = origin(path, caller);
        self.ids.derive(place(&path.segments[0], &origin), place(&path.segments[path.index as usize], shown(caller)))
    }
    fn gave(&self, id: &ConnectionId, path: &Path, caller: &Caller) -> bool {
        self.ids.gave(id, place(&path.segments[0], &origin(path, caller)))
    }
    fn now(&self) -> SystemTime {
        SystemTime::now()
    }
    fn random(&self, _: u64) -> u64 {
        0
    }
}

fn place<'a>(segment: &'a Segment, identity: &'a str) -> Place<'a> {
    Place { name: &segment.name, id: &segment.id, identity }
}

fn shown(caller: &Caller) -> &str {
    caller.identity.as_ref().map_or("", SpiffeId::as_str)
}

fn origin(path: &Path, caller: &Caller) -> String {
    if path.index == 0 { shown(caller).to_owned() } else { jwt::subject(&path.segments[0].token).unwrap_or_default() }
}

struct Policies(PolicySet);

impl Admit for Policies {
    fn admit(&self, draft: &Draft, caller: &Caller) -> Result<()> {
        self.0.check("connection", &Question::server(&draft.connection.path, caller.certificate.as_deref(), SystemTime::now()))
    }
    fn admit_close(&self, connection: &Connection, caller: &Caller) -> Result<()> {
        self.0.check("connection", &Question::close(&connection.path, caller.certificate.as_deref(), SystemTime::now()))
    }
}

type Parts = (Vec<Box<dyn Reserve>>, Box<dyn Onward>, Box<dyn Wiring>);

/// A whole mesh, and the namespace of its client.
struct Mesh {
    client: Process,
    api: Arc<dyn NetworkServiceApi>,
    manager: Target,
    pod: Netns,
    secured: bool,
}

impl Mesh {
    async fn new(dir: &Dir, secured: bool) -> Result<Mesh> {
        let kind = if secured { "on" } else { "off" };
        let at = |name: &str| Target::Unix(dir.join(format!("{name}-{kind}.sock")));
        let process = async |name: &str| Process::new(dir, name, secured).await;
        let (client, manager, forwarder, endpoint) =
            (process("client").await?, process("manager").await?, process("forwarder").await?, process("endpoint").await?);
        let pool = "10.78.0.0/24".parse().expect("a constant prefix is well-formed");
        let reserve: Vec<Box<dyn Reserve>> = vec![
            Box::new(Negotiate(vec![Box::new(KernelEnd(netns::create()?))])),
            Box::new(Ipam::new(vec![vec![pool]], IpamPolicy::Polite)),
        ];
        endpoint.serve(endpoint.hop("endpoint", (reserve, Box::new(End), Box::new(NoWires)))?, &at("endpoint")).await?;
        let registry = Arc::new(Registry::new(Arc::new(MemoryEngine::new()), Arc::new(SystemTime::now)));
        registry.register_service(NetworkService::new("svc".parse()?, Payload::Ip), Caller::default()).await?;
        let entry = NetworkServiceEndpoint::new("endpoint".parse()?, vec!["svc".parse()?], at("endpoint").to_string());
        // Longer than this takes.
        let registry = Arc::new(Arc::into_inner(registry).expect("nobody else has it").with_expire_period(Duration::from_secs(3600)));
        registry.register_endpoint(entry, Files::default(), Caller::default()).await?;
        let issuer: Arc<dyn Issuer> = Arc::new(forwarder.clone());
        let onward = Endpoints::new(registry, vec![Box::new(KernelOffer)], issuer);
        let reserve: Vec<Box<dyn Reserve>> = vec![Box::new(Negotiate(vec![Box::new(KernelLeg)])), Box::new(UnknownMtu(1500))];
        forwarder
            .serve(forwarder.hop("forwarder", (reserve, Box::new(onward), Box::new(ForwarderWiring { keys: None })))?, &at("forwarder"))
            .await?;
        manager.serve(manager.hop("manager", (vec![], Box::new(Fixed(at("forwarder"))), Box::new(NoWires)))?, &at("manager")).await?;
        let api = client.dialer.network_service(&at("manager"), &Files::default());
        Ok(Mesh { client, api, manager: at("manager"), pod: netns::create()?, secured })
    }

    /// One connection from nothing to nothing; dialled before, or by itself.
    async fn turn(&self, number: usize, times: &mut Times) -> Result<()> {
        let fresh = Dialer::new(self.client.source.clone(), DialOptions::default()).network_service(&self.manager, &Files::default());
        for (api, requests) in [(&self.api, &mut times.dialled), (&fresh, &mut times.dialling)] {
            let id = ConnectionId::new(format!("c-{number}"))?;
            let mut connection = Connection::new(id.clone(), "svc".parse()?);
            connection.path.segments.push(Segment::new(HopName::new("client")?, id));
            let mut files = Files::default();
            let mechanism = own_kernel(&self.pod, Some("nsm-1"), &mut files);
            let plain = (!self.secured).then(WithoutSecurity::begin);
            let begun = Instant::now();
            let asked = Request { connection, preferences: vec![mechanism.clone()], files: files.clone() };
            let up = api.request(asked, Caller::within(BOUND)).await?.connection;
            requests.push(begun.elapsed());
            drop(plain);
            for _ in 0..REFRESHES {
                let again = Request { connection: up.clone(), preferences: vec![mechanism.clone()], files: files.clone() };
                let begun = Instant::now();
                api.request(again, Caller::within(BOUND)).await?;
                times.refresh.push(begun.elapsed());
            }
            api.close(up, files, Caller::within(BOUND)).await?;
        }
        Ok(())
    }
}

#[derive(Default)]
struct Times {
    dialled: Vec<Duration>,
    dialling: Vec<Duration>,
    refresh: Vec<Duration>,
}

fn median(times: &[Duration]) -> f64 {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    sorted.get(sorted.len() / 2).map_or(f64::NAN, |time| time.as_secs_f64() * 1e6)
}

async fn measure(dir: &Dir) -> Result<bool> {
    let authority = Authority::new("bench.nsm")?;
    let socket = |name: &str| Ok(WorkloadSocket::new(dir.join(format!("{name}.id")), Identity::Fixed(authority.id(&[name])?)));
    let sockets = ["client", "manager", "forwarder", "endpoint"].into_iter().map(socket).collect::<Result<_>>()?;
    tokio::spawn(authority.clone().serve(sockets, std::future::pending())?);
    let (secured, plain) = (Mesh::new(dir, true).await?, Mesh::new(dir, false).await?);
    let (mut on, mut off) = (Times::default(), Times::default());
    for number in 0..WARM_UPS + TURNS {
        secured.turn(number, &mut on).await?;
        plain.turn(number, &mut off).await?;
        if number + 1 == WARM_UPS {
            (on, off) = (Times::default(), Times::default());
        }
    }
    let request = ratio("Request, the manager dialled before, p50", &on.dialled, &off.dialled);
    ratio("Request with the dial, p50", &on.dialling, &off.dialling);
    ratio("refresh, nothing to change, p50", &on.refresh, &off.refresh);
    Ok(parts(&secured.client.source)? & told(request < RATIO_BAR, &format!("the first ratio is below {RATIO_BAR}")))
}

fn ratio(what: &str, on: &[Duration], off: &[Duration]) -> f64 {
    let (on, off) = (median(on), median(off));
    println!("{what}: {on:.0} us with security, {off:.0} us without, ratio {:.3}", on / off);
    on / off
}

fn told(holds: bool, what: &str) -> bool {
    println!("{}: {what}", if holds { "holds" } else { "DOES NOT HOLD" });
    holds
}

/// What every hop does once or twice in each call. All processes of the path are this one, which changes no cost.
fn parts(source: &Source) -> Result<bool> {
    let (id, certificate) = (source.id(), source.certificate());
    let token = source.token(Some(&id), LIFE, None)?.text;
    let leaf = jwt::Leaf::from_der(&certificate).ok_or_else(|| Error::internal("certificate", "cannot be read"))?;
    let mut path = Path::default();
    for name in ["client", "manager", "forwarder", "endpoint"] {
        path.segments.push(Segment { token: token.clone(), ..Segment::new(HopName::new(name)?, ConnectionId::new(name)?) });
    }
    path.index = 3;
    let policies = PolicySet::server();
    each("sign a token", || source.token(Some(&id), LIFE, None).map(drop))?;
    each("read a certificate and verify a token with it", || {
        let leaf = jwt::Leaf::from_der(&certificate);
        leaf.and_then(|leaf| leaf.signed(&token)).filter(|signed| *signed).map(drop).ok_or_else(|| Error::internal("token", "is not good"))
    })?;
    let verify = each("of it the signature", || leaf.signed(&token).map(drop).ok_or_else(|| Error::internal("token", "is none")))?;
    let check = each("all policies of a server, path of 4", || {
        policies.check("x", &Question::server(&path, Some(&certificate), SystemTime::now()))
    })?;
    println!("policies without the signature: {:.1} us", check - verify);
    Ok(told(check - verify < POLICY_BAR, &format!("a policy check, besides verifying a signature, takes less than {POLICY_BAR} us")))
}

fn each(what: &str, mut work: impl FnMut() -> Result<()>) -> Result<f64> {
    let mut times = vec![];
    for _ in 0..TURNS * 5 {
        let begun = Instant::now();
        work()?;
        times.push(begun.elapsed());
    }
    println!("{what}: {:.1} us", median(&times));
    Ok(median(&times))
}

fn main() -> ExitCode {
    install_crypto_provider();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("threads can be started");
    let dir = tempfile::tempdir().expect("a directory for sockets can be made");
    match runtime.block_on(measure(dir.path())) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("security: {error}");
            ExitCode::FAILURE
        }
    }
}
