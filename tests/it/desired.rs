//! Desired state: plans that read like a diff, ceilings, pruning, limits that nobody enforces, and the way back by
//! `export`.

use std::time::Duration;

use p8broker::grpc::proto::{self, TargetKind};
use tonic::Status;

use crate::cli::{json_as, run_as};
use crate::harness::*;
use crate::hostile_documents::corpus::HONEST;

const OTHER: &str = "spiffe://acme.internal/ns/ci/sa/release-two";

fn ceiling(name: &str) -> proto::Ceiling {
    proto::Ceiling { name: name.to_owned(), every_app_group: true, ..proto::Ceiling::default() }
}

fn ceilings(ceilings: Vec<proto::Ceiling>) -> proto::Document {
    proto::Document { ceilings, ..proto::Document::default() }
}

/// The only administrator of a vault as it was initialised.
fn bootstrap() -> proto::Operator {
    let all = (1..=6).collect();
    proto::Operator { name: "bootstrap-1".to_owned(), clients: vec![spiffe(OPERATOR)], powers: all, app_groups: vec![] }
}

pub async fn plan(
    operator: &mut Client,
    document: proto::Document,
    prune: bool,
) -> Result<proto::PlanResponse, Status> {
    let request = proto::PlanRequest { document: Some(document), prune, refuse_advisory: false };
    operator.policy.plan(request).await.map(tonic::Response::into_inner)
}

fn step<'a>(plan: &'a proto::PlanResponse, kind: &str, name: &str) -> &'a proto::PlanStep {
    plan.steps.iter().find(|step| (step.kind.as_str(), step.name.as_str()) == (kind, name)).expect(name)
}

#[tokio::test]
async fn a_plan_reads_like_a_diff_and_says_who_gains_and_who_loses_what() {
    let mut broker = Broker::start().await;
    let mut operator = broker.as_(OPERATOR).await;
    let old = proto::Policy { name: "old".to_owned(), clients: vec![spiffe(OTHER)], ..release_policy() };
    operator.apply(policies(vec![old])).await.unwrap();
    let text = "\
accounts: [{ name: acme, issuer_id: 57246542-96fe-1a63-e053-0824d011072a }]
app_groups: [{ name: games, account: acme, apps: [1234567890, 3456789012] }]
issuers: [{ name: github, kind: github_actions, audiences: [p8broker] }]
policies:
  - name: games-release-ci
    clients:
      - spiffe: spiffe://acme.internal/ns/ci/sa/release-*
      - oidc: { issuer: github, claims: { repository_id: 42 } }
    app_group: games
    roles: [APP_MANAGER, DEVELOPER]
    max_ttl: 5m
  - name: new
    clients: [{ dns: reviews.ci.acme.internal }]
    app_group: games
    roles: [CUSTOMER_SUPPORT]
    operations: [\"GET /v1/apps/{app}/customerReviews\"]
    not_after: 2036-12-31T00:00:00Z
operators:
  - { name: bootstrap-1, clients: [{ spiffe: spiffe://acme.internal/ns/ops/sa/admin }],
      powers: [administer, custody, author_policies, revoke, unseal] }
";
    let (code, plan, errors) = run_as(&broker, OPERATOR, &["apply", "-f", "-", "--plan", "--prune"], text).await;
    assert_eq!((code, errors.as_str()), (0, ""));
    let wanted = [
        "  account acme\n",
        "~ app_group games\n    apps: [\"1234567890\",\"2345678901\"] -> [\"1234567890\",\"3456789012\"]\n",
        "    => clients of games-release-ci, new gain app 3456789012\n",
        "    => clients of games-release-ci, new lose app 2345678901\n",
        "+ issuer github\n",
        "~ policy games-release-ci\n",
        "    max_ttl: 600s -> 300s\n",
        "    roles: [\"APP_MANAGER\"] -> [\"APP_MANAGER\",\"DEVELOPER\"]\n",
        "    => oidc:github:(any subject) with repository_id=42 gains APP_MANAGER, DEVELOPER on games for at most 300s",
        "    => its clients gain DEVELOPER\n",
        "    => its clients lose longer tokens: at most 300s, before 600s\n",
        "+ policy new\n",
        "    => dns:reviews.ci.acme.internal gains CUSTOMER_SUPPORT on games for at most 1080s, only GET \
         /v1/apps/{app}/customerReviews, until 2036-12-31T00:00:00Z\n",
        "    app_group: APPLE_SCOPE: ",
        "    app_group: NOBODY: ",
        "~ operator bootstrap-1\n",
        "    => spiffe://acme.internal/ns/ops/sa/admin loses the power audit\n",
        "- policy old\n    => spiffe://acme.internal/ns/ci/sa/release-two loses APP_MANAGER on games for at most 600s, at any time\n",
        "\nnothing was changed; planned on revision ",
    ];
    for line in wanted {
        assert!(plan.contains(line), "{line}\nis not in\n{plan}");
    }
    // For a program the same, and nothing was done.
    let (_, json) = json_as(&broker, OPERATOR, &["apply", "-f", "-", "--plan", "--prune"], text).await;
    let steps = json["steps"].as_array().unwrap();
    let signs: Vec<_> = steps.iter().map(|it| (it["action"].as_str().unwrap(), it["name"].as_str().unwrap())).collect();
    let actions = [
        ("KEEP", "acme"),
        ("UPDATE", "games"),
        ("CREATE", "github"),
        ("UPDATE", "games-release-ci"),
        ("CREATE", "new"),
        ("UPDATE", "bootstrap-1"),
        ("REMOVE", "old"),
    ];
    assert_eq!((json["applied"].as_bool(), signs), (Some(false), actions.to_vec()));
    assert!(operator.policy.get_policy(proto::GetPolicyRequest { name: "old".to_owned() }).await.is_ok());
    let (code, applied) = json_as(&broker, OPERATOR, &["apply", "-f", "-", "--prune"], text).await;
    assert_eq!((code, &applied["steps"], &applied["applied"]), (0, &json["steps"], &true.into()));
    broker.stop().await;
}

#[tokio::test]
async fn a_ceiling_says_which_policies_it_narrows_and_narrows_them_until_it_goes() {
    let mut broker = Broker::start().await;
    let (mut operator, mut client) = (broker.as_(OPERATOR).await, broker.as_(CLIENT).await);
    let export = async |operator: &mut Client| {
        operator.policy.export(proto::ExportRequest {}).await.unwrap().into_inner().document.unwrap()
    };
    let written = export(&mut operator).await.policies;
    let short = proto::Ceiling { max_ttl: duration(120), ..ceiling("short") };
    let planned = plan(&mut operator, ceilings(vec![short.clone()]), false).await.unwrap();
    let means = &step(&planned, "ceiling", "short").means;
    assert_eq!(means, &["clients of policy games-release-ci lose longer tokens: at most 120s, before 600s"]);
    operator.apply(ceilings(vec![short.clone()])).await.unwrap();
    assert_eq!(client.issue(ask_fresh()).await.unwrap().expires_in.unwrap().seconds, 120);
    // The policy is as it was written, and says what is left of it; a plan of it says so, too.
    let get = || proto::GetPolicyRequest { name: "games-release-ci".to_owned() };
    let policy = operator.policy.get_policy(get()).await.unwrap().into_inner();
    assert_eq!(policy.narrowed, ["ceiling short narrows it: tokens live 120s at most"]);
    assert_eq!(export(&mut operator).await.policies, written);
    let kept = plan(&mut operator, sample(), false).await.unwrap();
    assert_eq!(step(&kept, "policy", "games-release-ci").action(), proto::Action::Keep);
    assert_eq!(step(&kept, "policy", "games-release-ci").means, policy.narrowed);
    // Others take roles and callers; one that only counts takes nothing.
    let strict = proto::Ceiling {
        never_roles: vec![proto::Role::AppManager.into()],
        trust_domains: vec!["other.internal".to_owned()],
        ..ceiling("strict")
    };
    let shadow = proto::Ceiling { shadow: true, ..strict.clone() };
    let planned = plan(&mut operator, ceilings(vec![shadow]), false).await.unwrap();
    assert_eq!(
        step(&planned, "ceiling", "strict").means,
        ["nobody gains or loses: it only counts what it would refuse"]
    );
    let planned = plan(&mut operator, ceilings(vec![strict.clone()]), false).await.unwrap();
    let expected = [
        "clients of policy games-release-ci lose APP_MANAGER",
        "clients of policy games-release-ci: spiffe://acme.internal/ns/ci/sa/release-* loses everything",
    ];
    assert_eq!(step(&planned, "ceiling", "strict").means, expected);
    operator.apply(ceilings(vec![strict])).await.unwrap();
    assert_eq!(refused(client.issue(ask()).await).1, "CALLER_OVER_CEILING");
    // A policy that comes later is told what is left of it before it comes.
    let late = proto::Policy { name: "late".to_owned(), ..release_policy() };
    let planned = plan(&mut operator, policies(vec![late]), false).await.unwrap();
    let means = &step(&planned, "policy", "late").means;
    let nothing = [
        "ceiling short narrows it: tokens live 120s at most",
        "ceiling strict narrows it: nobody gets APP_MANAGER",
        "ceiling strict narrows it: spiffe://acme.internal/ns/ci/sa/release-* gets nothing",
    ];
    assert_eq!(means, &nothing);
    // Without them everything is as before.
    let only = |list| proto::Document { ceilings: list, operators: vec![bootstrap()], ..sample() };
    let planned = plan(&mut operator, only(vec![short]), true).await.unwrap();
    let removed = step(&planned, "ceiling", "strict");
    assert_eq!(removed.action(), proto::Action::Remove);
    assert!(removed.means.contains(&"clients of policy games-release-ci gain APP_MANAGER".to_owned()), "{removed:?}");
    let prune = proto::ApplyRequest { document: Some(only(vec![])), prune: true, ..proto::ApplyRequest::default() };
    operator.policy.apply(prune).await.unwrap();
    assert_eq!(client.issue(ask_fresh()).await.unwrap().expires_in.unwrap().seconds, 600);
    broker.stop().await;
}

#[tokio::test]
async fn pruning_never_takes_keys_nor_what_keys_need() {
    let mut broker = Broker::start().await;
    let mut operator = broker.as_(OPERATOR).await;
    operator.import(&import("GONEKEY234", &new_p8())).await.unwrap();
    let tools =
        proto::AppGroup { name: "tools".to_owned(), apps: vec!["1".to_owned()], ..sample().app_groups.remove(0) };
    operator.apply(proto::Document { app_groups: vec![tools], ..proto::Document::default() }).await.unwrap();
    let of_tools = proto::ImportKeyRequest { app_groups: vec!["tools".to_owned()], ..import("TOOLSKEY23", &new_p8()) };
    operator.import(&of_tools).await.unwrap();
    for key in ["TOOLSKEY23", "GONEKEY234"] {
        operator.revoke(TargetKind::Key, key).await.unwrap();
    }
    let keys = async |broker: &Broker| json_as(broker, OPERATOR, &["key", "list"], "").await.1;
    let before = keys(&broker).await;
    let operators = "operators:\n  - { name: bootstrap-1, clients: [{ spiffe: spiffe://acme.internal/ns/ops/sa/admin }],\n      \
                     powers: [administer, custody, author_policies, revoke, audit, unseal] }\n";
    // Not even a revoked key's group goes: a token that it signed may still be alive, and its id is taken for ever.
    let (code, error) = json_as(&broker, OPERATOR, &["apply", "-f", "-", "--prune"], operators).await;
    let violations = error["violations"].as_array().unwrap();
    let fields: Vec<_> = violations.iter().map(|it| it["field"].as_str().unwrap()).collect();
    assert_eq!((code, fields), (1, vec!["account acme", "app_group games", "app_group tools"]));
    // What nobody uses goes, when that is asked for and only then.
    let groups = "accounts: [{ name: acme, issuer_id: 57246542-96fe-1a63-e053-0824d011072a }]\napp_groups:\n  \
                  - { name: games, account: acme, apps: [1] }\n  - { name: tools, account: acme, apps: [1] }\n";
    let all = format!("{groups}{operators}");
    let (_, kept) = json_as(&broker, OPERATOR, &["apply", "-f", "-"], &all).await;
    assert!(kept["steps"].as_array().unwrap().iter().all(|step| step["action"] != "REMOVE"), "{kept}");
    let (_, pruned) = json_as(&broker, OPERATOR, &["apply", "-f", "-", "--prune"], &all).await;
    let removed = pruned["steps"].as_array().unwrap().iter().filter(|step| step["action"] == "REMOVE");
    assert_eq!(removed.map(|step| &step["name"]).collect::<Vec<_>>(), ["games-release-ci"]);
    assert_eq!(keys(&broker).await, before, "keys are as they were");
    broker.stop().await;
}

#[tokio::test]
async fn a_folder_is_one_document_and_what_is_exported_changes_nothing() {
    let mut broker = Broker::bare(Options::default()).await;
    broker.as_(OPERATOR).await.system.init(proto::InitRequest::default()).await.unwrap();
    // One list a file, some in a folder below, as teams keep them.
    let dir = broker.dir.path().join("desired");
    std::fs::create_dir_all(dir.join("teams")).unwrap();
    let mut lists: Vec<String> = Vec::new();
    for line in HONEST.lines() {
        if !line.starts_with(' ') {
            lists.push(String::new());
        }
        lists.last_mut().unwrap().push_str(&format!("{line}\n"));
    }
    assert_eq!(lists.len(), 6);
    for (nth, list) in lists.iter().enumerate() {
        let name = if nth % 2 == 0 { format!("{nth}.yaml") } else { format!("teams/{nth}.yml") };
        std::fs::write(dir.join(name), list).unwrap();
    }
    std::fs::write(dir.join("README.md"), "no: [document").unwrap();
    let (code, applied) = json_as(&broker, OPERATOR, &["apply", "-f", "desired"], "").await;
    assert!(code == 0 && applied["steps"].as_array().unwrap().len() == 14, "{applied:#}");
    let (_, out, _) = run_as(&broker, OPERATOR, &["apply", "-f", "-"], HONEST).await;
    assert!(out.contains("there was nothing to do"), "{out}");
    // What is exported, as YAML or JSON, is what is there.
    let (code, yaml, _) = run_as(&broker, OPERATOR, &["export"], "").await;
    assert!(code == 0 && yaml.starts_with("# revision "), "{yaml}");
    let revision = &applied["revision"];
    assert_eq!(yaml.lines().next().unwrap(), format!("# revision {revision}"));
    let (_, json, _) = run_as(&broker, OPERATOR, &["export", "--output", "json"], "").await;
    let parsed: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&parsed["revision"], &parsed["policies"][1]["max_ttl"]), (revision, &"10m".into()));
    for text in [&yaml, &json] {
        let (code, out, err) = run_as(&broker, OPERATOR, &["apply", "-f", "-", "--prune"], text).await;
        assert!(code == 0 && out.ends_with(&format!("there was nothing to do; revision {revision}\n")), "{out}{err}");
    }
    // Somewhere else it makes the same.
    let mut other = Broker::bare(Options::default()).await;
    other.as_(OPERATOR).await.system.init(proto::InitRequest::default()).await.unwrap();
    let (code, _, err) = run_as(&other, OPERATOR, &["apply", "-f", "-"], &yaml).await;
    assert_eq!((code, err.as_str()), (0, ""));
    let (_, again, _) = run_as(&other, OPERATOR, &["export"], "").await;
    assert_eq!(again.split_once('\n').unwrap().1, yaml.split_once('\n').unwrap().1);
    // Places where no document is.
    std::fs::create_dir(broker.dir.path().join("empty")).unwrap();
    let (code, error) = json_as(&broker, OPERATOR, &["apply", "-f", "empty"], "").await;
    assert_eq!((code, error["reason"].as_str()), (2, Some("USAGE")));
    let (code, out, _) = run_as(&broker, OPERATOR, &["apply", "-f", "-", "--plan"], "").await;
    assert!(code == 0 && out.starts_with("the document is empty"), "{out}");
    other.stop().await;
    broker.stop().await;
}

#[tokio::test]
async fn what_nobody_enforces_is_refused_where_that_is_asked_for() {
    let mut broker = Broker::start().await;
    let mut operator = broker.as_(OPERATOR).await;
    let refuse = ["apply", "-f", "-", "--plan", "--refuse-advisory"];
    let policy = |more: &str| {
        format!(
            "policies:\n  - name: p\n    clients: [{{ dns: a.b }}]\n    app_group: games\n    roles: [DEVELOPER]\n{more}"
        )
    };
    // A policy for a group whose keys reach every app of the account, at the place where it stands.
    let (code, error) = json_as(&broker, OPERATOR, &refuse, &policy("")).await;
    assert_eq!((code, error["reason"].as_str()), (1, Some("ADVISORY_LIMITS")));
    let violations = error["violations"].as_array().unwrap();
    assert_eq!(violations.len(), 1);
    assert_eq!(violations[0]["field"], "2:5: policies[0]");
    let says = violations[0]["message"].as_str().unwrap();
    assert!(says.contains("`app_group`") && says.contains("team key reaches every app"), "{says}");
    // Applying refuses the same, and changes nothing; without the option it is a plan like any other.
    let (code, _) = json_as(&broker, OPERATOR, &["apply", "-f", "-", "--refuse-advisory"], &policy("")).await;
    assert_eq!(code, 1);
    assert_eq!(json_as(&broker, OPERATOR, &["apply", "-f", "-", "--plan"], &policy("")).await.0, 0);
    // Reads that all name an app are held by the scope; one that names another app beside it is not.
    let reads = |read: &str| policy(&format!("    operations: [\"GET /v1/apps/{{app}}\", \"{read}\"]\n"));
    assert_eq!(json_as(&broker, OPERATOR, &refuse, &reads("GET /v1/builds?filter[app]={app}")).await.0, 0);
    for read in ["GET /v1/builds", "GET /v1/builds?filter[app]={app},999", "GET /v1/apps/999"] {
        let (_, error) = json_as(&broker, OPERATOR, &refuse, &reads(read)).await;
        assert_eq!(error["reason"], "ADVISORY_LIMITS", "{read}");
    }
    // A feature that writes is an agreement, whatever the key.
    let (_, error) = json_as(&broker, OPERATOR, &refuse, &policy("    features: [reviews:write]\n")).await;
    assert_eq!(error["violations"].as_array().unwrap().len(), 2, "app_group and features: {error}");
    // Keys whose users Apple confines to the group hold the bearer, as long as there is no other key.
    let individual = proto::ImportKeyRequest {
        kind: proto::KeyKind::Individual.into(),
        user: "dev@acme.internal".to_owned(),
        app_access: Some(proto::AppAccess { all: false, app_ids: vec!["1234567890".to_owned()] }),
        roles: vec![proto::Role::Developer.into()],
        ..import("INDIVIDUAL", &new_p8())
    };
    operator.import(&individual).await.unwrap();
    assert_eq!(json_as(&broker, OPERATOR, &refuse, &policy("")).await.0, 0);
    let team =
        proto::ImportKeyRequest { roles: vec![proto::Role::Developer.into()], ..import("TEAMKEY234", &new_p8()) };
    operator.import(&team).await.unwrap();
    assert_eq!(json_as(&broker, OPERATOR, &refuse, &policy("")).await.1["reason"], "ADVISORY_LIMITS");
    // Nor is there where a ceiling lets none of the team keys sign: in the same document, and as the policy is shown.
    let own = "ceilings: [{ name: own, app_groups: [games], no_team_keys: true }]\n";
    let (code, planned) = json_as(&broker, OPERATOR, &refuse, &format!("{own}{}", policy(""))).await;
    assert_eq!(code, 0, "{planned:#}");
    operator.apply(ceilings(vec![proto::Ceiling { no_team_keys: true, ..ceiling("own") }])).await.unwrap();
    assert_eq!(json_as(&broker, OPERATOR, &["apply", "-f", "-", "--refuse-advisory"], &policy("")).await.0, 0);
    let shown =
        operator.policy.get_policy(proto::GetPolicyRequest { name: "p".to_owned() }).await.unwrap().into_inner();
    let limit = shown.enforced_by.iter().find(|it| it.limit == "app_group").unwrap();
    assert_eq!(limit.enforced_by(), proto::EnforcedBy::AppleIndividualAccess);
    assert!(limit.explanation.ends_with("ceiling own allows no team key there"), "{}", limit.explanation);
    broker.stop().await;
}

#[tokio::test]
async fn somebody_can_always_administer_also_where_an_issuer_vouches_for_them() {
    let mut broker = Broker::start().await;
    let mut operator = broker.as_(OPERATOR).await;
    // The other administrator is vouched for by an issuer.
    let corp = proto::Issuer {
        name: "corp".to_owned(),
        kind: proto::IssuerKind::Oidc.into(),
        url: "https://login.acme.internal".to_owned(),
        audiences: vec!["p8broker".to_owned()],
        ..proto::Issuer::default()
    };
    let oidc = proto::OidcPattern { issuer: "corp".to_owned(), subject: "root".to_owned(), ..Default::default() };
    let vouched = proto::Operator {
        name: "corp-root".to_owned(),
        clients: vec![proto::ClientPattern { pattern: Some(proto::client_pattern::Pattern::Oidc(oidc)) }],
        ..bootstrap()
    };
    let both = proto::Document { issuers: vec![corp.clone()], operators: vec![vouched.clone()], ..Default::default() };
    operator.apply(both).await.unwrap();
    let prune = |document| proto::PlanRequest { document: Some(document), prune: true, refuse_advisory: false };
    // Either may go, while the other can act.
    let only_vouched = proto::Document { issuers: vec![corp], operators: vec![vouched.clone()], ..sample() };
    assert!(operator.policy.plan(prune(only_vouched.clone())).await.is_ok());
    let only_first = proto::Document { operators: vec![bootstrap()], ..sample() };
    assert!(operator.policy.plan(prune(only_first)).await.is_ok());
    // Not both, nor the issuer with the first.
    assert_eq!(wrong_fields(operator.policy.plan(prune(sample())).await), ["operators"]);
    let gone = proto::Document { operators: vec![vouched], ..sample() };
    let fields = wrong_fields(operator.policy.plan(prune(gone)).await);
    assert_eq!(fields, ["operators[0].clients[0].oidc.issuer", "issuer corp", "operators"]);
    // A revoke of the issuer is taken, as the first is there; from then on the first can neither go nor be revoked.
    operator.revoke(TargetKind::Issuer, "corp").await.unwrap();
    assert_eq!(wrong_fields(operator.policy.plan(prune(only_vouched)).await), ["operators"]);
    assert_eq!(refused(operator.revoke(TargetKind::Client, OPERATOR).await).1, "LAST_ADMINISTRATOR");
    let lift =
        proto::ReinstateRequest { target: Some(target(TargetKind::Issuer, "corp")), reason: "a test".to_owned() };
    operator.revocation.reinstate(lift).await.unwrap();
    operator.revoke(TargetKind::Client, OPERATOR).await.unwrap();
    broker.clock.advance(Duration::from_secs(1));
    broker.stop().await;
}
