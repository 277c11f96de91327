//! How the figures grow, as a picture: one panel for each figure, both axes logarithmic.

use crate::row::Row;
use std::{collections::BTreeMap, fmt::Write};

/// Pixels of one panel, and of the room around its plot.
const PANEL: (f64, f64) = (300.0, 190.0);
const MARGIN: (f64, f64) = (52.0, 34.0);
const COLUMNS: usize = 3;

/// A figure's name and unit, with its value for each number of endpoints.
type Series = BTreeMap<(String, &'static str), Vec<(f64, f64)>>;

/// The rows whose name begins with a number of endpoints, as SVG.
pub(super) fn svg(rows: &[Row]) -> String {
    let series: Vec<_> = series(rows).into_iter().filter(|(_, points)| points.len() > 1).collect();
    let lines = series.len().div_ceil(COLUMNS);
    let (width, height) = (PANEL.0 * COLUMNS as f64, PANEL.1 * lines as f64);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" font-size=\"10\">\n\
         <rect width=\"{width}\" height=\"{height}\" fill=\"white\"/>\n"
    );
    for (number, ((name, unit), points)) in series.iter().enumerate() {
        let at = (PANEL.0 * (number % COLUMNS) as f64, PANEL.1 * (number / COLUMNS) as f64);
        panel(&mut out, at, &format!("{name}, {unit}"), points);
    }
    out + "</svg>\n"
}

fn series(rows: &[Row]) -> Series {
    let mut series = Series::new();
    for row in rows {
        let Some((count, name)) = row.name.split_once(" endpoints: ") else { continue };
        let Ok(count) = count.parse() else { continue };
        if row.ours > 0.0 {
            series.entry((name.to_owned(), row.unit)).or_default().push((count, row.ours));
        }
    }
    series
}

/// The decades that hold all values, at least one.
fn decades(values: impl Iterator<Item = f64> + Clone) -> (f64, f64) {
    let low = values.clone().fold(f64::INFINITY, f64::min).log10().floor();
    let high = values.fold(f64::NEG_INFINITY, f64::max).log10().ceil();
    (low, high.max(low + 1.0))
}

fn panel(out: &mut String, (left, top): (f64, f64), title: &str, points: &[(f64, f64)]) {
    let (x, y) = (decades(points.iter().map(|point| point.0)), decades(points.iter().map(|point| point.1)));
    let (wide, high) = (PANEL.0 - MARGIN.0 - 12.0, PANEL.1 - 2.0 * MARGIN.1 + 8.0);
    let across = |value: f64| left + MARGIN.0 + (value.log10() - x.0) / (x.1 - x.0) * wide;
    let down = |value: f64| top + MARGIN.1 - 8.0 + (y.1 - value.log10()) / (y.1 - y.0) * high;
    // Writing into a text never fails.
    let _ = writeln!(out, "<text x=\"{}\" y=\"{}\" font-weight=\"bold\">{title}</text>", left + 8.0, top + 14.0);
    for decade in steps(x) {
        let (at, bottom) = (across(decade), top + PANEL.1 - MARGIN.1 + 14.0);
        let (from, to) = (down(10f64.powf(y.1)), down(10f64.powf(y.0)));
        let _ = writeln!(out, "<line x1=\"{at:.1}\" y1=\"{from:.1}\" x2=\"{at:.1}\" y2=\"{to:.1}\" stroke=\"#ddd\"/>");
        let _ = writeln!(out, "<text x=\"{at:.1}\" y=\"{bottom:.1}\" text-anchor=\"middle\">{decade}</text>");
    }
    for decade in steps(y) {
        let (at, from, to) = (down(decade), across(10f64.powf(x.0)), across(10f64.powf(x.1)));
        let _ = writeln!(out, "<line x1=\"{from:.1}\" y1=\"{at:.1}\" x2=\"{to:.1}\" y2=\"{at:.1}\" stroke=\"#ddd\"/>");
        let _ = writeln!(out, "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{decade}</text>", from - 4.0, at + 3.0);
    }
    let line: Vec<_> = points.iter().map(|point| format!("{:.1},{:.1}", across(point.0), down(point.1))).collect();
    let _ = writeln!(out, "<polyline points=\"{}\" fill=\"none\" stroke=\"#1f5fa8\" stroke-width=\"1.5\"/>", line.join(" "));
    for point in points {
        let _ = writeln!(out, "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"2.5\" fill=\"#1f5fa8\"/>", across(point.0), down(point.1));
    }
}

fn steps((low, high): (f64, f64)) -> impl Iterator<Item = f64> {
    (low as i32..=high as i32).map(|exponent| 10f64.powi(exponent))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_with_two_counts_is_a_line_and_others_are_left_out() {
        let rows = [
            Row::alone("10 endpoints: memory, each", "KiB", 2.0),
            Row::alone("1000 endpoints: memory, each", "KiB", 1.9),
            Row::alone("10 endpoints: once", "ms", 1.0),
            Row::alone("5000 nodes: a choice", "us", 1.0),
        ];
        let svg = svg(&rows);
        assert_eq!((svg.matches("<polyline").count(), svg.matches("<circle").count()), (1, 2), "{svg}");
        assert!(svg.contains(">memory, each, KiB<") && svg.ends_with("</svg>\n"));
    }
}
