//! What a command line that failed says, and with which exit code it ends.

use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::client::ConnectError;

/// How a process ends: 0 is done. docs/operating.md has the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Exit {
    /// It was tried, and failed; what was asked for can't be, such as a document with a mistake.
    Failed = 1,
    /// The command line makes no sense, or a file that it names can't be read.
    Usage = 2,
    /// It was refused.
    Denied = 3,
    /// Not now: the broker is away or sealed, or a limit is reached. The same may do later.
    Unavailable = 4,
}

/// Why a command failed.
#[derive(Debug)]
pub(super) struct CliError {
    pub(super) exit: Exit,
    /// The stable constant.
    pub(super) reason: String,
    pub(super) message: String,
    /// Fields that are wrong: where, and what.
    pub(super) violations: Vec<(String, String)>,
    /// What an operator can look up.
    pub(super) decision_id: Option<String>,
    /// When the same may do, in seconds from now.
    pub(super) retry_after_s: Option<u64>,
}

impl CliError {
    fn new(exit: Exit, reason: &str, message: String) -> Self {
        Self {
            exit,
            reason: reason.to_owned(),
            message,
            violations: Vec::new(),
            decision_id: None,
            retry_after_s: None,
        }
    }

    pub(super) fn usage(message: String) -> Self {
        Self::new(Exit::Usage, "USAGE", message)
    }

    pub(super) fn failed(message: String) -> Self {
        Self::new(Exit::Failed, "FAILED", message)
    }

    pub(super) fn because(reason: &str, message: String) -> Self {
        Self::new(Exit::Failed, reason, message)
    }

    pub(super) fn invalid(message: String, violations: Vec<(String, String)>) -> Self {
        Self { violations, ..Self::new(Exit::Failed, "INVALID_ARGUMENT", message) }
    }
}

impl From<Status> for CliError {
    fn from(status: Status) -> Self {
        let details = status.get_error_details();
        let retry_after_s = details.retry_info().and_then(|info| info.retry_delay).map(|delay| delay.as_secs());
        let exit = match status.code() {
            Code::PermissionDenied | Code::Unauthenticated => Exit::Denied,
            Code::Unavailable | Code::DeadlineExceeded => Exit::Unavailable,
            // Limits of time pass by themselves and say when; others, such as too many watches, do not.
            Code::ResourceExhausted if retry_after_s.is_some() => Exit::Unavailable,
            _ => Exit::Failed,
        };
        let reason = match details.error_info() {
            Some(info) => info.reason.clone(),
            None => format!("{:?}", status.code()).to_ascii_uppercase(),
        };
        let exit = if reason == "NOT_INITIALISED" { Exit::Unavailable } else { exit };
        let violations = details.bad_request().map(|bad| bad.field_violations.as_slice()).unwrap_or_default();
        let mut violations: Vec<_> = violations.iter().map(|it| (it.field.clone(), it.description.clone())).collect();
        // What came between a plan and its change.
        let preconditions = details.precondition_failure().map(|it| it.violations.as_slice()).unwrap_or_default();
        let moved = preconditions.iter().filter(|it| it.r#type == "REVISION");
        violations.extend(moved.map(|it| (String::new(), it.description.clone())));
        let message = match (details.error_info(), std::error::Error::source(&status)) {
            // No answer of the broker's: what the connection says.
            (None, Some(source)) => connection_lost(source),
            _ => status.message().to_owned(),
        };
        // A certificate that is refused ends the connection after the client's side of the handshake is done.
        let refused = message.contains("CertificateUnknown")
            || message.contains("UnknownCA")
            || message.contains("received fatal alert");
        Self {
            exit: if refused { Exit::Denied } else { exit },
            reason: if refused { "IDENTITY_REFUSED".to_owned() } else { reason },
            decision_id: details.error_info().and_then(|info| info.metadata.get("decision_id").cloned()),
            message: if refused {
                format!("the broker does not accept this client certificate ({message})")
            } else {
                message
            },
            violations,
            retry_after_s,
        }
    }
}

fn connection_lost(error: &dyn std::error::Error) -> String {
    let mut at = error;
    while let Some(source) = at.source() {
        at = source;
    }
    format!("the connection to the broker failed: {at}")
}

impl From<ConnectError> for CliError {
    fn from(error: ConnectError) -> Self {
        match error {
            ConnectError::File { .. } | ConnectError::Address(_) => Self::usage(error.to_string()),
            ConnectError::Refused(_) => Self::new(Exit::Denied, "IDENTITY_REFUSED", error.to_string()),
            ConnectError::Unreachable { .. } => Self::new(Exit::Unavailable, "UNREACHABLE", error.to_string()),
        }
    }
}

impl From<std::io::Error> for CliError {
    fn from(error: std::io::Error) -> Self {
        Self::failed(error.to_string())
    }
}
