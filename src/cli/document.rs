//! Documents in files, folders or on standard input, with the place of everything in them.
//!
//! What can be told without the broker (the shape, every rule that needs no state) is told here, all at once; what the
//! broker answers is given its place by the path of its field.

use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::error::CliError;
use super::yaml::Yaml;
use crate::domain::document::Document;
use crate::domain::document::shape::{DOCUMENT, REVISION};

/// Most files of one folder.
const MOST_FILES: usize = 10_000;

/// A document, and where its fields stand.
#[derive(Debug, Default)]
pub(super) struct Parsed {
    pub(super) document: Document,
    yaml: Yaml,
}

impl Parsed {
    /// Reads a file, all `.yaml` and `.yml` files of a folder and those below it, or standard input (`-`).
    pub(super) fn read_path(path: &Path) -> Result<Self, CliError> {
        Self::read_all(&texts(path)?)
    }

    /// Reads texts as one document, each with the name of its file.
    pub(super) fn read_all(texts: &[(PathBuf, String)]) -> Result<Self, CliError> {
        let mut yaml = Yaml::default();
        for (file, text) in texts {
            yaml.read(file, text, DOCUMENT)?;
        }
        // Says when it was exported, and nothing of what is wanted.
        yaml.value.remove(REVISION);
        let value = Value::Object(yaml.value.clone());
        // What is of a wrong shape is among the violations already, and left out here.
        let document = serde_json::from_value(value).map_err(|error| CliError::failed(error.to_string()))?;
        Ok(Self { document, yaml })
    }

    /// Everything that is wrong, in the order of the files, each with its place.
    pub(super) fn violations(&self) -> Vec<(String, String)> {
        let checked = self.document.check().err().unwrap_or_default();
        let checked = checked.into_iter().map(|violation| (violation.path, violation.message));
        // A field of a wrong type was left empty: what the rules say of it then is no news.
        let known = |path: &String| {
            !self.yaml.violations.iter().any(|(wrong, _)| lies_within(path, wrong) || lies_within(wrong, path))
        };
        let all = self.yaml.violations.iter().cloned().chain(checked.filter(|(path, _)| known(path)));
        self.yaml.placed(all)
    }

    /// Gives each path its place.
    pub(super) fn placed(&self, violations: impl Iterator<Item = (String, String)>) -> Vec<(String, String)> {
        self.yaml.placed(violations)
    }
}

/// Whether a path is another one, or leads on from it.
fn lies_within(path: &str, outer: &str) -> bool {
    path.strip_prefix(outer).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
}

/// The texts of a path, by the names of their files.
pub(super) fn texts(path: &Path) -> Result<Vec<(PathBuf, String)>, CliError> {
    let unreadable = |path: &Path, error: std::io::Error| CliError::usage(format!("{}: {error}", path.display()));
    if path.as_os_str() == "-" {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).map_err(|error| unreadable(path, error))?;
        return Ok(vec![(PathBuf::from("(standard input)"), text)]);
    }
    let mut files = Vec::new();
    if path.is_dir() {
        walk(path, &mut files).map_err(|error| unreadable(path, error))?;
        files.sort();
        if files.is_empty() {
            return Err(CliError::usage(format!("{}: has no .yaml or .yml file", path.display())));
        }
        if files.len() > MOST_FILES {
            return Err(CliError::usage(format!("{}: has more than {MOST_FILES} files", path.display())));
        }
    } else {
        files.push(path.to_owned());
    }
    let read = |file: PathBuf| match std::fs::read_to_string(&file) {
        Ok(text) => Ok((file, text)),
        Err(error) => Err(unreadable(&file, error)),
    };
    files.into_iter().map(read).collect()
}

/// Hidden files and folders are left alone: editors and version control keep theirs there. So are links to folders, which
/// could lead back.
fn walk(folder: &Path, files: &mut Vec<PathBuf>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let (path, kind) = (entry.path(), entry.file_type()?);
        if entry.file_name().to_string_lossy().starts_with('.') || files.len() > MOST_FILES {
            continue;
        }
        if kind.is_dir() {
            walk(&path, files)?;
        } else if path.extension().is_some_and(|ending| ending == "yaml" || ending == "yml") {
            files.push(path);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Parsed, CliError> {
        Parsed::read_all(&[(PathBuf::from("a.yaml"), text.to_owned())])
    }

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
    hours: { time_zone: Europe/Berlin, days: [], from: '08:00', until: '18:00' }
";
        let parsed = read(text).unwrap();
        assert_eq!(parsed.document.app_groups[0].apps, ["1234567890", "00042"]);
        let places: Vec<_> = parsed.violations().into_iter().map(|(place, _)| place).collect();
        assert_eq!(
            places,
            [
                "3:16: accounts[0].issuer_id",
                "6:5: policies[0].roles",
                "7:25: policies[0].clients[0].spiffe",
                "7:48: policies[0].clients[1].dsn",
                "9:5: policies[0].rolls",
                "10:14: policies[0].max_ttl",
                "11:46: policies[0].hours.days",
            ]
        );
    }

    #[test]
    fn what_is_no_document_is_refused() {
        for (text, what) in
            [("a: [", "2:1"), ("accounts: &x []\napp_groups: *x\n", "2:13"), ("accounts: []\naccounts: []\n", "2:1")]
        {
            let error = read(text).unwrap_err();
            assert!(error.violations[0].0.starts_with(what) || text == "a: [", "{text}: {:?}", error.violations);
        }
        assert!(!read("- a\n").unwrap().violations().is_empty());
        assert!(read("").unwrap().violations().is_empty());
    }

    #[test]
    fn files_of_a_folder_are_one_document_and_violations_name_the_file() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("teams")).unwrap();
        let account = "accounts: [{ name: acme, issuer_id: 57246542-96fe-1a63-e053-0824d011072a }]\n";
        std::fs::write(dir.path().join("a.yaml"), account).unwrap();
        std::fs::write(dir.path().join("teams/b.yml"), "accounts:\n  - name: b\n    issuer_id: x\n").unwrap();
        std::fs::write(dir.path().join(".hidden.yaml"), "nonsense").unwrap();
        let parsed = Parsed::read_path(dir.path()).unwrap();
        assert_eq!(parsed.document.accounts.len(), 2);
        let violations = parsed.violations();
        assert!(violations[0].0.ends_with("b.yml:3:16: accounts[1].issuer_id"), "{violations:?}");
        assert!(Parsed::read_path(&dir.path().join("nowhere")).is_err());
    }
}
