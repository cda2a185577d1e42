//! Traces: what one RPC did, step by step, for whoever follows a request through several services (W3C Trace Context,
//! OpenTelemetry). This says what a span may hold and when there is one; where spans go is `telemetry`'s.
//!
//! Steps of a trace: the edge begins it, and once it knows who calls opens the span of the RPC, under the caller's own where
//! the caller sent one; whatever works for the RPC finds the trace in its task and adds steps and facts; what has ended goes
//! into a queue that never waits: where it is full a span is dropped and counted.
//!
//! Where nobody asked for traces, or this one is not sampled, all of it is a look at an empty option.
//!
//! # Invariants
//! - P1, and `INV-TRACE-1`: a span holds [`Fact`]s and nothing else, and no fact is a token, a claim, a key or a document.
//!   Log lines never become a part of it.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use opentelemetry::propagation::{Extractor, TextMapPropagator};
use opentelemetry::trace::{Span as _, SpanBuilder, SpanKind, Status, TraceContextExt, Tracer as _, TracerProvider};
use opentelemetry::{Context, KeyValue};
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{Sampler, SdkTracer, SdkTracerProvider, Span, SpanData, SpanProcessor};
use prometheus::IntCounter;
use tokio::sync::mpsc;

use crate::clock;
use crate::domain::audit::Outcome;
use crate::domain::role::Role;
use crate::id::{AppGroupName, ClientId, DecisionId, PolicyName, Revision};

/// Most spans that wait to be exported.
const QUEUE: usize = 4096;

/// Longest `tracestate` that is taken over, in bytes: what everybody must pass on (W3C Trace Context, section 3.3.1.5).
const MOST_STATE: usize = 512;

tokio::task_local! {
    static CURRENT: Trace;
}

/// What a span may hold.
#[derive(Debug, Clone, Copy)]
pub enum Fact<'a> {
    /// Who calls.
    Client(&'a ClientId),
    /// Which app group is asked for.
    AppGroup(&'a AppGroupName),
    /// Which role is asked for.
    Role(Role),
    /// What became of the request for a token.
    Outcome(Outcome),
    /// The policy that granted, or would have to.
    Policy(&'a PolicyName),
    /// What an operator can look up.
    DecisionId(&'a DecisionId),
    /// What was decided on.
    Revision(Revision),
    /// A stable reason of a refusal, such as `NO_POLICY`.
    Reason(&'a str),
    /// Rows in one commit.
    Rows(usize),
}

impl Fact<'_> {
    fn attribute(self) -> KeyValue {
        match self {
            Self::Client(it) => KeyValue::new("p8broker.client", it.to_string()),
            Self::AppGroup(it) => KeyValue::new("p8broker.app_group", it.to_string()),
            Self::Role(it) => KeyValue::new("p8broker.role", it.as_str()),
            Self::Outcome(it) => KeyValue::new("p8broker.outcome", it.as_str()),
            Self::Policy(it) => KeyValue::new("p8broker.policy", it.to_string()),
            Self::DecisionId(it) => KeyValue::new("p8broker.decision_id", it.to_string()),
            Self::Revision(it) => KeyValue::new("p8broker.revision", i64::try_from(it.0).unwrap_or(i64::MAX)),
            Self::Reason(it) => KeyValue::new("p8broker.reason", it.to_owned()),
            Self::Rows(it) => KeyValue::new("p8broker.rows", i64::try_from(it).unwrap_or(i64::MAX)),
        }
    }
}

/// Begins traces, or none.
#[derive(Clone, Default)]
pub struct Tracer(Option<Arc<SdkTracer>>);

/// Shows nothing: there is nothing to show.
impl fmt::Debug for Tracer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Tracer(on)" } else { "Tracer(off)" })
    }
}

/// The headers that name a caller's span.
#[derive(Debug, Clone, Copy, Default)]
pub struct Remote<'a> {
    /// `traceparent`, where there is exactly one.
    pub parent: Option<&'a str>,
    /// `tracestate`.
    pub state: Option<&'a str>,
}

impl Extractor for Remote<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        match key {
            "traceparent" => self.parent,
            "tracestate" => self.state.filter(|state| state.len() <= MOST_STATE),
            _ => None,
        }
    }

    fn keys(&self) -> Vec<&str> {
        vec!["traceparent", "tracestate"]
    }
}

impl Tracer {
    /// A tracer for RPCs without a caller's span takes this share of them, from 0 to 1; a caller's span decides for its own.
    /// Spans that have ended come out of the receiver; those that it has no room for are counted.
    pub fn new(sample_ratio: f64, dropped: IntCounter) -> (Self, mpsc::Receiver<SpanData>) {
        let (sender, receiver) = mpsc::channel(QUEUE);
        let sampler = Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(sample_ratio)));
        let provider = SdkTracerProvider::builder().with_sampler(sampler);
        let provider = provider.with_span_processor(Queue { sender, dropped }).build();
        // The tracer keeps its provider.
        (Self(Some(Arc::new(provider.tracer("p8broker")))), receiver)
    }

    /// Notes when an RPC began; `None` where nothing is traced.
    pub fn begin(&self) -> Option<Begun> {
        self.0.as_ref().map(|tracer| Begun { tracer: Arc::clone(tracer), at: clock::wall() })
    }
}

/// An RPC that began, and of which nobody knows yet who sent it.
pub struct Begun {
    tracer: Arc<SdkTracer>,
    at: SystemTime,
}

impl Begun {
    /// Opens the span of the RPC `/package.Service/Method`, and in it the step that has just ended.
    pub fn open(self, path: &'static str, remote: Remote<'_>, first: &'static str) -> Trace {
        let Self { tracer, at } = self;
        let context = TraceContextPropagator::new().extract_with_context(&Context::new(), &remote);
        let (service, method) = path.trim_start_matches('/').split_once('/').unwrap_or_default();
        let builder =
            SpanBuilder::from_name(path.trim_start_matches('/')).with_kind(SpanKind::Server).with_start_time(at);
        let mut span = tracer.build_with_context(builder, &context);
        if !span.is_recording() {
            return Trace(None);
        }
        span.set_attributes([
            KeyValue::new("rpc.system", "grpc"),
            KeyValue::new("rpc.service", service),
            KeyValue::new("rpc.method", method),
        ]);
        let within = Within::of(&tracer, &span);
        let first = within.0.as_deref().map(|place| place.span(SpanBuilder::from_name(first).with_start_time(at)));
        drop(first);
        Trace(Some(Arc::new(Rpc { within, span: Mutex::new(span) })))
    }
}

/// The trace of one RPC, or none. Its span ends with the last copy of it.
#[derive(Clone, Default)]
pub struct Trace(Option<Arc<Rpc>>);

struct Rpc {
    within: Within,
    span: Mutex<Span>,
}

impl Trace {
    /// Works for the RPC: what runs in it finds this trace.
    pub async fn carry<T>(&self, work: impl Future<Output = T>) -> T {
        match &self.0 {
            None => work.await,
            Some(_) => CURRENT.scope(self.clone(), work).await,
        }
    }

    /// Adds facts to the span of the RPC.
    pub fn note<'a, const N: usize>(&self, facts: impl FnOnce() -> [Fact<'a>; N]) {
        if let Some(rpc) = &self.0 {
            rpc.span().set_attributes(facts().map(Fact::attribute));
        }
    }

    /// The answer: gRPC's code and, for what is the server's fault, the reason.
    pub fn answer(&self, code: i32, fault: Option<&str>) {
        if let Some(rpc) = &self.0 {
            let mut span = rpc.span();
            span.set_attribute(KeyValue::new("rpc.grpc.status_code", i64::from(code)));
            if let Some(reason) = fault {
                span.set_status(Status::error(reason.to_owned()));
            }
        }
    }

    /// Whether there is one.
    pub fn is_sampled(&self) -> bool {
        self.0.is_some()
    }
}

impl Rpc {
    fn span(&self) -> std::sync::MutexGuard<'_, Span> {
        self.span.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The trace of the RPC that this task works for.
pub fn current() -> Trace {
    CURRENT.try_with(Trace::clone).unwrap_or_default()
}

/// Adds facts to the span of the RPC that this task works for.
pub fn note<'a, const N: usize>(facts: impl FnOnce() -> [Fact<'a>; N]) {
    let _ = CURRENT.try_with(|trace| trace.note(facts));
}

/// Begins a step of the RPC that this task works for.
pub fn step(name: &'static str) -> Step {
    CURRENT.try_with(|trace| trace.0.as_ref().map(|rpc| rpc.within.step(name))).ok().flatten().unwrap_or_default()
}

/// Work that is done elsewhere, for the RPC that this task works for.
pub fn carried<T>(work: impl Future<Output = T>) -> impl Future<Output = T> {
    let trace = current();
    async move { trace.carry(work).await }
}

/// A place in a trace, or none: for steps that another task takes.
#[derive(Clone, Default)]
pub struct Within(Option<Arc<Place>>);

struct Place {
    tracer: SdkTracer,
    context: Context,
}

impl Place {
    fn span(&self, builder: SpanBuilder) -> Span {
        self.tracer.build_with_context(builder, &self.context)
    }
}

impl Within {
    fn of(tracer: &SdkTracer, span: &Span) -> Self {
        let context = Context::new().with_remote_span_context(span.span_context().clone());
        Self(Some(Arc::new(Place { tracer: tracer.clone(), context })))
    }

    /// Whether there is one.
    pub fn is_sampled(&self) -> bool {
        self.0.is_some()
    }

    /// Begins a step here.
    pub fn step(&self, name: &'static str) -> Step {
        Step(self.0.as_deref().map(|place| Box::new((place.span(SpanBuilder::from_name(name)), place.tracer.clone()))))
    }
}

/// A step that is on its way, or none; it ends when this goes.
#[derive(Default)]
#[must_use]
pub struct Step(Option<Box<(Span, SdkTracer)>>);

impl Step {
    /// Adds facts to it.
    pub fn note<'a, const N: usize>(&mut self, facts: impl FnOnce() -> [Fact<'a>; N]) {
        if let Some(it) = &mut self.0 {
            it.0.set_attributes(facts().map(Fact::attribute));
        }
    }

    /// The place of steps within this one.
    pub fn within(&self) -> Within {
        self.0.as_deref().map(|(span, tracer)| Within::of(tracer, span)).unwrap_or_default()
    }
}

/// Takes spans that have ended, and never waits.
#[derive(Debug)]
struct Queue {
    sender: mpsc::Sender<SpanData>,
    dropped: IntCounter,
}

impl SpanProcessor for Queue {
    fn on_start(&self, _: &mut Span, _: &Context) {}

    fn on_end(&self, span: SpanData) {
        if self.sender.try_send(span).is_err() {
            self.dropped.inc();
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        // Whoever empties the queue ends it.
        Ok(())
    }
}

#[cfg(test)]
mod tests;
