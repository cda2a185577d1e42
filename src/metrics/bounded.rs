//! Labels with names that operators gave: few, and none longer than it is true.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use prometheus::{GaugeVec, IntCounterVec};

/// Most names that one label has; those beyond share [`OTHERS`].
pub const MOST_NAMES: usize = 500;

/// What names beyond the most are called.
pub const OTHERS: &str = "(others)";

/// The first names that come, and one for all others.
#[derive(Debug, Default)]
pub(super) struct Names(RwLock<BTreeSet<String>>);

impl Names {
    pub(super) fn bounded<'a>(&self, name: &'a str) -> &'a str {
        if self.0.read().unwrap_or_else(PoisonError::into_inner).contains(name) {
            return name;
        }
        let mut known = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if known.len() < MOST_NAMES || known.contains(name) {
            known.insert(name.to_owned());
            return name;
        }
        OTHERS
    }
}

/// Counters by outcome, app group and role, of which there are few app groups.
#[derive(Debug, Clone)]
pub struct TokenCounters {
    all: IntCounterVec,
    groups: Arc<Names>,
}

impl TokenCounters {
    pub(super) fn new(all: IntCounterVec) -> Self {
        Self { all, groups: Arc::default() }
    }

    /// One more.
    pub fn inc(&self, outcome: &str, app_group: &str, role: &str) {
        self.all.with_label_values(&[outcome, self.groups.bounded(app_group), role]).inc();
    }
}

/// Counters whose first label is a name that an operator gave.
#[derive(Debug, Clone)]
pub struct NamedCounters {
    all: IntCounterVec,
    names: Arc<Names>,
}

impl NamedCounters {
    pub(super) fn new(all: IntCounterVec) -> Self {
        Self { all, names: Arc::default() }
    }

    /// One more.
    pub fn inc<const N: usize>(&self, name: &str, more: [&str; N]) {
        let labels: Vec<&str> = std::iter::once(self.names.bounded(name)).chain(more).collect();
        self.all.with_label_values(&labels).inc();
    }
}

/// Gauges that are read as a whole: a name that is not read any more is shown no more.
#[derive(Debug, Clone)]
pub struct Read {
    all: GaugeVec,
    shown: Arc<Mutex<BTreeSet<Vec<String>>>>,
}

impl Read {
    pub(super) fn of(all: GaugeVec) -> Self {
        Self { all, shown: Arc::default() }
    }

    /// Shows these and no others. `join` makes one value of those beyond [`MOST_NAMES`]; the largest are told apart.
    pub fn show(&self, values: BTreeMap<Vec<String>, f64>, join: fn(f64, f64) -> f64) {
        let mut sorted: Vec<(Cow<'_, [String]>, f64)> =
            values.iter().map(|(k, v)| (Cow::Borrowed(k.as_slice()), *v)).collect();
        if sorted.len() > MOST_NAMES {
            sorted.sort_by(|a, b| b.1.total_cmp(&a.1));
            let rest = sorted.split_off(MOST_NAMES);
            let labels = rest.first().map_or(1, |(labels, _)| labels.len());
            let joined = rest.into_iter().map(|(_, value)| value).reduce(join);
            sorted.extend(joined.map(|value| (Cow::Owned(vec![OTHERS.to_owned(); labels]), value)));
        }
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        let mut now = BTreeSet::new();
        for (labels, value) in sorted {
            self.all.with_label_values(&texts(&labels)).set(value);
            now.insert(labels.into_owned());
        }
        for gone in shown.difference(&now) {
            let _ = self.all.remove_label_values(&texts(gone));
        }
        *shown = now;
    }
}

fn texts(labels: &[String]) -> Vec<&str> {
    labels.iter().map(String::as_str).collect()
}
