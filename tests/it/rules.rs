//! Alerts: each has a test for both sides and a runbook, and asks only for metrics that there are.
//!
//! That the rules fire and do not fire is tested by Prometheus' own promtool: `make promtest`.

use std::collections::BTreeSet;

use saphyr::{LoadableYamlNode, Yaml};

const RULES: &str = "deploy/prometheus/rules.yaml";
const TESTS: &str = "deploy/prometheus/rules_test.yaml";

fn text(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn strings<'a>(items: impl IntoIterator<Item = &'a Yaml<'a>>, field: &str) -> Vec<String> {
    items.into_iter().filter_map(|it| it.as_mapping_get(field)?.as_str().map(ToOwned::to_owned)).collect()
}

/// The rules of all groups.
fn rules<'a>(document: &'a Yaml<'a>) -> Vec<&'a Yaml<'a>> {
    let groups = document.as_mapping_get("groups").unwrap().as_vec().unwrap();
    groups.iter().flat_map(|group| group.as_mapping_get("rules").unwrap().as_vec().unwrap()).collect()
}

/// Names that begin as this project's do; of a histogram, its own name.
fn metrics(expression: &str) -> BTreeSet<String> {
    let word = |c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == ':');
    let ours = expression.split(word).filter(|word| word.starts_with("p8broker_") || word.starts_with("p8broker:"));
    let family = |name: &str| {
        let suffix = ["_bucket", "_count", "_sum"].iter().find_map(|suffix| name.strip_suffix(suffix));
        suffix.unwrap_or(name).to_owned()
    };
    ours.map(family).collect()
}

#[test]
fn every_alert_has_both_sides_tested_and_a_runbook_with_its_four_parts() {
    let (rules_text, tests_text) = (text(RULES), text(TESTS));
    let (rules_file, tests_file) =
        (Yaml::load_from_str(&rules_text).unwrap(), Yaml::load_from_str(&tests_text).unwrap());
    let all = rules(&rules_file[0]);
    let alerts: Vec<_> = all.iter().copied().filter(|rule| rule.as_mapping_get("alert").is_some()).collect();
    assert!(alerts.len() > 20);
    let named = strings(tests_file[0].as_mapping_get("tests").unwrap().as_vec().unwrap(), "name");
    let overview = text("docs/runbooks/README.md");
    for alert in &alerts {
        let name = alert.as_mapping_get("alert").unwrap().as_str().unwrap();
        for side in ["fires", "does not fire"] {
            assert!(named.contains(&format!("{name} {side}")), "{name} {side}");
        }
        let annotations = alert.as_mapping_get("annotations").unwrap();
        let severity = alert.as_mapping_get("labels").unwrap().as_mapping_get("severity").unwrap().as_str().unwrap();
        assert!(["page", "ticket"].contains(&severity), "{name}");
        for field in ["summary", "description"] {
            assert!(annotations.as_mapping_get(field).unwrap().as_str().unwrap().len() >= 15, "{name}: {field}");
        }
        let runbook = annotations.as_mapping_get("runbook").unwrap().as_str().unwrap();
        let page = text(runbook);
        assert!(page.starts_with(&format!("# {name}\n")), "{runbook}");
        let headings: Vec<&str> = page.lines().filter(|line| line.starts_with("## ")).collect();
        assert_eq!(headings, ["## Meaning", "## Check", "## Act", "## After"], "{runbook}");
        let file = runbook.rsplit('/').next().unwrap();
        assert!(overview.contains(&format!("[{name}]({file}) | {severity} |")), "{name} is not in the overview");
    }
    let pages = std::fs::read_dir("docs/runbooks").unwrap().count();
    assert_eq!(pages, alerts.len() + 1, "a runbook without an alert");
}

#[test]
fn rules_ask_for_metrics_that_there_are() {
    let page = text("docs/metrics.md");
    let known: BTreeSet<String> =
        page.lines().filter(|line| line.starts_with("| `p8broker_")).flat_map(metrics).collect();
    assert!(known.len() > 40, "{known:?}");
    let rules_text = text(RULES);
    let file = Yaml::load_from_str(&rules_text).unwrap();
    let records = strings(rules(&file[0]), "record");
    for expression in strings(rules(&file[0]), "expr") {
        for name in metrics(&expression) {
            assert!(known.contains(&name) || records.contains(&name), "{name} in {expression}");
        }
    }
}
