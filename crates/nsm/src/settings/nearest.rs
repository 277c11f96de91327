//! The known name that a misspelt one most likely means.

/// `, did you mean X?` or nothing, when no known name is near enough.
pub(crate) fn hint<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    let nearest = known.into_iter().map(|candidate| (distance(name, candidate), candidate)).min();
    match nearest {
        Some((steps, candidate)) if steps <= (name.len() / 3).max(2) => format!(", did you mean {candidate}?"),
        _ => String::new(),
    }
}

/// Fewest insertions, removals and replacements of bytes from one to the other.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_names_are_found_and_far_ones_are_not() {
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("", "abc"), 3);
        let known = ["NSM_LISTEN_ON", "NSM_NAME", "NSM_DIAL_TIMEOUT"];
        assert_eq!(hint("NSM_LISTENON", known), ", did you mean NSM_LISTEN_ON?");
        assert_eq!(hint("NSM_SOMETHING_ELSE", known), "");
    }
}
