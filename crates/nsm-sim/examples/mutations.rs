//! Makes each deliberate mistake of `mutations.txt` in a copy of the tree, and says who notices: `mutations [NAME-PART]...`.
//!
//! The first tier is the simulation (120 seeds of a minute, until one shows it), the second the tests of the hops and of the
//! registry (with NSM_TIERS=2). NSM_TREE: the tree to copy, when it is not this one. The copy and what is built of it lie in
//! `target/mutations`.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Output, Stdio},
    time::{Duration, Instant},
};

const SEEDS: u32 = 120;
const MINUTES: &str = "1";
/// A mutant that stands still is noticed, too: for one seed, and for the tests.
const PATIENCE: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(300));
/// Characters of a violation that are shown.
const SHOWN: usize = 110;

struct Mutation {
    name: String,
    file: PathBuf,
    old: String,
    new: String,
    /// Why the simulation is not expected to notice.
    unnoticed: Option<String>,
}

type Any<T> = Result<T, Box<dyn std::error::Error>>;

fn main() -> Any<ExitCode> {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    let tree = env::var_os("NSM_TREE").map_or_else(|| own.join("../.."), PathBuf::from).canonicalize()?;
    let place = own.join("../../target/mutations");
    let (copy, target) = (place.join("tree"), place.join("target"));
    if copy.exists() {
        fs::remove_dir_all(&copy)?;
    }
    for part in ["Cargo.toml", "Cargo.lock", "crates", "proto", "examples", ".cargo"] {
        copy_all(&tree.join(part), &copy.join(part))?;
    }
    let wanted: Vec<String> = env::args().skip(1).collect();
    let both = env::var("NSM_TIERS").is_ok_and(|tiers| tiers == "2");
    let (mut missed, mut found, mut all) = (0, 0, 0);
    for mutation in read(&fs::read_to_string(own.join("mutations.txt"))?)? {
        if wanted.is_empty() || wanted.iter().any(|part| mutation.name.contains(part.as_str())) {
            let begin = Instant::now();
            let (noticed, what) = judge(&mutation, &copy, &target, both)?;
            all += 1;
            found += usize::from(noticed);
            missed += usize::from(!noticed && mutation.unnoticed.is_none());
            let why = mutation.unnoticed.filter(|_| !noticed).map_or(String::new(), |why| format!(": {why}"));
            println!("{:36} {what}{why} ({:.0} s)", mutation.name, begin.elapsed().as_secs_f64());
        }
    }
    fs::remove_dir_all(&copy)?;
    println!("{found} of {all} are noticed by the simulation; {missed} were to be and are not");
    Ok(ExitCode::from(u8::from(missed > 0)))
}

fn read(text: &str) -> Any<Vec<Mutation>> {
    let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
    let blocks = lines.split(|line| line.is_empty()).filter(|block| !block.is_empty());
    blocks
        .map(|block| {
            let unnoticed = block.iter().find_map(|line| line.strip_prefix("? ")).map(str::to_owned);
            let block: Vec<&str> = block.iter().copied().filter(|line| !line.starts_with("? ")).collect();
            let [name, file, change @ ..] = &block[..] else { return Err(format!("a block without a file: {block:?}").into()) };
            let side = |sign: &str| change.iter().filter_map(|line| line.strip_prefix(sign)).map(|line| format!("{line}\n")).collect();
            Ok(Mutation { name: (*name).to_owned(), file: PathBuf::from(file), old: side("- "), new: side("+ "), unnoticed })
        })
        .collect()
}

fn judge(mutation: &Mutation, copy: &Path, target: &Path, both: bool) -> Any<(bool, String)> {
    let file = copy.join(&mutation.file);
    let before = fs::read_to_string(&file)?;
    if before.matches(&mutation.old).count() != 1 {
        return Ok((false, format!("NOT MADE: its lines occur {} times", before.matches(&mutation.old).count())));
    }
    fs::write(&file, before.replace(&mutation.old, &mutation.new))?;
    let simulated = simulate(copy, target)?;
    let tested = if both { tests(copy, target)? } else { String::new() };
    fs::write(&file, before)?;
    Ok((simulated.is_some(), format!("{}{tested}", simulated.unwrap_or_else(|| "NOT NOTICED".to_owned()))))
}

fn cargo(copy: &Path, target: &Path, words: &[&str]) -> Command {
    let mut command = Command::new("cargo");
    command.current_dir(copy).env("CARGO_TARGET_DIR", target).args(words);
    command
}

fn simulate(copy: &Path, target: &Path) -> Any<Option<String>> {
    let built = cargo(copy, target, &["build", "--quiet", "-p", "nsm-sim", "--example", "seeds"]).output()?;
    if !built.status.success() {
        return Err(format!("it does not build:\n{}", String::from_utf8_lossy(&built.stderr)).into());
    }
    for seed in 1..=SEEDS {
        let mut play = Command::new(target.join("debug/examples/seeds"));
        play.args([&seed.to_string(), "1", MINUTES]).stdout(Stdio::piped());
        let Some(output) = bounded(play, PATIENCE.0)? else { return Ok(Some(format!("simulation: seed {seed}: time stands still"))) };
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let found = text.lines().find_map(|line| line.split_once(": I").filter(|_| line.starts_with("seed ")));
        if let Some((seed, sentence)) = found {
            return Ok(Some(format!("simulation: {seed}: I{}", sentence.chars().take(SHOWN).collect::<String>())));
        }
        if !output.status.success() {
            return Ok(Some(format!("simulation: seed {seed}: it ends by a panic")));
        }
    }
    Ok(None)
}

fn tests(copy: &Path, target: &Path) -> Any<String> {
    let mut test = cargo(copy, target, &["test", "--quiet", "-p", "nsm-hop", "-p", "nsm-registry"]);
    test.stdout(Stdio::null());
    let output = bounded(test, PATIENCE.1)?;
    let noticed = output.is_none_or(|output| !output.status.success());
    Ok(format!("; tests: {}", if noticed { "noticed" } else { "not noticed" }))
}

/// `None` when it did not end in time.
fn bounded(mut command: Command, patience: Duration) -> Any<Option<Output>> {
    let mut child = command.stderr(Stdio::null()).spawn()?;
    let begin = Instant::now();
    while child.try_wait()?.is_none() {
        if begin.elapsed() > patience {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(Some(child.wait_with_output()?))
}

fn copy_all(from: &Path, to: &Path) -> Any<()> {
    if from.is_dir() {
        fs::create_dir_all(to)?;
        for entry in fs::read_dir(from)? {
            let name = entry?.file_name();
            copy_all(&from.join(&name), &to.join(&name))?;
        }
    } else if from.exists() {
        if let Some(parent) = to.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::copy(from, to)?;
    }
    Ok(())
}
