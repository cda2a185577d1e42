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
        assert_eq!(output.status.code(), Some(2), "{to}");
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(error.contains(path), "{to}: {error}");
    }
    let (dir, file) = changed("documents: [policies]", "documents: [nowhere]");
    assert_eq!(run(&file, true).status.code(), Some(2));
    for content in [&b"cases:\n\t- name: x\n"[..], b"cases: [", b"cases: &a []\nkeys: *a\n", b"cases: # caf\xe9\n", b""]
    {
        let broken = dir.path().join("broken.yaml");
        std::fs::write(&broken, content).unwrap();
        assert_eq!(run(&broken, true).status.code(), Some(2), "{}", String::from_utf8_lossy(content));
    }
    std::fs::write(dir.path().join("policies/acme.yaml"), "accounts:\n\t- x\n").unwrap();
    let file = dir.path().join("cases.yaml");
    std::fs::write(&file, "documents: [policies]\ncases: []\n").unwrap();
    assert_eq!(run(&file, true).status.code(), Some(2), "a document that is no YAML");
}

#[test]
fn everything_wrong_is_told_at_once_whatever_it_is_about() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("cases.yaml");
    let text = "\
accounts: [{ name: acme, issuer_id: nonsense }]
app_groups: [{ name: games, account: acme, apps: ['111'] }]
keys:
  - { key_id: short, account: nobody, user: a@b, roles: [KING], app_groups: [nowhere] }
cases:
  - { name: a, client: nobody, app_group: games, role: ADMIN, expect: allow, reason: NO_POLICY }
  - { name: b, client: 'spiffe://acme/ci', app_group: games, role: ADMIN, expect: deny, policy: p, at: monday }
  - { name: c, client: 'oidc:github:x', app_group: games, role: ADMIN, expect: maybe, certificate: 'oidc:github:y' }
  - { name: d, client: 'spiffe://acme/ci', app_group: games, role: ADMIN, expect: deny, scope: ['POST /v1/apps'], open: [p] }
  - { name: e, client: 'spiffe://acme/ci', app_group: games, role: ADMIN, expect: deny, claims: { ref: x } }
";
    std::fs::write(&file, text).unwrap();
    let output = run(&file, true);
    assert_eq!(output.status.code(), Some(2));
    let error: Value = serde_json::from_slice(&output.stderr).unwrap();
    let places: Vec<_> =
        error["error"]["violations"].as_array().unwrap().iter().map(|it| it["field"].as_str().unwrap()).collect();
    let expected = [
        "1:37: accounts[0].issuer_id",
        "4:15: keys[0].key_id",
        "4:31: keys[0].account",
        "4:45: keys[0].user",
        "4:58: keys[0].roles[0]",
        "4:78: keys[0].app_groups[0]",
        "6:24: cases[0].client",
        "6:86: cases[0].reason",
        "7:97: cases[1].policy",
        "7:104: cases[1].at",
        "8:24: cases[2].client",
        "8:80: cases[2].expect",
        "8:100: cases[2].certificate",
        "9:97: cases[3].scope[0]",
        "9:122: cases[3].open[0]",
        "10:97: cases[4].claims",
    ];
    assert_eq!(places, expected);
}

#[test]
fn keys_claims_and_what_an_issuer_is_trusted_for_are_as_the_broker_has_them() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("cases.yaml");
    let text = "\
accounts: [{ name: acme, issuer_id: 57246542-96fe-1a63-e053-0824d011072a }]
app_groups: [{ name: games, account: acme, apps: ['111'] }]
issuers:
  - { name: github, kind: github_actions, audiences: [p8broker], claims: { repository_owner_id: '7' } }
ceilings: [{ name: no-team, every_app_group: true, no_team_keys: true }]
policies:
  - name: bot
    clients: [{ oidc: { issuer: github, claims: { sub: 'repo:acme/bot:ref:refs/heads/main', repository_id: '42' } } }]
    app_group: games
    roles: [DEVELOPER, APP_MANAGER]
keys:
  - { key_id: 2X9R4HXF34, account: acme, roles: [APP_MANAGER], app_groups: [games] }
  - { account: acme, kind: individual, user: dev@acme.example, roles: [DEVELOPER], app_groups: [games], apps: ['111'] }
cases:
  - name: the subject is a claim of every token
    client: oidc:github:repo:acme/bot:ref:refs/heads/main
    claims: { repository_id: '42', repository_owner_id: '7' }
    app_group: games
    role: DEVELOPER
    expect: allow
    policy: bot
  - name: the team key is out of use
    client: oidc:github:repo:acme/bot:ref:refs/heads/main
    claims: { repository_id: '42', repository_owner_id: '7' }
    app_group: games
    role: APP_MANAGER
    expect: deny
    reason: TEAM_KEY_OVER_CEILING
  - name: of another owner the issuer is not trusted
    client: oidc:github:repo:acme/bot:ref:refs/heads/main
    claims: { repository_id: '42', repository_owner_id: '8' }
    app_group: games
    role: DEVELOPER
    expect: deny
    reason: BEARER_CLAIMS
  - name: what is not there is no case of its own
    client: spiffe://acme/x
    app_group: nowhere
    role: DEVELOPER
    expect: deny
    reason: NO_POLICY
";
    std::fs::write(&file, text).unwrap();
    let output = run(&file, true);
    let shown = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{shown} {}", String::from_utf8_lossy(&output.stderr));
    let answer: Value = serde_json::from_str(&shown).unwrap();
    assert_eq!((&answer["passed"], &answer["failed"]), (&Value::from(4), &Value::from(0)));
}

/// Operators live in the vault: a repository of policies need not name them, and what it names need not be all.
#[test]
fn rules_about_operators_are_the_vaults_and_not_tested() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("cases.yaml");
    let two_eyes = "\
accounts: [{ name: acme, issuer_id: 57246542-96fe-1a63-e053-0824d011072a }]
app_groups: [{ name: games, account: acme, apps: ['111'] }]
ceilings: [{ name: two-eyes, every_app_group: true, require_approval: true }]
cases: [{ name: a, client: 'spiffe://acme/ci', app_group: games, role: ADMIN, expect: deny, reason: NO_POLICY }]
";
    let one = "operators: [{ name: alice, clients: [{ spiffe: 'spiffe://acme/alice' }], powers: [administer] }]\n";
    for operators in ["", one] {
        std::fs::write(&file, format!("{two_eyes}{operators}")).unwrap();
        let output = run(&file, true);
        assert_eq!(output.status.code(), Some(0), "{operators}: {}", String::from_utf8_lossy(&output.stderr));
    }
    // Each operator by itself is checked as in any document.
    std::fs::write(&file, format!("{two_eyes}{}", one.replace("[administer]", "[rule]"))).unwrap();
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
