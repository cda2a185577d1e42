//! YAML documents, with the place of everything in them.
//!
//! What can be told from the text alone (wrong types, unknown fields, every rule that needs no state) is told here, all
//! at once, with line and column; what the broker answers is given its line and column by the path of its field.

use std::collections::BTreeMap;

use saphyr::{MarkedYaml, Marker, ScalarStyle, YamlData, YamlLoader};
use saphyr_parser::{Event, Parser};

use super::error::CliError;
use crate::clock::UnixMillis;
use crate::domain::document::{AccountText, AppGroupText, ClientText, Document, OperatorText, PolicyText};
use crate::id::shown;

/// Largest file, in bytes.
const MOST_BYTES: usize = 2 * 1024 * 1024;

/// A document, and where its fields stand.
#[derive(Debug, Default)]
pub(super) struct Parsed {
    pub(super) document: Document,
    places: BTreeMap<String, (usize, usize)>,
    violations: Vec<(String, String)>,
}

impl Parsed {
    /// Reads a text of one or more YAML documents, which count as one.
    pub(super) fn read(text: &str) -> Result<Self, CliError> {
        if text.len() > MOST_BYTES {
            return Err(CliError::usage(format!("the document has more than {MOST_BYTES} bytes; split it")));
        }
        let wrong = |at: &Marker, what: &str| {
            CliError::invalid("the document is not YAML".to_owned(), vec![(place(at), what.to_owned())])
        };
        // An alias can make a small file huge: none is needed, and none is taken.
        for event in Parser::new_from_str(text) {
            match event {
                Ok((Event::Alias(_), span)) => {
                    return Err(wrong(&span.start, "aliases are not taken; write the value out"));
                }
                Ok(_) => {}
                Err(error) => return Err(wrong(error.marker(), error.info())),
            }
        }
        let mut loader = YamlLoader::<MarkedYaml<'_>>::default();
        // Values stay as they were written: an app id is no number.
        loader.early_parse(false);
        let loaded = Parser::new_from_str(text).load(&mut loader, true);
        loaded.map_err(|error| wrong(error.marker(), error.info()))?;
        // What the loader itself refuses, such as a field that stands twice.
        if let Some(error) = loader.error() {
            return Err(wrong(error.marker(), error.info()));
        }
        let mut parsed = Self::default();
        for node in loader.into_documents() {
            parsed.document_node(&node);
        }
        Ok(parsed)
    }

    /// Everything that is wrong, in the order of the file, as `line:column` and what.
    pub(super) fn violations(&self) -> Vec<(String, String)> {
        let checked = self.document.check().err().unwrap_or_default();
        let checked = checked.into_iter().map(|violation| (violation.path, violation.message));
        // A field of a wrong type was left empty: what the rules say of it then is no news.
        let known = |path: &String| !self.violations.iter().any(|(wrong, _)| path.starts_with(wrong.as_str()));
        let all = self.violations.iter().cloned().chain(checked.filter(|(path, _)| known(path)));
        self.placed(all)
    }

    /// Gives each path its line and column, or those of the nearest field around it.
    pub(super) fn placed(&self, violations: impl Iterator<Item = (String, String)>) -> Vec<(String, String)> {
        let mut out: Vec<_> = violations.map(|(path, what)| (self.place_of(&path), path, what)).collect();
        out.sort();
        let text = |((line, column), path, what): ((usize, usize), String, String)| {
            if line == usize::MAX { (path, what) } else { (format!("{line}:{column}: {path}"), what) }
        };
        out.into_iter().map(text).collect()
    }

    fn place_of(&self, path: &str) -> (usize, usize) {
        let mut at = path;
        loop {
            if let Some(place) = self.places.get(at) {
                return *place;
            }
            match at.rfind(['.', '[']) {
                Some(end) => at = at.get(..end).unwrap_or_default(),
                None => return (usize::MAX, 0),
            }
        }
    }

    fn refuse(&mut self, path: &str, what: impl Into<String>) {
        self.violations.push((path.to_owned(), what.into()));
    }

    fn document_node(&mut self, node: &MarkedYaml<'_>) {
        for (name, value) in self.fields(node, "", &["accounts", "app_groups", "policies", "operators"]) {
            for (at, item) in self.items(value, &name).into_iter().enumerate() {
                let path = format!("{name}[{at}]");
                // Several YAML documents are one: the second one's first account is not accounts[0].
                match name.as_str() {
                    "accounts" => {
                        let path = format!("accounts[{}]", self.document.accounts.len());
                        let it = self.account(item, &path);
                        self.document.accounts.push(it);
                    }
                    "app_groups" => {
                        let path = format!("app_groups[{}]", self.document.app_groups.len());
                        let it = self.app_group(item, &path);
                        self.document.app_groups.push(it);
                    }
                    "policies" => {
                        let path = format!("policies[{}]", self.document.policies.len());
                        let it = self.policy(item, &path);
                        self.document.policies.push(it);
                    }
                    "operators" => {
                        let path = format!("operators[{}]", self.document.operators.len());
                        let it = self.operator(item, &path);
                        self.document.operators.push(it);
                    }
                    _ => self.refuse(&path, "is not known"),
                }
            }
        }
    }

    fn account(&mut self, node: &MarkedYaml<'_>, path: &str) -> AccountText {
        let mut out = AccountText::default();
        for (name, value) in self.fields(node, path, &["name", "issuer_id"]) {
            let at = format!("{path}.{name}");
            match name.as_str() {
                "name" => out.name = self.text(value, &at),
                _ => out.issuer_id = self.text(value, &at),
            }
        }
        out
    }

    fn app_group(&mut self, node: &MarkedYaml<'_>, path: &str) -> AppGroupText {
        let mut out = AppGroupText::default();
        for (name, value) in self.fields(node, path, &["name", "account", "apps"]) {
            let at = format!("{path}.{name}");
            match name.as_str() {
                "name" => out.name = self.text(value, &at),
                "account" => out.account = self.text(value, &at),
                _ => out.apps = self.texts(value, &at),
            }
        }
        out
    }

    fn policy(&mut self, node: &MarkedYaml<'_>, path: &str) -> PolicyText {
        const FIELDS: &[&str] = &[
            "name",
            "clients",
            "app_group",
            "roles",
            "max_ttl",
            "default_ttl",
            "operations",
            "require_scope",
            "not_before",
            "not_after",
        ];
        let mut out = PolicyText::default();
        for (name, value) in self.fields(node, path, FIELDS) {
            let at = format!("{path}.{name}");
            match name.as_str() {
                "name" => out.name = self.text(value, &at),
                "clients" => out.clients = self.clients(value, &at),
                "app_group" => out.app_group = self.text(value, &at),
                "roles" => out.roles = self.texts(value, &at),
                "max_ttl" => out.max_ttl_s = self.duration(value, &at),
                "default_ttl" => out.default_ttl_s = self.duration(value, &at),
                "operations" => out.operations = self.texts(value, &at),
                "require_scope" => out.require_scope = self.flag(value, &at),
                "not_before" => out.not_before = self.time(value, &at),
                _ => out.not_after = self.time(value, &at),
            }
        }
        out
    }

    fn operator(&mut self, node: &MarkedYaml<'_>, path: &str) -> OperatorText {
        let mut out = OperatorText::default();
        for (name, value) in self.fields(node, path, &["name", "clients", "powers", "app_groups"]) {
            let at = format!("{path}.{name}");
            match name.as_str() {
                "name" => out.name = self.text(value, &at),
                "clients" => out.clients = self.clients(value, &at),
                "powers" => out.powers = self.texts(value, &at),
                _ => out.app_groups = self.texts(value, &at),
            }
        }
        out
    }

    fn clients(&mut self, node: &MarkedYaml<'_>, path: &str) -> Vec<ClientText> {
        let mut out = Vec::new();
        for (at, item) in self.items(node, path).into_iter().enumerate() {
            let path = format!("{path}[{at}]");
            let mut named = Vec::new();
            for (name, value) in self.fields(item, &path, &["spiffe", "dns"]) {
                let text = self.text(value, &format!("{path}.{name}"));
                named.push(if name == "spiffe" { ClientText::Spiffe(text) } else { ClientText::Dns(text) });
            }
            if named.len() > 1 {
                self.refuse(&path, "names two clients: make two entries of it");
            }
            out.push(named.into_iter().next().unwrap_or(ClientText::Missing));
        }
        out
    }

    /// The known fields of a mapping; others are violations.
    fn fields<'a, 'b>(
        &mut self,
        node: &'a MarkedYaml<'b>,
        path: &str,
        known: &[&str],
    ) -> Vec<(String, &'a MarkedYaml<'b>)> {
        self.note(path, node);
        let YamlData::Mapping(mapping) = &node.data else {
            let null = matches!(&node.data, YamlData::Representation(text, _, _) if text.is_empty());
            if !(path.is_empty() && null) {
                self.refuse(path, format!("must be a mapping with the fields {}", known.join(", ")));
            }
            return Vec::new();
        };
        let mut out = Vec::new();
        for (key, value) in mapping {
            let name = match &key.data {
                YamlData::Representation(text, _, _) => text.to_string(),
                _ => String::new(),
            };
            let at = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
            self.note(&at, key);
            if known.contains(&name.as_str()) {
                out.push((name, value));
                continue;
            }
            let nearest = known.iter().min_by_key(|known| strsim::damerau_levenshtein(known, &name));
            let nearest = nearest.filter(|known| strsim::normalized_damerau_levenshtein(known, &name) > 0.4);
            let hint = nearest
                .map_or_else(|| format!("known are {}", known.join(", ")), |near| format!("did you mean `{near}`?"));
            self.refuse(&at, format!("`{}` is not a field here; {hint}", shown(&name)));
        }
        out
    }

    fn items<'a, 'b>(&mut self, node: &'a MarkedYaml<'b>, path: &str) -> Vec<&'a MarkedYaml<'b>> {
        match &node.data {
            YamlData::Sequence(items) => {
                for (at, item) in items.iter().enumerate() {
                    self.note(&format!("{path}[{at}]"), item);
                }
                items.iter().collect()
            }
            YamlData::Representation(text, _, _) if text.is_empty() => Vec::new(),
            _ => {
                self.refuse(path, "must be a list");
                Vec::new()
            }
        }
    }

    fn text(&mut self, node: &MarkedYaml<'_>, path: &str) -> String {
        self.note(path, node);
        match &node.data {
            YamlData::Representation(text, ScalarStyle::Plain, _) if matches!(text.as_ref(), "" | "~" | "null") => {
                self.refuse(path, "is empty");
                String::new()
            }
            YamlData::Representation(text, _, _) => text.to_string(),
            _ => {
                self.refuse(path, "must be one text");
                String::new()
            }
        }
    }

    fn texts(&mut self, node: &MarkedYaml<'_>, path: &str) -> Vec<String> {
        let items = self.items(node, path);
        items.into_iter().enumerate().map(|(at, item)| self.text(item, &format!("{path}[{at}]"))).collect()
    }

    fn flag(&mut self, node: &MarkedYaml<'_>, path: &str) -> bool {
        match self.text(node, path).as_str() {
            "true" => true,
            "false" => false,
            _ => {
                self.refuse(path, "must be true or false");
                false
            }
        }
    }

    fn duration(&mut self, node: &MarkedYaml<'_>, path: &str) -> Option<i64> {
        let text = self.text(node, path);
        let seconds = seconds(&text);
        if seconds.is_none() {
            self.refuse(
                path,
                format!("`{}` is not a duration of whole seconds, such as 90s, 10m or 30days", shown(&text)),
            );
        }
        seconds
    }

    fn time(&mut self, node: &MarkedYaml<'_>, path: &str) -> Option<UnixMillis> {
        let text = self.text(node, path);
        let at = UnixMillis::parse(&text);
        if at.is_none() {
            self.refuse(path, format!("`{}` is not a time such as 2026-12-31T00:00:00Z", shown(&text)));
        }
        at
    }

    fn note(&mut self, path: &str, node: &MarkedYaml<'_>) {
        let (line, column) = (node.span.start.line(), node.span.start.col().saturating_add(1));
        self.places.insert(path.to_owned(), (line, column));
    }
}

/// Whole seconds of a text such as `10m`.
pub(super) fn seconds(text: &str) -> Option<i64> {
    let duration = humantime::parse_duration(text).ok().filter(|duration| duration.subsec_nanos() == 0)?;
    i64::try_from(duration.as_secs()).ok()
}

fn place(at: &Marker) -> String {
    format!("{}:{}", at.line(), at.col().saturating_add(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_violation_has_its_line_and_column() {
        let text = "\
accounts:
  - name: acme
    issuer_id: nonsense
app_groups: [{ name: games, account: acme, apps: [1234567890, 00042] }]
policies:
  - name: p
    clients: [{ spiffe: 'spiffe://acme/*' }, { dsn: x }]
    app_group: games
    rolls: [ADMIN]
    max_ttl: ten
";
        let parsed = Parsed::read(text).unwrap();
        assert_eq!(parsed.document.app_groups[0].apps, ["1234567890", "00042"]);
        let places: Vec<_> = parsed.violations().into_iter().map(|(place, _)| place).collect();
        assert_eq!(
            places,
            [
                "3:16: accounts[0].issuer_id",
                "6:5: policies[0].roles",
                "7:25: policies[0].clients[0].spiffe",
                "7:46: policies[0].clients[1]",
                "7:48: policies[0].clients[1].dsn",
                "9:5: policies[0].rolls",
                "10:14: policies[0].max_ttl",
            ]
        );
    }

    #[test]
    fn what_is_no_document_is_refused() {
        for (text, what) in
            [("a: [", "2:1"), ("accounts: &x []\napp_groups: *x\n", "2:13"), ("accounts: []\naccounts: []\n", "2:1")]
        {
            let error = Parsed::read(text).unwrap_err();
            assert!(error.violations[0].0.starts_with(what) || text == "a: [", "{text}: {:?}", error.violations);
        }
        assert!(!Parsed::read("- a\n").unwrap().violations().is_empty());
        assert!(Parsed::read("").unwrap().violations().is_empty());
    }
}
