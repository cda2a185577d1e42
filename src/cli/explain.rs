//! `explain`: why a request is granted or refused, or was; and, for a refusal, what would change that.

use clap::{ArgGroup, Args};
use serde_json::{Value, json};

use super::Connection;
use super::access::claims;
use super::error::CliError;
use super::output::{Printer, enforcement_json, table, time, time_text};
use super::token::{role, ttl};
use crate::grpc::proto;
use crate::grpc::proto::explain_request::What;
use crate::grpc::proto::policy_service_client::PolicyServiceClient;

#[derive(Debug, Args)]
#[command(group(ArgGroup::new("what").required(true).args(["decision_id", "client"])))]
pub(super) struct Explain {
    /// A decision that was made, by the id that its caller was told: 32 hex digits.
    decision_id: Option<String>,
    #[command(flatten)]
    imagined: Imagined,
}

/// A request to imagine.
#[derive(Debug, Args)]
struct Imagined {
    /// Who would ask: spiffe://…, dns:… or oidc:ISSUER:SUBJECT.
    #[arg(long, requires = "app_group", requires = "role")]
    client: Option<String>,
    /// The app group.
    #[arg(long, requires = "client")]
    app_group: Option<String>,
    /// The role, as Apple spells it: APP_MANAGER, DEVELOPER, …
    #[arg(long, requires = "client")]
    role: Option<String>,
    /// Time to live, such as 5m; the policy's default where absent.
    #[arg(long, value_name = "DURATION", allow_hyphen_values = true, requires = "client")]
    ttl: Option<String>,
    /// A read that the token would be confined to, such as "GET /v1/apps"; may be repeated.
    #[arg(long, value_name = "OPERATION", requires = "client")]
    scope: Vec<String>,
    /// What the issuer would say of an oidc client; may be repeated.
    #[arg(long, value_name = "NAME=VALUE", requires = "client")]
    claim: Vec<String>,
    /// The name in the certificate of an oidc client's connection.
    #[arg(long, value_name = "NAME", requires = "client")]
    certificate: Option<String>,
}

impl Explain {
    pub(super) async fn run(self, connection: &Connection, print: &Printer) -> Result<(), CliError> {
        let what = match self.decision_id {
            Some(id) => What::DecisionId(id),
            None => What::Request(self.imagined.message()?),
        };
        let mut client = PolicyServiceClient::new(connection.open().await?);
        let request = proto::ExplainRequest { what: Some(what) };
        let explained = client.explain(request).await?.into_inner();
        print.answer(&object(&explained), || text(&explained))
    }
}

impl Imagined {
    fn message(self) -> Result<proto::ImaginedRequest, CliError> {
        Ok(proto::ImaginedRequest {
            client: self.client.unwrap_or_default(),
            claims: claims(&self.claim)?,
            certificate: self.certificate.unwrap_or_default(),
            app_group: self.app_group.unwrap_or_default(),
            role: role(&self.role.unwrap_or_default())?,
            ttl: ttl(self.ttl.as_deref())?,
            scope: self.scope,
        })
    }
}

fn object(explained: &proto::ExplainResponse) -> Value {
    let text = |text: &String| if text.is_empty() { Value::Null } else { Value::String(text.clone()) };
    let considered = |it: &proto::Considered| {
        json!({
            "kind": it.kind,
            "name": it.name,
            "passes": it.passes,
            "reason": text(&it.reason),
            "explanation": it.explanation,
        })
    };
    let key =
        |it: &proto::ConsideredKey| json!({ "key_id": it.key_id, "chosen": it.chosen, "explanation": it.explanation });
    json!({
        "allowed": explained.allowed,
        "reason": text(&explained.reason),
        "policy": text(&explained.policy),
        "ceiling": text(&explained.ceiling),
        "path": explained.path,
        "considered": explained.considered.iter().map(considered).collect::<Vec<_>>(),
        "keys": explained.keys.iter().map(key).collect::<Vec<_>>(),
        "enforced_by": explained.enforced_by.iter().map(enforcement_json).collect::<Vec<_>>(),
        "expires_at": time(explained.expires_at.as_ref()),
        "smallest_change": explained.smallest_change,
        "policy_may_allow": explained.policy_may_allow,
        "archived": text(&explained.archived),
        "recorded": text(&explained.recorded),
        "revision": explained.revision,
    })
}

fn text(explained: &proto::ExplainResponse) -> String {
    let mut parts = Vec::new();
    if !explained.recorded.is_empty() {
        parts.push(format!("the audit has\n  {}", explained.recorded));
    }
    if !explained.archived.is_empty() {
        parts.push(explained.archived.clone());
    }
    if explained.path.is_empty() {
        parts.push("no policy was asked for this: there is nothing more to explain".to_owned());
        return parts.join("\n\n");
    }
    parts.push(headline(explained));
    let steps = explained.path.iter().enumerate();
    let steps: Vec<String> = steps.map(|(at, step)| format!("  {}. {step}", at.saturating_add(1))).collect();
    parts.push(format!("the path\n{}", steps.join("\n")));
    for (kind, head) in [("policy", "POLICY"), ("ceiling", "CEILING")] {
        let rows: Vec<_> = explained.considered.iter().filter(|it| it.kind == kind).map(considered_row).collect();
        if !rows.is_empty() {
            parts.push(table([head, "PASSES", "REASON", "WHY"], &rows));
        }
    }
    if !explained.keys.is_empty() {
        let row = |key: &proto::ConsideredKey| [key.key_id.clone(), yes(key.chosen), key.explanation.clone()];
        let rows: Vec<_> = explained.keys.iter().map(row).collect();
        parts.push(table(["KEY", "SIGNS", "WHY"], &rows));
    }
    if !explained.allowed {
        parts.push(change(explained));
    }
    parts.join("\n\n")
}

fn headline(explained: &proto::ExplainResponse) -> String {
    let mut out = if explained.allowed { "GRANTED".to_owned() } else { format!("DENIED {}", explained.reason) };
    for (what, name) in [("policy", &explained.policy), ("ceiling", &explained.ceiling)] {
        if !name.is_empty() {
            out.push_str(&format!(", {what} {name}"));
        }
    }
    if let Some(at) = explained.expires_at.as_ref().filter(|_| explained.allowed) {
        out.push_str(&format!(", until {}", time_text(at)));
    }
    format!("{out}, at revision {}", explained.revision)
}

fn considered_row(it: &proto::Considered) -> [String; 4] {
    [it.name.clone(), yes(it.passes), it.reason.clone(), it.explanation.clone()]
}

fn yes(it: bool) -> String {
    if it { "yes" } else { "no" }.to_owned()
}

fn change(explained: &proto::ExplainResponse) -> String {
    let head = if explained.policy_may_allow {
        "the smallest change that would allow it"
    } else {
        "no policy may allow it as things are; it would take"
    };
    let changes = explained.smallest_change.iter().map(|change| format!("\n  - {change}"));
    format!("{head}{}", changes.collect::<String>())
}
