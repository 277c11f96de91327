//! The closed list of checks, and how each is called in a table.

use super::{Fault, Steady};
use ipnet::IpNet;
use nsm_linux::net::Packet;
use std::{fmt, net::IpAddr, str::FromStr, time::Duration};

/// How many echoes must come back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// Each.
    All,
    /// Not one.
    None,
}

/// How a process is told to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// SIGTERM: it may say goodbye.
    Term,
    /// SIGKILL: it may not.
    Kill,
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Ending::Term => "SIGTERM",
            Ending::Kill => "SIGKILL",
        })
    }
}

/// A length of time, written as `8s` or `500ms`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub Duration);

impl FromStr for Span {
    type Err = ();
    fn from_str(text: &str) -> Result<Span, ()> {
        let digits = text.trim_end_matches(|c: char| c.is_ascii_lowercase());
        let number = digits.parse().map_err(|_| ())?;
        match &text[digits.len()..] {
            "ms" => Ok(Span(Duration::from_millis(number))),
            "s" => Ok(Span(Duration::from_secs(number))),
            _ => Err(()),
        }
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} s", self.0.as_secs_f64())
    }
}

/// Whose connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Of {
    /// Those this client asked for; the one with this interface, when said.
    Client {
        /// The client.
        name: String,
        /// Its interface.
        interface: Option<String>,
    },
    /// All that pass the manager of this node.
    Node(String),
}

/// One check. The fields are explained in the table of [`crate::schema`].
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum Check {
    Ping { from: String, to: IpAddr, count: u32, expect: Expect, size: usize, whole: bool },
    Tcp { from: String, to: IpAddr, port: u16, expect: Expect, send: Option<String> },
    Interface { pod: String, name: String, present: bool, mtu: Option<u32> },
    Addresses { pod: String, interface: String, equal: Vec<IpNet>, inside: Option<IpNet> },
    Route { pod: String, to: IpNet, via: Option<IpAddr>, dev: Option<String>, present: bool },
    Way { pod: String, packet: Packet, sought: Sought },
    Resolves { pod: String, name: String, to: Vec<IpAddr> },
    ResolvConf { pod: String, rewritten: bool },
    Write { file: String, text: String },
    Apply { name: String, text: String },
    Connections { of: Of, expected: Box<Connections>, within: Option<Span> },
    Ready { client: String },
    Refusal { client: String, hop: Option<String>, contains: Vec<String> },
    App { client: String, interface: Option<String>, route: Option<IpNet>, reaches: bool },
    Close { client: String },
    Lasts { client: String, interface: String, span: Span, within: Option<Span> },
    Kill { client: String },
    End { process: String, ending: Ending },
    Restart { process: String, ending: Ending },
    Do(Fault),
    Steady(Box<Steady>),
    Descriptors { spare: usize },
    Isolation { from: String, to: IpAddr, at: Option<String> },
    Unchanged { pods: Vec<String> },
}

/// The way that a `way` check expects; what is absent is not looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sought {
    /// This next hop, or, inside, none.
    pub via: Option<Option<IpAddr>>,
    /// This interface.
    pub dev: Option<String>,
    /// This table.
    pub table: Option<u32>,
    /// This source address.
    pub src: Option<IpAddr>,
}

impl fmt::Display for Sought {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let via = self.via.map(|via| via.map_or("on the link".to_owned(), |via| format!("via {via}")));
        let dev = self.dev.as_ref().map(|dev| format!("dev {dev}"));
        let table = self.table.map(|table| format!("table {table}"));
        let src = self.src.map(|src| format!("src {src}"));
        let words: Vec<String> = [via, dev, table, src].into_iter().flatten().collect();
        f.write_str(if words.is_empty() { "a way" } else { "" })?;
        f.write_str(&words.join(" "))
    }
}

/// What a `connections` check expects; what is absent is not looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Connections {
    /// So many.
    pub count: Option<usize>,
    /// This endpoint at the end.
    pub endpoint: Option<String>,
    /// This mechanism on one of its stretches, as any manager sees it.
    pub mechanism: Option<String>,
    /// Exactly these segments.
    pub path: Vec<String>,
    /// These segments in this order, others between.
    pub through: Vec<String>,
    /// None of these segments.
    pub avoids: Vec<String>,
}

impl Check {
    /// It does something, and then holds.
    pub fn acts(&self) -> bool {
        matches!(self, Check::Do(_) | Check::End { .. } | Check::Restart { .. } | Check::Write { .. } | Check::Apply { .. })
    }
    /// The words in the column `expected`.
    pub fn expected(&self) -> String {
        match self {
            Check::Ping { count, expect: Expect::All, .. } => format!("{count} of {count} echoes"),
            Check::Ping { count, expect: Expect::None, .. } => format!("0 of {count} echoes"),
            Check::Tcp { expect: Expect::None, .. } => "no echo".to_owned(),
            Check::Tcp { .. } => "connects and echoes".to_owned(),
            Check::Interface { present: false, .. } => "absent".to_owned(),
            Check::Interface { mtu: Some(mtu), .. } => format!("present, MTU {mtu}"),
            Check::Interface { .. } => "present".to_owned(),
            Check::Addresses { inside: Some(prefix), .. } => format!("all of {prefix}"),
            Check::Addresses { equal, .. } => list(equal),
            Check::Route { present: false, .. } => "absent".to_owned(),
            Check::Route { via, dev, .. } => route_words(*via, dev.as_deref()),
            Check::Way { sought, .. } => sought.to_string(),
            Check::Resolves { to, .. } if to.is_empty() => "no such name".to_owned(),
            Check::Resolves { to, .. } => list(to),
            Check::ResolvConf { rewritten: true, .. } => "names the resolver beside it".to_owned(),
            Check::ResolvConf { rewritten: false, .. } => "as it was".to_owned(),
            Check::Write { .. } => "written".to_owned(),
            Check::Apply { .. } => "registered".to_owned(),
            Check::Connections { expected, .. } => expected.to_string(),
            Check::Ready { .. } => "all vWires up".to_owned(),
            Check::Refusal { hop, contains, .. } => refusal_words(hop.as_deref(), contains),
            Check::App { interface, route, reaches, .. } => app_words(interface.as_deref(), *route, *reaches),
            Check::Close { .. } => "nothing remains".to_owned(),
            Check::Lasts { span, .. } => format!("no echo lost in {span}, same interface, tokens renewed"),
            Check::Kill { .. } => "nothing remains once its token has expired".to_owned(),
            Check::End { .. } => "ended".to_owned(),
            Check::Restart { .. } => "ready again".to_owned(),
            Check::Do(_) => "done".to_owned(),
            Check::Steady(steady) => steady.expected(),
            Check::Descriptors { .. } => "those of living pods, and few".to_owned(),
            Check::Isolation { .. } => "once at its two ends, nowhere else".to_owned(),
            Check::Unchanged { .. } => "as before the start".to_owned(),
        }
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Check::Ping { from, to, size, whole: true, .. } => write!(f, "{from} pings {to} with {size} bytes, unsplit"),
            Check::Ping { from, to, .. } => write!(f, "{from} pings {to}"),
            Check::Tcp { from, to, port, send: None, .. } => write!(f, "{from} connects to {to}:{port}"),
            Check::Tcp { from, to, port, send: Some(text), .. } => write!(f, "{from} sends {text:?} to {to}:{port}"),
            Check::Interface { pod, name, .. } => write!(f, "interface {name} in {pod}"),
            Check::Addresses { pod, interface, .. } => write!(f, "addresses of {interface} in {pod}"),
            Check::Route { pod, to, .. } => write!(f, "route to {to} in {pod}"),
            Check::Way { pod, packet, .. } => way(f, pod, packet),
            Check::Resolves { pod, name, .. } => write!(f, "{pod} asks for {name}"),
            Check::ResolvConf { pod, .. } => write!(f, "resolv.conf of {pod}"),
            Check::Write { file, .. } => write!(f, "file {file} changes"),
            Check::Apply { name, .. } => write!(f, "service {name} changes"),
            Check::Connections { of: Of::Client { name, interface: None }, .. } => write!(f, "connection of {name}"),
            Check::Connections { of: Of::Client { name, interface: Some(interface) }, .. } => {
                write!(f, "connection of {name} at {interface}")
            }
            Check::Connections { of: Of::Node(node), .. } => write!(f, "connections at {node}"),
            Check::Ready { client } => write!(f, "{client} becomes ready"),
            Check::Refusal { client, .. } => write!(f, "{client} is refused"),
            Check::App { client, .. } => write!(f, "application of {client} at its start"),
            Check::Close { client } => write!(f, "{client} closes"),
            Check::Lasts { client, interface, .. } => write!(f, "{interface} of {client} lasts"),
            Check::Kill { client } => write!(f, "{client} is killed"),
            Check::End { process, ending } => write!(f, "{process} is ended by {ending}"),
            Check::Restart { process, ending } => write!(f, "{process} is restarted by {ending}"),
            Check::Do(fault) => fault.fmt(f),
            Check::Steady(steady) => steady.fmt(f),
            Check::Descriptors { .. } => f.write_str("descriptors of all processes"),
            Check::Isolation { from, to, .. } => write!(f, "isolation of {from} to {to}"),
            Check::Unchanged { pods } => write!(f, "kernel objects of {}", pods.join(", ")),
        }
    }
}

impl fmt::Display for Connections {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut words = Vec::new();
        words.extend(self.count.map(|count| format!("{count} connections")));
        words.extend(self.endpoint.iter().map(|name| format!("endpoint {name}")));
        words.extend(self.mechanism.iter().map(|name| format!("mechanism {name}")));
        if !self.path.is_empty() {
            words.push(self.path.join(" > "));
        }
        if !self.through.is_empty() {
            words.push(format!("through {}", self.through.join(", ")));
        }
        if !self.avoids.is_empty() {
            words.push(format!("not through {}", self.avoids.join(", ")));
        }
        f.write_str(if words.is_empty() { "present" } else { "" })?;
        f.write_str(&words.join("; "))
    }
}

fn way(f: &mut fmt::Formatter<'_>, pod: &str, packet: &Packet) -> fmt::Result {
    write!(f, "way out of {pod} ")?;
    if let Some(from) = packet.from {
        write!(f, "from {from} ")?;
    }
    write!(f, "to {}", packet.to)?;
    match packet.protocol {
        None => Ok(()),
        Some(6) => f.write_str(" by TCP"),
        Some(17) => f.write_str(" by UDP"),
        Some(other) => write!(f, " by protocol {other}"),
    }?;
    let ports = [("from", packet.src_port), ("to", packet.dst_port)];
    ports.iter().filter_map(|(word, port)| Some((word, (*port)?))).try_for_each(|(word, port)| write!(f, " {word} port {port}"))
}

fn list<T: ToString>(items: &[T]) -> String {
    if items.is_empty() { "none".to_owned() } else { items.iter().map(T::to_string).collect::<Vec<_>>().join(" ") }
}

fn route_words(via: Option<IpAddr>, dev: Option<&str>) -> String {
    let via = via.map(|via| format!("via {via}"));
    let dev = dev.map(|dev| format!("dev {dev}"));
    let words: Vec<String> = via.into_iter().chain(dev).collect();
    if words.is_empty() { "present".to_owned() } else { words.join(" ") }
}

fn refusal_words(hop: Option<&str>, contains: &[String]) -> String {
    let hop = hop.map(|hop| format!("by {hop}"));
    let words: Vec<String> = hop.into_iter().chain(contains.iter().map(|word| format!("{word:?}"))).collect();
    format!("refused {}", words.join(" "))
}

fn app_words(interface: Option<&str>, route: Option<IpNet>, reaches: bool) -> String {
    let mut words: Vec<String> = interface.map(str::to_owned).into_iter().collect();
    words.extend(route.map(|route| format!("route {route}")));
    words.extend(reaches.then(|| "its peer answers".to_owned()));
    words.join(", ")
}
