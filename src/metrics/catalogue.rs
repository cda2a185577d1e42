//! Every metric as it is registered, so that the page about them can't say anything else.

use prometheus::core::Collector;
use prometheus::{
    Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry,
};

/// What stands before every name but those of the process.
pub(super) const PREFIX: &str = "p8broker";

/// One metric, as the page has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Described {
    /// The heading that it stands under.
    pub section: &'static str,
    /// Its full name.
    pub name: String,
    /// `counter`, `gauge` or `histogram`.
    pub kind: &'static str,
    /// Its labels.
    pub labels: Vec<String>,
    /// What it says.
    pub help: &'static str,
}

/// Registers metrics, and remembers what it registered.
pub(super) struct Catalogue {
    pub(super) registry: Registry,
    pub(super) described: Vec<Described>,
    section: &'static str,
}

type Made<T> = prometheus::Result<T>;

impl Catalogue {
    pub(super) fn new() -> Made<Self> {
        let registry = Registry::new_custom(Some(PREFIX.to_owned()), None)?;
        Ok(Self { registry, described: Vec::new(), section: "" })
    }

    /// What follows stands under this heading.
    pub(super) fn section(&mut self, heading: &'static str) {
        self.section = heading;
    }

    pub(super) fn counter(&mut self, name: &'static str, help: &'static str) -> Made<IntCounter> {
        self.keep(IntCounter::new(name, help)?, "counter", name, &[], help)
    }

    pub(super) fn counters(&mut self, name: &'static str, labels: &[&str], help: &'static str) -> Made<IntCounterVec> {
        self.keep(IntCounterVec::new(Opts::new(name, help), labels)?, "counter", name, labels, help)
    }

    pub(super) fn gauge(&mut self, name: &'static str, help: &'static str) -> Made<IntGauge> {
        self.keep(IntGauge::new(name, help)?, "gauge", name, &[], help)
    }

    pub(super) fn gauges(&mut self, name: &'static str, labels: &[&str], help: &'static str) -> Made<IntGaugeVec> {
        self.keep(IntGaugeVec::new(Opts::new(name, help), labels)?, "gauge", name, labels, help)
    }

    pub(super) fn real(&mut self, name: &'static str, help: &'static str) -> Made<Gauge> {
        self.keep(Gauge::new(name, help)?, "gauge", name, &[], help)
    }

    pub(super) fn reals(&mut self, name: &'static str, labels: &[&str], help: &'static str) -> Made<GaugeVec> {
        self.keep(GaugeVec::new(Opts::new(name, help), labels)?, "gauge", name, labels, help)
    }

    pub(super) fn histogram(&mut self, name: &'static str, buckets: &[f64], help: &'static str) -> Made<Histogram> {
        let opts = HistogramOpts::new(name, help).buckets(buckets.to_vec());
        self.keep(Histogram::with_opts(opts)?, "histogram", name, &[], help)
    }

    pub(super) fn histograms(
        &mut self,
        name: &'static str,
        labels: &[&str],
        buckets: &[f64],
        help: &'static str,
    ) -> Made<HistogramVec> {
        let opts = HistogramOpts::new(name, help).buckets(buckets.to_vec());
        self.keep(HistogramVec::new(opts, labels)?, "histogram", name, labels, help)
    }

    fn keep<C: Collector + Clone + 'static>(
        &mut self,
        metric: C,
        kind: &'static str,
        name: &str,
        labels: &[&str],
        help: &'static str,
    ) -> Made<C> {
        self.registry.register(Box::new(metric.clone()))?;
        self.described.push(Described {
            section: self.section,
            name: format!("{PREFIX}_{name}"),
            kind,
            labels: labels.iter().map(|label| (*label).to_owned()).collect(),
            help,
        });
        Ok(metric)
    }
}

/// The page, `docs/metrics.md`.
pub(super) fn page(described: &[Described]) -> String {
    use std::fmt::Write as _;
    let mut out = HEAD.to_owned();
    let mut section = "";
    for it in described {
        if it.section != section {
            section = it.section;
            let _ = write!(out, "\n## {section}\n\n| metric | type | meaning |\n| --- | --- | --- |\n");
        }
        let labels = if it.labels.is_empty() { String::new() } else { format!("{{{}}}", it.labels.join(",")) };
        let _ = writeln!(out, "| `{}{labels}` | {} | {} |", it.name, it.kind, it.help);
    }
    out + PROCESS
}

const HEAD: &str = "# Metrics

<!-- Generated from src/metrics; `make docs` writes it anew. -->

`/metrics` on the port for operations answers in Prometheus' text format, version 0.0.4. Every unit is a base unit: seconds, bytes,
ratios from 0 to 1. Counters and histograms are of one replica: add them up. Gauges marked *fleet* are read from the database every
15 seconds, never per scrape, and are the same on every replica: take `max`. While the database is away they keep their last value, and
`p8broker_database_up` is 0.

Labels have few values: constants that stand in this documentation, and names that operators gave. Where there are more than 500 app
groups, policies or keys, those beyond count together as `(others)`. No label names a client. Nothing secret is in any of them.

";

const PROCESS: &str = "
## Process

As the system tells; on Linux alone.

| metric | type | meaning |
| --- | --- | --- |
| `process_cpu_seconds_total` | counter | processor time used |
| `process_open_fds` | gauge | open file descriptors |
| `process_max_fds` | gauge | how many there may be |
| `process_virtual_memory_bytes` | gauge | virtual memory |
| `process_resident_memory_bytes` | gauge | resident memory |
| `process_start_time_seconds` | gauge | when it started, in Unix time |
| `process_threads` | gauge | threads |
";
