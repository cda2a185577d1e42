//! Issues a token: decide, sign or reuse, write down, answer.
//!
//! Steps: (1) decide on the state in memory; (2) take the cached token where it fits, else sign; (3) commit the audit row
//! at the head that was decided on, counted against the policy's quota; where the head has moved, go back to (1); (4) answer.
//! The order is what P4 and P5 rest on: a token exists in memory before its row does, and leaves only after. A quota that
//! is known to be used up is refused between (1) and (2), before anything is signed or asked.
//!
//! Over 400 lines, as the steps of a token are read as one.
//!
//! # Invariants
//! - P4: the answer is built after the row is durable.
//! - P5: the row is durable only at the head of the decision, so a token is listed in a revoke or decided after it.
//! - `INV-ISSUE-1`: a token is reused only for the same caller by the same certificate, policy, key, group, scope and asked lifetime, before half
//!   its life, within what this decision grants, and where nothing it was issued under was revoked since.

use std::fmt::Write as _;
use std::sync::Arc;

use moka::sync::Cache;
use tokio::sync::Mutex;

use super::error::BrokerError;
use super::ledger::{Committed, OverQuota};
use super::{Broker, Caller, OpenVault};
use crate::clock::{Stopwatch, UnixMillis};
use crate::domain::audit::{AuditEvent, AuditedToken, Outcome};
use crate::domain::decide::{Decision, Denial, Permit, TokenRequest, decide};
use crate::domain::enforcement::Enforcement;
use crate::domain::operation::Operation;
use crate::domain::principal::Principal;
use crate::domain::quota::Bound;
use crate::domain::state::State;
use crate::domain::target::Target;
use crate::id::{AppGroupName, ClientId, DecisionId, KeyId, PolicyName, Revision};
use crate::metrics::Seconds;
use crate::signer::SignedToken;
use crate::trace::{self, Fact};

/// What rows of decisions on tokens are called.
pub(super) const ISSUE_TOKEN: &str = "IssueToken";

/// A token whose row lost the head this often answers that the control plane is contended.
const MOST_TRIES: u32 = 5;

/// Most tokens kept for reuse; beyond it the least used are signed anew.
const MOST_CACHED: u64 = 10_000;

/// What a client asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenAsk {
    /// What policy decides.
    pub request: TokenRequest,
    /// Whether a new token is wanted where an earlier one would do.
    pub fresh: bool,
}

/// A token that may leave.
#[derive(Debug, Clone)]
pub struct Issued {
    /// The token, with what it was signed under.
    pub token: Arc<SignedToken>,
    /// The revision it was decided at, this time.
    pub revision: Revision,
    /// What an operator can look up.
    pub decision_id: DecisionId,
    /// When it was decided, this time.
    pub decided_at: UnixMillis,
    /// Whether it was handed out before.
    pub reused: bool,
    /// Who holds the bearer to each limit, as of this decision (P9).
    pub enforced_by: Vec<Enforcement>,
}

/// Tokens kept for reuse.
#[derive(Debug)]
pub(super) struct Tokens(Cache<Slot, Arc<Mutex<Option<Cached>>>>);

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Slot {
    client: ClientId,
    certificate: Option<ClientId>,
    policy: PolicyName,
    key: KeyId,
    group: AppGroupName,
    scope: String,
    ttl_s: Option<i64>,
}

#[derive(Debug)]
struct Cached {
    token: Arc<SignedToken>,
    /// The revision that its row was committed at.
    revision: Revision,
}

impl Default for Tokens {
    fn default() -> Self {
        Self(Cache::new(MOST_CACHED))
    }
}

impl Cached {
    /// INVARIANT (INV-ISSUE-1), as far as the slot does not hold it already.
    fn fits(&self, permit: &Permit, state: &State, caller: &Principal) -> bool {
        let issued = self.token.permit();
        let mut under = issued.revocable_by(caller);
        under.push(Target::Token(self.token.id().clone()));
        is_before_half_life(&self.token, permit.decided_at())
            && issued.expires_at() <= permit.expires_at()
            && !state.revoked_since(self.revision, &under)
    }
}

fn is_before_half_life(token: &SignedToken, now: UnixMillis) -> bool {
    let (from, end) = (token.permit().decided_at().seconds(), token.permit().expires_at());
    now.seconds().saturating_sub(from).saturating_mul(2) < end.saturating_sub(from)
}

impl Broker {
    /// Issues a token.
    ///
    /// # Errors
    /// With the denial, or with what is in the way.
    pub async fn issue(&self, caller: &Caller, ask: TokenAsk) -> Result<Issued, BrokerError> {
        let decision_id = self.decision_id()?;
        let (group, role) = (&ask.request.app_group, ask.request.role);
        trace::note(|| [Fact::AppGroup(group), Fact::Role(role), Fact::DecisionId(&decision_id)]);
        let open = match self.open() {
            Ok(open) => open,
            Err(error) => {
                self.remember_while_sealed(caller, ISSUE_TOKEN, error.reason(), &decision_id);
                return Err(error);
            }
        };
        for _ in 0..MOST_TRIES {
            let state = open.state();
            let mut step = self.step("decide");
            let decision = decide(&ask.request, &state, self.parts.clock.now());
            step.span.note(|| decided(&decision, &state));
            step.end();
            let permit = match decision {
                Ok(permit) => permit,
                // What another replica granted a moment ago is granted here, too: a refusal is of the newest state.
                Err(_) if open.follow.catch_up().await.is_ok_and(|newest| newest.head() != state.head()) => continue,
                Err(denial) => return Err(self.deny(caller, &ask, denial, decision_id)),
            };
            if !self.has_quota(&open, (caller, &ask), &permit, Bound::TokensPerHour, &decision_id).await? {
                continue;
            }
            let issued = if ask.fresh {
                let slot = self.slot(&open, caller, &ask, &permit);
                let issued = self.sign_and_commit(&open, caller, &ask, permit, &state, &decision_id).await?;
                if let Some(issued) = &issued {
                    *slot.lock().await = Some(Cached { token: Arc::clone(&issued.token), revision: issued.revision });
                }
                issued
            } else {
                self.reuse_or_sign(&open, caller, &ask, permit, &state, &decision_id).await?
            };
            if let Some(issued) = issued {
                let outcome = if issued.reused { Outcome::Reused } else { Outcome::Signed };
                let policy = &issued.token.permit().policy().name;
                trace::note(|| [Fact::Outcome(outcome), Fact::Policy(policy), Fact::Revision(issued.revision)]);
                self.parts.metrics.tokens.inc(outcome.as_str(), group.as_str(), role.as_str());
                return Ok(issued);
            }
            self.parts.metrics.fence_retries.inc();
        }
        Err(self.unwritten(BrokerError::Contended))
    }

    /// Counts a request that was not refused and has no token: it has no row, either.
    fn unwritten(&self, error: BrokerError) -> BrokerError {
        self.parts.metrics.denials.with_label_values(&[error.reason()]).inc();
        error
    }

    fn slot(&self, open: &OpenVault, caller: &Caller, ask: &TokenAsk, permit: &Permit) -> Arc<Mutex<Option<Cached>>> {
        let slot = Slot {
            client: caller.client().clone(),
            certificate: caller.principal.certificate_beside().cloned(),
            policy: permit.policy().name.clone(),
            key: permit.key().id.clone(),
            group: permit.app_group().name.clone(),
            scope: scope_text(permit.scope()),
            ttl_s: ask.request.ttl_s,
        };
        open.tokens.0.get_with(slot, Arc::default)
    }

    /// Waits where another request for the same token is just signing it, so that first requests that come together
    /// sign once.
    async fn reuse_or_sign(
        &self,
        open: &OpenVault,
        caller: &Caller,
        ask: &TokenAsk,
        permit: Permit,
        state: &State,
        decision_id: &DecisionId,
    ) -> Result<Option<Issued>, BrokerError> {
        let slot = self.slot(open, caller, ask, &permit);
        let mut cached = slot.lock().await;
        if let Some(earlier) = cached.as_ref().filter(|earlier| earlier.fits(&permit, state, &caller.principal)) {
            let (token, since) = (Arc::clone(&earlier.token), earlier.revision);
            drop(cached);
            let event = event(caller, ask, &permit, &token, (Outcome::Reused, state), decision_id);
            let decision = permit.decision();
            return self.commit(open, event, decision, &ask.request, (token, Some(since)), decision_id).await;
        }
        let issued = self.sign_and_commit(open, caller, ask, permit, state, decision_id).await?;
        if let Some(issued) = &issued {
            *cached = Some(Cached { token: Arc::clone(&issued.token), revision: issued.revision });
        }
        Ok(issued)
    }

    async fn sign_and_commit(
        &self,
        open: &OpenVault,
        caller: &Caller,
        ask: &TokenAsk,
        permit: Permit,
        state: &State,
        decision_id: &DecisionId,
    ) -> Result<Option<Issued>, BrokerError> {
        if !self.has_quota(open, (caller, ask), &permit, Bound::FreshPerMinute, decision_id).await? {
            return Ok(None);
        }
        if self.signing.check().is_err() {
            self.parts.metrics.denials.with_label_values(&[BrokerError::SigningLimited.reason()]).inc();
            return Err(BrokerError::SigningLimited);
        }
        // A key that was destroyed since the decision: the head has moved, so decide again.
        let Some(key) = open.vault.signing_key(&permit.key().id) else { return Ok(None) };
        let decision = permit.decision();
        let step = self.step("sign");
        let token = key.sign(permit).map_err(|error| BrokerError::Internal(error.to_string()))?;
        step.end();
        // Claims have whole seconds: what is signed in the second of a revoked token is that token. The next one is not.
        if state.is_revoked(&Target::Token(token.id().clone())) {
            return Ok(None);
        }
        let event = event(caller, ask, token.permit(), &token, (Outcome::Signed, state), decision_id);
        self.commit(open, event, decision, &ask.request, (Arc::new(token), None), decision_id).await
    }

    /// `since` is the revision of a reused token's own row; what is signed just now has none yet.
    async fn commit(
        &self,
        open: &OpenVault,
        event: AuditEvent,
        decision: Decision,
        request: &TokenRequest,
        (token, since): (Arc<SignedToken>, Option<Revision>),
        decision_id: &DecisionId,
    ) -> Result<Option<Issued>, BrokerError> {
        let step = self.step("commit");
        let reused = since.is_some();
        let (signed, asked) = (Arc::clone(&token), request.clone());
        let again = move |state: &State, now| holds_again(&signed, &asked, since, state, now);
        let committed = open.ledger.commit(event, decision, Box::new(again), step.span.within()).await;
        step.end();
        match committed {
            // INVARIANT (P4): the token is let go here, and nowhere else.
            Committed::Yes(decision) => {
                self.count_watched(&decision, request);
                Ok(Some(Issued {
                    token,
                    revision: decision.head.revision,
                    decision_id: decision_id.clone(),
                    decided_at: decision.at,
                    reused,
                    enforced_by: decision.enforced_by,
                }))
            }
            Committed::HeadMoved => Ok(None),
            Committed::OverQuota(OverQuota { event, bound, retry_after_s }) => {
                let denial = AuditEvent {
                    at: self.parts.clock.now(),
                    outcome: Outcome::Denied,
                    key_id: None,
                    token: None,
                    ..*event
                };
                Err(self.over_quota(denial, bound, retry_after_s, decision_id))
            }
            Committed::Unavailable => Err(self.unwritten(BrokerError::Unavailable(
                crate::store::StoreError::Unavailable("the audit row was not written".to_owned()),
            ))),
        }
    }

    /// Whether the quota may have something left, as far as this replica knows; `false` where it knows that nothing is, but
    /// of an older state: then the token must be decided again.
    ///
    /// # Errors
    /// With the refusal, which like any other is of the newest state.
    async fn has_quota(
        &self,
        open: &OpenVault,
        (caller, ask): (&Caller, &TokenAsk),
        permit: &Permit,
        bound: Bound,
        decision_id: &DecisionId,
    ) -> Result<bool, BrokerError> {
        let Some(quota) = permit.quota() else { return Ok(true) };
        let (policy, client) = (permit.policy().name.clone(), caller.client().to_string());
        let key = (policy.as_str(), client.as_str());
        let Some(retry_after_s) = open.used_up.retry_after_s(key, quota, bound, self.parts.clock.now()) else {
            return Ok(true);
        };
        if open.follow.catch_up().await.is_ok_and(|newest| newest.head() != permit.head()) {
            return Ok(false);
        }
        let denial = self.denial(caller, ask, Some(&policy), permit.head().revision, decision_id);
        Err(self.over_quota(denial, bound, retry_after_s, decision_id))
    }

    fn over_quota(&self, denial: AuditEvent, bound: Bound, retry_after_s: u64, id: &DecisionId) -> BrokerError {
        let error = BrokerError::QuotaExceeded { bound, retry_after_s, decision_id: id.clone() };
        let detail = format!("{}; {}", denial.detail, bound.as_str());
        self.record_denial(AuditEvent { reason: error.reason().to_owned(), detail, ..denial });
        error
    }

    fn deny(&self, caller: &Caller, ask: &TokenAsk, denial: Denial, decision_id: DecisionId) -> BrokerError {
        trace::note(|| [Fact::Outcome(Outcome::Denied), Fact::Revision(denial.head.revision)]);
        if let Some(policy) = &denial.policy {
            trace::note(|| [Fact::Policy(policy)]);
        }
        let event = self.denial(caller, ask, denial.policy.as_ref(), denial.head.revision, &decision_id);
        self.record_denial(AuditEvent { reason: denial.reason.as_str().to_owned(), ..event });
        BrokerError::Denied { denial, decision_id }
    }

    /// The row of a refusal; why is up to the caller.
    fn denial(
        &self,
        caller: &Caller,
        ask: &TokenAsk,
        policy: Option<&PolicyName>,
        revision: Revision,
        decision_id: &DecisionId,
    ) -> AuditEvent {
        let request = &ask.request;
        AuditEvent {
            detail: asked(ask),
            identity: match self.open() {
                Ok(open) => identity(caller, &request.app_group, &open.state()),
                Err(_) => caller.identity.clone(),
            },
            policy: policy.map(ToString::to_string),
            app_group: Some(request.app_group.to_string()),
            role: Some(request.role.to_string()),
            scope: Some(scope_text(&request.scope)).filter(|scope| !scope.is_empty()),
            ..self.refusal(caller, "IssueToken", "", decision_id, revision)
        }
    }

    fn step(&self, name: &'static str) -> Step {
        let seconds = self.parts.metrics.issue_seconds.with_label_values(&[name]);
        Step { seconds, watch: Stopwatch::start(), span: trace::step(name) }
    }
}

/// A step that is on its way: measured where it comes to its end, and in the trace in any case.
struct Step {
    seconds: Seconds,
    watch: Stopwatch,
    span: trace::Step,
}

impl Step {
    fn end(self) {
        self.seconds.observe(self.watch.seconds());
    }
}

/// What a decision is, for its step.
fn decided<'a>(decision: &'a Result<Permit, Denial>, state: &State) -> [Fact<'a>; 2] {
    let what = match decision {
        Ok(permit) => Fact::Policy(&permit.policy().name),
        Err(denial) => Fact::Reason(denial.reason.as_str()),
    };
    [what, Fact::Revision(state.head().revision)]
}

/// Decides a request again on a newer state, for a token that is signed already: it may go out where it is what the newer
/// decision grants, or less, and has most of its life before it (INV-ISSUE-1).
fn holds_again(
    token: &SignedToken,
    request: &TokenRequest,
    since: Option<Revision>,
    state: &State,
    now: UnixMillis,
) -> Option<Decision> {
    let permit = decide(request, state, now).ok()?;
    let signed = token.permit();
    let same = permit.policy().name == signed.policy().name
        && permit.key().id == signed.key().id
        && permit.issuer_id() == signed.issuer_id()
        && permit.app_group().name == signed.app_group().name
        && permit.scope() == signed.scope()
        && signed.expires_at() <= permit.expires_at()
        && is_before_half_life(token, now);
    let revoked = state.is_revoked(&Target::Token(token.id().clone()))
        || since.is_some_and(|since| state.revoked_since(since, &signed.revocable_by(&request.principal)));
    (same && !revoked).then(|| permit.decision())
}

fn event(
    caller: &Caller,
    ask: &TokenAsk,
    permit: &Permit,
    token: &SignedToken,
    (outcome, state): (Outcome, &State),
    decision_id: &DecisionId,
) -> AuditEvent {
    let signed = token.permit();
    AuditEvent {
        at: permit.decided_at(),
        event: ISSUE_TOKEN.to_owned(),
        outcome,
        reason: "OK".to_owned(),
        decision_id: decision_id.to_string(),
        caller: caller.client().to_string(),
        identity: identity(caller, &ask.request.app_group, state),
        detail: noted(ask, permit),
        policy: Some(permit.policy().name.to_string()),
        key_id: Some(permit.key().id.to_string()),
        app_group: Some(permit.app_group().name.to_string()),
        role: Some(ask.request.role.to_string()),
        scope: Some(scope_text(permit.scope())).filter(|scope| !scope.is_empty()),
        token: Some(AuditedToken {
            id: token.id().clone(),
            issued_at: signed.decided_at().seconds(),
            expires_at: signed.expires_at(),
        }),
        revision: permit.head().revision,
    }
}

/// What was asked beside app group, role and scope, which have columns of their own.
fn asked(ask: &TokenAsk) -> String {
    let ttl = ask.request.ttl_s.map_or_else(|| "default".to_owned(), |ttl| format!("{ttl}s"));
    let fresh = if ask.fresh { ", fresh" } else { "" };
    format!("ttl {ttl}{fresh}, {} scope entries", ask.request.scope.len())
}

/// The same, with what somebody should notice about the token.
fn noted(ask: &TokenAsk, permit: &Permit) -> String {
    let mut out = asked(ask);
    if permit.policy().break_glass {
        out.push_str("; break-glass");
    }
    for shadow in permit.shadows() {
        let _ = write!(out, "; {} {} would refuse: {}", shadow.kind, shadow.name, shadow.reason.as_str());
    }
    out
}

/// What the caller's name rests on, with the claims that a decision may have asked about, so that it can be explained.
fn identity(caller: &Caller, group: &AppGroupName, state: &State) -> String {
    let Some(vouched) = &caller.principal.vouched else { return caller.identity.clone() };
    let facts = caller.principal.facts(state.claims_named(group, &vouched.issuer));
    format!("{}{facts}", caller.identity)
}

/// The time to live that was asked for, in seconds, from what [`asked`] wrote; `None` for what it did not write. A summary
/// of refusals ends with what the last of them asked for.
pub(super) fn asked_ttl(detail: &str) -> Option<Option<i64>> {
    let last = detail.rsplit("the last of them: ").next()?;
    match last.strip_prefix("ttl ")?.split(',').next()? {
        "default" => Some(None),
        seconds => seconds.strip_suffix('s')?.parse().ok().map(Some),
    }
}

fn scope_text(scope: &[Operation]) -> String {
    scope.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}
