//! Fields that got lost between the API server's JSON and our types.

use serde_json::Value;

/// Most paths that are told.
const MOST: usize = 20;

/// Paths that `raw` has and `known` has not; empty values are nothing. Metadata and status are the API server's own business.
pub(super) fn paths(raw: &Value, known: &Value) -> Vec<String> {
    let mut out = Vec::new();
    if let Some(spec) = raw.get("spec") {
        compare(spec, known.get("spec").unwrap_or(&Value::Null), "spec", &mut out);
    }
    out
}

fn compare(raw: &Value, known: &Value, path: &str, out: &mut Vec<String>) {
    if out.len() >= MOST {
        return;
    }
    match (raw, known) {
        (Value::Object(raw), Value::Object(known)) => {
            for (key, value) in raw {
                let path = format!("{path}.{key}");
                match known.get(key) {
                    Some(known) => compare(value, known, &path, out),
                    None if is_nothing(value) => {}
                    None => out.push(path),
                }
            }
        }
        (Value::Array(raw), Value::Array(known)) => {
            for (index, (raw, known)) in raw.iter().zip(known).enumerate() {
                let place = raw.get("name").and_then(Value::as_str).map_or(index.to_string(), str::to_owned);
                compare(raw, known, &format!("{path}[{place}]"), out);
            }
        }
        _ => {}
    }
}

pub(super) fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        Value::Number(number) => number.as_i64() == Some(0),
        Value::Bool(true) => false,
    }
}
