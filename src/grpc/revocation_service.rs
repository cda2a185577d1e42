//! `RevocationService`: revoking, and what is exposed.

use tonic::{Request, Response, Status};

use super::convert::{Fields, bad_page_token, page_token_in, page_token_out, time_out};
use super::proto::revocation_service_server::RevocationService;
use super::proto::{
    ExposureCount, ExposureRequest, ExposureResponse, LiveToken, ReinstateRequest, ReinstateResponse, Revocation,
    RevokeRequest, RevokeResponse,
};
use super::{Service, caller};
use crate::broker::{Count, Revoked};
use crate::domain::audit;
use crate::store::ExposureCursor;

#[tonic::async_trait]
impl RevocationService for Service {
    async fn revoke(&self, request: Request<RevokeRequest>) -> Result<Response<RevokeResponse>, Status> {
        let caller = caller(&request)?;
        let request = request.get_ref();
        let mut fields = Fields::default();
        let parts = fields.target(request.target.as_ref()).zip(fields.reason(&request.reason));
        let (target, reason) = fields.finish(parts)?;
        let revoked = self.0.revoke(&caller, target, reason).await?;
        Ok(Response::new(RevokeResponse { revocation: Some(revocation_out(revoked)) }))
    }

    async fn exposure(&self, request: Request<ExposureRequest>) -> Result<Response<ExposureResponse>, Status> {
        let caller = caller(&request)?;
        let request = request.get_ref();
        let mut fields = Fields::default();
        // Absent is all of them; one that is there must make sense.
        let target = match request.target.as_ref() {
            None => Some(None),
            some => fields.target(some).map(Some),
        };
        let target = fields.finish(target)?;
        let after = if request.page_token.is_empty() { ExposureCursor::default() } else { place(&request.page_token)? };
        let exposure = self.0.exposure(&caller, target.as_ref(), &after).await?;
        let next = exposure.tokens.last().filter(|_| exposure.more);
        Ok(Response::new(ExposureResponse {
            revision: exposure.revision.0,
            count: exposure.totals.count,
            last_expires_at: exposure.totals.last_expires_at.map(time_out),
            next_page_token: next.map(place_out).unwrap_or_default(),
            exposure: exposure.tokens.into_iter().map(token_out).collect(),
            counts: exposure.counts.into_iter().map(count_out).collect(),
        }))
    }

    async fn reinstate(&self, request: Request<ReinstateRequest>) -> Result<Response<ReinstateResponse>, Status> {
        let caller = caller(&request)?;
        let request = request.get_ref();
        let mut fields = Fields::default();
        let parts = fields.target(request.target.as_ref()).zip(fields.reason(&request.reason));
        let (target, reason) = fields.finish(parts)?;
        let revision = self.0.reinstate(&caller, target, reason).await?;
        Ok(Response::new(ReinstateResponse { revision: revision.0 }))
    }
}

/// No name holds a line break.
fn place_out(last: &audit::LiveToken) -> String {
    let parts = [last.expires_at.to_string(), last.id.to_string()];
    page_token_out(
        &[&parts[0], &parts[1], &last.client, &last.policy, &last.certificate].map(String::as_str).join("\n"),
    )
}

fn place(token: &str) -> Result<ExposureCursor, Status> {
    let text = page_token_in(token)?;
    match text.split('\n').collect::<Vec<_>>().as_slice() {
        [time, id, client, policy, certificate] => time.parse().ok().map(|expires_at| ExposureCursor {
            expires_at,
            token_id: (*id).to_owned(),
            client: (*client).to_owned(),
            policy: (*policy).to_owned(),
            certificate: (*certificate).to_owned(),
        }),
        _ => None,
    }
    .ok_or_else(|| bad_page_token(token))
}

pub(super) fn revocation_out(revoked: Revoked) -> Revocation {
    Revocation {
        revision: revoked.exposure.revision.0,
        count: revoked.exposure.totals.count,
        last_expires_at: revoked.exposure.totals.last_expires_at.map(time_out),
        exposure: revoked.exposure.tokens.into_iter().map(token_out).collect(),
        left_at_apple: revoked.left_at_apple.unwrap_or_default(),
        counts: revoked.exposure.counts.into_iter().map(count_out).collect(),
    }
}

fn count_out(count: Count) -> ExposureCount {
    ExposureCount { by: count.by.as_str().to_owned(), name: count.name, count: count.count }
}

fn token_out(token: audit::LiveToken) -> LiveToken {
    LiveToken {
        token_id: token.id.to_string(),
        client: token.client,
        policy: token.policy,
        key_id: token.key_id,
        app_group: token.app_group,
        issued_at: Some(time_out(token.issued_at)),
        expires_at: Some(time_out(token.expires_at)),
    }
}
