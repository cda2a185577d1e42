//! What happens to every request before a service sees it.
//!
//! Steps: find the RPC's row; count the request against the connection's limit, so that a flood costs next to nothing;
//! authenticate the connection anew, as its certificate may have lapsed since the last request, and the bearer token where
//! there is one, which then names the caller; count the request against the caller's limit; check the row's power on the
//! newest state. The token goes no further than this. Refusals of an authenticated caller are audited; those of a peer
//! without an identity, and those for sending too much, are only counted. The use cases check powers once more on the
//! state they change.

use std::num::NonZeroU32;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};
use http::header::AUTHORIZATION;
use http::{HeaderMap, Request, Response};
use tonic::body::Body;
use tonic::{Code, Status};
use tonic_types::StatusExt;
use tower::{Layer, Service};
use zeroize::Zeroizing;

use super::access::{self, Access, Audited, Limit, Who};
use super::status::{RATE_LIMITED, rate_limited};
use crate::broker::{Broker, BrokerError, Caller, Phase};
use crate::clock::Stopwatch;
use crate::domain::operator::Power;
use crate::domain::principal::Principal;
use crate::domain::state::State;
use crate::id::ClientId;
use crate::identity::mtls::Peer;
use crate::identity::oidc::{BearerError, Verifier};
use crate::trace::{Fact, Remote, Trace, Tracer};

/// How many requests a second one caller may send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// IssueToken.
    pub tokens_per_second: NonZeroU32,
    /// Everything else.
    pub admin_per_second: NonZeroU32,
}

/// The layer: authenticates, limits and authorises.
#[derive(Clone)]
pub struct Gate(Arc<Inner>);

struct Inner {
    broker: Arc<Broker>,
    verifier: Arc<Verifier>,
    tokens: DefaultKeyedRateLimiter<ClientId>,
    admin: DefaultKeyedRateLimiter<ClientId>,
    tracer: Tracer,
}

impl Gate {
    /// A gate before one broker.
    pub fn new(broker: Arc<Broker>, verifier: Arc<Verifier>, limits: Limits, tracer: Tracer) -> Self {
        Self(Arc::new(Inner {
            broker,
            verifier,
            tokens: RateLimiter::keyed(Quota::per_second(limits.tokens_per_second)),
            admin: RateLimiter::keyed(Quota::per_second(limits.admin_per_second)),
            tracer,
        }))
    }

    /// Forgets callers that have been quiet, so that memory does not grow; called every minute.
    pub fn forget_quiet_callers(&self) {
        for limiter in [&self.0.tokens, &self.0.admin] {
            limiter.retain_recent();
            limiter.shrink_to_fit();
        }
    }
}

impl Inner {
    /// Whom the certificate of the connection names.
    fn certified(&self, peer: &Peer) -> Result<Caller, Status> {
        let caller = peer.caller().inspect_err(|error| {
            // An unauthenticated peer never causes a row.
            self.broker.metrics().denials.with_label_values(&[error.reason()]).inc();
        })?;
        if peer.is_near_expiry() {
            self.broker.saw_near_expiry(caller.client());
        }
        Ok(caller)
    }

    /// Whom a trusted issuer's token names. A certificate beside it is verified, too: policies may ask for it.
    async fn vouched(&self, peer: &Peer, token: &str) -> Result<Caller, Status> {
        let certificate = peer.certificate().map(|_| self.certified(peer)).transpose()?;
        let open = self.broker.open()?;
        let issuer_of = |url: &str| open.state().issuer_of(url).cloned();
        let bearer = self.verifier.verify(token, issuer_of, peer.certificate()).await?;
        let identity = match &certificate {
            Some(caller) => format!("{}, by {}", bearer.identity, caller.identity),
            None => bearer.identity,
        };
        let principal = Principal {
            client: bearer.client,
            certificate: certificate.map(|caller| caller.principal.client),
            vouched: Some(bearer.vouched),
        };
        Ok(Caller { principal, identity })
    }

    fn admit(&self, row: &Access, caller: Caller) -> Result<Caller, Status> {
        let limiter = match row.limit {
            Limit::Tokens => Some(&self.tokens),
            Limit::Admin => Some(&self.admin),
            Limit::None => None,
        };
        if limiter.is_some_and(|limiter| limiter.check_key(caller.client()).is_err()) {
            return Err(self.limited("this client"));
        }
        self.authorise(row, &caller).map_err(|error| {
            self.broker.record_refused_rpc(&caller, row.path, error.reason());
            Status::from(error)
        })?;
        Ok(caller)
    }

    fn limited(&self, who: &str) -> Status {
        self.broker.metrics().denials.with_label_values(&[RATE_LIMITED]).inc();
        rate_limited(who)
    }

    /// What a use case refused is a refusal, too; a decision on a token has written its own row.
    fn record_refusal(&self, row: &Access, caller: &Caller, status: &Status) {
        let details = status.get_error_details();
        let reason = details.error_info().map(|info| info.reason.as_str()).unwrap_or_default();
        if status.code() == Code::PermissionDenied || reason == "BAD_SHARE" {
            self.broker.record_refused_rpc(caller, row.path, reason);
        }
    }

    fn authorise(&self, row: &Access, caller: &Caller) -> Result<(), BrokerError> {
        let phase = self.broker.phase();
        let open = match &*phase {
            Phase::Open(open) => Some(open.state()),
            Phase::NotInitialised | Phase::Sealed(_) | Phase::Refusing(_) => None,
        };
        let holds =
            |power: Power| open.as_ref().is_some_and(|state| state.operator_with(&caller.principal, power).is_some());
        // What the vault's state is comes first: a sealed broker knows no operators.
        let is_open = || self.broker.open().map(|_| ());
        match row.who {
            Who::Client => Ok(()),
            Who::Recovery if open.is_none() || holds(Power::Administer) => Ok(()),
            Who::Recovery => Err(BrokerError::LacksPower(Power::Administer)),
            Who::Power(power) => {
                is_open().and_then(|()| if holds(power) { Ok(()) } else { Err(BrokerError::LacksPower(power)) })
            }
            Who::OneOf(powers) => is_open().and_then(|()| {
                let least = powers.last().copied().unwrap_or(Power::Administer);
                if powers.iter().any(|power| holds(*power)) { Ok(()) } else { Err(BrokerError::LacksPower(least)) }
            }),
            Who::AnyPower => is_open().and_then(|()| any_power(open.as_deref(), &caller.principal)),
            Who::Bootstrap if self.broker.is_bootstrap(caller.client()) => Ok(()),
            Who::Bootstrap => match open.as_deref() {
                Some(state) => any_power(Some(state), &caller.principal),
                None => Err(BrokerError::NotAnOperator),
            },
        }
    }
}

fn any_power(state: Option<&State>, principal: &Principal) -> Result<(), BrokerError> {
    let revoked = state.is_some_and(|state| state.refuses(principal).is_some());
    let known = state.is_some_and(|state| state.operators_of(principal).next().is_some());
    if known && !revoked { Ok(()) } else { Err(BrokerError::NotAnOperator) }
}

impl<S> Layer<S> for Gate {
    type Service = Gated<S>;

    fn layer(&self, inner: S) -> Gated<S> {
        Gated { gate: Arc::clone(&self.0), inner }
    }
}

/// A service behind the gate.
#[derive(Clone)]
pub struct Gated<S> {
    gate: Arc<Inner>,
    inner: S,
}

impl<S> Service<Request<Body>> for Gated<S>
where
    S: Service<Request<Body>, Response = Response<Body>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let rpcs = self.gate.broker.metrics().rpcs.clone();
        let Some(row) = access::find(request.uri().path()) else {
            rpcs.with_label_values(&["unknown", "Unimplemented"]).inc();
            return refuse(Status::unimplemented("there is no such RPC"));
        };
        let (gate, peer) = (Arc::clone(&self.gate), request.extensions().get::<Peer>().cloned());
        let Some(peer) = peer else { return refuse(Status::internal("the connection has no peer")) };
        // Before any work is done for it.
        if !peer.may_ask() {
            rpcs.with_label_values(&[row.path, "ResourceExhausted"]).inc();
            return refuse(self.gate.limited("this connection"));
        }
        let token = bearer_of(request.headers_mut());
        // The service that was asked whether it is ready is the one that is called.
        let ready = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, ready);
        Box::pin(async move {
            let watch = Stopwatch::start();
            let begun = if is_ours(row) { gate.tracer.begin() } else { None };
            let caller = match token {
                Ok(None) => gate.certified(&peer),
                Ok(Some(token)) => gate.vouched(&peer, &token).await,
                Err(malformed) => {
                    gate.broker.metrics().bearer_refusals.with_label_values(&[malformed.reason()]).inc();
                    Err(malformed.into())
                }
            };
            // Whoever is not known does not decide what is traced.
            let known = begun.as_ref().and_then(|_| caller.as_ref().ok());
            let client = known.map(|caller| caller.client().clone());
            let remote = known.map(|_| remote_of(request.headers())).unwrap_or_default();
            let caller = caller.and_then(|caller| gate.admit(row, caller));
            let trace = begun.map(|begun| begun.open(row.path, remote, "authenticate")).unwrap_or_default();
            if let Some(client) = &client {
                trace.note(|| [Fact::Client(client)]);
            }
            let caller = match caller {
                Ok(caller) => {
                    if row.audited == Audited::EveryDecision {
                        let steps = &gate.broker.metrics().issue_seconds;
                        steps.with_label_values(&["authenticate"]).observe(watch.seconds());
                    }
                    caller
                }
                Err(status) => {
                    rpcs.with_label_values(&[row.path, &format!("{:?}", status.code())]).inc();
                    say(&trace, Some(&status));
                    return Ok(status.into_http());
                }
            };
            request.extensions_mut().insert(caller.clone());
            let response = trace.carry(inner.call(request)).await?;
            // A unary failure is known from the headers; a stream that began counts as answered.
            let status = Status::from_header_map(response.headers());
            let code = status.as_ref().map_or(Code::Ok, Status::code);
            say(&trace, status.as_ref());
            if let Some(status) = status.filter(|_| row.audited != Audited::EveryDecision) {
                gate.record_refusal(row, &caller, &status);
            }
            rpcs.with_label_values(&[row.path, &format!("{code:?}")]).inc();
            Ok(response)
        })
    }
}

/// Takes the bearer token out of the headers (RFC 6750, section 2.1), so that nothing behind this sees or logs it.
fn bearer_of(headers: &mut HeaderMap) -> Result<Option<Zeroizing<String>>, BearerError> {
    let mut all = headers.get_all(AUTHORIZATION).iter();
    let (first, more) = (all.next(), all.next().is_some());
    let token = first.map(|value| {
        let text = value.to_str().ok()?;
        let (scheme, token) = text.split_once(' ')?;
        (scheme.eq_ignore_ascii_case("bearer") && !more).then(|| Zeroizing::new(token.trim().to_owned()))
    });
    headers.remove(AUTHORIZATION);
    match token {
        None => Ok(None),
        Some(Some(token)) => Ok(Some(token)),
        Some(None) => Err(BearerError::Malformed("authorization must be one `Bearer TOKEN`")),
    }
}

/// Health and reflection are asked by machines, all the time.
fn is_ours(row: &Access) -> bool {
    row.path.starts_with("/p8broker.")
}

/// The caller's own span (W3C Trace Context, section 3.2). Two of them are none.
fn remote_of(headers: &HeaderMap) -> Remote<'_> {
    let only = |name: &str| {
        let mut all = headers.get_all(name).iter();
        all.next().filter(|_| all.next().is_none()).and_then(|value| value.to_str().ok())
    };
    Remote { parent: only("traceparent"), state: only("tracestate") }
}

/// Writes an answer into its trace, as OpenTelemetry's conventions for gRPC have it: a refusal is no fault of the server.
fn say(trace: &Trace, status: Option<&Status>) {
    if !trace.is_sampled() {
        return;
    }
    let Some(status) = status else { return trace.answer(Code::Ok.into(), None) };
    let details = status.get_error_details();
    let reason = details.error_info().map(|info| info.reason.as_str()).unwrap_or_default();
    trace.note(|| [Fact::Reason(reason)]);
    let fault = match status.code() {
        Code::Unknown
        | Code::DeadlineExceeded
        | Code::Unimplemented
        | Code::Internal
        | Code::Unavailable
        | Code::DataLoss => Some(reason),
        _ => None,
    };
    trace.answer(status.code().into(), fault);
}

fn refuse<E: Send + 'static>(status: Status) -> Pin<Box<dyn Future<Output = Result<Response<Body>, E>> + Send>> {
    Box::pin(std::future::ready(Ok(status.into_http())))
}
