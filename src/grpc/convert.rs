//! Between messages and the domain. What comes in is parsed with all its violations; what goes out is only renamed.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use prost_types::{Duration, Timestamp};
use tonic::Status;

use super::proto;
use super::status::invalid;
use crate::clock::UnixMillis;
use crate::domain::claims::{Claims, MOST_BYTES, MOST_CLAIMS, MOST_VALUES};
use crate::domain::document::Violation;
use crate::domain::enforcement::{EnforcedBy, Enforcement};
use crate::domain::key::{AppAccess, Key, KeyKind, KeyState, Stamp};
use crate::domain::plan::{Action, Step};
use crate::domain::role::{Role, RoleSet};
use crate::domain::target::Target;
use crate::id::{IdError, is_deceptive, shown};

/// Longest reason, in characters.
const MOST_REASON: usize = 500;

/// Gathers violations of one request.
#[derive(Default)]
pub(super) struct Fields(Vec<Violation>);

impl Fields {
    pub(super) fn refuse<T>(&mut self, path: &str, message: impl Into<String>) -> Option<T> {
        self.0.push(Violation { path: path.to_owned(), message: message.into() });
        None
    }

    pub(super) fn id<T>(&mut self, path: &str, parsed: Result<T, IdError>) -> Option<T> {
        parsed.map_err(|error| self.refuse::<()>(path, error.to_string())).ok()
    }

    pub(super) fn role(&mut self, path: &str, number: i32) -> Option<Role> {
        let role = proto::Role::try_from(number).ok().and_then(role_in);
        role.or_else(|| self.refuse(path, format!("{number} is not a role; see Role in common.proto")))
    }

    pub(super) fn roles(&mut self, path: &str, numbers: &[i32]) -> Option<RoleSet> {
        if numbers.is_empty() {
            return self.refuse(path, "is empty: name at least one role");
        }
        let each = numbers.iter().enumerate().map(|(at, number)| self.role(&format!("{path}[{at}]"), *number));
        each.collect::<Vec<_>>().into_iter().collect()
    }

    /// What an issuer says of a caller that is imagined, within the bounds of what is read of a token.
    pub(super) fn claims(&mut self, path: &str, given: &HashMap<String, proto::ClaimValues>) -> Option<Claims> {
        if given.len() > MOST_CLAIMS {
            return self.refuse(path, format!("has more than {MOST_CLAIMS} claims"));
        }
        let fits = |text: &String| (1..=MOST_BYTES).contains(&text.len());
        let given: BTreeMap<_, _> = given.iter().map(|(name, it)| (name, it.values.as_slice())).collect();
        let wrong = given.iter().filter(|(name, values)| {
            !fits(name) || values.is_empty() || values.len() > MOST_VALUES || !values.iter().all(fits)
        });
        let message =
            format!("is not what is read of a token: 1 to {MOST_VALUES} values, of 1 to {MOST_BYTES} bytes each");
        let wrong: Vec<_> =
            wrong.map(|(name, _)| self.refuse::<()>(&format!("{path}.{}", shown(name)), &message)).collect();
        let pairs = given.iter().flat_map(|(name, values)| values.iter().map(|value| (name.as_str(), value.as_str())));
        wrong.is_empty().then(|| Claims::from_pairs(pairs))
    }

    pub(super) fn reason(&mut self, text: &str) -> Option<String> {
        let text = text.trim();
        if text.is_empty() {
            return self.refuse("reason", "is empty: say why, for whoever reads the audit");
        }
        // Somebody else reads it before they approve: what they see must be what it says.
        if text.chars().count() > MOST_REASON || text.chars().any(|c| c.is_control() || is_deceptive(c)) {
            let what = "control characters, or characters that show as nothing or turn the line around";
            return self.refuse("reason", format!("has more than {MOST_REASON} characters, or {what}"));
        }
        Some(text.to_owned())
    }

    pub(super) fn target(&mut self, target: Option<&proto::Target>) -> Option<Target> {
        let Some(target) = target else { return self.refuse("target", "is missing: name a kind and a name") };
        let kind = match target.kind() {
            proto::TargetKind::Unspecified => {
                return self
                    .refuse("target.kind", format!("{} is not a kind; see TargetKind in common.proto", target.kind));
            }
            proto::TargetKind::Key => "key",
            proto::TargetKind::Client => "client",
            proto::TargetKind::Policy => "policy",
            proto::TargetKind::AppGroup => "app-group",
            proto::TargetKind::Token => "token",
            proto::TargetKind::Account => "account",
            proto::TargetKind::Issuer => "issuer",
        };
        Target::parse(kind, &target.name).and_then(|parsed| self.id("target.name", parsed))
    }

    /// Whole seconds of a duration.
    pub(super) fn seconds(&mut self, path: &str, duration: &Duration) -> Option<i64> {
        if duration.nanos != 0 {
            return self.refuse(path, "must be whole seconds");
        }
        Some(duration.seconds)
    }

    pub(super) fn page(&mut self, page_size: i32) -> Option<u32> {
        match page_size {
            0 => Some(100),
            1..=1000 => u32::try_from(page_size).ok(),
            _ => self.refuse("page_size", "must lie between 0 and 1000; 0 is 100"),
        }
    }

    pub(super) fn app_access(&mut self, access: Option<&proto::AppAccess>) -> Option<AppAccess> {
        match access {
            Some(proto::AppAccess { all: true, app_ids }) if app_ids.is_empty() => Some(AppAccess::All),
            Some(proto::AppAccess { all: false, app_ids }) if !app_ids.is_empty() && app_ids.len() <= 1000 => {
                let parse = |(at, id): (usize, &String)| {
                    self.id(&format!("app_access.app_ids[{at}]"), crate::id::AppId::parse(id))
                };
                let ids: Vec<_> = app_ids.iter().enumerate().map(parse).collect();
                ids.into_iter().collect::<Option<BTreeSet<_>>>().map(AppAccess::Only)
            }
            _ => self.refuse(
                "app_access",
                "an individual key needs either `all` or 1 to 1000 app ids, as its user has them at Apple",
            ),
        }
    }

    /// All parts, or all violations.
    pub(super) fn finish<T>(self, parts: Option<T>) -> Result<T, Status> {
        match parts {
            Some(parts) if self.0.is_empty() => Ok(parts),
            _ => Err(invalid(&self.0)),
        }
    }
}

pub(super) fn target_kind_out(target: &Target) -> proto::TargetKind {
    match target {
        Target::Key(_) => proto::TargetKind::Key,
        Target::Client(_) => proto::TargetKind::Client,
        Target::Policy(_) => proto::TargetKind::Policy,
        Target::AppGroup(_) => proto::TargetKind::AppGroup,
        Target::Token(_) => proto::TargetKind::Token,
        Target::Account(_) => proto::TargetKind::Account,
        Target::Issuer(_) => proto::TargetKind::Issuer,
    }
}

pub(super) fn target_out(target: &Target) -> proto::Target {
    proto::Target { kind: target_kind_out(target).into(), name: target.name().to_owned() }
}

pub(super) fn seconds_out(seconds: i64) -> Duration {
    Duration { seconds, nanos: 0 }
}

pub(super) fn time_out(seconds: i64) -> Timestamp {
    Timestamp { seconds, nanos: 0 }
}

pub(super) fn millis_out(at: UnixMillis) -> Timestamp {
    let nanos = i32::try_from(at.0.rem_euclid(1000)).unwrap_or_default().saturating_mul(1_000_000);
    Timestamp { seconds: at.seconds(), nanos }
}

pub(super) fn millis_in(at: &Timestamp) -> UnixMillis {
    UnixMillis(at.seconds.saturating_mul(1000).saturating_add(i64::from(at.nanos.div_euclid(1_000_000))))
}

pub(super) fn role_in(role: proto::Role) -> Option<Role> {
    Role::parse(role.as_str_name().strip_prefix("ROLE_")?)
}

pub(super) fn role_out(role: Role) -> i32 {
    proto::Role::from_str_name(&format!("ROLE_{role}")).unwrap_or_default().into()
}

fn roles_out(roles: RoleSet) -> Vec<i32> {
    roles.iter().map(role_out).collect()
}

pub(super) fn enforcement_out(entry: Enforcement) -> proto::Enforcement {
    let by = match entry.by {
        EnforcedBy::AppleKeyRole => proto::EnforcedBy::AppleKeyRole,
        EnforcedBy::AppleScope => proto::EnforcedBy::AppleScope,
        EnforcedBy::AppleIndividualAccess => proto::EnforcedBy::AppleIndividualAccess,
        EnforcedBy::BrokerAtIssue => proto::EnforcedBy::BrokerAtIssue,
        EnforcedBy::Nobody => proto::EnforcedBy::Nobody,
    };
    proto::Enforcement { limit: entry.limit.to_owned(), enforced_by: by.into(), explanation: entry.explanation }
}

pub(super) fn stamp_out(stamp: &Stamp) -> proto::Stamp {
    proto::Stamp { by: stamp.by.clone(), at: Some(millis_out(stamp.at)) }
}

pub(super) fn key_out(key: &Key) -> proto::Key {
    let state = match key.state {
        KeyState::Active => proto::KeyState::Active,
        KeyState::Suspended => proto::KeyState::Suspended,
        KeyState::Revoked => proto::KeyState::Revoked,
    };
    let (kind, user, app_access, declared_at) = match &key.kind {
        KeyKind::Team => (proto::KeyKind::Team, String::new(), None, None),
        KeyKind::Individual { user, app_access, declared_at } => {
            let access = match app_access {
                AppAccess::All => proto::AppAccess { all: true, app_ids: Vec::new() },
                AppAccess::Only(ids) => {
                    proto::AppAccess { all: false, app_ids: ids.iter().map(ToString::to_string).collect() }
                }
            };
            (proto::KeyKind::Individual, user.to_string(), Some(access), Some(millis_out(*declared_at)))
        }
    };
    proto::Key {
        key_id: key.id.to_string(),
        account: key.account.to_string(),
        kind: kind.into(),
        user,
        app_access,
        app_access_declared_at: declared_at,
        roles: roles_out(key.roles),
        app_groups: key.app_groups.iter().map(ToString::to_string).collect(),
        state: state.into(),
        public_key_fingerprint: key.fingerprint.clone(),
        imported: Some(stamp_out(&key.imported)),
        revoked: key.revoked.as_ref().map(stamp_out),
        confirmed_at_apple: key.confirmed_at_apple.as_ref().map(stamp_out),
    }
}

pub(super) fn step_out(step: Step) -> proto::PlanStep {
    let action = match step.action {
        Action::Create => proto::Action::Create,
        Action::Update => proto::Action::Update,
        Action::Remove => proto::Action::Remove,
        Action::Keep => proto::Action::Keep,
    };
    let (kind, name) = step.object.parts();
    proto::PlanStep {
        action: action.into(),
        kind: kind.to_owned(),
        name: name.to_owned(),
        changes: step.changes,
        note: step.note.unwrap_or_default(),
        means: step.means,
        enforced_by: step.enforced_by.into_iter().map(enforcement_out).collect(),
        approval_by_ceiling: step.approval.map(|name| name.to_string()).unwrap_or_default(),
    }
}

/// One page of things that are listed by name: those after the token, and the token of the next page.
pub(super) fn page_of<'a, T: 'a>(
    all: impl Iterator<Item = (&'a str, &'a T)>,
    size: u32,
    token: &str,
) -> Result<(Vec<&'a T>, String), Status> {
    let after = if token.is_empty() { String::new() } else { page_token_in(token)? };
    let mut rest = all.skip_while(|(name, _)| !after.is_empty() && *name <= after.as_str());
    let page: Vec<(&str, &T)> = rest.by_ref().take(size as usize).collect();
    let next = match (rest.next(), page.last()) {
        (Some(_), Some((name, _))) => page_token_out(name),
        _ => String::new(),
    };
    Ok((page.into_iter().map(|(_, item)| item).collect(), next))
}

/// A page token: opaque to clients, so that its meaning may change.
pub(super) fn page_token_out(text: &str) -> String {
    data_encoding::BASE64URL_NOPAD.encode(text.as_bytes())
}

pub(super) fn page_token_in(token: &str) -> Result<String, Status> {
    let bytes = data_encoding::BASE64URL_NOPAD.decode(token.as_bytes()).ok();
    bytes.and_then(|bytes| String::from_utf8(bytes).ok()).ok_or_else(|| bad_page_token(token))
}

pub(super) fn bad_page_token(token: &str) -> Status {
    let message = format!("`{}` is not a token from an earlier answer", shown(token));
    invalid(&[Violation { path: "page_token".to_owned(), message }])
}
