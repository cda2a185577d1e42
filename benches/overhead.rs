//! What metrics and traces cost, on the throughput of issuing fresh tokens.
//!
//! Traces: brokers that differ in nothing but `[traces]`, in alternating rounds, and a collector that takes everything; all
//! share this process and its cores, so that its work counts, too. What counts is the median of the ratios of rounds to the
//! one without traces. Metrics can't be turned off: what they do for one issue is done in a loop, by as many threads as
//! there are cores, beside the processor time of an issue. `P8BROKER_BENCH_SECONDS` sets the length of a round (default 2).
#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a benchmark")]
#![expect(clippy::print_stdout, unreachable_pub, dead_code, reason = "a benchmark that uses the tests' harness")]

#[path = "../tests/it/harness/mod.rs"]
mod harness;

mod bare;

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bare::{connect, load, median};
use harness::*;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use p8broker::clock::Stopwatch;
use p8broker::config::TracesConfig;
use p8broker::metrics::Metrics;
use p8broker::trace::{self, Fact, Remote, Tracer};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::task::TaskTracker;
use tonic::{Request, Response, Status};

const ROUNDS: usize = 7;
const IN_FLIGHT: usize = 64;
const PATH: &str = "/p8broker.v1.TokenService/IssueToken";

/// Takes every span, and keeps their number.
#[derive(Clone, Default)]
struct Collector(Arc<AtomicUsize>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let scopes = request.get_ref().resource_spans.iter().flat_map(|it| &it.scope_spans);
        self.0.fetch_add(scopes.map(|it| it.spans.len()).sum(), Ordering::Relaxed);
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

/// One way to trace, and what it came to.
struct Variant {
    name: &'static str,
    broker: Broker,
    clients: Vec<Client>,
    rates: Vec<f64>,
}

impl Variant {
    async fn start(name: &'static str, traces: TracesConfig) -> Self {
        let broker = Broker::with(Options { traces, ..Options::default() }).await;
        let clients = connect(&broker.target(CLIENT), 8).await;
        load(&clients, IN_FLIGHT, &ask_fresh(), 0.5).await;
        Self { name, broker, clients, rates: Vec::new() }
    }

    async fn dropped(&self) -> u64 {
        let (_, text) = self.broker.ops("/metrics").await;
        text.lines().find_map(|line| line.strip_prefix("p8broker_spans_dropped_total ")).unwrap().parse().unwrap()
    }
}

/// Answers the processor time of an issue, in seconds, without traces.
async fn tracing() -> f64 {
    let seconds = std::env::var("P8BROKER_BENCH_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(2.0);
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let (collector, tasks) = (Collector::default(), TaskTracker::new());
    let serving = tonic::transport::Server::builder()
        .add_service(TraceServiceServer::new(collector.clone()).max_decoding_message_size(usize::MAX))
        .serve_with_incoming(TcpListenerStream::new(listener));
    tasks.spawn(async move { serving.await.unwrap() });
    let at = |sample_ratio| TracesConfig { endpoint: Some(endpoint.clone()), sample_ratio, ..TracesConfig::default() };
    let mut variants = [
        Variant::start("off", TracesConfig::default()).await,
        Variant::start("off, again", TracesConfig::default()).await,
        Variant::start("on, none sampled", at(0.0)).await,
        Variant::start("10 % sampled", at(0.1)).await,
        Variant::start("all sampled", at(1.0)).await,
    ];
    for round in 0..ROUNDS {
        // Nobody is always the first, or always after the one that works most.
        for nth in 0..variants.len() {
            let at = (nth + round) % variants.len();
            let rate = load(&variants[at].clients, IN_FLIGHT, &ask_fresh(), seconds).await.rate;
            variants[at].rates.push(rate);
        }
    }
    println!(
        "fresh tokens over mTLS, durable audit on SQLite, {IN_FLIGHT} in flight, {ROUNDS} rounds of {seconds} s, medians"
    );
    println!("{:<18} {:>8} {:>7} {:>15} {:>8}", "traces", "/s", "ratio", "(least, most)", "dropped");
    let off = variants[0].rates.clone();
    for variant in &variants {
        let mut ratios: Vec<f64> = variant.rates.iter().zip(&off).map(|(it, off)| it / off).collect();
        ratios.sort_by(f64::total_cmp);
        let (least, most) = (ratios[0], ratios[ROUNDS - 1]);
        let (rate, ratio, dropped) = (median(variant.rates.clone()), median(ratios), variant.dropped().await);
        println!(
            "{:<18} {rate:>8.0} {ratio:>7.3} {:>15} {dropped:>8}",
            variant.name,
            format!("({least:.3}, {most:.3})")
        );
    }
    for mut variant in variants {
        drop(variant.clients);
        variant.broker.stop().await;
    }
    println!("the collector took {} spans", collector.0.load(Ordering::Relaxed));
    cores() / median(off)
}

fn cores() -> f64 {
    std::thread::available_parallelism().unwrap().get() as f64
}

/// The processor time of one time of `what`, in seconds, where every core does it.
fn processor_time(what: impl Fn() + Sync) -> f64 {
    const TIMES: u32 = 200_000;
    let times = (0..5).map(|_| {
        let watch = Stopwatch::start();
        std::thread::scope(|scope| {
            for _ in 0..cores() as usize {
                scope.spawn(|| (0..TIMES).for_each(|_| what()));
            }
        });
        watch.seconds() / f64::from(TIMES)
    });
    median(times.collect())
}

/// All that is counted for one token, as the gate, the use case and the writer do.
fn count_one(metrics: &Metrics) {
    for step in ["authenticate", "decide", "sign", "commit"] {
        let seconds = metrics.issue_seconds.with_label_values(&[step]);
        let watch = Stopwatch::start();
        seconds.observe(watch.seconds());
    }
    metrics.commit_wait.observe(Stopwatch::start().seconds());
    // Those of a whole commit, as if it had one row.
    metrics.batch_rows.observe(1.0);
    metrics.last_commit.set(1);
    metrics.tokens.inc("SIGNED", "games", "APP_MANAGER");
    metrics.rpcs.clone().with_label_values(&[PATH, &format!("{:?}", tonic::Code::Ok)]).inc();
}

/// All that is looked at for the trace of one token.
fn trace_one(tracer: &Tracer) {
    let trace = tracer.begin().map(|begun| begun.open(PATH, Remote::default(), "authenticate")).unwrap_or_default();
    trace::note(|| [Fact::Reason("")]);
    for step in ["decide", "sign", "commit"] {
        let mut step = trace::step(step);
        step.note(|| [Fact::Reason("")]);
    }
    trace::note(|| [Fact::Reason("")]);
    assert!(!trace.is_sampled());
}

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let issue = runtime.block_on(tracing());
    let metrics = Metrics::new().unwrap();
    let (none, _queue) = Tracer::new(0.0, metrics.spans_dropped.clone());
    println!("\n{:<34} {:>8} {:>22}", "for one token", "ns", "share of its time");
    for (name, time) in [
        ("all of it, client included", issue),
        ("metrics", processor_time(|| count_one(&metrics))),
        ("traces, off", processor_time(|| trace_one(&Tracer::default()))),
        ("traces, not sampled", processor_time(|| trace_one(&none))),
    ] {
        println!("{name:<34} {:>8.0} {:>20.2} %", time * 1e9, time / issue * 100.0);
    }
    let watch = Stopwatch::start();
    let text = metrics.text().unwrap();
    println!("a scrape of {} bytes: {:.2} ms", text.len(), watch.seconds() * 1e3);
}
