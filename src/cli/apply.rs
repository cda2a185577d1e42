//! `apply`: shows the plan, and applies it.

use std::io::Read;
use std::path::PathBuf;

use clap::Args;
use serde_json::{Value, json};
use tonic::Code;

use super::Connection;
use super::document::Parsed;
use super::error::CliError;
use super::output::{Printer, bare};
use crate::domain::document as text;
use crate::grpc::proto;
use crate::grpc::proto::policy_service_client::PolicyServiceClient;

/// Apply accounts, app groups, policies and operators.
#[derive(Debug, Args)]
pub(super) struct Apply {
    /// The YAML document; `-` for standard input.
    #[arg(short, long, value_name = "FILE")]
    file: PathBuf,
    /// Show what would happen, and change nothing.
    #[arg(long)]
    plan: bool,
    /// Remove what the document does not name (never keys).
    #[arg(long)]
    prune: bool,
}

impl Apply {
    pub(super) async fn run(self, connection: &Connection, print: &Printer) -> Result<(), CliError> {
        let mut content = String::new();
        let unreadable = |error: std::io::Error| CliError::usage(format!("{}: {error}", self.file.display()));
        if self.file.as_os_str() == "-" {
            std::io::stdin().read_to_string(&mut content).map_err(unreadable)?;
        } else {
            content = std::fs::read_to_string(&self.file).map_err(unreadable)?;
        }
        let parsed = Parsed::read(&content)?;
        let violations = parsed.violations();
        if !violations.is_empty() {
            let message = format!("{} can't be applied; nothing was changed", self.file.display());
            return Err(CliError::invalid(message, violations));
        }
        let mut client = PolicyServiceClient::new(connection.open().await?);
        let document = Some(message(&parsed.document));
        let placed = |status: tonic::Status| {
            let invalid = status.code() == Code::InvalidArgument;
            let mut error = CliError::from(status);
            if invalid {
                error.violations = parsed.placed(error.violations.drain(..));
                error.message = format!("{} can't be applied; nothing was changed", self.file.display());
            }
            error
        };
        let request = proto::PlanRequest { document: document.clone(), prune: self.prune };
        let planned = client.plan(request).await.map_err(placed)?.into_inner();
        if self.plan {
            return show(*print, &planned.steps, planned.revision, false);
        }
        if !print.is_json() {
            print.text(&steps_text(&planned.steps))?;
        }
        let request = proto::ApplyRequest { document, prune: self.prune };
        let applied = client.apply(request).await.map_err(placed)?.into_inner();
        if print.is_json() {
            return show(*print, &applied.steps, applied.revision, true);
        }
        if applied.steps != planned.steps {
            print.text(&format!("the vault changed in between; this was applied:\n{}", steps_text(&applied.steps)))?;
        }
        let changed = applied.steps.iter().any(|step| step.action() != proto::Action::Keep);
        let done = if changed { "applied" } else { "there was nothing to do" };
        print.text(&format!("{done}; revision {}", applied.revision))
    }
}

fn show(print: Printer, steps: &[proto::PlanStep], revision: u64, applied: bool) -> Result<(), CliError> {
    let object = json!({
        "applied": applied,
        "revision": revision,
        "steps": steps.iter().map(step_json).collect::<Vec<Value>>(),
    });
    print.answer(&object, || format!("{}\nnothing was changed; planned on revision {revision}", steps_text(steps)))
}

fn step_json(step: &proto::PlanStep) -> Value {
    json!({
        "action": bare(step.action().as_str_name(), "ACTION_"),
        "kind": step.kind,
        "name": step.name,
        "changes": step.changes,
        "note": step.note,
    })
}

fn steps_text(steps: &[proto::PlanStep]) -> String {
    let mut out = Vec::new();
    for step in steps {
        let sign = match step.action() {
            proto::Action::Create => '+',
            proto::Action::Update => '~',
            proto::Action::Remove => '-',
            proto::Action::Keep | proto::Action::Unspecified => ' ',
        };
        let note = if step.note.is_empty() { String::new() } else { format!("  ({})", step.note) };
        out.push(format!("{sign} {} {}{note}", step.kind, step.name));
        out.extend(step.changes.iter().map(|change| format!("    {change}")));
    }
    if out.is_empty() { "the document is empty".to_owned() } else { out.join("\n") }
}

fn message(document: &text::Document) -> proto::Document {
    let duration = |seconds: Option<i64>| seconds.map(|seconds| prost_types::Duration { seconds, nanos: 0 });
    let time =
        |at: Option<crate::clock::UnixMillis>| at.map(|at| prost_types::Timestamp { seconds: at.seconds(), nanos: 0 });
    let roles = |names: &[String]| {
        let number = |name: &String| proto::Role::from_str_name(&format!("ROLE_{name}")).unwrap_or_default().into();
        names.iter().map(number).collect()
    };
    let powers = |names: &[String]| {
        let number = |name: &String| {
            proto::Power::from_str_name(&format!("POWER_{}", name.to_ascii_uppercase())).unwrap_or_default().into()
        };
        names.iter().map(number).collect()
    };
    proto::Document {
        accounts: (document.accounts.iter())
            .map(|it| proto::Account { name: it.name.clone(), issuer_id: it.issuer_id.clone() })
            .collect(),
        app_groups: (document.app_groups.iter())
            .map(|it| proto::AppGroup { name: it.name.clone(), account: it.account.clone(), apps: it.apps.clone() })
            .collect(),
        policies: (document.policies.iter())
            .map(|it| proto::Policy {
                name: it.name.clone(),
                clients: clients(&it.clients),
                app_group: it.app_group.clone(),
                roles: roles(&it.roles),
                max_ttl: duration(it.max_ttl_s),
                default_ttl: duration(it.default_ttl_s),
                operations: it.operations.clone(),
                require_scope: it.require_scope,
                not_before: time(it.not_before),
                not_after: time(it.not_after),
            })
            .collect(),
        operators: (document.operators.iter())
            .map(|it| proto::Operator {
                name: it.name.clone(),
                clients: clients(&it.clients),
                powers: powers(&it.powers),
                app_groups: it.app_groups.clone(),
            })
            .collect(),
    }
}

fn clients(texts: &[text::ClientText]) -> Vec<proto::ClientPattern> {
    use proto::client_pattern::Pattern;
    let one = |text: &text::ClientText| proto::ClientPattern {
        pattern: match text {
            text::ClientText::Spiffe(text) => Some(Pattern::Spiffe(text.clone())),
            text::ClientText::Dns(text) => Some(Pattern::Dns(text.clone())),
            text::ClientText::Missing => None,
        },
    };
    texts.iter().map(one).collect()
}
