//! The command `nsm lab ...`: what it takes and what it prints.

mod args;
mod running;

pub use args::{ChaosArgs, DownArgs, ExecArgs, GraphArgs, HealsArgs, LabCommand, LookArgs, PsArgs, RunArgs, SoakArgs, StartArgs, UpArgs};

use crate::{
    chaos,
    look::look,
    progress::{Progress, wants_colour},
    read::{LabFile, read_file},
    report::{Style, summary, table},
    run,
    state::Store,
    world::Setting,
};
use nsm_api::{Error, Kind, Result};
use nsm_linux::netns;
use std::{
    io::IsTerminal,
    os::unix::{net::UnixDatagram, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// How long a lab in the background may take to come up or to end.
const BACKGROUND_BOUND: Duration = Duration::from_secs(60);
/// How deep directories in a directory are looked through.
const MAX_DEPTH: usize = 4;
/// Lab files of one command.
const MAX_FILES: usize = 1000;

/// Does what was asked and prints the result. `false`: something that was checked does not hold, or something was left
/// behind. Call it while the process has one thread and no async runtime: a lab without root enters namespaces of its
/// own, which the kernel allows only then.
pub fn cli(command: LabCommand) -> Result<bool> {
    match command {
        LabCommand::Run(args) => run_examples(&args),
        LabCommand::Up(args) if args.foreground => up_here(&args),
        LabCommand::Up(args) => up_in_background(&args).map(|()| true),
        LabCommand::Down(args) => running::down(&args).map(|()| true),
        LabCommand::Ps(args) => running::ps(&args).map(|()| true),
        LabCommand::Exec(args) => running::exec(&args).map(|never| match never {}),
        LabCommand::Graph(args) => running::graph(&args).map(|()| true),
        LabCommand::Start(args) => running::start(&args).map(|never| match never {}),
        LabCommand::Look(args) => show_look(&args),
        LabCommand::Chaos(args) => chaos::chaos(&args),
        LabCommand::Heals(args) => chaos::heals::heals(&args),
        LabCommand::Soak(args) => chaos::soak::soak(&args),
    }
}

/// One thread for everything: processes die with the thread that started them.
pub(crate) fn runtime() -> Result<tokio::runtime::Runtime> {
    let built = tokio::runtime::Builder::new_current_thread().enable_all().build();
    built.map_err(|error| Error::internal("async runtime", error.to_string()))
}

pub(crate) fn program() -> Result<PathBuf> {
    std::env::current_exe().map_err(|error| Error::internal("this program", format!("cannot find itself: {error}")))
}

/// Gets ready to build: without root, in namespaces of its own.
pub(crate) fn setting(keep: bool) -> Result<Setting> {
    let (program, store) = (program()?, Store::open()?);
    let user_namespace = !rustix::process::geteuid().is_root();
    if user_namespace {
        netns::unshare_user_and_net()?;
    }
    Ok(Setting { program, store, user_namespace, keep })
}

fn style() -> Style {
    let terminal = std::io::stdout().is_terminal();
    let width = terminal.then(|| rustix::termios::tcgetwinsize(std::io::stdout()).ok().map(|size| size.ws_col).filter(|width| *width > 0));
    Style { colour: wants_colour(terminal), width: width.flatten() }
}

fn run_examples(args: &RunArgs) -> Result<bool> {
    let labs = read_all(&args.paths, args.filter.as_deref())?;
    let setting = setting(args.keep)?;
    let result = runtime()?.block_on(run::run(labs, &setting))?;
    if args.json {
        println!("{}", result.json());
    } else {
        println!("{}\n\n{}", table(&result, style()), summary(&result));
    }
    Ok(result.ok)
}

/// All labs of these paths; the mistakes of all files at once.
fn read_all(paths: &[PathBuf], filter: Option<&str>) -> Result<Vec<LabFile>> {
    let (mut labs, mut mistakes) = (Vec::new(), Vec::new());
    for path in lab_paths(paths)? {
        match read_file(&path) {
            Ok(lab) => labs.push(lab),
            Err(error) => mistakes.push(error.to_string()),
        }
    }
    if !mistakes.is_empty() {
        return Err(Error::invalid(
            format!("{} lab files", mistakes.len()),
            format!("have mistakes\n{}", mistakes.join("\n")),
            "correct them",
        ));
    }
    labs.retain(|lab| filter.is_none_or(|filter| lab.lab.name.contains(filter)));
    if labs.is_empty() {
        return Err(Error::invalid(
            "labs",
            "none was found",
            "name a lab file, or a directory that holds some, and a filter that fits one",
        ));
    }
    Ok(labs)
}

/// Files as they are; of a directory its YAML files and those of the directories in it, by name.
fn lab_paths(paths: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut all = Vec::new();
    for path in paths {
        if path.is_dir() { below(path, MAX_DEPTH, &mut all)? } else { all.push(path.clone()) }
    }
    if all.len() > MAX_FILES {
        return Err(Error::invalid("lab files", format!("there are {}, the limit is {MAX_FILES}", all.len()), "run fewer at a time"));
    }
    Ok(all)
}

fn below(dir: &Path, depth: usize, all: &mut Vec<PathBuf>) -> Result<()> {
    let entries = std::fs::read_dir(dir).map_err(|error| {
        Error::invalid(format!("directory {}", dir.display()), format!("cannot be read: {error}"), "name a readable one")
    })?;
    let mut found: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    found.sort();
    let (dirs, files): (Vec<_>, Vec<_>) = found.into_iter().partition(|path| path.is_dir());
    all.extend(files.into_iter().filter(|path| path.extension().is_some_and(|ext| ext == "yaml" || ext == "yml")));
    let deeper = if depth > 0 { dirs } else { Vec::new() };
    deeper.iter().try_for_each(|dir| below(dir, depth - 1, all))
}

fn up_here(args: &UpArgs) -> Result<bool> {
    let lab = read_file(&args.path)?;
    let setting = setting(args.keep)?;
    runtime()?.block_on(run::hold(lab, &setting))
}

/// Starts the same command in the foreground as a process of its own, and waits until it says that it is up.
fn up_in_background(args: &UpArgs) -> Result<()> {
    let lab = read_file(&args.path)?;
    Store::open()?.must_be_free(&lab.lab.name)?;
    let socket = std::env::temp_dir().join(format!("nsm-lab-up-{}", std::process::id()));
    let failed = |error: std::io::Error| Error::internal(format!("socket {}", socket.display()), error.to_string());
    let listener = UnixDatagram::bind(&socket).map_err(failed)?;
    listener.set_read_timeout(Some(Duration::from_millis(50))).map_err(failed)?;
    let mut command = Command::new(program()?);
    command.args(["lab", "up", "--foreground"]).args(args.keep.then_some("--keep")).arg(&args.path);
    command.env("NOTIFY_SOCKET", &socket).process_group(0).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let outcome = command.spawn().map_err(failed).and_then(|mut child| wait_up(&mut child, &listener, &lab.lab.name));
    let _ = std::fs::remove_file(&socket);
    outcome?;
    let name = &lab.lab.name;
    let pod = lab.lab.pods().next().unwrap_or("POD");
    println!("lab {name} is up\n  nsm lab ps {name}\n  nsm lab exec --lab {name} {pod} -- nsm lab look\n  nsm lab down {name}");
    Ok(())
}

fn wait_up(child: &mut Child, listener: &UnixDatagram, name: &str) -> Result<()> {
    let progress = Progress::new(name);
    progress.step("coming up");
    let (until, mut reason) = (Instant::now() + BACKGROUND_BOUND, String::new());
    let mut buffer = [0; 8192];
    while Instant::now() < until {
        if let Ok(length) = listener.recv(&mut buffer) {
            let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
            if text == "READY=1" {
                progress.done(true, "up");
                return Ok(());
            }
            reason = text.strip_prefix("STATUS=").unwrap_or(&text).to_owned();
        } else if let Ok(Some(status)) = child.try_wait() {
            let reason = if reason.is_empty() { format!("its holder ended early ({status})") } else { reason };
            progress.done(false, "did not come up");
            return Err(Error::new(
                Kind::Unavailable,
                format!("lab {name:?} did not come up"),
                reason,
                "see it run: nsm lab up --foreground",
            ));
        }
    }
    let _ = child.kill();
    Err(Error::new(Kind::Timeout, format!("lab {name:?}"), "did not come up in time", "see it run: nsm lab up --foreground"))
}

fn show_look(args: &LookArgs) -> Result<bool> {
    let seen = runtime()?.block_on(look(args.ping, args.tcp))?;
    if args.json {
        println!("{}", serde_json::to_string(&seen).expect("texts and numbers are always JSON"));
    } else {
        println!("{}", seen.text());
    }
    let answered = seen.ping.unwrap_or(true) && seen.tcp.unwrap_or(true);
    // With --json the caller reads the answer; a person or a script without it reads the exit code.
    Ok(answered || args.json)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{FromArgMatches, Subcommand};

    fn parsed(line: &str) -> LabCommand {
        let json = clap::Arg::new("json").long("json").action(clap::ArgAction::SetTrue).global(true);
        let root = clap::Command::new("nsm").arg(json).subcommand(LabCommand::augment_subcommands(clap::Command::new("lab")));
        let matches = root.try_get_matches_from(line.split(' ')).unwrap_or_else(|error| panic!("{error}"));
        LabCommand::from_arg_matches(matches.subcommand_matches("lab").unwrap()).unwrap()
    }

    #[test]
    fn json_is_understood_before_and_after_the_words() {
        for line in ["nsm lab run examples --json --filter hello", "nsm --json lab run examples --filter hello"] {
            let LabCommand::Run(args) = parsed(line) else { panic!("{line}") };
            assert!(args.json && args.filter.as_deref() == Some("hello") && !args.keep, "{line}");
        }
        assert!(matches!(parsed("nsm lab ps"), LabCommand::Ps(PsArgs { json: false, .. })));
    }

    #[test]
    fn what_follows_two_dashes_is_the_command() {
        let LabCommand::Exec(args) = parsed("nsm lab exec --lab hello client -- nsm lab look --json") else { panic!() };
        assert_eq!((args.pod.as_str(), args.command.len()), ("client", 4));
    }

    #[test]
    fn directories_give_their_yaml_files_by_name() {
        let dir = std::env::temp_dir().join(format!("nsm-lab-paths-{}", std::process::id()));
        std::fs::create_dir(&dir).unwrap();
        std::fs::create_dir(dir.join("0")).unwrap();
        for name in ["b.yaml", "a.yml", "notes.md", "0/c.yaml"] {
            std::fs::write(dir.join(name), "").unwrap();
        }
        let names: Vec<_> =
            lab_paths(std::slice::from_ref(&dir)).unwrap().iter().map(|path| path.file_name().unwrap().to_owned()).collect();
        assert_eq!(names, ["a.yml", "b.yaml", "c.yaml"]);
        let error = read_all(std::slice::from_ref(&dir), None).unwrap_err().to_string();
        assert!(error.contains("a.yml") && error.contains("b.yaml"), "{error}");
        std::fs::remove_dir_all(dir).unwrap();
    }
}
