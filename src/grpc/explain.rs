//! `PolicyService.Explain`: why a request would be granted or refused, or was.

use tonic::Status;

use super::convert::{Fields, enforcement_out, time_out};
use super::proto;
use super::proto::explain_request::What;
use super::token_service::{scope, ttl};
use crate::broker::{Broker, Caller, Explained, Imagined};
use crate::domain::explain::{Considered, ConsideredKey, Explanation};
use crate::domain::principal::Facts;
use crate::id::{AppGroupName, ClientId, DecisionId};

pub(super) async fn explain(
    broker: &Broker,
    caller: &Caller,
    request: proto::ExplainRequest,
) -> Result<proto::ExplainResponse, Status> {
    let mut fields = Fields::default();
    let explained = match &request.what {
        Some(What::DecisionId(id)) => {
            let id = fields.id("decision_id", DecisionId::parse(id));
            broker.explain_decision(caller, &fields.finish(id)?).await?
        }
        Some(What::Request(request)) => {
            let imagined = imagined(&mut fields, request);
            broker.explain(fields.finish(imagined)?).await?
        }
        None => {
            let nothing = fields.refuse("what", "is missing: name a decision, or a request to imagine");
            fields.finish(nothing)?
        }
    };
    Ok(explained_out(explained))
}

fn imagined(fields: &mut Fields, request: &proto::ImaginedRequest) -> Option<Imagined> {
    let client = fields.id("request.client", ClientId::parse(&request.client));
    let is_vouched = client.as_ref().is_none_or(|client| client.issuer().is_some());
    let certificate = (!request.certificate.is_empty())
        .then(|| fields.id("request.certificate", ClientId::parse(&request.certificate)))
        .flatten();
    if certificate.as_ref().is_some_and(|name| name.issuer().is_some()) {
        fields.refuse::<()>("request.certificate", "is the name in a certificate: spiffe://... or dns:...");
    }
    for (name, given) in [("certificate", !request.certificate.is_empty()), ("claims", !request.claims.is_empty())] {
        if given && !is_vouched {
            fields.refuse::<()>(&format!("request.{name}"), "is for a client that an issuer vouches for, oidc:...");
        }
    }
    let claims = fields.claims("request.claims", &request.claims);
    let app_group = fields.id("request.app_group", AppGroupName::parse(&request.app_group));
    let role = fields.role("request.role", request.role);
    let ttl_s = ttl(fields, "request.ttl", request.ttl.as_ref());
    let scope = scope(fields, "request.scope", &request.scope);
    Some(Imagined {
        client: client?,
        facts: Facts { certificate, claims: claims? },
        app_group: app_group?,
        role: role?,
        ttl_s,
        scope: scope?,
    })
}

fn explained_out(explained: Explained) -> proto::ExplainResponse {
    let mut out = explained.explanation.map(explanation_out).unwrap_or_default();
    out.expires_at = explained.expires_at.map(time_out);
    out.revision = explained.revision.0;
    out.archived = explained.archived.unwrap_or_default();
    out.recorded = explained.recorded.unwrap_or_default();
    out
}

fn explanation_out(explanation: Explanation) -> proto::ExplainResponse {
    let mut out = proto::ExplainResponse {
        path: explanation.path,
        considered: explanation.considered.into_iter().map(considered_out).collect(),
        keys: explanation.keys.into_iter().map(key_out).collect(),
        ..proto::ExplainResponse::default()
    };
    match explanation.outcome {
        Ok(granted) => {
            out.allowed = true;
            out.policy = granted.policy.to_string();
            out.enforced_by = granted.enforced_by.into_iter().map(enforcement_out).collect();
        }
        Err(denial) => {
            out.reason = denial.reason.as_str().to_owned();
            out.policy = denial.policy.map(|name| name.to_string()).unwrap_or_default();
            out.ceiling = denial.ceiling.map(|name| name.to_string()).unwrap_or_default();
        }
    }
    if let Some(change) = explanation.smallest_change {
        out.smallest_change = change.sentences;
        out.policy_may_allow = change.policy_may_allow;
    }
    out
}

fn considered_out(it: Considered) -> proto::Considered {
    proto::Considered {
        kind: it.kind.to_owned(),
        name: it.name,
        passes: it.passes,
        reason: it.reason.to_owned(),
        explanation: it.explanation,
    }
}

fn key_out(key: ConsideredKey) -> proto::ConsideredKey {
    proto::ConsideredKey { key_id: key.id.to_string(), chosen: key.chosen, explanation: key.explanation }
}
