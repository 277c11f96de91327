//! One row per option: what a role declares.

use clap::ValueHint;

/// What the text of an option must look like. Decides the hint in `--help`, the completion of the shell, and
/// the sentence that tells a user what is allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// Free text, a name.
    Text,
    /// Go's booleans.
    Bool,
    /// Go's durations.
    Duration,
    /// A number from 0 to this.
    Number(u32),
    /// One IP address.
    Address,
    /// Prefixes, in groups.
    Prefixes,
    /// Where one process is reached.
    Target,
    /// Comma list of targets.
    Targets,
    /// Comma list.
    List,
    /// `key:value,key:value`
    Map,
    /// Network service URLs, by comma.
    Services,
    /// A path.
    File,
    /// A directory.
    Directory,
    /// One of these words.
    OneOf(&'static [&'static str]),
}

impl Shape {
    /// The name of the value in `--help`.
    pub fn value_name(self) -> &'static str {
        match self {
            Shape::Text => "TEXT",
            Shape::Bool => "BOOL",
            Shape::Duration => "DURATION",
            Shape::Number(_) => "NUMBER",
            Shape::Address => "IP",
            Shape::Prefixes => "PREFIX,...",
            Shape::Target => "URL",
            Shape::Targets => "URL,...",
            Shape::List => "ITEM,...",
            Shape::Map => "KEY:VALUE,...",
            Shape::Services => "URL,...",
            Shape::File => "FILE",
            Shape::Directory => "DIR",
            Shape::OneOf(_) => "WORD",
        }
    }
    /// What is allowed, to end a sentence with.
    pub fn allowed(self) -> String {
        match self {
            Shape::Text => "text without control characters".into(),
            Shape::Bool => "true or false (also 1, 0, t, f, T, F, TRUE, FALSE, True, False)".into(),
            Shape::Duration => "a duration such as 750ms, 1.5s or 1h30m".into(),
            Shape::Number(largest) => format!("a whole number from 0 to {largest}"),
            Shape::Address => "an IPv4 or IPv6 address".into(),
            Shape::Prefixes => {
                "prefixes such as 172.16.0.0/16,fd00::/64, alternatives of one group in brackets: [10.0.0.0/24,10.0.1.0/24],[fd00::/64]"
                    .into()
            }
            Shape::Target | Shape::Targets => "unix:///path, tcp://host:port or host:port".into(),
            Shape::List => "items separated by commas".into(),
            Shape::Map => "key:value pairs separated by commas".into(),
            Shape::Services => "URLs such as kernel://service@domain/interface?label=value, separated by commas".into(),
            Shape::File => "the path of a file".into(),
            Shape::Directory => "the path of a directory".into(),
            Shape::OneOf(words) => words.join(", "),
        }
    }
    /// What a shell may offer.
    pub(crate) fn hint(self) -> ValueHint {
        match self {
            Shape::File => ValueHint::FilePath,
            Shape::Directory => ValueHint::DirPath,
            _ => ValueHint::Other,
        }
    }
}

/// How much an option does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// It does what its help says.
    Full,
    /// It does, and its value must not be shown.
    Secret,
    /// Upstream has it; here it is accepted and reported as without effect.
    None,
}

/// Where on the command line an option stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// `--flag VALUE`, possibly again.
    Flag,
    /// `--flag VALUE VALUE ...`, read with `Settings::words`.
    Flags,
    /// Any number of words by position, read with `Settings::words`.
    Position,
}

/// One option of a role: its flag, its variable, its default.
#[derive(Clone, Copy, Debug)]
pub struct Opt {
    /// Name of the flag without dashes, of the key in a file, and of the getter's argument.
    pub flag: &'static str,
    /// One letter for the flag, too.
    pub short: Option<char>,
    /// The environment variable; empty when there is none.
    pub env: &'static str,
    /// Text used when nobody says anything. For a required option: an example, shown to the user.
    pub default: &'static str,
    /// Whether somebody must say something.
    pub required: bool,
    /// What the text looks like.
    pub shape: Shape,
    /// One sentence for `--help`.
    pub help: &'static str,
    /// What it does.
    pub effect: Effect,
    /// Where it stands.
    pub place: Place,
}

impl Opt {
    /// An option that has an effect and a default. An empty default means "none" and is read with `Settings::optional`, or as an empty list.
    pub const fn new(flag: &'static str, env: &'static str, default: &'static str, shape: Shape, help: &'static str) -> Opt {
        Opt { flag, short: None, env, default, required: false, shape, help, effect: Effect::Full, place: Place::Flag }
    }
    /// An option that must be set; `example` is shown to whoever forgot it.
    pub const fn required(flag: &'static str, env: &'static str, example: &'static str, shape: Shape, help: &'static str) -> Opt {
        Opt { required: true, ..Opt::new(flag, env, example, shape, help) }
    }
    /// A variable of upstream that is accepted here and has no effect yet. It is not shown in `--help`.
    pub const fn accepted(flag: &'static str, env: &'static str) -> Opt {
        Opt { effect: Effect::None, ..Opt::new(flag, env, "", Shape::Text, "accepted, no effect yet") }
    }
    /// Words given by position, read with `Settings::words`.
    pub const fn words(name: &'static str, shape: Shape, help: &'static str) -> Opt {
        Opt { place: Place::Position, ..Opt::new(name, "", "", shape, help) }
    }
    /// The same, one flag taking several values.
    pub const fn many(self) -> Opt {
        Opt { place: Place::Flags, ..self }
    }
    /// The same, with a one-letter flag.
    pub const fn short(self, letter: char) -> Opt {
        Opt { short: Some(letter), ..self }
    }
    /// The same, never shown in a log.
    pub const fn secret(self) -> Opt {
        Opt { effect: Effect::Secret, ..self }
    }
}

/// What every role accepts.
pub const COMMON: &[Opt] = &[
    Opt::new(
        "log-level",
        "NSM_LOG_LEVEL",
        "INFO",
        Shape::Text,
        "TRACE, DEBUG, INFO, WARN, ERROR, FATAL, PANIC, or a filter such as info,nsm_hop=debug",
    ),
    Opt::new("log-format", "NSM_LOG_FORMAT", "text", Shape::OneOf(&["text", "json"]), "How a log line looks"),
    Opt::accepted("open-telemetry-endpoint", "NSM_OPEN_TELEMETRY_ENDPOINT"),
    Opt::accepted("metrics-export-interval", "NSM_METRICS_EXPORT_INTERVAL"),
    Opt::accepted("pprof-enabled", "NSM_PPROF_ENABLED"),
    Opt::accepted("pprof-listen-on", "NSM_PPROF_LISTEN_ON"),
];
