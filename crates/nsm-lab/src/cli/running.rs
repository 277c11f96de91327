//! Commands about labs that run: `down`, `ps`, `exec`, `graph`.

use super::{
    BACKGROUND_BOUND,
    args::{DownArgs, ExecArgs, GraphArgs, PsArgs, StartArgs},
    program, runtime, style,
};
use crate::{
    checks::{Listed, listed},
    graph::Graph,
    plan::{Files, unix},
    process::OURSELVES,
    read::{LabFile, read_file},
    report::plain_table,
    state::{State, Store, process_state, signal, sweep},
    world::{POLL, ask},
};
use nsm_api::{Error, Kind, Result};
use nsm_linux::netns;
use rustix::process::Signal;
use std::{
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

/// The file that tells an application whom to ask for names.
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// The running labs that these names or files mean; all when there are none.
fn chosen(store: &Store, labs: &[String]) -> Result<Vec<State>> {
    if labs.is_empty() {
        return Ok(store.all());
    }
    labs.iter().map(|lab| named(store, lab)).collect()
}

fn named(store: &Store, lab: &str) -> Result<State> {
    let name = if Path::new(lab).is_file() { read_file(Path::new(lab))?.lab.name } else { lab.to_owned() };
    store.get(&name).ok_or_else(|| {
        let running: Vec<String> = store.all().into_iter().map(|state| state.lab).collect();
        let running = if running.is_empty() { "none runs".to_owned() } else { format!("running: {}", running.join(", ")) };
        Error::new(Kind::NotFound, format!("lab {name:?}"), format!("does not run ({running})"), "start it with nsm lab up FILE")
    })
}

pub(super) fn down(args: &DownArgs) -> Result<()> {
    let store = Store::open()?;
    let states = chosen(&store, &args.labs)?;
    for state in &states {
        end(&store, state)?;
        println!("lab {} is down", state.lab);
    }
    if states.is_empty() {
        println!("no lab runs");
    }
    Ok(())
}

/// Asks the holder to take everything away; what a dead holder left is removed here.
fn end(store: &Store, state: &State) -> Result<()> {
    signal(state.pid, state.started, Signal::TERM);
    let until = Instant::now() + BACKGROUND_BOUND;
    while state.is_alive() {
        if Instant::now() > until {
            let reason = format!("its holder, process {}, does not end", state.pid);
            return Err(Error::new(Kind::Timeout, format!("lab {:?}", state.lab), reason, format!("kill -9 {} and try again", state.pid)));
        }
        std::thread::sleep(POLL);
    }
    if store.get(&state.lab).is_some_and(|left| left == *state || !left.is_alive()) {
        sweep(store, state)?;
    }
    Ok(())
}

pub(super) fn ps(args: &PsArgs) -> Result<()> {
    let store = Store::open()?;
    let states = chosen(&store, &args.labs)?;
    let rows = states.iter().flat_map(|state| state.processes.iter().map(move |process| (state, process)));
    if args.json {
        let list: Vec<_> = rows
            .map(|(state, process)| {
                let running = process_state(process.pid, process.started);
                serde_json::json!({"lab": state.lab, "name": process.name, "role": process.role, "pid": process.pid, "netns": process.netns, "state": running})
            })
            .collect();
        println!("{}", serde_json::Value::from(list));
        return Ok(());
    }
    let rows = rows.map(|(state, process)| {
        let running = process_state(process.pid, process.started);
        vec![
            state.lab.clone(),
            process.name.clone(),
            process.role.as_str().into(),
            process.pid.to_string(),
            process.netns.clone(),
            running.into(),
        ]
    });
    println!("{}", plain_table(&["lab", "name", "role", "pid", "namespace", "state"], rows.collect(), style()));
    Ok(())
}

pub(super) fn exec(args: &ExecArgs) -> Result<std::convert::Infallible> {
    let store = Store::open()?;
    let labs: Vec<String> = args.lab.iter().cloned().collect();
    let has = |state: &State| state.namespaces.contains(&format!("{}-{}", state.lab, args.pod));
    let found: Vec<State> = chosen(&store, &labs)?.into_iter().filter(has).collect();
    let object = format!("pod {:?}", args.pod);
    let state = match found.as_slice() {
        [state] => state,
        [] => return Err(Error::new(Kind::NotFound, object, "no running lab has it", "nsm lab ps shows what runs")),
        _ => return Err(Error::invalid(object, "several running labs have one", "say which: nsm lab exec --lab NAME POD -- COMMAND")),
    };
    if state.user_namespace {
        enter_user_namespace(state)?;
    }
    netns::enter_forever(&netns::open_named(&format!("{}-{}", state.lab, args.pod))?)?;
    let file = Files::new(&state.dir).resolv_conf(&args.pod);
    if file.exists() {
        netns::own_file(Path::new(RESOLV_CONF), &file)?;
    }
    let program = if args.command[0] == OURSELVES { program()? } else { PathBuf::from(&args.command[0]) };
    let error = Command::new(program).args(&args.command[1..]).exec();
    Err(Error::invalid(format!("command {:?}", args.command[0]), error.to_string(), "name a program that exists"))
}

/// Becomes another program, which keeps our namespaces; one of somebody else knows nothing of who started it.
pub(super) fn start(args: &StartArgs) -> Result<std::convert::Infallible> {
    if let Some(file) = &args.resolv_conf {
        netns::own_file(Path::new(RESOLV_CONF), file)?;
    }
    let ours = args.command[0] == Path::new(OURSELVES);
    let mut command = Command::new(if ours { program()? } else { args.command[0].clone() });
    if !ours {
        command.env_remove("NOTIFY_SOCKET").env_remove("NSM_DIE_WITH_PARENT");
    }
    let error = command.args(&args.command[1..]).exec();
    let object = format!("program {}", args.command[0].display());
    Err(Error::invalid(object, format!("cannot be started: {error}"), "name one that exists; its path is relative to the lab file"))
}

/// Joins the namespaces in which the holder of an ordinary user's lab is root and sees the lab's names.
fn enter_user_namespace(state: &State) -> Result<()> {
    use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
    use std::os::fd::AsFd;
    let object = format!("lab {:?}", state.lab);
    let failed = |error: std::io::Error| {
        Error::new(Kind::Denied, &*object, format!("cannot be entered: {error}"), "run this as the user who started it")
    };
    for (file, kind) in [("user", LinkNameSpaceType::User), ("mnt", LinkNameSpaceType::Mount)] {
        let fd = std::fs::File::open(format!("/proc/{}/ns/{file}", state.pid)).map_err(failed)?;
        move_into_link_name_space(fd.as_fd(), Some(kind)).map_err(|errno| failed(errno.into()))?;
    }
    Ok(())
}

pub(super) fn graph(args: &GraphArgs) -> Result<()> {
    let lab = read_file(&args.path)?;
    let store = Store::open()?;
    let state = store.get(&lab.lab.name).filter(State::is_alive);
    let connections = state.map(|state| connections(&lab, &state)).transpose()?;
    let graph = Graph::new(&lab.lab, connections.as_deref());
    if args.json {
        println!("{}", serde_json::to_string(&graph).expect("texts are always JSON"));
    } else {
        println!("{}", graph.mermaid());
    }
    Ok(())
}

/// What the managers of a running lab list. Their sockets are files, reached from any namespace.
fn connections(lab: &LabFile, state: &State) -> Result<Vec<Listed>> {
    let (program, files, runtime) = (program()?, Files::new(&state.dir), runtime()?);
    let mut all = Vec::new();
    for node in &lab.lab.nodes {
        let args = ["get", "connections", "--connect-to", &unix(&files.manager(&node.name)), "--json"].map(str::to_owned);
        all.extend(listed(&runtime.block_on(ask(&program, &args, &files))?)?);
    }
    Ok(all)
}
