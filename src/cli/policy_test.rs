//! `policy test`: a table of expected allows and denials, decided offline by the same code that the broker decides with.
//!
//! Steps: read the cases and the documents that they name; check and plan them against an empty vault, so that whatever the
//! broker would refuse is refused here; give it the keys that are named, or one team key for each role of each group; decide
//! each case at its time. No broker, no vault and no real key is needed: it is for a company's own CI.

use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use clap::{Args, Subcommand};
use serde::Deserialize;
use serde_json::{Value, json};

use super::document::texts;
use super::error::CliError;
use super::output::Printer;
use super::yaml::Yaml;
use crate::clock::{Clock, SystemClock, UnixMillis};
use crate::domain::change::{Actor, AuditPosition, Change, Record};
use crate::domain::claims::Claims;
use crate::domain::decide::{DenyReason, TokenRequest, decide};
use crate::domain::document::shape::{DOCUMENT, Field, ROLES, Shape, TEXTS, may, must, roles};
use crate::domain::document::{ConditionsText, Desired, Document};
use crate::domain::key::{AppAccess, Key, KeyKind, KeyState, Profile, Stamp};
use crate::domain::operation::Operation;
use crate::domain::operator::{Operator, Power};
use crate::domain::pattern::ClientPattern;
use crate::domain::plan::{Unnamed, plan};
use crate::domain::principal::{Facts, Principal};
use crate::domain::role::{Role, RoleSet};
use crate::domain::state::State;
use crate::id::{
    AccountName, AppGroupName, AppId, AppleUser, Chain, ClientId, KeyId, OperatorName, PolicyName, Revision, WriterId,
};

/// Policies offline.
#[derive(Debug, Subcommand)]
pub(super) enum PolicyCommand {
    /// Decide a table of cases offline, and say which are not as expected.
    Test(Test),
}

/// The cases.
#[derive(Debug, Args)]
pub(super) struct Test {
    /// The cases and the documents that they are about, in YAML; docs/policies.md has an example.
    #[arg(short, long, value_name = "FILE")]
    file: PathBuf,
}

fn kinds() -> Vec<String> {
    vec!["team".to_owned(), "individual".to_owned()]
}

fn expected() -> Vec<String> {
    vec!["allow".to_owned(), "deny".to_owned()]
}

fn reasons() -> Vec<String> {
    DenyReason::ALL.iter().map(|reason| reason.as_str().to_owned()).collect()
}

const KEY: &[Field] = &[
    must("account", Shape::Text, "The account, by name."),
    may("kind", Shape::Word(kinds), "Default team."),
    must("roles", ROLES, "The roles of the key."),
    must("app_groups", TEXTS, "The groups it may be used for."),
    may("apps", TEXTS, "The apps of an individual key's user. Default all."),
];

const CASE: &[Field] = &[
    must("name", Shape::Text, "What the case is about."),
    must("client", Shape::Text, "Who asks: spiffe://…, dns:… or oidc:ISSUER:SUBJECT."),
    may("claims", Shape::Conditions, "What the issuer says of an oidc client."),
    may("certificate", Shape::Text, "The certificate beside the token of an oidc client."),
    must("app_group", Shape::Text, "For which apps."),
    must("role", Shape::Word(roles), "With which role."),
    may("ttl", Shape::Duration, "For how long. Default the policy's."),
    may("scope", TEXTS, "Confined to which reads."),
    may("at", Shape::Time, "When. Default the file's time."),
    may("open", TEXTS, "Break-glass policies that are open."),
    must("expect", Shape::Word(expected), "allow or deny."),
    may("policy", Shape::Text, "The policy that must be the one that grants."),
    may("reason", Shape::Word(reasons), "Why it must be denied."),
];

/// A document's fields, and those of the test beside them.
static ROOT: LazyLock<Vec<Field>> = LazyLock::new(|| {
    let own = [
        may("documents", TEXTS, "Files and folders of documents, from the folder of this file."),
        may("at", Shape::Time, "When. Default now."),
        may("keys", Shape::List(&Shape::Fields(KEY)), "The keys. Default: for each group a team key for each role."),
        must("cases", Shape::List(&Shape::Fields(CASE)), "What is expected."),
    ];
    DOCUMENT.iter().copied().chain(own).collect()
});

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct KeyText {
    account: String,
    kind: Option<String>,
    roles: Vec<String>,
    app_groups: Vec<String>,
    apps: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct CaseText {
    name: String,
    client: String,
    claims: ConditionsText,
    certificate: Option<String>,
    app_group: String,
    role: String,
    ttl: Option<i64>,
    scope: Vec<String>,
    at: Option<UnixMillis>,
    open: Vec<String>,
    expect: String,
    policy: Option<String>,
    reason: Option<String>,
}

/// What became of one case.
struct Outcome {
    name: String,
    expected: String,
    got: String,
    ok: bool,
    policy: Option<String>,
    reason: Option<&'static str>,
}

impl PolicyCommand {
    pub(super) fn run(self, print: &Printer) -> Result<(), CliError> {
        let Self::Test(test) = self;
        let outcomes = test.decide_all()?;
        let failed = outcomes.iter().filter(|outcome| !outcome.ok).count();
        let object = json!({
            "passed": outcomes.len().saturating_sub(failed),
            "failed": failed,
            "cases": outcomes.iter().map(Outcome::json).collect::<Vec<Value>>(),
        });
        print.answer(&object, || {
            let lines: Vec<String> = outcomes.iter().map(Outcome::text).collect();
            let passed = outcomes.len().saturating_sub(failed);
            format!("{}\n{passed} as expected, {failed} not", lines.join("\n"))
        })?;
        if failed == 0 {
            return Ok(());
        }
        Err(CliError::because("CASES_FAILED", format!("{failed} of {} cases are not as expected", outcomes.len())))
    }
}

impl Outcome {
    fn json(&self) -> Value {
        json!({
            "name": self.name, "ok": self.ok, "expected": self.expected, "got": self.got,
            "policy": self.policy, "reason": self.reason,
        })
    }

    fn text(&self) -> String {
        if self.ok {
            return format!("ok      {}", self.name);
        }
        format!("FAILED  {}: expected {}, got {}", self.name, self.expected, self.got)
    }
}

impl Test {
    fn decide_all(&self) -> Result<Vec<Outcome>, CliError> {
        let cant = |violations| CliError::invalid(format!("{} can't be tested", self.file.display()), violations);
        let mut yaml = Yaml::default();
        for (file, text) in texts(&self.file)? {
            yaml.read(&file, &text, &ROOT)?;
        }
        let mut rest = yaml.value.clone();
        let documents: Vec<String> = take(&mut rest, "documents")?;
        let at = take::<Option<UnixMillis>>(&mut rest, "at")?.unwrap_or_else(|| SystemClock.now());
        let keys: Option<Vec<KeyText>> = take(&mut rest, "keys")?;
        let cases: Vec<CaseText> = take(&mut rest, "cases")?;
        let base = self.file.parent().unwrap_or(Path::new("."));
        let document = self.documents(&mut yaml, base, &documents, rest)?;
        let mut wrong = yaml.violations.clone();
        if cases.is_empty() {
            wrong.push(("cases".to_owned(), "is empty: name at least one case".to_owned()));
        }
        let desired = document.check().map_err(|violations| {
            let checked = violations.into_iter().map(|it| (it.path, it.message));
            cant(yaml.placed(wrong.iter().cloned().chain(checked)))
        })?;
        let state = vault(desired, at).map_err(|more| cant(yaml.placed(wrong.iter().cloned().chain(more))))?;
        let state = with_keys(state, keys.as_deref(), at, &mut wrong);
        let asked: Vec<Option<TokenRequest>> =
            cases.iter().enumerate().map(|(nth, case)| request(nth, case, &state, &mut wrong)).collect();
        if !wrong.is_empty() {
            return Err(cant(yaml.placed(wrong.into_iter())));
        }
        let asked = asked.into_iter().flatten();
        Ok(cases.iter().zip(asked).map(|(case, request)| outcome(case, &request, &state, at)).collect())
    }

    /// The document of the file itself, with those that it names.
    fn documents(
        &self,
        yaml: &mut Yaml,
        base: &Path,
        named: &[String],
        inline: serde_json::Map<String, Value>,
    ) -> Result<Document, CliError> {
        for name in named {
            for (file, text) in texts(&base.join(name))? {
                yaml.read(&file, &text, DOCUMENT)?;
            }
        }
        let mut all = if named.is_empty() { inline } else { yaml.value.clone() };
        for own in ["documents", "at", "keys", "cases"] {
            all.remove(own);
        }
        serde_json::from_value(Value::Object(all)).map_err(|error| CliError::failed(error.to_string()))
    }
}

fn take<T: Default + for<'de> Deserialize<'de>>(
    from: &mut serde_json::Map<String, Value>,
    name: &str,
) -> Result<T, CliError> {
    let Some(value) = from.remove(name) else { return Ok(T::default()) };
    serde_json::from_value(value).map_err(|error| CliError::failed(error.to_string()))
}

/// An empty vault to which the documents were applied, by an administrator of its own.
fn vault(mut desired: Desired, at: UnixMillis) -> Result<State, Vec<(String, String)>> {
    let told = |message: String| vec![("operators".to_owned(), message)];
    let pattern = ClientPattern::spiffe("spiffe://policy.test/administrator").map_err(|it| told(it.to_string()))?;
    let name = OperatorName::parse("policy-test-administrator").map_err(|it| told(it.to_string()))?;
    let powers = [Power::Administer].into_iter().collect();
    desired.operators.push(Operator { name, clients: vec![pattern], powers, app_groups: Default::default() });
    let planned = plan(&desired, Unnamed::Keep, &State::default());
    let planned = planned.map_err(|all| all.into_iter().map(|it| (it.path, it.message)).collect::<Vec<_>>())?;
    let mut state = State::default();
    if let Some(change) = planned.change {
        fold(&mut state, change, at);
    }
    Ok(state)
}

fn fold(state: &mut State, change: Change, at: UnixMillis) {
    let record = Record {
        revision: state.head().revision.next(),
        at,
        actor: Actor::local(),
        audit: AuditPosition { writer: WriterId::from_random(0), sequence: 0 },
        change,
    };
    // What was planned against this state follows it.
    let _ = state.fold(&record, Chain::default());
}

fn with_keys(mut state: State, named: Option<&[KeyText]>, at: UnixMillis, wrong: &mut Vec<(String, String)>) -> State {
    let mut keys = Vec::new();
    match named {
        Some(texts) => {
            for (nth, text) in texts.iter().enumerate() {
                keys.extend(key(nth, text, &state, at, wrong));
            }
        }
        None => {
            for group in state.app_groups().values() {
                for role in Role::ALL {
                    let roles = [*role].into_iter().collect();
                    keys.push((group.account.clone(), KeyKind::Team, roles, vec![group.name.clone()]));
                }
            }
        }
    }
    for (nth, (account, kind, roles, groups)) in keys.into_iter().enumerate() {
        let Ok(id) = KeyId::parse(&format!("T{nth:09}")) else { continue };
        let key = Key {
            id,
            account,
            profile: Profile::AppStoreConnect,
            kind,
            roles,
            app_groups: groups.into_iter().collect(),
            fingerprint: String::new(),
            public_key: String::new(),
            state: KeyState::Active,
            imported: Stamp { by: "policy test".to_owned(), at },
            imported_revision: Revision::default(),
            revoked: None,
            confirmed_at_apple: None,
        };
        fold(&mut state, Change::KeyImported { key: Box::new(key) }, at);
    }
    state
}

type KeyParts = (AccountName, KeyKind, RoleSet, Vec<AppGroupName>);

fn key(
    nth: usize,
    text: &KeyText,
    state: &State,
    at: UnixMillis,
    wrong: &mut Vec<(String, String)>,
) -> Option<KeyParts> {
    let mut refuse = |field: &str, what: String| wrong.push((format!("keys[{nth}].{field}"), what));
    let account = AccountName::parse(&text.account).ok().filter(|name| state.accounts().contains_key(name));
    if account.is_none() {
        refuse("account", format!("there is no account `{}` in the documents", crate::id::shown(&text.account)));
    }
    let known = |name: &String| AppGroupName::parse(name).ok().filter(|name| state.app_groups().contains_key(name));
    let groups: Vec<AppGroupName> = text.app_groups.iter().filter_map(known).collect();
    if groups.len() != text.app_groups.len() {
        refuse("app_groups", "names a group that is not in the documents".to_owned());
    }
    let apps: Vec<AppId> = text.apps.iter().filter_map(|id| AppId::parse(id).ok()).collect();
    if apps.len() != text.apps.len() {
        refuse("apps", "names something that is no app id: 1 to 20 digits".to_owned());
    }
    let individual = text.kind.as_deref() == Some("individual");
    if !individual && !text.apps.is_empty() {
        refuse("apps", "are an individual key's; a team key reaches every app of the account".to_owned());
    }
    let app_access = if apps.is_empty() { AppAccess::All } else { AppAccess::Only(apps.into_iter().collect()) };
    let kind = match AppleUser::parse(&format!("user{nth}")) {
        Ok(user) if individual => KeyKind::Individual { user, app_access, declared_at: at },
        _ => KeyKind::Team,
    };
    let roles = text.roles.iter().filter_map(|role| Role::parse(role)).collect();
    Some((account?, kind, roles, groups))
}

fn request(nth: usize, case: &CaseText, state: &State, wrong: &mut Vec<(String, String)>) -> Option<TokenRequest> {
    let before = wrong.len();
    let mut refuse = |field: &str, what: String| wrong.push((format!("cases[{nth}].{field}"), what));
    let client = ClientId::parse(&case.client).map_err(|error| refuse("client", error.to_string())).ok();
    let certificate = case.certificate.as_ref().map(|text| ClientId::parse(text));
    let certificate = certificate.transpose().map_err(|error| refuse("certificate", error.to_string())).ok().flatten();
    let principal = client.and_then(|client| match client.issuer() {
        None if case.certificate.is_some() || !case.claims.is_empty() => {
            refuse("client", "is named by a certificate: claims and certificate are for oidc clients".to_owned());
            None
        }
        None => Some(Principal::of_certificate(client)),
        Some(name) => match state.issuers().get(&name) {
            Some(issuer) => {
                let pairs = case
                    .claims
                    .iter()
                    .flat_map(|(name, values)| values.iter().map(move |value| (name.as_str(), value.as_str())));
                let facts = Facts { certificate, claims: Claims::from_pairs(pairs) };
                Some(Principal::of_issuer(client, std::sync::Arc::clone(issuer), facts, i64::MAX))
            }
            None => {
                refuse("client", format!("there is no issuer `{name}` in the documents"));
                None
            }
        },
    });
    let app_group = AppGroupName::parse(&case.app_group).map_err(|error| refuse("app_group", error.to_string())).ok();
    let mut scope = Vec::new();
    for (at, entry) in case.scope.iter().enumerate() {
        match Operation::parse(entry) {
            Ok(operation) => scope.push(operation),
            Err(error) => refuse(&format!("scope[{at}]"), error.to_string()),
        }
    }
    for name in case.open.iter().chain(&case.policy) {
        if PolicyName::parse(name).ok().is_none_or(|name| !state.policies().contains_key(&name)) {
            refuse("policy", format!("there is no policy `{}` in the documents", crate::id::shown(name)));
        }
    }
    match (case.expect.as_str(), &case.policy, &case.reason) {
        ("allow", _, Some(_)) => refuse("reason", "is for a case that is expected to be denied".to_owned()),
        ("deny", Some(_), _) => refuse("policy", "is for a case that is expected to be allowed".to_owned()),
        _ => {}
    }
    scope.sort();
    scope.dedup();
    let role = Role::parse(&case.role);
    let (principal, app_group, role) = (principal?, app_group?, role?);
    (wrong.len() == before).then_some(TokenRequest { principal, app_group, role, ttl_s: case.ttl, scope })
}

fn outcome(case: &CaseText, request: &TokenRequest, state: &State, at: UnixMillis) -> Outcome {
    let at = case.at.unwrap_or(at);
    let mut state = state.clone();
    for policy in case.open.iter().filter_map(|name| PolicyName::parse(name).ok()) {
        let until = at.seconds().saturating_add(3600);
        fold(&mut state, Change::BreakGlassOpened { policy, until, reason: "a case".to_owned() }, at);
    }
    let expected = match (case.expect.as_str(), &case.policy, &case.reason) {
        ("allow", Some(policy), _) => format!("allow by {policy}"),
        ("deny", _, Some(reason)) => format!("deny for {reason}"),
        (expect, ..) => expect.to_owned(),
    };
    let (got, ok, policy, reason) = match decide(request, &state, at) {
        Ok(permit) => {
            let policy = permit.policy().name.to_string();
            let ok = case.expect == "allow" && case.policy.as_ref().is_none_or(|wanted| *wanted == policy);
            (format!("allow by {policy}"), ok, Some(policy), None)
        }
        Err(denial) => {
            let reason = denial.reason.as_str();
            let ok = case.expect == "deny" && case.reason.as_deref().is_none_or(|wanted| wanted == reason);
            (format!("deny for {reason}"), ok, denial.policy.map(|policy| policy.to_string()), Some(reason))
        }
    };
    Outcome { name: case.name.clone(), expected, got, ok, policy, reason }
}
