//! `get`, `list` and `schema`: what is in force, for a person and for a program.

use p8broker::grpc::proto::{self, Power, TargetKind};
use serde_json::{Value, json};

use crate::cli::{json_as, run_as};
use crate::harness::*;
use crate::hostile_documents::corpus::HONEST;

const LOOKER: &str = "spiffe://acme.internal/ns/ops/sa/looker";

async fn start() -> Broker {
    let broker = Broker::bare(Options::default()).await;
    let mut operator = broker.as_(OPERATOR).await;
    operator.system.init(proto::InitRequest::default()).await.unwrap();
    operator.apply(crate::harness::operator("looker", LOOKER, &[Power::Audit])).await.unwrap();
    let (code, error) = json_as(&broker, OPERATOR, &["apply", "-f", "-"], HONEST).await;
    assert_eq!(code, 0, "{error}");
    broker
}

#[tokio::test]
async fn one_thing_is_printed_as_documents_have_it_and_a_policy_with_who_enforces_it() {
    let mut broker = start().await;
    let get = async |kind: &'static str, name: &'static str| json_as(&broker, LOOKER, &["get", kind, name], "").await;
    let (code, policy) = get("policy", "release").await;
    assert_eq!(code, 0, "{policy}");
    assert_eq!(policy["policy"]["max_ttl"], "10m");
    assert_eq!(policy["policy"]["clients"][2]["oidc"]["claims"]["repository_id"], "42");
    assert_eq!(
        (&policy["revoked"], &policy["open_until"], &policy["narrowed"]),
        (&json!(false), &Value::Null, &json!([]))
    );
    let limits = policy["enforced_by"].as_array().unwrap();
    let by: Vec<_> =
        limits.iter().map(|it| (it["limit"].as_str().unwrap(), it["enforced_by"].as_str().unwrap())).collect();
    let wanted = [
        ("lifetime", "BROKER_AT_ISSUE"),
        ("role", "APPLE_KEY_ROLE"),
        ("app_group", "NOBODY"),
        ("operations", "NOBODY"),
        ("quota", "BROKER_AT_ISSUE"),
    ];
    assert_eq!(by, wanted);
    let (_, reviews) = get("policy", "reviews").await;
    assert_eq!(reviews["narrowed"], json!(["ceiling everywhere narrows it: tokens live 900s at most"]));
    for (kind, name, field, value) in [
        ("account", "acme", "issuer_id", json!(ISSUER)),
        ("app-group", "games", "apps", json!(["1234567890", "2345678901"])),
        ("issuer", "corp", "leeway", json!("10s")),
        ("ceiling", "everywhere", "every_app_group", json!(true)),
        ("operator", "leads", "app_groups", json!(["games"])),
    ] {
        let (code, thing) = get(kind, name).await;
        assert_eq!((code, &thing[kind.replace('-', "_")][field]), (0, &value), "{thing}");
        assert!(thing["revision"].is_u64());
        assert_eq!(thing["revoked"].is_boolean(), ["app-group", "issuer"].contains(&kind), "{kind}");
    }
    // For a person: a document that can be applied, and what else there is to know as comments.
    broker.as_(OPERATOR).await.revoke(TargetKind::Policy, "reviews").await.unwrap();
    let (_, text, _) = run_as(&broker, LOOKER, &["get", "policy", "reviews"], "").await;
    for line in [
        "policies:\n  - name: reviews\n    clients:\n      - dns: reviews.ci.acme.internal\n",
        "    operations: [\"GET /v1/apps/{app}/customerReviews\"]\n",
        "# revoked, until an administrator reinstates it\n",
        "# ceiling everywhere narrows it: tokens live 900s at most\n",
        "# features: APPLE_SCOPE: ",
    ] {
        assert!(text.contains(line), "{line}\nis not in\n{text}");
    }
    let (code, out, err) = run_as(&broker, OPERATOR, &["apply", "-f", "-"], &text).await;
    assert!(code == 0 && out.contains("(revoked, stays revoked)") && out.contains("nothing to do"), "{out}{err}");
    assert_eq!(get("policy", "reviews").await.1["revoked"], true);
    for (kind, name, code, reason) in
        [("policy", "absent", 1, "NOT_FOUND"), ("policy", "A B", 1, "INVALID_ARGUMENT"), ("planet", "mars", 2, "USAGE")]
    {
        let (found, error) = get(kind, name).await;
        assert_eq!((found, error["reason"].as_str()), (code, Some(reason)));
    }
    let (code, error) = json_as(&broker, CLIENT, &["get", "policy", "release"], "").await;
    assert_eq!((code, error["reason"].as_str()), (3, Some("NOT_AN_OPERATOR")));
    broker.stop().await;
}

#[tokio::test]
async fn all_things_of_a_kind_are_printed_however_many() {
    let mut broker = start().await;
    let list = async |kind: &'static str| json_as(&broker, LOOKER, &["list", kind], "").await.1;
    for (kind, field, names) in [
        ("account", "accounts", &["acme"][..]),
        ("app-group", "app_groups", &["games"]),
        ("app-groups", "app_groups", &["games"]),
        ("app_group", "app_groups", &["games"]),
        ("app_groups", "app_groups", &["games"]),
        ("issuer", "issuers", &["cluster", "corp", "fleet", "github", "gitlab"]),
        ("ceiling", "ceilings", &["everywhere", "of-games"]),
        ("policy", "policies", &["emergency", "release", "reviews"]),
        ("operators", "operators", &["bootstrap-1", "leads", "looker", "root"]),
    ] {
        let found = list(kind).await;
        let listed: Vec<_> = found[field].as_array().unwrap().iter().map(|it| it["name"].as_str().unwrap()).collect();
        assert_eq!((listed.as_slice(), found["revision"].is_u64()), (names, true), "{kind}");
    }
    let (_, table, _) = run_as(&broker, LOOKER, &["list", "ceilings"], "").await;
    assert!(table.starts_with("NAME") && table.contains("everywhere  (every one)  15m"), "{table}");
    let account = |nth| proto::Account { name: format!("account-{nth:04}"), issuer_id: ISSUER.to_owned() };
    for from in [0, 700] {
        let accounts = (from..from + 700).map(account).collect();
        broker.as_(OPERATOR).await.apply(proto::Document { accounts, ..proto::Document::default() }).await.unwrap();
    }
    assert_eq!(list("accounts").await["accounts"].as_array().unwrap().len(), 1401);
    // What is exported has all of it, too.
    let (code, out, _) = run_as(&broker, LOOKER, &["export"], "").await;
    assert_eq!((code, out.matches("  - name: account-").count()), (0, 1400));
    broker.stop().await;
}

#[test]
fn the_schema_is_printed_without_a_broker() {
    let output = std::process::Command::new(crate::cli::BINARY).arg("schema").output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty());
    assert_eq!(output.stdout, std::fs::read("docs/p8broker.schema.json").unwrap());
}
