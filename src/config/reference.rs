//! The reference of settings, `docs/reference/config.md`, from the types that read them.

use std::fmt::Write as _;

use schemars::generate::SchemaSettings;
use serde_json::{Map, Value};

use super::{CanaryConfig, Config};
use crate::pages::{agree, cell};

const PAGE: &str = "docs/reference/config.md";

/// The least that a configuration must have.
const LEAST: &str = r#"
[listen]
grpc = "0.0.0.0:8443"
ops = "127.0.0.1:9443"
[tls]
certificate = "tls.crt"
key = "tls.key"
client_cas = []
[store]
"#;

const HEAD: &str = "# Configuration

<!-- Generated from src/config.rs; `make docs` writes it anew. -->

One TOML file, named by `--config`. Each setting can come from the environment instead, which wins over the file:
`P8BROKER_LISTEN__GRPC` is `listen.grpc`, as two underscores go one level down; `P8BROKER_STORE_URL` is `store.url`. Unknown settings are
refused with the nearest known one, and everything that is wrong is said at once: `p8broker config check --config p8broker.toml`.
Names that end in `_s` are seconds. [An example](../../deploy/examples/p8broker.toml) has all of them.
";

fn schema() -> Value {
    let settings = SchemaSettings::draft2020_12().with(|settings| settings.inline_subschemas = true);
    settings.into_generator().into_root_schema_for::<Config>().to_value()
}

fn defaults() -> Value {
    serde_json::to_value(toml(LEAST)).unwrap()
}

fn toml(text: &str) -> Config {
    use figment::providers::{Format, Toml};
    figment::Figment::from(Toml::string(text)).extract().unwrap()
}

fn properties(schema: &Value) -> &Map<String, Value> {
    schema["properties"].as_object().unwrap()
}

/// What a value looks like, in TOML's words.
fn kind(schema: &Value) -> String {
    let named = |name: &str| match name {
        "string" | "integer" | "boolean" => name.to_owned(),
        "number" => "float".to_owned(),
        "array" => format!("array of {}", kind(&schema["items"])),
        other => panic!("no word for {other}: {schema}"),
    };
    let words =
        |all: &Vec<Value>| all.iter().filter_map(|it| it["const"].as_str()).map(|it| format!("`{it}`")).collect();
    match &schema["type"] {
        Value::String(name) => named(name),
        // One that may be absent.
        Value::Array(names) => named(names.iter().filter_map(Value::as_str).find(|name| *name != "null").unwrap()),
        _ => {
            let one_of = schema["oneOf"].as_array().unwrap_or_else(|| panic!("no type: {schema}"));
            let words: Vec<String> = words(one_of);
            words.join(", ")
        }
    }
}

/// A setting whose values are tables has a section of its own.
fn tables(schema: &Value) -> Option<&Value> {
    schema["items"].get("properties").map(|_| &schema["items"])
}

fn section(out: &mut String, name: &str, schema: &Value, defaults: &Value) {
    let required: Vec<&str> = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    out.push_str("\n| setting | type | default | meaning |\n| --- | --- | --- | --- |\n");
    for (key, it) in properties(schema).iter().filter(|(_, it)| tables(it).is_none()) {
        let default = match defaults.get(key).or_else(|| it.get("default")).unwrap_or(&Value::Null) {
            _ if required.contains(&key.as_str()) => "required".to_owned(),
            Value::Null => "absent".to_owned(),
            value => format!("`{value}`"),
        };
        let meaning = cell(it["description"].as_str().unwrap_or_default());
        assert!(!meaning.is_empty(), "{name}.{key} says nothing about itself");
        let _ = writeln!(out, "| `{key}` | {} | {default} | {meaning} |", kind(it));
    }
    for (key, it) in properties(schema) {
        let Some(table) = tables(it) else { continue };
        let about = cell(table["description"].as_str().unwrap());
        let _ = write!(out, "\n### `[[{name}.{key}]]`\n\n{about}\n");
        section(out, &format!("{name}.{key}"), table, &Value::Null);
    }
}

#[test]
fn the_page_is_of_these_settings() {
    let (schema, defaults) = (schema(), defaults());
    let mut out = HEAD.to_owned();
    for (name, table) in properties(&schema) {
        let about = cell(table["description"].as_str().unwrap_or_default());
        let _ = write!(out, "\n## `[{name}]`\n\n{about}\n");
        section(&mut out, name, table, &defaults[name]);
    }
    agree(PAGE, &out);
}

#[test]
fn the_example_has_every_setting_and_can_be_read() {
    let example = std::fs::read_to_string("deploy/examples/p8broker.toml").unwrap();
    // What is there as a comment is as good as the rest.
    let is_setting = |line: &str| {
        let key = line.split(" = ").next().unwrap_or_default();
        line.starts_with("[[") || line.contains(" = ") && key.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')
    };
    let line = |line: &'_ str| match line.strip_prefix("# ") {
        Some(rest) if is_setting(rest) => rest.to_owned(),
        _ => line.to_owned(),
    };
    let written = serde_json::to_value(toml(&example.lines().map(line).collect::<Vec<_>>().join("\n"))).unwrap();
    let mut missing = Vec::new();
    for (name, table) in properties(&schema()) {
        for (key, it) in properties(table) {
            let here = &written[name][key];
            let inside = tables(it).into_iter().flat_map(|table| properties(table).keys());
            missing.extend(inside.filter(|of| here[0][of].is_null()).map(|of| format!("{name}.{key}.{of}")));
            if here.is_null() {
                missing.push(format!("{name}.{key}"));
            }
        }
    }
    assert!(missing.is_empty(), "deploy/examples/p8broker.toml lacks {missing:?}");
    let absent = example.lines().filter(|line| !line.contains("every_s")).collect::<Vec<_>>().join("\n");
    assert!(toml(&absent).canary.every_s == CanaryConfig::default().every_s, "a section may be empty");
}
