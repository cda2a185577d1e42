//! `policy test`: a table of expected allows and denials, decided offline by the same code that the broker decides with.
//!
//! Steps: read the cases and the documents that they name; check and plan them against an empty vault, so that whatever the
//! broker would refuse is refused here; give it the keys that are named, or one team key for each role of each group; decide
//! each case at its time. No broker, no vault and no real key is needed: it is for a company's own CI.
//!
//! Non-goal: the rules about operators as a whole (that an administrator is left, and that there are two where changes take
//! two). Who else stands in the vault is not known here, so two administrators of the test's own meet them always.

mod file;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::error::{CliError, Exit};
use super::output::Printer;
use crate::clock::{Clock, SystemClock, UnixMillis};
use crate::domain::app_group::AppGroup;
use crate::domain::change::{Actor, AuditPosition, Change, Record};
use crate::domain::claims::Claims;
use crate::domain::decide::{TokenRequest, decide};
use crate::domain::document::Desired;
use crate::domain::key::{AppAccess, Key, KeyKind, KeyState, Profile, Stamp};
use crate::domain::operation::Operation;
use crate::domain::operator::{Operator, Power};
use crate::domain::pattern::ClientPattern;
use crate::domain::plan::{Unnamed, plan};
use crate::domain::principal::{Facts, Principal, Vouched};
use crate::domain::role::Role;
use crate::domain::state::State;
use crate::id::{
    AccountName, AppGroupName, AppId, AppleUser, Chain, ClientId, KeyId, OperatorName, PolicyName, Revision, WriterId,
};
use file::{CaseText, Cases, KeyText};

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

/// Why a token is refused whose subject or claims are not those that its issuer is trusted for, as the gate spells it.
const NOT_COVERED: &str = "BEARER_CLAIMS";

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
        // What is wrong with a file is told apart from a case that is not as expected.
        let outcomes = test.decide_all().map_err(|error| CliError { exit: Exit::Usage, ..error })?;
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
        let cases = Cases::read(self)?;
        let at = cases.at.unwrap_or_else(|| SystemClock.now());
        let state = vault(cases.desired.clone(), at).map_err(|found| cases.refused(self, found))?;
        let state = with_keys(state, cases.keys.as_deref(), at);
        cases.cases.iter().map(|case| outcome(case, &state, at)).collect()
    }
}

/// An empty vault with two administrators of its own, to which the documents were applied.
fn vault(mut desired: Desired, at: UnixMillis) -> Result<State, Vec<(String, String)>> {
    let told = |message: String| vec![("operators".to_owned(), message)];
    for nth in ["first", "second"] {
        let pattern =
            ClientPattern::spiffe(&format!("spiffe://policy.test/{nth}")).map_err(|it| told(it.to_string()))?;
        let name = OperatorName::parse(&format!("policy-test-{nth}")).map_err(|it| told(it.to_string()))?;
        let powers = [Power::Administer].into_iter().collect();
        desired.operators.push(Operator { name, clients: vec![pattern], powers, app_groups: Default::default() });
    }
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

fn with_keys(mut state: State, named: Option<&[KeyText]>, at: UnixMillis) -> State {
    let keys: Vec<Key> = match named {
        Some(texts) => texts.iter().enumerate().filter_map(|(nth, text)| key(nth, text, at)).collect(),
        None => {
            let each = |group: &Arc<AppGroup>| Role::ALL.iter().map(|role| team_key(group, *role)).collect::<Vec<_>>();
            let texts: Vec<KeyText> = state.app_groups().values().flat_map(each).collect();
            texts.iter().enumerate().filter_map(|(nth, text)| key(nth, text, at)).collect()
        }
    };
    for key in keys {
        fold(&mut state, Change::KeyImported { key: Box::new(key) }, at);
    }
    state
}

fn team_key(group: &AppGroup, role: Role) -> KeyText {
    KeyText {
        account: group.account.to_string(),
        roles: vec![role.as_str().to_owned()],
        app_groups: vec![group.name.to_string()],
        ..KeyText::default()
    }
}

/// All of it was checked: nothing is `None`.
fn key(nth: usize, text: &KeyText, at: UnixMillis) -> Option<Key> {
    let apps: BTreeSet<AppId> = text.apps.iter().filter_map(|id| AppId::parse(id).ok()).collect();
    let app_access = if apps.is_empty() { AppAccess::All } else { AppAccess::Only(apps) };
    let user = text.user.clone().unwrap_or_else(|| format!("user{nth}"));
    let kind = match text.kind.as_deref() {
        Some("individual") => KeyKind::Individual { user: AppleUser::parse(&user).ok()?, app_access, declared_at: at },
        _ => KeyKind::Team,
    };
    Some(Key {
        id: KeyId::parse(&text.key_id.clone().unwrap_or_else(|| format!("T{nth:09}"))).ok()?,
        account: AccountName::parse(&text.account).ok()?,
        profile: Profile::AppStoreConnect,
        kind,
        roles: text.roles.iter().filter_map(|role| Role::parse(role)).collect(),
        app_groups: text.app_groups.iter().filter_map(|name| AppGroupName::parse(name).ok()).collect(),
        fingerprint: String::new(),
        public_key: String::new(),
        state: KeyState::Active,
        imported: Stamp { by: "policy test".to_owned(), at },
        imported_revision: Revision::default(),
        revoked: None,
        confirmed_at_apple: None,
    })
}

/// All of it was checked: nothing is `None`.
fn request(case: &CaseText, state: &State) -> Option<TokenRequest> {
    let pairs = case.claims.iter().flat_map(|(name, values)| values.iter().map(move |it| (name.as_str(), it.as_str())));
    let certificate = case.certificate.as_ref().and_then(|name| ClientId::parse(name).ok());
    let facts = Facts { certificate, claims: Claims::from_pairs(pairs) };
    let mut scope: Vec<Operation> = case.scope.iter().filter_map(|entry| Operation::parse(entry).ok()).collect();
    scope.sort();
    scope.dedup();
    Some(TokenRequest {
        principal: Principal::imagined(ClientId::parse(&case.client).ok()?, facts, state.issuers()),
        app_group: AppGroupName::parse(&case.app_group).ok()?,
        role: Role::parse(&case.role)?,
        ttl_s: case.ttl,
        scope,
    })
}

fn outcome(case: &CaseText, state: &State, at: UnixMillis) -> Result<Outcome, CliError> {
    let at = case.at.unwrap_or(at);
    let mut state = state.clone();
    for policy in case.open.iter().filter_map(|name| PolicyName::parse(name).ok()) {
        let until = at.seconds().saturating_add(3600);
        fold(&mut state, Change::BreakGlassOpened { policy, until, reason: "a case".to_owned() }, at);
    }
    let unread = || CliError::failed(format!("{}: can't be read", crate::id::shown(&case.name)));
    let request = request(case, &state).ok_or_else(unread)?;
    let expected = match (case.expect.as_str(), &case.policy, &case.reason) {
        ("allow", Some(policy), _) => format!("allow by {policy}"),
        ("deny", _, Some(reason)) => format!("deny for {reason}"),
        (expect, ..) => expect.to_owned(),
    };
    // A token that its issuer is not trusted for never comes as far as a decision.
    let uncovered = |it: &Arc<Vouched>| !it.issuer.covers(&it.subject, &it.claims);
    let decided = if request.principal.vouched.as_ref().is_some_and(uncovered) {
        Err((NOT_COVERED, None))
    } else {
        decide(&request, &state, at).map_err(|denial| (denial.reason.as_str(), denial.policy))
    };
    let (got, ok, policy, reason) = match decided {
        Ok(permit) => {
            let policy = permit.policy().name.to_string();
            let ok = case.expect == "allow" && case.policy.as_ref().is_none_or(|wanted| *wanted == policy);
            (format!("allow by {policy}"), ok, Some(policy), None)
        }
        Err((reason, policy)) => {
            let ok = case.expect == "deny" && case.reason.as_deref().is_none_or(|wanted| wanted == reason);
            (format!("deny for {reason}"), ok, policy.map(|policy| policy.to_string()), Some(reason))
        }
    };
    Ok(Outcome { name: case.name.clone(), expected, got, ok, policy, reason })
}
