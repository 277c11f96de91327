//! What comes out: one row for each figure, as a table or as JSON.

use comfy_table::{LineStyle, Table, presets};
use nsm_api::Error;
use serde::Serialize;

/// The name of a peer that is no program but the figure that must be reached.
pub(crate) const BAR: &str = "bar";

/// When a figure is good enough beside its peer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Holds {
    /// Nothing is demanded.
    Always,
    /// The ratio is at least this.
    AtLeast(f64),
    /// The ratio is at most this.
    AtMost(f64),
}

/// One figure. Keys and meaning of the JSON do not change between versions.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Row {
    /// What was measured; unique in a run, together with `peer`.
    pub(crate) name: String,
    /// Of `ours` and `peer_value`.
    pub(crate) unit: &'static str,
    /// Ours; not a number, `null` in JSON, where nothing was measured.
    pub(crate) ours: f64,
    /// What it is compared with: a peer measured in the same run, or [`BAR`].
    pub(crate) peer: Option<String>,
    /// Its figure.
    pub(crate) peer_value: Option<f64>,
    /// `ours / peer_value`.
    pub(crate) ratio: Option<f64>,
    #[serde(skip)]
    holds: Holds,
}

impl Row {
    /// A figure on its own.
    pub(crate) fn alone(name: impl Into<String>, unit: &'static str, ours: f64) -> Row {
        Row { name: name.into(), unit, ours: rounded(ours), peer: None, peer_value: None, ratio: None, holds: Holds::Always }
    }
    /// A peer that could not be measured, and why.
    pub(crate) fn missing(name: impl std::fmt::Display, peer: impl Into<String>, why: &Error) -> Row {
        let row = Row::alone(format!("{name}: not compared: {} {}", why.object, why.reason), "", f64::NAN);
        Row { peer: Some(peer.into()), ..row }
    }
    /// A figure beside that of a peer.
    pub(crate) fn beside(self, peer: impl Into<String>, value: f64, holds: Holds) -> Row {
        let value = rounded(value);
        let ratio = Some(rounded(self.ours / value)).filter(|ratio| ratio.is_finite());
        Row { peer: Some(peer.into()), peer_value: Some(value), ratio, holds, ..self }
    }
    /// A figure that must not be exceeded.
    pub(crate) fn at_most(self, bar: f64) -> Row {
        self.beside(BAR, bar, Holds::AtMost(1.0))
    }
    /// A figure that must be reached.
    pub(crate) fn at_least(self, bar: f64) -> Row {
        self.beside(BAR, bar, Holds::AtLeast(1.0))
    }
    /// Whether it is good enough; `None` when nothing is demanded.
    fn verdict(&self) -> Option<bool> {
        match (self.holds, self.ratio) {
            (Holds::Always, _) => None,
            (Holds::AtLeast(bar), Some(ratio)) => Some(ratio >= bar),
            (Holds::AtMost(bar), Some(ratio)) => Some(ratio <= bar),
            (_, None) => Some(false),
        }
    }
}

/// Four digits after the point: no figure here is known better.
fn rounded(value: f64) -> f64 {
    (value * 1e4).round() / 1e4
}

/// One line for scripts.
pub(crate) fn json(rows: &[Row]) -> String {
    serde_json::json!({ "rows": rows }).to_string()
}

/// For people.
pub(crate) fn table(rows: &[Row]) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING.header_separator(LineStyle::new('─', '─', '─', '─')));
    table.set_header(["figure", "unit", "ours", "peer", "its figure", "ratio", "holds"]);
    for row in rows {
        let holds = match row.verdict() {
            Some(true) => "yes",
            Some(false) => "NO",
            None => "",
        };
        let number = |value: Option<f64>| value.map(shown).unwrap_or_default();
        table.add_row([
            row.name.clone(),
            row.unit.to_owned(),
            shown(row.ours),
            row.peer.clone().unwrap_or_default(),
            number(row.peer_value),
            row.ratio.map(|ratio| format!("{ratio:.3}")).unwrap_or_default(),
            holds.to_owned(),
        ]);
    }
    table.trim_fmt()
}

/// As many digits as mean something.
fn shown(value: f64) -> String {
    match value.abs() {
        nothing if nothing.is_nan() => String::new(),
        large if large >= 100.0 => format!("{value:.0}"),
        middle if middle >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_judged_by_its_ratio() {
        let figure = |ours| Row::alone("x", "ms", ours);
        assert_eq!(figure(1.0).verdict(), None);
        assert_eq!(figure(24.9).at_most(25.0).verdict(), Some(true));
        assert_eq!(figure(25.1).at_most(25.0).verdict(), Some(false));
        assert_eq!(figure(97.0).beside("veth", 100.0, Holds::AtLeast(0.97)).verdict(), Some(true));
        assert_eq!(figure(f64::NAN).at_least(500.0).verdict(), Some(false), "what could not be measured does not hold");
    }

    #[test]
    fn the_json_has_exactly_the_promised_keys() {
        let why = Error::internal("c", "is not here");
        let rows = [Row::alone("a", "ms", 1.0).at_most(2.0), Row::alone("b", "us", 3.0), Row::missing("d", "c", &why)];
        let text = json(&rows);
        let expected = r#"{"rows":[{"name":"a","unit":"ms","ours":1.0,"peer":"bar","peer_value":2.0,"ratio":0.5},{"name":"b","unit":"us","ours":3.0,"peer":null,"peer_value":null,"ratio":null},
            {"name":"d: not compared: c is not here","unit":"","ours":null,"peer":"c","peer_value":null,"ratio":null}]}"#;
        let (text, expected): (serde_json::Value, serde_json::Value) =
            (serde_json::from_str(&text).unwrap(), serde_json::from_str(expected).unwrap());
        assert_eq!(text, expected);
        assert!(table(&rows).contains("yes"));
    }
}
