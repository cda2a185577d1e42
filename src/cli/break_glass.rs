//! `break-glass`: opens policies that are for emergencies, and closes them.

use clap::Subcommand;
use serde_json::{Value, json};

use super::Connection;
use super::apply::client;
use super::error::CliError;
use super::output::{Printer, time, time_text};
use super::yaml::seconds;
use crate::grpc::proto;
use crate::id::shown;

/// Policies for emergencies: `break_glass: true`.
#[derive(Debug, Subcommand)]
pub(super) enum BreakGlassCommand {
    /// Let a policy grant for a while.
    Open {
        /// The policy, by name.
        policy: String,
        /// Why, for whoever reads the audit.
        #[arg(long, value_name = "TEXT")]
        reason: String,
        /// For how long: 1m to 1day. It closes by itself, and no token under it lives longer.
        #[arg(long = "for", value_name = "DURATION")]
        duration: String,
    },
    /// Close a policy before its time. Tokens that are out live on until they die: `revoke policy` lists them.
    Close {
        /// The policy, by name.
        policy: String,
        /// Why, for whoever reads the audit.
        #[arg(long, value_name = "TEXT", default_value = "closed by hand")]
        reason: String,
    },
}

impl BreakGlassCommand {
    pub(super) async fn run(self, connection: &Connection, print: &Printer) -> Result<(), CliError> {
        match self {
            Self::Open { policy, reason, duration } => {
                let wrong = || {
                    let text = shown(&duration);
                    CliError::usage(format!("--for `{text}` is not a duration of whole seconds, such as 30m or 2h"))
                };
                let duration = prost_types::Duration { seconds: seconds(&duration).ok_or_else(wrong)?, nanos: 0 };
                let request = proto::OpenBreakGlassRequest { policy: policy.clone(), duration: Some(duration), reason };
                let answer = client(connection).await?.open_break_glass(request).await?.into_inner();
                let until = answer.until.as_ref().map(time_text).unwrap_or_default();
                print.answer(&object(&policy, time(answer.until.as_ref()), answer.revision), || {
                    format!("policy {policy} is open until {until}; revision {}", answer.revision)
                })
            }
            Self::Close { policy, reason } => {
                let request = proto::CloseBreakGlassRequest { policy: policy.clone(), reason };
                let revision = client(connection).await?.close_break_glass(request).await?.into_inner().revision;
                print.answer(&object(&policy, Value::Null, revision), || {
                    format!(
                        "policy {policy} is closed; revision {revision}. Tokens that are out live on: `p8broker exposure \
                         policy {policy}` lists them"
                    )
                })
            }
        }
    }
}

fn object(policy: &str, until: Value, revision: u64) -> Value {
    json!({ "policy": policy, "until": until, "revision": revision })
}
