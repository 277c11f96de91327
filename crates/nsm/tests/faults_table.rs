//! `docs/faults.md` has every row, and what it names as proof is in the tree.
#![allow(clippy::unwrap_used)] // a test's helpers fail like its body

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Rows of each group.
const GROUPS: [(char, usize); 7] = [('A', 23), ('B', 11), ('C', 7), ('D', 5), ('E', 6), ('F', 10), ('G', 9)];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Id and proof of each row of the table.
fn rows(text: &str) -> Vec<(String, String)> {
    let cells = |line: &str| line.split('|').map(|cell| cell.trim().to_owned()).collect::<Vec<_>>();
    let row = |line| match cells(line).as_slice() {
        [_, id, _, proof, _] if id != "row" && !id.starts_with('-') => Some((id.clone(), proof.clone())),
        _ => None,
    };
    text.lines().filter(|line| line.starts_with('|')).filter_map(row).collect()
}

/// What is wrong with something that is named as proof.
fn mistake(proof: &str) -> Option<String> {
    let (file, test) = proof.split_once("::").map_or((proof, None), |(file, test)| (file, Some(test)));
    let Ok(text) = fs::read_to_string(root().join(file)) else { return Some(format!("there is no {file}")) };
    let Some(test) = test else {
        return (!file.starts_with("examples/") || !text.contains("kind: Lab")).then(|| format!("{file} is no example"));
    };
    let Some(at) = text.find(&format!("fn {test}(")) else { return Some(format!("there is no {test} in {file}")) };
    let before: Vec<&str> =
        text[..text[..at].rfind('\n').unwrap_or(0)].lines().rev().take_while(|line| line.trim_start().starts_with(['#', '/'])).collect();
    let is_test = before.iter().any(|line| line.contains("test"));
    (!is_test).then(|| format!("{test} in {file} is no test"))
}

#[test]
fn every_row_has_a_proof_that_exists() {
    let rows = rows(&fs::read_to_string(root().join("docs/faults.md")).unwrap());
    let ids: Vec<&str> = rows.iter().map(|(id, _)| id.as_str()).collect();
    let wanted: Vec<String> = GROUPS.iter().flat_map(|(group, count)| (1..=*count).map(move |number| format!("{group}{number}"))).collect();
    assert_eq!(ids, wanted);
    let mut mistakes = Vec::new();
    for (id, text) in &rows {
        let proofs: Vec<&str> = text.split('`').skip(1).step_by(2).filter(|name| name.contains('/')).collect();
        if proofs.is_empty() && !text.starts_with("*not here*: ") {
            mistakes.push(format!("{id}: nothing is named"));
        }
        mistakes.extend(proofs.into_iter().filter_map(mistake).map(|problem| format!("{id}: {problem}")));
    }
    assert!(mistakes.is_empty(), "\n{}", mistakes.join("\n"));
}
