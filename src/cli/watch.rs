//! `token watch`: one line for each thing that happens, until somebody stops it. Never a JWT: events don't have one.
//!
//! Steps: probe, so that a wrong address or certificate is an error and not an endless retry; then, without an app group,
//! the watch alone; with one, a token source, whose first token must come. From there on nothing ends it but a signal.

use std::time::Duration;

use clap::Args;
use serde_json::json;
use tokio::sync::broadcast::error::RecvError;
use tokio_util::sync::CancellationToken;

use super::Connection;
use super::error::CliError;
use super::output::{Printer, bare};
use super::serve::stop_on_signal;
use super::token::role;
use super::yaml::seconds;
use crate::client::{Ask, Event, Pace, Target, TokenSource, TokenSourceError, WatchEvent, Watcher};
use crate::grpc::proto::Role;
use crate::id::{Revision, TokenId};

#[derive(Debug, Args)]
pub(super) struct Watch {
    /// Keep a token for this app group, and tell each new one; without it nothing is asked for.
    #[arg(long, requires = "role")]
    app_group: Option<String>,
    /// The role, as Apple spells it: APP_MANAGER, DEVELOPER, …
    #[arg(long, requires = "app_group")]
    role: Option<String>,
    /// Time to live, such as 5m; the policy's default where absent.
    #[arg(long, value_name = "DURATION", allow_hyphen_values = true, requires = "app_group")]
    ttl: Option<String>,
    /// A read to confine the token to, such as "GET /v1/apps"; may be repeated.
    #[arg(long, value_name = "OPERATION", requires = "app_group")]
    scope: Vec<String>,
    /// Tell first what was revoked after this revision; from now on where absent.
    #[arg(long, value_name = "REVISION")]
    from_revision: Option<u64>,
}

impl Watch {
    pub(super) async fn run(self, connection: &Connection, print: &Printer) -> Result<(), CliError> {
        let from = self.from_revision.map(Revision);
        let ask = self.ask()?;
        let target = connection.target()?;
        let stop = stop_on_signal()?;
        let watching = async {
            target.probe().await?;
            match ask {
                None => watch(target, from.unwrap_or_default(), *print).await,
                Some(ask) => keep(target, ask, *print).await,
            }
        };
        until(&stop, watching).await
    }

    /// What to ask for, if anything.
    fn ask(&self) -> Result<Option<Ask>, CliError> {
        let Some((app_group, role_name)) = self.app_group.as_ref().zip(self.role.as_ref()) else { return Ok(None) };
        let ttl = self.ttl.as_ref().map(|text| {
            let whole = seconds(text).and_then(|seconds| u64::try_from(seconds).ok());
            whole.map(Duration::from_secs).ok_or_else(|| {
                let text = crate::id::shown(text);
                CliError::usage(format!("--ttl `{text}` is not a duration of whole seconds, such as 90s or 5m"))
            })
        });
        Ok(Some(Ask {
            app_group: app_group.clone(),
            role: Role::try_from(role(role_name)?).unwrap_or_default(),
            ttl: ttl.transpose()?,
            scope: self.scope.clone(),
            from_revision: self.from_revision.map(Revision),
        }))
    }
}

/// A signal is how this ends well.
async fn until(stop: &CancellationToken, work: impl Future<Output = Result<(), CliError>>) -> Result<(), CliError> {
    stop.run_until_cancelled(work).await.unwrap_or(Ok(()))
}

/// Tells what is revoked, and holds no token.
async fn watch(target: Target, from: Revision, print: Printer) -> Result<(), CliError> {
    let mut watcher = Watcher::new(target, from, Pace::default())?;
    loop {
        tell(&watcher.next().await, print)?;
    }
}

/// Keeps a token, and tells what happens to it.
async fn keep(target: Target, ask: Ask, print: Printer) -> Result<(), CliError> {
    let source = TokenSource::start(target, ask)?;
    let mut events = source.events();
    // What can't be had at all ends this; what can't be had later does not.
    source.token().await?;
    loop {
        match events.recv().await {
            Ok(Event::Watch(event)) => tell(&event, print)?,
            Ok(Event::Refreshed { token_id, expires_at, key_id, policy, revision }) => {
                let object = json!({
                    "event": "TOKEN",
                    "token_id": token_id.as_str(),
                    "expires_at": expires_at.to_string(),
                    "key_id": key_id.as_str(),
                    "policy": policy.as_str(),
                    "revision": revision.0,
                });
                print.line(&object, || format!("token {token_id} until {expires_at}, by policy {policy}"))?;
            }
            Ok(Event::NotRefreshed { error }) => print.note(&format!("no new token: {error}")),
            // Whoever reads is too slow: what is missing may have been a revocation.
            Err(RecvError::Lagged(_)) => tell(&WatchEvent::Resynchronise { revision: Revision::default() }, print)?,
            Err(RecvError::Closed) => return Ok(()),
        }
    }
}

fn tell(event: &WatchEvent, print: Printer) -> Result<(), CliError> {
    match event {
        WatchEvent::Connected { revision } => {
            let object = json!({ "event": "CONNECTED", "revision": revision.0 });
            print.line(&object, || format!("connected, at revision {revision}"))
        }
        WatchEvent::Revoked { kind, token_ids, revision } => {
            let kind = bare(kind.as_str_name(), "TARGET_KIND_");
            let ids: Vec<&str> = token_ids.iter().map(TokenId::as_str).collect();
            let object = json!({ "event": "REVOKED", "kind": kind, "token_ids": ids, "revision": revision.0 });
            print.line(&object, || {
                let alive = if ids.is_empty() { "none of this client's is alive".to_owned() } else { ids.join(", ") };
                format!("revoked ({kind}), at revision {revision}: {alive}")
            })
        }
        WatchEvent::Resynchronise { revision } => {
            let object = json!({ "event": "RESYNCHRONISE", "revision": revision.0 });
            print.line(&object, || "something may be missing: ask about every token that is held".to_owned())
        }
        WatchEvent::ClientRevoked => print
            .line(&json!({ "event": "CLIENT_REVOKED" }), || "this client is revoked: use nothing it holds".to_owned()),
        WatchEvent::Disconnected { why } => {
            let object = json!({ "event": "DISCONNECTED", "why": why });
            print.line(&object, || format!("not connected: {why}; it is tried again"))
        }
    }
}

impl From<TokenSourceError> for CliError {
    fn from(error: TokenSourceError) -> Self {
        error.status().clone().into()
    }
}
