//! Explanations, as examples; `properties` has what holds of all of them.
//!
//! Over 400 lines, as each part of an answer has its example here, over the same few makers.

mod properties;
mod shadows;

use super::*;
use crate::domain::app_group::AppGroup;
use crate::domain::ceiling::{Callers, Ceiling};
use crate::domain::change::{Change, Object};
use crate::domain::claims::Claims;
use crate::domain::decide::DenyReason;
use crate::domain::decide::tests::{NOW, apps, base, group_name, individual, key, policy, put, request, state};
use crate::domain::feature::FeatureGrant;
use crate::domain::hours::Hours;
use crate::domain::key::{AppAccess, KeyKind};
use crate::domain::operation::{Operation, OperationTemplate};
use crate::domain::pattern::ClientPattern;
use crate::domain::policy::Policy;
use crate::domain::role::{Role, RoleSet};
use crate::domain::target::Target;
use crate::id::{AccountName, AppGroupName, CeilingName};

const ME: &str = "spiffe://acme/ci";
const BOT: &str = "oidc:github:repo:acme/bot:ref:refs/heads/main";

fn issuer() -> Change {
    let issuer = Issuer {
        kind: IssuerKind::GithubActions,
        url: "https://github.test".to_owned(),
        ..unknown(IssuerName::parse("github").unwrap())
    };
    Change::DocumentApplied { put: vec![Object::Issuer(Arc::new(issuer))], removed: vec![] }
}

fn ceiling(name: &str) -> Ceiling {
    Ceiling {
        name: CeilingName::parse(name).unwrap(),
        app_groups: None,
        max_ttl_s: None,
        never_roles: RoleSet::default(),
        callers: Callers::default(),
        require_scope: false,
        no_team_keys: false,
        require_approval: false,
        shadow: false,
    }
}

fn put_ceiling(ceiling: Ceiling) -> Change {
    Change::DocumentApplied { put: vec![Object::Ceiling(Arc::new(ceiling))], removed: vec![] }
}

fn world(changes: Vec<Change>) -> State {
    state(base().into_iter().chain(changes).collect())
}

fn revoke(target: Target) -> Change {
    Change::Revoked { target, reason: "leaked".to_owned(), dies_at: None }
}

fn client(text: &str) -> ClientId {
    ClientId::parse(text).unwrap()
}

fn bot(claims: &[(&str, &str)], state: &State) -> TokenRequest {
    let facts = Facts { certificate: None, claims: Claims::from_pairs(claims.iter().copied()) };
    TokenRequest { principal: imagine(client(BOT), facts, state), ..request(Role::Developer) }
}

fn entry<'a>(explanation: &'a Explanation, name: &str) -> &'a Considered {
    explanation.considered.iter().find(|it| it.name == name).unwrap_or_else(|| panic!("{name}: {explanation:?}"))
}

#[track_caller]
fn change(explanation: &Explanation) -> (&[String], bool) {
    let change = explanation.smallest_change.as_ref().expect("a denial");
    (&change.sentences, change.policy_may_allow)
}

const DEV: &[Role] = &[Role::Developer];

fn team(id: &str, roles: &[Role]) -> Change {
    key(id, KeyKind::Team, roles, 1)
}

#[test]
fn each_policy_says_the_first_condition_that_failed() {
    let others = vec![ClientPattern::spiffe("spiffe://acme/cd").unwrap()];
    let closed = Policy { break_glass: true, ..policy("closed", DEV) };
    let counting = Policy { shadow: true, ..policy("counting", &[Role::Admin]) };
    let late = Policy { not_before: Some(UnixMillis(NOW.0 + 60_000)), ..policy("late", DEV) };
    let hours = Hours::parse("UTC", &[], "23:00", "23:30").unwrap();
    let asleep = Policy { hours: Some(hours), ..policy("asleep", DEV) };
    let all = [
        closed,
        counting,
        late,
        asleep,
        policy("weak", &[Role::Sales]),
        Policy { clients: others, ..policy("theirs", DEV) },
    ];
    let state = world(all.into_iter().map(put).collect());
    let explained = explain(&request(Role::Developer), &state, NOW);
    for (name, reason, says) in [
        ("closed", "BREAK_GLASS_CLOSED", "nobody holds it open"),
        ("counting", "SHADOW", "(ROLE_NOT_GRANTED): it grants ADMIN, and not DEVELOPER"),
        ("late", "OUTSIDE_VALIDITY", "it grants nothing before 2027-01-15T08:01:00Z"),
        ("asleep", "OUTSIDE_HOURS", "they next begin at 2027-01-15T23:00:00Z"),
        ("weak", "ROLE_NOT_GRANTED", "it grants SALES, and not DEVELOPER"),
        ("theirs", "NOT_NAMED", "its clients are spiffe://acme/cd"),
    ] {
        let entry = entry(&explained, name);
        assert_eq!((entry.kind, entry.passes, entry.reason), ("policy", false, reason), "{name}");
        assert!(entry.explanation.contains(says), "{name}: {}", entry.explanation);
    }
    assert!(
        explained.path.iter().any(|it| it == "denied: policy weak came nearest: ROLE_NOT_GRANTED"),
        "{explained:?}"
    );
}

#[test]
fn a_policy_over_an_issuer_says_which_claim_is_not_met() {
    let pattern = r#"{"oidc":{"issuer":"github","claims":{"repository_id":["42"],"environment":["production"]}}}"#;
    let named = Policy { clients: vec![serde_json::from_str(pattern).unwrap()], ..policy("deploy", DEV) };
    let state = world(vec![issuer(), put(named), team("AAAAAAAAA1", DEV)]);
    let explained = explain(&bot(&[("repository_id", "42"), ("environment", "test")], &state), &state, NOW);
    let says = "claim `environment` must be `production`, and is `test`";
    assert!(entry(&explained, "deploy").explanation.contains(says), "{explained:?}");
    let explained = explain(&bot(&[("repository_id", "42")], &state), &state, NOW);
    assert!(entry(&explained, "deploy").explanation.ends_with("and is not there"), "{explained:?}");
    let (sentences, by_policy) = change(&explained);
    assert_eq!(sentences, [format!("add `{BOT}` to the clients of policy deploy")]);
    assert!(by_policy);
    assert!(
        explain(&bot(&[("repository_id", "42"), ("environment", "production")], &state), &state, NOW).outcome.is_ok()
    );
}

#[test]
fn who_is_imagined_says_its_own_name_and_issuer_as_access_lists_have_it() {
    let state = world(vec![issuer()]);
    let claims = Claims::from_pairs([("sub", "repo:evil/bot"), ("iss", "https://evil.test"), ("ref", "x")]);
    let facts = Facts { certificate: None, claims };
    let found = imagine(client(BOT), facts.clone(), &state);
    assert_eq!(found, Principal::imagined(client(BOT), facts.clone(), state.issuers()));
    let said = |principal: &Principal| {
        let vouched = principal.vouched.as_ref().unwrap();
        ["sub", "iss", "ref"].map(|name| vouched.claims.values(name).join(" "))
    };
    assert_eq!(said(&found), ["repo:acme/bot:ref:refs/heads/main", "https://github.test", "x"]);
    assert_eq!(said(&imagine(client(BOT), facts, &world(vec![]))), ["repo:acme/bot:ref:refs/heads/main", "", "x"]);
}

#[test]
fn an_unknown_issuer_is_not_trusted_and_what_its_token_says_is_looked_at_all_the_same() {
    let state = world(vec![put(policy("p", DEV)), team("AAAAAAAAA1", DEV)]);
    let explained = explain(&bot(&[], &state), &state, NOW);
    assert_eq!(explained.outcome.as_ref().unwrap_err().reason, DenyReason::IssuerNotTrusted);
    let (sentences, by_policy) = change(&explained);
    assert!(!by_policy && sentences[0].starts_with("trust issuer github"), "{sentences:?}");
    assert_eq!(sentences[1], format!("add `{BOT}` to the clients of policy p"));
    assert!(explained.path.last().unwrap().ends_with("there is no trusted issuer github"), "{explained:?}");
}

#[test]
fn a_token_that_its_issuer_is_not_trusted_for_never_gets_to_a_decision() {
    let mut trusted = unknown(IssuerName::parse("github").unwrap());
    trusted.claims = serde_json::from_str(r#"{"repository_owner_id":["7"]}"#).unwrap();
    let trusted = Change::DocumentApplied { put: vec![Object::Issuer(Arc::new(trusted))], removed: vec![] };
    let state = world(vec![trusted]);
    let said = |claims: &[(&str, &str)]| at_the_door(&bot(claims, &state).principal);
    assert!(said(&[]).unwrap().starts_with("issuer github is not trusted for this subject"));
    assert_eq!(said(&[("repository_owner_id", "7")]), None);
    assert_eq!(at_the_door(&request(Role::Developer).principal), None);
}

#[test]
fn the_key_that_signs_and_why_each_other_does_not() {
    use Role::{Admin, Developer, Sales};
    let keys = [
        key("CONFINED01", individual(AppAccess::Only(apps(&["111"]))), &[Developer], 2),
        key("ADMINTEAM1", KeyKind::Team, &[Admin, Developer], 1),
        team("LACKSROLE1", &[Admin]),
        team("EXCEEDS001", &[Developer, Sales]),
        team("SUSPENDED1", DEV),
        Change::KeySuspended { key_id: KeyId::parse("SUSPENDED1").unwrap(), reason: String::new() },
    ];
    let state = world([put(policy("p", &[Admin, Developer]))].into_iter().chain(keys).collect());
    let explained = explain(&request(Developer), &state, NOW);
    let said: Vec<(&str, bool, &str)> =
        explained.keys.iter().map(|it| (it.id.as_str(), it.chosen, it.explanation.as_str())).collect();
    assert_eq!(
        said,
        [
            ("ADMINTEAM1", false, "Apple does not confine it to the apps of the group, as it does key CONFINED01"),
            ("CONFINED01", true, "it signs: it is the weakest key that will do"),
            ("EXCEEDS001", false, "it has roles that are not granted: SALES"),
            ("LACKSROLE1", false, "it does not have the role: it has ADMIN"),
            ("SUSPENDED1", false, "it is not active: SUSPENDED"),
        ]
    );
    assert_eq!(explained.outcome.unwrap().key.as_str(), "CONFINED01");
}

#[test]
fn a_ceiling_that_keeps_the_nearest_policy_from_its_key_is_in_the_way() {
    // The individual key would do under a policy that grants all that it has; under this one the ceiling takes the team key.
    let guest = key("GUESTKEY01", individual(AppAccess::All), &[Role::Admin, Role::Developer], 1);
    let no_team = put_ceiling(Ceiling { no_team_keys: true, ..ceiling("c") });
    let state = world(vec![put(policy("p", DEV)), team("AAAAAAAAA1", DEV), guest, no_team]);
    let explained = explain(&request(Role::Developer), &state, NOW);
    let found = entry(&explained, "c");
    assert_eq!((found.passes, found.reason), (false, "TEAM_KEY_OVER_CEILING"), "{found:?}");
    let said: Vec<&str> = explained.keys.iter().map(|it| it.explanation.as_str()).collect();
    let team_key = "it is a team key, and a ceiling allows none where there are individual keys: c";
    assert_eq!(said, [team_key, "it has roles that are not granted: ADMIN"]);
    let wider = "or, which grants more, add ADMIN to the roles of policy p, as key GUESTKEY01 has them";
    assert!(change(&explained).0[0].ends_with(wider), "{explained:?}");
}

#[test]
fn of_keys_that_would_do_the_first_difference_is_told() {
    use Role::{Admin, Developer, Sales};
    let ladder = [
        (key("ADMINTEAM1", KeyKind::Team, &[Admin, Developer], 1), "it is administrative, and key NEW0000001 is not"),
        (team("TWOROLES01", &[Developer, Sales]), "it has 2 roles, and key NEW0000001 has 1"),
        (key("TWOGROUPS1", KeyKind::Team, DEV, 2), "it is for 2 app groups, and key NEW0000001 for 1"),
        (team("OLD0000001", DEV), "key NEW0000001 was imported after it, at revision 7 and not 6"),
    ];
    let keys = ladder.iter().map(|(change, _)| change.clone()).chain([team("NEW0000001", DEV)]);
    let state = world([put(policy("p", &[Admin, Developer, Sales]))].into_iter().chain(keys).collect());
    let explained = explain(&request(Developer), &state, NOW);
    for (change, says) in ladder {
        let Change::KeyImported { key } = change else { panic!("a key") };
        let found = explained.keys.iter().find(|it| it.id == key.id).unwrap();
        assert_eq!(found.explanation, says);
    }
}

#[test]
fn the_smallest_change_of_policies_is_one_sentence() {
    use Role::{Admin, Developer};
    let mine = |it: Policy| vec![put(it), team("AAAAAAAAA1", DEV)];
    let other = vec![ClientPattern::spiffe("spiffe://acme/cd").unwrap()];
    let reads = vec![OperationTemplate::parse("GET /v1/apps/{app}/builds").unwrap()];
    let scoped = |text: &str| TokenRequest { scope: vec![Operation::parse(text).unwrap()], ..request(Developer) };
    let hours = Hours::parse("UTC", &[], "23:00", "23:30").unwrap();
    let past = Some(UnixMillis(NOW.0 - 1));
    for (changes, request, says) in [
        (
            mine(Policy { clients: other, ..policy("p", DEV) }),
            request(Developer),
            "add `spiffe://acme/ci` to the clients of policy p",
        ),
        (mine(policy("p", &[Admin])), request(Developer), "add the role DEVELOPER to policy p"),
        (
            vec![team("AAAAAAAAA1", DEV)],
            request(Developer),
            "add a policy, such as games-developer, that grants DEVELOPER on app group games to exactly spiffe://acme/ci",
        ),
        (
            mine(Policy { not_after: past, ..policy("p", DEV) }),
            request(Developer),
            "move not_after of policy p from 2027-01-15T07:59:59Z past 2027-01-15T08:00:00Z, to 2027-01-15T08:05:00Z or later",
        ),
        (
            mine(Policy { hours: Some(hours), ..policy("p", DEV) }),
            request(Developer),
            "widen the hours of policy p (23:00 to 23:30 in UTC, mon tue wed thu fri sat sun) to take in 2027-01-15T08:00:00Z",
        ),
        (mine(Policy { break_glass: true, ..policy("p", DEV) }), request(Developer), "open the break-glass policy p"),
        (
            mine(Policy { shadow: true, ..policy("p", DEV) }),
            request(Developer),
            "let policy p grant: take `shadow: true` from it",
        ),
        (
            mine(Policy { operations: reads.clone(), ..policy("p", DEV) }),
            request(Developer),
            "ask with a scope, such as `GET /v1/apps/111/builds`, as policy p wants one",
        ),
        (
            mine(Policy { operations: reads, ..policy("p", DEV) }),
            scoped("GET /v1/apps"),
            "add the operation `GET /v1/apps` to policy p",
        ),
        (
            vec![put(policy("p", DEV)), team("AAAAAAAAA1", &[Admin, Developer])],
            request(Developer),
            "import a key with the role DEVELOPER and no role beyond DEVELOPER for app group games; or, which grants more, add ADMIN to the roles of policy p, as key AAAAAAAAA1 has them",
        ),
    ] {
        let state = world(changes);
        let explained = explain(&request, &state, NOW);
        assert_eq!(change(&explained), (&[says.to_owned()][..], true), "{:?}", explained.outcome);
    }
}

#[test]
fn what_no_policy_may_change_is_said_and_by_whom_it_can_be() {
    use Role::{Admin, Developer};
    let granting =
        || vec![put(policy("p", &[Admin, Developer])), team("AAAAAAAAA1", DEV), team("AAAAAAAAA2", &[Admin])];
    let under = |ceiling: Ceiling| granting().into_iter().chain([put_ceiling(ceiling)]).collect::<Vec<_>>();
    let with = |change: Change| granting().into_iter().chain([change]).collect::<Vec<_>>();
    let domain = Callers { trust_domains: ["other".to_owned()].into(), ..Callers::default() };
    let no_team = Ceiling { no_team_keys: true, ..ceiling("c") };
    let guest = key("GUESTKEY01", individual(AppAccess::All), &[Admin], 1);
    let suspended = Change::KeySuspended { key_id: KeyId::parse("AAAAAAAAA1").unwrap(), reason: String::new() };
    for (changes, role, says) in [
        (
            under(Ceiling { never_roles: [Admin].into_iter().collect(), ..ceiling("c") }),
            Admin,
            "no policy may: ceiling c allows nobody ADMIN; an administrator would have to change it",
        ),
        (
            under(Ceiling { callers: domain, ..ceiling("c") }),
            Developer,
            "no policy may: ceiling c allows only other callers than spiffe://acme/ci; an administrator would have to change it",
        ),
        (
            under(Ceiling { require_scope: true, ..ceiling("c") }),
            Developer,
            "ask with a scope, such as `GET /v1/apps/111`; no policy may do without, by ceiling c",
        ),
        (
            under(no_team).into_iter().chain([guest]).collect(),
            Developer,
            "import a key with the role DEVELOPER and no role beyond ADMIN, DEVELOPER for app group games, an individual one: ceiling c allows no team key there",
        ),
        (
            with(revoke(Target::Client(client(ME)))),
            Developer,
            "reinstate client spiffe://acme/ci: an administrator runs `p8broker reinstate client spiffe://acme/ci --reason ...`",
        ),
        (
            with(revoke(Target::AppGroup(group_name()))),
            Developer,
            "reinstate app-group games: an administrator runs `p8broker reinstate app-group games --reason ...`",
        ),
        (
            with(revoke(Target::Account(AccountName::parse("acme").unwrap()))),
            Developer,
            "reinstate account acme: an administrator runs `p8broker reinstate account acme --reason ...`",
        ),
        (
            with(Change::VaultSealed { reason: String::new() }),
            Developer,
            "lift the seal: an operator with the power `unseal` runs `p8broker operator unseal`",
        ),
        (with(suspended), Developer, "resume key AAAAAAAAA1, which is suspended"),
        (
            vec![put(policy("p", DEV))],
            Developer,
            "import a key with the role DEVELOPER and no role beyond DEVELOPER for app group games",
        ),
    ] {
        let state = world(changes);
        let explained = explain(&request(role), &state, NOW);
        assert_eq!(change(&explained), (&[says.to_owned()][..], false), "{:?}", explained.outcome);
    }
    // A policy that is revoked is not the only one that there can be.
    let state = world(with(revoke(Target::Policy(PolicyName::parse("p").unwrap()))));
    let explained = explain(&request(Developer), &state, NOW);
    let (sentences, by_policy) = change(&explained);
    assert!(by_policy && sentences[0].starts_with("add a policy"), "{sentences:?}");
    assert!(entry(&explained, "p").explanation.ends_with("`p8broker reinstate policy p` lifts that"), "{explained:?}");
}

#[test]
fn several_changes_come_in_the_order_in_which_to_make_them() {
    use Role::{Admin, Developer};
    let emergency = |name: &str| put(Policy { break_glass: true, ..policy(name, &[Admin]) });
    let two = Ceiling { require_approval: true, ..ceiling("two") };
    // A hundred policies are as many as there may be: where the group is full, one that is there has to do.
    let full = (0..99).map(|nth| emergency(&format!("x{nth:02}"))).chain([emergency("emergency")]);
    let state = world(full.chain([put_ceiling(two), team("AAAAAAAAA1", DEV)]).collect());
    let explained = explain(&request(Developer), &state, NOW);
    // Opened first, it would be closed again by the change of its roles.
    let wanted = [
        "add the role DEVELOPER to policy emergency; by ceiling two that takes two operators",
        "open the break-glass policy emergency",
    ];
    assert_eq!(change(&explained), (&wanted.map(ToOwned::to_owned)[..], true));
}

#[test]
fn an_app_group_that_is_not_there_takes_everything() {
    let state = world(vec![]);
    let nowhere = AppGroupName::parse("nowhere").unwrap();
    let explained = explain(&TokenRequest { app_group: nowhere, ..request(Role::Developer) }, &state, NOW);
    let (sentences, by_policy) = change(&explained);
    let starts = ["add the app group nowhere", "import a key with the role", "add a policy, such as nowhere-developer"];
    assert_eq!(sentences.len(), starts.len(), "{sentences:?}");
    assert!(!by_policy && sentences.iter().zip(starts).all(|(said, start)| said.starts_with(start)), "{sentences:?}");
    assert!(explained.considered.is_empty() && explained.keys.is_empty());
}

#[test]
fn a_group_of_another_account_has_no_key_of_its_own() {
    let other = AppGroup { name: group_name(), account: AccountName::parse("second").unwrap(), apps: apps(&["111"]) };
    let moved = Change::DocumentApplied { put: vec![Object::AppGroup(other)], removed: vec![] };
    let state = world(vec![put(policy("p", DEV)), team("AAAAAAAAA1", DEV), moved]);
    let explained = explain(&request(Role::Developer), &state, NOW);
    assert_eq!(explained.keys[0].explanation, "it belongs to another account than the app group: acme and second");
}
