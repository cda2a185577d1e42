//! What is said of tokens and policies, as examples.

use super::*;
use crate::domain::change::{Change, Object};
use crate::domain::decide::tests::{NOW, apps, base, group_name, individual, key, policy, put, request, state};
use crate::domain::decide::{TokenRequest, decide};
use crate::domain::feature::FeatureGrant;
use crate::domain::role::Role;
use crate::id::AccountName;

const DEV: &[Role] = &[Role::Developer];

fn said(all: &[Enforcement], limit: &str) -> (EnforcedBy, String) {
    let found = all.iter().find(|it| it.limit == limit).unwrap();
    (found.by, found.explanation.clone())
}

#[test]
fn what_a_token_says_of_its_features_is_true_of_that_token() {
    let features = |text: &str| vec![FeatureGrant::parse(text).unwrap()];
    let own = vec![OperationTemplate::parse("GET /v1/apps/{app}/customerReviews").unwrap()];
    let writes = Policy { features: features("builds:write"), ..policy("p", DEV) };
    let reads = Policy { features: features("builds:read"), ..policy("p", DEV) };
    let beside = Policy { operations: own, ..reads.clone() };
    let (build, review) = ("GET /v1/builds/7", "GET /v1/apps/111/customerReviews");
    let only = "the token's scope names only reads of these features; Apple refuses the rest";
    let none =
        "the token's scope names no reads of these features, only operations of the policy; Apple refuses the rest";
    let both =
        "the token's scope names only reads of these features and operations of the policy; Apple refuses the rest";
    let free = "Apple's scope takes reads only, so a token for builds:write has none: its bearer is asked to keep to the \
                features, and can do whatever the key's roles allow";
    let apple = EnforcedBy::AppleScope;
    for (policy, scope, expected) in [
        (&writes, &[build][..], (apple, only)),
        (&writes, &[], (EnforcedBy::Nobody, free)),
        (&reads, &[build], (apple, only)),
        (&beside, &[build], (apple, only)),
        (&beside, &[review], (apple, none)),
        (&beside, &[build, review], (apple, both)),
    ] {
        let team = key("AAAAAAAAA1", KeyKind::Team, DEV, 1);
        let state = state(base().into_iter().chain([put(policy.clone()), team]).collect());
        let scope = scope.iter().map(|text| Operation::parse(text).unwrap()).collect();
        let permit = decide(&TokenRequest { scope, ..request(Role::Developer) }, &state, NOW).unwrap();
        assert_eq!(said(&permit.enforcement(), "features"), (expected.0, expected.1.to_owned()));
    }
    // Of the policies, whatever a token asks for.
    let state = state(base());
    let every = |rest: &str| {
        (
            apple,
            format!(
                "every token must have a scope that names only reads of these features{rest}; Apple refuses the rest"
            ),
        )
    };
    assert_eq!(said(&of_policy(&reads, &state), "features"), every(""));
    assert_eq!(said(&of_policy(&beside, &state), "features"), every(" and the policy's operations"));
    assert_eq!(said(&of_policy(&writes, &state), "features"), (EnforcedBy::Nobody, free.to_owned()));
}

#[test]
fn only_keys_that_may_sign_for_a_policy_count() {
    let confined = key("CONFINED01", individual(AppAccess::Only(apps(&["111"]))), DEV, 1);
    let by = |keys: Vec<Change>| {
        let all = base().into_iter().chain(keys).collect();
        said(&of_policy(&policy("p", DEV), &state(all)), "app_group").0
    };
    let team = |roles: &[Role]| key("AAAAAAAAA1", KeyKind::Team, roles, 1);
    assert_eq!(by(vec![]), EnforcedBy::Nobody);
    assert_eq!(by(vec![confined.clone()]), EnforcedBy::AppleIndividualAccess);
    assert_eq!(by(vec![confined.clone(), team(DEV)]), EnforcedBy::Nobody);
    assert_eq!(by(vec![confined.clone(), team(&[Role::Developer, Role::Admin])]), EnforcedBy::AppleIndividualAccess);
    // A key of the account that the group has left signs nothing for it.
    let group = |account: &str| {
        let account = AccountName::parse(account).unwrap();
        let group = AppGroup { name: group_name(), account, apps: apps(&["111", "222"]) };
        Change::DocumentApplied { put: vec![Object::AppGroup(group)], removed: vec![] }
    };
    let of_second = |change: Change| match change {
        Change::KeyImported { key } => {
            let account = AccountName::parse("second").unwrap();
            Change::KeyImported { key: Box::new(Key { account, ..*key }) }
        }
        other => other,
    };
    assert_eq!(by(vec![of_second(confined.clone()), team(DEV), group("second")]), EnforcedBy::AppleIndividualAccess);
    assert_eq!(by(vec![confined, group("second")]), EnforcedBy::Nobody);
}
