//! The records of the control log: everything that can happen to the control plane, one variant each.
//!
//! A record is written once and read for ever, so variants and fields are only ever added, and a reader that meets one
//! it does not know refuses it (`deny_unknown_fields`) rather than skip what may have been a revocation.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::account::Account;
use super::app_group::AppGroup;
use super::ceiling::Ceiling;
use super::issuer::Issuer;
use super::key::Key;
use super::operator::Operator;
use super::policy::Policy;
use super::proposal::Proposal;
use super::state::Snapshot;
use super::target::Target;
use crate::clock::UnixMillis;
use crate::id::{
    AccountName, AppGroupName, CeilingName, Chain, ClientId, DecisionId, Head, IssuerName, KeyId, OperatorName,
    PolicyName, ProposalId, Revision, VaultId, WriterId,
};

/// One record: a change, who made it, and when.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// The position of this record.
    pub revision: Revision,
    /// When it was made, by the clock of the broker that made it.
    pub at: UnixMillis,
    /// Who made it.
    pub actor: Actor,
    /// The writer of the audit row that was committed with this record, and that row's sequence: the row must be there.
    pub audit: AuditPosition,
    /// What happened.
    pub change: Change,
}

/// Who made a change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Actor {
    /// The operator's name; `broker` for the broker itself, `local` for a command on the machine itself.
    pub name: String,
    /// The authenticated name of the operator's certificate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<ClientId>,
}

impl Actor {
    /// The broker itself.
    pub fn broker() -> Self {
        Self { name: "broker".to_owned(), client: None }
    }

    /// Whoever runs a command on the machine itself.
    pub fn local() -> Self {
        Self { name: "local".to_owned(), client: None }
    }
}

/// A place in the audit: the row that one writer wrote as its n-th, counted from 1.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuditPosition {
    /// The writer.
    pub writer: WriterId,
    /// The row.
    pub sequence: u64,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "change", rename_all = "snake_case", deny_unknown_fields)]
pub enum Change {
    /// The vault came to be, with its first operators.
    VaultInitialised {
        /// Its name.
        vault: VaultId,
        /// Its first operators, each with every power.
        operators: Vec<Operator>,
    },
    /// A process started to write audit rows.
    WriterStarted {
        /// Its name as an author of audit rows.
        writer: WriterId,
        /// The broker's version.
        version: String,
        /// The replica's name.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        replica: String,
        /// How far the writers before it had come: rows up to there must exist.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        ends: Vec<AuditPosition>,
    },
    /// A document was applied.
    DocumentApplied {
        /// What is there now, new or changed.
        put: Vec<Object>,
        /// What is no longer there.
        removed: Vec<ObjectName>,
    },
    /// A change of documents was proposed, for another operator to approve.
    ChangeProposed {
        /// What, and on what it rests.
        proposal: Box<Proposal>,
    },
    /// A proposed change was approved, and with that made.
    ProposalApproved {
        /// Which.
        id: ProposalId,
    },
    /// A proposed change was taken back or turned down.
    ProposalClosed {
        /// Which.
        id: ProposalId,
        /// Why.
        reason: String,
    },
    /// A break-glass policy was opened.
    BreakGlassOpened {
        /// Which.
        policy: PolicyName,
        /// When it closes by itself, in Unix seconds.
        until: i64,
        /// Why.
        reason: String,
    },
    /// A break-glass policy was closed before its time.
    BreakGlassClosed {
        /// Which.
        policy: PolicyName,
        /// Why.
        reason: String,
    },
    /// A key was imported.
    KeyImported {
        /// The key.
        key: Box<Key>,
    },
    /// A key was stopped for now.
    KeySuspended {
        /// The key.
        key_id: KeyId,
        /// Why.
        reason: String,
    },
    /// A suspended key signs again.
    KeyResumed {
        /// The key.
        key_id: KeyId,
        /// Why.
        reason: String,
    },
    /// Somebody saw that a revoked key is revoked at Apple too.
    KeyConfirmedAtApple {
        /// The key.
        key_id: KeyId,
    },
    /// Something was revoked.
    Revoked {
        /// What.
        target: Target,
        /// Why.
        reason: String,
        /// When a revoked token dies, in Unix seconds: from then on its revocation is no longer kept in the state.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        dies_at: Option<i64>,
    },
    /// A revocation was lifted. Tokens issued before it stay revoked.
    Reinstated {
        /// What.
        target: Target,
        /// Why.
        reason: String,
    },
    /// The vault was sealed, until somebody with the power lifts it.
    VaultSealed {
        /// Why.
        reason: String,
    },
    /// The seal was lifted.
    VaultUnsealed,
    /// The unseal key was replaced.
    UnsealKeyReplaced {
        /// The generation of unseal keys from now on.
        generation: u32,
    },
    /// A root key version was added, and every key resealed with it.
    RootKeyRotated {
        /// The version that seals from now on.
        version: u32,
    },
    /// Audit rows were cleared for removal.
    AuditPruned {
        /// Up to where, for each writer.
        upto: Vec<PrunedRows>,
    },
    /// An operator accepted a database that had lost what came after a revision.
    HistoryAccepted {
        /// Names this acceptance.
        id: DecisionId,
        /// The newest head that was seen of what is lost.
        seen: Head,
        /// The newest revision that the database had.
        database: Revision,
        /// Why.
        reason: String,
    },
    /// The canary's key was stopped, to see that every replica refuses it.
    CanarySuspended,
    /// The canary's key may sign again.
    CanaryResumed,
    /// The whole state, so that a start need not read what came before.
    Checkpoint {
        /// The state before this record.
        state: Box<Snapshot>,
    },
}

impl Change {
    /// The name of the change in audit rows and logs: what it is called in [`Change`], in SCREAMING_SNAKE.
    pub fn event(&self) -> &'static str {
        match self {
            Self::VaultInitialised { .. } => "VAULT_INITIALISED",
            Self::WriterStarted { .. } => "WRITER_STARTED",
            Self::DocumentApplied { .. } => "DOCUMENT_APPLIED",
            Self::ChangeProposed { .. } => "CHANGE_PROPOSED",
            Self::ProposalApproved { .. } => "PROPOSAL_APPROVED",
            Self::ProposalClosed { .. } => "PROPOSAL_CLOSED",
            Self::BreakGlassOpened { .. } => "BREAK_GLASS_OPENED",
            Self::BreakGlassClosed { .. } => "BREAK_GLASS_CLOSED",
            Self::KeyImported { .. } => "KEY_IMPORTED",
            Self::KeySuspended { .. } => "KEY_SUSPENDED",
            Self::CanarySuspended => "CANARY_SUSPENDED",
            Self::CanaryResumed => "CANARY_RESUMED",
            Self::KeyResumed { .. } => "KEY_RESUMED",
            Self::KeyConfirmedAtApple { .. } => "KEY_CONFIRMED_AT_APPLE",
            Self::Revoked { .. } => "REVOKED",
            Self::Reinstated { .. } => "REINSTATED",
            Self::VaultSealed { .. } => "VAULT_SEALED",
            Self::VaultUnsealed => "VAULT_UNSEALED",
            Self::UnsealKeyReplaced { .. } => "UNSEAL_KEY_REPLACED",
            Self::RootKeyRotated { .. } => "ROOT_KEY_ROTATED",
            Self::AuditPruned { .. } => "AUDIT_PRUNED",
            Self::HistoryAccepted { .. } => "HISTORY_ACCEPTED",
            Self::Checkpoint { .. } => "CHECKPOINT",
        }
    }

    /// What the audit row of this change says beside its name: the key it is about, and a sentence.
    pub fn summary(&self) -> (Option<&KeyId>, String) {
        match self {
            Self::VaultInitialised { vault, operators } => {
                (None, format!("vault {vault}, {} operators", operators.len()))
            }
            Self::WriterStarted { writer, version, replica, .. } => {
                (None, format!("writer {writer}, version {version}, replica {replica}"))
            }
            Self::DocumentApplied { put, removed } => (None, listed(put, removed)),
            Self::ChangeProposed { proposal } => {
                (None, format!("proposal {}: {}", proposal.id, listed(&proposal.put, &proposal.removed)))
            }
            Self::ProposalApproved { id } => (None, format!("proposal {id}")),
            Self::ProposalClosed { id, reason } => (None, format!("proposal {id}: {reason}")),
            Self::BreakGlassOpened { policy, until, reason } => {
                (None, format!("policy {policy} until {}: {reason}", UnixMillis::from_seconds(*until)))
            }
            Self::BreakGlassClosed { policy, reason } => (None, format!("policy {policy}: {reason}")),
            Self::KeyImported { key } => (Some(&key.id), format!("account {}, roles {}", key.account, key.roles)),
            Self::KeySuspended { key_id, reason } | Self::KeyResumed { key_id, reason } => {
                (Some(key_id), reason.clone())
            }
            Self::KeyConfirmedAtApple { key_id } => (Some(key_id), String::new()),
            Self::Revoked { target, reason, .. } | Self::Reinstated { target, reason } => {
                let key = if let Target::Key(id) = target { Some(id) } else { None };
                (key, format!("{target}: {reason}"))
            }
            Self::VaultSealed { reason } => (None, reason.clone()),
            Self::VaultUnsealed => (None, String::new()),
            Self::UnsealKeyReplaced { generation } => (None, format!("generation {generation}")),
            Self::RootKeyRotated { version } => (None, format!("version {version}")),
            Self::AuditPruned { upto } => (None, format!("{} writers", upto.len())),
            Self::HistoryAccepted { seen, database, reason, .. } => {
                (None, format!("seen was revision {}, the database ended at {database}: {reason}", seen.revision))
            }
            Self::CanarySuspended | Self::CanaryResumed | Self::Checkpoint { .. } => (None, String::new()),
        }
    }
}

fn listed(put: &[Object], removed: &[ObjectName]) -> String {
    let put = put.iter().map(|object| format!("put {}", object.name()));
    let removed = removed.iter().map(|name| format!("remove {name}"));
    put.chain(removed).collect::<Vec<_>>().join(", ")
}

/// One thing that documents describe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", content = "object", rename_all = "snake_case")]
pub enum Object {
    /// An account.
    Account(Account),
    /// An app group.
    AppGroup(AppGroup),
    /// A policy.
    Policy(Arc<Policy>),
    /// An operator.
    Operator(Operator),
    /// A trusted issuer.
    Issuer(Arc<Issuer>),
    /// A ceiling.
    Ceiling(Arc<Ceiling>),
}

impl Object {
    /// Its kind and name.
    pub fn name(&self) -> ObjectName {
        match self {
            Self::Account(account) => ObjectName::Account(account.name.clone()),
            Self::AppGroup(group) => ObjectName::AppGroup(group.name.clone()),
            Self::Policy(policy) => ObjectName::Policy(policy.name.clone()),
            Self::Operator(operator) => ObjectName::Operator(operator.name.clone()),
            Self::Issuer(issuer) => ObjectName::Issuer(issuer.name.clone()),
            Self::Ceiling(ceiling) => ObjectName::Ceiling(ceiling.name.clone()),
        }
    }
}

impl Object {
    /// The operator, where it is one.
    pub fn as_operator(&self) -> Option<&Operator> {
        if let Self::Operator(operator) = self { Some(operator) } else { None }
    }

    /// The trusted issuer, where it is one.
    pub fn as_issuer(&self) -> Option<&Issuer> {
        if let Self::Issuer(issuer) = self { Some(issuer) } else { None }
    }

    /// The ceiling, where it is one.
    pub fn as_ceiling(&self) -> Option<&Ceiling> {
        if let Self::Ceiling(ceiling) = self { Some(ceiling) } else { None }
    }
}

/// The kind and name of a thing that documents describe.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(tag = "kind", content = "name", rename_all = "snake_case")]
pub enum ObjectName {
    /// An account.
    Account(AccountName),
    /// An app group.
    AppGroup(AppGroupName),
    /// A policy.
    Policy(PolicyName),
    /// An operator.
    Operator(OperatorName),
    /// A trusted issuer.
    Issuer(IssuerName),
    /// A ceiling.
    Ceiling(CeilingName),
}

impl ObjectName {
    /// The kind, as documents spell it in the singular, and the name.
    pub fn parts(&self) -> (&'static str, &str) {
        match self {
            Self::Account(name) => ("account", name.as_str()),
            Self::AppGroup(name) => ("app_group", name.as_str()),
            Self::Policy(name) => ("policy", name.as_str()),
            Self::Operator(name) => ("operator", name.as_str()),
            Self::Issuer(name) => ("issuer", name.as_str()),
            Self::Ceiling(name) => ("ceiling", name.as_str()),
        }
    }
}

impl std::fmt::Display for ObjectName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (kind, name) = self.parts();
        write!(f, "{kind} {name}")
    }
}

/// The last audit row of one writer that was cleared for removal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PrunedRows {
    /// The writer.
    pub writer: WriterId,
    /// The last removed row.
    pub sequence: u64,
    /// The chain value there: where the remaining rows go on.
    pub chain: Chain,
}
