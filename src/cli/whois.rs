//! `whois`: whose a leaked token is. The token is read from standard input, so that it stands in no shell history.

use std::io::Read;

use clap::Args;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::Connection;
use super::error::CliError;
use super::output::{Printer, table, time, time_text};
use super::revoke::words;
use crate::grpc::proto;
use crate::grpc::proto::audit_service_client::AuditServiceClient;

/// Longest text that is read: far more than any token has.
const MOST_BYTES: u64 = 64 * 1024;

#[derive(Debug, Args)]
pub(super) struct WhoisArgs {}

impl WhoisArgs {
    pub(super) async fn run(self, connection: &Connection, print: &Printer) -> Result<(), CliError> {
        let mut jwt = Zeroizing::new(String::new());
        std::io::stdin().lock().take(MOST_BYTES).read_to_string(&mut jwt)?;
        let found = whois(connection, jwt.trim()).await?;
        print.answer(&object(&found), || text(&found))
    }
}

pub(super) async fn whois(connection: &Connection, jwt: &str) -> Result<proto::WhoisResponse, CliError> {
    if jwt.is_empty() {
        return Err(CliError::usage("no token was given; for example: p8broker whois < token.jwt".to_owned()));
    }
    let request = proto::WhoisRequest { token: jwt.to_owned() };
    Ok(AuditServiceClient::new(connection.open().await?).whois(request).await?.into_inner())
}

fn object(found: &proto::WhoisResponse) -> Value {
    let handout = |it: &proto::Handout| {
        json!({
            "at": time(it.at.as_ref()),
            "client": it.client,
            "identity": it.identity,
            "policy": it.policy,
            "app_group": it.app_group,
            "role": it.role,
            "replica": it.replica,
            "decision_id": it.decision_id,
            "reused": it.reused,
        })
    };
    json!({
        "token_id": found.token_id,
        "key_id": found.key_id,
        "expires_at": time(found.expires_at.as_ref()),
        "expires_in_s": found.expires_in.map_or(0, |it| it.seconds),
        "issued_here": found.issued_here,
        "handouts": found.handouts.iter().map(handout).collect::<Vec<_>>(),
        "revoked": found.revoked,
        "stops": found.stops.iter().map(words).collect::<Vec<_>>(),
        "revision": found.revision,
    })
}

fn text(found: &proto::WhoisResponse) -> String {
    let left = found.expires_in.map_or(0, |it| it.seconds);
    let end = found.expires_at.as_ref().map(time_text).unwrap_or_default();
    let life = if left > 0 { format!("alive for another {left} s, until {end}") } else { format!("dead since {end}") };
    let revoked = if found.revoked { ", and revoked here" } else { "" };
    let mut out = format!("token {}\nsigned with key {}; {life}{revoked}\n", found.token_id, found.key_id);
    if found.issued_here {
        let row = |it: &proto::Handout| {
            [
                it.at.as_ref().map(time_text).unwrap_or_default(),
                it.client.clone(),
                it.policy.clone(),
                it.app_group.clone(),
                it.role.clone(),
                it.replica.clone(),
            ]
        };
        let rows: Vec<_> = found.handouts.iter().map(row).collect();
        out.push_str(&table(["HANDED OUT", "CLIENT", "POLICY", "APP GROUP", "ROLE", "REPLICA"], &rows));
        out.push('\n');
    } else {
        out.push_str(
            "the audit does not have it: unless its rows were pruned, somebody else has this .p8; revoke the key here and at \
             Apple\n",
        );
    }
    if found.stops.is_empty() {
        out.push_str("everything that it was issued under is revoked");
    } else {
        out.push_str("what stops its owner, from narrow to wide:");
        for target in &found.stops {
            out.push_str(&format!("\n  p8broker revoke {} --reason \"...\"", words(target)));
        }
    }
    out
}
