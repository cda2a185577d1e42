//! `proposal`: changes of documents that wait for a second operator. Approving shows what it does before it asks.

use clap::Subcommand;
use serde_json::{Value, json};

use super::Connection;
use super::apply::{client, step_json, steps_text};
use super::error::CliError;
use super::output::{Printer, confirm, say, table, time, time_text};
use super::revoke::Confirmation;
use crate::grpc::proto;

/// Changes that wait for a second operator; `apply --propose` makes one.
#[derive(Debug, Subcommand)]
pub(super) enum ProposalCommand {
    /// All that wait, oldest first.
    List,
    /// One, with what it would do.
    Show {
        /// Its id.
        id: String,
    },
    /// Approve what another operator proposed: it is made as it was reviewed, or not at all.
    Approve {
        /// Its id.
        id: String,
        #[command(flatten)]
        confirmation: Confirmation,
    },
    /// Take one back, or turn it down.
    Close {
        /// Its id.
        id: String,
        /// Why, for whoever reads the audit.
        #[arg(long, value_name = "TEXT")]
        reason: String,
    },
}

impl ProposalCommand {
    pub(super) async fn run(self, connection: &Connection, print: &Printer) -> Result<(), CliError> {
        match self {
            Self::List => list(connection, *print).await,
            Self::Show { id } => {
                let (proposal, revision) = get(connection, id).await?;
                let mut object = proposal_json(&proposal);
                if let Some(fields) = object.as_object_mut() {
                    fields.insert("revision".to_owned(), Value::from(revision));
                }
                print.answer(&object, || proposal_text(&proposal))
            }
            Self::Approve { id, confirmation } => approve(connection, *print, id, confirmation).await,
            Self::Close { id, reason } => {
                let request = proto::CloseProposalRequest { proposal_id: id.clone(), reason };
                let revision = client(connection).await?.close_proposal(request).await?.into_inner().revision;
                print.answer(&json!({ "proposal_id": id, "revision": revision }), || {
                    format!("proposal {id} is closed, and nothing was applied; revision {revision}")
                })
            }
        }
    }
}

async fn list(connection: &Connection, print: Printer) -> Result<(), CliError> {
    let answer = client(connection).await?.list_proposals(proto::ListProposalsRequest {}).await?.into_inner();
    let object = json!({
        "proposals": answer.proposals.iter().map(proposal_json).collect::<Vec<Value>>(),
        "revision": answer.revision,
    });
    print.answer(&object, || {
        let row = |it: &proto::Proposal| {
            let by = it.proposed.as_ref().map(|stamp| stamp.by.clone()).unwrap_or_default();
            let until = it.expires_at.as_ref().map(time_text).unwrap_or_default();
            let state = if it.moved.is_empty() { "waits" } else { "the vault has moved" };
            [it.proposal_id.clone(), by, until, state.to_owned(), it.reason.clone()]
        };
        let rows: Vec<_> = answer.proposals.iter().map(row).collect();
        if rows.is_empty() {
            return "nothing waits for approval".to_owned();
        }
        table(["PROPOSAL", "BY", "UNTIL", "STATE", "REASON"], &rows)
    })
}

async fn approve(
    connection: &Connection,
    print: Printer,
    id: String,
    confirmation: Confirmation,
) -> Result<(), CliError> {
    let not_confirmed = || CliError::because("NOT_CONFIRMED", "nothing was approved; --yes does not ask".to_owned());
    if !confirmation.yes && print.is_json() {
        // A program can't be asked.
        return Err(not_confirmed());
    }
    if !confirmation.yes {
        // A proposal never changes, and is refused where what it rests on has: what is shown is what is approved.
        let (proposal, _) = get(connection, id.clone()).await?;
        say(&proposal_text(&proposal));
        if !confirm(&format!("Approve and apply proposal {id}?"))? {
            return Err(not_confirmed());
        }
    }
    let request = proto::ApproveProposalRequest { proposal_id: id.clone() };
    let approved = client(connection).await?.approve_proposal(request).await?.into_inner();
    let object = json!({
        "applied": true,
        "proposal_id": id,
        "revision": approved.revision,
        "steps": approved.steps.iter().map(step_json).collect::<Vec<Value>>(),
    });
    print.answer(&object, || {
        format!("{}\napproved and applied; revision {}", steps_text(&approved.steps), approved.revision)
    })
}

async fn get(connection: &Connection, id: String) -> Result<(proto::Proposal, u64), CliError> {
    let request = proto::GetProposalRequest { proposal_id: id };
    let answer = client(connection).await?.get_proposal(request).await?.into_inner();
    let none = || CliError::failed("the broker answered without a proposal".to_owned());
    Ok((answer.proposal.ok_or_else(none)?, answer.revision))
}

fn proposal_json(it: &proto::Proposal) -> Value {
    let stamp = it.proposed.as_ref().map(|stamp| json!({ "by": stamp.by, "at": time(stamp.at.as_ref()) }));
    json!({
        "proposal_id": it.proposal_id,
        "proposed": stamp,
        "reason": it.reason,
        "expires_at": time(it.expires_at.as_ref()),
        "moved": it.moved,
        "steps": it.steps.iter().map(step_json).collect::<Vec<Value>>(),
    })
}

fn proposal_text(it: &proto::Proposal) -> String {
    let by = it.proposed.as_ref().map(|stamp| stamp.by.as_str()).unwrap_or_default();
    let at = it.proposed.as_ref().and_then(|stamp| stamp.at.as_ref()).map(time_text).unwrap_or_default();
    let until = it.expires_at.as_ref().map(time_text).unwrap_or_default();
    let mut out = format!(
        "proposal {}\nby {by} at {at}, to be approved until {until}\nreason: {}\n\n{}",
        it.proposal_id,
        it.reason,
        steps_text(&it.steps)
    );
    if !it.moved.is_empty() {
        out.push_str("\n\nit can't be approved any more, as the vault has moved since; make it anew:");
        for what in &it.moved {
            out.push_str(&format!("\n    {what}"));
        }
    }
    out
}
