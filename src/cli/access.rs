//! `access list`: what one client can get, or who can touch one app group; computed by the broker from its policies.

use std::collections::HashMap;

use clap::{ArgGroup, Args, Subcommand};
use serde_json::{Value, json};

use super::Connection;
use super::error::CliError;
use super::output::{Printer, bare, table};
use crate::grpc::proto;

/// Who can get what.
#[derive(Debug, Subcommand)]
pub(super) enum AccessCommand {
    /// List what a client can get, or who can get something for an app group.
    List(List),
}

#[derive(Debug, Args)]
#[command(group(ArgGroup::new("whose").required(true).args(["client", "app_group"])))]
pub(super) struct List {
    /// What can this client get? `spiffe://…`, `dns:…` or `oidc:ISSUER:SUBJECT`.
    #[arg(long, value_name = "CLIENT")]
    client: Option<String>,
    /// Who can touch this app group?
    #[arg(long, value_name = "NAME")]
    app_group: Option<String>,
    /// A claim that the issuer makes of an oidc client; may be repeated, also with the same name. What is left out is
    /// taken as open, and told as a condition.
    #[arg(long, value_name = "NAME=VALUE", requires = "client")]
    claim: Vec<String>,
    /// The name in the certificate with which an oidc client connects.
    #[arg(long, value_name = "NAME", requires = "client")]
    certificate: Option<String>,
}

impl AccessCommand {
    pub(super) async fn run(self, connection: &Connection, print: &Printer) -> Result<(), CliError> {
        let Self::List(list) = self;
        list.run(connection, print).await
    }
}

impl List {
    async fn run(self, connection: &Connection, print: &Printer) -> Result<(), CliError> {
        use proto::list_access_request::Of;
        let by_group = self.app_group.is_some();
        let request = proto::ListAccessRequest {
            of: self.app_group.map(Of::AppGroup).or(self.client.map(Of::Client)),
            claims: claims(&self.claim)?,
            certificate: self.certificate.unwrap_or_default(),
        };
        let answer = super::apply::client(connection).await?.list_access(request).await?.into_inner();
        let access: Vec<Value> = answer.access.iter().map(object).collect();
        print.answer(&json!({ "access": access, "revision": answer.revision }), || text(&answer.access, by_group))
    }
}

/// Claims of an imagined caller, `NAME=VALUE` each; `explain` takes them, too.
pub(super) fn claims(texts: &[String]) -> Result<HashMap<String, proto::ClaimValues>, CliError> {
    let mut out: HashMap<String, proto::ClaimValues> = HashMap::new();
    for text in texts {
        let wrong = || {
            let text = crate::id::shown(text);
            CliError::usage(format!("--claim `{text}` is not NAME=VALUE, such as repository_id=42"))
        };
        let (name, value) = text.split_once('=').filter(|(name, _)| !name.is_empty()).ok_or_else(wrong)?;
        out.entry(name.to_owned()).or_default().values.push(value.to_owned());
    }
    Ok(out)
}

fn role(entry: &proto::AccessEntry) -> &str {
    bare(entry.role().as_str_name(), "ROLE_")
}

fn object(entry: &proto::AccessEntry) -> Value {
    json!({
        "client": entry.client,
        "app_group": entry.app_group,
        "role": role(entry),
        "policy": entry.policy,
        "key_id": entry.key_id,
        "max_ttl_s": entry.max_ttl.map_or(0, |it| it.seconds),
        "needs_scope": entry.needs_scope,
        "operations": entry.operations,
        "features": entry.features,
        "now": entry.now,
        "reason": entry.reason,
        "conditions": entry.conditions,
    })
}

fn text(access: &[proto::AccessEntry], by_group: bool) -> String {
    if access.is_empty() {
        return if by_group { "nobody can get anything" } else { "this client can get nothing" }.to_owned();
    }
    let row = |entry: &proto::AccessEntry| {
        let reads = entry.operations.iter().chain(&entry.features).cloned().collect::<Vec<_>>().join(", ");
        let scope = if entry.needs_scope { "required" } else { "optional" };
        let scope = if reads.is_empty() { scope.to_owned() } else { format!("{scope}: {reads}") };
        let now = if entry.now { "yes" } else { entry.reason.as_str() };
        [
            if by_group { entry.client.clone() } else { entry.app_group.clone() },
            role(entry).to_owned(),
            entry.policy.clone(),
            entry.key_id.clone(),
            format!("{} s", entry.max_ttl.map_or(0, |it| it.seconds)),
            now.to_owned(),
            scope,
            entry.conditions.join("; "),
        ]
    };
    let first = if by_group { "CLIENT" } else { "APP GROUP" };
    let rows: Vec<_> = access.iter().map(row).collect();
    table([first, "ROLE", "POLICY", "KEY", "LONGEST", "NOW", "SCOPE", "IF"], &rows)
}
