//! What a run found: the table for people and the JSON for scripts.

use comfy_table::{ContentArrangement, LineStyle, Table, presets};
use serde::Serialize;
use std::time::Duration;

/// One check of one example.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CheckResult {
    /// What was looked at.
    pub check: String,
    /// What should be seen.
    pub expected: String,
    /// What was seen.
    pub seen: String,
    /// Whether it held.
    pub ok: bool,
    /// How long it took until it held or was given up, in milliseconds.
    pub ms: u64,
}

/// One example.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ExampleResult {
    /// Name of the lab.
    pub name: String,
    /// Every check held and nothing is left.
    pub ok: bool,
    /// From the first namespace to the last comparison.
    pub seconds: f64,
    /// In order.
    pub checks: Vec<CheckResult>,
    /// What is there that was not before, and the other way round; processes that did not stop; files.
    pub leftovers: Vec<String>,
}

/// A whole run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RunResult {
    /// Every example is ok, and there was at least one.
    pub ok: bool,
    /// In order.
    pub examples: Vec<ExampleResult>,
}

impl CheckResult {
    /// A result with its time.
    pub fn new(check: impl Into<String>, expected: impl Into<String>, seen: impl Into<String>, ok: bool, took: Duration) -> CheckResult {
        CheckResult { check: check.into(), expected: expected.into(), seen: seen.into(), ok, ms: took.as_millis() as u64 }
    }
}

impl ExampleResult {
    /// Draws the conclusion.
    pub fn new(name: &str, took: Duration, checks: Vec<CheckResult>, leftovers: Vec<String>) -> ExampleResult {
        let ok = !checks.is_empty() && checks.iter().all(|check| check.ok) && leftovers.is_empty();
        let seconds = (took.as_secs_f64() * 1000.0).round() / 1000.0;
        ExampleResult { name: name.to_owned(), ok, seconds, checks, leftovers }
    }
}

impl RunResult {
    /// Draws the conclusion.
    pub fn new(examples: Vec<ExampleResult>) -> RunResult {
        RunResult { ok: !examples.is_empty() && examples.iter().all(|example| example.ok), examples }
    }
    /// One line of JSON.
    pub fn json(&self) -> String {
        serde_json::to_string(self).expect("texts, numbers and booleans are always JSON")
    }
}

/// Columns of a table that goes into a pipe.
const PIPE_WIDTH: u16 = 180;

/// How a table is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Style {
    /// With colours.
    pub colour: bool,
    /// Columns of the terminal; `None` in a pipe.
    pub width: Option<u16>,
}

/// Every check and every leftover of every example.
pub fn table(run: &RunResult, style: Style) -> String {
    let mut rows = Vec::new();
    for example in &run.examples {
        for (number, check) in example.checks.iter().enumerate() {
            let name = if number == 0 { example.name.clone() } else { String::new() };
            let seen = format!("{} {}", mark(check.ok), check.seen);
            rows.push(vec![name, check.check.clone(), check.expected.clone(), seen, format!("{} ms", check.ms)]);
        }
        let left = if example.leftovers.is_empty() { "nothing".to_owned() } else { example.leftovers.join("\n  ") };
        let seen = format!("{} {left}", mark(example.leftovers.is_empty()));
        rows.push(vec![String::new(), "left behind".to_owned(), "nothing".to_owned(), seen, format!("{:.2} s in all", example.seconds)]);
    }
    plain_table(&["example", "check", "expected", "seen", "time"], rows, style)
}

const GOOD: &str = "✓";
const BAD: &str = "✗";

fn mark(ok: bool) -> &'static str {
    if ok { GOOD } else { BAD }
}

/// Colours the marks of a finished text: they have the same width with and without.
pub fn coloured(text: &str) -> String {
    text.replace(GOOD, "\u{1b}[32m✓\u{1b}[0m").replace(BAD, "\u{1b}[31m✗\u{1b}[0m")
}

/// A table of any columns.
pub fn plain_table(header: &[&str], rows: Vec<Vec<String>>, style: Style) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING.header_separator(LineStyle::new('─', '─', '─', '─')));
    table.set_header(header.iter().map(ToString::to_string).collect::<Vec<String>>());
    table.add_rows(rows);
    table.set_width(style.width.unwrap_or(PIPE_WIDTH)).set_content_arrangement(ContentArrangement::Dynamic);
    let text = table.trim_fmt();
    if style.colour { coloured(&text) } else { text }
}

/// The sentence at the end.
pub fn summary(run: &RunResult) -> String {
    let checks = run.examples.iter().map(|example| example.checks.len()).sum::<usize>();
    let failed: Vec<&str> = run.examples.iter().filter(|example| !example.ok).map(|example| example.name.as_str()).collect();
    let seconds: f64 = run.examples.iter().map(|example| example.seconds).sum();
    if failed.is_empty() {
        format!("{} examples, {checks} checks, all held, nothing left behind, {seconds:.1} s", run.examples.len())
    } else {
        format!("{} of {} examples failed: {}", failed.len(), run.examples.len(), failed.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run() -> RunResult {
        let ping = CheckResult::new("client pings 172.16.1.100", "3 of 3 echoes", "3 of 3 echoes", true, Duration::from_millis(4));
        let route = CheckResult::new("route to 172.31.0.0/16 in client", "present", "absent", false, Duration::from_millis(3000));
        let good = ExampleResult::new("hello", Duration::from_millis(812), vec![ping.clone()], vec![]);
        let bad = ExampleResult::new("vpn", Duration::from_secs(4), vec![ping, route], vec!["vpn-node-1: link nsm-7".to_owned()]);
        RunResult::new(vec![good, bad])
    }

    #[test]
    fn the_table_shows_each_check_once_and_what_is_left() {
        let text = table(&run(), Style { colour: false, width: None });
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 2 + 2 + 3, "{text}");
        assert!(lines[0].contains("example") && lines[0].contains("expected") && lines[0].contains("time"), "{text}");
        assert!(lines[2].contains("hello") && lines[2].contains("✓ 3 of 3 echoes") && lines[2].contains("4 ms"), "{text}");
        assert!(lines[5].contains("✗ absent") && lines[6].contains("✗ vpn-node-1: link nsm-7"), "{text}");
        assert!(!text.contains('\u{1b}'));
        assert!(table(&run(), Style { colour: true, width: Some(80) }).contains("\u{1b}[31m✗"));
    }

    #[test]
    fn the_json_has_exactly_the_promised_shape() {
        let value: serde_json::Value = serde_json::from_str(&run().json()).unwrap();
        assert_eq!(value["ok"], false);
        assert_eq!(value["examples"][0]["leftovers"], serde_json::json!([]));
        assert_eq!(
            value["examples"][0]["checks"][0],
            serde_json::json!({"check": "client pings 172.16.1.100", "expected": "3 of 3 echoes", "seen": "3 of 3 echoes", "ok": true, "ms": 4})
        );
        assert_eq!(value["examples"][1]["name"], "vpn");
        assert_eq!(value["examples"][0]["seconds"], 0.812);
    }

    #[test]
    fn nothing_run_is_not_ok() {
        assert!(!RunResult::new(vec![]).ok);
        assert!(!ExampleResult::new("x", Duration::ZERO, vec![], vec![]).ok);
        assert!(summary(&run()).contains("1 of 2 examples failed: vpn"));
    }
}
