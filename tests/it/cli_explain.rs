//! `p8broker explain`: what scripts and people read.

use serde_json::Value;

use crate::cli::Playground;

#[tokio::test]
async fn the_command_line_explains_for_a_person_and_for_a_program() {
    let it = Playground::start().await;
    let stranger = "spiffe://acme.internal/ns/lab/sa/stranger";
    let request = ["explain", "--client", stranger, "--app-group", "games", "--role", "APP_MANAGER"];
    let denied = it.json("operator", &request);
    for field in ["allowed", "archived", "ceiling", "considered", "enforced_by", "expires_at", "keys", "path", "policy"]
    {
        assert!(denied.get(field).is_some(), "{field}: {denied}");
    }
    assert_eq!((&denied["allowed"], &denied["reason"]), (&Value::Bool(false), &Value::from("NO_POLICY")));
    assert_eq!((&denied["policy_may_allow"], &denied["recorded"]), (&Value::Bool(true), &Value::Null));
    assert!(denied["smallest_change"][0].as_str().unwrap().starts_with("add `spiffe://"), "{denied}");
    let entry = &denied["considered"][0];
    assert_eq!((&entry["kind"], &entry["passes"]), (&Value::from("policy"), &Value::Bool(false)));
    assert!(entry["reason"] == "NOT_NAMED" && entry["explanation"].is_string() && denied["revision"].is_u64());
    let whose = [&request[..], &["--claim", "ref"]].concat();
    let wrong = it.run("operator", &whose);
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("`ref` is not NAME=VALUE"), "{wrong:?}");
    let text = it.run("operator", &request);
    assert!(text.status.success(), "an explanation is no failure");
    let text = String::from_utf8(text.stdout).unwrap();
    for part in [
        "DENIED NO_POLICY, at revision",
        "  1. ",
        "POLICY ",
        "KEY ",
        "the smallest change that would allow it\n  - add",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    // The id that a refused caller is told, with the command to type.
    let refused =
        it.fails("stranger", &["token", "issue", "--app-group", "games", "--role", "APP_MANAGER"], 3, "NO_POLICY");
    let id = refused["decision_id"].as_str().unwrap();
    let explained = it.json("operator", &["explain", id]);
    assert!(explained["recorded"].as_str().unwrap().contains("DENIED NO_POLICY"), "{explained}");
    let refused = it.run("stranger", &["token", "issue", "--app-group", "games", "--role", "APP_MANAGER"]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("p8broker explain "));
    let granted = it.run(
        "operator",
        &[
            "explain",
            "--client",
            "spiffe://acme.internal/ns/ci/sa/release-bot",
            "--app-group",
            "games",
            "--role",
            "APP_MANAGER",
            "--ttl",
            "2m",
            "--scope",
            "GET /v1/apps",
        ],
    );
    let granted = String::from_utf8(granted.stdout).unwrap();
    assert!(granted.starts_with("GRANTED, policy games-release-ci, until "), "{granted}");
    assert!(granted.contains("the token lives 120s"), "{granted}");
    let vouched =
        ["explain", "--client", "oidc:github:x", "--app-group", "games", "--role", "ADMIN", "--claim", "ref=a=b"];
    assert_eq!(it.json("operator", &vouched)["reason"], "ISSUER_NOT_TRUSTED");
    for wrong in [
        &["explain"][..],
        &["explain", id, "--client", stranger],
        &["explain", "--client", stranger, "--app-group", "games"],
        &["explain", id, "--app-group", "games"],
        &[&vouched[..7], &["--claim", "ref"]].concat(),
        &[&request[..], &["--ttl", "soon"]].concat(),
    ] {
        it.fails("operator", wrong, 2, "USAGE");
    }
    it.fails("operator", &["explain", "12"], 1, "INVALID_ARGUMENT");
    it.fails("operator", &["explain", &"0".repeat(32)], 1, "NOT_FOUND");
    it.fails("client", &["explain", id], 3, "NOT_AN_OPERATOR");
}
