//! The closed list of faults that a lab can put into itself, and how each is called in a table.

use super::Span;
use ipnet::IpNet;
use std::{fmt, net::IpAddr};

/// Of all frames that a fault may hit, those that it hits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Only {
    /// All of them, neighbour discovery included.
    #[default]
    Everything,
    /// TCP over IP: what the processes say to each other.
    Tcp,
    /// UDP over IP: what carries vWires between nodes.
    Udp,
}

/// The direction that a fault is for, seen from the node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Direction {
    /// Both.
    #[default]
    Both,
    /// What the node receives.
    In,
    /// What the node sends.
    Out,
}

/// What the link of a node does to frames. The default is a good link.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LinkFault {
    /// Percent of frames that are lost.
    pub loss: f64,
    /// Percent of frames that arrive twice.
    pub duplicate: f64,
    /// Percent of frames that are not delayed, so that they overtake others.
    pub reorder: f64,
    /// How late frames are.
    pub delay: Option<Span>,
    /// By how much more or less each of them may be late.
    pub jitter: Option<Span>,
    /// Bytes of the longest IP packet that arrives; longer ones are lost without a word.
    pub mtu: Option<usize>,
    /// The direction.
    pub direction: Direction,
    /// The frames.
    pub only: Only,
    /// Only frames to and from this node.
    pub peer: Option<String>,
}

impl fmt::Display for LinkFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = [("lost", self.loss), ("twice", self.duplicate), ("out of order", self.reorder)];
        let mut words: Vec<String> =
            percent.iter().filter(|(_, share)| *share > 0.0).map(|(word, share)| format!("{share} % {word}")).collect();
        words.extend(self.delay.map(|delay| format!("{delay} late")));
        words.extend(self.jitter.map(|jitter| format!("± {jitter}")));
        words.extend(self.mtu.map(|mtu| format!("nothing over {mtu} bytes")));
        if words.is_empty() {
            return f.write_str("good");
        }
        words.extend(match self.direction {
            Direction::Both => None,
            Direction::In => Some("inwards".to_owned()),
            Direction::Out => Some("outwards".to_owned()),
        });
        words.extend(match self.only {
            Only::Everything => None,
            Only::Tcp => Some("TCP only".to_owned()),
            Only::Udp => Some("UDP only".to_owned()),
        });
        words.extend(self.peer.as_ref().map(|peer| format!("with {peer} only")));
        f.write_str(&words.join(", "))
    }
}

/// What somebody takes away by hand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Removal {
    /// An interface.
    Interface(String),
    /// An address of an interface.
    Address(String, IpNet),
    /// The routes of the main table to this prefix through an interface.
    Route(String, IpNet),
    /// The rules that lead to this table.
    Rules(u32),
}

impl fmt::Display for Removal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Removal::Interface(name) => write!(f, "interface {name}"),
            Removal::Address(name, address) => write!(f, "address {address} of {name}"),
            Removal::Route(name, to) => write!(f, "route to {to} through {name}"),
            Removal::Rules(table) => write!(f, "rules to table {table}"),
        }
    }
}

/// One fault. The fields are explained in the table of [`crate::schema`].
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum Fault {
    Stop { process: String },
    Continue { process: String },
    Start { process: String },
    Death { pod: String },
    Link { node: String, fault: LinkFault },
    Remove { pod: String, removal: Removal },
    Down { pod: String, interface: Option<String> },
    Disk { full: bool },
    Wait { span: Span },
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Stop { process } => write!(f, "{process} is stopped"),
            Fault::Continue { process } => write!(f, "{process} goes on"),
            Fault::Start { process } => write!(f, "{process} starts"),
            Fault::Death { pod } => write!(f, "pod {pod} dies"),
            Fault::Link { node, fault } => write!(f, "link of {node}: {fault}"),
            Fault::Remove { pod, removal } => write!(f, "{pod} loses {removal}"),
            Fault::Down { pod, interface: Some(interface) } => write!(f, "{interface} of {pod} is set down"),
            Fault::Down { pod, interface: None } => write!(f, "all interfaces of {pod} are set down"),
            Fault::Disk { full: true } => f.write_str("the disk is full"),
            Fault::Disk { full: false } => f.write_str("the disk has room again"),
            Fault::Wait { span } => write!(f, "{span} pass"),
        }
    }
}

/// A vWire that is watched while faults happen.
#[derive(Clone, Debug, PartialEq)]
pub struct Steady {
    /// The client.
    pub client: String,
    /// Its interface.
    pub interface: String,
    /// Who answers; after another endpoint was chosen, the other. An echo goes to each, one answer is enough.
    pub to: Vec<IpAddr>,
    /// What happens, in order: faults, and checks that act.
    pub faults: Vec<super::Check>,
    /// How often all of it happens.
    pub repeat: u32,
    /// Echoes that may be lost; any number when there is a bound of silence instead.
    pub lost: Option<u32>,
    /// How long no echo may come back.
    pub silent: Option<Span>,
    /// The interface must be the very same afterwards, not only one of the same name.
    pub same: bool,
}

impl Steady {
    /// The words in the column `expected`.
    pub fn expected(&self) -> String {
        let mut words = Vec::new();
        words.extend(self.lost.map(|lost| if lost == 0 { "no echo lost".to_owned() } else { format!("at most {lost} echoes lost") }));
        words.extend(self.silent.map(|silent| format!("never silent for {silent}")));
        words.extend(self.same.then(|| "same interface".to_owned()));
        words.join(", ")
    }
}

impl fmt::Display for Steady {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let faults: Vec<String> = self.faults.iter().map(ToString::to_string).collect();
        write!(f, "{} of {} while {}", self.interface, self.client, faults.join(", "))?;
        if self.repeat > 1 { write!(f, "; {} times", self.repeat) } else { Ok(()) }
    }
}
