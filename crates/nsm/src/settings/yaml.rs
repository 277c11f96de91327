//! A settings file: one YAML map from flag names to scalars, lists or maps, as the text a flag would have.

use serde_yaml_ng::Value;

/// Largest file that is read; a settings file has a few dozen lines.
const MAX_FILE_BYTES: usize = 64 * 1024;

/// Flag name and text, in the order of the file.
pub(crate) fn entries(text: &str) -> Result<Vec<(String, String)>, String> {
    if text.len() > MAX_FILE_BYTES {
        return Err(format!("has {} bytes, the limit is {MAX_FILE_BYTES}", text.len()));
    }
    let value: Value = serde_yaml_ng::from_str(text).map_err(|problem| format!("is not YAML: {problem}"))?;
    let map = match value {
        Value::Null => return Ok(Vec::new()),
        Value::Mapping(map) => map,
        _ => return Err("is not a map from settings to values".into()),
    };
    let entry = |(key, value): (Value, Value)| {
        let key = scalar(&key).ok_or("has a key that is not a word")?;
        let text = flat(&value).ok_or_else(|| format!("{key} has a value that is nested too deeply"))?;
        Ok((key, text))
    };
    map.into_iter().map(entry).collect()
}

/// Lists by comma, maps as `k:v`, lists in lists in brackets.
fn flat(value: &Value) -> Option<String> {
    match value {
        Value::Sequence(items) => join(items.iter().map(|item| match item {
            Value::Sequence(inner) => Some(format!("[{}]", join(inner.iter().map(scalar))?)),
            other => scalar(other),
        })),
        Value::Mapping(map) => join(map.iter().map(|(key, value)| Some(format!("{}:{}", scalar(key)?, scalar(value)?)))),
        other => scalar(other),
    }
}

fn join(items: impl Iterator<Item = Option<String>>) -> Option<String> {
    Some(items.collect::<Option<Vec<_>>>()?.join(","))
}

fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::Null => Some(String::new()),
        Value::Bool(value) => Some(value.to_string()),
        Value::Number(value) => Some(value.to_string()),
        Value::String(value) => Some(value.clone()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_become_the_text_of_a_flag() {
        let read = entries("a: 1\nb: [x, y]\nc: {k: v, l: true}\nd: [[1.0.0.0/8, 2.0.0.0/8], [fd00::/8]]\ne:\n").unwrap();
        let expected = [("a", "1"), ("b", "x,y"), ("c", "k:v,l:true"), ("d", "[1.0.0.0/8,2.0.0.0/8],[fd00::/8]"), ("e", "")];
        assert_eq!(read, expected.map(|(k, v)| (k.to_owned(), v.to_owned())));
        assert_eq!(entries("").unwrap(), []);
        for bad in ["- a", "a: [[[x]]]", "a: {b: {c: d}}", "{", "[x]: y"] {
            assert!(entries(bad).is_err(), "{bad}");
        }
    }
}
