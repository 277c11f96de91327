//! The command line: built from the programs' tables, so that help, completion and settings cannot disagree.

use crate::{
    context::Output,
    exit::Exit,
    program::Program,
    settings::{COMMON, with_options},
};
use clap::{Arg, ArgAction, ArgMatches, Command, FromArgMatches, Subcommand};
use nsm_bench::BenchCommand;
use nsm_lab::LabCommand;
use std::{fmt::Write, path::PathBuf};

/// Subcommands that only hold others.
const GROUPS: &[(&str, &str)] = &[
    ("endpoint", "Endpoints: they provide a network service"),
    ("get", "List what is there"),
    ("describe", "Show one thing whole"),
    ("watch", "Print what is there and every change until interrupted"),
    ("delete", "Remove from the registry"),
    ("sim", "A whole domain in one process, in simulated time"),
];
/// Other words for the last word of a subcommand, as upstream's tool has them.
const ALIASES: &[(&str, &[&str])] = &[
    ("service", &["services", "netsvc", "netsvcs", "networkservice", "networkservices"]),
    ("endpoint", &["endpoints", "nse", "nses", "networkserviceendpoint", "networkserviceendpoints"]),
    ("connection", &["connections", "conn", "conns"]),
    ("node", &["nodes"]),
];
const NETNS: &str = "netns";
const CONFIG: &str = "config";
const JSON: &str = "json";

/// What was asked for.
pub(crate) struct Invocation {
    /// The words of the subcommand, joined by blanks.
    pub(crate) name: String,
    /// Its arguments.
    pub(crate) matches: ArgMatches,
    lab: Option<ArgMatches>,
    bench: Option<ArgMatches>,
    /// The namespace to enter first: a name of `ip netns` or a path.
    pub(crate) netns: Option<String>,
    /// The settings file.
    pub(crate) config: Option<PathBuf>,
    /// Where results go.
    pub(crate) output: Output,
}

/// The parser of the whole command line.
pub(crate) fn command(programs: &[Program]) -> Command {
    let root = Command::new("nsm")
        .about("Network Service Mesh: a workload asks for a network service by name and gets a wire")
        .version(env!("CARGO_PKG_VERSION"))
        .subcommand_required(true)
        .arg_required_else_help(true)
        .max_term_width(120)
        .arg(Arg::new(NETNS).long(NETNS).value_name("NAME|PATH").global(true).help("Run inside this network namespace"))
        .arg(
            Arg::new(CONFIG)
                .long(CONFIG)
                .value_name("FILE")
                .global(true)
                .help("YAML map from flag names to values; flags and variables win over it"),
        )
        .arg(Arg::new(JSON).long(JSON).action(ArgAction::SetTrue).global(true).help("Print results, and the error if any, as JSON"))
        .after_help(exit_codes());
    let root =
        with_options(root, COMMON).mut_args(|arg| if arg.get_id() == "help" || arg.get_id() == "version" { arg } else { arg.global(true) });
    let root = programs.iter().fold(root, |root, program| {
        let leaf = with_options(Command::new("").about(program.about), program.options);
        insert(root, program.name, leaf)
    });
    let shell = Arg::new("shell").value_name("SHELL").required(true).value_parser(clap::value_parser!(clap_complete::Shell));
    let lab = LabCommand::augment_subcommands(Command::new("lab"))
        .about("Whole topologies on this machine: real processes, namespaces and packets");
    let bench = BenchCommand::augment_subcommands(Command::new("bench")).about("Measure what wires carry and what setting them up costs");
    root.subcommand(lab.subcommand_required(true).arg_required_else_help(true))
        .subcommand(bench.subcommand_required(true).arg_required_else_help(true))
        .subcommand(Command::new("completion").about("Print a completion script for a shell").arg(shell))
        .subcommand(Command::new("version").about("Print the version"))
}

/// Puts `leaf` under the words of `name`.
fn insert(parent: Command, name: &'static str, leaf: Command) -> Command {
    let Some((word, rest)) = name.split_once(' ') else { return parent.subcommand(leaf.name(name).aliases(aliases(name))) };
    if parent.find_subcommand(word).is_some() {
        return parent.mut_subcommand(word, |group| insert(group, rest, leaf));
    }
    let about = GROUPS.iter().find(|(group, _)| *group == word).map(|(_, about)| *about).expect("every group has a sentence in GROUPS");
    let group = Command::new(word).about(about).subcommand_required(true).arg_required_else_help(true);
    parent.subcommand(insert(group, rest, leaf))
}

/// Singular and plural mean the same; whichever is not the name is an alias.
fn aliases(name: &'static str) -> impl Iterator<Item = &'static str> {
    let words = ALIASES.iter().filter(move |(one, others)| *one == name || others[0] == name);
    words.flat_map(|(one, others)| others.iter().copied().chain([*one])).filter(move |alias| *alias != name)
}

fn exit_codes() -> String {
    let mut text = "Exit codes:\n".to_owned();
    for exit in Exit::ALL {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "  {}  {}", exit.code(), exit.meaning());
    }
    text
}

impl Invocation {
    /// The lab's command, when it was asked for. It has its own arguments.
    pub(crate) fn lab(&self) -> Option<Result<LabCommand, clap::Error>> {
        self.lab.as_ref().map(LabCommand::from_arg_matches)
    }
    /// The bench's command, when it was asked for. It has its own arguments.
    pub(crate) fn bench(&self) -> Option<Result<BenchCommand, clap::Error>> {
        self.bench.as_ref().map(BenchCommand::from_arg_matches)
    }
    /// What the arguments say. The parser has checked that there is a subcommand.
    pub(crate) fn new(mut matches: ArgMatches) -> Invocation {
        let mut words = Vec::new();
        let lab = matches.subcommand_matches("lab").cloned();
        let bench = matches.subcommand_matches("bench").cloned();
        while let Some((word, inner)) = matches.remove_subcommand() {
            words.push(word);
            matches = inner;
        }
        let text = |id: &str| matches.get_one::<String>(id).cloned();
        Invocation {
            name: words.join(" "),
            lab,
            bench,
            netns: text(NETNS),
            config: text(CONFIG).map(PathBuf::from),
            output: if matches.get_flag(JSON) { Output::Json } else { Output::Text },
            matches,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::programs;

    #[test]
    fn the_parser_is_consistent() {
        command(&programs()).debug_assert();
    }

    #[test]
    fn globals_are_understood_before_and_after_the_words() {
        for line in ["nsm --netns n --json version", "nsm version --json --netns n"] {
            let matches = command(&programs()).try_get_matches_from(line.split(' ')).unwrap();
            let asked = Invocation::new(matches);
            assert_eq!((asked.name.as_str(), asked.netns.as_deref(), asked.output), ("version", Some("n"), Output::Json));
        }
    }

    #[test]
    fn the_same_option_is_never_declared_twice() {
        for program in programs() {
            let mut seen = std::collections::BTreeSet::new();
            for opt in COMMON.iter().chain(program.options) {
                assert!(
                    seen.insert(opt.flag) && (opt.env.is_empty() || seen.insert(opt.env)),
                    "{}: {} {}",
                    program.name,
                    opt.flag,
                    opt.env
                );
            }
        }
    }
}
