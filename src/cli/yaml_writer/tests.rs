//! What is written is read again, whatever stands in it.

use std::path::Path;

use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;

use super::*;
use crate::cli::yaml::Yaml;
use crate::domain::document::shape::{DOCUMENT, Shape};
use crate::domain::document::{
    AccountText, AppGroupText, CeilingText, ClientText, ConditionsText, Document, HoursText, IssuerText, OidcText,
    OperatorText, PolicyText, QuotaText,
};

/// Texts that some parser takes for something else, or that end a line, a list or a quote.
const ODD: &[&str] = &[
    "",
    "null",
    "Null",
    "~",
    "true",
    "FALSE",
    "yes",
    "No",
    "on",
    "y",
    "N",
    "1",
    "-1",
    "+1",
    "007",
    "0x1F",
    "0o17",
    "1e3",
    ".5",
    "5.",
    "1_000",
    "12:30:45",
    "2001-01-01",
    "2026-12-31T00:00:00Z",
    ".inf",
    "-.INF",
    ".nan",
    "NaN",
    "=",
    "<<",
    "-",
    "- a",
    "?",
    "? a",
    ":",
    "a: b",
    "a:",
    "#",
    "a #b",
    "# a",
    "%YAML 1.2",
    "---",
    "...",
    "@a",
    "`a`",
    "!a",
    "!!str a",
    "&a",
    "*a",
    "{a}",
    "[a]",
    "a, b",
    "|",
    ">",
    "|-",
    "'",
    "\"",
    "\\",
    "\\n",
    "\\x41",
    " a",
    "a ",
    " ",
    "\t",
    "\n",
    "\r",
    "\r\n",
    "a\n b\n\n c\n",
    "\0",
    "\u{7}",
    "\u{1b}[31m",
    "\u{7f}",
    "\u{85}",
    "\u{a0}",
    "\u{ad}",
    "\u{2028}",
    "\u{2029}",
    "\u{202e}",
    "\u{feff}",
    "\u{fffe}",
    "\u{ffff}",
    "ä",
    "日本",
    "😀",
    "\u{10ffff}",
    "{\"keys\": [{\"kty\": \"EC\"}]}",
    "10m",
    "10M",
    "spiffe://acme.internal/ns/*",
    "repo:acme/bot:ref:refs/heads/main",
    "GET /v1/apps/{app}?filter[a]=1&b=2",
    "/kubernetes.io/namespace",
    "aud with spaces",
    "mailto:a@b",
    "a#b",
    "\u{d7ff}",
    "\u{e000}",
];

fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => proptest::sample::select(ODD).prop_map(str::to_owned),
        3 => "[a-zA-Z/][a-zA-Z0-9_./-]{0,12}",
        2 => ".{0,12}",
        1 => vec(any::<char>(), 0..6).prop_map(String::from_iter),
    ]
}

fn texts() -> impl Strategy<Value = Vec<String>> {
    prop_oneof![9 => vec(text(), 1..4), 1 => vec(text(), 20..30)]
}

fn some_texts() -> impl Strategy<Value = Vec<String>> {
    prop_oneof![Just(Vec::new()), texts()]
}

fn word_of(shape: fn() -> Vec<String>) -> impl Strategy<Value = Vec<String>> {
    vec(proptest::sample::select(shape()), 1..4)
}

/// The words that stand at a path of the shape.
fn words(path: &[&str]) -> fn() -> Vec<String> {
    let mut shape = Shape::Fields(DOCUMENT);
    for name in path {
        while let Shape::List(item) = shape {
            shape = *item;
        }
        let (Shape::Fields(fields) | Shape::OneOf(fields)) = shape else { panic!("{name} is no field") };
        shape = fields.iter().find(|field| field.name == *name).unwrap().shape;
    }
    while let Shape::List(item) = shape {
        shape = *item;
    }
    let Shape::Word(words) = shape else { panic!("{path:?} is no word") };
    words
}

fn conditions() -> impl Strategy<Value = ConditionsText> {
    btree_map(text(), texts(), 0..3)
}

fn client() -> impl Strategy<Value = ClientText> {
    let oidc = (text(), option::of(text()), conditions());
    let oidc = oidc.prop_map(|(issuer, subject, claims)| OidcText { issuer, subject, claims });
    (option::of(text()), option::of(text()), option::of(oidc)).prop_map(|(spiffe, dns, oidc)| ClientText {
        spiffe,
        dns,
        oidc,
    })
}

fn clients() -> impl Strategy<Value = Vec<ClientText>> {
    vec(client(), 1..3)
}

fn duration() -> impl Strategy<Value = Option<i64>> {
    option::of(prop_oneof![0..100_000_i64, (0..1000_i64).prop_map(|days| days * 86_400), 0..i64::MAX])
}

fn time() -> impl Strategy<Value = Option<UnixMillis>> {
    let years = -62_000_000_000_000..253_000_000_000_000_i64;
    option::of(prop_oneof![years.clone().prop_map(UnixMillis), years.prop_map(|at| UnixMillis(at / 1000 * 1000))])
}

fn issuer() -> impl Strategy<Value = IssuerText> {
    let words = word_of(words(&["issuers", "kind"]));
    let algorithms = prop_oneof![Just(Vec::new()), word_of(self::words(&["issuers", "algorithms"]))];
    let first = (text(), words, option::of(text()), option::of(text()), option::of(text()), texts());
    (first, algorithms, duration(), duration(), option::of(text()), conditions()).prop_map(
        |((name, kind, url, jwks_url, jwks, audiences), algorithms, leeway, max_age, subject, claims)| {
            let kind = kind.first().cloned().unwrap_or_default();
            IssuerText { name, kind, url, jwks_url, jwks, audiences, algorithms, leeway, max_age, subject, claims }
        },
    )
}

fn ceiling() -> impl Strategy<Value = CeilingText> {
    let roles = option::of(word_of(words(&["ceilings", "never_roles"])));
    let lists = (option::of(texts()), option::of(texts()), option::of(texts()), option::of(clients()));
    (text(), lists, duration(), roles, any::<[bool; 5]>()).prop_map(
        |(name, (app_groups, issuers, trust_domains, clients), max_ttl, never_roles, flags)| CeilingText {
            name,
            app_groups,
            every_app_group: flags[0],
            max_ttl,
            never_roles,
            clients,
            issuers,
            trust_domains,
            require_scope: flags[1],
            no_team_keys: flags[2],
            require_approval: flags[3],
            shadow: flags[4],
        },
    )
}

fn policy() -> impl Strategy<Value = PolicyText> {
    let features = prop_oneof![Just(Vec::new()), word_of(words(&["policies", "features"]))];
    let days = prop_oneof![Just(Vec::new()), word_of(words(&["policies", "hours", "days"]))];
    let quota = (option::of(any::<i64>()), option::of(any::<i64>()));
    let quota = quota.prop_map(|(tokens_per_hour, fresh_per_minute)| QuotaText { tokens_per_hour, fresh_per_minute });
    let hours = (text(), days, text(), text());
    let hours = hours.prop_map(|(time_zone, days, from, until)| HoursText { time_zone, days, from, until });
    let mtls = prop_oneof![Just(Vec::new()), clients()];
    let who = (text(), clients(), text(), word_of(words(&["policies", "roles"])), some_texts(), features, mtls);
    (who, duration(), duration(), option::of(quota), time(), time(), option::of(hours), any::<[bool; 3]>()).prop_map(
        |(who, max_ttl, default_ttl, quota, not_before, not_after, hours, flags)| {
            let (name, clients, app_group, roles, operations, features, require_mtls) = who;
            PolicyText {
                name,
                clients,
                app_group,
                roles,
                max_ttl,
                default_ttl,
                operations,
                features,
                require_scope: flags[0],
                require_mtls,
                quota,
                not_before,
                not_after,
                hours,
                break_glass: flags[1],
                shadow: flags[2],
            }
        },
    )
}

fn operator() -> impl Strategy<Value = OperatorText> {
    (text(), clients(), word_of(words(&["operators", "powers"])), some_texts())
        .prop_map(|(name, clients, powers, app_groups)| OperatorText { name, clients, powers, app_groups })
}

/// Any document that can be written down, whether or not it makes sense.
pub(crate) fn document() -> impl Strategy<Value = Document> {
    let account = (text(), text()).prop_map(|(name, issuer_id)| AccountText { name, issuer_id });
    let group = (text(), text(), texts()).prop_map(|(name, account, apps)| AppGroupText { name, account, apps });
    let lists = (vec(account, 0..3), vec(group, 0..3), vec(issuer(), 0..3), vec(ceiling(), 0..3));
    (lists, vec(policy(), 0..3), vec(operator(), 0..3)).prop_map(
        |((accounts, app_groups, issuers, ceilings), policies, operators)| Document {
            accounts,
            app_groups,
            issuers,
            ceilings,
            policies,
            operators,
        },
    )
}

/// A document as `export` writes it.
pub(crate) fn written(document: &Document) -> (String, String) {
    let value = serde_json::to_value(document).unwrap();
    let json = spelled(&value, &Shape::Fields(DOCUMENT));
    (yaml(&value, DOCUMENT), super::json(&json))
}

fn read(text: &str) -> Document {
    let mut yaml = Yaml::default();
    yaml.read(Path::new("a.yaml"), text, DOCUMENT).unwrap_or_else(|error| panic!("{error:?}\n{text}"));
    assert_eq!(yaml.violations, [], "{text}");
    serde_json::from_value(Value::Object(yaml.value)).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    #[test]
    fn a_document_that_is_written_is_read_again_exactly(document in document()) {
        let (yaml, json) = written(&document);
        prop_assert!(yaml.is_ascii());
        prop_assert_eq!(&read(&yaml), &document, "{}", yaml);
        // JSON is YAML: what a program is given can be applied, too.
        prop_assert_eq!(&read(&json), &document, "{}", json);
    }
}

#[test]
fn every_odd_text_survives_where_texts_stand() {
    for odd in ODD {
        let claims = ConditionsText::from([((*odd).to_owned(), vec![(*odd).to_owned()])]);
        let issuer = IssuerText {
            name: (*odd).to_owned(),
            kind: "oidc".to_owned(),
            jwks: Some((*odd).to_owned()),
            audiences: vec![(*odd).to_owned(); 2],
            claims,
            ..IssuerText::default()
        };
        let document = Document { issuers: vec![issuer], ..Document::default() };
        let (yaml, json) = written(&document);
        assert_eq!(read(&yaml), document, "{yaml}");
        assert_eq!(read(&json), document, "{json}");
    }
}

#[test]
fn it_reads_like_something_that_a_person_wrote() {
    let oidc = OidcText {
        issuer: "github".to_owned(),
        subject: None,
        claims: ConditionsText::from([
            ("ref".to_owned(), vec!["refs/heads/main".to_owned()]),
            ("repository_id".to_owned(), vec!["42".to_owned(), "43".to_owned()]),
        ]),
    };
    let policy = PolicyText {
        name: "games-release-ci".to_owned(),
        clients: vec![
            ClientText { spiffe: Some("spiffe://acme/ci".to_owned()), ..ClientText::default() },
            ClientText { oidc: Some(oidc), ..ClientText::default() },
        ],
        app_group: "games".to_owned(),
        roles: vec!["APP_MANAGER".to_owned()],
        max_ttl: Some(600),
        default_ttl: Some(90),
        not_after: UnixMillis::parse("2026-12-31T00:00:00Z"),
        quota: Some(QuotaText { tokens_per_hour: Some(60), fresh_per_minute: None }),
        ..PolicyText::default()
    };
    let document = Document { policies: vec![policy], ..Document::default() };
    let wanted = "\
policies:
  - name: games-release-ci
    clients:
      - spiffe: \"spiffe://acme/ci\"
      - oidc:
          issuer: github
          claims:
            ref: refs/heads/main
            repository_id: [\"42\", \"43\"]
    app_group: games
    roles: [APP_MANAGER]
    max_ttl: 10m
    default_ttl: 90s
    quota:
      tokens_per_hour: 60
    not_after: \"2026-12-31T00:00:00Z\"
";
    assert_eq!(written(&document).0, wanted);
}
