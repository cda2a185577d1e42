//! What is written down: one event for each decision and each change. Holds no secret by type.

use serde::{Deserialize, Serialize};

use crate::clock::UnixMillis;
use crate::id::{Chain, Revision, TokenId, WriterId};

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Outcome {
    /// A token was signed and handed out.
    Signed,
    /// A token signed before was handed out again.
    Reused,
    /// A change was made.
    Changed,
    /// Something was read that is worth a row.
    Read,
    /// It was refused.
    Denied,
}

impl Outcome {
    /// Every outcome.
    pub const ALL: &[Self] = &[Self::Signed, Self::Reused, Self::Changed, Self::Read, Self::Denied];

    /// The spelling in rows, metrics and answers.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Signed => "SIGNED",
            Self::Reused => "REUSED",
            Self::Changed => "CHANGED",
            Self::Read => "READ",
            Self::Denied => "DENIED",
        }
    }

    /// Takes that spelling.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|outcome| outcome.as_str() == text)
    }
}

/// What happened, before a writer gave it a place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditEvent {
    /// When.
    pub at: UnixMillis,
    /// What was tried: an RPC's name, or the name of a change.
    pub event: String,
    /// How it ended.
    pub outcome: Outcome,
    /// Why it was refused, as a stable constant; `OK` otherwise.
    pub reason: String,
    /// The decision id told to the caller.
    pub decision_id: String,
    /// The caller's authenticated name, or the operator's.
    pub caller: String,
    /// The facts that the name rests on, such as the certificate's digest.
    pub identity: String,
    /// What was asked, or what the change says; in words.
    pub detail: String,
    /// The policy that decided.
    pub policy: Option<String>,
    /// The key.
    pub key_id: Option<String>,
    /// The app group.
    pub app_group: Option<String>,
    /// The role.
    pub role: Option<String>,
    /// The scope, entries joined by a line break.
    pub scope: Option<String>,
    /// The token.
    pub token: Option<AuditedToken>,
    /// The revision it was decided at.
    pub revision: Revision,
}

/// The token of an audit row. The token itself is stored nowhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditedToken {
    /// Its name.
    pub id: TokenId,
    /// When it was signed, in Unix seconds (not the backdated `iat`).
    pub issued_at: i64,
    /// Its `exp`, in Unix seconds.
    pub expires_at: i64,
}

/// An event with its place in its writer's chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditRow {
    /// Who wrote it.
    pub writer: WriterId,
    /// Its place, counted from 1.
    pub sequence: u64,
    /// The version of the root key that its chain value was made with.
    pub key_version: u32,
    /// What happened.
    pub event: AuditEvent,
    /// HMAC over the row before and this one.
    pub chain: Chain,
}

impl AuditRow {
    /// The bytes that the chain runs over: every column, each with its length, so that no two rows read alike.
    pub fn canonical(&self) -> Vec<u8> {
        let event = &self.event;
        let mut out = Vec::with_capacity(512);
        let mut text = |value: Option<&str>| match value {
            // An absent value and an empty one differ: lengths are shifted by one, and 0 is "absent".
            None => out.extend_from_slice(&0_u64.to_be_bytes()),
            Some(value) => {
                out.extend_from_slice(&(value.len() as u64).saturating_add(1).to_be_bytes());
                out.extend_from_slice(value.as_bytes());
            }
        };
        for value in [
            self.writer.as_str(),
            &event.event,
            event.outcome.as_str(),
            &event.reason,
            &event.decision_id,
            &event.caller,
            &event.identity,
            &event.detail,
        ] {
            text(Some(value));
        }
        for value in [&event.policy, &event.key_id, &event.app_group, &event.role, &event.scope] {
            text(value.as_deref());
        }
        text(event.token.as_ref().map(|token| token.id.as_str()));
        let times = event.token.as_ref().map_or([0, 0], |token| [token.issued_at, token.expires_at]);
        out.extend_from_slice(&self.sequence.to_be_bytes());
        out.extend_from_slice(&self.key_version.to_be_bytes());
        out.extend_from_slice(&event.at.0.to_be_bytes());
        out.extend_from_slice(&event.revision.0.to_be_bytes());
        for time in times {
            out.extend_from_slice(&time.to_be_bytes());
        }
        out
    }
}

/// Which rows are asked for: all that are set must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AuditFilter {
    /// At or after this moment.
    pub from: Option<UnixMillis>,
    /// Before this moment.
    pub until: Option<UnixMillis>,
    /// By this caller.
    pub caller: Option<String>,
    /// With this key.
    pub key_id: Option<String>,
    /// Under this policy.
    pub policy: Option<String>,
    /// With this outcome.
    pub outcome: Option<Outcome>,
    /// Of this decision.
    pub decision_id: Option<String>,
}

impl AuditFilter {
    /// Whether a row is asked for.
    pub fn matches(&self, event: &AuditEvent) -> bool {
        let same = |wanted: &Option<String>, found: Option<&str>| wanted.is_none() || wanted.as_deref() == found;
        self.from.is_none_or(|from| event.at >= from)
            && self.until.is_none_or(|until| event.at < until)
            && self.outcome.is_none_or(|outcome| event.outcome == outcome)
            && same(&self.caller, Some(&event.caller))
            && same(&self.key_id, event.key_id.as_deref())
            && same(&self.policy, event.policy.as_deref())
            && same(&self.decision_id, Some(&event.decision_id))
    }
}

/// One token that is still alive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LiveToken {
    /// Its name.
    pub id: TokenId,
    /// Who got it.
    pub client: String,
    /// Under which policy.
    pub policy: String,
    /// With which key.
    pub key_id: String,
    /// For which app group.
    pub app_group: String,
    /// By which certificate beside a bearer token; empty for none.
    pub certificate: String,
    /// When it was signed, in Unix seconds.
    pub issued_at: i64,
    /// When it dies, in Unix seconds.
    pub expires_at: i64,
    /// The revision at which it was first committed.
    pub revision: Revision,
}
