//! What plans say, as examples.

use super::*;
use crate::domain::app_group::AppGroup;
use crate::domain::ceiling::Callers;
use crate::domain::change::{Change, Object, ObjectName};
use crate::domain::decide::tests::{apps, base, group_name, policy, put, state};
use crate::domain::glob::ClaimGlob;
use crate::domain::issuer::{Algorithm, Issuer, IssuerKeys, IssuerKind};
use crate::domain::operation::OperationTemplate;
use crate::domain::plan::steps_of;
use crate::domain::role::Role;
use crate::id::{AccountName, IssuerName};

const DEV: &[Role] = &[Role::Developer];

fn spiffe(text: &str) -> ClientPattern {
    ClientPattern::spiffe(text).unwrap()
}

fn world(changes: Vec<Change>) -> State {
    state(base().into_iter().chain(changes).collect())
}

/// What a plan says of the first thing that is put there, or of the first that goes.
fn means(change: Change, state: &State) -> Vec<String> {
    let Change::DocumentApplied { put, removed } = change else { panic!("a change of documents") };
    steps_of(&put, &removed, state).remove(0).means
}

fn remove(policy: &Policy) -> Change {
    Change::DocumentApplied { put: vec![], removed: vec![ObjectName::Policy(policy.name.clone())] }
}

#[test]
fn nobody_gains_or_loses_by_a_policy_that_only_counts() {
    let counting = Policy { shadow: true, ..policy("counting", DEV) };
    let wider = Policy {
        clients: vec![spiffe("spiffe://acme/ci"), spiffe("spiffe://acme/cd")],
        max_ttl_s: 900,
        ..Policy { shadow: true, ..policy("counting", &[Role::Developer, Role::Admin]) }
    };
    let before = world(vec![put(counting.clone())]);
    let nothing = ["nobody gains or loses: it only counts what it would refuse"];
    assert_eq!(means(put(counting.clone()), &world(vec![])), nothing);
    assert_eq!(means(put(wider.clone()), &before), nothing);
    assert_eq!(means(put(counting.clone()), &world(vec![put(wider.clone())])), nothing);
    assert_eq!(means(remove(&counting), &before), ["nobody gains or loses: it only counted"]);
    // Where it comes to grant, somebody does.
    let said = means(put(Policy { shadow: false, ..wider }), &before);
    assert!(said.len() == 2 && said[0].starts_with("spiffe://acme/cd gains ADMIN, DEVELOPER"), "{said:?}");
    let said = means(put(counting), &world(vec![put(policy("counting", DEV))]));
    assert!(said[0].starts_with("spiffe://acme/ci loses DEVELOPER"), "{said:?}");
    assert_eq!(said[1], "from now on it only counts what it would refuse");
}

#[test]
fn apps_come_and_go_for_the_clients_of_policies_that_grant() {
    let counting = Policy { shadow: true, ..policy("counting", DEV) };
    let group =
        AppGroup { name: group_name(), account: AccountName::parse("acme").unwrap(), apps: apps(&["111", "333"]) };
    let moved = || Change::DocumentApplied { put: vec![Object::AppGroup(group.clone())], removed: vec![] };
    let said = means(moved(), &world(vec![put(policy("granting", DEV)), put(counting.clone())]));
    assert_eq!(said, ["clients of granting gain app 333", "clients of granting lose app 222"]);
    assert_eq!(means(moved(), &world(vec![put(counting)]))[0], "clients of no policy yet gain app 333");
}

/// Only callers of `acme` that are named so, and nobody as FINANCE.
fn narrow() -> Change {
    let callers = Callers { clients: vec![spiffe("spiffe://acme/ci")], ..Callers::default() };
    let never_roles = [Role::Finance].into_iter().collect();
    let ceiling = Ceiling {
        name: CeilingName::parse("narrow").unwrap(),
        app_groups: None,
        max_ttl_s: None,
        never_roles,
        callers,
        require_scope: false,
        no_team_keys: false,
        require_approval: false,
        shadow: false,
    };
    Change::DocumentApplied { put: vec![Object::Ceiling(Arc::new(ceiling))], removed: vec![] }
}

#[test]
fn whom_a_ceiling_gives_nothing_neither_gains_nor_loses() {
    use Role::{Developer, Finance};
    let both = vec![spiffe("spiffe://acme/ci"), spiffe("spiffe://acme/cd")];
    let mixed = Policy { clients: both, ..policy("mixed", &[Developer, Finance]) };
    let theirs = Policy { clients: vec![spiffe("spiffe://acme/cd")], ..policy("mixed", &[Developer]) };
    let finance = policy("mixed", &[Finance]);
    let (no_cd, no_finance) =
        ("ceiling narrow narrows it: spiffe://acme/cd gets nothing", "ceiling narrow narrows it: nobody gets FINANCE");
    let ci = |verb: &str| format!("spiffe://acme/ci {verb} DEVELOPER on games for at most 600s, at any time");
    let with = |policy: &Policy| world(vec![narrow(), put(policy.clone())]);
    let none = world(vec![narrow()]);
    // New.
    assert_eq!(means(put(mixed.clone()), &none), [&ci("gains"), no_finance, no_cd]);
    assert_eq!(means(put(finance.clone()), &none), [no_finance]);
    assert_eq!(means(put(theirs.clone()), &none), [no_cd]);
    // Gone.
    let nobody = "nobody loses anything: ceilings left nothing of it";
    assert_eq!(means(remove(&mixed), &with(&mixed)), [ci("loses")]);
    assert_eq!(means(remove(&finance), &with(&finance)), [nobody]);
    assert_eq!(means(remove(&theirs), &with(&theirs)), [nobody]);
    // Changed.
    assert_eq!(means(put(mixed.clone()), &with(&theirs)), [&ci("gains"), no_finance, no_cd]);
    assert_eq!(means(put(theirs.clone()), &with(&mixed)), [&ci("loses"), no_cd]);
    let longer = |policy: &Policy| put(Policy { max_ttl_s: 900, quota: None, ..policy.clone() });
    assert_eq!(means(longer(&theirs), &with(&theirs)), [no_cd]);
    assert_eq!(means(longer(&finance), &with(&finance)), [no_finance]);
    let said = means(longer(&mixed), &with(&mixed));
    assert_eq!(said, ["its clients gain longer tokens: at most 900s, before 600s", no_finance, no_cd]);
    // A ceiling that takes nothing from anybody who has something.
    assert_eq!(means(narrow(), &world(vec![put(policy("p", &[Developer]))])), ["no policy is affected"]);
    let said = means(narrow(), &world(vec![put(finance)]));
    let all = ["clients of policy mixed lose FINANCE", "clients of policy mixed: spiffe://acme/ci loses everything"];
    assert_eq!(said, all);
}

/// What the broker signs, and access lists say: a minute of Apple's 20 is backdating, and one is kept free.
#[test]
fn a_life_that_is_never_signed_is_not_told() {
    let read = |text: &str| vec![OperationTemplate::parse(text).unwrap()];
    let reviews = Policy { operations: read("GET /v1/apps/{app}/customerReviews"), ..policy("p", DEV) };
    let runs = Policy { operations: read("GET /v1/ciBuildRuns/7"), ..policy("p", DEV) };
    let lives = |policy: &Policy, max_ttl_s: i64| Policy { max_ttl_s, ..policy.clone() };
    let new = |policy: Policy| means(put(policy), &world(vec![])).remove(0);
    assert!(new(lives(&reviews, 1200)).contains("for at most 1080s, only GET"));
    assert!(new(lives(&runs, 1200)).contains("for at most 1200s, only GET"));
    assert!(new(lives(&runs, 86_400 * 180)).contains("for at most 15551880s"));
    // 20 minutes and 19 are the same 18, but for reads that may live longer.
    let changed =
        |policy: &Policy, from: i64, to: i64| means(put(lives(policy, to)), &world(vec![put(lives(policy, from))]));
    assert_eq!(changed(&reviews, 1200, 1140), Vec::<String>::new());
    assert_eq!(changed(&reviews, 1200, 900), ["its clients lose longer tokens: at most 900s, before 1080s"]);
    assert_eq!(changed(&runs, 1200, 1140), ["its clients lose longer tokens: at most 1140s, before 1200s"]);
    // Nor does a ceiling take it.
    let over = |max_ttl_s: i64| {
        let Change::DocumentApplied { put, .. } = narrow() else { panic!("a change of documents") };
        let Some(Object::Ceiling(ceiling)) = put.first() else { panic!("a ceiling") };
        let ceiling = Ceiling {
            max_ttl_s: Some(max_ttl_s),
            never_roles: RoleSet::default(),
            callers: Callers::default(),
            ..(**ceiling).clone()
        };
        Change::DocumentApplied { put: vec![Object::Ceiling(Arc::new(ceiling))], removed: vec![] }
    };
    let twenty = lives(&reviews, 1200);
    let before = world(vec![put(twenty.clone())]);
    assert_eq!(means(over(1140), &before), ["no policy is affected"]);
    assert_eq!(narrowed(&twenty, &world(vec![put(twenty.clone()), over(1140)])), Vec::<String>::new());
    assert_eq!(means(over(600), &before), ["clients of policy p lose longer tokens: at most 600s, before 1080s"]);
    assert_eq!(
        narrowed(&twenty, &world(vec![put(twenty.clone()), over(600)])),
        ["ceiling narrow narrows it: tokens live 600s at most"]
    );
}

fn corp() -> Issuer {
    Issuer {
        name: IssuerName::parse("corp").unwrap(),
        kind: IssuerKind::Oidc,
        url: "https://idp.test".to_owned(),
        keys: IssuerKeys::Discovery,
        audiences: ["a", "b"].map(ToOwned::to_owned).into(),
        algorithms: [Algorithm::Es256, Algorithm::Rs256].into(),
        leeway_s: 30,
        max_age_s: 3600,
        subject: None,
        claims: serde_json::from_str(r#"{"hd": ["acme.internal"], "tier": ["gold", "silver"]}"#).unwrap(),
    }
}

#[test]
fn an_issuer_that_changes_says_whose_tokens_are_taken_and_whose_are_not() {
    let trust = |issuer: &Issuer| Change::DocumentApplied {
        put: vec![Object::Issuer(Arc::new(issuer.clone()))],
        removed: vec![],
    };
    let change = |old: &Issuer, new: &Issuer| {
        let said = means(trust(new), &world(vec![trust(old)]));
        let first = "tokens that were verified under the old record are verified anew; no policy names its callers";
        assert_eq!(said[0], first);
        said[1..].to_vec()
    };
    let claims = |json: &str| serde_json::from_str(json).unwrap();
    for (new, loses, back) in [
        (
            Issuer { audiences: ["b".to_owned()].into(), ..corp() },
            "callers whose tokens are for a, and not for b, lose access",
            "tokens for a are taken from now on",
        ),
        (
            Issuer { algorithms: [Algorithm::Es256].into(), ..corp() },
            "callers whose tokens are signed with RS256 lose access",
            "tokens signed with RS256 are taken from now on",
        ),
        (
            Issuer { max_age_s: 300, ..corp() },
            "callers whose tokens are older than 300s (before, 3600s) lose access",
            "tokens that are up to 3600s old (before, 300s) are taken from now on",
        ),
        (
            Issuer { leeway_s: 5, ..corp() },
            "callers whose clocks are more than 5s apart from the broker's (before, 30s) lose access",
            "tokens by a clock up to 30s apart (before, 5s) are taken from now on",
        ),
        (
            Issuer { subject: Some(ClaimGlob::parse("bot-*").unwrap()), ..corp() },
            "callers whose subject is not bot-* lose access",
            "tokens whose subject is not bot-* are taken from now on",
        ),
        (
            Issuer { claims: claims(r#"{"hd": ["acme.internal"], "tier": ["gold"]}"#), ..corp() },
            "callers whose claim tier is not gold lose access",
            "tokens whose claim tier is gold or silver are taken from now on",
        ),
        (
            Issuer {
                claims: claims(r#"{"hd": ["acme.internal"], "tier": ["silver", "gold"], "new": ["x"]}"#),
                ..corp()
            },
            "callers whose claim new is not x lose access",
            "tokens whose claim new is not x are taken from now on",
        ),
    ] {
        assert_eq!(change(&corp(), &new), [loses]);
        assert_eq!(change(&new, &corp()), [back]);
    }
    let (ops, bots) = (ClaimGlob::parse("ops").unwrap(), ClaimGlob::parse("bot-*").unwrap());
    let other = change(&Issuer { subject: Some(ops), ..corp() }, &Issuer { subject: Some(bots), ..corp() });
    let both =
        ["callers whose subject is not bot-* lose access", "tokens whose subject is bot-* are taken from now on"];
    assert_eq!(other, both);
    let moved = Issuer { url: "https://new.test".to_owned(), ..corp() };
    let lost = "callers whose tokens are of https://idp.test, and not of https://new.test, lose access";
    assert_eq!(change(&corp(), &moved), [lost]);
    let pinned = Issuer { keys: IssuerKeys::JwksUrl("https://idp.test/keys".to_owned()), ..corp() };
    let lost = "callers whose tokens are signed with a key that is not among those it names now lose access";
    assert_eq!(change(&corp(), &pinned), [lost]);
}
