//! YAML read by a shape, with the place of everything in it.
//!
//! Several files, and several documents in one, count as one: their lists are joined. What can be told from the text and
//! the shape is told here, all at once: wrong types, unknown and missing fields, words that are none of those known.

use std::collections::BTreeMap;
use std::path::Path;

use saphyr::{MarkedYaml, Marker, ScalarStyle, YamlData, YamlLoader};
use saphyr_parser::{Event, Parser};
use serde_json::{Map, Value};

use super::error::CliError;
use crate::domain::document::shape::{Field, Shape};
use crate::domain::document::spelling;
use crate::id::shown;

/// Largest file, in bytes.
const MOST_BYTES: usize = 8 * 1024 * 1024;

/// Deepest nesting; documents are half as deep.
const MOST_DEPTH: usize = 20;

/// What was read, and where it stands.
#[derive(Debug, Default)]
pub(super) struct Yaml {
    /// The fields, as the shape has them: durations in seconds, times in milliseconds.
    pub(super) value: Map<String, Value>,
    /// File, line and column of each path.
    places: BTreeMap<String, (usize, usize, usize)>,
    /// What is wrong, by path.
    pub(super) violations: Vec<(String, String)>,
    files: Vec<String>,
}

impl Yaml {
    /// Reads one more text, whose root is a mapping of these fields.
    pub(super) fn read(&mut self, file: &Path, text: &str, root: &'static [Field]) -> Result<(), CliError> {
        if text.len() > MOST_BYTES {
            let message = format!("{}: has more than {MOST_BYTES} bytes; split it", file.display());
            return Err(CliError::usage(message));
        }
        self.files.push(file.display().to_string());
        let wrong = |at: &Marker, what: &str| {
            let place = format!("{}:{}", at.line(), at.col().saturating_add(1));
            CliError::invalid(format!("{} is not YAML", file.display()), vec![(place, what.to_owned())])
        };
        // An alias can make a small file huge: none is needed, and none is taken. What is too deep would end the process.
        let mut depth = 0_usize;
        for event in Parser::new_from_str(text) {
            let (event, span) = event.map_err(|error| wrong(error.marker(), error.info()))?;
            match event {
                Event::Alias(_) => return Err(wrong(&span.start, "aliases are not taken; write the value out")),
                Event::SequenceStart(..) | Event::MappingStart(..) => depth = depth.saturating_add(1),
                Event::SequenceEnd | Event::MappingEnd => depth = depth.saturating_sub(1),
                _ => {}
            }
            if depth > MOST_DEPTH {
                return Err(wrong(&span.start, "is nested deeper than any document"));
            }
        }
        let mut loader = YamlLoader::<MarkedYaml<'_>>::default();
        // Values stay as they were written: an app id is no number.
        loader.early_parse(false);
        let loaded = Parser::new_from_str(text).load(&mut loader, true);
        loaded.map_err(|error| wrong(error.marker(), error.info()))?;
        // What the loader itself refuses, such as a field that stands twice.
        if let Some(error) = loader.error() {
            return Err(wrong(error.marker(), error.info()));
        }
        for node in loader.into_documents() {
            self.root(&node, root);
        }
        Ok(())
    }

    /// Gives each path its place, or that of the nearest field around it; in the order of the files.
    pub(super) fn placed(&self, violations: impl Iterator<Item = (String, String)>) -> Vec<(String, String)> {
        let mut out: Vec<_> = violations.map(|(path, what)| (self.place_of(&path), path, what)).collect();
        out.sort();
        out.dedup();
        let text = |(place, path, what): (Option<(usize, usize, usize)>, String, String)| match place {
            None => (path, what),
            Some((file, line, column)) => {
                let file = self.files.get(file).filter(|_| self.files.len() > 1);
                let file = file.map(|name| format!("{name}:")).unwrap_or_default();
                let path = if path.is_empty() { String::new() } else { format!(": {path}") };
                (format!("{file}{line}:{column}{path}"), what)
            }
        };
        out.into_iter().map(text).collect()
    }

    fn place_of(&self, path: &str) -> Option<(usize, usize, usize)> {
        let mut at = path;
        loop {
            if let Some(place) = self.places.get(at) {
                return Some(*place);
            }
            at = at.get(..at.rfind(['.', '['])?).unwrap_or_default();
        }
    }

    fn refuse(&mut self, path: &str, what: impl Into<String>) -> Option<Value> {
        self.violations.push((path.to_owned(), what.into()));
        None
    }

    fn note(&mut self, path: &str, node: &MarkedYaml<'_>) {
        let file = self.files.len().saturating_sub(1);
        let (line, column) = (node.span.start.line(), node.span.start.col().saturating_add(1));
        self.places.insert(path.to_owned(), (file, line, column));
    }

    fn root(&mut self, node: &MarkedYaml<'_>, root: &'static [Field]) {
        for (name, shape, value) in self.known_fields(node, "", root) {
            match (self.value.remove(name), shape) {
                // Lists of several documents are joined: the second one's first account is not accounts[0].
                (Some(Value::Array(mut before)), Shape::List(item)) => {
                    before.extend(self.items(value, name, item, before.len()).unwrap_or_default());
                    self.value.insert(name.to_owned(), Value::Array(before));
                }
                (Some(before), _) => {
                    self.refuse(name, "stands in two documents: write it once");
                    self.value.insert(name.to_owned(), before);
                }
                (None, Shape::List(item)) => {
                    let items = self.items(value, name, item, 0).unwrap_or_default();
                    self.value.insert(name.to_owned(), Value::Array(items));
                }
                (None, _) => {
                    let value = self.value(value, name, shape);
                    self.value.extend(value.map(|value| (name.to_owned(), value)));
                }
            }
        }
    }

    fn value(&mut self, node: &MarkedYaml<'_>, path: &str, shape: &'static Shape) -> Option<Value> {
        self.note(path, node);
        match shape {
            Shape::Text => self.text(node, path).map(Value::from),
            Shape::Word(words) => {
                let text = self.text(node, path)?;
                let known = words();
                if known.contains(&text) {
                    return Some(Value::from(text));
                }
                let hint = nearest(&text, known.iter().map(String::as_str));
                self.refuse(path, format!("`{}` is none of those known here; {hint}", shown(&text)))
            }
            Shape::Duration => {
                let text = self.text(node, path)?;
                let wrong =
                    format!("`{}` is not a duration of whole seconds, such as 90s, 10m or 30days", shown(&text));
                spelling::seconds(&text).map(Value::from).or_else(|| self.refuse(path, wrong))
            }
            Shape::Time => {
                let text = self.text(node, path)?;
                let wrong = format!("`{}` is not a time such as 2026-12-31T00:00:00Z", shown(&text));
                spelling::millis(&text).map(|at| Value::from(at.0)).or_else(|| self.refuse(path, wrong))
            }
            Shape::Flag => match (self.text(node, path)?.as_str(), is_plain(node)) {
                ("true", true) => Some(Value::from(true)),
                ("false", true) => Some(Value::from(false)),
                _ => self.refuse(path, "must be true or false, without quotes"),
            },
            Shape::Count => {
                let text = self.text(node, path)?;
                let wrong = format!("`{}` is not a whole number without quotes", shown(&text));
                let number = text.parse::<i64>().ok().filter(|_| is_plain(node));
                number.map(Value::from).or_else(|| self.refuse(path, wrong))
            }
            Shape::List(item) => {
                let items = self.items(node, path, item, 0)?;
                if items.is_empty() {
                    // Empty never means all: whoever wants no limit leaves it out.
                    return self.refuse(path, "is empty: name at least one, or leave it out where it may be absent");
                }
                Some(Value::Array(items))
            }
            Shape::Fields(fields) | Shape::OneOf(fields) => self.fields(node, path, fields).map(Value::Object),
            Shape::Conditions => self.conditions(node, path).map(Value::Object),
        }
    }

    fn fields(&mut self, node: &MarkedYaml<'_>, path: &str, known: &'static [Field]) -> Option<Map<String, Value>> {
        if !matches!(&node.data, YamlData::Mapping(_)) {
            self.known_fields(node, path, known);
            return None;
        }
        let mut out = Map::new();
        let mut there = Vec::new();
        for (name, shape, value) in self.known_fields(node, path, known) {
            there.push(name);
            let value = self.value(value, &format!("{path}.{name}"), shape);
            out.extend(value.map(|value| (name.to_owned(), value)));
        }
        for field in known.iter().filter(|field| field.required && !there.contains(&field.name)) {
            self.refuse(&format!("{path}.{}", field.name), "is missing");
        }
        Some(out)
    }

    fn conditions(&mut self, node: &MarkedYaml<'_>, path: &str) -> Option<Map<String, Value>> {
        let YamlData::Mapping(mapping) = &node.data else {
            self.refuse(path, "must be a mapping of claims to values");
            return None;
        };
        let mut out = Map::new();
        for (key, value) in mapping {
            let name = name_of(key);
            let at = format!("{path}.{}", shown(&name));
            self.note(&at, key);
            if out.contains_key(&name) {
                self.refuse(&at, TWICE);
            }
            let values = match &value.data {
                YamlData::Sequence(_) => self.value(value, &at, &Shape::List(&Shape::Text)),
                _ => self.text(value, &at).map(|text| Value::from(vec![text])),
            };
            // What is wrong leaves its place behind here, too.
            out.insert(name, values.unwrap_or_default());
        }
        out.retain(|_, values| values.is_array());
        Some(out)
    }

    /// The known fields of a mapping; others are violations.
    fn known_fields<'a, 'b>(
        &mut self,
        node: &'a MarkedYaml<'b>,
        path: &str,
        known: &'static [Field],
    ) -> Vec<(&'static str, &'static Shape, &'a MarkedYaml<'b>)> {
        self.note(path, node);
        let names = || known.iter().map(|field| field.name);
        let YamlData::Mapping(mapping) = &node.data else {
            if !(path.is_empty() && is_absent(node)) {
                let names = names().collect::<Vec<_>>().join(", ");
                self.refuse(path, format!("must be a mapping with the fields {names}"));
            }
            return Vec::new();
        };
        let mut out: Vec<(&'static str, &'static Shape, &'a MarkedYaml<'b>)> = Vec::new();
        for (key, value) in mapping {
            let name = name_of(key);
            let at = if path.is_empty() { shown(&name) } else { format!("{path}.{}", shown(&name)) };
            self.note(&at, key);
            match known.iter().find(|field| field.name == name) {
                // Once in quotes and once without: two keys for the loader.
                Some(field) if out.iter().any(|(there, _, _)| *there == field.name) => {
                    self.refuse(&at, TWICE);
                }
                Some(field) => out.push((field.name, &field.shape, value)),
                None => {
                    let hint = nearest(&name, names());
                    self.refuse(&at, format!("`{}` is not a field here; {hint}", shown(&name)));
                }
            }
        }
        out
    }

    fn items(&mut self, node: &MarkedYaml<'_>, path: &str, item: &'static Shape, from: usize) -> Option<Vec<Value>> {
        match &node.data {
            YamlData::Sequence(items) => {
                let mut out = Vec::new();
                for (at, node) in items.iter().enumerate() {
                    let path = format!("{path}[{}]", from.saturating_add(at));
                    self.note(&path, node);
                    // What is wrong leaves its place behind, so that what comes after it keeps its own.
                    let value = self.value(node, &path, item);
                    out.push(value.unwrap_or_else(|| empty(item)));
                }
                Some(out)
            }
            _ if is_absent(node) && !path.contains('.') => Some(Vec::new()),
            _ => {
                self.refuse(path, "must be a list");
                None
            }
        }
    }

    fn text(&mut self, node: &MarkedYaml<'_>, path: &str) -> Option<String> {
        self.note(path, node);
        match &node.data {
            YamlData::Representation(text, ScalarStyle::Plain, _)
                if matches!(text.as_ref(), "" | "~" | "null" | "Null" | "NULL") =>
            {
                self.refuse(path, "is empty");
                None
            }
            YamlData::Representation(text, _, _) => Some(text.to_string()),
            _ => {
                self.refuse(path, "must be one text");
                None
            }
        }
    }
}

const TWICE: &str = "stands here twice: write it once";

/// Without quotes, and without a tag that says what it is.
fn is_plain(node: &MarkedYaml<'_>) -> bool {
    matches!(&node.data, YamlData::Representation(_, ScalarStyle::Plain, None))
}

/// Whether nothing stands there.
fn is_absent(node: &MarkedYaml<'_>) -> bool {
    matches!(&node.data, YamlData::Representation(text, ScalarStyle::Plain, _) if text.is_empty())
}

fn name_of(key: &MarkedYaml<'_>) -> String {
    match &key.data {
        YamlData::Representation(text, _, _) => text.to_string(),
        _ => String::new(),
    }
}

fn empty(shape: &Shape) -> Value {
    match shape {
        Shape::Fields(_) | Shape::OneOf(_) | Shape::Conditions => Value::Object(Map::new()),
        Shape::List(_) => Value::Array(Vec::new()),
        Shape::Flag => Value::from(false),
        Shape::Duration | Shape::Time | Shape::Count => Value::from(0),
        Shape::Text | Shape::Word(_) => Value::from(""),
    }
}

fn nearest<'a>(text: &str, known: impl Iterator<Item = &'a str> + Clone) -> String {
    let likeness =
        |known: &str| strsim::normalized_damerau_levenshtein(&known.to_ascii_lowercase(), &text.to_ascii_lowercase());
    let near = known.clone().map(|known| (likeness(known), known)).max_by(|a, b| a.0.total_cmp(&b.0));
    let near = near.filter(|(likeness, _)| *likeness > 0.4).map(|(_, known)| known);
    near.map_or_else(
        || format!("known are {}", known.collect::<Vec<_>>().join(", ")),
        |near| format!("did you mean `{near}`?"),
    )
}

/// Whole seconds of an option such as `10m`, in any spelling that people use.
pub(super) fn seconds(text: &str) -> Option<i64> {
    let duration = humantime::parse_duration(text).ok().filter(|duration| duration.subsec_nanos() == 0)?;
    i64::try_from(duration.as_secs()).ok()
}
