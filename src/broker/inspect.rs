//! Answers what a token is: to whom it belongs, whether it was revoked, and what stops its owner.
//!
//! Both questions are answered from the database as it is now: this replica first catches up with the log, so that a
//! revocation that returned anywhere is seen (P5), and reads the audit rows.

use super::error::BrokerError;
use super::{Broker, Caller};
use crate::clock::UnixMillis;
use crate::domain::audit::{AuditEvent, AuditRow, LiveToken, Outcome};
use crate::domain::operator::Power;
use crate::domain::principal::Facts;
use crate::domain::state::State;
use crate::domain::target::Target;
use crate::id::{ClientId, KeyId, Revision, TokenId};
use crate::signer::Presented;
use crate::store::{ExposureCursor, Under};
use crate::vault::p8;

/// Most times of handing out that one answer lists.
const MOST_HANDOUTS: u32 = 100;

/// How far clocks of replicas may have been apart when a token was written down.
const LEEWAY_MS: i64 = 300_000;

/// A token that is alive.
#[derive(Debug, Clone)]
pub struct Introspected {
    /// The token.
    pub token: LiveToken,
    /// What revoked it, where something did.
    pub revoked_by: Option<Target>,
    /// The revision of the answer.
    pub revision: Revision,
}

/// Whose a token is.
#[derive(Debug, Clone)]
pub struct Whois {
    /// Its id.
    pub id: TokenId,
    /// The key that signed it.
    pub key_id: KeyId,
    /// When it dies, or died, in Unix seconds; and how long that is from now.
    pub expires_at: i64,
    /// Seconds until then; 0 for a dead one.
    pub expires_in_s: i64,
    /// Each time it was handed out, oldest first, with the replica that did.
    pub handouts: Vec<(AuditRow, String)>,
    /// Whether it was revoked since.
    pub revoked: bool,
    /// What stops its owner, narrowest first.
    pub stops: Vec<Target>,
    /// The revision of the answer.
    pub revision: Revision,
}

impl Broker {
    /// What a live token is. A client sees its own; an operator with `audit` or `revoke` all.
    ///
    /// # Errors
    /// With one answer for a token that is not alive, not known or not the caller's.
    pub async fn introspect(&self, caller: &Caller, id: &TokenId) -> Result<Introspected, BrokerError> {
        let open = self.open()?;
        let state = open.follow.catch_up().await?;
        if let Some(reason) = state.refuses(&caller.principal) {
            return Err(BrokerError::Refused(reason));
        }
        let sees_all =
            [Power::Audit, Power::Revoke].iter().any(|power| state.operator_with(&caller.principal, *power).is_some());
        let now_s = self.parts.clock.now().seconds();
        let store = &self.parts.store;
        // A client's question is found among its own tokens: what others hold costs it nothing, and them nothing.
        let under =
            if sees_all { Under::Token(id.clone()) } else { Under::TokenOf(id.clone(), caller.client().clone()) };
        let live = store.exposure(&under, Revision(u64::MAX), now_s, &ExposureCursor::default(), 1).await?;
        let token = live.into_iter().next().ok_or_else(|| hidden(id))?;
        let revoked_by = targets_of(&token, &state).into_iter().find(|it| state.revoked_since(token.revision, [it]));
        if sees_all && token.client != caller.client().as_str() {
            self.record_read(caller, "IntrospectToken", &format!("token {id}"), Some(token.key_id.clone()));
        }
        Ok(Introspected { token, revoked_by, revision: state.head().revision })
    }

    /// Whose a JWT is.
    ///
    /// # Errors
    /// Where it is none of this vault's keys', or was changed.
    pub async fn whois(&self, caller: &Caller, jwt: &str) -> Result<Whois, BrokerError> {
        let open = self.open()?;
        let state = open.follow.catch_up().await?;
        let presented = Presented::read(jwt).map_err(BrokerError::NotAToken)?;
        let key_id = presented.key_id().clone();
        // Also of a destroyed key: its public half stays.
        let key = state.keys().get(&key_id).ok_or_else(|| super::keys::not_found(&key_id))?;
        let public_key = data_encoding::BASE64.decode(key.public_key.as_bytes());
        let public_key = public_key.map_err(|error| BrokerError::Internal(error.to_string()))?;
        let point = p8::public_point(&public_key).unwrap_or_default();
        if !presented.is_signed_by(point) {
            return Err(BrokerError::SignatureWrong(key_id));
        }
        let id = presented.id().clone();
        let now_s = self.parts.clock.now().seconds();
        let rows = self.rows_of(&id, presented.issued_at(), presented.expires_at()).await?;
        let replica = |row: &AuditRow| state.writers().get(&row.writer).map(|writer| writer.replica.clone());
        let stops = stops(&id, &key_id, &rows, presented.expires_at() > now_s, &state);
        self.record_read(caller, "Whois", &format!("token {id}"), Some(key_id.to_string()));
        Ok(Whois {
            revoked: revoked_by(&state, &id, &rows).is_some(),
            handouts: rows.iter().map(|row| (row.clone(), replica(row).unwrap_or_default())).collect(),
            expires_in_s: presented.expires_at().saturating_sub(now_s).max(0),
            expires_at: presented.expires_at(),
            revision: state.head().revision,
            id,
            key_id,
            stops,
        })
    }

    async fn rows_of(&self, id: &TokenId, issued_at: i64, expires_at: i64) -> Result<Vec<AuditRow>, BrokerError> {
        let from = UnixMillis(UnixMillis::from_seconds(issued_at).0.saturating_sub(LEEWAY_MS));
        let until = UnixMillis(UnixMillis::from_seconds(expires_at).0.saturating_add(LEEWAY_MS));
        Ok(self.parts.store.handouts(id, from, until, MOST_HANDOUTS).await?)
    }

    /// Writes down that an operator looked at what is somebody else's.
    pub(super) fn record_read(&self, caller: &Caller, event: &str, detail: &str, key_id: Option<String>) {
        let Ok(decision_id) = self.decision_id() else { return };
        let Ok(open) = self.open() else { return };
        let row = AuditEvent {
            outcome: Outcome::Read,
            detail: detail.to_owned(),
            key_id,
            ..self.refusal(caller, event, "OK", &decision_id, open.state().head().revision)
        };
        if !open.ledger.refuse(row) {
            self.parts.metrics.audit_rows_dropped.inc();
        }
    }
}

fn hidden(id: &TokenId) -> BrokerError {
    BrokerError::NotFound { kind: "live token of yours", name: id.to_string() }
}

/// Everything that a handed-out token can be revoked by, narrowest first.
fn targets(id: &TokenId, row: &AuditRow, state: &State) -> Vec<Target> {
    let event = &row.event;
    let text = |part: &Option<String>| part.clone().unwrap_or_default();
    targets_of(
        &LiveToken {
            id: id.clone(),
            client: event.caller.clone(),
            policy: text(&event.policy),
            key_id: text(&event.key_id),
            certificate: Facts::parse(&event.identity)
                .and_then(|it| it.certificate)
                .map(|it| it.to_string())
                .unwrap_or_default(),
            app_group: text(&event.app_group),
            issued_at: 0,
            expires_at: 0,
            revision: event.revision,
        },
        state,
    )
}

/// The same of one that is alive.
pub(super) fn targets_of(token: &LiveToken, state: &State) -> Vec<Target> {
    let named = |kind: &str, name: &str| Target::parse(kind, name).and_then(Result::ok);
    let client = ClientId::parse(&token.client).ok();
    let key = KeyId::parse(&token.key_id).ok();
    let account = key.as_ref().and_then(|key| state.keys().get(key)).map(|key| Target::Account(key.account.clone()));
    [
        Some(Target::Token(token.id.clone())),
        client.clone().map(Target::Client),
        named("client", &token.certificate),
        named("policy", &token.policy),
        named("app-group", &token.app_group),
        key.map(Target::Key),
        account,
        client.and_then(|client| client.issuer()).map(Target::Issuer),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// What revoked a token, of all that it was handed out under: a revocation after its row, standing or lifted.
fn revoked_by(state: &State, id: &TokenId, rows: &[AuditRow]) -> Option<Target> {
    rows.iter().filter(|row| row.event.outcome == Outcome::Signed).find_map(|row| {
        let after = |target: &Target| state.revoked_since(row.event.revision, [target]);
        targets(id, row, state).into_iter().find(after)
    })
}

/// What stops those who got a token, from narrow to wide; the token alone only keeps it from being reused.
fn stops(id: &TokenId, key_id: &KeyId, rows: &[AuditRow], alive: bool, state: &State) -> Vec<Target> {
    if rows.is_empty() {
        return vec![Target::Key(key_id.clone())];
    }
    let mut out: Vec<Target> = rows.iter().flat_map(|row| targets(id, row, state)).collect();
    out.retain(|target| !state.is_revoked(target) && (alive || !matches!(target, Target::Token(_))));
    let width = |target: &Target| Target::KINDS.iter().position(|kind| *kind == target.kind());
    out.sort_by(|a, b| (width(a), a).cmp(&(width(b), b)));
    out.dedup();
    out
}
