//! Explains decisions on tokens: those that would be made now, and those that were made.
//!
//! Steps for one that was made: find its row; load the state of the row's revision from the control log, as it can be folded
//! again from any checkpoint that is there; read the request back from the row; explain it on that state, at the row's time.
//! Where the state is not there any more, the request is explained on the present one, and the answer says so. The rows of
//! the audit are taken as they are: whether they are whole is what `audit verify` tells.
//!
//! # Invariants
//! - `INV-EXPLAIN-3`: whoever is told of somebody's decision holds the power `audit`, and that they looked is written down.

use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;

use super::aside::Slot;
use super::error::BrokerError;
use super::issue::{ISSUE_TOKEN, asked_ttl};
use super::load::{LoadError, state_at};
use super::{Broker, Caller, OpenVault, require};
use crate::clock::UnixMillis;
use crate::domain::audit::{AuditEvent, AuditFilter, AuditRow, Outcome};
use crate::domain::decide::TokenRequest;
use crate::domain::explain::{Explanation, at_the_door, explain, imagine};
use crate::domain::operation::Operation;
use crate::domain::operator::Power;
use crate::domain::principal::Facts;
use crate::domain::role::Role;
use crate::domain::state::State;
use crate::id::{AppGroupName, ClientId, DecisionId, Revision};
use crate::store::AuditCursor;

/// Most rows of one decision.
const MOST_ROWS: u32 = 10;

/// The row of a refusal is written a moment after its caller was told.
const ROW_COMES_AFTER: Duration = Duration::from_millis(300);

/// A request that somebody imagines.
#[derive(Debug, Clone)]
pub struct Imagined {
    /// Who would ask.
    pub client: ClientId,
    /// What would be known of them, where an issuer vouches for them.
    pub facts: Facts,
    /// For which apps.
    pub app_group: AppGroupName,
    /// With which role.
    pub role: Role,
    /// For how long, in seconds; the policy's default where absent.
    pub ttl_s: Option<i64>,
    /// Confined to which reads.
    pub scope: Vec<Operation>,
}

/// What there is to say of a decision.
#[derive(Debug, Clone)]
pub struct Explained {
    /// Why it is as it is; `None` where it was no decision on a token.
    pub explanation: Option<Explanation>,
    /// Where the state that it was made on is not there any more: says so.
    pub archived: Option<String>,
    /// What the audit has of it.
    pub recorded: Option<String>,
    /// When the token that was granted dies, in Unix seconds.
    pub expires_at: Option<i64>,
    /// The revision it was made at.
    pub revision: Revision,
}

impl Broker {
    /// Explains what would be decided now.
    ///
    /// # Errors
    /// Where the vault is not open, or the database is away.
    pub async fn explain(&self, imagined: Imagined) -> Result<Explained, BrokerError> {
        let state = self.open()?.follow.catch_up().await?;
        let Imagined { client, facts, app_group, role, ttl_s, scope } = imagined;
        let request = TokenRequest { principal: imagine(client, facts, &state), app_group, role, ttl_s, scope };
        let refused = at_the_door(&request.principal);
        let mut explanation = self.explained(request, &state, self.parts.clock.now(), self.free_slot().await?).await?;
        explanation.path.splice(0..0, refused);
        Ok(Explained {
            expires_at: explanation.outcome.as_ref().ok().map(|granted| granted.expires_at),
            explanation: Some(explanation),
            archived: None,
            recorded: None,
            revision: state.head().revision,
        })
    }

    /// Explains a decision that was made.
    ///
    /// # Errors
    /// Where the caller lacks the power, the audit does not have it, or the database is away.
    pub async fn explain_decision(&self, caller: &Caller, id: &DecisionId) -> Result<Explained, BrokerError> {
        let open = self.open()?;
        let state = open.follow.catch_up().await?;
        // INVARIANT (INV-EXPLAIN-3)
        require(&state, &caller.principal, Power::Audit)?;
        let rows = self.rows_of_decision(id).await?;
        let row = rows.iter().find(|row| row.event.event == ISSUE_TOKEN).or(rows.first());
        let row = row.ok_or_else(|| BrokerError::UnknownDecision(id.clone()))?;
        self.record_read(caller, "Explain", &format!("decision {id}"), row.event.key_id.clone());
        let recorded: Vec<String> = rows.iter().map(|row| recorded(row, &state)).collect();
        let mut out = Explained {
            explanation: None,
            archived: None,
            recorded: Some(recorded.join("; ")),
            expires_at: row.event.token.as_ref().map(|token| token.expires_at),
            revision: row.event.revision,
        };
        // Of what is not a decision on a token, or was refused before there was a state to decide on, this is all.
        if request_of(&row.event, &state).is_none() {
            return Ok(out);
        }
        let (then, slot) = self.state_of(&open, &state, row.event.revision).await?;
        let (then, at) = match then {
            Ok(then) => (then, row.event.at),
            Err(LoadError::Store(error)) => return Err(error.into()),
            Err(gone) => {
                out.archived = Some(archived(row.event.revision, &gone, &state));
                out.revision = state.head().revision;
                (state, self.parts.clock.now())
            }
        };
        let Some(request) = request_of(&row.event, &then) else { return Ok(out) };
        let unsaid = request.principal.vouched.is_some() && Facts::parse(&row.event.identity).is_none();
        let mut explanation = self.explained(request, &then, at, slot).await?;
        if unsaid {
            explanation
                .path
                .push("what the issuer said of the client is not in the audit: no claims are known".to_owned());
        }
        if out.archived.is_some() {
            out.expires_at = explanation.outcome.as_ref().ok().map(|granted| granted.expires_at);
        } else {
            explanation.path.extend(beside(&row.event, &explanation));
        }
        out.explanation = Some(explanation);
        Ok(out)
    }

    /// What mends a refusal is found by trying: with many policies that takes a while, and no other request waits for it.
    async fn explained(
        &self,
        request: TokenRequest,
        state: &Arc<State>,
        at: UnixMillis,
        slot: Slot,
    ) -> Result<Explanation, BrokerError> {
        let state = Arc::clone(state);
        Ok(self.within(slot, move || explain(&request, &state, at)).await?.0)
    }

    async fn rows_of_decision(&self, id: &DecisionId) -> Result<Vec<AuditRow>, BrokerError> {
        let filter = AuditFilter { decision_id: Some(id.to_string()), ..AuditFilter::default() };
        let rows = async || self.parts.store.list_rows(&filter, &AuditCursor::default(), MOST_ROWS).await;
        let found = rows().await?;
        if !found.is_empty() {
            return Ok(found);
        }
        tokio::time::sleep(ROW_COMES_AFTER).await;
        Ok(rows().await?)
    }

    /// The state of a revision, and the slot that it was read in, for what is done with it.
    async fn state_of(
        &self,
        open: &Arc<OpenVault>,
        present: &Arc<State>,
        revision: Revision,
    ) -> Result<(Result<Arc<State>, LoadError>, Slot), BrokerError> {
        let slot = self.free_slot().await?;
        if revision == present.head().revision {
            return Ok((Ok(Arc::clone(present)), slot));
        }
        let (store, open, runtime) = (Arc::clone(&self.parts.store), Arc::clone(open), Handle::current());
        // A whole state is opened and folded, which holds up whatever else the thread has to do.
        let read = move || runtime.block_on(state_at(store.as_ref(), open.id(), &open.vault.keyring(), revision));
        let (state, slot) = self.within(slot, read).await?;
        Ok((state.map(Arc::new), slot))
    }
}

/// The request as it was made, from what its row has; `None` where the row is of something else.
fn request_of(event: &AuditEvent, state: &State) -> Option<TokenRequest> {
    if event.event != ISSUE_TOKEN {
        return None;
    }
    let scope = event.scope.as_deref().unwrap_or_default().lines().map(|line| Operation::parse(line).ok());
    let facts = Facts::parse(&event.identity).unwrap_or_default();
    Some(TokenRequest {
        principal: imagine(ClientId::parse(&event.caller).ok()?, facts, state),
        app_group: AppGroupName::parse(event.app_group.as_deref()?).ok()?,
        role: Role::parse(event.role.as_deref()?)?,
        ttl_s: asked_ttl(&event.detail)?,
        scope: scope.collect::<Option<_>>()?,
    })
}

/// What the audit has, in words.
fn recorded(row: &AuditRow, state: &State) -> String {
    let event = &row.event;
    let mut out =
        format!("{}: {} {} at {}, {}", event.event, event.outcome.as_str(), event.reason, event.at, event.caller);
    let expiry = event.token.as_ref().map(|token| UnixMillis::from_seconds(token.expires_at).to_string());
    let revision = Some(event.revision).filter(|revision| *revision > Revision::default());
    let replica = state.writers().get(&row.writer).map(|writer| writer.replica.clone());
    for (what, value) in [
        ("role", event.role.clone()),
        ("app group", event.app_group.clone()),
        ("asked", Some(event.detail.clone())),
        ("policy", event.policy.clone()),
        ("key", event.key_id.clone()),
        ("token", event.token.as_ref().map(|token| token.id.to_string())),
        ("until", expiry),
        ("revision", revision.map(|revision| revision.to_string())),
        ("replica", replica),
    ] {
        if let Some(value) = value.filter(|value| !value.is_empty()) {
            out.push_str(&format!(", {what} {value}"));
        }
    }
    out
}

fn archived(revision: Revision, why: &LoadError, present: &State) -> String {
    format!(
        "the state of revision {revision} is archived: {why}; what follows is about the present state, of revision {}",
        present.head().revision
    )
}

/// Where the audit has another answer than policies give: something beside them gave it.
fn beside(event: &AuditEvent, explanation: &Explanation) -> Option<String> {
    let same = match (&explanation.outcome, event.outcome) {
        (Ok(granted), Outcome::Signed | Outcome::Reused) => event.policy.as_deref() == Some(granted.policy.as_str()),
        (Err(denial), Outcome::Denied) => denial.reason.as_str() == event.reason,
        _ => false,
    };
    let (outcome, reason) = (event.outcome.as_str(), &event.reason);
    (!same)
        .then(|| format!("the audit has {outcome} {reason} all the same: something beside policies gave that answer"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_asked_is_read_back_from_the_detail_of_a_row() {
        for (detail, ttl) in [
            ("ttl default, 0 scope entries", Some(None)),
            ("ttl 600s, fresh, 2 scope entries", Some(Some(600))),
            ("40 more refusals within the second, the last of them: ttl 90s, 0 scope entries", Some(Some(90))),
            ("ttl 90", None),
            ("", None),
        ] {
            assert_eq!(asked_ttl(detail), ttl, "{detail}");
        }
    }
}
