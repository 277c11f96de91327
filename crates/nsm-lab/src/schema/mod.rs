//! The `Lab` document: what one may write, and what it means.
//!
//! A lab is one YAML file. It holds `NetworkService` documents exactly as users write them, and one document
//! of kind `Lab`:
//!
//! ```yaml
//! apiVersion: networkservicemesh.io/v1
//! kind: Lab
//! metadata:
//!   name: hello                       # up to 36 of a-z 0-9 -; namespaces are called hello-<node> and hello-<pod>
//! spec:
//!   trustDomain: lab.nsm              # default
//!   identity: {program: [../bin/spiffe]}              # the Workload API; left out: our own
//!   registry: {program: [../bin/registry], env: {}}   # left out: our own
//!   prefixServers:                    # each lends prefixes of one family to the endpoints of kind vl3
//!   - name: ipam
//!     prefix: 172.16.0.0/16
//!     clientPrefixLen: 24             # of each endpoint's prefix
//!     env: {}                         # any further setting of the process, and `program` as everywhere
//!   underlay: ipv6                    # the network that joins the nodes; IPv4 when left out
//!   underlayMtu: 1400                 # its largest packet; 1500 when left out
//!   linkSeed: 7                       # the links of the nodes can lose, delay, ... by this chance, see `link`; plain cables when left out
//!   stateBytes: 262144                # the journals have a disk of their own of this size, see `disk`
//!   files:                            # files in a directory of the lab; `{files}` in any setting stands for that directory
//!     notes.txt: some text
//!   nodes:
//!   - name: node-1                    # runs one manager and one forwarder
//!     combined: true                  # both in one process, `nsm node`; two processes when left out
//!     manager:                        # settings of the manager, of the forwarder likewise; not when they are combined
//!       program: [../bin/nsmgr, -v]   # somebody else's program plays it; see below
//!       env: {NSM_DIAL_TIMEOUT: 2s}   # any further setting of the process
//!     lifetime: 10m                   # of its tokens
//!     excludedPrefixes: [10.0.0.0/8]  # its manager asks endpoints not to give these
//!   endpoints:                        # each is a pod of its own on its node; where there are prefixServers they start in this order
//!   - name: responder
//!     node: node-1
//!     kind: icmp-responder            # or any other kind of `nsm endpoint`; a vl3 has prefixes of all prefixServers
//!     services: [hello]
//!     labels: {app: responder}        # what it advertises
//!     clientLabels: {app: firewall}   # passthrough and firewall only: the labels of its own onward request
//!     cidr: [172.16.1.100/31]         # the pool it gives addresses from
//!     payload: IP                     # or ETHERNET; IP when left out
//!     ipam: strict                    # takes away addresses that a client brings from elsewhere; polite, when left out, lets them be
//!     routes: [172.31.0.0/16]         # the client learns these
//!     policyRoutes:                   # the client learns these, too, each with the packets that it is for
//!     - {from: 172.16.2.201/24, proto: 6, dstport: 6666, srcport: 5555, routes: [{prefix: 172.16.3.0/24, nexthop: 172.16.2.200}]}
//!     dns: [{servers: [172.16.1.100], search: [corp.example]}]   # name servers that its clients learn
//!     names: {db.corp.example: 172.31.0.10}   # a name server in its pod, on port 53 of each address, knows these and no others
//!     lifetime: 10m                   # of its tokens
//!     later: true                     # it starts only when a `start` says so; clients likewise
//!     env: {NSM_LOG_LEVEL: DEBUG}     # any further setting of the process
//!     program: [../bin/icmp-nse]      # somebody else's program plays it; see below
//!   clients:                          # each is a pod; they start in this order, each when the one before is ready
//!   - name: client
//!     node: node-1
//!     services: ["kernel://hello/nsm-1?app=foo"]
//!     payload: ETHERNET               # it insists on this one; left out, it takes what the service carries
//!     lifetime: 10m                   # of its tokens
//!     mode: stay                      # or init: first an init process, then the app, then a process that stays
//!     app: {ping: 172.31.0.10}        # init only: what the application does first; `app` checks look at what it saw
//!     expectRefusal: true             # nobody waits for it; it starts after all the others
//!     awareness: [["kernel://a/nsm-1", "kernel://b/nsm-2"]]   # of each list, services may have the same addresses
//!     resolvConf: "nameserver 10.0.0.1"   # it sees this as /etc/resolv.conf, and serves names there; see below
//!     manager: missing.sock           # another socket than its node's manager, in the directory of the lab
//!     env: {}
//!     program: [../bin/nsc]           # somebody else's program plays it; not with mode init
//!   hosts:                            # a machine behind a pod, joined to it by a cable; the pod forwards for it
//!   - name: server
//!     pod: responder
//!     interface: eth1                 # on the host
//!     address: 172.31.0.10/16
//!     podInterface: corp              # the pod's end of the cable
//!     podAddress: 172.31.0.1/16
//!     routes: [{to: 172.16.0.0/16, via: 172.31.0.1}]
//!     listen: [8080]                  # TCP ports where the host answers
//!     names: {}                       # a name server as that of an endpoint
//!   cables:                           # each joins two pods, outside the mesh
//!   - a: {pod: vpng, interface: eth1, address: 198.51.100.1/24}
//!     b: {pod: office, interface: eth1, address: 198.51.100.2/24}
//!   checks: []                        # in order; see [`Check`]
//! ```
//!
//! **A program of somebody else.** `program` is a path, relative to the lab file, and arguments. The program starts in the
//! namespace of the role it plays and is told what ours would be told, by variables: a flag `--connect-to` of ours is its
//! `NSM_CONNECT_TO`, and so on; `NSM_BASE_DIR` is a directory of its own, `SPIFFE_ENDPOINT_SOCKET` gives its identity, and
//! `env` wins
//! over all of these. It does not say when it is ready, so that is seen from outside: all sockets of a Workload API are there, a registry or manager answers, a
//! forwarder or endpoint is registered, the vWires of a client are listed by the managers. How it ends is not judged.
//!
//! **Files.** Pods of a lab share the files of this machine. So no client touches `/etc/resolv.conf`
//! (`NSM_LOCAL_DNS_SERVER_ENABLED` is false), unless it has a `resolvConf`: then it, and whatever `nsm lab exec` starts in its
//! pod, has that file there instead of the machine's. What a node excludes is `{files}/<node>-excluded-prefixes.yaml`, the
//! policy routes of an endpoint are `{files}/<endpoint>-policy-routes.yaml`; `write` may make or change both while the lab runs.
//!
//! Every check is a map with one key, its kind:
//!
//! | check | holds when |
//! |---|---|
//! | `ping: {from, to, count: 3, expect: all, size: 56, whole: true}` | `all` or `none` of the echoes sent in pod `from`, with so many bytes in each, come back; `whole`: none may be split |
//! | `tcp: {from, to, port, expect: all, send}` | a connection opens and the far end echoes what is sent; `none`: it does not |
//! | `interface: {pod, name, present: true, mtu}` | the interface is there (or not), with that MTU |
//! | `addresses: {pod, interface, equal: []}` | the interface has exactly these addresses (link-local ones aside) |
//! | `addresses: {pod, interface, inside: prefix}` | it has addresses, all of them of this prefix |
//! | `route: {pod, to, via, dev, present: true}` | the main table of the pod has it |
//! | `connections: {client: c, interface, endpoint, mechanism, path, through, avoids}` | the connection of this client has this endpoint, mechanism and way |
//! | `connections: {node: n, count: 2, within: 30s}` | so many connections pass this node's manager; `within` for 3 s |
//! | `ready: {client}` | all vWires of this client are up |
//! | `refusal: {client, hop, contains: []}` | its last try ended in a sentence by that hop with these words |
//! | `app: {client, interface, route, reaches: true}` | the application saw this at its very first look, and its peer answered |
//! | `close: {client}` | after SIGTERM nothing of its vWires remains in any namespace or manager |
//! | `steady: {client, interface, to, faults: [], repeat: 1, lost: 0, silent, same: true}` | while these faults happen one after the other, so many times, echoes go to and fro over this vWire; none is lost, or at most so many, or, with `silent: 2s` instead, there is never so long without one; the interface stays the same. No two pods get one address meanwhile, and no echo strays |
//! | `steady: {client, interface, to, restarts: [process, ...]}` | the same; the faults are that each of these is killed and started again |
//! | `descriptors: {spare: 50}` | no process of ours keeps a namespace open in which no process lives, nor more descriptors than two for each connection and so many |
//! | `isolation: {from, to, at}` | probes sent on this vWire are seen at its two ends and nowhere else; `at` is the pod at the far end, where several have that address |
//! | `lasts: {client, interface, for: 8s, within: 30s}` | all that time echoes over this vWire come back, its interface stays the same, and its path's tokens are renewed; with `within`, it is tried again until then |
//! | `kill: {client}` | after SIGKILL nothing of its vWires remains anywhere as soon as its token has expired |
//! | `end: {process, signal: TERM}` | the process, called as in `nsm lab ps`, ends by TERM or KILL and stays away |
//! | `restart: {process, signal: TERM}` | it ends likewise, is started again and becomes ready |
//! | `way: {pod, to, from, protocol: tcp, srcPort, dstPort, via, dev, table, src}` | the kernel would send such a packet this way; `via: none` is straight on the link |
//! | `resolves: {pod, name, to: []}` | the name servers of the client's resolv.conf know the name by these addresses; it does not exist when there is none |
//! | `resolvConf: {pod, rewritten: true}` | the client's resolv.conf names the resolver beside it, or is as it was written |
//! | `write: {file, text}` | the file in `{files}` is replaced in one step |
//! | `apply: {service: {}}` | this NetworkService, in full as users write it, is registered, new or changed |
//! | `unchanged: {pods: []}` | the kernel objects of these pods are those from before any process ran |
//!
//! Some do something, and hold when it is done. They may also be the faults of `steady`, as may `end`, `restart`, `write` and
//! `apply`:
//!
//! | does | what |
//! |---|---|
//! | `stop: {process}`, `continue: {process}` | SIGSTOP, SIGCONT |
//! | `start: {process}` | starts it when it has ended, or was to be `later`, and waits until it serves |
//! | `death: {pod}` | the process is killed, and its network namespace ends: it has no name any more, and nothing is in it |
//! | `link: {node, loss: 5, duplicate: 2, reorder: 1, delay: 50ms, jitter: 30ms, mtu: 1300, direction: in, only: tcp, peer: node-2}` | from now on the link of this node is so, and good but for that; percents, and bytes of an IP packet. `loss: 100` parts the node from all others, or from one `peer`; `direction: in` or `out` is one way only; `only` is `tcp` or `udp` |
//! | `remove: {pod, interface, address}` | somebody removes this address; without one, or a `route: prefix`, the interface; `remove: {pod, table: 1}`: the rules to this table |
//! | `down: {pod, interface}` | somebody sets the interface down; without one, all that the mesh made |
//! | `disk: {full: true}` | the disk of the journals is filled, or has room again |
//! | `wait: {for: 2s}` | nothing, so long |
//!
//! A check waits for its state with a bound; `ping`, `tcp`, `lasts`, `steady` and `isolation` must hold at once, because a vWire
//! that is reported up carries packets.
//!
//! Not here: reading ([`crate::read()`]) and what processes come of it ([`crate::plan`]).

mod check;
mod fault;

pub use check::{Check, Connections, Ending, Expect, Of, Sought, Span};
pub use fault::{Direction, Fault, LinkFault, Only, Removal, Steady};

use ipnet::IpNet;
use nsm_api::Labels;
use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

/// Characters of a node's or pod's name.
pub const MAX_NAME: usize = 24;
/// Characters of a lab's name.
pub const MAX_LAB_NAME: usize = 36;
/// Nodes of one lab: they share one /24.
pub const MAX_NODES: usize = 200;
/// Endpoints, clients and hosts of one lab together.
pub const MAX_PODS: usize = 2000;
/// Checks of one lab.
pub const MAX_CHECKS: usize = 1000;
/// Files of one lab.
pub const MAX_FILES: usize = 100;
/// Largest packets that an underlay may have: the least is that of IPv6.
pub const UNDERLAY_MTUS: std::ops::RangeInclusive<u32> = 1280..=9000;

/// One lab as written.
#[derive(Clone, Debug, PartialEq)]
pub struct Lab {
    /// Its name; unique among the labs that run.
    pub name: String,
    /// SPIFFE trust domain of all its processes.
    pub trust_domain: String,
    /// Settings of the SPIFFE Workload API server.
    pub identity: Part,
    /// The registry's settings.
    pub registry: Part,
    /// Servers of prefixes.
    pub prefix_servers: Vec<PrefixServer>,
    /// What joins the nodes.
    pub underlay: Underlay,
    /// Its largest packet, bytes; the kernel's choice when unsaid.
    pub underlay_mtu: Option<u32>,
    /// The chance that the links of the nodes play with; they are plain cables without.
    pub link_seed: Option<u64>,
    /// Bytes of the disk that journals are on; that of the machine when unsaid.
    pub state_bytes: Option<u64>,
    /// Files in its directory: name and text.
    pub files: BTreeMap<String, String>,
    /// Nodes, in order.
    pub nodes: Vec<Node>,
    /// Endpoints, in order.
    pub endpoints: Vec<Endpoint>,
    /// Clients, in order of their start.
    pub clients: Vec<Client>,
    /// Hosts behind pods.
    pub hosts: Vec<Host>,
    /// Cables between pods, by their two ends.
    pub cables: Vec<[PodEnd; 2]>,
    /// Checks, in order.
    pub checks: Vec<Check>,
}

/// The network between the nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Underlay {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// One node: a namespace with a manager and a forwarder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Manager and forwarder are one process.
    pub combined: bool,
    /// Longest life of its tokens, as `10m`.
    pub lifetime: Option<String>,
    /// What its manager excludes.
    pub excluded_prefixes: Vec<IpNet>,
    /// Settings of its manager.
    pub manager: Part,
    /// Settings of its forwarder.
    pub forwarder: Part,
}

/// Settings of a process that is no pod of its own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Part {
    /// The program that plays it, and its arguments; our own when empty.
    pub program: Vec<String>,
    /// Further settings.
    pub env: BTreeMap<String, String>,
}

/// A server of prefixes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PrefixServer {
    /// Its name.
    pub name: String,
    /// What it lends prefixes of.
    pub prefix: IpNet,
    /// Their length.
    pub client_prefix_len: u8,
    /// Further settings, and who plays it.
    pub part: Part,
}

/// What an endpoint does with packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndpointKind {
    /// Answers by its kernel.
    IcmpResponder,
    /// Hands everything on to the next endpoint.
    Passthrough,
    /// Routes between its clients and those of the others.
    Vl3,
    /// Hands on what its rules permit.
    Firewall,
    /// Routes to the networks behind it.
    Router,
    /// Routes to a network at the other end of a tunnel.
    VpnGateway,
    /// Starts another endpoint.
    Supplier,
}

impl EndpointKind {
    /// All of them.
    pub const ALL: [EndpointKind; 7] = [
        EndpointKind::IcmpResponder,
        EndpointKind::Passthrough,
        EndpointKind::Vl3,
        EndpointKind::Firewall,
        EndpointKind::Router,
        EndpointKind::VpnGateway,
        EndpointKind::Supplier,
    ];
    /// As on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            EndpointKind::IcmpResponder => "icmp-responder",
            EndpointKind::Passthrough => "passthrough",
            EndpointKind::Vl3 => "vl3",
            EndpointKind::Firewall => "firewall",
            EndpointKind::Router => "router",
            EndpointKind::VpnGateway => "vpn-gateway",
            EndpointKind::Supplier => "supplier",
        }
    }
    /// It gives addresses of its own pools, and what belongs to them.
    pub fn has_pools(self) -> bool {
        matches!(self, EndpointKind::IcmpResponder | EndpointKind::Router | EndpointKind::VpnGateway)
    }
    /// It makes a request of its own.
    pub fn goes_on(self) -> bool {
        matches!(self, EndpointKind::Passthrough | EndpointKind::Firewall)
    }
}

/// One endpoint and its pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Name of the endpoint and of its pod.
    pub name: String,
    /// The node it runs on.
    pub node: String,
    /// What it does.
    pub kind: EndpointKind,
    /// Services it provides.
    pub services: Vec<String>,
    /// Labels it advertises.
    pub labels: Labels,
    /// Labels of its onward request.
    pub client_labels: Labels,
    /// Pools.
    pub cidr: Vec<IpNet>,
    /// `IP`, `ETHERNET`, or unsaid.
    pub payload: Option<&'static str>,
    /// `strict`, `polite`, or unsaid.
    pub ipam: Option<&'static str>,
    /// Routes its clients learn.
    pub routes: Vec<IpNet>,
    /// Policy routes its clients learn, as YAML.
    pub policy_routes: Option<String>,
    /// It starts only when it is told to.
    pub later: bool,
    /// Name servers its clients learn.
    pub dns: Vec<DnsServers>,
    /// What the name server in its pod knows; there is none without.
    pub names: BTreeMap<String, IpAddr>,
    /// Longest life of its tokens, as `10m`.
    pub lifetime: Option<String>,
    /// Further settings, and who plays it.
    pub part: Part,
}

/// Name servers that a client learns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DnsServers {
    /// Their addresses.
    pub servers: Vec<IpAddr>,
    /// Domains to search.
    pub search: Vec<String>,
}

/// How a client lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// One process that keeps the vWires and closes them at its end.
    Stay,
    /// A process that ends when the vWires are up, then the application, then one that stays.
    Init,
}

/// What the application of a client does first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct App {
    /// Sends one echo there.
    pub ping: Option<IpAddr>,
    /// Opens a TCP connection there.
    pub tcp: Option<SocketAddr>,
}

/// One client and its pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Client {
    /// Name of the client and of its pod.
    pub name: String,
    /// The node it runs on.
    pub node: String,
    /// Service URLs, `mechanism://service[@domain]/interface?label=value`.
    pub services: Vec<String>,
    /// `IP` or `ETHERNET`, when it insists.
    pub payload: Option<&'static str>,
    /// Longest life of its tokens, as `10m`.
    pub lifetime: Option<String>,
    /// How it lives.
    pub mode: Mode,
    /// Its application.
    pub app: Option<App>,
    /// It is not waited for.
    pub expect_refusal: bool,
    /// It starts only when it is told to.
    pub later: bool,
    /// Another socket than its manager's.
    pub manager: Option<String>,
    /// Service URLs that may have the same addresses, group by group.
    pub awareness: Vec<Vec<String>>,
    /// What it sees as /etc/resolv.conf, if not the machine's.
    pub resolv_conf: Option<String>,
    /// Further settings, and who plays it.
    pub part: Part,
}

/// One end of a cable between pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodEnd {
    /// The pod.
    pub pod: String,
    /// Its interface.
    pub interface: String,
    /// The address there.
    pub address: IpNet,
}

/// A route of a host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostRoute {
    /// Where to.
    pub to: IpNet,
    /// Next hop.
    pub via: IpAddr,
}

/// A machine behind a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// Its name.
    pub name: String,
    /// The pod at the other end of its cable.
    pub pod: String,
    /// Its interface.
    pub interface: String,
    /// Its address.
    pub address: IpNet,
    /// The pod's interface.
    pub pod_interface: String,
    /// The pod's address, when it has one there.
    pub pod_address: Option<IpNet>,
    /// Its routes.
    pub routes: Vec<HostRoute>,
    /// TCP ports where it answers.
    pub listen: Vec<u16>,
    /// What its name server knows; there is none without.
    pub names: BTreeMap<String, IpAddr>,
}

impl Lab {
    /// The name of the namespace of a node, pod or host.
    pub fn namespace(&self, place: &str) -> String {
        format!("{}-{place}", self.name)
    }
    /// The client of this name.
    pub fn client(&self, name: &str) -> Option<&Client> {
        self.clients.iter().find(|client| client.name == name)
    }
    /// Names of all processes.
    pub fn processes(&self) -> impl Iterator<Item = String> {
        let of_node = |node: &Node| match node.combined {
            true => vec![node.name.clone()],
            false => ["manager", "forwarder"].map(|role| format!("{}-{role}", node.name)).to_vec(),
        };
        let engines = self.nodes.iter().filter(|_| self.nodes.len() > 1).map(|node| format!("{}-packet", node.name));
        let pods = self.endpoints.iter().map(|endpoint| &endpoint.name).chain(self.clients.iter().map(|client| &client.name));
        ["identity".to_owned(), "registry".to_owned()]
            .into_iter()
            .chain(self.prefix_servers.iter().map(|server| server.name.clone()))
            .chain(self.nodes.iter().flat_map(of_node))
            .chain(engines)
            .chain(pods.cloned())
    }
    /// Pods and hosts with a name server, and what it knows.
    pub fn name_servers(&self) -> impl Iterator<Item = (&str, &BTreeMap<String, IpAddr>)> {
        let endpoints = self.endpoints.iter().map(|endpoint| (endpoint.name.as_str(), &endpoint.names));
        let hosts = self.hosts.iter().map(|host| (host.name.as_str(), &host.names));
        endpoints.chain(hosts).filter(|(_, names)| !names.is_empty())
    }
    /// All that somebody else may play.
    pub(crate) fn parts(&mut self) -> Vec<&mut Part> {
        let nodes = self.nodes.iter_mut().flat_map(|node| [&mut node.manager, &mut node.forwarder]);
        let endpoints = self.endpoints.iter_mut().map(|endpoint| &mut endpoint.part);
        let clients = self.clients.iter_mut().map(|client| &mut client.part);
        let servers = self.prefix_servers.iter_mut().map(|server| &mut server.part);
        [&mut self.identity, &mut self.registry].into_iter().chain(servers).chain(nodes).chain(endpoints).chain(clients).collect()
    }
    /// Everything that is a namespace besides nodes and the fabric: endpoints, clients, hosts.
    pub fn pods(&self) -> impl Iterator<Item = &str> {
        let endpoints = self.endpoints.iter().map(|endpoint| endpoint.name.as_str());
        let clients = self.clients.iter().map(|client| client.name.as_str());
        endpoints.chain(clients).chain(self.hosts.iter().map(|host| host.name.as_str()))
    }
}
