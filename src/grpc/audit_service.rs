//! `AuditService`: what happened.

use std::pin::Pin;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::convert::{
    Fields, bad_page_token, millis_in, millis_out, page_token_in, page_token_out, seconds_out, target_out, time_out,
};
use super::proto::audit_service_server::AuditService;
use super::proto::{
    AuditEvent, AuditFilter, AuditFinding, FollowRequest, FollowResponse, Handout, ListRequest, ListResponse, Outcome,
    PruneRequest, PruneResponse, VerifyRequest, VerifyResponse, WhoisRequest, WhoisResponse,
};
use super::standing::Standing;
use super::status::invalid;
use super::{Service, caller};
use crate::broker::{AuditEnds, Broker};
use crate::clock::UnixMillis;
use crate::domain::audit;
use crate::domain::document::Violation;
use crate::store::AuditCursor;

/// How often a follower looks for new rows.
const FOLLOW_EVERY: Duration = Duration::from_millis(250);

/// Rows read at a time for a follower, and kept for one that is slow.
const FOLLOW_PAGE: u32 = 500;

#[tonic::async_trait]
impl AuditService for Service {
    async fn list(&self, request: Request<ListRequest>) -> Result<Response<ListResponse>, Status> {
        let caller = caller(&request)?;
        let request = request.get_ref();
        let mut fields = Fields::default();
        let parts = fields.page(request.page_size).zip(filter(&mut fields, request.filter.as_ref()));
        let (size, filter) = fields.finish(parts)?;
        let after = if request.page_token.is_empty() { before_all() } else { place(&request.page_token)? };
        let page = self.0.list_audit(&caller, &filter, &after, size).await?;
        Ok(Response::new(ListResponse {
            events: page.rows.into_iter().map(event_out).collect(),
            next_page_token: page.next.map(|place| place_out(&place)).unwrap_or_default(),
        }))
    }

    type FollowStream = Pin<Box<dyn Stream<Item = Result<FollowResponse, Status>> + Send>>;

    async fn follow(&self, request: Request<FollowRequest>) -> Result<Response<Self::FollowStream>, Status> {
        let caller = caller(&request)?;
        let standing = Standing::of(&request, &self.0)?;
        let mut fields = Fields::default();
        let filter = filter(&mut fields, request.get_ref().filter.as_ref());
        let filter = fields.finish(filter)?;
        let ends = self.0.audit_ends(&caller).await?;
        let (sender, receiver) = mpsc::channel(FOLLOW_PAGE as usize);
        let broker = std::sync::Arc::clone(&self.0);
        self.0.spawn(async move {
            let end = follow(&broker, &standing, filter, ends, &sender).await;
            if let Err(status) = end {
                // The stream's last word; a follower that has gone, or does not read, does not hear it.
                let _ = sender.try_send(Err(status));
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn verify(&self, request: Request<VerifyRequest>) -> Result<Response<VerifyResponse>, Status> {
        let done = self.0.verify_audit(&caller(&request)?).await?;
        let finding =
            |it: crate::broker::Finding| AuditFinding { writer: it.writer, sequence: it.sequence, what: it.what };
        Ok(Response::new(VerifyResponse {
            rows: done.rows,
            writers: done.writers,
            findings: done.findings.into_iter().take(1000).map(finding).collect(),
        }))
    }

    async fn prune(&self, request: Request<PruneRequest>) -> Result<Response<PruneResponse>, Status> {
        let caller = caller(&request)?;
        let before = request.get_ref().before.as_ref().map(millis_in).filter(|before| *before <= self.0.clock().now());
        let Some(before) = before else {
            let message = "must be a moment in the past: rows before it are removed".to_owned();
            return Err(invalid(&[Violation { path: "before".to_owned(), message }]));
        };
        let pruned = self.0.prune_audit(&caller, before).await?;
        Ok(Response::new(PruneResponse { rows: pruned.rows, revision: pruned.revision.0 }))
    }

    async fn whois(&self, request: Request<WhoisRequest>) -> Result<Response<WhoisResponse>, Status> {
        let caller = caller(&request)?;
        // INVARIANT (P1): the bearer credential is wiped once it is looked at.
        let token = zeroize::Zeroizing::new(request.into_inner().token);
        let found = self.0.whois(&caller, &token).await?;
        Ok(Response::new(WhoisResponse {
            token_id: found.id.to_string(),
            key_id: found.key_id.to_string(),
            expires_at: Some(time_out(found.expires_at)),
            expires_in: Some(seconds_out(found.expires_in_s)),
            issued_here: !found.handouts.is_empty(),
            handouts: found.handouts.into_iter().map(|(row, replica)| handout_out(row, replica)).collect(),
            revoked: found.revoked,
            stops: found.stops.iter().map(target_out).collect(),
            revision: found.revision.0,
        }))
    }
}

/// Sends rows as they come: first those of the past, where they are asked for, then what each writer adds. The caller is
/// authenticated and authorised anew before every page.
async fn follow(
    broker: &Broker,
    standing: &Standing,
    filter: audit::AuditFilter,
    mut ends: AuditEnds,
    sender: &mpsc::Sender<Result<FollowResponse, Status>>,
) -> Result<(), Status> {
    // A follower that does not read must not keep a broker from stopping.
    let send = async |row: audit::AuditRow| {
        let answer = Ok(FollowResponse { event: Some(event_out(row)) });
        matches!(broker.stopping().run_until_cancelled(sender.send(answer)).await, Some(Ok(())))
    };
    let mut place = filter.from.map(|_| before_all());
    while let Some(after) = place {
        let page = broker.list_audit(standing.caller()?, &filter, &after, FOLLOW_PAGE).await?;
        for row in page.rows {
            // What was written since the ends were read comes below.
            let known = ends.get(&row.writer).is_some_and(|last| row.sequence <= *last);
            if known && !send(row).await {
                return Ok(());
            }
        }
        place = page.next;
    }
    while !sender.is_closed() && !broker.stopping().is_cancelled() {
        let rows = broker.audit_since(standing.caller()?, &mut ends).await?;
        if rows.is_empty() {
            tokio::time::sleep(FOLLOW_EVERY).await;
        }
        for row in rows {
            if filter.matches(&row.event) && !send(row).await {
                return Ok(());
            }
        }
    }
    Ok(())
}

fn filter(fields: &mut Fields, filter: Option<&AuditFilter>) -> Option<audit::AuditFilter> {
    let Some(filter) = filter else { return Some(audit::AuditFilter::default()) };
    let some = |text: &String| Some(text.clone()).filter(|text| !text.is_empty());
    let outcome = match Outcome::try_from(filter.outcome) {
        Ok(Outcome::Unspecified) => None,
        Ok(Outcome::Signed) => Some(audit::Outcome::Signed),
        Ok(Outcome::Reused) => Some(audit::Outcome::Reused),
        Ok(Outcome::Changed) => Some(audit::Outcome::Changed),
        Ok(Outcome::Read) => Some(audit::Outcome::Read),
        Ok(Outcome::Denied) => Some(audit::Outcome::Denied),
        Err(_) => return fields.refuse("filter.outcome", format!("{} is not an outcome", filter.outcome)),
    };
    for (name, text) in [
        ("client", &filter.client),
        ("key_id", &filter.key_id),
        ("policy", &filter.policy),
        ("decision_id", &filter.decision_id),
    ] {
        if text.len() > 2048 {
            fields.refuse::<()>(&format!("filter.{name}"), "has more than 2048 bytes");
        }
    }
    Some(audit::AuditFilter {
        from: filter.from.as_ref().map(millis_in),
        until: filter.until.as_ref().map(millis_in),
        caller: some(&filter.client),
        key_id: some(&filter.key_id),
        policy: some(&filter.policy),
        outcome,
        decision_id: some(&filter.decision_id),
    })
}

fn before_all() -> AuditCursor {
    AuditCursor { at: UnixMillis(i64::MIN), ..AuditCursor::default() }
}

fn place_out(place: &AuditCursor) -> String {
    page_token_out(&format!("{} {} {}", place.at.0, place.writer, place.sequence))
}

fn place(token: &str) -> Result<AuditCursor, Status> {
    let text = page_token_in(token)?;
    match text.split(' ').collect::<Vec<_>>().as_slice() {
        [at, writer, sequence] => at.parse().ok().zip(sequence.parse().ok()).map(|(at, sequence)| AuditCursor {
            at: UnixMillis(at),
            writer: (*writer).to_owned(),
            sequence,
        }),
        _ => None,
    }
    .ok_or_else(|| bad_page_token(token))
}

fn event_out(row: audit::AuditRow) -> AuditEvent {
    let event = row.event;
    let outcome = match event.outcome {
        audit::Outcome::Signed => Outcome::Signed,
        audit::Outcome::Reused => Outcome::Reused,
        audit::Outcome::Changed => Outcome::Changed,
        audit::Outcome::Read => Outcome::Read,
        audit::Outcome::Denied => Outcome::Denied,
    };
    AuditEvent {
        writer: row.writer.to_string(),
        sequence: row.sequence,
        at: Some(millis_out(event.at)),
        event: event.event,
        outcome: outcome.into(),
        reason: event.reason,
        decision_id: event.decision_id,
        caller: event.caller,
        identity: event.identity,
        detail: event.detail,
        policy: event.policy.unwrap_or_default(),
        key_id: event.key_id.unwrap_or_default(),
        app_group: event.app_group.unwrap_or_default(),
        role: event.role.unwrap_or_default(),
        scope: event.scope.map(|scope| scope.lines().map(ToOwned::to_owned).collect()).unwrap_or_default(),
        token_id: event.token.as_ref().map(|token| token.id.to_string()).unwrap_or_default(),
        issued_at: event.token.as_ref().map(|token| time_out(token.issued_at)),
        expires_at: event.token.as_ref().map(|token| time_out(token.expires_at)),
        revision: event.revision.0,
    }
}

fn handout_out(row: audit::AuditRow, replica: String) -> Handout {
    let event = row.event;
    Handout {
        at: Some(millis_out(event.at)),
        client: event.caller,
        identity: event.identity,
        policy: event.policy.unwrap_or_default(),
        app_group: event.app_group.unwrap_or_default(),
        role: event.role.unwrap_or_default(),
        replica,
        decision_id: event.decision_id,
        reused: event.outcome == audit::Outcome::Reused,
    }
}
