//! Scope entries: the reads that Apple confines a token to, and the templates that policies write for them.
//!
//! Grammar: `GET <path>[?query]`, the path exact, as Apple documents it. Entries are kept in one canonical form: query
//! parameters sorted, `limit`, `cursor` and `sort` dropped (Apple ignores all three). An entry of a request matches an
//! entry of a policy only where the canonical forms are equal: what a longer query reads (`include=`) can be more than
//! the shorter one, so nothing is guessed.
//!
//! # Invariants
//! - P8: an entry with a method other than GET does not parse; Apple answers such a token with 405.

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use crate::id::{AppId, shown};

/// Longest scope entry, in bytes.
const MOST_BYTES: usize = 512;

/// What stands for each app id of a group in a policy's operation.
const APP: &str = "{app}";

/// One read, in canonical form.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Operation {
    path: String,
    query: BTreeSet<String>,
}

/// Why a text is not a scope entry.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OperationError {
    /// It has another method.
    #[error("`{0}` is not a read: Apple's scope claim takes GET only, and answers any other method with 405")]
    NotGet(String),
    /// It is longer than 512 bytes.
    #[error("a scope entry has at most 512 bytes")]
    TooLong,
    /// The path is not one of Apple's.
    #[error("`{0}` has no path as Apple writes them: GET /v1/apps, segments of letters, digits, `-`, `_` and `.`")]
    Path(String),
    /// The path holds `{app}` where a token is asked for.
    #[error("`{0}` holds a placeholder: a token's scope names each app by its id")]
    Placeholder(String),
    /// The query is not one of Apple's.
    #[error("`{0}` has no query as Apple writes them: name=value pairs joined by `&`, unencoded, no name twice")]
    Query(String),
}

impl Operation {
    /// Takes a scope entry of a request.
    ///
    /// # Errors
    /// With the part that is not as Apple documents it.
    pub fn parse(text: &str) -> Result<Self, OperationError> {
        let parsed = Self::parse_template(text)?;
        if parsed.has_placeholder() {
            return Err(OperationError::Placeholder(shown(text)));
        }
        Ok(parsed)
    }

    fn parse_template(text: &str) -> Result<Self, OperationError> {
        if text.len() > MOST_BYTES {
            return Err(OperationError::TooLong);
        }
        let rest = text.strip_prefix("GET ").ok_or_else(|| OperationError::NotGet(shown(text)))?;
        let (path, query) = rest.split_once('?').map_or((rest, None), |(path, query)| (path, Some(query)));
        if !is_path(path) {
            return Err(OperationError::Path(shown(text)));
        }
        let mut parameters = BTreeSet::new();
        let mut names = BTreeSet::new();
        for pair in query.into_iter().flat_map(|query| query.split('&')) {
            let name = parameter_name(pair).ok_or_else(|| OperationError::Query(shown(text)))?;
            if !names.insert(name) {
                return Err(OperationError::Query(shown(text)));
            }
            if !matches!(name, "limit" | "cursor" | "sort") {
                parameters.insert(pair.to_owned());
            }
        }
        Ok(Self { path: path.to_owned(), query: parameters })
    }

    /// The path, without the query.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Whether the query has a parameter of this name.
    pub fn has_parameter(&self, name: &str) -> bool {
        self.parameter_names().any(|known| known == name)
    }

    /// The names of the query's parameters, such as `filter[app]`.
    pub fn parameter_names(&self) -> impl Iterator<Item = &str> {
        self.query.iter().filter_map(|pair| pair.split('=').next())
    }

    /// Whether the read is confined to exactly one of these apps, by its path or by `filter[app]`.
    pub fn is_confined_to(&self, apps: &BTreeSet<AppId>) -> bool {
        let by_path = self.path.strip_prefix("/v1/apps/").and_then(|rest| rest.split('/').next());
        let by_filter = self.query.iter().find_map(|pair| pair.strip_prefix("filter[app]="));
        by_path.or(by_filter).is_some_and(|id| apps.iter().any(|app| app.as_str() == id))
    }

    /// Whether the read names an app that is not one of these.
    pub fn names_other_apps(&self, apps: &BTreeSet<AppId>) -> bool {
        let is_other = |id: &str| !apps.iter().any(|app| app.as_str() == id);
        let mut segments = self.path.split('/').skip(2);
        let of_apps = segments.next() == Some("apps");
        let app = segments.next().filter(|_| of_apps);
        let filters = self.query.iter().filter_map(|pair| pair.strip_prefix("filter[")?.split_once("]="));
        let of_apps = filters.filter(|(name, _)| names_apps(name) || (of_apps && app.is_none() && *name == "id"));
        app.is_some_and(is_other) || of_apps.flat_map(|(_, ids)| ids.split(',')).any(is_other)
    }

    fn has_placeholder(&self) -> bool {
        self.path.contains(APP) || self.query.iter().any(|pair| pair.contains(APP))
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GET {}", self.path)?;
        for (at, pair) in self.query.iter().enumerate() {
            let joint = if at == 0 { '?' } else { '&' };
            write!(f, "{joint}{pair}")?;
        }
        Ok(())
    }
}

impl Serialize for Operation {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Operation {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::parse_template(&String::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

/// One read as a policy writes it, in which `{app}` stands for each app of the policy's group.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct OperationTemplate(Operation);

impl OperationTemplate {
    /// Takes an operation of a policy.
    ///
    /// # Errors
    /// With the part that is not as Apple documents it.
    pub fn parse(text: &str) -> Result<Self, OperationError> {
        Operation::parse_template(text).map(Self)
    }

    /// Whether this grants the read, for one of these apps.
    pub fn grants(&self, wanted: &Operation, apps: &BTreeSet<AppId>) -> bool {
        if !self.0.has_placeholder() {
            return self.0 == *wanted;
        }
        apps.iter().any(|app| self.for_app(app) == *wanted)
    }

    /// The reads that it grants for these apps, as far as an entry of a scope can hold them.
    pub fn reads<'a>(&'a self, apps: &'a BTreeSet<AppId>) -> impl Iterator<Item = Operation> + 'a {
        let exact = (!self.0.has_placeholder()).then(|| self.0.clone());
        let for_apps = exact.is_none().then(|| apps.iter().map(|app| self.for_app(app)));
        let all = exact.into_iter().chain(for_apps.into_iter().flatten());
        all.filter(|read| read.to_string().len() <= MOST_BYTES)
    }

    /// The read, with `{app}` where an app's id would stand.
    pub fn as_operation(&self) -> &Operation {
        &self.0
    }

    /// Whether every read that this grants names exactly one app of the group, as [`Operation::is_confined_to`] has it.
    pub fn is_confined(&self) -> bool {
        let by_path = self.0.path.strip_prefix("/v1/apps/").and_then(|rest| rest.split('/').next());
        let by_filter = self.0.query.iter().find_map(|pair| pair.strip_prefix("filter[app]="));
        by_path.or(by_filter) == Some(APP)
    }

    fn for_app(&self, app: &AppId) -> Operation {
        Operation {
            path: self.0.path.replace(APP, app.as_str()),
            query: self.0.query.iter().map(|pair| pair.replace(APP, app.as_str())).collect(),
        }
    }
}

impl fmt::Display for OperationTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Whether a filter's values are ids of apps: `app` of most lists, `apps` of testers, `visibleApps` of users, or one of these
/// of something that a list relates to.
fn names_apps(filter: &str) -> bool {
    let last = filter.rsplit('.').next().unwrap_or_default();
    ["app", "apps", "visibleApps"].iter().any(|name| last.eq_ignore_ascii_case(name))
}

fn is_path(path: &str) -> bool {
    let mut segments = path.split('/');
    let version = |segment: &str| {
        segment.strip_prefix('v').is_some_and(|n| (1..=2).contains(&n.len()) && n.bytes().all(|b| b.is_ascii_digit()))
    };
    segments.next() == Some("")
        && segments.next().is_some_and(version)
        && path.split('/').count() > 2
        && segments.all(|segment| segment == APP || is_segment(segment))
}

fn is_segment(segment: &str) -> bool {
    // Traversal would let a path mean another one: `.` and `..` are no segments, and nothing is percent-encoded.
    !segment.is_empty()
        && segment.bytes().any(|b| b != b'.')
        && segment.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

fn parameter_name(pair: &str) -> Option<&str> {
    let (name, value) = pair.split_once('=')?;
    let plain = |text: &str, extra: &[u8]| {
        !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b) || extra.contains(&b))
    };
    (plain(name, b"[]") && plain(&value.replace(APP, "0"), b",:+@")).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_get_with_an_exact_path_is_a_scope_entry() {
        for good in
            ["GET /v1/apps", "GET /v1/apps?filter[platform]=IOS", "GET /v2/sandboxTesters", "GET /v1/apps/123/builds"]
        {
            assert!(Operation::parse(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "GET",
            "POST /v1/apps",
            "get /v1/apps",
            "GET  /v1/apps",
            "GET v1/apps",
            "GET /apps",
            "GET /v1/",
            "GET /v1",
            "GET /v1/apps/",
            "GET /v1//apps",
            "GET /v1/../v1/users",
            "GET /v1/apps/.",
            "GET /v1/apps/%2e%2e/users",
            "GET /v1/apps/*",
            "GET /v1/apps#x",
            "GET /v1/apps?",
            "GET /v1/apps?a",
            "GET /v1/apps?a=1&a=2",
            "GET /v1/äpps",
            "GET /v1/apps\n",
            "GET /v1/apps\0",
            "GET /v1/apps/{app}",
            "GET /v1/apps?filter[app]={app}",
            "DELETE /v1/apps/1",
        ] {
            assert!(Operation::parse(bad).is_err(), "{bad:?}");
        }
        assert!(matches!(Operation::parse("PATCH /v1/apps/1"), Err(OperationError::NotGet(_))));
        assert_eq!(Operation::parse(&format!("GET /v1/{}", "a".repeat(600))), Err(OperationError::TooLong));
    }

    #[test]
    fn order_and_paging_of_a_query_are_ignored_as_apple_does() {
        let a = Operation::parse("GET /v1/apps?filter[b]=2&filter[a]=1&limit=5&sort=name").unwrap();
        let b = Operation::parse("GET /v1/apps?cursor=x&filter[a]=1&filter[b]=2").unwrap();
        assert_eq!(a, b);
        assert_eq!(a.to_string(), "GET /v1/apps?filter[a]=1&filter[b]=2");
    }

    #[test]
    fn app_stands_for_each_app_of_the_group_and_no_other() {
        let apps: BTreeSet<_> = ["111", "222"].iter().filter_map(|id| AppId::parse(id).ok()).collect();
        let template = OperationTemplate::parse("GET /v1/apps/{app}/customerReviews").unwrap();
        let wanted = |text: &str| Operation::parse(text).unwrap();
        assert!(template.grants(&wanted("GET /v1/apps/222/customerReviews"), &apps));
        assert!(!template.grants(&wanted("GET /v1/apps/333/customerReviews"), &apps));
        assert!(!template.grants(&wanted("GET /v1/apps/222/customerReviews?include=response"), &apps));
        assert!(!template.grants(&wanted("GET /v1/apps/222"), &apps));
        assert!(!template.grants(&wanted("GET /v1/apps/222/customerReviews"), &BTreeSet::new()));
        assert!(wanted("GET /v1/apps/111/builds").is_confined_to(&apps));
        assert!(wanted("GET /v1/builds?filter[app]=111").is_confined_to(&apps));
        assert!(!wanted("GET /v1/builds?filter[app]=111,333").is_confined_to(&apps));
        assert!(!wanted("GET /v1/apps").is_confined_to(&apps));
    }

    #[test]
    fn an_app_is_named_by_path_and_by_every_filter_of_apps() {
        let apps: BTreeSet<_> = ["111", "222"].iter().filter_map(|id| AppId::parse(id).ok()).collect();
        let names_other = |text: &str| Operation::parse(text).unwrap().names_other_apps(&apps);
        for other in [
            "GET /v1/apps/999/builds",
            "GET /v2/apps/999",
            "GET /v1/builds?filter[app]=111,999",
            "GET /v1/betaTesters?filter[apps]=999",
            "GET /v1/users?filter[visibleApps]=111,999",
            "GET /v1/apps?filter[id]=999",
            "GET /v1/builds?filter[version]=999&filter[preReleaseVersion.app]=999",
            "GET /v1/builds?filter[APP]=999",
            "GET /v1/apps/111/builds?filter[app]=999",
        ] {
            assert!(names_other(other), "{other}");
        }
        for own in [
            "GET /v1/apps/111/builds?filter[id]=999",
            "GET /v1/betaTesters?filter[apps]=111,222",
            "GET /v1/users?filter[visibleApps]=222&filter[roles]=ADMIN",
            "GET /v1/apps?filter[id]=111",
            "GET /v1/builds?filter[id]=999&filter[version]=999&fields[apps]=name",
            "GET /v1/betaTesters/999/apps",
        ] {
            assert!(!names_other(own), "{own}");
        }
    }

    #[test]
    fn a_template_is_confined_where_each_of_its_reads_is() {
        let confined = |text: &str| OperationTemplate::parse(text).unwrap().is_confined();
        for good in ["GET /v1/apps/{app}", "GET /v1/apps/{app}/builds", "GET /v1/builds?filter[app]={app}"] {
            assert!(confined(good), "{good}");
        }
        for bad in [
            "GET /v1/apps",
            "GET /v1/apps/7/builds",
            "GET /v1/builds?filter[app]={app},333",
            "GET /v1/builds?filter[app]={app}7",
            "GET /v1/builds?xfilter[app]={app}",
            "GET /v1/apps/7?filter[app]={app}",
            "GET /v2/apps/{app}",
        ] {
            assert!(!confined(bad), "{bad}");
        }
    }
}
