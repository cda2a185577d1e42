//! Documents, plans and routing, through the RPCs.

use p8broker::grpc::proto;
use tonic::Code;

use crate::harness::*;

#[tokio::test]
async fn a_plan_says_what_apply_then_does() {
    let mut broker = Broker::start().await;
    let mut operator = broker.as_(OPERATOR).await;
    let mut document = sample();
    document.policies[0].max_ttl = duration(300);
    document.policies[0].roles.push(proto::Role::Developer.into());
    document.app_groups.push(proto::AppGroup {
        name: "tools".to_owned(),
        apps: vec!["1".to_owned()],
        ..document.app_groups[0].clone()
    });
    let request = proto::PlanRequest { document: Some(document.clone()), ..proto::PlanRequest::default() };
    let plan = operator.policy.plan(request).await.unwrap().into_inner();
    let before = plan.revision;
    let actions: Vec<_> = plan.steps.iter().map(|step| (step.action(), step.name.as_str())).collect();
    use proto::Action::{Create, Keep, Update};
    assert_eq!(actions, [(Keep, "acme"), (Keep, "games"), (Create, "tools"), (Update, "games-release-ci")]);
    let changes = &plan.steps[3].changes;
    assert!(changes.contains(&"max_ttl: 600s -> 300s".to_owned()), "{changes:?}");
    let applied = operator.apply(document.clone()).await.unwrap();
    assert_eq!((applied.steps, applied.revision), (plan.steps, before + 1));
    let events = operator.all_events().await;
    let told = events.iter().any(|event| {
        event.detail.contains("update policy games-release-ci (") && event.detail.contains("max_ttl: 600s -> 300s")
    });
    assert!(told, "the audit says what was changed");
    // Once more: nothing to do, no record.
    assert_eq!(operator.apply(document).await.unwrap().revision, before + 1);
    broker.stop().await;
}

#[tokio::test]
async fn what_a_document_does_not_name_stays_unless_pruned_and_never_takes_what_is_used() {
    let mut broker = Broker::start().await;
    let mut operator = broker.as_(OPERATOR).await;
    let second = proto::Policy { name: "second".to_owned(), ..release_policy() };
    operator.apply(policies(vec![second])).await.unwrap();
    operator.apply(sample()).await.unwrap();
    let get = |name: &str| proto::GetPolicyRequest { name: name.to_owned() };
    let kept = operator.policy.get_policy(get("second")).await.unwrap().into_inner();
    assert!(kept.enforced_by.iter().any(|it| it.limit == "app_group" && it.enforced_by() == proto::EnforcedBy::Nobody));
    let bootstrap = proto::Operator {
        name: "bootstrap-1".to_owned(),
        clients: vec![spiffe(OPERATOR)],
        powers: (1..=6).collect(),
        app_groups: vec![],
    };
    // Pruning everybody who administers, or a group that has keys, is refused.
    let prune =
        |document| proto::ApplyRequest { document: Some(document), prune: true, ..proto::ApplyRequest::default() };
    assert_eq!(wrong_fields(operator.policy.apply(prune(sample())).await), ["operators"]);
    let document = proto::Document { operators: vec![bootstrap.clone()], ..proto::Document::default() };
    let fields = wrong_fields(operator.policy.apply(prune(document)).await);
    assert_eq!(fields, ["account acme", "app_group games"]);
    let document = proto::Document { operators: vec![bootstrap], ..sample() };
    operator.policy.apply(prune(document)).await.unwrap();
    assert_eq!(refused(operator.policy.get_policy(get("second")).await).0, Code::NotFound);
    broker.stop().await;
}

#[tokio::test]
async fn a_document_that_refers_to_nothing_is_refused_as_a_whole() {
    let mut broker = Broker::start().await;
    let mut operator = broker.as_(OPERATOR).await;
    let mut document = sample();
    document.policies[0].max_ttl = duration(60);
    document.policies.push(proto::Policy {
        name: "lost".to_owned(),
        app_group: "nowhere".to_owned(),
        ..release_policy()
    });
    document.app_groups.push(proto::AppGroup {
        name: "x".to_owned(),
        account: "nobody".to_owned(),
        apps: vec!["1".to_owned()],
    });
    assert_eq!(wrong_fields(operator.apply(document).await), ["app_groups[1].account", "policies[1].app_group"]);
    let request = proto::GetPolicyRequest { name: "games-release-ci".to_owned() };
    let policy = operator.policy.get_policy(request).await.unwrap().into_inner().policy.unwrap();
    assert_eq!(policy.max_ttl, duration(600), "nothing was changed");
    let many = (0..101).map(|nth| proto::Policy { name: format!("many-{nth}"), ..release_policy() }).collect();
    let fields = wrong_fields(operator.apply(policies(many)).await);
    assert!(fields.iter().any(|field| field == "policies[0].app_group"), "102 policies for one group: {fields:?}");
    broker.stop().await;
}

#[tokio::test]
async fn authors_write_policies_for_their_groups_and_nothing_else() {
    let mut broker = Broker::start().await;
    let mut operator = broker.as_(OPERATOR).await;
    let author = "spiffe://acme.internal/ns/ops/sa/author";
    let mut document = sample();
    document.app_groups.push(proto::AppGroup {
        name: "tools".to_owned(),
        apps: vec!["1".to_owned()],
        ..document.app_groups[0].clone()
    });
    document.operators.push(proto::Operator {
        name: "author".to_owned(),
        clients: vec![spiffe(author)],
        powers: vec![proto::Power::AuthorPolicies.into()],
        app_groups: vec!["tools".to_owned()],
    });
    operator.apply(document).await.unwrap();
    let mut author = broker.as_(author).await;
    let own = proto::Policy { name: "own".to_owned(), app_group: "tools".to_owned(), ..release_policy() };
    author.apply(policies(vec![own.clone()])).await.unwrap();
    // Not into another group, not by moving one there, and not one of another group away.
    let moved = proto::Policy { app_group: "games".to_owned(), ..own };
    assert_eq!(
        refused(author.apply(policies(vec![moved])).await),
        (Code::PermissionDenied, "OUTSIDE_APP_GROUP".to_owned())
    );
    let stolen = proto::Policy { app_group: "tools".to_owned(), ..release_policy() };
    assert_eq!(refused(author.apply(policies(vec![stolen])).await).1, "OUTSIDE_APP_GROUP");
    // What a use case refuses is in the audit, too.
    eventually("the refusals are in the audit", async || {
        let events = operator.all_events().await;
        events.iter().filter(|event| event.reason == "OUTSIDE_APP_GROUP" && event.caller.ends_with("/author")).count()
            == 2
    })
    .await;
    let account = proto::Account { name: "mine".to_owned(), issuer_id: ISSUER.to_owned() };
    let accounts = proto::Document { accounts: vec![account], ..proto::Document::default() };
    assert_eq!(refused(author.apply(accounts).await).1, "POWER_MISSING");
    broker.stop().await;
}

#[tokio::test]
async fn a_key_that_can_do_more_than_the_policy_grants_is_never_used() {
    let mut broker = Broker::bare(Options::default()).await;
    let mut operator = broker.as_(OPERATOR).await;
    operator.system.init(proto::InitRequest::default()).await.unwrap();
    operator.apply(sample()).await.unwrap();
    let roles = |roles: &[proto::Role]| roles.iter().map(|role| (*role).into()).collect::<Vec<i32>>();
    use proto::Role::{Admin, AppManager, Developer};
    let strong = proto::ImportKeyRequest { roles: roles(&[Admin, AppManager]), ..import("STRONGKEY1", &new_p8()) };
    operator.import(&strong).await.unwrap();
    let mut client = broker.as_(CLIENT).await;
    assert_eq!(refused(client.issue(ask()).await), (Code::PermissionDenied, "KEY_EXCEEDS_POLICY".to_owned()));
    operator.import(&import("WEAKKEY234", &new_p8())).await.unwrap();
    assert_eq!(client.issue(ask()).await.unwrap().key_id, "WEAKKEY234");
    // Where the policy grants all of them, the weakest key still wins.
    let wide = proto::Policy { roles: roles(&[Admin, AppManager, Developer]), ..release_policy() };
    operator.apply(policies(vec![wide])).await.unwrap();
    assert_eq!(client.issue(ask_fresh()).await.unwrap().key_id, "WEAKKEY234");
    let admin = proto::IssueTokenRequest { role: Admin.into(), ..ask() };
    assert_eq!(client.issue(admin).await.unwrap().key_id, "STRONGKEY1");
    broker.stop().await;
}

#[tokio::test]
async fn lists_come_in_pages() {
    let mut broker = Broker::start().await;
    let mut operator = broker.as_(OPERATOR).await;
    let many = (0..25).map(|nth| proto::Policy { name: format!("p{nth:02}"), ..release_policy() }).collect();
    operator.apply(policies(many)).await.unwrap();
    let (mut names, mut page_token, mut pages) = (Vec::new(), String::new(), 0);
    loop {
        let request = proto::ListPoliciesRequest { page_size: 10, page_token };
        let page = operator.policy.list_policies(request).await.unwrap().into_inner();
        names.extend(page.policies.into_iter().map(|policy| policy.name));
        pages += 1;
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    assert_eq!((pages, names.len()), (3, 26));
    assert!(names.is_sorted());
    broker.stop().await;
}
