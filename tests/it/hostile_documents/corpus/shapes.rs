//! What is no document at all: fields that nobody knows, values of another type, names that deceive, YAML that explodes.

use super::{Hostile, Row, Told, whole as a_whole};

const RELEASE: &str = "name: release\n";

#[rustfmt::skip]
pub(super) const OFFLINE: &[Row] = &[
    ("a list that nobody knows", "operators:\n", "operator:\n", "operator", "did you mean `operators`?"),
    ("a field of an account that nobody knows", "    issuer_id:", "    key: secret\n    issuer_id:", "accounts[0].key", "not a field here"),
    ("a field of an app group that nobody knows", "    account: acme", "    account: acme\n    keys: all", "app_groups[0].keys", "not a field here"),
    ("a field of an issuer that nobody knows", "kind: oidc", "kind: oidc\n    client_secret: x", "issuers[4].client_secret", "not a field here"),
    ("a field of a ceiling that nobody knows", "no_team_keys: false", "no_team_key: true", "ceilings[1].no_team_key", "did you mean `no_team_keys`?"),
    ("a field of a policy that nobody knows", "default_ttl: 90s", "defaultttl: 90s", "policies[0].defaultttl", "did you mean `default_ttl`?"),
    ("a field of a client that nobody knows", "- dns: release-*", "- host: release-*", "policies[0].clients[1].host", "not a field here"),
    ("a field of a bearer token that nobody knows", "issuer: corp, subject", "issuer: corp, sub", "policies[0].clients[5].oidc.sub", "not a field here"),
    ("a field of a quota that nobody knows", "fresh_per_minute", "fresh_per_second", "policies[0].quota.fresh_per_second", "not a field here"),
    ("a field of hours that nobody knows", "days: [mon, fri]", "weekdays: [mon, fri]", "policies[0].hours.weekdays", "not a field here"),
    ("a field of an operator that nobody knows", "powers: [author_policies]\n    app_groups", "powers: [author_policies]\n    groups", "operators[1].groups", "not a field here"),
    ("a field whose name colours the terminal", "    account: acme", "    account: acme\n    \"a\\e[31m\": b", r"app_groups[0].a\u{1b}[31m", "not a field here"),
    ("a field that is a list", "    account: acme", "    account: acme\n    ? [a, b]\n    : c", "app_groups[0].", "not a field here"),
    ("a field that is merged in", "    account: acme", "    account: acme\n    <<: { apps: [1] }", "app_groups[0].<<", "not a field here"),
    ("a field that is missing", "    kind: oidc\n", "", "issuers[4].kind", "is missing"),
    ("a field that is twice there, once in quotes", "    account: acme", "    account: acme\n    \"account\": other", "app_groups[0].account", "stands here twice"),
    ("a claim that is twice there, once in quotes", "hd: acme.internal,", "hd: acme.internal, \"hd\": evil.example,", "issuers[4].claims.hd", "stands here twice"),
    ("a mapping where a list stands", "accounts:\n  - name: acme\n    issuer_id", "accounts:\n    name: acme\n    issuer_id", "accounts", "must be a list"),
    ("a text where a list stands", "[APP_MANAGER, DEVELOPER]", "APP_MANAGER", "policies[0].roles", "must be a list"),
    ("a list where a text stands", "name: games\n", "name: [games]\n", "app_groups[0].name", "must be one text"),
    ("a mapping where a text stands", "[mon, fri]", "[{ mon: fri }]", "policies[0].hours.days[0]", "must be one text"),
    ("nothing where a text stands", "name: games\n", "name: ~\n", "app_groups[0].name", "is empty"),
    ("a null where a text stands", "name: games\n", "name: NULL\n", "app_groups[0].name", "is empty"),
    ("a text where a mapping stands", "quota: { tokens_per_hour: 60, fresh_per_minute: 5 }", "quota: 60", "policies[0].quota", "must be a mapping"),
    ("a list where conditions stand", "claims: { hd: acme.internal, tier: [gold, silver] }", "claims: [acme.internal]", "issuers[4].claims", "must be a mapping of claims"),
    ("a condition within a condition", "hd: acme.internal,", "hd: { a: b },", "issuers[4].claims.hd", "must be one text"),
    ("a text where a flag stands", "break_glass: true", "break_glass: maybe", "policies[2].break_glass", "must be true or false"),
    ("a flag in the words of another YAML", "break_glass: true", "break_glass: yes", "policies[2].break_glass", "must be true or false"),
    ("a flag in quotes", "break_glass: true", "break_glass: \"true\"", "policies[2].break_glass", "without quotes"),
    ("a number in quotes", "tokens_per_hour: 60", "tokens_per_hour: \"60\"", "policies[0].quota.tokens_per_hour", "without quotes"),
    ("a list of entries that are texts", "[{ dns: reviews.ci.acme.internal }]", "[reviews.ci.acme.internal]", "policies[1].clients[0]", "must be a mapping with the fields spiffe, dns, oidc"),
    ("a name in upper case", RELEASE, "name: Release\n", "policies[0].name", "is not a name"),
    ("a name with a space", RELEASE, "name: a b\n", "policies[0].name", "is not a name"),
    ("a name without a letter", RELEASE, "name: \"-\"\n", "policies[0].name", "is not a name"),
    ("an empty name", RELEASE, "name: \"\"\n", "policies[0].name", "is not a name"),
    ("a name that climbs", RELEASE, "name: ../release\n", "policies[0].name", "is not a name"),
    ("a name of 64 characters", RELEASE, "name: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\n", "policies[0].name", "1 to 63 characters"),
    ("a name that turns the line around", RELEASE, "name: \"a\u{202e}b\"\n", "policies[0].name", r"a\u{202e}b"),
    ("a name with what nobody sees", RELEASE, "name: \"a\u{200b}b\"\n", "policies[0].name", r"a\u{200b}b"),
    ("a name in letters that look alike", RELEASE, "name: rеlease\n", "policies[0].name", r"r\u{435}lease"),
    ("a name with a control character", RELEASE, r#"name: "a\u0007b"
"#, "policies[0].name", r"a\u{7}b"),
    ("a name with an end of line", RELEASE, r#"name: "a\nb"
"#, "policies[0].name", r"a\nb"),
    ("an account that is twice there", "app_groups:\n  - name: games", "  - { name: acme, issuer_id: 57246542-96fe-1a63-e053-0824d011072a }\napp_groups:\n  - name: games", "accounts[1].name", "stands twice"),
    ("a policy that is twice there", "name: reviews", "name: release", "policies[1].name", "stands twice"),
    ("an operator that is twice there", "name: leads", "name: root", "operators[1].name", "stands twice"),
];

/// Texts that are no YAML, or too much of it. What is wrong has a place, and no path.
pub(super) fn whole() -> Vec<Hostile> {
    let laughs = (1..10).map(|nth| format!("l{nth}: &l{nth} [{}]\n", vec![format!("*l{}", nth - 1); 10].join(", ")));
    let laughs = format!("l0: &l0 [ha, ha]\n{}accounts: *l9\n", laughs.collect::<String>());
    let rows = [
        ("a billion laughs", laughs, "", "aliases are not taken"),
        ("one alias", "accounts: &a []\npolicies: *a\n".to_owned(), "", "aliases are not taken"),
        ("a text that is no YAML", "accounts: [".to_owned(), "", ""),
        ("a tab", "accounts:\n\t- name: a\n".to_owned(), "", ""),
        ("a field that is twice there", "accounts: []\naccounts: []\n".to_owned(), "", "duplicate"),
        ("lists in lists on one line", format!("accounts:\n  {}x\n", "- ".repeat(100_000)), "", "nested deeper"),
        ("brackets in brackets", format!("accounts: {}\n", "[".repeat(100_000)), "", ""),
        ("keys in keys", format!("{}x\n", "? ".repeat(100_000)), "", "nested deeper"),
        ("a NUL", "accounts: []\n# \0\n".to_owned(), "", ""),
        ("a list as a document", "- accounts\n".to_owned(), "", "must be a mapping with the fields"),
        ("a text as a document", "accounts\n".to_owned(), "", "must be a mapping with the fields"),
    ];
    rows.into_iter().map(|(name, text, path, says)| a_whole(name, text, path, says, Told::Offline)).collect()
}
