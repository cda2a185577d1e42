//! `policy test` by the real binary: the example, cases that fail, and files that make no sense. And every document of the
//! guide, as the guide has it.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use tempfile::TempDir;

use crate::harness::*;

fn run(file: &Path, json: bool) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_p8broker"));
    command.args(["policy", "test", "-f"]).arg(file);
    if json {
        command.args(["--output", "json"]);
    }
    command.env_clear().output().unwrap()
}

fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/examples")
}

/// The example, with a change.
fn changed(from: &str, to: &str) -> (TempDir, PathBuf) {
    let dir = TempDir::new().unwrap();
    std::fs::create_dir(dir.path().join("policies")).unwrap();
    std::fs::copy(examples().join("policies/acme.yaml"), dir.path().join("policies/acme.yaml")).unwrap();
    let text = std::fs::read_to_string(examples().join("policy-cases.yaml")).unwrap();
    assert!(text.contains(from), "{from}");
    let file = dir.path().join("cases.yaml");
    std::fs::write(&file, text.replacen(from, to, 1)).unwrap();
    (dir, file)
}

#[test]
fn the_example_is_as_expected() {
    let output = run(&examples().join("policy-cases.yaml"), true);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((answer["passed"].as_u64(), answer["failed"].as_u64()), (Some(9), Some(0)));
    assert!(
        String::from_utf8(run(&examples().join("policy-cases.yaml"), false).stdout).unwrap().contains("9 as expected")
    );
}

#[test]
fn a_case_that_is_not_as_expected_fails_and_says_how() {
    for (from, to, got) in [
        ("expect: allow\n    policy: games-release-ci", "expect: deny", "allow by games-release-ci"),
        ("reason: OUTSIDE_HOURS", "reason: NO_POLICY", "deny for OUTSIDE_HOURS"),
        ("policy: games-release-ci", "policy: games-reviews", "allow by games-release-ci"),
        ("open: [games-emergency]\n    ", "", "deny for BREAK_GLASS_CLOSED"),
    ] {
        let (_dir, file) = changed(from, to);
        let output = run(&file, true);
        assert_eq!(output.status.code(), Some(1), "{to}");
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(answer["failed"], 1, "{answer}");
        let failed = answer["cases"].as_array().unwrap().iter().find(|case| case["ok"] == false).unwrap();
        assert_eq!(failed["got"], got);
    }
}

#[test]
fn files_that_make_no_sense_are_refused_with_their_places() {
    for (from, to, path) in [
        ("expect: allow", "expect: maybe", "cases[0].expect"),
        ("role: ADMIN", "role: KING", "cases[3].role"),
        ("client: oidc:github:", "client: oidc:gitlab:", "cases[0].client"),
        ("client: spiffe://acme.internal/ns/ops/sa/oncall", "client: nobody", "cases[7].client"),
        ("open: [games-emergency]", "open: [nothing]", "cases[8]"),
        ("scope: [\"GET /v1/apps/999", "scope: [\"POST /v1/apps/999", "cases[5].scope[0]"),
        ("reason: NO_POLICY", "reason: BECAUSE", "cases[2].reason"),
        ("at: 2026-11-23T10:00:00Z", "at: monday", "at"),
        ("cases:", "case:", "case"),
        (
            "documents: [policies]",
            "documents: [policies]\nkeys: [{ account: nobody, roles: [ADMIN], app_groups: [x] }]",
            "keys[0].account",
        ),
    ] {
        let (_dir, file) = changed(from, to);
        let output = run(&file, true);
        assert_eq!(output.status.code(), Some(1), "{to}");
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(error.contains(path), "{to}: {error}");
    }
    let (_dir, file) = changed("documents: [policies]", "documents: [nowhere]");
    assert_eq!(run(&file, true).status.code(), Some(2));
}

/// The guide's documents, one after the other, on a vault that begins empty but for its operator.
#[tokio::test]
async fn every_document_of_the_guide_can_be_applied_as_it_stands() {
    let guide = include_str!("../../docs/policies.md");
    let blocks: Vec<&str> = guide.split("```yaml\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
    assert!(blocks.len() >= 7, "{}", blocks.len());
    let mut broker = Broker::start().await;
    let dir = TempDir::new().unwrap();
    for (nth, block) in blocks.iter().enumerate() {
        let file = dir.path().join(format!("{nth}.yaml"));
        std::fs::write(&file, block).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_p8broker"));
        command.args(["apply", "-f"]).arg(&file).envs(broker.env(OPERATOR));
        let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
        assert!(output.status.success(), "block {nth}: {}", String::from_utf8_lossy(&output.stderr));
    }
    broker.stop().await;
}
