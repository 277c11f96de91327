//! Selector values that look at the client's labels: `{{ .nodeName }}`, `{{ index . "a-b" }}`, with any text around.
//!
//! Deliberately no more than that: no loops, no functions, no definitions. What does not parse is plain text.

use nsm_api::Labels;

/// Bytes of the longest text a template may grow to.
pub const MAX_RENDERED_BYTES: usize = 253;

/// Whether the text holds an action at all.
pub fn is_template(text: &str) -> bool {
    text.contains("{{") && render(text, &Labels::new()).is_some()
}

/// The text with its actions replaced by labels; `None` when it does not parse or grows too long.
pub fn render(text: &str, labels: &Labels) -> Option<String> {
    let mut out = String::new();
    let mut rest = text;
    while let Some(open) = rest.find("{{") {
        let (before, after) = rest.split_at(open);
        let (action, after) = after[2..].split_once("}}")?;
        let (action, trim_left) = action.strip_prefix('-').map_or((action, false), |action| (action, true));
        let (action, trim_right) = action.strip_suffix('-').map_or((action, false), |action| (action, true));
        out.push_str(if trim_left { before.trim_end() } else { before });
        out.push_str(&evaluate(action.trim(), labels)?);
        rest = if trim_right { after.trim_start() } else { after };
    }
    out.push_str(rest);
    (out.len() <= MAX_RENDERED_BYTES).then_some(out)
}

fn evaluate(action: &str, labels: &Labels) -> Option<String> {
    if let Some(key) = action.strip_prefix('.') {
        let well_formed = !key.is_empty() && key.chars().all(|c| c.is_alphanumeric() || c == '_');
        // A missing field renders so in the language that users know.
        return well_formed.then(|| labels.get(key).cloned().unwrap_or_else(|| "<no value>".to_owned()));
    }
    if let Some(literal) = unquote(action) {
        return Some(literal.to_owned());
    }
    let argument = action.strip_prefix("index")?.trim_start().strip_prefix('.')?;
    let key = unquote(argument.strip_prefix([' ', '\t'])?.trim())?;
    Some(labels.get(key).cloned().unwrap_or_default())
}

fn unquote(text: &str) -> Option<&str> {
    let inner = text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).or_else(|| text.strip_prefix('`')?.strip_suffix('`'))?;
    (!inner.contains(['"', '`', '\\'])).then_some(inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// M-08
    #[test]
    fn templates_render_as_users_know_them() {
        let labels = Labels::from([("nodeName".to_owned(), "n1".to_owned()), ("a-b".to_owned(), "x".to_owned())]);
        for (text, rendered) in [
            ("plain", Some("plain")),
            ("{{.nodeName}}", Some("n1")),
            ("{{  .nodeName  }}", Some("n1")),
            ("zone-{{ .nodeName }}-1", Some("zone-n1-1")),
            ("{{ index . \"a-b\" }}", Some("x")),
            ("{{index . \"missing\"}}", Some("")),
            ("{{ .missing }}", Some("<no value>")),
            ("a {{- \"b\" -}} c", Some("abc")),
            ("{{ .nodeName", None),
            ("{{ range . }}", None),
            ("{{ printf \"%1000000d\" 1 }}", None),
            ("{{ .a.b }}", None),
        ] {
            assert_eq!(render(text, &labels).as_deref(), rendered, "{text}");
        }
        assert!(render(&"{{.nodeName}}".repeat(200), &labels).is_none(), "growth is bounded");
    }
}
