//! From a lab to what must exist: namespaces, cables, and processes with their exact command lines, in stages.
//!
//! Pure. Nothing is started here; `nsm lab graph` and the tests read the same plan from which a running lab is built.

use crate::schema::*;
use ipnet::IpNet;
use nsm_api::Labels;
use std::{
    collections::BTreeMap,
    net::Ipv4Addr,
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
/// The bridge between the nodes has .1, nodes follow; 10.231.0.0/24 exists only inside the lab's namespaces.
const FABRIC_NET: [u8; 3] = [10, 231, 0];
/// Last byte of the first node's address.
const FIRST_NODE: u8 = 11;
/// Prefix length of the underlay.
const FABRIC_PREFIX: u8 = 24;
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
    /// A client that is expected to be refused: it may end by itself, with any exit code.
    pub refused: bool,
}

/// A cable between two namespaces: a veth pair with an address at each end, where given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cable {
    /// One end.
    pub a: CableEnd,
    /// The other end.
    pub b: CableEnd,
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
    /// All sub-directories that must exist before anything starts.
    pub fn sub_directories(&self) -> [PathBuf; 5] {
        ["w", "n", "log", "d", "s"].map(|name| self.0.join(name))
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

/// The registry's URL.
pub fn registry_url() -> String {
    format!("tcp://{}:{REGISTRY_PORT}", fabric_address(1).addr())
}

fn fabric_address(last: u8) -> IpNet {
    let [a, b, c] = FABRIC_NET;
    IpNet::new(Ipv4Addr::new(a, b, c, last).into(), FABRIC_PREFIX).expect("24 is a prefix length of IPv4")
}

/// Underlay address of a node by its number; [`MAX_NODES`] keeps it below 255.
fn node_address(number: usize) -> IpNet {
    fabric_address(FIRST_NODE + number as u8)
}

/// Decides everything.
pub fn plan(lab: &Lab, files: &Files) -> Plan {
    let places = lab.nodes.iter().map(|node| node.name.as_str()).chain(lab.pods());
    let namespaces = std::iter::once(FABRIC).chain(places).map(|place| lab.namespace(place)).collect();
    let cables = (0..lab.nodes.len()).map(|number| uplink(lab, number)).chain(lab.hosts.iter().map(|host| cord(lab, host))).collect();
    let mut processes = vec![played(registry(lab), &lab.registry)];
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
    }
    processes.insert(0, played(identity(lab, files, &processes), &lab.identity));
    Plan { namespaces, bridge: fabric_address(1), cables, processes }
}

fn uplink(lab: &Lab, number: usize) -> Cable {
    let fabric = CableEnd { netns: lab.namespace(FABRIC), interface: format!("node{number}"), address: None };
    let netns = lab.namespace(&lab.nodes[number].name);
    Cable { a: fabric, b: CableEnd { netns, interface: "uplink".to_owned(), address: Some(node_address(number)) } }
}

fn cord(lab: &Lab, host: &Host) -> Cable {
    let a = CableEnd { netns: lab.namespace(&host.name), interface: host.interface.clone(), address: Some(host.address) };
    let b = CableEnd { netns: lab.namespace(&host.pod), interface: host.pod_interface.clone(), address: host.pod_address };
    Cable { a, b }
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
    Spec { name: name.into(), role, netns, program: None, args: args.0, env: BTreeMap::new(), refused: false }
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
    if spec.role == Role::Client {
        // It would change a file of this machine.
        all.insert("NSM_LOCAL_DNS_SERVER_ENABLED".to_owned(), "false".to_owned());
    }
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
    spec(Role::Registry, "registry", lab.namespace(FABRIC), Args::new(&["registry"]).with("--listen-on", registry_url()))
}

/// A process of a node, which knows the node's name and how long its tokens live.
fn of_node(role: Role, name: String, lab: &Lab, node: &Node, args: Args) -> Spec {
    let args = args.with_some("--max-token-lifetime", node.lifetime.clone().unwrap_or_default());
    let mut spec = spec(role, name, lab.namespace(&node.name), args);
    spec.env.insert("NODE_NAME".to_owned(), node.name.clone());
    spec
}

/// Manager and forwarder in one process; its hops are called NODE-manager and NODE-forwarder as those of two processes.
fn combined(lab: &Lab, files: &Files, node: &Node, number: usize) -> Spec {
    let args = Args::new(&["node"])
        .with("--name", &*node.name)
        .with("--listen-on", manager_listens(files, node, number))
        .with("--registry-url", registry_url())
        .with("--tunnel-ip", node_address(number).addr().to_string())
        .with("--authority", "false");
    of_node(Role::Node, node.name.clone(), lab, node, args)
}

fn manager_listens(files: &Files, node: &Node, number: usize) -> String {
    format!("{},tcp://{}:{MANAGER_PORT}", unix(&files.manager(&node.name)), node_address(number).addr())
}

fn manager(lab: &Lab, files: &Files, node: &Node, number: usize) -> Spec {
    let name = format!("{}-manager", node.name);
    let listen = manager_listens(files, node, number);
    let args = Args::new(&["manager"]).with("--name", &*name).with("--listen-on", listen).with("--registry-url", registry_url());
    of_node(Role::Manager, name, lab, node, args)
}

fn forwarder(lab: &Lab, files: &Files, node: &Node, number: usize) -> Spec {
    let name = format!("{}-forwarder", node.name);
    let args = Args::new(&["forwarder"])
        .with("--name", &*name)
        .with("--connect-to", unix(&files.manager(&node.name)))
        .with("--listen-on", unix(&files.forwarder(&node.name)))
        .with("--tunnel-ip", node_address(number).addr().to_string());
    of_node(Role::Forwarder, name, lab, node, args)
}

fn endpoint(lab: &Lab, files: &Files, endpoint: &Endpoint) -> Spec {
    let args = Args::new(&["endpoint", endpoint.kind.as_str()])
        .with("--name", &*endpoint.name)
        .with("--connect-to", unix(&files.manager(&endpoint.node)))
        .with("--service-names", endpoint.services.join(","))
        .with("--register-service", "false")
        .with("--dir", files.own(&endpoint.name).display().to_string())
        .with_some("--labels", labels(&endpoint.labels))
        .with_some("--client-labels", labels(&endpoint.client_labels))
        .with_some("--payload", endpoint.payload.unwrap_or_default().to_owned())
        .with_some("--cidr-prefix", comma(&endpoint.cidr))
        .with_some("--route", comma(&endpoint.routes))
        .with_some("--max-token-lifetime", endpoint.lifetime.clone().unwrap_or_default());
    let mut spec = spec(Role::Endpoint, &*endpoint.name, lab.namespace(&endpoint.name), args);
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
        .with_some("--payload", client.payload.unwrap_or_default().to_owned())
        .with_some("--max-token-lifetime", client.lifetime.clone().unwrap_or_default());
    let mut spec = spec(Role::Client, &*client.name, lab.namespace(&client.name), args);
    spec.refused = client.expect_refusal;
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

fn comma<T: ToString>(items: &[T]) -> String {
    items.iter().map(T::to_string).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "
apiVersion: networkservicemesh.io/v1
kind: Lab
metadata: {name: two}
spec:
  nodes: [{name: east}, {name: west}]
  endpoints:
  - {name: gateway, node: west, kind: passthrough, services: [a, b], labels: {app: fw, v: 1}, clientLabels: {app: x}, payload: ETHERNET,
     cidr: [172.16.1.0/30, 10.0.0.0/8], routes: [172.31.0.0/16], lifetime: 1m, env: {NSM_X: y}}
  clients:
  - {name: client, node: east, services: ['kernel://a/nsm-1?app=foo', 'kernel://b/nsm-2']}
  - {name: lost, node: east, services: ['kernel://a/nsm-1'], manager: missing.sock}
  hosts:
  - {name: server, pod: gateway, address: 172.31.0.10/16, podInterface: corp, podAddress: 172.31.0.1/16}
";

    fn planned() -> Plan {
        planned_from(TEXT)
    }

    fn planned_from(text: &str) -> Plan {
        let (lab, _) = crate::read(text).unwrap_or_else(|mistakes| panic!("{mistakes:?}"));
        plan(&lab, &Files::new("/d"))
    }

    fn line(plan: &Plan, name: &str) -> String {
        plan.processes.iter().find(|process| process.name == name).unwrap().args.join(" ")
    }

    #[test]
    fn namespaces_and_cables() {
        let plan = planned();
        assert_eq!(plan.namespaces, ["two-fabric", "two-east", "two-west", "two-gateway", "two-client", "two-lost", "two-server"]);
        assert_eq!(plan.cables.len(), 3);
        assert_eq!(plan.cables[1].b.address.unwrap().to_string(), "10.231.0.12/24");
        assert_eq!((plan.cables[2].a.netns.as_str(), plan.cables[2].b.interface.as_str()), ("two-server", "corp"));
    }

    #[test]
    fn command_lines() {
        let plan = planned();
        assert_eq!(
            line(&plan, "west-manager"),
            "manager --name west-manager --listen-on unix:///d/west.sock,tcp://10.231.0.12:5001 --registry-url tcp://10.231.0.1:5002"
        );
        assert_eq!(
            line(&plan, "gateway"),
            "endpoint passthrough --name gateway --connect-to unix:///d/west.sock --service-names a,b --register-service false --dir /d/d/gateway \
             --labels app:fw,v:1 --client-labels app:x --payload ETHERNET --cidr-prefix 172.16.1.0/30,10.0.0.0/8 --route 172.31.0.0/16 \
             --max-token-lifetime 1m"
        );
        assert!(line(&plan, "client").contains("--network-services kernel://a/nsm-1?app=foo,kernel://b/nsm-2 --mode stay"));
        assert!(line(&plan, "lost").contains("--connect-to unix:///d/missing.sock"));
        assert!(line(&plan, "identity").contains("--trust-domain lab.nsm --workload registry=/d/w/registry"));
    }

    #[test]
    fn a_combined_node_is_one_process_and_lifetimes_reach_every_process() {
        let text = TEXT
            .replace("{name: west}", "{name: west, combined: true, lifetime: 3s}")
            .replace("{name: east}", "{name: east, lifetime: 4s}")
            .replace("{name: client,", "{name: client, lifetime: 5s, payload: ETHERNET,");
        let plan = planned_from(&text);
        assert_eq!(
            line(&plan, "west"),
            "node --name west --listen-on unix:///d/west.sock,tcp://10.231.0.12:5001 --registry-url tcp://10.231.0.1:5002 \
             --tunnel-ip 10.231.0.12 --authority false --max-token-lifetime 3s"
        );
        assert!(plan.processes.iter().all(|process| !process.name.starts_with("west-")));
        assert!(line(&plan, "east-manager").ends_with("--max-token-lifetime 4s"));
        assert!(line(&plan, "east-forwarder").ends_with("--max-token-lifetime 4s"));
        assert!(line(&plan, "client").ends_with("--payload ETHERNET --max-token-lifetime 5s"));
        assert!(plan.processes.is_sorted_by_key(|process| process.role));
    }

    #[test]
    fn a_program_of_somebody_else_is_told_the_same_by_variables() {
        let text = TEXT
            .replace("{name: east}", "{name: east, manager: {program: [/x/nsmgr, -v], env: {NSM_NAME: other}}}")
            .replace("{name: client,", "{name: client, program: /x/nsc, lifetime: 5s,")
            .replace("env: {NSM_X: y}", "program: [/x/nse], env: {NSM_X: y}")
            .replace("  nodes:", "  registry: {program: [/x/registry]}\n  nodes:");
        let plan = planned_from(&text);
        let find = |name: &str| plan.processes.iter().find(|process| process.name == name).unwrap();
        let manager = find("east-manager");
        assert_eq!((manager.program.as_deref(), manager.args.as_slice()), (Some(Path::new("/x/nsmgr")), ["-v".to_owned()].as_slice()));
        assert_eq!(manager.env["NSM_LISTEN_ON"], "unix:///d/east.sock,tcp://10.231.0.11:5001");
        assert_eq!(manager.env["NSM_NAME"], "other", "the author's word is the last");
        assert_eq!(find("registry").env["NSM_LISTEN_ON"], "tcp://10.231.0.1:5002");
        let client = find("client");
        assert_eq!(client.env["NSM_NETWORK_SERVICES"], "kernel://a/nsm-1?app=foo,kernel://b/nsm-2");
        assert_eq!((client.env["NSM_MAX_TOKEN_LIFETIME"].as_str(), client.env["NSM_NAME"].as_str()), ("5s", "client"));
        assert_eq!(client.env["NSM_LOCAL_DNS_SERVER_ENABLED"], "false");
        let endpoint = find("gateway");
        assert_eq!((endpoint.env["NSM_BASE_DIR"].as_str(), endpoint.env["NSM_X"].as_str()), ("/d/d/gateway", "y"));
        assert!(find("east-forwarder").program.is_none());
    }

    #[test]
    fn processes_start_in_the_order_of_their_roles_and_know_their_place() {
        let plan = planned();
        assert!(plan.processes.is_sorted_by_key(|process| process.role));
        let client = plan.processes.iter().find(|process| process.name == "client").unwrap();
        assert_eq!(client.env["NODE_NAME"], "east");
        assert_eq!(client.env["POD_NAME"], "client");
        assert_eq!(client.env["SPIFFE_ENDPOINT_SOCKET"], "unix:///d/w/client");
        assert!(init_client(client).args.join(" ").contains("--mode init"));
    }
}
