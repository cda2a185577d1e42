//! What documents look like, as data: the parser, the JSON Schema and the writer all go by this one table.

use super::spelling;
use crate::domain::feature::{Access, Feature};
use crate::domain::issuer::{Algorithm, IssuerKind};
use crate::domain::operator::Power;
use crate::domain::role::Role;

/// What stands at one place.
#[derive(Debug, Clone, Copy)]
pub enum Shape {
    /// A text, also where it looks like a number.
    Text,
    /// One of some words.
    Word(fn() -> Vec<String>),
    /// Whole seconds: `90s`, `10m`, `30days` ([`super::spelling`]).
    Duration,
    /// A time: `2026-12-31T00:00:00Z`.
    Time,
    /// `true` or `false`.
    Flag,
    /// A whole number.
    Count,
    /// Several of the same.
    List(&'static Shape),
    /// Named fields.
    Fields(&'static [Field]),
    /// Exactly one of these named fields.
    OneOf(&'static [Field]),
    /// Names that are free, each with a text or several: the conditions on claims.
    Conditions,
}

/// A named field.
#[derive(Debug, Clone, Copy)]
pub struct Field {
    /// Its name.
    pub name: &'static str,
    /// What stands there.
    pub shape: Shape,
    /// Whether it must be there.
    pub required: bool,
    /// What it means.
    pub about: &'static str,
}

/// The one field of a document that is no list, and means nothing.
pub const REVISION: &str = "revision";

/// A field that must be there.
pub const fn must(name: &'static str, shape: Shape, about: &'static str) -> Field {
    Field { name, shape, required: true, about }
}

/// A field that may be left out.
pub const fn may(name: &'static str, shape: Shape, about: &'static str) -> Field {
    Field { name, shape, required: false, about }
}

/// Several texts.
pub const TEXTS: Shape = Shape::List(&Shape::Text);
const CLIENTS: Shape = Shape::List(&Shape::OneOf(CLIENT));
/// Roles of Apple's.
pub const ROLES: Shape = Shape::List(&Shape::Word(roles));

/// Every role of Apple's.
pub fn roles() -> Vec<String> {
    Role::ALL.iter().map(|role| role.as_str().to_owned()).collect()
}

fn powers() -> Vec<String> {
    Power::ALL.iter().map(|power| power.as_str().to_owned()).collect()
}

fn kinds() -> Vec<String> {
    IssuerKind::ALL.iter().map(|kind| kind.as_str().to_owned()).collect()
}

fn algorithms() -> Vec<String> {
    Algorithm::ALL.iter().map(|algorithm| algorithm.as_str().to_owned()).collect()
}

fn features() -> Vec<String> {
    let both = |feature: &Feature| {
        [Access::Read, Access::Write].map(|access| format!("{}:{}", feature.as_str(), access.as_str()))
    };
    Feature::ALL.iter().flat_map(both).collect()
}

fn days() -> Vec<String> {
    ["mon", "tue", "wed", "thu", "fri", "sat", "sun"].map(ToOwned::to_owned).to_vec()
}

/// A whole document.
pub const DOCUMENT: &[Field] = &[
    may(
        REVISION,
        Shape::Count,
        "The revision that it was exported at, for whoever reads it; applying does not look at it.",
    ),
    may("accounts", Shape::List(&Shape::Fields(ACCOUNT)), "App Store Connect accounts."),
    may("app_groups", Shape::List(&Shape::Fields(APP_GROUP)), "Groups of apps: what policies grant access to."),
    may("issuers", Shape::List(&Shape::Fields(ISSUER)), "Issuers of JWTs that are trusted to vouch for callers."),
    may("ceilings", Shape::List(&Shape::Fields(CEILING)), "What no policy may go beyond."),
    may("policies", Shape::List(&Shape::Fields(POLICY)), "What some clients are granted."),
    may("operators", Shape::List(&Shape::Fields(OPERATOR)), "Who runs the broker."),
];

const ACCOUNT: &[Field] = &[
    must("name", Shape::Text, "The broker's name for it."),
    must("issuer_id", Shape::Text, "Apple's Issuer ID, a UUID: App Store Connect, Users and Access, Integrations."),
];

const APP_GROUP: &[Field] = &[
    must("name", Shape::Text, "The broker's name for it."),
    must("account", Shape::Text, "The account, by name."),
    must("apps", TEXTS, "The apps, each by the digits that App Store Connect shows as Apple ID."),
];

const ISSUER: &[Field] = &[
    must("name", Shape::Text, "The broker's name for it: its callers are called oidc:NAME:SUBJECT."),
    must("kind", Shape::Word(kinds), "Where defaults come from, and what a pattern must name to be narrow enough."),
    may("url", Shape::Text, "What the `iss` claim must be, to the letter. Known for github_actions and gitlab_ci."),
    may("jwks_url", Shape::Text, "Where its keys are; without it they are found by OpenID discovery."),
    may("jwks", Shape::Text, "Its keys themselves, pinned: a JWK Set in JSON."),
    must("audiences", TEXTS, "The `aud` claim must name one of these."),
    may(
        "algorithms",
        Shape::List(&Shape::Word(algorithms)),
        "Signatures that are accepted. Default by kind: RS256, and ES256 for kubernetes and oidc.",
    ),
    may("leeway", Shape::Duration, "How far clocks may be apart: 0s to 5m. Default 30s."),
    may(
        "max_age",
        Shape::Duration,
        "How old a token may be, by its `iat`: 1m to 1day. Default 15m for github_actions, else 1h.",
    ),
    may("subject", Shape::Text, "What the subject of every token must be; `*` within one part."),
    may("claims", Shape::Conditions, "What claims of every token must be: a value, or several of which one."),
];

const CLIENT: &[Field] = &[
    may("spiffe", Shape::Text, "A SPIFFE ID in a certificate; `*` within one segment of its path."),
    may("dns", Shape::Text, "A DNS name in a certificate; `*` within one label, the last two exact."),
    may("oidc", Shape::Fields(OIDC), "Whom a trusted issuer vouches for."),
];

const OIDC: &[Field] = &[
    must("issuer", Shape::Text, "The issuer, by name."),
    may("subject", Shape::Text, "What the subject must be; `*` within one part, between / : @ and #."),
    may("claims", Shape::Conditions, "What claims must be, all of them: a value, or several of which one."),
];

const CEILING: &[Field] = &[
    must("name", Shape::Text, "The broker's name for it."),
    may("app_groups", TEXTS, "The groups it holds for."),
    may("every_app_group", Shape::Flag, "Whether it holds for all groups instead, also later ones."),
    may("max_ttl", Shape::Duration, "The longest time to live."),
    may("never_roles", ROLES, "Roles that nobody gets. A key that has one is never used."),
    may("clients", CLIENTS, "The only callers, together with issuers and trust_domains."),
    may("issuers", TEXTS, "Trusted issuers whose callers are among the only ones."),
    may("trust_domains", TEXTS, "SPIFFE trust domains whose callers are among the only ones."),
    may("require_scope", Shape::Flag, "Whether every token must have a scope."),
    may("no_team_keys", Shape::Flag, "Whether team keys are out of use for a group that has, or had, individual ones."),
    may("require_approval", Shape::Flag, "Whether changes of policies and groups here take two operators."),
    may("shadow", Shape::Flag, "Whether it only counts what it would refuse."),
];

const POLICY: &[Field] = &[
    must("name", Shape::Text, "The broker's name for it."),
    must("clients", CLIENTS, "Whose requests it decides."),
    must("app_group", Shape::Text, "The apps it is about. At most 100 policies for one group."),
    must("roles", ROLES, "Roles that may be asked for; a key with any other role is never used."),
    may(
        "max_ttl",
        Shape::Duration,
        "The longest life: 30s to 20m, or to 180days where every operation is a long-lived read. Default 18m.",
    ),
    may("default_ttl", Shape::Duration, "The life of a token whose request names none. Default 10m or max_ttl."),
    may(
        "operations",
        TEXTS,
        "Reads that a scope may hold, `GET PATH[?QUERY]`; `{app}` stands for each app. Makes a scope required.",
    ),
    may(
        "features",
        Shape::List(&Shape::Word(features)),
        "What it is for. Reads become a check of the scope; writes are an agreement.",
    ),
    may("require_scope", Shape::Flag, "Whether every token must have a scope."),
    may("require_mtls", CLIENTS, "Certificates, one of which must come with a bearer token."),
    may("quota", Shape::Fields(QUOTA), "How many tokens each client gets."),
    may("not_before", Shape::Time, "The first moment it grants anything."),
    may("not_after", Shape::Time, "The moment from which it grants nothing; no token outlives it."),
    may("hours", Shape::Fields(HOURS), "The hours at which it grants something; no token outlives them."),
    may("break_glass", Shape::Flag, "Whether it grants only while an operator holds it open."),
    may("shadow", Shape::Flag, "Whether it only counts what it would refuse of what other policies grant."),
];

const QUOTA: &[Field] = &[
    may("tokens_per_hour", Shape::Count, "Tokens handed out in one hour, signed or reused."),
    may("fresh_per_minute", Shape::Count, "Tokens signed in one minute."),
];

const HOURS: &[Field] = &[
    must("time_zone", Shape::Text, "An IANA time zone such as Europe/Berlin."),
    may("days", Shape::List(&Shape::Word(days)), "The days on which the hours begin. Default all."),
    must("from", Shape::Text, "The first minute, as 08:00."),
    must("until", Shape::Text, "The minute after the last, as 18:00; at or before `from` it is of the next day."),
];

const OPERATOR: &[Field] = &[
    must("name", Shape::Text, "The broker's name for it."),
    must("clients", CLIENTS, "Who is this operator."),
    must("powers", Shape::List(&Shape::Word(powers)), "What it may do."),
    may("app_groups", TEXTS, "Where it may author policies; only with author_policies alone."),
];

/// A field's value as documents write it, for whoever reads a plan; what could look like something else is escaped.
pub fn shown(name: &str, value: &serde_json::Value) -> String {
    match value.as_i64() {
        Some(seconds) if matches!(name, "max_ttl" | "default_ttl" | "leeway" | "max_age") => format!("{seconds}s"),
        Some(at) if matches!(name, "not_before" | "not_after") => spelling::time(crate::clock::UnixMillis(at)),
        _ => escaped(&value.to_string()),
    }
}

/// JSON in ASCII: a character that turns the line around, or looks like another, shows as what it is.
fn escaped(json: &str) -> String {
    let one = |c: char| if c.is_ascii() { c.to_string() } else { c.escape_unicode().to_string() };
    json.chars().map(one).collect()
}
