//! `PolicyService.ListAccess`: who can get what.

use tonic::Status;

use super::convert::{Fields, role_out, seconds_out};
use super::proto;
use crate::broker::{Broker, Whose};
use crate::domain::access::Access;
use crate::domain::principal::Facts;
use crate::id::{AppGroupName, ClientId};

pub(super) async fn list_access(
    broker: &Broker,
    request: proto::ListAccessRequest,
) -> Result<proto::ListAccessResponse, Status> {
    let (access, revision) = broker.access(whose(request)?).await?;
    let access = access.into_iter().map(entry_out).collect();
    Ok(proto::ListAccessResponse { access, revision: revision.0 })
}

fn whose(request: proto::ListAccessRequest) -> Result<Whose, Status> {
    use proto::list_access_request::Of;
    let proto::ListAccessRequest { of, claims, certificate } = request;
    let mut fields = Fields::default();
    let claims = fields.claims("claims", &claims);
    let certificate = (!certificate.is_empty()).then(|| fields.id("certificate", ClientId::parse(&certificate)));
    if certificate.as_ref().and_then(Option::as_ref).is_some_and(|name| name.issuer().is_some()) {
        fields.refuse::<()>("certificate", "names nobody in a certificate: spiffe://… or dns:…");
    }
    let is_vouched = matches!(&of, Some(Of::Client(name)) if name.starts_with("oidc:"));
    for (field, given) in [
        ("claims", claims.as_ref().is_some_and(|it| it.iter().next().is_some())),
        ("certificate", certificate.is_some()),
    ] {
        if given && !is_vouched {
            fields
                .refuse::<()>(field, "can only be given of an oidc client: a certificate says a name and nothing else");
        }
    }
    let whose = match of {
        Some(Of::Client(name)) => fields.id("client", ClientId::parse(&name)).and_then(|client| {
            let certificate = certificate.map_or(Some(None), |name| name.map(Some))?;
            Some(Whose::Client(client, Facts { certificate, claims: claims? }))
        }),
        Some(Of::AppGroup(name)) => fields.id("app_group", AppGroupName::parse(&name)).map(Whose::AppGroup),
        None => fields.refuse("of", "is missing: name a client or an app group"),
    };
    fields.finish(whose)
}

fn entry_out(entry: Access) -> proto::AccessEntry {
    let policy = &entry.policy;
    proto::AccessEntry {
        app_group: policy.app_group.to_string(),
        role: role_out(entry.role),
        policy: policy.name.to_string(),
        key_id: entry.key.id.to_string(),
        max_ttl: Some(seconds_out(entry.max_ttl_s)),
        needs_scope: entry.needs_scope,
        operations: policy.operations.iter().map(ToString::to_string).collect(),
        features: policy.features.iter().map(ToString::to_string).collect(),
        now: entry.closed.is_none(),
        reason: entry.closed.map(|reason| reason.as_str().to_owned()).unwrap_or_default(),
        conditions: entry.conditions,
        client: entry.client,
    }
}
