//! The decision, as examples and as properties over generated states.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::clock::UnixMillis;
use crate::domain::account::Account;
use crate::domain::change::{Actor, AuditPosition, Change, Object, Record};
use crate::domain::key::{AppAccess, KeyKind, KeyState, Profile, Stamp};
use crate::domain::operation::OperationTemplate;
use crate::domain::pattern::ClientPattern;
use crate::domain::role::RoleSet;
use crate::id::{AccountName, AppId, AppleUser, Chain, ClientId, IssuerId, KeyId, Revision, WriterId};

pub(in crate::domain) const NOW: UnixMillis = UnixMillis(1_800_000_000_000);

/// Folds changes into a state, each as one record.
pub(in crate::domain) fn state(changes: Vec<Change>) -> State {
    let mut state = State::default();
    for change in changes {
        let record = Record {
            revision: state.head().revision.next(),
            at: NOW,
            actor: Actor::broker(),
            audit: AuditPosition { writer: WriterId::from_random(1), sequence: 1 },
            change,
        };
        state.fold(&record, Chain([7; 32])).unwrap();
    }
    state
}

pub(in crate::domain) fn apps(ids: &[&str]) -> BTreeSet<AppId> {
    ids.iter().map(|id| AppId::parse(id).unwrap()).collect()
}

pub(in crate::domain) fn group_name() -> AppGroupName {
    AppGroupName::parse("games").unwrap()
}

pub(in crate::domain) fn base() -> Vec<Change> {
    let account = AccountName::parse("acme").unwrap();
    let issuer_id = IssuerId::parse("57246542-96fe-1a63-e053-0824d011072a").unwrap();
    let group = AppGroup { name: group_name(), account: account.clone(), apps: apps(&["111", "222"]) };
    let put = vec![Object::Account(Account { name: account, issuer_id }), Object::AppGroup(group)];
    vec![Change::DocumentApplied { put, removed: vec![] }]
}

pub(in crate::domain) fn policy(name: &str, roles: &[Role]) -> Policy {
    Policy {
        name: PolicyName::parse(name).unwrap(),
        clients: vec![ClientPattern::spiffe("spiffe://acme/ci").unwrap()],
        app_group: group_name(),
        roles: roles.iter().copied().collect(),
        max_ttl_s: 600,
        default_ttl_s: 300,
        operations: vec![],
        require_scope: false,
        not_before: None,
        not_after: None,
        features: vec![],
        quota: None,
        hours: None,
        require_mtls: vec![],
        break_glass: false,
        shadow: false,
    }
}

pub(in crate::domain) fn put(policy: Policy) -> Change {
    Change::DocumentApplied { put: vec![Object::Policy(Arc::new(policy))], removed: vec![] }
}

pub(in crate::domain) fn key(id: &str, kind: KeyKind, roles: &[Role], groups: usize) -> Change {
    let mut app_groups: BTreeSet<AppGroupName> = [group_name()].into();
    app_groups.extend((1..groups).map(|nth| AppGroupName::parse(&format!("other{nth}")).unwrap()));
    Change::KeyImported {
        key: Box::new(Key {
            id: KeyId::parse(id).unwrap(),
            account: AccountName::parse("acme").unwrap(),
            profile: Profile::AppStoreConnect,
            kind,
            roles: roles.iter().copied().collect(),
            app_groups,
            fingerprint: id.to_owned(),
            public_key: String::new(),
            state: KeyState::Active,
            imported: Stamp { by: "x".to_owned(), at: NOW },
            imported_revision: Revision(0),
            revoked: None,
            confirmed_at_apple: None,
        }),
    }
}

pub(in crate::domain) fn individual(app_access: AppAccess) -> KeyKind {
    KeyKind::Individual { user: AppleUser::parse("a@b").unwrap(), app_access, declared_at: NOW }
}

pub(in crate::domain) fn request(role: Role) -> TokenRequest {
    TokenRequest {
        principal: Principal::of_certificate(ClientId::parse("spiffe://acme/ci").unwrap()),
        app_group: group_name(),
        role,
        ttl_s: None,
        scope: vec![],
    }
}

fn chosen(changes: Vec<Change>, role: Role) -> Result<String, DenyReason> {
    let all = base().into_iter().chain(changes).collect();
    decide(&request(role), &state(all), NOW).map(|permit| permit.key().id.to_string()).map_err(|denial| denial.reason)
}

#[test]
fn p3_without_a_policy_there_is_no_token() {
    let team = key("AAAAAAAAA1", KeyKind::Team, &[Role::Developer], 1);
    assert_eq!(chosen(vec![team.clone()], Role::Developer), Err(DenyReason::NoPolicy));
    let others =
        Policy { clients: vec![ClientPattern::spiffe("spiffe://acme/cd").unwrap()], ..policy("p", &[Role::Developer]) };
    assert_eq!(chosen(vec![team, put(others)], Role::Developer), Err(DenyReason::NoPolicy));
}

#[test]
fn the_weakest_key_wins_in_the_order_of_the_design() {
    use Role::{Admin, AppManager, Developer};
    let p = put(policy("p", &[Admin, AppManager, Developer]));
    let confined = key("CONFINED01", individual(AppAccess::Only(apps(&["111"]))), &[Admin, AppManager, Developer], 3);
    let wide = key("WIDEACCESS", individual(AppAccess::Only(apps(&["111", "999"]))), &[Developer], 1);
    let admin = key("ADMINTEAM1", KeyKind::Team, &[Admin, Developer], 1);
    let two_roles = key("TWOROLES01", KeyKind::Team, &[AppManager, Developer], 1);
    let two_groups = key("TWOGROUPS1", KeyKind::Team, &[Developer], 2);
    let old = key("OLDKEY0001", KeyKind::Team, &[Developer], 1);
    let new = key("NEWKEY0001", KeyKind::Team, &[Developer], 1);
    // Each key beats those before it.
    let ladder = [admin, two_roles, two_groups, old, new, confined];
    let names = ["ADMINTEAM1", "TWOROLES01", "TWOGROUPS1", "OLDKEY0001", "NEWKEY0001", "CONFINED01"];
    for upto in 1..=ladder.len() {
        let mut changes = vec![p.clone()];
        changes.extend(ladder.iter().take(upto).cloned());
        assert_eq!(chosen(changes, Developer).as_deref(), Ok(names[upto - 1]));
    }
    // An individual key whose apps reach beyond the group is no better confined than a team key.
    assert_eq!(chosen(vec![p, wide.clone(), ladder[4].clone()], Developer).as_deref(), Ok("NEWKEY0001"));
}

#[test]
fn a_key_that_exceeds_the_policy_is_never_used_even_alone() {
    use Role::{Admin, Developer};
    let p = put(policy("p", &[Developer]));
    let strong = key("STRONGKEY1", KeyKind::Team, &[Admin, Developer], 1);
    assert_eq!(chosen(vec![p.clone(), strong], Developer), Err(DenyReason::KeyExceedsPolicy));
    let other = key("OTHERROLE1", KeyKind::Team, &[Admin], 1);
    assert_eq!(chosen(vec![p.clone(), other], Developer), Err(DenyReason::NoActiveKey));
    assert_eq!(chosen(vec![p], Admin), Err(DenyReason::RoleNotGranted));
}

#[test]
fn of_several_policies_the_longest_life_wins_and_the_nearest_miss_is_told() {
    use Role::{AppManager, Developer};
    let team = key("AAAAAAAAA1", KeyKind::Team, &[Developer], 1);
    let short = put(Policy { max_ttl_s: 60, default_ttl_s: 60, ..policy("a-short", &[Developer]) });
    let long = put(policy("b-long", &[Developer]));
    let same = put(policy("c-same", &[Developer]));
    let all = base().into_iter().chain([team, same, short, long]).collect();
    let all = state(all);
    let permit = decide(&request(Developer), &all, NOW).unwrap();
    assert_eq!((permit.policy().name.as_str(), permit.expires_at()), ("b-long", NOW.seconds() + 300));
    let denial = decide(&request(AppManager), &all, NOW).unwrap_err();
    assert_eq!((denial.reason, denial.policy.unwrap().as_str()), (DenyReason::RoleNotGranted, "a-short"));
}

pub(in crate::domain) fn any_role() -> impl Strategy<Value = Role> {
    prop::sample::select(&[Role::Admin, Role::AppManager, Role::Developer, Role::CustomerSupport][..])
}

fn any_operation() -> impl Strategy<Value = &'static str> {
    prop::sample::select(
        &["GET /v1/apps", "GET /v1/apps/{app}/builds", "GET /v1/ciBuildRuns/5", "GET /v1/ciProducts"][..],
    )
}

prop_compose! {
    fn any_policy()(
        nth in 0..6_u8,
        roles in prop::collection::vec(any_role(), 1..4),
        max_ttl_s in prop_oneof![30..=1200_i64, 30..=15_000_000_i64],
        operations in prop::collection::vec(any_operation(), 0..3),
        require_scope in any::<bool>(),
        not_before in prop::option::of(-500_000..500_000_i64),
        not_after in prop::option::of(-500_000..500_000_i64),
        mine in any::<bool>(),
    ) -> Policy {
        let client = if mine { "spiffe://acme/ci" } else { "spiffe://acme/cd" };
        Policy {
            clients: vec![ClientPattern::spiffe(client).unwrap()],
            max_ttl_s,
            default_ttl_s: max_ttl_s.min(600),
            operations: operations.iter().map(|text| OperationTemplate::parse(text).unwrap()).collect(),
            require_scope,
            not_before: not_before.map(|by| UnixMillis(NOW.0 + by)),
            not_after: not_after.map(|by| UnixMillis(NOW.0 + by)),
            ..policy(&format!("p{nth}"), &roles)
        }
    }
}

prop_compose! {
    pub(in crate::domain) fn any_key()(nth in 0..8_u8, roles in prop::collection::vec(any_role(), 1..4), kind in 0..3_u8, groups in 1..4_usize) -> Change {
        let kind = match kind {
            0 => KeyKind::Team,
            1 => individual(AppAccess::All),
            _ => individual(AppAccess::Only(apps(&["111"]))),
        };
        key(&format!("KEY000000{nth}"), kind, &roles, groups)
    }
}

prop_compose! {
    pub(in crate::domain) fn any_request()(
        role in any_role(),
        ttl_s in prop::option::of(prop_oneof![30..2000_i64, 30..15_552_000_i64]),
        scope in prop::collection::btree_set(
            prop::sample::select(&["GET /v1/apps", "GET /v1/apps/111/builds", "GET /v1/apps/999/builds", "GET /v1/ciBuildRuns/5"][..]),
            0..3,
        ),
    ) -> TokenRequest {
        let scope = scope.into_iter().map(|text| Operation::parse(text).unwrap()).collect();
        TokenRequest { ttl_s, scope, ..request(role) }
    }
}

proptest! {
    /// P3 and P8 over everything: whatever is permitted, the policy grants and Apple accepts.
    #[test]
    fn whatever_is_permitted_the_policy_grants_and_apple_accepts(
        policies in prop::collection::vec(any_policy(), 0..6),
        keys in prop::collection::vec(any_key(), 0..6),
        request in any_request(),
    ) {
        let all = base().into_iter().chain(policies.into_iter().map(put)).chain(keys).collect();
        let state = state(all);
        let Ok(permit) = decide(&request, &state, NOW) else { return Ok(()) };
        let policy = permit.policy();
        prop_assert!(policy.clients.iter().any(|pattern| pattern.matches(&request.principal)));
        prop_assert!(policy.roles.contains(request.role));
        prop_assert!(permit.key().roles.contains(request.role) && permit.key().roles.is_subset_of(policy.roles));
        prop_assert!(!policy.needs_scope() || !request.scope.is_empty());
        for entry in &request.scope {
            let granted = |template: &OperationTemplate| template.grants(entry, &permit.app_group().apps);
            prop_assert!(policy.operations.is_empty() || policy.operations.iter().any(granted));
        }
        let claims = permit.claims();
        let life = claims.exp - NOW.seconds();
        prop_assert!(life > 0 && life <= policy.max_ttl_s && request.ttl_s.is_none_or(|asked| life <= asked));
        prop_assert!(policy.not_before.is_none_or(|start| NOW >= start));
        prop_assert!(policy.not_after.is_none_or(|end| claims.exp * 1000 <= end.0));
        // P8: strictly inside Apple's limit, with the backdating; longer only with Apple's long-lived reads alone.
        let lifetime = claims.exp - claims.iat;
        let long = !request.scope.is_empty() && request.scope.iter().all(apple::may_live_long);
        let limit = if long { apple::LONGEST_SCOPED_LIFETIME_S } else { apple::LONGEST_LIFETIME_S };
        prop_assert!(claims.iat < NOW.seconds() && lifetime < limit, "{}", lifetime);
        // Exactly Apple's claims, by the kind of key.
        let team = permit.key().kind == KeyKind::Team;
        prop_assert_eq!(claims.iss.is_some(), team);
        prop_assert_eq!(claims.sub.is_some(), !team);
    }

    /// INV-DECIDE-1: the order in which policies are applied is irrelevant.
    #[test]
    fn the_order_of_policies_is_irrelevant(
        policies in prop::collection::btree_map(0..6_u8, any_policy(), 1..6),
        keys in prop::collection::vec(any_key(), 1..4),
        request in any_request(),
        seed in any::<u64>(),
    ) {
        let named: Vec<Policy> = policies.into_iter().map(|(nth, policy)| {
            Policy { name: PolicyName::parse(&format!("q{nth}")).unwrap(), ..policy }
        }).collect();
        let mut shuffled = named.clone();
        let middle = usize::try_from(seed % 7).unwrap() % shuffled.len();
        shuffled.rotate_left(middle);
        shuffled.reverse();
        let answer = |policies: Vec<Policy>| {
            // Keys first, so that their revisions are the same in both.
            let all = base().into_iter().chain(keys.clone()).chain(policies.into_iter().map(put)).collect();
            decide(&request, &state(all), NOW)
                .map(|permit| (permit.policy().name.clone(), permit.key().id.clone(), permit.expires_at()))
                .map_err(|denial| (denial.reason, denial.policy))
        };
        prop_assert_eq!(answer(named), answer(shuffled));
    }

    /// P5 as far as the decision goes: revoking anything a token would be issued under denies it, and grants nothing.
    #[test]
    fn revoking_never_grants(
        policies in prop::collection::vec(any_policy(), 1..5),
        keys in prop::collection::vec(any_key(), 1..4),
        request in any_request(),
        which in 0..4_u8,
    ) {
        let all: Vec<Change> = base().into_iter().chain(policies.into_iter().map(put)).chain(keys).collect();
        let before = state(all.clone());
        let first = decide(&request, &before, NOW);
        let (target, key_gone) = match (&first, which) {
            (Ok(permit), 0) => (Target::Policy(permit.policy().name.clone()), false),
            (Ok(permit), 1) => (Target::Key(permit.key().id.clone()), true),
            (_, 2) => (Target::AppGroup(request.app_group.clone()), false),
            _ => (Target::Client(request.principal.client.clone()), false),
        };
        let whole = matches!(target, Target::AppGroup(_) | Target::Client(_));
        let revoked = state(all.into_iter().chain([Change::Revoked { target: target.clone(), reason: String::new(), dies_at: None }]).collect());
        match (first, decide(&request, &revoked, NOW)) {
            (_, Ok(_)) if whole => prop_assert!(false, "{} still grants", target),
            (Ok(_), Ok(permit)) => {
                prop_assert!(Target::Policy(permit.policy().name.clone()) != target);
                prop_assert!(!key_gone || Target::Key(permit.key().id.clone()) != target);
            }
            (Err(_), Ok(_)) => prop_assert!(false, "revoking {} granted something", target),
            (_, Err(_)) => {}
        }
    }
}

#[test]
fn a_role_set_reads_back_as_it_was_written() {
    let set: RoleSet = Role::ALL.iter().copied().collect();
    let text = serde_json::to_string(&set).unwrap();
    assert_eq!(serde_json::from_str::<RoleSet>(&text).unwrap(), set);
    assert!(text.contains("\"CLOUD_MANAGED_APP_DISTRIBUTION\""));
}
