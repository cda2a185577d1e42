//! `TokenService`: what clients use.

use std::sync::Arc;

use prost_types::Duration;
use tonic::{Request, Response, Status};

use super::convert::{Fields, enforcement_out, seconds_out, target_out, time_out};
use super::proto::token_service_server::TokenService;
use super::proto::{
    IntrospectTokenRequest, IntrospectTokenResponse, IssueTokenRequest, IssueTokenResponse, WatchRequest,
};
use super::standing::Standing;
use super::watch::WatchStream;
use super::{Service, caller};
use crate::broker::{Issued, TokenAsk};
use crate::domain::apple::{LONGEST_SCOPED_LIFETIME_S, MOST_SCOPE_BYTES, MOST_SCOPE_ENTRIES, SHORTEST_TTL_S};
use crate::domain::decide::TokenRequest;
use crate::domain::operation::Operation;
use crate::domain::principal::Principal;
use crate::id::{AppGroupName, Revision, TokenId};

#[tonic::async_trait]
impl TokenService for Service {
    async fn issue_token(&self, request: Request<IssueTokenRequest>) -> Result<Response<IssueTokenResponse>, Status> {
        let caller = caller(&request)?;
        let ask = ask(caller.principal.clone(), &request.into_inner())?;
        let issued = self.0.issue(&caller, ask).await?;
        Ok(Response::new(answer(&issued)))
    }

    type WatchStream = WatchStream;

    async fn watch(&self, request: Request<WatchRequest>) -> Result<Response<WatchStream>, Status> {
        let caller = caller(&request)?;
        let standing = Standing::of(&request, &self.0)?;
        let watch = self.0.watch(&caller, Revision(request.get_ref().from_revision)).await?;
        Ok(Response::new(WatchStream::new(Arc::clone(&self.0), standing, watch)))
    }

    async fn introspect_token(
        &self,
        request: Request<IntrospectTokenRequest>,
    ) -> Result<Response<IntrospectTokenResponse>, Status> {
        let caller = caller(&request)?;
        let mut fields = Fields::default();
        let id = fields.id("token_id", TokenId::parse(&request.get_ref().token_id));
        let id = fields.finish(id)?;
        let found = self.0.introspect(&caller, &id).await?;
        let token = found.token;
        Ok(Response::new(IntrospectTokenResponse {
            token_id: token.id.to_string(),
            client: token.client,
            policy: token.policy,
            key_id: token.key_id,
            app_group: token.app_group,
            issued_at: Some(time_out(token.issued_at)),
            expires_at: Some(time_out(token.expires_at)),
            revoked: found.revoked_by.is_some(),
            revoked_by: found.revoked_by.as_ref().map(target_out),
            revision: found.revision.0,
        }))
    }
}

fn ask(principal: Principal, request: &IssueTokenRequest) -> Result<TokenAsk, Status> {
    let mut fields = Fields::default();
    let app_group = fields.id("app_group", AppGroupName::parse(&request.app_group));
    let role = fields.role("role", request.role);
    let ttl_s = ttl(&mut fields, "ttl", request.ttl.as_ref());
    let scope = scope(&mut fields, "scope", &request.scope);
    let parts = app_group.zip(role).zip(scope);
    fields.finish(parts.map(|((app_group, role), scope)| TokenAsk {
        request: TokenRequest { principal, app_group, role, ttl_s, scope },
        fresh: request.fresh,
    }))
}

/// The time to live that is asked for, in seconds; `None` where there is none, or it can't be.
pub(super) fn ttl(fields: &mut Fields, path: &str, ttl: Option<&Duration>) -> Option<i64> {
    let seconds = fields.seconds(path, ttl?)?;
    if !(SHORTEST_TTL_S..=LONGEST_SCOPED_LIFETIME_S).contains(&seconds) {
        let message = format!("must lie between {SHORTEST_TTL_S}s and {LONGEST_SCOPED_LIFETIME_S}s (180 days)");
        return fields.refuse(path, message);
    }
    Some(seconds)
}

pub(super) fn scope(fields: &mut Fields, path: &str, entries: &[String]) -> Option<Vec<Operation>> {
    if entries.len() > MOST_SCOPE_ENTRIES || entries.iter().map(String::len).sum::<usize>() > MOST_SCOPE_BYTES {
        return fields.refuse(path, format!("has more than {MOST_SCOPE_ENTRIES} entries or {MOST_SCOPE_BYTES} bytes"));
    }
    let mut out = Vec::with_capacity(entries.len());
    for (at, entry) in entries.iter().enumerate() {
        match Operation::parse(entry) {
            Ok(operation) => out.push(operation),
            Err(error) => drop(fields.refuse::<()>(&format!("{path}[{at}]"), error.to_string())),
        }
    }
    if out.len() != entries.len() {
        return None;
    }
    // One order and no repetition, so that equal scopes share one token.
    out.sort();
    out.dedup();
    Some(out)
}

fn answer(issued: &Issued) -> IssueTokenResponse {
    let permit = issued.token.permit();
    IssueTokenResponse {
        token: issued.token.expose_jwt().to_owned(),
        token_id: issued.token.id().to_string(),
        expires_at: Some(time_out(permit.expires_at())),
        expires_in: Some(seconds_out(permit.expires_at().saturating_sub(issued.decided_at.seconds()))),
        key_id: permit.key().id.to_string(),
        issuer_id: permit.issuer_id().to_string(),
        policy: permit.policy().name.to_string(),
        revision: issued.revision.0,
        enforced_by: issued.enforced_by.iter().cloned().map(enforcement_out).collect(),
        reused: issued.reused,
        decision_id: issued.decision_id.to_string(),
    }
}
