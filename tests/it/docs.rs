//! The pages: links lead somewhere, every page can be reached from the book, and commands in them are commands that there are.

mod run;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};
use std::process::Command;

use crate::cli::BINARY;

/// Where pages are; each folder as deep as it goes.
const FOLDERS: [&str; 3] = ["docs", "deploy", "clients"];

fn pages() -> BTreeMap<PathBuf, String> {
    let mut waiting: Vec<PathBuf> = FOLDERS.iter().map(PathBuf::from).collect();
    waiting.extend(["README.md", "SECURITY.md", "CONTRIBUTING.md", "CHANGELOG.md"].map(PathBuf::from));
    let mut out = BTreeMap::new();
    while let Some(path) = waiting.pop() {
        if path.is_dir() {
            let inside = std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path());
            // What is fetched for the clients has pages of its own.
            waiting.extend(inside.filter(|path| !path.ends_with("node_modules")));
        } else if path.extension().is_some_and(|it| it == "md") {
            let text = std::fs::read_to_string(&path).unwrap();
            out.insert(path, text);
        }
    }
    assert!(out.len() > 40, "{}", out.len());
    out
}

/// The targets of links within the repository: path and anchor.
fn links(text: &str) -> Vec<(&str, &str)> {
    let all = text.split("](").skip(1).filter_map(|rest| rest.split([')', ' ']).next());
    let ours = all.filter(|link| !link.contains("://") && !link.starts_with("mailto:") && !link.is_empty());
    ours.map(|link| link.split_once('#').unwrap_or((link, ""))).collect()
}

/// `docs/../README.md` is `README.md`.
fn plain(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => drop(out.pop()),
            Component::CurDir => {}
            part => out.push(part),
        }
    }
    out
}

/// Headings as a page's anchors.
fn anchors(text: &str) -> BTreeSet<String> {
    let headings = text.lines().filter(|line| line.starts_with('#'));
    let anchor = |line: &str| {
        let words = line.trim_start_matches('#').trim().to_lowercase();
        words.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c)).collect::<String>().replace(' ', "-")
    };
    headings.map(anchor).collect()
}

#[test]
fn every_link_leads_somewhere_and_every_page_is_reached_from_the_book() {
    let pages = pages();
    let mut wrong = Vec::new();
    let mut reached = BTreeSet::from([PathBuf::from("docs/README.md")]);
    let mut waiting: Vec<PathBuf> = reached.iter().cloned().collect();
    for (page, text) in &pages {
        for (link, anchor) in links(text) {
            let to = if link.is_empty() { page.clone() } else { plain(&page.parent().unwrap().join(link)) };
            let known = pages.get(&to).is_none_or(|text| anchor.is_empty() || anchors(text).contains(anchor));
            if !to.exists() || !known {
                wrong.push(format!("{}: {link}#{anchor}", page.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    while let Some(page) = waiting.pop() {
        for (link, _) in pages.get(&page).map(|text| links(text)).unwrap_or_default() {
            let to = plain(&page.parent().unwrap().join(link));
            // A folder stands for what is in it.
            let inside = pages.keys().filter(|other| **other == to || other.starts_with(&to));
            waiting.extend(inside.filter(|other| reached.insert((*other).clone())).cloned());
        }
    }
    let lost: Vec<_> = pages.keys().filter(|page| page.starts_with("docs") && !reached.contains(*page)).collect();
    assert!(lost.is_empty(), "no way leads from docs/README.md to {lost:?}");
}

/// Command lines of this program in a page, in blocks and in the text, each as one line.
fn commands(text: &str) -> Vec<String> {
    let mut fenced = false;
    let mut out: Vec<String> = Vec::new();
    let (mut goes_on, mut prose) = (false, String::new());
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
            continue;
        }
        if !fenced && !line.starts_with("    ") {
            prose.push_str(line.trim());
            prose.push(' ');
            continue;
        }
        let line = line.trim();
        let (part, next) = line.strip_suffix('\\').map_or((line, false), |part| (part, true));
        if goes_on && let Some(last) = out.last_mut() {
            last.push_str(part);
        } else if let Some((before, rest)) = format!(" {part}").split_once(" p8broker ")
            && !before.ends_with(" -n")
        {
            // `kubectl -n p8broker` names a namespace.
            out.push(rest.to_owned());
        } else {
            continue;
        }
        goes_on = next;
    }
    let spans = prose.split('`').skip(1).step_by(2);
    out.extend(spans.filter_map(|span| span.strip_prefix("p8broker ")).map(ToOwned::to_owned));
    out
}

/// The words of a command up to where the shell, or a person, takes over.
fn words(command: &str) -> Vec<&str> {
    let end =
        |word: &&str| !["|", ">", "<", ";", "#", "&&"].iter().any(|it| word.starts_with(it)) && !word.ends_with(')');
    command.split_whitespace().take_while(end).collect()
}

#[test]
fn every_command_in_a_page_is_one_that_there_is() {
    let mut checked = 0;
    let mut wrong = Vec::new();
    for (page, text) in pages() {
        for command in commands(&text) {
            let words = words(&command);
            let names = words
                .iter()
                .take_while(|word| word.chars().all(|c| c.is_ascii_lowercase() || c == '-') && !word.starts_with('-'));
            let names: Vec<&str> = names.copied().collect();
            if names.is_empty() {
                continue;
            }
            checked += 1;
            let help = Command::new(BINARY).args(&names).arg("--help").output().unwrap();
            let said = String::from_utf8_lossy(&help.stdout).into_owned();
            let flags = words.iter().filter_map(|word| word.split('=').next().filter(|flag| flag.starts_with("--")));
            let unknown: Vec<&str> = flags.filter(|flag| !said.contains(*flag)).collect();
            if !help.status.success() || !unknown.is_empty() {
                wrong.push(format!("{}: p8broker {command}: {unknown:?}", page.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(checked > 100, "{checked}");
}
