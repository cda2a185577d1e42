//! Documents written as YAML, or as JSON of the same spelling, by the shape: fields in its order, durations and times as
//! a person writes them.
//!
//! What is written is read again as exactly the same. A text stands bare only where no YAML parser, of whatever version,
//! could take it for anything else; every other one stands in double quotes, in ASCII.

use serde_json::{Map, Value};

use crate::clock::UnixMillis;
use crate::domain::document::shape::{Field, Shape};
use crate::domain::document::spelling;

/// Longest line on which a list stands; longer ones get a line for each item.
const MOST_COLUMNS: usize = 110;

/// Plain words that some YAML parser takes for something else than a text.
const NOT_TEXTS: &[&str] =
    &["null", "true", "false", "yes", "no", "on", "off", "y", "n", "nan", "inf", "infinity", "undefined"];

/// The same with durations and times as documents spell them, and conditions of one value as that value.
pub(super) fn spelled(value: &Value, shape: &Shape) -> Value {
    match (shape, value) {
        (Shape::Duration, Value::Number(seconds)) => {
            seconds.as_i64().map_or(Value::Null, |seconds| Value::from(spelling::duration(seconds)))
        }
        (Shape::Time, Value::Number(at)) => {
            at.as_i64().map_or(Value::Null, |at| Value::from(spelling::time(UnixMillis(at))))
        }
        (Shape::List(item), Value::Array(items)) => items.iter().map(|value| spelled(value, item)).collect(),
        (Shape::Fields(fields) | Shape::OneOf(fields), Value::Object(map)) => {
            let known = fields.iter().filter_map(|field| map.get_key_value(field.name).map(|it| (field, it)));
            known.map(|(field, (name, value))| (name.clone(), spelled(value, &field.shape))).collect()
        }
        (Shape::Conditions, Value::Object(map)) => {
            let one = |values: &Value| match values.as_array().map(Vec::as_slice) {
                Some([value]) => value.clone(),
                _ => values.clone(),
            };
            map.iter().map(|(name, values)| (name.clone(), one(values))).collect()
        }
        _ => value.clone(),
    }
}

/// Fields as YAML, a line or more each.
pub(super) fn yaml(value: &Value, known: &'static [Field]) -> String {
    let spelled = spelled(value, &Shape::Fields(known));
    spelled.as_object().map(|map| fields(map, known, 0)).unwrap_or_default()
}

/// `name: value`, where the value is spelled already.
fn entry(name: &str, value: &Value, shape: &Shape, depth: usize) -> String {
    let indent = "  ".repeat(depth);
    let name = quoted(name);
    match (shape, value) {
        (Shape::List(item), Value::Array(items)) => list(&format!("{indent}{name}:"), items, item, depth),
        (Shape::Fields(known) | Shape::OneOf(known), Value::Object(map)) if !map.is_empty() => {
            format!("{indent}{name}:\n{}", fields(map, known, depth.saturating_add(1)))
        }
        (Shape::Conditions, Value::Object(map)) if !map.is_empty() => {
            let one = |(name, values): (&String, &Value)| match values {
                Value::Array(_) => entry(name, values, &Shape::List(&Shape::Text), depth.saturating_add(1)),
                value => entry(name, value, &Shape::Text, depth.saturating_add(1)),
            };
            format!("{indent}{name}:\n{}", map.iter().map(one).collect::<String>())
        }
        _ => format!("{indent}{name}: {}\n", scalar(value, shape)),
    }
}

fn fields(map: &Map<String, Value>, known: &'static [Field], depth: usize) -> String {
    let there = known.iter().filter_map(|field| map.get(field.name).map(|value| (field, value)));
    there.map(|(field, value)| entry(field.name, value, &field.shape, depth)).collect()
}

fn list(head: &str, items: &[Value], item: &Shape, depth: usize) -> String {
    let indent = "  ".repeat(depth.saturating_add(1));
    if let Shape::Fields(known) | Shape::OneOf(known) = item {
        let one = |value: &Value| {
            let lines = value.as_object().map(|map| fields(map, known, depth.saturating_add(2))).unwrap_or_default();
            match lines.trim_start() {
                "" => format!("{indent}- {{}}\n"),
                lines => format!("{indent}- {lines}"),
            }
        };
        return match items {
            [] => format!("{head} []\n"),
            items => format!("{head}\n{}", items.iter().map(one).collect::<String>()),
        };
    }
    let texts: Vec<String> = items.iter().map(|value| scalar(value, item)).collect();
    let line = format!("{head} [{}]\n", texts.join(", "));
    if line.len() <= MOST_COLUMNS || items.is_empty() {
        return line;
    }
    format!("{head}\n{}", texts.into_iter().map(|text| format!("{indent}- {text}\n")).collect::<String>())
}

fn scalar(value: &Value, shape: &Shape) -> String {
    match value {
        // Digits and a unit are nothing else in any version of YAML.
        Value::String(text) if matches!(shape, Shape::Duration) => text.clone(),
        Value::String(text) => quoted(text),
        other => other.to_string(),
    }
}

fn quoted(text: &str) -> String {
    let bare = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '/')
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"_./-".contains(&b))
        && !NOT_TEXTS.contains(&text.to_ascii_lowercase().as_str());
    if bare { text.to_owned() } else { format!("\"{}\"", text.chars().map(escaped).collect::<String>()) }
}

/// A character as YAML 1.2 (section 5.7) and every version before it have it within double quotes.
fn escaped(c: char) -> String {
    match (c, u32::from(c)) {
        ('"' | '\\', _) => format!("\\{c}"),
        ('\n', _) => "\\n".to_owned(),
        ('\t', _) => "\\t".to_owned(),
        (' '..='~', _) => c.to_string(),
        (_, code @ 0..=0xff) => format!("\\x{code:02x}"),
        (_, code @ 0x100..=0xffff) => format!("\\u{code:04x}"),
        (_, code) => format!("\\U{code:08x}"),
    }
}

/// JSON that is YAML, too: what YAML takes for no printable character is escaped. JSON's own pairs for characters beyond
/// U+FFFF are not known to YAML, which prints those as they are.
pub(super) fn json(value: &Value) -> String {
    let text = serde_json::to_string_pretty(value).unwrap_or_default();
    let one = |c: char| match u32::from(c) {
        code @ 0x7f..=0xffff => format!("\\u{code:04x}"),
        _ => c.to_string(),
    };
    text.chars().map(one).collect()
}

#[cfg(test)]
pub(super) mod tests;
