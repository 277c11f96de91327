//! From the command line to the running program, in the order that threads and namespaces demand.

use crate::{
    cli::{self, Invocation},
    context::{Context, Output},
    exit::Exit,
    program::{Kind, Program},
    programs,
    settings::Settings,
    shutdown::{DRAIN_TIME, Shutdown},
    telemetry::{Format, Level, Telemetry},
};
use nsm_api::{Error, Result};
use std::{cell::Cell, env, io, process::ExitCode, thread::available_parallelism, time::Duration};

/// Threads of the runtime at most: every role waits far more than it computes.
const MAX_WORKERS: usize = 4;
/// How long threads that cannot be interrupted may hold up the end.
const RUNTIME_END: Duration = Duration::from_secs(1);
/// `1`: this process gets SIGTERM when the one that started it ends. Set by the lab for its roles.
const DIE_WITH_PARENT: &str = "NSM_DIE_WITH_PARENT";

/// The whole program.
pub fn main() -> ExitCode {
    let programs = programs();
    let matches = match cli::command(&programs).try_get_matches() {
        Ok(matches) => matches,
        // Help and version are such "errors", too; clap knows where each belongs. Nobody is left to tell when it cannot be printed.
        Err(answer) => {
            let _ = answer.print();
            return if answer.use_stderr() { Exit::Usage.into() } else { Exit::Ok.into() };
        }
    };
    let asked = Invocation::new(matches);
    start(&asked, &programs).unwrap_or_else(|error| {
        tell(&error, asked.output);
        Exit::from(error.kind).into()
    })
}

/// What comes before everything: this process has one thread, and can change its namespaces.
fn start(asked: &Invocation, programs: &[Program]) -> Result<ExitCode> {
    if env::var_os(DIE_WITH_PARENT).is_some_and(|value| value == "1") {
        let signal = Some(rustix::process::Signal::TERM);
        rustix::process::set_parent_process_death_signal(signal)
            .map_err(|problem| Error::internal(DIE_WITH_PARENT, problem.to_string()))?;
    }
    if let Some(name) = &asked.netns {
        enter(name)?;
    }
    if let Some(command) = asked.lab() {
        let command = command.map_err(|problem| Error::internal("`nsm lab`", problem.to_string()))?;
        return nsm_lab::cli(command).map(|held| if held { Exit::Ok } else { Exit::Failed }.into());
    }
    if let Some(command) = asked.bench() {
        let command = command.map_err(|problem| Error::internal("`nsm bench`", problem.to_string()))?;
        return nsm_bench::cli(command).map(|()| Exit::Ok.into());
    }
    let done = match asked.name.as_str() {
        "completion" => completion(asked, programs),
        "version" => version(asked.output),
        name => match programs.iter().find(|program| program.name == name) {
            Some(program) => run(program, asked),
            None => Err(Error::internal(format!("`nsm {name}`"), "the command line knows it and nobody else does")),
        },
    };
    done.map(ExitCode::from)
}

fn tell(error: &Error, output: Output) {
    match output {
        Output::Text => eprintln!("nsm: {error}"),
        Output::Json => eprintln!("{}", serde_json::json!({ "error": error })),
    }
}

fn completion(asked: &Invocation, programs: &[Program]) -> Result<Exit> {
    let shell = *asked.matches.get_one::<clap_complete::Shell>("shell").expect("the parser demands it");
    clap_complete::generate(shell, &mut cli::command(programs), "nsm", &mut io::stdout());
    Ok(Exit::Ok)
}

fn version(output: Output) -> Result<Exit> {
    match output {
        Output::Text => println!("nsm {}", env!("CARGO_PKG_VERSION")),
        Output::Json => println!("{}", serde_json::json!({ "version": env!("CARGO_PKG_VERSION") })),
    }
    Ok(Exit::Ok)
}

/// Runs a program to its end.
fn run(program: &Program, asked: &Invocation) -> Result<Exit> {
    let mut settings = Settings::load(program.name, program.options, &asked.matches, asked.config.as_deref());
    let telemetry = start_log(program, &mut settings)?;
    nsm_identity::install_crypto_provider();
    raise_file_limit();
    let workers = available_parallelism().map_or(1, |cores| cores.get().min(MAX_WORKERS));
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    let runtime = builder.worker_threads(workers).enable_all().build();
    let runtime = runtime.map_err(|problem| Error::internal("the runtime", problem.to_string()))?;
    let done = runtime.block_on(serve(program, settings, telemetry, asked.output));
    runtime.shutdown_timeout(RUNTIME_END);
    done
}

/// Enters a network namespace, with every thread that is still to come.
fn enter(name: &str) -> Result<()> {
    let netns = if name.contains('/') { nsm_linux::netns::open(name) } else { nsm_linux::netns::open_named(name) };
    nsm_linux::netns::enter_forever(&netns?)
}

/// Every vWire is a few open files, and a full table loses those that arrive. What cannot be had is done without.
fn raise_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}

fn start_log(program: &Program, settings: &mut Settings) -> Result<Telemetry> {
    let configured: Level = settings.text("log-level");
    let quiet = program.kind != Kind::Role && !settings.is_given("log-level");
    let format = if settings.choice("log-format") == "json" { Format::Json } else { Format::Text };
    Telemetry::start(if quiet { Level::quiet() } else { configured }, format)
}

async fn serve(program: &Program, settings: Settings, telemetry: Telemetry, output: Output) -> Result<Exit> {
    let no_signals = |problem: io::Error| Error::internal("signals", problem.to_string());
    telemetry.follow_signals().map_err(no_signals)?;
    let shutdown = Shutdown::on_signals(DRAIN_TIME).map_err(no_signals)?;
    let context = Context::new(shutdown.clone(), output);
    if program.kind == Kind::Role {
        tracing::info!(version = env!("CARGO_PKG_VERSION"), settings = settings.effective(), "nsm {} starts", program.name);
        for sentence in settings.unknown() {
            tracing::warn!("{sentence}");
        }
        let idle = settings.without_effect();
        if !idle.is_empty() {
            tracing::info!("accepted, no effect yet: {}", idle.join(", "));
        }
    }
    let (notify, told) = (context.notify.clone(), Cell::new(false));
    let tell_stopping = || {
        if !told.replace(true) {
            notify.stopping();
        }
    };
    let running = program.run(settings, context);
    let stopping = async {
        shutdown.started().await;
        if program.kind != Kind::Tool {
            tell_stopping();
            shutdown.forced().await;
        }
    };
    tokio::select! {
        done = running => {
            // It may have been quicker than we were.
            if shutdown.is_started() {
                tell_stopping();
            }
            done
        }
        () = stopping => Ok(Exit::Forced),
    }
}
