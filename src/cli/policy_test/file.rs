//! The file of cases: its shape, and everything that is wrong with it, at once.
//!
//! What cases and keys name is looked up in the documents as they were written, so that a document with a mistake does not
//! hide one of a case.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::LazyLock;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::Test;
use crate::cli::document::texts;
use crate::cli::error::CliError;
use crate::cli::yaml::Yaml;
use crate::clock::UnixMillis;
use crate::domain::decide::DenyReason;
use crate::domain::document::shape::{DOCUMENT, Field, ROLES, Shape, TEXTS, may, must, roles};
use crate::domain::document::{ConditionsText, Desired, Document};
use crate::domain::operation::Operation;
use crate::id::{AppId, AppleUser, ClientId, KeyId, shown};

fn kinds() -> Vec<String> {
    vec!["team".to_owned(), "individual".to_owned()]
}

fn expected() -> Vec<String> {
    vec!["allow".to_owned(), "deny".to_owned()]
}

fn reasons() -> Vec<String> {
    let decided = DenyReason::ALL.iter().map(|reason| reason.as_str());
    decided.chain([super::NOT_COVERED]).map(ToOwned::to_owned).collect()
}

const KEY: &[Field] = &[
    may("key_id", Shape::Text, "Its Key ID. Default one of the test's own."),
    must("account", Shape::Text, "The account, by name."),
    may("kind", Shape::Word(kinds), "Default team."),
    must("roles", ROLES, "The roles of the key."),
    must("app_groups", TEXTS, "The groups it may be used for."),
    may("user", Shape::Text, "The user of an individual key. Default one of the test's own."),
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
pub(super) struct KeyText {
    pub(super) key_id: Option<String>,
    pub(super) account: String,
    pub(super) kind: Option<String>,
    pub(super) user: Option<String>,
    pub(super) roles: Vec<String>,
    pub(super) app_groups: Vec<String>,
    pub(super) apps: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct CaseText {
    pub(super) name: String,
    pub(super) client: String,
    pub(super) claims: ConditionsText,
    pub(super) certificate: Option<String>,
    pub(super) app_group: String,
    pub(super) role: String,
    pub(super) ttl: Option<i64>,
    pub(super) scope: Vec<String>,
    pub(super) at: Option<UnixMillis>,
    pub(super) open: Vec<String>,
    pub(super) expect: String,
    pub(super) policy: Option<String>,
    pub(super) reason: Option<String>,
}

/// What stands in a file of cases, with nothing wrong in it as far as can be told without deciding.
#[derive(Debug)]
pub(super) struct Cases {
    pub(super) desired: Desired,
    pub(super) at: Option<UnixMillis>,
    pub(super) keys: Option<Vec<KeyText>>,
    pub(super) cases: Vec<CaseText>,
    yaml: Yaml,
}

impl Cases {
    /// Reads a test's file and the documents that it names.
    pub(super) fn read(test: &Test) -> Result<Self, CliError> {
        let mut yaml = Yaml::default();
        for (file, text) in texts(&test.file)? {
            yaml.read(&file, &text, &ROOT)?;
        }
        let own = yaml.value.clone();
        let base = test.file.parent().unwrap_or(Path::new("."));
        for name in take::<Vec<String>>(&own, "documents")? {
            for (file, text) in texts(&base.join(name))? {
                yaml.read(&file, &text, DOCUMENT)?;
            }
        }
        let mut all = yaml.value.clone();
        all.retain(|name, _| DOCUMENT.iter().any(|field| field.name == name));
        let document: Document =
            serde_json::from_value(Value::Object(all)).map_err(|error| CliError::failed(error.to_string()))?;
        let keys: Option<Vec<KeyText>> = take(&own, "keys")?;
        let cases: Vec<CaseText> = take(&own, "cases")?;
        let desired = document.check();
        let checked = desired.as_ref().err().into_iter().flatten();
        let mut found: Vec<(String, String)> = checked.map(|it| (it.path.clone(), it.message.clone())).collect();
        let mut check = Check { names: Names::of(&document), found: Vec::new() };
        for (nth, key) in keys.iter().flatten().enumerate() {
            check.key(nth, key);
        }
        let ids = keys.iter().flatten().filter_map(|key| key.key_id.as_ref());
        check.each_once("keys", "key_id", ids);
        for (nth, case) in cases.iter().enumerate() {
            check.case(nth, case);
        }
        if cases.is_empty() {
            check.refuse("cases".to_owned(), "is empty: name at least one case");
        }
        found.extend(check.found);
        // A field of a wrong shape was left empty: what the rules say of it then is no news.
        let is_known =
            |path: &str| yaml.violations.iter().any(|(wrong, _)| path.starts_with(wrong) || wrong.starts_with(path));
        found.retain(|(path, _)| !is_known(path));
        found.extend(yaml.violations.iter().cloned());
        match desired {
            Ok(desired) if found.is_empty() => Ok(Self { desired, at: take(&own, "at")?, keys, cases, yaml }),
            _ => Err(refused(test, &yaml, found)),
        }
    }

    /// What is wrong with the documents as a whole.
    pub(super) fn refused(&self, test: &Test, found: Vec<(String, String)>) -> CliError {
        refused(test, &self.yaml, found)
    }
}

fn refused(test: &Test, yaml: &Yaml, found: Vec<(String, String)>) -> CliError {
    CliError::invalid(format!("{} can't be tested", test.file.display()), yaml.placed(found.into_iter()))
}

fn take<T: Default + for<'de> Deserialize<'de>>(from: &Map<String, Value>, name: &str) -> Result<T, CliError> {
    let Some(value) = from.get(name) else { return Ok(T::default()) };
    serde_json::from_value(value.clone()).map_err(|error| CliError::failed(error.to_string()))
}

/// What the documents name, as it was written.
struct Names<'a> {
    accounts: BTreeSet<&'a str>,
    app_groups: BTreeSet<&'a str>,
    policies: BTreeSet<&'a str>,
    issuers: BTreeSet<&'a str>,
}

impl<'a> Names<'a> {
    fn of(document: &'a Document) -> Self {
        Self {
            accounts: document.accounts.iter().map(|it| it.name.as_str()).collect(),
            app_groups: document.app_groups.iter().map(|it| it.name.as_str()).collect(),
            policies: document.policies.iter().map(|it| it.name.as_str()).collect(),
            issuers: document.issuers.iter().map(|it| it.name.as_str()).collect(),
        }
    }
}

struct Check<'a> {
    names: Names<'a>,
    found: Vec<(String, String)>,
}

impl Check<'_> {
    fn refuse(&mut self, path: String, what: impl Into<String>) {
        self.found.push((path, what.into()));
    }

    fn parsed<T, E: ToString>(&mut self, path: String, parsed: Result<T, E>) -> Option<T> {
        parsed.map_err(|error| self.refuse(path, error.to_string())).ok()
    }

    fn is_there(&mut self, path: String, kind: &str, name: &str, is_named: bool) {
        if !is_named {
            self.refuse(path, format!("there is no {kind} `{}` in the documents", shown(name)));
        }
    }

    fn each_once<'b>(&mut self, list: &str, field: &str, values: impl Iterator<Item = &'b String>) {
        let mut seen = BTreeSet::new();
        for value in values {
            if !seen.insert(value) {
                self.refuse(list.to_owned(), format!("have the {field} `{}` twice", shown(value)));
            }
        }
    }

    fn key(&mut self, nth: usize, key: &KeyText) {
        let field = |name: &str| format!("keys[{nth}].{name}");
        key.key_id.as_ref().map(|id| self.parsed(field("key_id"), KeyId::parse(id)));
        key.user.as_ref().map(|user| self.parsed(field("user"), AppleUser::parse(user)));
        self.is_there(field("account"), "account", &key.account, self.names.accounts.contains(key.account.as_str()));
        for (at, group) in key.app_groups.iter().enumerate() {
            self.is_there(
                field(&format!("app_groups[{at}]")),
                "app group",
                group,
                self.names.app_groups.contains(group.as_str()),
            );
        }
        for (at, app) in key.apps.iter().enumerate() {
            self.parsed(field(&format!("apps[{at}]")), AppId::parse(app));
        }
        let individual = key.kind.as_deref() == Some("individual");
        for (name, given) in [("apps", !key.apps.is_empty()), ("user", key.user.is_some())] {
            if given && !individual {
                self.refuse(field(name), "is of an individual key; a team key reaches every app of the account");
            }
        }
    }

    fn case(&mut self, nth: usize, case: &CaseText) {
        let field = |name: &str| format!("cases[{nth}].{name}");
        let client = self.parsed(field("client"), ClientId::parse(&case.client));
        match client.map(|client| client.issuer()) {
            Some(Some(issuer)) => {
                self.is_there(field("client"), "issuer", issuer.as_str(), self.names.issuers.contains(issuer.as_str()));
                let certificate = case.certificate.as_ref();
                let name = certificate.and_then(|name| self.parsed(field("certificate"), ClientId::parse(name)));
                if name.is_some_and(|name| name.issuer().is_some()) {
                    self.refuse(field("certificate"), "names nobody in a certificate: spiffe://… or dns:…");
                }
            }
            Some(None) => {
                for (name, given) in [("certificate", case.certificate.is_some()), ("claims", !case.claims.is_empty())]
                {
                    if given {
                        self.refuse(field(name), "is for oidc clients; this one is named by a certificate");
                    }
                }
            }
            None => {}
        }
        // A group that is not there is a case, too: the answer is NO_POLICY.
        self.parsed(field("app_group"), crate::id::AppGroupName::parse(&case.app_group));
        for (at, entry) in case.scope.iter().enumerate() {
            self.parsed(field(&format!("scope[{at}]")), Operation::parse(entry));
        }
        for (at, policy) in case.open.iter().enumerate() {
            self.is_there(
                field(&format!("open[{at}]")),
                "policy",
                policy,
                self.names.policies.contains(policy.as_str()),
            );
        }
        match (case.expect.as_str(), &case.policy, &case.reason) {
            ("deny", Some(_), _) => self.refuse(field("policy"), "is for a case that is expected to be allowed"),
            (_, Some(policy), _) => {
                self.is_there(field("policy"), "policy", policy, self.names.policies.contains(policy.as_str()))
            }
            _ => {}
        }
        if case.expect == "allow" && case.reason.is_some() {
            self.refuse(field("reason"), "is for a case that is expected to be denied");
        }
    }
}
