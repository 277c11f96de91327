//! A run as a page of Markdown and a picture.

use super::{Outcome, Row};
use std::fmt::Write;

/// The picture: width of the names, of the bars and of the numbers beside them, height of a line, and where the first is.
const NAMES: usize = 300;
const BARS: usize = 420;
const NUMBERS: usize = 130;
const LINE: usize = 16;
const TOP: usize = 56;
const RIGHT: usize = 20;

const INTRO: &str = "# Chaos

Every role of the mesh meets with every fault, alone and together with every other role, while an echo a millisecond goes over
the vWires, one after the other. `nsm lab chaos` plays it again; the seed decides which process of a role it is, in which order,
and how long it is away. This page, its picture and `chaos.json` are written by `nsm lab chaos --write docs`.

* **kill**: SIGKILL; the process is away for up to 1.5 s, then it is started again.
* **stop**: SIGSTOP, and SIGCONT up to 1.5 s later.
* **restart**: SIGTERM, and started again at once. Clients and endpoints get SIGKILL: their goodbye would be the end of their vWires.

**Lost** is what nobody answered of what was sent. **Silent** is the longest time in which a vWire on which something was lost carried
nothing. **Healed** is the time from the fault until all processes serve, every manager lists exactly the connections that it
listed before, and who has followed its events believes the same. **Objects** are the links, addresses, routes, rules, neighbours and filters of
all namespaces, interface indices included, that are new or gone afterwards. Besides, every interface of every namespace is watched for
packets that have no business there, and every pod for addresses that two hold at one time.

The packet engine carries the packets of encrypted vWires itself; what passes while it is away is lost, and a wire that was silent
for more than a second is made anew, so it has another interface index. That is the one exception: there, objects must be as many as
before.
";

/// The page.
pub(super) fn text(outcome: &Outcome, version: &str) -> String {
    let Outcome { seed, vwires, seconds, lost, sent, .. } = outcome;
    let mut text = INTRO.to_owned();
    let (held, count) = (outcome.cases.iter().filter(|row| row.ok).count(), outcome.cases.len());
    let spared = outcome.cases.iter().filter(|row| !row.case.carries());
    let (plain, plain_sent) = spared.fold((0, 0), |(lost, sent), row| (lost + row.lost, sent + row.sent));
    let _ = write!(
        text,
        "\n{version}; `nsm lab chaos --seed {seed} --vwires {vwires}`, {seconds:.0} s: **{held} of {count} cases held**.\n\n\
         Without the packet engine {plain} of {plain_sent} packets were lost; in all {lost} of {sent}.\n\n![cases](chaos.svg)\n\n\
         | who | fault | lost | of | silent | healed | objects | |\n|---|---|--:|--:|--:|--:|--:|---|\n"
    );
    for row in &outcome.cases {
        let Row { lost, sent, silent_ms, healed_ms, .. } = row;
        let (who, fault, objects, mark) = (row.case.who(), row.case.fault.word(), row.objects, if row.ok { "✓" } else { "✗" });
        let _ = writeln!(text, "| {who} | {fault} | {lost} | {sent} | {silent_ms} ms | {healed_ms} ms | {objects} | {mark} |");
    }
    for row in outcome.cases.iter().filter(|row| !row.ok) {
        let _ = write!(text, "\n✗ {}: {}", row.case.words(), super::verdict(row));
    }
    for left in &outcome.left {
        let _ = write!(text, "\n✗ at the end: {left}");
    }
    text.trim_end().to_owned() + "\n"
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// One bar for each case: how long until all was well; its colour says what was lost.
pub(super) fn picture(outcome: &Outcome) -> String {
    let longest = outcome.cases.iter().map(|row| row.healed_ms).max().unwrap_or(1).max(1);
    let (width, height) = (NAMES + BARS + NUMBERS + RIGHT, TOP + outcome.cases.len() * LINE + RIGHT);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\" \
         font-family=\"sans-serif\" font-size=\"11\">\n<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n\
         <text x=\"10\" y=\"20\" font-size=\"14\">Until all was well again, and packets lost: {} vWires, seed {}</text>\n\
         <text x=\"10\" y=\"38\" fill=\"#666\">green: nothing lost; yellow: lost in the packet engine, which is the way itself; red: did not hold</text>\n",
        outcome.vwires, outcome.seed
    );
    for (number, row) in outcome.cases.iter().enumerate() {
        let (top, base) = (TOP + number * LINE, TOP + number * LINE + 11);
        let bar = ((row.healed_ms as usize * BARS) / longest as usize).max(1);
        let colour = match (row.ok, row.lost) {
            (false, _) => "#c62828",
            (true, 0) => "#2e7d32",
            (true, _) => "#f9a825",
        };
        let end = NAMES + bar + 6;
        let _ = write!(
            svg,
            "<text x=\"{}\" y=\"{base}\" text-anchor=\"end\">{}</text>\n<rect x=\"{NAMES}\" y=\"{top}\" width=\"{bar}\" height=\"12\" \
             fill=\"{colour}\"/>\n<text x=\"{end}\" y=\"{base}\">{} ms, {} lost</text>\n",
            NAMES - 8,
            escaped(&format!("{} · {}", row.case.who(), row.case.fault.word())),
            row.healed_ms,
            row.lost,
        );
    }
    svg + "</svg>\n"
}

#[cfg(test)]
mod tests {
    use super::{super::matrix, *};

    #[test]
    fn a_page_has_a_line_and_a_picture_a_bar_for_each_case() {
        let row = |case| Row {
            case,
            sent: 100,
            lost: 0,
            silent_ms: 0,
            healed_ms: 700,
            objects: 0,
            changed: vec![],
            violations: vec![],
            ok: true,
        };
        let mut cases: Vec<Row> = matrix::cases(1, true).into_iter().map(row).collect();
        cases[1].ok = false;
        cases[1].changed.push("gone: link <7>".to_owned());
        let count = cases.len();
        let outcome = Outcome { ok: false, seed: 1, vwires: 6, seconds: 61.0, sent: 2100, lost: 0, cases, left: vec![] };
        let (text, svg) = (text(&outcome, "nsm 1"), picture(&outcome));
        assert_eq!(text.lines().filter(|line| line.ends_with("✓ |") || line.ends_with("✗ |")).count(), count);
        assert!(text.contains("**23 of 24 cases held**") && text.contains("gone: link <7>"), "{text}");
        assert_eq!(svg.matches("<rect x=").count(), count);
        assert_eq!(svg.matches("#c62828").count(), 1);
        assert!(svg.starts_with("<svg") && svg.ends_with("</svg>\n"));
    }
}
