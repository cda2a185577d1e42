//! What a trusted issuer says of a caller, and what policies ask of it.
//!
//! A claim is named as it stands at the top of the token, `repository_id`; one inside an object is named by its JSON
//! pointer (RFC 6901), `/kubernetes.io/namespace`. Its values are texts: numbers and booleans as JSON writes them, a list
//! as each of its members. What is deeper, longer or more than the bounds below is as if it were not there, so a policy
//! that asks for it does not match.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::glob::ClaimGlob;

/// Most claims that are kept of one token.
pub const MOST_CLAIMS: usize = 200;

/// Most values of one claim.
pub const MOST_VALUES: usize = 200;

/// Longest name or value, in bytes.
pub const MOST_BYTES: usize = 1024;

/// Deepest object.
const MOST_DEPTH: usize = 4;

/// Claims by name, each with its values.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Claims(BTreeMap<String, Vec<String>>);

/// What each of some claims must be: one of these values.
pub type ClaimConditions = BTreeMap<String, Vec<ClaimGlob>>;

impl Claims {
    /// Takes the claims of a token.
    pub fn of(payload: &serde_json::Map<String, Value>) -> Self {
        let mut claims = Self::default();
        for (name, value) in payload {
            // A name that looks like a pointer could stand for another claim.
            if !name.starts_with('/') {
                claims.take(name.clone(), value, 1);
            }
        }
        claims
    }

    /// Claims as they are given on the command line or in a test: one name may be given several times.
    pub fn from_pairs<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let mut claims = Self::default();
        for (name, value) in pairs {
            claims.0.entry(name.to_owned()).or_default().push(value.to_owned());
        }
        claims
    }

    /// Makes this the one value of a claim.
    pub fn set(&mut self, name: &str, value: &str) {
        self.0.insert(name.to_owned(), vec![value.to_owned()]);
    }

    fn take(&mut self, name: String, value: &Value, depth: usize) {
        if name.len() > MOST_BYTES || depth > MOST_DEPTH {
            return;
        }
        match value {
            Value::Object(fields) => {
                let parent = if depth == 1 { format!("/{}", escaped(&name)) } else { name };
                for (field, value) in fields {
                    self.take(format!("{parent}/{}", escaped(field)), value, depth.saturating_add(1));
                }
            }
            Value::Array(items) if items.len() <= MOST_VALUES => {
                let values = items.iter().filter_map(text).collect();
                self.put(name, values);
            }
            value => self.put(name, text(value).into_iter().collect()),
        }
    }

    fn put(&mut self, name: String, values: Vec<String>) {
        if !values.is_empty() && self.0.len() < MOST_CLAIMS {
            self.0.insert(name, values);
        }
    }

    /// The values of a claim; empty where it is not there.
    pub fn values(&self, name: &str) -> &[String] {
        self.0.get(name).map_or(&[], Vec::as_slice)
    }

    /// All claims, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[String])> {
        self.0.iter().map(|(name, values)| (name.as_str(), values.as_slice()))
    }

    /// Whether every condition holds: the claim is there, and one of its values is one of those asked for.
    pub fn meet(&self, conditions: &ClaimConditions) -> bool {
        self.first_unmet(conditions).is_none()
    }

    /// The first condition that does not hold.
    pub fn first_unmet<'a>(&self, conditions: &'a ClaimConditions) -> Option<&'a str> {
        let holds = |(name, globs): &(&String, &Vec<ClaimGlob>)| {
            self.values(name).iter().any(|value| globs.iter().any(|glob| glob.matches(value)))
        };
        conditions.iter().find(|condition| !holds(condition)).map(|(name, _)| name.as_str())
    }

    /// The conditions on claims that are not there at all; `None` where one that is there does not hold.
    pub fn lacking<'a>(&self, conditions: &'a ClaimConditions) -> Option<Vec<(&'a str, &'a [ClaimGlob])>> {
        let mut out = Vec::new();
        for (name, globs) in conditions {
            match self.values(name) {
                [] => out.push((name.as_str(), globs.as_slice())),
                values if values.iter().any(|value| globs.iter().any(|glob| glob.matches(value))) => {}
                _ => return None,
            }
        }
        Some(out)
    }

    /// Those with one of these names.
    #[must_use]
    pub fn only<'a>(&self, names: impl IntoIterator<Item = &'a str>) -> Self {
        let kept = names.into_iter().filter_map(|name| self.0.get_key_value(name));
        Self(kept.map(|(name, values)| (name.clone(), values.clone())).collect())
    }
}

fn text(value: &Value) -> Option<String> {
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        Value::Bool(flag) => flag.to_string(),
        Value::Null | Value::Array(_) | Value::Object(_) => return None,
    };
    (text.len() <= MOST_BYTES).then_some(text)
}

/// A name as one part of a JSON pointer.
fn escaped(name: &str) -> String {
    name.replace('~', "~0").replace('/', "~1")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claims(json: &str) -> Claims {
        Claims::of(serde_json::from_str::<Value>(json).unwrap().as_object().unwrap())
    }

    fn conditions(pairs: &[(&str, &str)]) -> ClaimConditions {
        pairs.iter().map(|(name, glob)| ((*name).to_owned(), vec![ClaimGlob::parse(glob).unwrap()])).collect()
    }

    #[test]
    fn claims_are_found_by_name_and_by_pointer() {
        let claims = claims(
            r#"{"repository_id":"42","run":7,"groups":["a","b",{}],"kubernetes.io":{"namespace":"ci","a/b":{"x":true}},"/kubernetes.io/namespace":"forged","none":null}"#,
        );
        assert_eq!(claims.values("repository_id"), ["42"]);
        assert_eq!(claims.values("run"), ["7"]);
        assert_eq!(claims.values("groups"), ["a", "b"]);
        assert_eq!(claims.values("/kubernetes.io/namespace"), ["ci"]);
        assert_eq!(claims.values("/kubernetes.io/a~1b/x"), ["true"]);
        assert!(claims.values("none").is_empty() && claims.values("kubernetes.io").is_empty());
    }

    #[test]
    fn every_condition_must_hold_and_what_is_absent_does_not() {
        let claims = claims(r#"{"repository":"acme/bot","ref":"refs/heads/main","groups":["x","release-1"]}"#);
        assert!(claims.meet(&conditions(&[("repository", "acme/*"), ("ref", "refs/heads/main")])));
        assert!(claims.meet(&conditions(&[("groups", "release-*")])));
        assert!(!claims.meet(&conditions(&[("repository", "acme/bot"), ("environment", "prod")])));
        assert!(!claims.meet(&conditions(&[("repository", "acme")])));
        assert!(claims.meet(&ClaimConditions::new()));
    }

    #[test]
    fn what_is_too_deep_or_too_much_is_not_there() {
        let deep = claims(r#"{"a":{"b":{"c":{"d":{"e":"x"}}}}}"#);
        assert_eq!(deep.iter().count(), 0);
        let many: serde_json::Map<_, _> = (0..500).map(|n| (format!("c{n}"), Value::from("x"))).collect();
        assert_eq!(Claims::of(&many).iter().count(), MOST_CLAIMS);
        let long = claims(&format!(r#"{{"a":"{}"}}"#, "x".repeat(2000)));
        assert!(long.values("a").is_empty());
    }
}
