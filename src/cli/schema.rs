//! `schema`: a JSON Schema (draft 2020-12) of documents, for editors. Made from the same table as the parser.
//!
//! # Invariants
//! - `INV-SCHEMA-1`: whatever the parser takes, the schema takes. It knows less than the parser: names that must exist, and
//!   rules over several fields, are told when the document is applied.

use clap::Args;
use serde_json::{Map, Value, json};

use super::error::CliError;
use super::output::Printer;
use crate::domain::document::shape::{DOCUMENT, Field, Shape};
use crate::domain::document::spelling::{TIME_PATTERN, duration_pattern};

/// Print the JSON Schema of documents, for editors.
#[derive(Debug, Args)]
pub(super) struct Schema {}

impl Schema {
    #[expect(clippy::unused_self, reason = "as every command is run")]
    pub(super) fn run(self, print: &Printer) -> Result<(), CliError> {
        print.text(text().trim_end())
    }
}

/// The schema as it is printed.
pub(super) fn text() -> String {
    let text = serde_json::to_string_pretty(&schema()).unwrap_or_default();
    format!("{text}\n")
}

/// The schema of a whole document.
pub(super) fn schema() -> Value {
    let mut out = fields(DOCUMENT);
    out.insert("$schema".to_owned(), Value::from("https://json-schema.org/draft/2020-12/schema"));
    out.insert("title".to_owned(), Value::from("p8broker document"));
    out.insert("description".to_owned(), Value::from("What `p8broker apply` takes, and `p8broker export` prints."));
    // Nothing at all is a document that wants nothing, and so is a list without anything in it.
    out.insert("type".to_owned(), json!(["object", "null"]));
    for (_, list) in out.get_mut("properties").and_then(Value::as_object_mut).into_iter().flatten() {
        if let Some(list) = list.as_object_mut().filter(|list| list.get("type") == Some(&Value::from("array"))) {
            list.insert("type".to_owned(), json!(["array", "null"]));
            list.remove("minItems");
        }
    }
    Value::Object(out)
}

fn of(shape: &Shape) -> Map<String, Value> {
    let value = match shape {
        Shape::Text => json!({ "type": TEXT }),
        Shape::Word(words) => json!({ "enum": words() }),
        Shape::Duration => json!({ "type": "string", "pattern": duration_pattern() }),
        Shape::Time => json!({ "type": "string", "pattern": TIME_PATTERN, "format": "date-time" }),
        Shape::Flag => json!({ "type": "boolean" }),
        Shape::Count => json!({ "type": "integer" }),
        // Empty never means all.
        Shape::List(item) => json!({ "type": "array", "minItems": 1, "items": of(item) }),
        Shape::Fields(known) => Value::Object(fields(known)),
        Shape::OneOf(known) => {
            let mut out = fields(known);
            let each = known.iter().map(|field| json!({ "required": [field.name] }));
            out.insert("oneOf".to_owned(), each.collect());
            Value::Object(out)
        }
        Shape::Conditions => {
            let one = [TEXT, &["array"]].concat();
            let values = json!({ "type": one, "minItems": 1, "items": { "type": TEXT } });
            json!({ "type": "object", "additionalProperties": values })
        }
    };
    if let Value::Object(map) = value { map } else { Map::new() }
}

/// What an editor takes a text for that stands without quotes: `42` and `true` are texts to the parser.
const TEXT: &[&str] = &["string", "number", "boolean"];

fn fields(known: &'static [Field]) -> Map<String, Value> {
    let property = |field: &Field| {
        let mut out = of(&field.shape);
        out.insert("description".to_owned(), Value::from(field.about));
        (field.name.to_owned(), Value::Object(out))
    };
    let mut out = Map::new();
    out.insert("type".to_owned(), Value::from("object"));
    out.insert("properties".to_owned(), Value::Object(known.iter().map(property).collect()));
    out.insert("additionalProperties".to_owned(), Value::from(false));
    let required: Vec<&str> = known.iter().filter(|field| field.required).map(|field| field.name).collect();
    if !required.is_empty() {
        out.insert("required".to_owned(), json!(required));
    }
    out
}

#[cfg(test)]
mod tests;
