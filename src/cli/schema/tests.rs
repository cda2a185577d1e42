//! The schema beside the parser, judged by a validator that is not ours: it takes whatever the parser takes, and what it
//! refuses the parser refuses.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::LazyLock;

use boon::{Compiler, SchemaIndex, Schemas};
use proptest::prelude::*;
use saphyr::{Scalar, Yaml, YamlLoader};
use saphyr_parser::Parser;

use super::*;
use crate::cli::document::Parsed;
use crate::cli::yaml_writer::tests::{document, written};

#[expect(dead_code, reason = "the integration test looks at all of it")]
#[path = "../../../tests/it/hostile_documents/corpus/mod.rs"]
mod corpus;

struct Validator(Schemas, SchemaIndex);

static VALIDATOR: LazyLock<Validator> = LazyLock::new(Validator::new);

impl Validator {
    fn new() -> Self {
        let (mut schemas, mut compiler) = (Schemas::new(), Compiler::new());
        compiler.enable_format_assertions();
        compiler.add_resource("schema.json", schema()).unwrap();
        let index = compiler.compile("schema.json", &mut schemas).unwrap();
        Self(schemas, index)
    }

    fn refuses(&self, value: &Value) -> Option<String> {
        self.0.validate(value, self.1).err().map(|error| error.to_string())
    }
}

/// A document as an editor sees it: each scalar with the type that YAML 1.2 gives it (core schema, section 10.3).
fn as_an_editor_sees_it(text: &str) -> Option<Vec<Value>> {
    let mut loader = YamlLoader::<Yaml<'_>>::default();
    loader.alias_limit(1000);
    Parser::new_from_str(text).load(&mut loader, true).ok()?;
    let taken = loader.error().is_none();
    taken.then(|| loader.into_documents().iter().map(json_of).collect())
}

fn json_of(node: &Yaml<'_>) -> Value {
    match node {
        Yaml::Value(Scalar::Null) | Yaml::BadValue => Value::Null,
        Yaml::Value(Scalar::Boolean(flag)) => Value::from(*flag),
        Yaml::Value(Scalar::Integer(number)) => Value::from(*number),
        // JSON has no infinity; to a schema it is a number all the same.
        Yaml::Value(Scalar::FloatingPoint(number)) => {
            let number = number.into_inner();
            Value::from(if number.is_finite() { number } else { 1e300 })
        }
        Yaml::Value(Scalar::String(text)) => Value::from(text.as_ref()),
        Yaml::Sequence(items) => items.iter().map(json_of).collect(),
        Yaml::Mapping(map) => map.iter().map(|(key, value)| (key_of(key), json_of(value))).collect(),
        Yaml::Tagged(_, node) => json_of(node),
        other => panic!("{other:?} is left over"),
    }
}

fn key_of(key: &Yaml<'_>) -> String {
    match json_of(key) {
        Value::String(text) => text,
        other => other.to_string(),
    }
}

fn read(text: &str) -> Option<Parsed> {
    Parsed::read_all(&[(PathBuf::from("a.yaml"), text.to_owned())]).ok()
}

/// Whether `apply` would refuse the text without asking the broker.
fn parser_refuses(text: &str) -> bool {
    read(text).is_none_or(|parsed| !parsed.violations().is_empty())
}

/// Whether the two agree as far as they must; answers whether both refuse, for whoever counts.
#[track_caller]
fn agree(text: &str) -> bool {
    // What is no YAML, or too deep, is refused without a look at it; an editor would not come to the schema either.
    let Some(parsed) = read(text) else { return false };
    let (taken, seen) = (parsed.violations().is_empty(), as_an_editor_sees_it(text));
    assert!(seen.is_some() || !taken, "only the parser reads it:\n{text}");
    let schema = seen.iter().flatten().find_map(|document| VALIDATOR.refuses(document));
    // INVARIANT (INV-SCHEMA-1)
    if let (true, Some(why)) = (taken, &schema) {
        panic!("the parser takes what the schema refuses: {why}\n{text}");
    }
    schema.is_some()
}

#[test]
fn the_page_is_of_this_schema() {
    crate::pages::agree("docs/p8broker.schema.json", &text());
}

#[test]
fn the_schema_takes_honest_documents_and_no_document_that_the_parser_refuses_for_its_shape() {
    assert!(!agree(corpus::HONEST) && !parser_refuses(corpus::HONEST));
    for empty in ["", "{}", "accounts:\n", "policies: []\n", "# a comment\n", "revision: 7\n", "---\n---\n"] {
        assert!(!agree(empty) && !parser_refuses(empty), "{empty}");
    }
    let all = corpus::hostile();
    let refused = all.iter().filter(|it| agree(&it.text)).count();
    // The rest breaks rules that no schema can tell.
    assert!(refused * 4 > all.len(), "the schema refuses {refused} of {}", all.len());
}

/// Values that do not belong, or only look like what belongs; as they stand in YAML.
const ODD: &[&str] = &[
    "null",
    "~",
    "",
    "Null",
    "true",
    "True",
    "\"true\"",
    "yes",
    "5",
    "\"5\"",
    "0x5",
    "+5",
    "5.5",
    "1e3",
    ".inf",
    ".nan",
    "text",
    "\"\"",
    "''",
    "10m",
    "\"10m\"",
    "10M",
    "1h 30m",
    "30 days",
    "90",
    "2026-12-31T00:00:00Z",
    "\"2026-12-31t00:00:00.5+01:00\"",
    "2026-12-31 00:00:00Z",
    "2026-12-31",
    "ADMIN",
    "mon",
    "oidc",
    "\"08:00\"",
    "08:00",
    "[]",
    "[text]",
    "[5, true]",
    "[null]",
    "[[]]",
    "[{}]",
    "{}",
    "{ a: b }",
    "{ a: [b] }",
    "{ a: [] }",
    "{ spiffe: x, dns: y }",
    "!!str 5",
    "!!int \"5\"",
    "!odd x",
    "|\n  10m",
    ">-\n  text",
];

/// One place of each kind in a value: a pointer by what it is with `*` for the number of each entry.
fn places(value: &Value, pointer: &str, kind: &str, out: &mut BTreeMap<String, String>) {
    out.insert(kind.to_owned(), pointer.to_owned());
    let down = |step: &str| format!("{pointer}/{}", step.replace('~', "~0").replace('/', "~1"));
    match value {
        Value::Array(items) => {
            for (at, item) in items.iter().enumerate() {
                places(item, &down(&at.to_string()), &format!("{kind}/*"), out);
            }
        }
        Value::Object(map) => {
            for (name, item) in map {
                places(item, &down(name), &format!("{kind}/{name}"), out);
            }
        }
        _ => {}
    }
}

#[test]
fn with_each_odd_value_at_each_place_the_two_agree() {
    const HERE: &str = "\u{1}here\u{1}";
    let honest = as_an_editor_sees_it(corpus::HONEST).unwrap().remove(0);
    let mut all = BTreeMap::new();
    places(&honest, "", "", &mut all);
    assert!(all.len() > 80, "{}", all.len());
    let (mut tried, mut refused) = (0, 0);
    for place in all.values() {
        let mut changed = honest.clone();
        *changed.pointer_mut(place).unwrap() = Value::from(HERE);
        let text = json(&changed);
        for odd in ODD {
            // A block text ends its line, so that it can stand at the end only.
            let odd = if odd.contains('\n') { format!("\n{odd}\n") } else { (*odd).to_owned() };
            let text = text.replace(&json(&Value::from(HERE)), &odd);
            tried += 1;
            refused += usize::from(agree(&text));
        }
        // A field more, and a field less.
        for extra in ["odd", "name", "spiffe"] {
            let mut changed = honest.clone();
            if let Some(map) = changed.pointer_mut(place).and_then(Value::as_object_mut) {
                map.insert(extra.to_owned(), Value::from("x"));
                agree(&json(&changed));
            }
        }
        if let Some((parent, name)) = place.rsplit_once('/') {
            let mut changed = honest.clone();
            if let Some(map) = changed.pointer_mut(parent).and_then(Value::as_object_mut) {
                map.remove(&name.replace("~1", "/"));
                agree(&json(&changed));
            }
        }
    }
    assert!(refused * 2 > tried, "the schema refuses {refused} of {tried}");
}

fn json(value: &Value) -> String {
    crate::cli::yaml_writer::json(value)
}

#[test]
fn every_spelling_that_the_parser_takes_is_in_the_patterns() {
    let with = |field: &str, value: &str| corpus::HONEST.replace("require_scope: true", &format!("{field}: {value}"));
    for duration in ["30s", "1m", "1min", "2 minutes", "1m 30s", "1m30s", "60 sec", "600s", "\"10m\"", "'1 minute'"] {
        let text = with("max_ttl", duration);
        assert!(!agree(&text) && !parser_refuses(&text), "{duration}");
    }
    for time in ["2030-01-01T00:00:00Z", "\"2030-01-01t00:00:00z\"", "2030-01-01T00:00:00.123456789-23:59"] {
        let text = with("not_after", time);
        assert!(!agree(&text) && !parser_refuses(&text), "{time}");
    }
}

proptest! {
    #[test]
    fn the_schema_takes_whatever_is_exported(document in document()) {
            let (yaml, json) = written(&document);
        // Not every one of these makes sense; all are of the right shape, but for clients that are nobody or two.
        let one_each = |client: &crate::domain::document::ClientText| {
            [client.spiffe.is_some(), client.dns.is_some(), client.oidc.is_some()].iter().filter(|it| **it).count() == 1
        };
        let clients = document.policies.iter().flat_map(|it| it.clients.iter().chain(&it.require_mtls));
        let clients = clients.chain(document.operators.iter().flat_map(|it| &it.clients));
        let mut clients = clients.chain(document.ceilings.iter().flat_map(|it| it.clients.iter().flatten()));
        let fit = clients.all(one_each);
        for text in [yaml, json] {
            let seen = as_an_editor_sees_it(&text).unwrap();
            let why = seen.iter().find_map(|document| VALIDATOR.refuses(document));
            prop_assert_eq!(why.is_none(), fit, "{:?}\n{}", why, text);
        }
    }
}
