//! Tables and JSON on standard output.

use crate::context::Output;
use comfy_table::{Table, presets::NOTHING};
use nsm_api::{Error, Kind, Result};
use serde::Serialize;
use std::io::{self, ErrorKind, Write};

/// Prints objects as a table with one row each, or as a JSON list.
pub(crate) fn print<T: Serialize, const N: usize>(
    output: Output,
    head: [&str; N],
    objects: &[T],
    row: impl Fn(&T) -> [String; N],
) -> Result<()> {
    match output {
        Output::Json => say(&json(objects)?),
        Output::Text if objects.is_empty() => say("none"),
        Output::Text => say(&render(head, objects.iter().map(row))),
    }
}

/// A table without lines; the last column is not padded.
pub(crate) fn render<const N: usize>(head: [&str; N], rows: impl Iterator<Item = [String; N]>) -> String {
    let mut table = Table::new();
    table.load_style(NOTHING).set_header(head).add_rows(rows);
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>().join("\n")
}

/// Indented JSON.
pub(crate) fn json<T: Serialize + ?Sized>(value: &T) -> Result<String> {
    serde_json::to_string_pretty(value).map_err(|problem| Error::internal("the answer", problem.to_string()))
}

/// JSON on one line.
pub(crate) fn json_line<T: Serialize>(value: &T) -> Result<String> {
    serde_json::to_string(value).map_err(|problem| Error::internal("the answer", problem.to_string()))
}

/// YAML.
pub(crate) fn yaml<T: Serialize>(value: &T) -> Result<String> {
    let text = serde_yaml_ng::to_string(value).map_err(|problem| Error::internal("the answer", problem.to_string()))?;
    Ok(text.trim_end().to_owned())
}

/// Prints text and a line end. A reader that has seen enough (`| head`) is no error, only the end.
pub(crate) fn say(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    match writeln!(out, "{text}").and_then(|()| out.flush()) {
        Err(problem) if problem.kind() != ErrorKind::BrokenPipe => {
            Err(Error::new(Kind::Kernel, "standard output", problem.to_string(), "check where the output goes"))
        }
        _ => Ok(()),
    }
}

/// `a=1,b=2`
pub(crate) fn labels(labels: &nsm_api::Labels) -> String {
    labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",")
}

/// Things by comma.
pub(crate) fn commas(items: impl IntoIterator<Item = impl ToString>) -> String {
    items.into_iter().map(|item| item.to_string()).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_plain_text() {
        let rows = [["a".to_owned(), "1".to_owned()], ["longer".to_owned(), String::new()]];
        assert_eq!(render(["NAME", "N"], rows.into_iter()), "NAME    N\na       1\nlonger");
    }
}
