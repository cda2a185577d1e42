//! Everything that can go wrong in a use case, each with one stable reason.

use super::Refusal;
use crate::domain::decide::{Denial, DenyReason};
use crate::domain::document::Violation;
use crate::domain::operator::Power;
use crate::domain::quota::Bound;
use crate::id::{CeilingName, DecisionId, KeyId, PolicyName, Revision};
use crate::store::StoreError;
use crate::vault::p8::P8Error;
use crate::vault::unseal::{ShareError, SplitError};

/// Why a use case did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    /// There is no vault yet.
    #[error("there is no vault yet; run `p8broker operator init`")]
    NotInitialised,
    /// There is a vault already.
    #[error("the vault is initialised already; nothing was changed")]
    AlreadyInitialised,
    /// The vault is sealed.
    #[error("the vault is sealed; an operator must unseal it (`p8broker operator status` says why)")]
    Sealed {
        /// Why, and what to do.
        why: String,
    },
    /// The database is not what this broker wrote.
    #[error("the broker refuses to serve, as its database is not what it wrote (`p8broker operator status` says more)")]
    Refusing(Refusal),
    /// Policy refused a token.
    #[error("{}", .denial.reason.safe_message())]
    Denied {
        /// Why.
        denial: Denial,
        /// What an operator can look up.
        decision_id: DecisionId,
    },
    /// The policy's quota for this client is used up.
    #[error("this client has had all the {bound} that its policy grants; try again in {retry_after_s} s")]
    QuotaExceeded {
        /// Which bound is reached.
        bound: Bound,
        /// In how many seconds its window is over.
        retry_after_s: u64,
        /// What an operator can look up.
        decision_id: DecisionId,
    },
    /// More tokens are asked for than this broker signs in a second, for all callers together.
    #[error("the broker is signing as many tokens a second as it may (limits.signatures_per_second); wait a second")]
    SigningLimited,
    /// The caller lacks the power.
    #[error("this takes an operator with the power `{}`", .0.as_str())]
    LacksPower(Power),
    /// The caller's power is confined to other app groups.
    #[error("this operator may not author policies for the app group `{0}`")]
    OutsideAppGroup(String),
    /// Fields of the request are wrong; all of them.
    #[error("{} of the request can't be accepted", count(.0.len()))]
    Invalid(Vec<Violation>),
    /// Policies of the document have limits that nobody enforces.
    #[error("{} of policies nobody enforces; nothing was changed", limits(.0.len()))]
    Advisory(Vec<Violation>),
    /// What a plan rests on has moved since.
    #[error("the vault has moved since revision {planned_on}; nothing was changed. Look at a new plan. What came between: {}", joined(.moved))]
    PlanStale {
        /// The revision that was planned on.
        planned_on: Revision,
        /// What moved, oldest first.
        moved: Vec<String>,
    },
    /// A ceiling asks for a second operator.
    #[error(
        "the ceiling `{0}` asks for two operators; nothing was changed. Propose the change (`p8broker apply --propose`), for another operator to approve"
    )]
    ApprovalRequired(CeilingName),
    /// Somebody wants to approve what they proposed.
    #[error("whoever proposed a change can't approve it; ask another operator")]
    OwnProposal,
    /// Too many proposals wait.
    #[error("{0} proposals wait already; approve or close some of them first")]
    TooManyProposals(usize),
    /// The policy is not one that is opened.
    #[error(
        "the policy `{0}` is not a break-glass policy: it has no `break_glass: true`, and grants without being opened"
    )]
    NotBreakGlass(PolicyName),
    /// The audit has no such decision.
    #[error(
        "the audit has no decision `{0}`: refusals of one caller beyond ten a second share one summary row, and rows that were pruned are gone"
    )]
    UnknownDecision(DecisionId),
    /// There is nothing of this name.
    #[error("there is no {kind} `{name}`")]
    NotFound {
        /// What was asked for.
        kind: &'static str,
        /// Under which name.
        name: String,
    },
    /// The key can't be read as a `.p8`.
    #[error("{0}")]
    BadP8(P8Error),
    /// The Key ID was imported before.
    #[error("key `{id}` was imported before (it is {state}); a Key ID is imported once and never again")]
    KeyExists {
        /// Apple's name for it.
        id: KeyId,
        /// Its state.
        state: String,
    },
    /// The same key is there under another name.
    #[error("this key material is already in the vault as key `{id}`; check the Key ID")]
    SameMaterial {
        /// The name it is known by.
        id: KeyId,
    },
    /// Apple allows no more keys.
    #[error(
        "account `{account}` has {count} team keys that Apple may still count, and Apple allows {}; revoke one at Apple, then run `p8broker key confirm-revoked-at-apple`",
        crate::domain::apple::MOST_KEYS_PER_ACCOUNT
    )]
    TooManyKeys {
        /// The account.
        account: String,
        /// How many there are.
        count: usize,
    },
    /// The user has an individual key.
    #[error("user `{user}` has the individual key `{id}`, and Apple allows one at a time; revoke it first")]
    UserHasKey {
        /// The user.
        user: String,
        /// The key.
        id: KeyId,
    },
    /// The key is in a state in which this can't be done.
    #[error("key `{id}` is {state}: {why}")]
    KeyState {
        /// The key.
        id: KeyId,
        /// Its state.
        state: String,
        /// Why that is in the way.
        why: &'static str,
    },
    /// The caller is not whom this state knows by its name, such as a revoked client.
    #[error("{}", .0.safe_message())]
    Refused(DenyReason),
    /// A key is never reinstated.
    #[error("a revoked key is never reinstated; import a new one")]
    KeyIsGone,
    /// A token is never reinstated.
    #[error("a revoked token stays revoked; reinstate what it was issued under, or ask for a new one")]
    TokenStaysRevoked,
    /// Nothing is missing that somebody could accept.
    #[error("no history is missing on this replica; nothing was accepted")]
    HistoryUnchanged,
    /// What is missing is something else than what was named.
    #[error(
        "the database ends at revision {database} and revision {seen} was seen; accept these, after a look at both"
    )]
    HistoryMoved {
        /// What the database has.
        database: Revision,
        /// What was seen.
        seen: Revision,
    },
    /// One client watches too often.
    #[error("this client has {0} watches open already; close some")]
    TooManyWatches(usize),
    /// What was handed in is no token.
    #[error("{0}")]
    NotAToken(&'static str),
    /// The key that a token names did not sign it.
    #[error("key {0} did not sign this: it was changed or made up")]
    SignatureWrong(KeyId),
    /// Nobody could lift the seal.
    #[error(
        "no operator with the power `unseal` has a certificate's name and is not revoked, and tokens are not taken while the \
         vault is sealed: nobody could lift the seal; give the power to such an operator first"
    )]
    NobodyCouldUnseal,
    /// Nobody could administer any more.
    #[error(
        "`{0}` is the last administrator that is not revoked: nobody could ever reinstate it; make another one first"
    )]
    LastAdministrator(String),
    /// The caller is no operator.
    #[error("this takes an operator; this client is none")]
    NotAnOperator,
    /// The audit is damaged.
    #[error("the audit is not whole ({0} findings), so nothing is removed from it; run `p8broker audit verify`")]
    AuditNotWhole(usize),
    /// What is to be backed up is not as it was written, or was pruned meanwhile.
    #[error("the backup was given up: {0}; run it again, and `p8broker audit verify` where that says the same")]
    BackupGivenUp(String),
    /// The revocation to lift does not stand.
    #[error("`{0}` is not revoked")]
    NotRevoked(String),
    /// A share was not taken.
    #[error("{error}; {given} of {threshold} shares are given")]
    Share {
        /// What is wrong with it.
        error: ShareError,
        /// How many were taken so far.
        given: u32,
        /// How many it takes.
        threshold: u32,
    },
    /// The numbers of shares make no sense.
    #[error(transparent)]
    Split(SplitError),
    /// The key file does not fit, or can't be read.
    #[error("{0}")]
    KeyFile(String),
    /// The vault is unsealed in another way.
    #[error("{0}")]
    WrongMethod(&'static str),
    /// No rekey waits for confirmation.
    #[error("no rekey waits for confirmation on this replica; start with `p8broker operator rekey`")]
    NoRekey,
    /// The control plane moved too often.
    #[error("the control plane is changing too fast; try again")]
    Contended,
    /// The database is away.
    #[error("the broker can't write down what it does, so it does nothing; try again")]
    Unavailable(#[source] StoreError),
    /// A mistake of ours.
    #[error("internal error; the broker's log has the details")]
    Internal(String),
}

impl BrokerError {
    /// The stable constant: `ErrorInfo.reason`, metrics label and audit column.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NotInitialised => "NOT_INITIALISED",
            Self::AlreadyInitialised => "ALREADY_INITIALISED",
            Self::Sealed { .. } => "SEALED",
            Self::Refusing(_) => "REFUSING_TO_SERVE",
            Self::Denied { denial, .. } => denial.reason.as_str(),
            Self::QuotaExceeded { .. } => "QUOTA_EXCEEDED",
            Self::SigningLimited => "RATE_LIMITED",
            Self::LacksPower(_) => "POWER_MISSING",
            Self::OutsideAppGroup(_) => "OUTSIDE_APP_GROUP",
            Self::Invalid(_) => "INVALID_ARGUMENT",
            Self::Advisory(_) => "ADVISORY_LIMITS",
            Self::PlanStale { .. } => "PLAN_STALE",
            Self::ApprovalRequired(_) => "APPROVAL_REQUIRED",
            Self::OwnProposal => "OWN_PROPOSAL",
            Self::TooManyProposals(_) => "TOO_MANY_PROPOSALS",
            Self::NotBreakGlass(_) => "NOT_BREAK_GLASS",
            Self::NotFound { .. } | Self::UnknownDecision(_) => "NOT_FOUND",
            Self::BadP8(_) => "BAD_P8",
            Self::KeyExists { .. } => "KEY_EXISTS",
            Self::SameMaterial { .. } => "KEY_MATERIAL_EXISTS",
            Self::TooManyKeys { .. } => "TOO_MANY_KEYS",
            Self::UserHasKey { .. } => "USER_HAS_KEY",
            Self::KeyState { .. } => "KEY_STATE",
            Self::Refused(reason) => reason.as_str(),
            Self::KeyIsGone => "KEY_IS_GONE",
            Self::TokenStaysRevoked => "TOKEN_STAYS_REVOKED",
            Self::HistoryUnchanged => "HISTORY_UNCHANGED",
            Self::HistoryMoved { .. } => "HISTORY_MOVED",
            Self::TooManyWatches(_) => "TOO_MANY_WATCHES",
            Self::NotAToken(_) => "NOT_A_TOKEN",
            Self::SignatureWrong(_) => "SIGNATURE_WRONG",
            Self::NobodyCouldUnseal => "NOBODY_COULD_UNSEAL",
            Self::LastAdministrator(_) => "LAST_ADMINISTRATOR",
            Self::NotAnOperator => "NOT_AN_OPERATOR",
            Self::AuditNotWhole(_) => "AUDIT_NOT_WHOLE",
            Self::BackupGivenUp(_) => "BACKUP_GIVEN_UP",
            Self::NotRevoked(_) => "NOT_REVOKED",
            Self::Share { .. } => "BAD_SHARE",
            Self::Split(_) => "BAD_SHARE_NUMBERS",
            Self::KeyFile(_) => "BAD_KEY_FILE",
            Self::WrongMethod(_) => "WRONG_UNSEAL_METHOD",
            Self::NoRekey => "NO_REKEY",
            Self::Contended => "CONTENDED",
            Self::Unavailable(_) => "AUDIT_UNAVAILABLE",
            Self::Internal(_) => "INTERNAL",
        }
    }

    /// The same for another who waited for the same thing.
    pub(super) fn again(&self) -> Self {
        match self {
            Self::Sealed { why } => Self::Sealed { why: why.clone() },
            Self::Refusing(refusal) => Self::Refusing(refusal.clone()),
            Self::Unavailable(error) => Self::Unavailable(error.clone()),
            Self::Contended => Self::Contended,
            other => Self::Internal(other.to_string()),
        }
    }

    /// One wrong field.
    pub fn invalid(path: &str, message: impl Into<String>) -> Self {
        Self::Invalid(vec![Violation { path: path.to_owned(), message: message.into() }])
    }
}

impl From<StoreError> for BrokerError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::AlreadyInitialised => Self::AlreadyInitialised,
            StoreError::Corrupt(why) => Self::Refusing(Refusal::tampered(why)),
            StoreError::Unavailable(_) | StoreError::Locked(_) | StoreError::Unfit(_) => Self::Unavailable(error),
        }
    }
}

impl From<crate::vault::VaultError> for BrokerError {
    fn from(error: crate::vault::VaultError) -> Self {
        Self::Internal(error.to_string())
    }
}

fn limits(number: usize) -> String {
    if number == 1 { "1 limit".to_owned() } else { format!("{number} limits") }
}

/// The first of what moved; a message is a line.
fn joined(what: &[String]) -> String {
    const MOST: usize = 4;
    const MOST_CHARS: usize = 150;
    let short = |text: &String| match text.char_indices().nth(MOST_CHARS) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text.clone(),
    };
    let mut out: Vec<String> = what.iter().take(MOST).map(short).collect();
    if let Some(more) = what.len().checked_sub(MOST).filter(|more| *more > 0) {
        out.push(format!("and {more} more"));
    }
    if out.is_empty() { "more than is remembered".to_owned() } else { out.join("; ") }
}

fn count(fields: usize) -> String {
    if fields == 1 { "1 field".to_owned() } else { format!("{fields} fields") }
}
