//! What a client may hand to a forwarder, and how its interface may be called. The kernel is the real one.

use crate::world::*;
use nsm::roles::{authorize, process::Process};
use nsm_api::*;
use nsm_hop::{
    hop::Hop,
    kernel::Netns,
    mechanism::{KernelEnd, KernelLeg, KernelOffer, Negotiate, own_kernel},
    onward::{End, Endpoints},
    reserve::{Ipam, IpamPolicy, UnknownMtu},
    role::{NoWires, Onward, Reserve, Role, Standing, Timing, Wiring},
    wiring::ForwarderWiring,
};
use nsm_linux::{LinuxKernel, net::Net, netns};
use nsm_registry::{MemoryEngine, Registry};
use rustix::fs::{Mode, OFlags};
use std::{
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

/// A forwarder and an endpoint in a namespace of its own, and one wire that is up.
struct Scene {
    world: World,
    forwarder: Hop,
    endpoint: Hop,
    evil: Arc<dyn NetworkServiceApi>,
    endpoint_net: Net,
    victim_net: Net,
}

struct Parts {
    reserve: Vec<Box<dyn Reserve>>,
    onward: Box<dyn Onward>,
    wiring: Box<dyn Wiring>,
}

fn hop(name: &str, process: &Process, parts: Parts) -> Hop {
    Hop::new(Role {
        name: HopName::new(name).unwrap(),
        standing: Standing::Server,
        issuer: process.issuer.clone(),
        admit: authorize::forwarder(&process.issuer).unwrap(),
        reserve: parts.reserve,
        onward: parts.onward,
        dial: process.dial(),
        wiring: parts.wiring,
        kernel: Arc::new(LinuxKernel::new().expect("these tests make network interfaces: run them as root")),
        generation: process.generation,
        timing: Timing::default(),
    })
}

impl Scene {
    async fn new() -> Scene {
        let world = World::new(&["forwarder", "endpoint", "victim", "evil"]);
        let (own, far) = (world.process("forwarder").await, world.process("endpoint").await);
        let there = netns::create().expect("these tests make network namespaces: run them as root");
        let reserve: Vec<Box<dyn Reserve>> = vec![
            Box::new(Negotiate(vec![Box::new(KernelEnd(there.clone()))])),
            Box::new(Ipam::new(vec![vec!["10.77.0.0/24".parse().unwrap()]], IpamPolicy::Polite)),
        ];
        let endpoint = hop("endpoint", &far, Parts { reserve, onward: Box::new(End), wiring: Box::new(NoWires) });
        far.serve(vec![world.target("endpoint.sock")], Some(Arc::new(endpoint.clone())), None, &world.context).await.unwrap();

        let registry = Arc::new(Registry::new(Arc::new(MemoryEngine::new()), Arc::new(SystemTime::now)));
        registry.register_service(NetworkService::new("svc".parse().unwrap(), Payload::Ip), Caller::default()).await.unwrap();
        let entry = NetworkServiceEndpoint::new("endpoint".parse().unwrap(), vec!["svc".parse().unwrap()], world.url("endpoint.sock"));
        registry.register_endpoint(entry, Files::default(), Caller::default()).await.unwrap();
        let onward = Endpoints::new(registry, vec![Box::new(KernelOffer)], own.issuer.clone());
        let reserve: Vec<Box<dyn Reserve>> = vec![Box::new(Negotiate(vec![Box::new(KernelLeg)])), Box::new(UnknownMtu(1500))];
        let parts = Parts { reserve, onward: Box::new(onward), wiring: Box::new(ForwarderWiring { keys: None }) };
        let forwarder = hop("forwarder", &own, parts);
        own.serve(vec![world.target("forwarder.sock")], Some(Arc::new(forwarder.clone())), None, &world.context).await.unwrap();

        let dial = async |name: &str| world.process(name).await.dialer.network_service(&world.target("forwarder.sock"), &Files::default());
        let (victim, evil) = (dial("victim").await, dial("evil").await);
        let pod = netns::create().unwrap();
        bounded(victim.request(asked("victim-0", kernel_in(&pod, "nsm-1")), Caller::within(BOUND))).await.unwrap();
        let (endpoint_net, victim_net) = (Net::new(&there).unwrap(), Net::new(&pod).unwrap());
        Scene { world, forwarder, endpoint, evil, endpoint_net, victim_net }
    }

    async fn refuse(&self, what: &str, offer: (Mechanism, Files)) -> Error {
        let before = [&self.endpoint_net, &self.victim_net].map(|net| net.snapshot().unwrap());
        let begun = Instant::now();
        let error = bounded(self.evil.request(asked("evil-0", offer), Caller::within(BOUND))).await.expect_err(what);
        assert!(begun.elapsed() < Duration::from_secs(3), "{what}: refused after {:?} only", begun.elapsed());
        assert!(!error.reason.is_empty() && error.kind != Kind::Internal && error.kind != Kind::Timeout, "{what}: {error}");
        for hop in [&self.forwarder, &self.endpoint] {
            bounded(async {
                while hop.busy() > 1 {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            })
            .await;
            assert_eq!(hop.monitors().snapshot().len(), 1, "{what}: {}", hop.name());
        }
        assert_eq!([&self.endpoint_net, &self.victim_net].map(|net| net.snapshot().unwrap()), before, "{what}: something has changed");
        error
    }
}

fn asked(id: &str, (mechanism, files): (Mechanism, Files)) -> Request {
    Request { connection: connection(&[segment(id, id, "")], 0), preferences: vec![mechanism], files }
}

fn kernel_in(netns: &Netns, name: &str) -> (Mechanism, Files) {
    let mut files = Files::default();
    (own_kernel(netns, Some(name), &mut files), files)
}

/// An offer that names `file`, which comes along.
fn kernel_at(file: impl Into<OwnedFd>) -> (Mechanism, Files) {
    let file: Arc<OwnedFd> = Arc::new(file.into());
    let stat = rustix::fs::fstat(file.as_fd()).unwrap();
    let key = InodeKey { dev: stat.st_dev, ino: stat.st_ino };
    let mut files = Files::default();
    files.insert(key, file);
    (Mechanism::new(Class::Local, MechanismKind::Kernel).with(params::INODE_URL, key).with(params::NAME, "nsm-1"), files)
}

/// reliability.md 2.2: reach another namespace, or a file of the host.
#[tokio::test]
async fn only_an_open_network_namespace_will_do() {
    let scene = Scene::new().await;
    let open = |path: &str, flags| rustix::fs::open(path, flags, Mode::empty()).unwrap();
    let dir = scene.world.dir.path();
    rustix::fs::mknodat(rustix::fs::CWD, dir.join("fifo"), rustix::fs::FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    std::fs::write(dir.join("file"), "x").unwrap();
    let path = |name: &str| dir.join(name).display().to_string();
    for (what, file) in [
        ("regular file", open(&path("file"), OFlags::RDONLY)),
        ("regular file by name only", open(&path("file"), OFlags::PATH)),
        ("FIFO", open(&path("fifo"), OFlags::RDONLY | OFlags::NONBLOCK)),
        ("FIFO by name only", open(&path("fifo"), OFlags::PATH)),
        ("directory", open(&path(""), OFlags::RDONLY)),
        ("socket file by name only", open(&path("forwarder.sock"), OFlags::PATH)),
        ("socket", std::os::unix::net::UnixDatagram::unbound().unwrap().into()),
        ("device", open("/dev/null", OFlags::RDONLY)),
        ("file in memory", rustix::fs::memfd_create("x", rustix::fs::MemfdFlags::CLOEXEC).unwrap()),
        ("mount namespace", open("/proc/thread-self/ns/mnt", OFlags::RDONLY)),
        ("host name namespace", open("/proc/thread-self/ns/uts", OFlags::RDONLY)),
        ("process namespace by name only", open("/proc/thread-self/ns/pid", OFlags::PATH)),
    ] {
        scene.refuse(what, kernel_at(file)).await;
    }
    let pod = netns::create().unwrap();
    let (honest, files) = kernel_in(&pod, "nsm-1");
    let inode = honest.inode().unwrap();
    for url in [
        "file:///proc/1/ns/net".to_owned(),
        "file:///proc/self/ns/net".to_owned(),
        "http://127.0.0.1/proc/1/ns/net".to_owned(),
        format!("unix://{}", path("forwarder.sock")),
        "/proc/1/ns/net".to_owned(),
        "proc/1/ns/net".to_owned(),
        "inode:///proc/1/ns/net".to_owned(),
        "inode://4/../../proc/1/ns/net".to_owned(),
        "inode://%34/%34026531840".to_owned(),
        format!("inode://{}/{}/", inode.dev, inode.ino),
        format!("INODE://{}/{}", inode.dev, inode.ino),
        format!("inode://{}", inode.ino),
        format!("inode://-1/{}", inode.ino),
        "inode://4/4026531840".to_owned(), // where a host's own usually is: it does not come along
        String::new(),
    ] {
        scene.refuse(&url, (honest.clone().with(params::INODE_URL, &url), files.clone())).await;
    }
    let missing = scene.refuse("no file", (honest.clone(), Files::default())).await;
    assert!(missing.to_string().contains("did not arrive"), "{missing}");
    assert_eq!(Net::new(&pod).unwrap().links().unwrap().len(), 1, "the liar's own namespace has loopback only");
    bounded(scene.evil.request(asked("evil-0", (honest, files)), Caller::within(BOUND)))
        .await
        .expect("an honest offer of the same process");
}

/// reliability.md 2.2: names that the kernel would take, and a shell or a file system would not.
#[tokio::test]
async fn hostile_names_of_interfaces_are_refused() {
    let scene = Scene::new().await;
    let pod = netns::create().unwrap();
    let names = [
        " ",
        "lo",
        ".",
        "..",
        "all",
        "default",
        "-x",
        "--help",
        "a/b",
        "../x",
        "$(id)",
        "`id`",
        ";reboot",
        "a b",
        "a\tb",
        "a\nb",
        "a:b",
        "a%d",
        "%d",
        "nsm\u{e9}",
        "\u{1f600}",
        "a\u{0}b",
        "sixteen-bytes-xx",
        "a|b",
        "'x'",
        "\"x\"",
        "a*",
        "{{.x}}",
        "a\u{202e}b",
    ];
    for name in names {
        let error = scene.refuse(&format!("{name:?}"), kernel_in(&pod, name)).await;
        assert_eq!(error.kind, Kind::Invalid, "{name:?}: {error}");
    }
    assert_eq!(Net::new(&pod).unwrap().links().unwrap().len(), 1);
}
