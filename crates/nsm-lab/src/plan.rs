//! From a lab to what must exist: namespaces, cables, and processes with their exact command lines, in stages.
//!
//! Pure. Nothing is started here; `nsm lab graph` and the tests read the same plan from which a running lab is built.

use crate::schema::*;
use ipnet::IpNet;
use nsm_api::Labels;
use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
};

/// The namespace that joins all nodes.
pub const FABRIC: &str = "fabric";
/// The workload name of the lab's own questions to its processes.
pub const TOOL: &str = "lab";
/// TCP port of every manager.
const MANAGER_PORT: u16 = 5001;
/// TCP port of the registry.
const REGISTRY_PORT: u16 = 5002;
/// The bridge between the nodes has 1 at the end, nodes follow; these networks exist only inside the lab's namespaces.
const FABRIC_NET: [u8; 3] = [10, 231, 0];
const FABRIC_NET6: [u16; 4] = [0xfd31, 0x231, 0, 0];
/// Last number of the first node's address.
const FIRST_NODE: u8 = 11;
/// Prefix lengths of the underlay.
const FABRIC_PREFIX: u8 = 24;
const FABRIC_PREFIX6: u8 = 64;
/// What stands for the directory of the lab's files in settings.
const FILES: &str = "{files}";
/// How long one try of a client may take.
const REQUEST_TIMEOUT: &str = "15s";

/// What kind of process it is; the order is the order of starting, the reverse that of stopping.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// The authority of the trust domain.
    Identity,
    /// Services and endpoints.
    Registry,
    /// Lends prefixes.
    Ipam,
    /// One per node, where there are several: carries encrypted packets between them.
    Packet,
    /// Manager and forwarder of one node in one process.
    Node,
    /// One per node.
    Manager,
    /// One per node.
    Forwarder,
    /// In a pod.
    Endpoint,
    /// In a pod.
    Client,
    /// An application beside a client.
    App,
}

impl Role {
    /// The word on the command line and in tables.
    pub fn as_str(self) -> &'static str {
        match self {
            Role::Identity => "identity",
            Role::Registry => "registry",
            Role::Ipam => "ipam",
            Role::Packet => "packet",
            Role::Node => "node",
            Role::Manager => "manager",
            Role::Forwarder => "forwarder",
            Role::Endpoint => "endpoint",
            Role::Client => "client",
            Role::App => "app",
        }
    }
}

/// One process to be started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    /// Its name: unique in the lab, name of its hop, of its log, and last part of its SPIFFE ID.
    pub name: String,
    /// What it is.
    pub role: Role,
    /// Name of the namespace it lives in.
    pub netns: String,
    /// Somebody else's program; this very program when absent.
    pub program: Option<PathBuf>,
    /// Arguments after the program's name.
    pub args: Vec<String>,
    /// Its environment, besides what every process gets.
    pub env: BTreeMap<String, String>,
    /// What it sees as /etc/resolv.conf, if not the machine's.
    pub resolv_conf: Option<PathBuf>,
    /// A client that is expected to be refused: it may end by itself, with any exit code.
    pub refused: bool,
    /// It starts when a check says so.
    pub later: bool,
}

/// A cable between two namespaces: a veth pair with an address at each end, where given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cable {
    /// One end.
    pub a: CableEnd,
    /// The other end.
    pub b: CableEnd,
    /// Its largest packet, bytes; the kernel's choice when unsaid.
    pub mtu: Option<u32>,
    /// The node whose link it is, when frames pass through the lab and may meet with an accident there.
    pub faulty: Option<String>,
}

/// One end of a cable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CableEnd {
    /// Name of its namespace.
    pub netns: String,
    /// Interface there.
    pub interface: String,
    /// Its address; the fabric's ends are ports of the bridge and have none.
    pub address: Option<IpNet>,
}

/// The bridge of the fabric, and its address.
pub const BRIDGE: &str = "underlay";

/// Files of one lab, all in one private directory with a short path: a unix socket's path ends at 107 bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files(PathBuf);

impl Files {
    /// Files below `dir`.
    pub fn new(dir: impl Into<PathBuf>) -> Files {
        Files(dir.into())
    }
    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.0
    }
    /// The SPIFFE Workload API socket of one process.
    pub fn workload(&self, name: &str) -> PathBuf {
        self.0.join("w").join(name)
    }
    /// Where a process says that it is ready.
    pub fn notify(&self, name: &str) -> PathBuf {
        self.0.join("n").join(name)
    }
    /// What a process printed.
    pub fn log(&self, name: &str) -> PathBuf {
        self.0.join("log").join(format!("{name}.log"))
    }
    /// A directory of one process' own.
    pub fn own(&self, name: &str) -> PathBuf {
        self.0.join("d").join(name)
    }
    /// What processes keep over their restarts, each in files that carry its name.
    pub fn state(&self) -> PathBuf {
        self.0.join("s")
    }
    /// The services to be registered.
    pub fn services(&self) -> PathBuf {
        self.0.join("services.yaml")
    }
    /// The socket of a node's manager.
    pub fn manager(&self, node: &str) -> PathBuf {
        self.0.join(format!("{node}.sock"))
    }
    /// The socket of a node's forwarder.
    pub fn forwarder(&self, node: &str) -> PathBuf {
        self.0.join(format!("{node}-fwd.sock"))
    }
    /// The socket of a node's packet engine.
    pub fn packet(&self, node: &str) -> PathBuf {
        self.0.join(format!("{node}-pkt.sock"))
    }
    /// The socket of a prefix server.
    pub fn prefix_server(&self, name: &str) -> PathBuf {
        self.0.join(format!("{name}.sock"))
    }
    /// What the author calls `{files}`.
    pub fn files(&self) -> PathBuf {
        self.0.join("f")
    }
    /// What a client sees as /etc/resolv.conf, if not the machine's.
    pub fn resolv_conf(&self, client: &str) -> PathBuf {
        self.0.join("r").join(client)
    }
    /// All sub-directories that must exist before anything starts.
    pub fn sub_directories(&self) -> [PathBuf; 7] {
        ["w", "n", "log", "d", "s", "f", "r"].map(|name| self.0.join(name))
    }
}

/// Everything a lab needs besides its checks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Names of the namespaces, in order of creation.
    pub namespaces: Vec<String>,
    /// Address of the bridge in the fabric.
    pub bridge: IpNet,
    /// Cables, in order of creation.
    pub cables: Vec<Cable>,
    /// Processes, in order of start. Equal roles start together, except clients: one after the other.
    pub processes: Vec<Spec>,
}

/// `unix://` and a path.
pub fn unix(path: &Path) -> String {
    format!("unix://{}", path.display())
}

/// The file, in the directory of files, that says what a node excludes.
pub fn excluded_prefixes_file(node: &str) -> String {
    format!("{node}-excluded-prefixes.yaml")
}

/// The file, in the directory of files, with the policy routes of an endpoint.
pub fn policy_routes_file(endpoint: &str) -> String {
    format!("{endpoint}-policy-routes.yaml")
}

/// The files that exist before any process: name and text.
pub fn files(lab: &Lab) -> BTreeMap<String, String> {
    let excluding = lab.nodes.iter().filter(|node| !node.excluded_prefixes.is_empty());
    let list = |node: &Node| format!("prefixes: [{}]\n", comma(&node.excluded_prefixes));
    let excluded = excluding.map(|node| (excluded_prefixes_file(&node.name), list(node)));
    let policies = lab.endpoints.iter().filter_map(|endpoint| Some((policy_routes_file(&endpoint.name), endpoint.policy_routes.clone()?)));
    lab.files.clone().into_iter().chain(excluded).chain(policies).collect()
}

/// The registry's URL.
pub fn registry_url(lab: &Lab) -> String {
    tcp(fabric_address(lab, 1), REGISTRY_PORT)
}

fn tcp(at: IpNet, port: u16) -> String {
    format!("tcp://{}", SocketAddr::new(at.addr(), port))
}

fn fabric_address(lab: &Lab, last: u8) -> IpNet {
    let (address, length) = match lab.underlay {
        Underlay::V4 => {
            let [a, b, c] = FABRIC_NET;
            (IpAddr::from(Ipv4Addr::new(a, b, c, last)), FABRIC_PREFIX)
        }
        Underlay::V6 => {
            let [a, b, c, d] = FABRIC_NET6;
            (IpAddr::from(Ipv6Addr::new(a, b, c, d, 0, 0, 0, last.into())), FABRIC_PREFIX6)
        }
    };
    IpNet::new(address, length).expect("24 is a prefix length of IPv4, 64 of IPv6")
}

/// Underlay address of a node by its number; [`MAX_NODES`] keeps it below 255.
fn node_address(lab: &Lab, number: usize) -> IpNet {
    fabric_address(lab, FIRST_NODE + number as u8)
}

/// Decides everything.
pub fn plan(lab: &Lab, files: &Files) -> Plan {
    let places = lab.nodes.iter().map(|node| node.name.as_str()).chain(lab.pods());
    let namespaces = std::iter::once(FABRIC).chain(places).map(|place| lab.namespace(place)).collect();
    let cables = (0..lab.nodes.len()).map(|number| uplink(lab, number)).chain(lab.hosts.iter().map(|host| cord(lab, host)));
    let cables = cables.chain(lab.cables.iter().map(|ends| between(lab, ends))).collect();
    let mut processes = vec![played(registry(lab), &lab.registry)];
    processes.extend(lab.prefix_servers.iter().map(|server| played(ipam(lab, files, server), &server.part)));
    let several = lab.nodes.len() > 1;
    processes.extend(lab.nodes.iter().filter(|_| several).map(|node| packet(lab, files, node)));
    let (whole, split): (Vec<_>, Vec<_>) = lab.nodes.iter().enumerate().partition(|(_, node)| node.combined);
    processes.extend(whole.into_iter().map(|(number, node)| combined(lab, files, node, number)));
    processes.extend(split.iter().map(|(number, node)| played(manager(lab, files, node, *number), &node.manager)));
    processes.extend(split.iter().map(|(number, node)| played(forwarder(lab, files, node, *number), &node.forwarder)));
    processes.extend(lab.endpoints.iter().map(|spec| played(endpoint(lab, files, spec), &spec.part)));
    processes.extend(lab.clients.iter().map(|spec| played(client(lab, files, spec), &spec.part)));
    for process in &mut processes {
        process.env.insert("SPIFFE_ENDPOINT_SOCKET".to_owned(), unix(&files.workload(&process.name)));
        if matches!(process.role, Role::Node | Role::Manager | Role::Forwarder | Role::Endpoint) && process.program.is_none() {
            process.env.insert("NSM_STATE_DIR".to_owned(), files.state().display().to_string());
        }
        let dir = files.files().display().to_string();
        process.args.iter_mut().chain(process.env.values_mut()).for_each(|text| *text = text.replace(FILES, &dir));
    }
    processes.insert(0, played(identity(lab, files, &processes), &lab.identity));
    Plan { namespaces, bridge: fabric_address(lab, 1), cables, processes }
}

fn uplink(lab: &Lab, number: usize) -> Cable {
    let fabric = CableEnd { netns: lab.namespace(FABRIC), interface: format!("node{number}"), address: None };
    let netns = lab.namespace(&lab.nodes[number].name);
    Cable {
        a: fabric,
        b: CableEnd { netns, interface: "uplink".to_owned(), address: Some(node_address(lab, number)) },
        mtu: lab.underlay_mtu,
        faulty: lab.link_seed.map(|_| lab.nodes[number].name.clone()),
    }
}

fn cord(lab: &Lab, host: &Host) -> Cable {
    let a = CableEnd { netns: lab.namespace(&host.name), interface: host.interface.clone(), address: Some(host.address) };
    let b = CableEnd { netns: lab.namespace(&host.pod), interface: host.pod_interface.clone(), address: host.pod_address };
    Cable { a, b, mtu: None, faulty: None }
}

fn between(lab: &Lab, [a, b]: &[PodEnd; 2]) -> Cable {
    let end = |end: &PodEnd| CableEnd { netns: lab.namespace(&end.pod), interface: end.interface.clone(), address: Some(end.address) };
    Cable { a: end(a), b: end(b), mtu: None, faulty: None }
}

/// Builds an argument list: `--flag value` pairs.
struct Args(Vec<String>);

impl Args {
    fn new(words: &[&str]) -> Args {
        Args(words.iter().map(|word| (*word).to_owned()).collect())
    }
    fn with(mut self, flag: &str, value: impl Into<String>) -> Args {
        self.0.extend([flag.to_owned(), value.into()]);
        self
    }
    /// Leaves the flag out when the value is empty.
    fn with_some(self, flag: &str, value: String) -> Args {
        if value.is_empty() { self } else { self.with(flag, value) }
    }
}

fn spec(role: Role, name: impl Into<String>, netns: String, args: Args) -> Spec {
    Spec {
        name: name.into(),
        role,
        netns,
        program: None,
        args: args.0,
        env: BTreeMap::new(),
        resolv_conf: None,
        refused: false,
        later: false,
    }
}

/// The same with the author's settings, and played by his program if he names one.
fn played(mut spec: Spec, part: &Part) -> Spec {
    if let Some((program, args)) = part.program.split_first() {
        spec.env.extend(variables(&spec));
        spec.program = Some(program.into());
        spec.args = args.to_vec();
    }
    spec.env.extend(part.env.clone());
    spec
}

/// What the flags of our own program say, as variables of the same names.
fn variables(spec: &Spec) -> BTreeMap<String, String> {
    let mut all = BTreeMap::from([("NSM_NAME".to_owned(), spec.name.clone())]);
    let flags = spec.args.iter().zip(spec.args.iter().skip(1));
    for (flag, value) in flags.filter_map(|(flag, value)| Some((flag.strip_prefix("--")?, value))) {
        let name = if flag == "dir" { "BASE_DIR".to_owned() } else { flag.to_uppercase().replace('-', "_") };
        let all_of_it = all.entry(format!("NSM_{name}")).or_insert_with(String::new);
        if name == "WORKLOAD" && !all_of_it.is_empty() {
            *all_of_it = format!("{all_of_it},{value}");
        } else {
            *all_of_it = value.clone();
        }
    }
    all
}

fn identity(lab: &Lab, files: &Files, others: &[Spec]) -> Spec {
    let own = format!("unix://{}", files.dir().join("default.sock").display());
    let mut args = Args::new(&["identity"]).with("--socket", own).with("--trust-domain", &*lab.trust_domain);
    for name in others.iter().map(|process| process.name.as_str()).chain([TOOL]) {
        args = args.with("--workload", format!("{name}={}", files.workload(name).display()));
    }
    spec(Role::Identity, "identity", lab.namespace(FABRIC), args)
}

fn registry(lab: &Lab) -> Spec {
    let args = Args::new(&["registry"]).with("--listen-on", registry_url(lab));
    let mut spec = spec(Role::Registry, "registry", lab.namespace(FABRIC), args);
    // By itself it would keep registrations in a directory of the machine.
    spec.env.insert("NSM_STORE".to_owned(), "memory".to_owned());
    spec
}

/// It remembers over restarts, so nobody has to wait for those who might come back.
fn ipam(lab: &Lab, files: &Files, server: &PrefixServer) -> Spec {
    let args = Args::new(&["ipam"])
        .with("--listen-on", unix(&files.prefix_server(&server.name)))
        .with("--prefix", server.prefix.to_string())
        .with("--client-prefix-len", server.client_prefix_len.to_string())
        .with("--state-file", files.state().join(format!("{}.prefixes", server.name)).display().to_string())
        .with("--settling", "0s");
    spec(Role::Ipam, &*server.name, lab.namespace(FABRIC), args)
}

/// A process of a node, which knows the node's name and how long its tokens live.
fn of_node(role: Role, name: String, lab: &Lab, node: &Node, args: Args) -> Spec {
    let args = args.with_some("--max-token-lifetime", node.lifetime.clone().unwrap_or_default());
    let mut spec = spec(role, name, lab.namespace(&node.name), args);
    spec.env.insert("NODE_NAME".to_owned(), node.name.clone());
    if role != Role::Forwarder {
        spec.env.insert("NSM_EXCLUDED_PREFIXES_FILE".to_owned(), format!("{FILES}/{}", excluded_prefixes_file(&node.name)));
    }
    spec
}

/// Carries encrypted packets; it outlives forwarders.
fn packet(lab: &Lab, files: &Files, node: &Node) -> Spec {
    let args = Args::new(&["packet"]).with("--socket", unix(&files.packet(&node.name)));
    spec(Role::Packet, format!("{}-packet", node.name), lab.namespace(&node.name), args)
}

/// Where a node's forwarder finds who carries encrypted packets; a node alone has nobody to send them to.
fn packet_engine(lab: &Lab, files: &Files, node: &Node) -> String {
    if lab.nodes.len() > 1 { unix(&files.packet(&node.name)) } else { "none".to_owned() }
}

/// Manager and forwarder in one process; its hops are called NODE-manager and NODE-forwarder as those of two processes.
fn combined(lab: &Lab, files: &Files, node: &Node, number: usize) -> Spec {
    let args = Args::new(&["node"])
        .with("--name", &*node.name)
        .with("--listen-on", manager_listens(lab, files, node, number))
        .with("--registry-url", registry_url(lab))
        .with("--tunnel-ip", node_address(lab, number).addr().to_string())
        .with("--packet-engine", packet_engine(lab, files, node))
        .with("--authority", "false");
    of_node(Role::Node, node.name.clone(), lab, node, args)
}

fn manager_listens(lab: &Lab, files: &Files, node: &Node, number: usize) -> String {
    format!("{},{}", unix(&files.manager(&node.name)), tcp(node_address(lab, number), MANAGER_PORT))
}

fn manager(lab: &Lab, files: &Files, node: &Node, number: usize) -> Spec {
    let name = format!("{}-manager", node.name);
    let listen = manager_listens(lab, files, node, number);
    let args = Args::new(&["manager"]).with("--name", &*name).with("--listen-on", listen).with("--registry-url", registry_url(lab));
    of_node(Role::Manager, name, lab, node, args)
}

fn forwarder(lab: &Lab, files: &Files, node: &Node, number: usize) -> Spec {
    let name = format!("{}-forwarder", node.name);
    let args = Args::new(&["forwarder"])
        .with("--name", &*name)
        .with("--connect-to", unix(&files.manager(&node.name)))
        .with("--listen-on", unix(&files.forwarder(&node.name)))
        .with("--tunnel-ip", node_address(lab, number).addr().to_string())
        .with("--packet-engine", packet_engine(lab, files, node));
    of_node(Role::Forwarder, name, lab, node, args)
}

fn endpoint(lab: &Lab, files: &Files, endpoint: &Endpoint) -> Spec {
    let by_variable = endpoint.part.env.contains_key("NSM_PREFIX_SERVER_URL"); // which a flag would beat
    let vl3 = lab.prefix_servers.iter().filter(|_| endpoint.kind == EndpointKind::Vl3 && !by_variable);
    let servers: Vec<String> = vl3.map(|server| unix(&files.prefix_server(&server.name))).collect();
    let args = Args::new(&["endpoint", endpoint.kind.as_str()])
        .with("--name", &*endpoint.name)
        .with("--connect-to", unix(&files.manager(&endpoint.node)))
        .with("--service-names", endpoint.services.join(","))
        .with("--register-service", "false")
        .with("--dir", files.own(&endpoint.name).display().to_string())
        .with_some("--labels", labels(&endpoint.labels))
        .with_some("--client-labels", labels(&endpoint.client_labels))
        .with_some("--payload", endpoint.payload.unwrap_or_default().to_owned())
        .with_some("--prefix-server-url", servers.join(","))
        .with_some("--cidr-prefix", comma(&endpoint.cidr))
        .with_some("--ipam-policy", endpoint.ipam.unwrap_or_default().to_owned())
        .with_some("--route", comma(&endpoint.routes))
        .with_some("--dns-configs", dns_configs(&endpoint.dns))
        .with_some("--max-token-lifetime", endpoint.lifetime.clone().unwrap_or_default());
    let mut spec = spec(Role::Endpoint, &*endpoint.name, lab.namespace(&endpoint.name), args);
    if endpoint.kind.has_pools() {
        spec.env.insert("NSM_PBR_CONFIG_PATH".to_owned(), format!("{FILES}/{}", policy_routes_file(&endpoint.name)));
    }
    spec.later = endpoint.later;
    pod_names(&mut spec, &endpoint.node);
    spec
}

fn client(lab: &Lab, files: &Files, client: &Client) -> Spec {
    let manager = match &client.manager {
        Some(socket) => files.dir().join(socket),
        None => files.manager(&client.node),
    };
    let args = Args::new(&["client"])
        .with("--name", &*client.name)
        .with("--connect-to", unix(&manager))
        .with("--network-services", client.services.join(","))
        .with("--mode", "stay")
        .with_some("--request-timeout", request_timeout(client).to_owned())
        .with_some("--awareness-groups", groups(&client.awareness))
        .with_some("--payload", client.payload.unwrap_or_default().to_owned())
        .with_some("--max-token-lifetime", client.lifetime.clone().unwrap_or_default());
    let mut spec = spec(Role::Client, &*client.name, lab.namespace(&client.name), args);
    spec.refused = client.expect_refusal;
    spec.later = client.later;
    spec.resolv_conf = client.resolv_conf.is_some().then(|| files.resolv_conf(&client.name));
    // Without a file of its own it would change that of this machine.
    spec.env.insert("NSM_LOCAL_DNS_SERVER_ENABLED".to_owned(), spec.resolv_conf.is_some().to_string());
    pod_names(&mut spec, &client.node);
    spec
}

/// Left out where the author says it by a variable, which a flag would beat.
fn request_timeout(client: &Client) -> &'static str {
    if client.part.env.contains_key("NSM_REQUEST_TIMEOUT") { "" } else { REQUEST_TIMEOUT }
}

/// The same client as the process that only makes the vWires and ends.
pub fn init_client(stay: &Spec) -> Spec {
    let mut init = stay.clone();
    for word in &mut init.args {
        if word == "stay" {
            *word = "init".to_owned();
        }
    }
    init
}

fn pod_names(spec: &mut Spec, node: &str) {
    spec.env.insert("NODE_NAME".to_owned(), node.to_owned());
    spec.env.insert("POD_NAME".to_owned(), spec.name.clone());
}

fn labels(labels: &Labels) -> String {
    labels.iter().map(|(key, value)| format!("{key}:{value}")).collect::<Vec<_>>().join(",")
}

/// As JSON; empty when there are none.
fn dns_configs(all: &[DnsServers]) -> String {
    let config = |one: &DnsServers| serde_json::json!({"dns_server_ips": one.servers, "search_domains": one.search});
    if all.is_empty() { String::new() } else { serde_json::Value::from_iter(all.iter().map(config)).to_string() }
}

/// `[a,b],[c,d]`
fn groups(all: &[Vec<String>]) -> String {
    all.iter().map(|group| format!("[{}]", group.join(","))).collect::<Vec<_>>().join(",")
}

fn comma<T: ToString>(items: &[T]) -> String {
    items.iter().map(T::to_string).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests;
