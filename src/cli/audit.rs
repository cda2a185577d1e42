//! `audit`: what happened.

use clap::{Args, Subcommand, ValueEnum};
use prost_types::Timestamp;
use serde_json::{Value, json};

use super::Connection;
use super::error::CliError;
use super::output::{Printer, bare, time};
use super::yaml::seconds;
use crate::client::Wire;
use crate::clock::{Clock, SystemClock, UnixMillis};
use crate::grpc::proto;
use crate::grpc::proto::audit_service_client::AuditServiceClient;
use crate::id::shown;

/// What happened.
#[derive(Debug, Subcommand)]
pub(super) enum AuditCommand {
    /// Rows, oldest first.
    List {
        #[command(flatten)]
        filter: Filter,
        /// Stop after this many rows.
        #[arg(long)]
        limit: Option<usize>,
    },
    /// Rows as they come, until stopped.
    Follow {
        #[command(flatten)]
        filter: Filter,
    },
    /// Check every row; exit code 1 where something is wrong.
    Verify,
    /// Remove old rows, but none of a token that is still alive.
    Prune {
        /// Rows before this: a time such as 2026-01-01T00:00:00Z, or an age such as 90days.
        #[arg(long, value_name = "TIME|AGE")]
        before: String,
    },
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum OutcomeName {
    Signed,
    Reused,
    Changed,
    Read,
    Denied,
}

#[derive(Debug, Args)]
pub(super) struct Filter {
    /// At or after a time, or an age such as 1h.
    #[arg(long, value_name = "TIME|AGE")]
    from: Option<String>,
    /// Before a time, or an age.
    #[arg(long, value_name = "TIME|AGE")]
    until: Option<String>,
    /// Of this client (spiffe://… or dns:…).
    #[arg(long)]
    client: Option<String>,
    /// With this key.
    #[arg(long)]
    key_id: Option<String>,
    /// Under this policy.
    #[arg(long)]
    policy: Option<String>,
    /// With this outcome.
    #[arg(long, value_enum, ignore_case = true)]
    outcome: Option<OutcomeName>,
    /// Of the decision that a caller was told.
    #[arg(long)]
    decision: Option<String>,
}

impl Filter {
    fn message(self) -> Result<proto::AuditFilter, CliError> {
        let outcome = match self.outcome {
            None => proto::Outcome::Unspecified,
            Some(OutcomeName::Signed) => proto::Outcome::Signed,
            Some(OutcomeName::Reused) => proto::Outcome::Reused,
            Some(OutcomeName::Changed) => proto::Outcome::Changed,
            Some(OutcomeName::Read) => proto::Outcome::Read,
            Some(OutcomeName::Denied) => proto::Outcome::Denied,
        };
        Ok(proto::AuditFilter {
            from: self.from.as_deref().map(moment).transpose()?,
            until: self.until.as_deref().map(moment).transpose()?,
            client: self.client.unwrap_or_default(),
            key_id: self.key_id.unwrap_or_default(),
            policy: self.policy.unwrap_or_default(),
            outcome: outcome.into(),
            decision_id: self.decision.unwrap_or_default(),
        })
    }
}

impl AuditCommand {
    pub(super) async fn run(self, connection: &Connection, print: &Printer) -> Result<(), CliError> {
        match self {
            Self::List { filter, limit } => list(connection, *print, filter.message()?, limit).await,
            Self::Follow { filter } => {
                let request = proto::FollowRequest { filter: Some(filter.message()?) };
                let mut stream = client(connection).await?.follow(request).await?.into_inner();
                while let Some(answer) = stream.message().await? {
                    if let Some(event) = answer.event {
                        print.line(&event_json(&event), || event_text(&event))?;
                    }
                }
                Err(CliError::from(tonic::Status::unavailable("the broker ended the stream; it is stopping")))
            }
            Self::Verify => verify(connection, *print).await,
            Self::Prune { before } => {
                let request = proto::PruneRequest { before: Some(moment(&before)?) };
                let pruned = client(connection).await?.prune(request).await?.into_inner();
                print.answer(&json!({ "rows": pruned.rows, "revision": pruned.revision }), || {
                    if pruned.rows == 0 {
                        return "there was nothing to remove".to_owned();
                    }
                    format!("{} rows were removed; recorded at revision {}", pruned.rows, pruned.revision)
                })
            }
        }
    }
}

async fn list(
    connection: &Connection,
    print: Printer,
    filter: proto::AuditFilter,
    limit: Option<usize>,
) -> Result<(), CliError> {
    let mut client = client(connection).await?;
    let (mut left, mut page_token) = (limit.unwrap_or(usize::MAX), String::new());
    while left > 0 {
        let page_size = i32::try_from(left.min(1000)).unwrap_or(1000);
        let request = proto::ListRequest { filter: Some(filter.clone()), page_size, page_token };
        let page = client.list(request).await?.into_inner();
        for event in &page.events {
            print.line(&event_json(event), || event_text(event))?;
        }
        left = left.saturating_sub(page.events.len());
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    Ok(())
}

async fn verify(connection: &Connection, print: Printer) -> Result<(), CliError> {
    let done = client(connection).await?.verify(proto::VerifyRequest {}).await?.into_inner();
    let finding = |it: &proto::AuditFinding| json!({ "writer": it.writer, "sequence": it.sequence, "what": it.what });
    let object = json!({
        "ok": done.findings.is_empty(),
        "rows": done.rows,
        "writers": done.writers,
        "findings": done.findings.iter().map(finding).collect::<Vec<Value>>(),
    });
    print.answer(&object, || {
        let verdict = if done.findings.is_empty() { "the audit is whole" } else { "the audit is NOT whole" };
        let mut out = format!("{verdict}: {} rows of {} writers were checked", done.rows, done.writers);
        for it in &done.findings {
            out.push_str(&format!("\nwriter {} row {}: {}", it.writer, it.sequence, it.what));
        }
        out
    })?;
    if done.findings.is_empty() {
        return Ok(());
    }
    let message = format!(
        "the audit is not whole: {} findings; see docs/audit.md, \"When the audit is not whole\"",
        done.findings.len()
    );
    Err(CliError::because("AUDIT_NOT_WHOLE", message))
}

async fn client(connection: &Connection) -> Result<AuditServiceClient<Wire>, CliError> {
    Ok(AuditServiceClient::new(connection.open().await?))
}

/// A time, or an age.
fn moment(text: &str) -> Result<Timestamp, CliError> {
    let absolute = UnixMillis::parse(text).map(UnixMillis::seconds);
    let age = || seconds(text).map(|age| SystemClock.now().seconds().saturating_sub(age));
    let seconds = absolute.or_else(age).ok_or_else(|| {
        CliError::usage(format!(
            "`{}` is neither a time such as 2026-01-01T00:00:00Z nor an age such as 90days",
            shown(text)
        ))
    })?;
    Ok(Timestamp { seconds, nanos: 0 })
}

fn event_json(event: &proto::AuditEvent) -> Value {
    let text = |text: &String| if text.is_empty() { Value::Null } else { Value::String(text.clone()) };
    json!({
        "at": event.at.as_ref().map(precise),
        "event": event.event,
        "outcome": bare(event.outcome().as_str_name(), "OUTCOME_"),
        "reason": event.reason,
        "decision_id": event.decision_id,
        "client": event.caller,
        "identity": event.identity,
        "detail": event.detail,
        "policy": text(&event.policy),
        "key_id": text(&event.key_id),
        "app_group": text(&event.app_group),
        "role": text(&event.role),
        "scope": event.scope,
        "token_id": text(&event.token_id),
        "issued_at": time(event.issued_at.as_ref()),
        "expires_at": time(event.expires_at.as_ref()),
        "revision": event.revision,
        "writer": event.writer,
        "sequence": event.sequence,
    })
}

fn event_text(event: &proto::AuditEvent) -> String {
    let mut out = format!(
        "{}  {:<7}  {}  {}",
        event.at.as_ref().map(precise).unwrap_or_default(),
        bare(event.outcome().as_str_name(), "OUTCOME_"),
        event.event,
        event.caller
    );
    for (name, value) in [
        ("reason", Some(&event.reason).filter(|reason| *reason != "OK")),
        ("policy", Some(&event.policy)),
        ("key", Some(&event.key_id)),
        ("group", Some(&event.app_group)),
        ("role", Some(&event.role)),
        ("token", Some(&event.token_id)),
        ("detail", Some(&event.detail)),
        ("decision", Some(&event.decision_id)),
    ] {
        if let Some(value) = value.filter(|value| !value.is_empty()) {
            out.push_str(&format!("  {name}={value}"));
        }
    }
    out
}

/// RFC 3339 with milliseconds.
fn precise(at: &Timestamp) -> String {
    let text = super::output::time_text(at);
    let text = text.strip_suffix('Z').unwrap_or(&text);
    format!("{text}.{:03}Z", at.nanos.max(0) / 1_000_000)
}
