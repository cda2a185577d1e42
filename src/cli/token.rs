//! `token issue`: prints the bare token, or all there is to know about it.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use prost_types::Duration;
use serde_json::{Value, json};

use super::Connection;
use super::error::CliError;
use super::output::{Printer, enforcement_json, time, time_text, write_private};
use super::revoke::words;
use super::yaml::seconds;
use crate::domain::role::Role;
use crate::grpc::proto;
use crate::grpc::proto::token_service_client::TokenServiceClient;

/// Tokens.
#[derive(Debug, Subcommand)]
pub(super) enum TokenCommand {
    /// Issue a token, and print it.
    Issue(Issue),
    /// Tell what of this client's is revoked, as it happens; with --app-group also keep a token, and tell each new one.
    Watch(super::watch::Watch),
    /// Say what a live token is, by its id: one of your own or, as an operator, anybody's.
    Introspect {
        /// The token's id: 64 hex digits.
        token_id: String,
    },
}

#[derive(Debug, Args)]
pub(super) struct Issue {
    /// The app group.
    #[arg(long)]
    app_group: String,
    /// The role, as Apple spells it: APP_MANAGER, DEVELOPER, …
    #[arg(long)]
    role: String,
    /// Time to live, such as 5m; the policy's default where absent.
    #[arg(long, value_name = "DURATION", allow_hyphen_values = true)]
    ttl: Option<String>,
    /// A read to confine the token to, such as "GET /v1/apps"; may be repeated.
    #[arg(long, value_name = "OPERATION")]
    scope: Vec<String>,
    /// Ask for a new token where an earlier one would do.
    #[arg(long)]
    fresh: bool,
    /// Write the token to this file, which its owner alone can read (mode 0600), instead of printing it.
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
}

impl TokenCommand {
    pub(super) async fn run(self, connection: &Connection, print: &Printer) -> Result<(), CliError> {
        match self {
            Self::Issue(issue) => issue.run(connection, print).await,
            Self::Watch(watch) => watch.run(connection, print).await,
            Self::Introspect { token_id } => introspect(token_id, connection, print).await,
        }
    }
}

async fn introspect(token_id: String, connection: &Connection, print: &Printer) -> Result<(), CliError> {
    let mut client = TokenServiceClient::new(connection.open().await?);
    let token = client.introspect_token(proto::IntrospectTokenRequest { token_id }).await?.into_inner();
    let revoked_by = token.revoked_by.as_ref().map(words);
    let object = json!({
        "token_id": token.token_id,
        "client": token.client,
        "policy": token.policy,
        "key_id": token.key_id,
        "app_group": token.app_group,
        "issued_at": time(token.issued_at.as_ref()),
        "expires_at": time(token.expires_at.as_ref()),
        "revoked": token.revoked,
        "revoked_by": revoked_by,
        "revision": token.revision,
    });
    print.answer(&object, || {
        let state = revoked_by.map_or_else(|| "alive".to_owned(), |by| format!("revoked by {by}, alive at Apple"));
        let expires = token.expires_at.as_ref().map(time_text).unwrap_or_default();
        format!(
            "{state} until {expires}\nclient {}\npolicy {}\napp group {}\nkey {}",
            token.client, token.policy, token.app_group, token.key_id
        )
    })
}

impl Issue {
    async fn run(self, connection: &Connection, print: &Printer) -> Result<(), CliError> {
        let issue = self;
        let request = proto::IssueTokenRequest {
            app_group: issue.app_group,
            role: role(&issue.role)?,
            ttl: ttl(issue.ttl.as_deref())?,
            scope: issue.scope,
            fresh: issue.fresh,
        };
        let mut client = TokenServiceClient::new(connection.open().await?);
        let issued = client.issue_token(request).await?.into_inner();
        let mut object = json!({
            "token_id": issued.token_id,
            "expires_at": time(issued.expires_at.as_ref()),
            "expires_in_s": issued.expires_in.map(|duration| duration.seconds),
            "key_id": issued.key_id,
            "issuer_id": issued.issuer_id,
            "policy": issued.policy,
            "revision": issued.revision,
            "enforced_by": issued.enforced_by.iter().map(enforcement_json).collect::<Vec<Value>>(),
            "reused": issued.reused,
            "decision_id": issued.decision_id,
        });
        if let Some(file) = &issue.token_file {
            write_private(file, issued.token.as_bytes())?;
            return print.answer(&object, || {
                let expires = issued.expires_at.as_ref().map(time_text).unwrap_or_default();
                format!("token {} in {}, good until {expires}", issued.token_id, file.display())
            });
        }
        if let Some(fields) = object.as_object_mut() {
            fields.insert("token".to_owned(), json!(issued.token));
        }
        print.answer(&object, || issued.token.clone())
    }
}

/// A time to live, where one is given.
pub(super) fn ttl(text: Option<&str>) -> Result<Option<Duration>, CliError> {
    let Some(text) = text else { return Ok(None) };
    let message = || {
        let text = crate::id::shown(text);
        format!("--ttl `{text}` is not a duration of whole seconds, such as 90s or 5m")
    };
    let seconds = seconds(text).ok_or_else(|| CliError::usage(message()))?;
    Ok(Some(Duration { seconds, nanos: 0 }))
}

/// A role's number.
pub(super) fn role(name: &str) -> Result<i32, CliError> {
    let known = || Role::ALL.iter().map(|role| role.as_str()).collect::<Vec<_>>().join(", ");
    let unknown = || CliError::usage(format!("`{}` is not a role of Apple's: {}", crate::id::shown(name), known()));
    let role = Role::parse(name).ok_or_else(unknown)?;
    Ok(proto::Role::from_str_name(&format!("ROLE_{role}")).unwrap_or_default().into())
}
