//! `panic`: something leaked. A ladder of revocations from narrow to wide (token, client, policy, app group, key, account,
//! everything); each step shows what is alive under it before it asks, and any answer but `yes` goes on to the next.

use std::path::PathBuf;

use clap::Args;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::Connection;
use super::error::CliError;
use super::output::{Printer, confirm, say};
use super::revoke::{client, exposure, exposure_text, question, revoke, words};
use super::whois::whois;
use crate::client::Wire;
use crate::grpc::proto;
use crate::grpc::proto::key_service_client::KeyServiceClient;
use crate::grpc::proto::revocation_service_client::RevocationServiceClient;
use crate::grpc::proto::system_service_client::SystemServiceClient;
use crate::grpc::proto::token_service_client::TokenServiceClient;

/// The steps, from narrow to wide, as `--through` takes them.
const STEPS: [&str; 8] = ["token", "client", "policy", "app-group", "key", "account", "issuer", "everything"];

/// Revoke step by step.
#[derive(Debug, Args)]
pub(super) struct Panic {
    #[command(flatten)]
    found: Found,
    /// Why, for whoever reads the audit.
    #[arg(long)]
    reason: String,
    /// The widest step to offer; with --yes, every step up to it is taken.
    #[arg(long, value_parser = STEPS.to_vec(), value_name = "STEP")]
    through: Option<String>,
    /// Do not ask; needs --through.
    #[arg(long, requires = "through")]
    yes: bool,
}

/// What was found.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct Found {
    /// A file with the leaked JWT.
    #[arg(long, value_name = "FILE")]
    jwt: Option<PathBuf>,
    /// The id of a live token.
    #[arg(long, value_name = "TOKEN_ID")]
    token_id: Option<String>,
}

impl Panic {
    pub(super) async fn run(self, connection: &Connection, print: &Printer) -> Result<(), CliError> {
        if print.is_json() && !self.yes {
            // A program can't be asked.
            return Err(CliError::because("NOT_CONFIRMED", "nothing was revoked; --yes does not ask".to_owned()));
        }
        let steps = self.found.ladder(connection).await?;
        let widest = self.through.as_deref().unwrap_or("everything");
        let within = |step: &str| STEPS.iter().position(|it| *it == step) <= STEPS.iter().position(|it| *it == widest);
        let mut revocations = client(connection).await?;
        let (mut done, mut failed): (Vec<Value>, Vec<Value>) = (Vec::new(), Vec::new());
        for target in steps.into_iter().filter(|target| within(kind(target).as_str())) {
            if !self.yes {
                let (summary, tokens) = exposure(&mut revocations, Some(&target)).await?;
                say(&format!("\n{}: {}", words(&target), exposure_text(&summary, &tokens)));
                if !confirm(&question(&target))? {
                    continue;
                }
            }
            let name = words(&target);
            // One step that fails must not keep the wider ones from being taken.
            match revoke(&mut revocations, target, self.reason.clone()).await {
                Ok((object, text)) => {
                    print.note(&text);
                    let (revision, count) = (object.get("revision"), object.get("count"));
                    done.push(json!({ "revoked": name, "revision": revision, "count": count }));
                }
                Err(error) => {
                    print.note(&format!("{name} was not revoked: {} [{}]", error.message, error.reason));
                    failed.push(json!({ "step": name, "reason": error.reason, "message": error.message }));
                }
            }
        }
        if within("everything") && self.everything(&mut revocations).await? {
            let request = proto::SealRequest { reason: self.reason.clone() };
            let revision =
                SystemServiceClient::new(connection.open().await?).seal(request).await?.into_inner().revision;
            print.note("sealed: nothing is signed any more, on any replica, until an operator unseals it");
            done.push(json!({ "revoked": "everything", "revision": revision }));
        }
        print.answer(&json!({ "steps": done, "failed": failed }), || {
            format!("{} of {} steps were taken", done.len(), done.len().saturating_add(failed.len()))
        })?;
        if failed.is_empty() {
            return Ok(());
        }
        Err(CliError::because("STEPS_FAILED", format!("{} steps could not be taken; see above", failed.len())))
    }

    async fn everything(&self, revocations: &mut RevocationServiceClient<Wire>) -> Result<bool, CliError> {
        if self.yes {
            return Ok(true);
        }
        let (summary, tokens) = exposure(revocations, None).await?;
        say(&format!("\neverything: {}", exposure_text(&summary, &tokens)));
        confirm("Seal the whole vault? No client gets a token until an operator unseals it.")
    }
}

fn kind(target: &proto::Target) -> String {
    words(target).split(' ').next().unwrap_or_default().to_owned()
}

impl Found {
    /// What stops the owner of the token, from narrow to wide.
    async fn ladder(&self, connection: &Connection) -> Result<Vec<proto::Target>, CliError> {
        if let Some(file) = &self.jwt {
            let jwt = std::fs::read_to_string(file).map(Zeroizing::new);
            let jwt = jwt.map_err(|error| CliError::usage(format!("{}: {error}", file.display())))?;
            return Ok(whois(connection, jwt.trim()).await?.stops);
        }
        let token_id = self.token_id.clone().unwrap_or_default();
        let channel = connection.open().await?;
        let request = proto::IntrospectTokenRequest { token_id: token_id.clone() };
        let token = TokenServiceClient::new(channel.clone()).introspect_token(request).await?.into_inner();
        let request = proto::GetKeyRequest { key_id: token.key_id.clone() };
        let key = KeyServiceClient::new(channel).get_key(request).await?.into_inner().key.unwrap_or_default();
        let step = |kind: proto::TargetKind, name: String| proto::Target { kind: kind.into(), name };
        Ok(vec![
            step(proto::TargetKind::Token, token_id),
            step(proto::TargetKind::Client, token.client),
            step(proto::TargetKind::Policy, token.policy),
            step(proto::TargetKind::AppGroup, token.app_group),
            step(proto::TargetKind::Key, token.key_id),
            step(proto::TargetKind::Account, key.account),
        ])
    }
}
