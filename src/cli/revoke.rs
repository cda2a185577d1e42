//! `revoke`, `exposure`, `reinstate`. A revoke shows what it will do before it asks.

use clap::Args;
use serde_json::{Value, json};

use super::Connection;
use super::error::CliError;
use super::output::{Printer, confirm, table, time, time_text};
use crate::client::Wire;
use crate::domain::target;
use crate::grpc::proto;
use crate::grpc::proto::revocation_service_client::RevocationServiceClient;

/// With more tokens than these a person is shown counts; `--output json` has all of them.
const MOST_SHOWN: usize = 50;

/// What, by kind and name.
#[derive(Debug, Args)]
pub(super) struct What {
    /// The kind.
    #[arg(value_parser = target::Target::KINDS.to_vec())]
    kind: String,
    /// The name: a token id, a client (spiffe://… or dns:…), a Key ID, or the name of a policy, app group, account or issuer.
    name: String,
}

#[derive(Debug, Args)]
pub(super) struct Confirmation {
    /// Do not ask.
    #[arg(long)]
    pub(super) yes: bool,
}

#[derive(Debug, Args)]
pub(super) struct RevokeArgs {
    #[command(flatten)]
    what: What,
    /// Why, for whoever reads the audit.
    #[arg(long)]
    reason: String,
    #[command(flatten)]
    confirmation: Confirmation,
}

#[derive(Debug, Args)]
pub(super) struct ExposureArgs {
    #[command(flatten)]
    what: What,
}

#[derive(Debug, Args)]
pub(super) struct ReinstateArgs {
    #[command(flatten)]
    what: What,
    /// Why, for whoever reads the audit.
    #[arg(long)]
    reason: String,
}

impl What {
    fn target(self) -> proto::Target {
        let kind = match self.kind.as_str() {
            "key" => proto::TargetKind::Key,
            "client" => proto::TargetKind::Client,
            "policy" => proto::TargetKind::Policy,
            "app-group" => proto::TargetKind::AppGroup,
            "token" => proto::TargetKind::Token,
            "account" => proto::TargetKind::Account,
            _ => proto::TargetKind::Issuer,
        };
        proto::Target { kind: kind.into(), name: self.name }
    }
}

/// A kind and a name, as the command line spells them.
pub(super) fn words(target: &proto::Target) -> String {
    let kind = super::output::bare(target.kind().as_str_name(), "TARGET_KIND_").to_ascii_lowercase().replace('_', "-");
    format!("{kind} {}", target.name)
}

impl RevokeArgs {
    pub(super) async fn run(self, connection: &Connection, print: &Printer) -> Result<(), CliError> {
        revoke_target(connection, *print, self.what.target(), self.reason, self.confirmation).await
    }
}

impl ExposureArgs {
    pub(super) async fn run(self, connection: &Connection, print: &Printer) -> Result<(), CliError> {
        let mut client = client(connection).await?;
        let (summary, tokens) = exposure(&mut client, Some(&self.what.target())).await?;
        print.answer(&exposure_json(&summary, &tokens), || exposure_text(&summary, &tokens))
    }
}

impl ReinstateArgs {
    pub(super) async fn run(self, connection: &Connection, print: &Printer) -> Result<(), CliError> {
        let target = self.what.target();
        let (name, request) =
            (target.name.clone(), proto::ReinstateRequest { target: Some(target), reason: self.reason });
        let revision = client(connection).await?.reinstate(request).await?.into_inner().revision;
        print.answer(&json!({ "revision": revision }), || {
            format!(
                "{name} is reinstated from revision {revision} on; tokens issued before it was revoked stay revoked"
            )
        })
    }
}

pub(super) async fn revoke_target(
    connection: &Connection,
    print: Printer,
    target: proto::Target,
    reason: String,
    confirmation: Confirmation,
) -> Result<(), CliError> {
    let mut client = client(connection).await?;
    let not_confirmed = || CliError::because("NOT_CONFIRMED", "nothing was revoked; --yes does not ask".to_owned());
    if !confirmation.yes && print.is_json() {
        // A program can't be asked.
        return Err(not_confirmed());
    }
    if !confirmation.yes {
        let (summary, tokens) = exposure(&mut client, Some(&target)).await?;
        super::output::say(&exposure_text(&summary, &tokens));
        if !confirm(&question(&target))? {
            return Err(not_confirmed());
        }
    }
    let (object, text) = revoke(&mut client, target, reason).await?;
    print.answer(&object, || text)
}

/// What is asked before a revoke.
pub(super) fn question(target: &proto::Target) -> String {
    let forever = match target.kind() {
        proto::TargetKind::Key => " A key is revoked for good, and its bytes are destroyed.",
        proto::TargetKind::Token => " It lives on at Apple until it expires, and is never handed out again.",
        _ => "",
    };
    format!("Revoke {}?{forever}", words(target))
}

/// Revokes; answers what it means, for a program and for a person.
pub(super) async fn revoke(
    client: &mut RevocationServiceClient<Wire>,
    target: proto::Target,
    reason: String,
) -> Result<(Value, String), CliError> {
    let request = proto::RevokeRequest { target: Some(target.clone()), reason };
    let revocation = client.revoke(request).await?.into_inner().revocation;
    let revocation =
        revocation.ok_or_else(|| CliError::failed("the broker answered without a revocation".to_owned()))?;
    let mut tokens = revocation.exposure.clone();
    if u64::try_from(tokens.len()).unwrap_or(u64::MAX) < revocation.count {
        // The answer lists the first thousand; the rest is paged.
        tokens = exposure(client, Some(&target)).await?.1;
    }
    let mut object = exposure_json(
        &proto::ExposureResponse {
            revision: revocation.revision,
            count: revocation.count,
            last_expires_at: revocation.last_expires_at,
            counts: revocation.counts.clone(),
            ..proto::ExposureResponse::default()
        },
        &tokens,
    );
    if let Some(fields) = object.as_object_mut() {
        let left = Some(revocation.left_at_apple.clone()).filter(|left| !left.is_empty());
        fields.insert("left_at_apple".to_owned(), left.map_or(Value::Null, Value::String));
    }
    // The three clocks of a revocation, in the order in which they run out.
    let mut out = format!(
        "{} is revoked at revision {}: no new token from this moment on; clients that watch are being told\n",
        words(&target),
        revocation.revision
    );
    match &revocation.last_expires_at {
        None => out.push_str("no token under it is alive"),
        Some(last) => out.push_str(&format!(
            "{} out and can't be called back; the last one dies at {}\n{}",
            tokens_are(revocation.count),
            time_text(last),
            if tokens.len() > MOST_SHOWN { counts_text(&revocation.counts) } else { tokens_text(&tokens) }
        )),
    }
    if !revocation.left_at_apple.is_empty() {
        out.push_str(&format!("\nleft to do: {}", revocation.left_at_apple));
    }
    Ok((object, out))
}

pub(super) async fn client(connection: &Connection) -> Result<RevocationServiceClient<Wire>, CliError> {
    Ok(RevocationServiceClient::new(connection.open().await?))
}

/// The first page's sums, and the tokens of all pages.
pub(super) async fn exposure(
    client: &mut RevocationServiceClient<Wire>,
    target: Option<&proto::Target>,
) -> Result<(proto::ExposureResponse, Vec<proto::LiveToken>), CliError> {
    let ask = |page_token| proto::ExposureRequest { target: target.cloned(), page_token };
    let mut first = client.exposure(ask(String::new())).await?.into_inner();
    let mut tokens = std::mem::take(&mut first.exposure);
    let mut page_token = std::mem::take(&mut first.next_page_token);
    while !page_token.is_empty() {
        let next = client.exposure(ask(page_token)).await?.into_inner();
        tokens.extend(next.exposure);
        page_token = next.next_page_token;
    }
    Ok((first, tokens))
}

fn exposure_json(summary: &proto::ExposureResponse, tokens: &[proto::LiveToken]) -> Value {
    let token = |token: &proto::LiveToken| {
        json!({
            "token_id": token.token_id,
            "client": token.client,
            "policy": token.policy,
            "key_id": token.key_id,
            "app_group": token.app_group,
            "issued_at": time(token.issued_at.as_ref()),
            "expires_at": time(token.expires_at.as_ref()),
        })
    };
    let count = |it: &proto::ExposureCount| json!({ "by": it.by, "name": it.name, "count": it.count });
    json!({
        "revision": summary.revision,
        "count": summary.count,
        "last_expires_at": time(summary.last_expires_at.as_ref()),
        "exposure": tokens.iter().map(token).collect::<Vec<_>>(),
        "counts": summary.counts.iter().map(count).collect::<Vec<_>>(),
    })
}

pub(super) fn exposure_text(summary: &proto::ExposureResponse, tokens: &[proto::LiveToken]) -> String {
    match &summary.last_expires_at {
        None => "no token under it is alive".to_owned(),
        Some(last) => {
            format!(
                "{} alive; the last one dies at {}\n{}",
                tokens_are(summary.count),
                time_text(last),
                if tokens.len() > MOST_SHOWN { counts_text(&summary.counts) } else { tokens_text(tokens) }
            )
        }
    }
}

fn tokens_are(count: u64) -> String {
    if count == 1 { "1 token is".to_owned() } else { format!("{count} tokens are") }
}

fn counts_text(counts: &[proto::ExposureCount]) -> String {
    let rows: Vec<_> = counts.iter().map(|it| [it.by.clone(), it.name.clone(), it.count.to_string()]).collect();
    table(["BY", "NAME", "TOKENS"], &rows)
}

fn tokens_text(tokens: &[proto::LiveToken]) -> String {
    let at = |time: Option<&prost_types::Timestamp>| time.map(time_text).unwrap_or_default();
    let row = |token: &proto::LiveToken| {
        [
            token.token_id.clone(),
            token.client.clone(),
            token.policy.clone(),
            token.key_id.clone(),
            at(token.issued_at.as_ref()),
            at(token.expires_at.as_ref()),
        ]
    };
    let rows: Vec<_> = tokens.iter().map(row).collect();
    table(["TOKEN", "CLIENT", "POLICY", "KEY", "ISSUED", "EXPIRES"], &rows)
}
