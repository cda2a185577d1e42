//! Documents, as examples.

use super::*;

fn policy() -> PolicyText {
    PolicyText {
        name: "p".to_owned(),
        clients: vec![ClientText { spiffe: Some("spiffe://acme/ci".to_owned()), ..ClientText::default() }],
        app_group: "games".to_owned(),
        roles: vec!["APP_MANAGER".to_owned()],
        ..PolicyText::default()
    }
}

fn violations(policy: PolicyText) -> Vec<String> {
    let document = Document { policies: vec![policy], ..Document::default() };
    document.check().err().unwrap_or_default().into_iter().map(|violation| violation.path).collect()
}

#[test]
fn everything_wrong_is_said_at_once() {
    let paths = violations(PolicyText {
        name: "Bad Name".to_owned(),
        clients: vec![ClientText::default(), ClientText { dns: Some("*".to_owned()), ..ClientText::default() }],
        app_group: String::new(),
        roles: vec!["KING".to_owned()],
        max_ttl: Some(-1),
        default_ttl: Some(i64::MAX),
        operations: vec!["POST /v1/apps".to_owned(), "GET /v1/../x".to_owned()],
        ..PolicyText::default()
    });
    let expected = [
        "policies[0].name",
        "policies[0].clients[0]",
        "policies[0].clients[1].dns",
        "policies[0].app_group",
        "policies[0].roles[0]",
        "policies[0].operations[0]",
        "policies[0].operations[1]",
    ];
    assert_eq!(paths, expected);
}

#[test]
fn empty_never_means_all() {
    let paths = violations(PolicyText { clients: vec![], roles: vec![], ..policy() });
    assert_eq!(paths, ["policies[0].clients", "policies[0].roles"]);
}

#[test]
fn a_long_life_needs_long_lived_reads() {
    let day = Some(86_400);
    assert_eq!(violations(PolicyText { max_ttl: day, ..policy() }), ["policies[0].max_ttl"]);
    let reads = |operation: &str| PolicyText { max_ttl: day, operations: vec![operation.to_owned()], ..policy() };
    assert_eq!(violations(reads("GET /v1/ciBuildRuns/5")), [""; 0]);
    assert_eq!(violations(reads("GET /v1/ciProducts/5/app")), ["policies[0].max_ttl"]);
    assert_eq!(violations(reads("GET /v1/apps/{app}")), ["policies[0].max_ttl"]);
    let year = PolicyText { max_ttl: Some(366 * 86_400), ..reads("GET /v1/ciBuildRuns/5") };
    assert_eq!(violations(year), ["policies[0].max_ttl"]);
}

#[test]
fn times_that_no_document_can_spell_are_refused() {
    let at = |seconds| Some(crate::clock::UnixMillis::from_seconds(seconds));
    assert_eq!(violations(PolicyText { not_after: at(253_402_300_799), ..policy() }), [""; 0]);
    for seconds in [253_402_300_800, i64::MAX] {
        assert_eq!(
            violations(PolicyText { not_after: at(seconds), ..policy() }),
            ["policies[0].not_after"],
            "{seconds}"
        );
    }
    assert_eq!(violations(PolicyText { not_before: at(i64::MIN), ..policy() }), ["policies[0].not_before"]);
}
