//! Every metric, in one registry. Names carry their unit; every label has few values: all known here, or the names of
//! trusted issuers.

use prometheus::{
    Encoder, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder,
};

/// All metrics of one process.
#[derive(Debug, Clone)]
pub struct Metrics {
    registry: Registry,
    /// Tokens handed out, by `outcome`: `SIGNED` or `REUSED`.
    pub tokens: IntCounterVec,
    /// Requests refused, by `reason`: a stable constant.
    pub denials: IntCounterVec,
    /// Denials that became part of a summary row, or found the queue full.
    pub denials_summarised: IntCounter,
    /// Seconds of an issue, by `step`: `decide`, `sign` or `commit`.
    pub issue_seconds: HistogramVec,
    /// Decisions that were made again because the head had moved.
    pub fence_retries: IntCounter,
    /// Audit rows in one commit.
    pub batch_rows: Histogram,
    /// Commits of audit rows or changes that failed.
    pub commit_failures: IntCounter,
    /// When audit rows were last committed, in Unix seconds.
    pub last_commit: IntGauge,
    /// 1 while tokens can be issued, 0 while sealed, not initialised or refusing to serve.
    pub unsealed: IntGauge,
    /// The revision of the state.
    pub revision: IntGauge,
    /// RPCs answered, by `method` and gRPC `code`.
    pub rpcs: IntCounterVec,
    /// Requests that arrived while sealed.
    pub while_sealed: IntCounter,
    /// Times that the TLS files were loaded anew, by `outcome`: `ok` or `failed`.
    pub tls_reloads: IntCounterVec,
    /// When the server's certificate expires, in Unix seconds.
    pub certificate_expiry: IntGauge,
    /// 1 while the connection that hears of other replicas' changes is up; always 0 on SQLite.
    pub listener_up: IntGauge,
    /// Ways in which acknowledged commits could be lost, by `hazard`: 1 where it is so now.
    pub hazards: IntGaugeVec,
    /// Clients that watch.
    pub watchers: IntGauge,
    /// Seconds from a revocation's record to the clients that watch being told, on this replica.
    pub watch_seconds: Histogram,
    /// Watchers that read too slowly and were told to resynchronise.
    pub watchers_lagged: IntCounter,
    /// Break-glass policies that are held open now.
    pub break_glass_open: IntGauge,
    /// Tokens handed out under break-glass policies, by `policy`.
    pub break_glass_tokens: IntCounterVec,
    /// Tokens that policies and ceilings in shadow mode would have refused, by `kind`, `name` and `reason`.
    pub shadow_refusals: IntCounterVec,
    /// Keys revoked here that nobody has confirmed as revoked at Apple.
    pub unconfirmed_at_apple: IntGauge,
    /// Fetches of a trusted `issuer`'s keys, by `outcome`: `ok` or `failed`.
    pub jwks_fetches: IntCounterVec,
    /// 1 while a trusted `issuer` is away and the keys held of it are older than they should be.
    pub jwks_stale: IntGaugeVec,
    /// Bearer tokens refused, by `reason`: a stable constant.
    pub bearer_refusals: IntCounterVec,
}

impl Metrics {
    /// A registry of its own, with every metric in it.
    ///
    /// # Errors
    /// Where a metric is defined twice or badly: a mistake in this file, found by any test that starts a broker.
    pub fn new() -> Result<Self, prometheus::Error> {
        let registry = Registry::new_custom(Some("p8broker".to_owned()), None)?;
        let r = &registry;
        let fast = prometheus::exponential_buckets(0.000_01, 2.0, 20)?;
        let rows = prometheus::exponential_buckets(1.0, 2.0, 11)?;
        Ok(Self {
            tokens: counters(r, "tokens_total", "Tokens handed out.", &["outcome"])?,
            denials: counters(r, "denials_total", "Requests refused.", &["reason"])?,
            denials_summarised: counter(r, "denials_summarised_total", "Denials without an audit row of their own.")?,
            issue_seconds: {
                let opts = HistogramOpts::new("issue_step_seconds", "Time of an issue, by step.").buckets(fast.clone());
                register(r, HistogramVec::new(opts, &["step"])?)?
            },
            fence_retries: counter(
                r,
                "fence_retries_total",
                "Decisions made again because the control log had moved.",
            )?,
            batch_rows: {
                let opts = HistogramOpts::new("commit_rows", "Audit rows in one commit.").buckets(rows);
                register(r, Histogram::with_opts(opts)?)?
            },
            commit_failures: counter(r, "commit_failures_total", "Commits that failed.")?,
            last_commit: gauge(r, "last_commit_timestamp_seconds", "When audit rows were last made durable.")?,
            unsealed: gauge(r, "unsealed", "1 while tokens can be issued.")?,
            revision: gauge(r, "control_revision", "Revision of the control log that this replica has reached.")?,
            rpcs: counters(r, "rpcs_total", "RPCs answered.", &["method", "code"])?,
            while_sealed: counter(r, "requests_while_sealed_total", "Requests that arrived while sealed.")?,
            tls_reloads: counters(r, "tls_reloads_total", "Loads of changed TLS files.", &["outcome"])?,
            certificate_expiry: gauge(
                r,
                "server_certificate_expiry_timestamp_seconds",
                "When the certificate expires.",
            )?,
            listener_up: gauge(r, "listener_up", "1 while the connection that listens for changes is up.")?,
            hazards: {
                let opts = Opts::new("durability_hazard", "1 where acknowledged commits could be lost.");
                register(r, IntGaugeVec::new(opts, &["hazard"])?)?
            },
            watchers: gauge(r, "watchers", "Clients that watch.")?,
            watch_seconds: {
                let opts = HistogramOpts::new("watch_delivery_seconds", "Time to tell all watchers of a revocation.");
                register(r, Histogram::with_opts(opts.buckets(fast))?)?
            },
            watchers_lagged: counter(r, "watchers_lagged_total", "Watchers that read too slowly.")?,
            break_glass_open: gauge(r, "break_glass_open", "Break-glass policies that are held open.")?,
            break_glass_tokens: counters(
                r,
                "break_glass_tokens_total",
                "Tokens under break-glass policies.",
                &["policy"],
            )?,
            shadow_refusals: counters(
                r,
                "shadow_refusals_total",
                "Tokens that policies and ceilings in shadow mode would have refused.",
                &["kind", "name", "reason"],
            )?,
            unconfirmed_at_apple: gauge(r, "keys_unconfirmed_at_apple", "Keys revoked here, not confirmed at Apple.")?,
            jwks_fetches: counters(
                r,
                "jwks_fetches_total",
                "Fetches of a trusted issuer's keys.",
                &["issuer", "outcome"],
            )?,
            jwks_stale: {
                let opts = Opts::new("jwks_stale", "1 while an issuer is away and its keys are overdue.");
                register(r, IntGaugeVec::new(opts, &["issuer"])?)?
            },
            bearer_refusals: counters(r, "bearer_refusals_total", "Bearer tokens refused.", &["reason"])?,
            registry,
        })
    }

    /// Forgets what is counted for an issuer that is not trusted any more.
    pub fn forget_issuer(&self, name: &str) {
        // One of which nothing was counted is forgotten already.
        let _ = self.jwks_stale.remove_label_values(&[name]);
        for outcome in ["ok", "failed"] {
            let _ = self.jwks_fetches.remove_label_values(&[name, outcome]);
        }
    }

    /// The Prometheus text format, version 0.0.4.
    ///
    /// # Errors
    /// Where a metric can't be written.
    pub fn text(&self) -> Result<String, prometheus::Error> {
        let mut out = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut out)?;
        String::from_utf8(out).map_err(|error| prometheus::Error::Msg(error.to_string()))
    }
}

fn register<C: prometheus::core::Collector + Clone + 'static>(registry: &Registry, metric: C) -> prometheus::Result<C> {
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}

fn counters(registry: &Registry, name: &str, help: &str, labels: &[&str]) -> prometheus::Result<IntCounterVec> {
    register(registry, IntCounterVec::new(Opts::new(name, help), labels)?)
}

fn counter(registry: &Registry, name: &str, help: &str) -> prometheus::Result<IntCounter> {
    register(registry, IntCounter::new(name, help)?)
}

fn gauge(registry: &Registry, name: &str, help: &str) -> prometheus::Result<IntGauge> {
    register(registry, IntGauge::new(name, help)?)
}
