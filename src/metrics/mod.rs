//! Every metric, in one registry. Names carry their unit; every label has few values: constants, and names that operators
//! gave, bounded.
//!
//! `docs/metrics.md` is made of what is registered here. Over 400 lines, as it is one table: each metric, and where it stands.

mod bounded;
mod catalogue;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use prometheus::process_collector::ProcessCollector;
use prometheus::{
    Encoder, Gauge, Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Registry, TextEncoder,
};

pub use bounded::{MOST_NAMES, NamedCounters, OTHERS, Read, TokenCounters};
use catalogue::Catalogue;
pub use catalogue::Described;

use crate::domain::decide::DenyReason;

/// Where durations are counted.
pub type Seconds = Histogram;

/// All metrics of one process.
#[expect(missing_docs, reason = "what each says is its help, where it is registered")]
#[derive(Debug, Clone)]
pub struct Metrics {
    registry: Registry,
    process: Registry,
    described: Arc<Vec<Described>>,
    pub tokens: TokenCounters,
    pub denials: IntCounterVec,
    pub denials_summarised: IntCounter,
    pub audit_rows_dropped: IntCounter,
    pub issue_seconds: HistogramVec,
    pub quota_used: Read,
    pub break_glass_open: IntGauge,
    pub break_glass_tokens: NamedCounters,
    pub shadow_refusals: NamedCounters,
    pub exposure: Read,
    pub exposure_end: Read,
    pub key_exposure: Read,
    pub key_exposure_end: Read,
    pub revoked_exposure: IntGauge,
    pub revocation_apply: Histogram,
    pub watchers: IntGauge,
    pub watch_seconds: Histogram,
    pub watchers_lagged: IntCounter,
    pub canary_runs: IntCounterVec,
    pub canary_revocation: Histogram,
    pub canary_last_success: IntGauge,
    pub canary_interval: IntGauge,
    pub keys: IntGaugeVec,
    pub account_keys: Read,
    pub key_imported: Read,
    pub unconfirmed_at_apple: IntGauge,
    pub fence_retries: IntCounter,
    pub batch_rows: Histogram,
    pub commit_wait: Histogram,
    pub commit_failures: IntCounter,
    pub anchor_failures: IntCounter,
    pub audit_lag: Gauge,
    pub last_commit: IntGauge,
    pub unsealed: IntGauge,
    pub phase: IntGaugeVec,
    pub while_sealed: IntCounter,
    pub revision: IntGauge,
    pub control_lag: IntGauge,
    pub replicas: IntGauge,
    pub listener_up: IntGauge,
    pub hazards: IntGaugeVec,
    pub database_up: IntGauge,
    pub database_ping: Gauge,
    pub database_connections: IntGaugeVec,
    pub rpcs: IntCounterVec,
    pub tls_reloads: IntCounterVec,
    pub certificate_expiry: IntGauge,
    pub ca_expiry: IntGauge,
    pub near_expiry: IntGauge,
    pub jwks_fetches: IntCounterVec,
    pub jwks_fetched: IntGaugeVec,
    pub jwks_stale: IntGaugeVec,
    pub bearer_refusals: IntCounterVec,
    pub spans_dropped: IntCounter,
}

impl Metrics {
    /// A registry of its own, with every metric in it.
    ///
    /// # Errors
    /// Where a metric is defined twice or badly: a mistake in this file, found by any test that starts a broker.
    #[expect(clippy::too_many_lines, reason = "a table: each metric once")]
    pub fn new() -> Result<Self, prometheus::Error> {
        // From 10 microseconds to 5 seconds, and from a millisecond to 30 seconds.
        let fast = prometheus::exponential_buckets(0.000_01, 2.0, 20)?;
        let mut slow = prometheus::exponential_buckets(0.001, 2.0, 16)?;
        // Five seconds are an alert: no value below may be reckoned as more.
        slow.push(5.0);
        slow.sort_by(f64::total_cmp);
        let rows = prometheus::exponential_buckets(1.0, 2.0, 11)?;
        let mut c = Catalogue::new()?;

        c.section("Tokens and denials");
        let tokens = TokenCounters::new(c.counters(
            "tokens_total",
            &["outcome", "app_group", "role"],
            "tokens handed out; `outcome` is `SIGNED` or `REUSED`",
        )?);
        let denials = c.counters("denials_total", &["reason"], "requests refused, by stable reason")?;
        let denials_summarised = c.counter(
            "denials_summarised_total",
            "refusals without an audit row of their own: they are part of a summary",
        )?;
        let audit_rows_dropped = c.counter(
            "audit_rows_dropped_total",
            "rows of refusals and of operators' reads that found no room in the queue, and are missing; tokens and changes always have theirs",
        )?;
        let issue_seconds = c.histograms(
            "issue_step_seconds",
            &["step"],
            &fast,
            "time of an issue, by step: `authenticate`, `decide`, `sign`, `commit` (which waits for the disk)",
        )?;
        let quota_used = Read::of(c.reals(
            "quota_used_ratio",
            &["policy"],
            "*fleet*: of `tokens_per_hour`, the share that the client with the most tokens has used in this hour",
        )?);
        let break_glass_open =
            c.gauge("break_glass_open", "break-glass policies that are held open now: alert on anything but 0")?;
        let break_glass_tokens = NamedCounters::new(c.counters(
            "break_glass_tokens_total",
            &["policy"],
            "tokens handed out under break-glass policies",
        )?);
        let shadow_refusals = NamedCounters::new(c.counters(
            "shadow_refusals_total",
            &["name", "kind", "reason"],
            "tokens that a policy or ceiling in shadow mode would have refused",
        )?);

        c.section("Exposure and revocation");
        let exposure =
            Read::of(c.reals("exposure_tokens", &["app_group"], "*fleet*: tokens that are alive, by app group")?);
        let exposure_end = Read::of(c.reals(
            "exposure_last_expiry_seconds",
            &["app_group"],
            "*fleet*: seconds until the last of them is dead",
        )?);
        let key_exposure =
            Read::of(c.reals("exposure_key_tokens", &["key_id"], "*fleet*: tokens that are alive, by key")?);
        let key_exposure_end = Read::of(c.reals(
            "exposure_key_last_expiry_seconds",
            &["key_id"],
            "*fleet*: seconds until the last of them is dead",
        )?);
        let revoked_exposure = c.gauge(
            "revoked_exposure_tokens",
            "*fleet*: tokens that are alive under keys revoked here and not confirmed as revoked at Apple, which alone ends them",
        )?;
        let revocation_apply = c.histogram(
            "revocation_apply_seconds",
            &slow,
            "from a revocation's record to this replica's state; clocks of replicas that differ are in it",
        )?;
        let watchers = c.gauge("watchers", "watches that are open on this replica")?;
        let watch_seconds = c.histogram(
            "watch_delivery_seconds",
            &slow,
            "from a revocation's record to a client that watches being told; clocks of replicas that differ are in it",
        )?;
        let watchers_lagged =
            c.counter("watchers_lagged_total", "clients that read too slowly and were told to resynchronise")?;
        let canary_runs = c.counters(
            "canary_runs_total",
            &["outcome"],
            "runs of the canary that this replica led: `ok` or `failed`; the log says why",
        )?;
        let canary_revocation = c.histogram(
            "canary_revocation_seconds",
            &slow,
            "from the suspension of the canary's key to the last replica that was seen to refuse it",
        )?;
        let canary_last_success = c.gauge(
            "canary_last_success_timestamp_seconds",
            "*fleet*: when a run last succeeded, on any replica, in Unix time; 0 for never",
        )?;
        let canary_interval =
            c.gauge("canary_interval_seconds", "how often a run is due, as configured; 0 for never")?;

        c.section("Keys");
        let keys = c.gauges("keys", &["state"], "keys: `ACTIVE`, `SUSPENDED`, `REVOKED`")?;
        let account_keys = Read::of(c.reals(
            "account_keys_ratio",
            &["account"],
            "of the 50 keys that Apple allows an account, the share that Apple may count",
        )?);
        let key_imported = Read::of(c.reals(
            "key_import_timestamp_seconds",
            &["key_id", "account"],
            "when a key that is not revoked was imported, in Unix time: its age is `time()` less this",
        )?);
        let unconfirmed_at_apple = c.gauge(
            "keys_unconfirmed_at_apple",
            "keys revoked here that nobody has confirmed as revoked at Apple: `key confirm-revoked-at-apple`",
        )?;

        c.section("Audit and fence");
        let fence_retries =
            c.counter("fence_retries_total", "decisions made again because the control log had moved")?;
        let batch_rows = c.histogram("commit_rows", &rows, "audit rows in one commit")?;
        let commit_wait =
            c.histogram("commit_wait_seconds", &fast, "how long a token's row waited for its commit to begin")?;
        let commit_failures =
            c.counter("commit_failures_total", "commits that failed; where rows fail, no token leaves")?;
        let anchor_failures = c.counter(
            "anchor_failures_total",
            "times that the anchor could not be written: tokens leave, and a database that goes back in time may be missed",
        )?;
        let audit_lag =
            c.real("audit_lag_seconds", "for how long the commit that is on its way has been; 0 where none is")?;
        let last_commit =
            c.gauge("last_commit_timestamp_seconds", "when audit rows were last made durable, in Unix time")?;

        c.section("Vault and fleet");
        let unsealed = c.gauge("unsealed", "1 while tokens can be issued")?;
        let phase =
            c.gauges("phase", &["phase"], "1 for the present one of `NOT_INITIALISED`, `SEALED`, `REFUSING`, `OPEN`")?;
        let while_sealed = c.counter("requests_while_sealed_total", "requests that arrived while sealed")?;
        let revision = c.gauge("control_revision", "revision of the control log that this replica has reached")?;
        let control_lag = c.gauge("control_lag_revisions", "how many revisions this replica is behind the database")?;
        let replicas = c.gauge("replicas", "*fleet*: replicas that gave a sign of life within a minute")?;
        let listener_up = c.gauge(
            "listener_up",
            "1 while the connection that hears of other replicas' changes is up; without it they are seen within a second; 1 on SQLite, where there are none",
        )?;
        let hazards = c.gauges(
            "durability_hazard",
            &["hazard"],
            "1 where an acknowledged commit could be lost: what `doctor` names, looked at each minute",
        )?;
        let database_up =
            c.gauge("database_up", "1 where the database answered the last time it was asked, every 15 seconds")?;
        let database_ping = c.real("database_ping_seconds", "how long its answer to the smallest question took")?;
        let database_connections = c.gauges(
            "database_connections",
            &["state"],
            "connections for reading: `used` and `idle`; writing and listening have one of their own each",
        )?;
        let build = c.gauges("build_info", &["version"], "1; which version runs")?;
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);

        c.section("Callers and transport");
        let rpcs = c.counters("rpcs_total", &["method", "code"], "RPCs answered; `code` is gRPC's, such as `Ok`")?;
        let tls_reloads = c.counters(
            "tls_reloads_total",
            &["outcome"],
            "loads of changed TLS files, `ok` or `failed`; the log says why",
        )?;
        let certificate_expiry = c.gauge(
            "server_certificate_expiry_timestamp_seconds",
            "when the server's certificate expires, in Unix time",
        )?;
        let ca_expiry = c.gauge(
            "ca_certificate_expiry_timestamp_seconds",
            "when the first of the client CAs expires, in Unix time",
        )?;
        let near_expiry = c.gauge(
            "client_certificates_near_expiry",
            "clients seen within ten minutes whose certificate is in the last fifth of its life: its renewal may be broken",
        )?;
        let jwks_fetches = c.counters(
            "jwks_fetches_total",
            &["issuer", "outcome"],
            "fetches of a trusted issuer's keys, `ok` or `failed`; the log says why",
        )?;
        let jwks_fetched = c.gauges(
            "jwks_fetch_timestamp_seconds",
            &["issuer"],
            "when a trusted issuer's keys were last fetched, in Unix time: their age is `time()` less this",
        )?;
        let jwks_stale = c.gauges(
            "jwks_stale",
            &["issuer"],
            "1 while an issuer is away and its keys are older than `oidc.jwks_refresh_s`: from `oidc.jwks_stale_s` on its tokens are refused",
        )?;
        let bearer_refusals =
            c.counters("bearer_refusals_total", &["reason"], "bearer tokens refused, by stable reason")?;

        let spans_dropped = c.counter(
            "spans_dropped_total",
            "spans of traces that were not exported: the collector was away, slow, or refused them",
        )?;

        // Families without a value yet would be missing: those whose labels are known are there from the start.
        for step in ["authenticate", "decide", "sign", "commit"] {
            let _ = issue_seconds.with_label_values(&[step]);
        }
        for outcome in ["ok", "failed"] {
            let _ = (tls_reloads.with_label_values(&[outcome]), canary_runs.with_label_values(&[outcome]));
        }
        // So that a first refusal is an increase.
        for reason in
            DenyReason::ALL.iter().map(|it| it.as_str()).chain(["QUOTA_EXCEEDED", "AUDIT_UNAVAILABLE", "CONTENDED"])
        {
            let _ = denials.with_label_values(&[reason]);
        }
        let process = Registry::new();
        process.register(Box::new(ProcessCollector::for_self()))?;
        Ok(Self {
            registry: c.registry,
            process,
            described: Arc::new(c.described),
            tokens,
            denials,
            denials_summarised,
            audit_rows_dropped,
            issue_seconds,
            quota_used,
            break_glass_open,
            break_glass_tokens,
            shadow_refusals,
            exposure,
            exposure_end,
            key_exposure,
            key_exposure_end,
            revoked_exposure,
            revocation_apply,
            watchers,
            watch_seconds,
            watchers_lagged,
            canary_runs,
            canary_revocation,
            canary_last_success,
            canary_interval,
            keys,
            account_keys,
            key_imported,
            unconfirmed_at_apple,
            fence_retries,
            batch_rows,
            commit_wait,
            commit_failures,
            anchor_failures,
            audit_lag,
            last_commit,
            unsealed,
            phase,
            while_sealed,
            revision,
            control_lag,
            replicas,
            listener_up,
            hazards,
            database_up,
            database_ping,
            database_connections,
            rpcs,
            tls_reloads,
            certificate_expiry,
            ca_expiry,
            near_expiry,
            jwks_fetches,
            jwks_fetched,
            jwks_stale,
            bearer_refusals,
            spans_dropped,
        })
    }

    /// Forgets what is counted for an issuer that is not trusted any more.
    pub fn forget_issuer(&self, name: &str) {
        // One of which nothing was counted is forgotten already.
        let _ = self.jwks_stale.remove_label_values(&[name]);
        let _ = self.jwks_fetched.remove_label_values(&[name]);
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
        TextEncoder::new().encode(&self.process.gather(), &mut out)?;
        String::from_utf8(out).map_err(|error| prometheus::Error::Msg(error.to_string()))
    }

    /// Every metric with the prefix of this project, as it is registered.
    pub fn described(&self) -> &[Described] {
        &self.described
    }

    /// The page about all of them.
    pub fn page(&self) -> String {
        catalogue::page(&self.described)
    }
}
