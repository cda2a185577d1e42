//! The one place where an error becomes a gRPC status, with the rich error model of `google.rpc`.

use std::collections::HashMap;
use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::broker::BrokerError;
use crate::domain::decide::DenyReason;
use crate::domain::document::Violation;
use crate::identity::IdentityError;
use crate::identity::oidc::BearerError;

/// `ErrorInfo.domain` of every error.
pub const DOMAIN: &str = "p8broker";

/// The reason of every limit on how often somebody may ask.
pub const RATE_LIMITED: &str = "RATE_LIMITED";

/// When trying again may help.
const RETRY_AFTER: Duration = Duration::from_millis(500);

/// When an issuer's keys may be had again.
const ISSUER_RETRY: Duration = Duration::from_secs(5);
/// What limits are counted in.
const RATE_WINDOW: Duration = Duration::from_secs(1);

impl From<BrokerError> for Status {
    fn from(error: BrokerError) -> Self {
        let mut details = details(error.reason());
        let retry = |details: &mut ErrorDetails| {
            details.set_retry_info(Some(RETRY_AFTER));
            Code::Unavailable
        };
        // No `_`: a new variant does not compile until somebody picks its code.
        let code = match &error {
            BrokerError::NotInitialised
            | BrokerError::AlreadyInitialised
            | BrokerError::TooManyKeys { .. }
            | BrokerError::KeyState { .. }
            | BrokerError::KeyIsGone
            | BrokerError::TokenStaysRevoked
            | BrokerError::HistoryUnchanged
            | BrokerError::HistoryMoved { .. }
            | BrokerError::LastAdministrator(_)
            | BrokerError::NobodyCouldUnseal
            | BrokerError::AuditNotWhole(_)
            | BrokerError::BackupGivenUp(_)
            | BrokerError::NotRevoked(_)
            | BrokerError::KeyFile(_)
            | BrokerError::WrongMethod(_)
            | BrokerError::NotBreakGlass(_)
            | BrokerError::TooManyProposals(_)
            | BrokerError::NoRekey => Code::FailedPrecondition,
            BrokerError::ApprovalRequired(ceiling) => {
                let what = "propose the change; another operator with the same powers approves it";
                details.add_precondition_failure_violation("APPROVAL", ceiling.to_string(), what);
                Code::FailedPrecondition
            }
            BrokerError::PlanStale { planned_on, moved } => {
                let fits = fitting(moved.iter().map(String::len));
                for what in moved.iter().take(fits) {
                    details.add_precondition_failure_violation("REVISION", planned_on.to_string(), what);
                }
                if let Some(more) = left_out(moved.len(), fits) {
                    details.add_precondition_failure_violation("REVISION", planned_on.to_string(), more);
                }
                Code::FailedPrecondition
            }
            BrokerError::Advisory(limits) => {
                add_violations(&mut details, limits);
                Code::FailedPrecondition
            }
            BrokerError::Sealed { .. } | BrokerError::Refusing(_) => Code::Unavailable,
            BrokerError::Denied { denial, decision_id } => {
                let metadata = HashMap::from([("decision_id".to_owned(), decision_id.to_string())]);
                details.set_error_info(error.reason(), DOMAIN, metadata);
                if denial.reason == DenyReason::Sealed { Code::Unavailable } else { Code::PermissionDenied }
            }
            BrokerError::QuotaExceeded { bound, retry_after_s, decision_id } => {
                let metadata = [("decision_id", decision_id.to_string()), ("bound", bound.as_str().to_owned())];
                let metadata = metadata.map(|(name, value)| (name.to_owned(), value));
                details.set_error_info(error.reason(), DOMAIN, HashMap::from(metadata));
                details.set_retry_info(Some(Duration::from_secs(*retry_after_s)));
                Code::ResourceExhausted
            }
            BrokerError::SigningLimited => {
                details.set_retry_info(Some(RATE_WINDOW));
                Code::ResourceExhausted
            }
            BrokerError::LacksPower(_)
            | BrokerError::OutsideAppGroup(_)
            | BrokerError::NotAnOperator
            | BrokerError::OwnProposal
            | BrokerError::Refused(_) => Code::PermissionDenied,
            BrokerError::Invalid(violations) => {
                add_violations(&mut details, violations);
                Code::InvalidArgument
            }
            BrokerError::BadP8(why) => {
                details.add_bad_request_violation("p8", why.to_string());
                Code::InvalidArgument
            }
            BrokerError::NotAToken(why) => {
                details.add_bad_request_violation("token", *why);
                Code::InvalidArgument
            }
            BrokerError::Share { .. } | BrokerError::Split(_) | BrokerError::SignatureWrong(_) => Code::InvalidArgument,
            BrokerError::TooManyWatches(_) => Code::ResourceExhausted,
            BrokerError::NotFound { .. } | BrokerError::UnknownDecision(_) => Code::NotFound,
            BrokerError::KeyExists { .. } | BrokerError::SameMaterial { .. } | BrokerError::UserHasKey { .. } => {
                Code::AlreadyExists
            }
            BrokerError::Contended => retry(&mut details),
            BrokerError::Unavailable(source) => {
                tracing::error!(error = %source, "the store is not available"); // the source stays inside
                retry(&mut details)
            }
            BrokerError::Internal(why) => {
                tracing::error!(%why, "internal error");
                Code::Internal
            }
        };
        Self::with_error_details(code, error.to_string(), details)
    }
}

impl From<IdentityError> for Status {
    fn from(error: IdentityError) -> Self {
        Self::with_error_details(Code::Unauthenticated, error.to_string(), details(error.reason()))
    }
}

impl From<BearerError> for Status {
    fn from(error: BearerError) -> Self {
        let mut details = details(error.reason());
        let code = match error {
            // The only ones that are not the caller's to mend.
            BearerError::IssuerUnavailable | BearerError::IssuerChanged => {
                details.set_retry_info(Some(ISSUER_RETRY));
                Code::Unavailable
            }
            BearerError::Malformed(_)
            | BearerError::TooLarge
            | BearerError::IssuerUnknown
            | BearerError::Algorithm
            | BearerError::KeyUnknown
            | BearerError::Signature
            | BearerError::Expired
            | BearerError::NotYetValid
            | BearerError::TooOld
            | BearerError::Audience
            | BearerError::Subject
            | BearerError::Claims
            | BearerError::Confirmation => Code::Unauthenticated,
        };
        Self::with_error_details(code, error.to_string(), details)
    }
}

/// Fields that can't be accepted, all at once.
pub fn invalid(violations: &[Violation]) -> Status {
    BrokerError::Invalid(violations.to_vec()).into()
}

/// Whoever it is (`this client`, `this connection`) sends more than it may.
pub fn rate_limited(who: &str) -> Status {
    let mut details = details(RATE_LIMITED);
    details.set_retry_info(Some(RATE_WINDOW));
    let message = format!("{who} sends more requests a second than it may; wait a second");
    Status::with_error_details(Code::ResourceExhausted, message, details)
}

fn details(reason: &str) -> ErrorDetails {
    ErrorDetails::with_error_info(reason, DOMAIN, HashMap::new())
}

fn add_violations(details: &mut ErrorDetails, violations: &[Violation]) {
    let fits = fitting(violations.iter().map(|it| it.path.len().saturating_add(it.message.len())));
    for violation in violations.iter().take(fits) {
        details.add_bad_request_violation(violation.path.clone(), violation.message.clone());
    }
    if let Some(more) = left_out(violations.len(), fits) {
        details.add_bad_request_violation("", more);
    }
}

/// How many of these texts, by their length, a status has room for: it travels in HTTP headers, of which clients take
/// 16 KiB, and details grow by a third on their way. The rest is counted.
fn fitting(lengths: impl Iterator<Item = usize>) -> usize {
    const MOST_BYTES: usize = 6000;
    const EACH: usize = 30;
    let mut sum = 0_usize;
    let fits = |length: &usize| {
        sum = sum.saturating_add(*length).saturating_add(EACH);
        sum <= MOST_BYTES
    };
    lengths.take_while(fits).count()
}

fn left_out(all: usize, fits: usize) -> Option<String> {
    all.checked_sub(fits).filter(|more| *more > 0).map(|more| format!("and {more} more"))
}
