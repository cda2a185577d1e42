//! `apply`: shows the plan, and applies it, or proposes it where that takes two operators.

use std::path::PathBuf;

use clap::Args;
use serde_json::{Value, json};
use tonic::Code;

use super::Connection;
use super::document::Parsed;
use super::error::CliError;
use super::output::{Printer, bare};
use crate::client::Wire;
use crate::grpc::proto;
use crate::grpc::proto::policy_service_client::PolicyServiceClient;

/// Largest document that is sent or received, in bytes.
pub(super) const MOST_BYTES: usize = 16 * 1024 * 1024;

/// Apply accounts, app groups, issuers, ceilings, policies and operators.
#[derive(Debug, Args)]
pub(super) struct Apply {
    /// A YAML file, a folder of them (all .yaml and .yml files in it and below), or `-` for standard input.
    #[arg(short, long, value_name = "PATH")]
    file: PathBuf,
    /// Show what would happen, and change nothing.
    #[arg(long)]
    plan: bool,
    /// Remove what the document does not name (never keys).
    #[arg(long)]
    prune: bool,
    /// Fail where a policy of the document has a limit that nobody enforces.
    #[arg(long)]
    refuse_advisory: bool,
    /// Propose it, for another operator to approve.
    #[arg(long, conflicts_with = "plan", requires = "reason")]
    propose: bool,
    /// Why, for whoever reviews the proposal.
    #[arg(long, value_name = "TEXT", requires = "propose")]
    reason: Option<String>,
}

impl Apply {
    pub(super) async fn run(self, connection: &Connection, print: &Printer) -> Result<(), CliError> {
        let parsed = Parsed::read_path(&self.file)?;
        let cant = format!("{} can't be applied; nothing was changed", self.file.display());
        let violations = parsed.violations();
        if !violations.is_empty() {
            return Err(CliError::invalid(cant, violations));
        }
        let mut client = client(connection).await?;
        let document = Some(proto::Document::from(parsed.document.clone()));
        let placed = |status: tonic::Status| {
            let invalid = status.code() == Code::InvalidArgument;
            let mut error = CliError::from(status);
            // What is about no field, such as how many more there are, has no place.
            let (named, rest): (Vec<_>, Vec<_>) = error.violations.drain(..).partition(|(path, _)| !path.is_empty());
            error.violations = parsed.placed(named.into_iter());
            error.violations.extend(rest);
            if invalid {
                error.message.clone_from(&cant);
            }
            error
        };
        let (prune, refuse_advisory) = (self.prune, self.refuse_advisory);
        let request = proto::PlanRequest { document: document.clone(), prune, refuse_advisory };
        let planned = client.plan(request).await.map_err(placed)?.into_inner();
        if self.plan {
            return show(*print, &planned.steps, planned.revision, false);
        }
        if !print.is_json() {
            print.text(&steps_text(&planned.steps))?;
        }
        // What is applied is what was shown: where anything moved since, nothing is.
        let planned_revision = planned.revision;
        if let Some(reason) = self.reason.filter(|_| self.propose) {
            let request = proto::ProposeRequest { document, prune, refuse_advisory, planned_revision, reason };
            let proposed = client.propose(request).await.map_err(placed)?.into_inner();
            let id = proposed.proposal.unwrap_or_default().proposal_id;
            let object = json!({ "applied": false, "proposal_id": id, "revision": proposed.revision });
            return print.answer(&object, || {
                format!("proposed, not applied; another operator runs `p8broker proposal approve {id}`")
            });
        }
        let request = proto::ApplyRequest { document, prune, refuse_advisory, planned_revision };
        let applied = client.apply(request).await.map_err(placed)?.into_inner();
        if print.is_json() {
            return show(*print, &applied.steps, applied.revision, true);
        }
        let changed = applied.steps.iter().any(|step| step.action() != proto::Action::Keep);
        let done = if changed { "applied" } else { "there was nothing to do" };
        print.text(&format!("{done}; revision {}", applied.revision))
    }
}

/// A client that takes documents of any size that the broker takes.
pub(super) async fn client(connection: &Connection) -> Result<PolicyServiceClient<Wire>, CliError> {
    let client = PolicyServiceClient::new(connection.open().await?);
    Ok(client.max_decoding_message_size(4 * MOST_BYTES).max_encoding_message_size(MOST_BYTES))
}

fn show(print: Printer, steps: &[proto::PlanStep], revision: u64, applied: bool) -> Result<(), CliError> {
    let object = json!({
        "applied": applied,
        "revision": revision,
        "steps": steps.iter().map(step_json).collect::<Vec<Value>>(),
    });
    print.answer(&object, || format!("{}\nnothing was changed; planned on revision {revision}", steps_text(steps)))
}

pub(super) fn step_json(step: &proto::PlanStep) -> Value {
    json!({
        "action": bare(step.action().as_str_name(), "ACTION_"),
        "kind": step.kind,
        "name": step.name,
        "changes": step.changes,
        "note": step.note,
        "means": step.means,
        "enforced_by": step.enforced_by.iter().map(super::output::enforcement_json).collect::<Vec<Value>>(),
        "approval_by_ceiling": step.approval_by_ceiling,
    })
}

pub(super) fn steps_text(steps: &[proto::PlanStep]) -> String {
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
        out.extend(step.means.iter().map(|line| format!("    => {line}")));
        if !step.approval_by_ceiling.is_empty() {
            out.push(format!("    => takes two operators, by ceiling {}", step.approval_by_ceiling));
        }
        if step.action() != proto::Action::Keep {
            out.extend(step.enforced_by.iter().map(|entry| {
                let by = bare(entry.enforced_by().as_str_name(), "ENFORCED_BY_");
                format!("    {}: {by}: {}", entry.limit, entry.explanation)
            }));
        }
    }
    if out.is_empty() { "the document is empty".to_owned() } else { out.join("\n") }
}
