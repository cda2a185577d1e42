//! What is granted, and how far: policies, ceilings, and what must hold over all of them.

use super::{HONEST, Hostile, Row, Told, whole as a_whole};

const QUOTA: &str = "{ tokens_per_hour: 60, fresh_per_minute: 5 }";
const HOURS: &str = r#"{ time_zone: Europe/Berlin, days: [mon, fri], from: "08:00", until: "18:00" }"#;
const READ: &str = "GET /v1/apps/{app}/customerReviews";
const EVERYWHERE: &str = "every_app_group: true\n    max_ttl: 15m\n    never_roles: [ACCOUNT_HOLDER]";

#[rustfmt::skip]
pub(super) const OFFLINE: &[Row] = &[
    ("a quota of nothing", QUOTA, "{ tokens_per_hour: 0 }", "policies[0].quota.tokens_per_hour", "between 1 and 1000000000"),
    ("a quota below nothing", QUOTA, "{ tokens_per_hour: -1 }", "policies[0].quota.tokens_per_hour", "between 1 and 1000000000"),
    ("a quota without an end", QUOTA, "{ fresh_per_minute: 9000000000 }", "policies[0].quota.fresh_per_minute", "between 1 and 1000000000"),
    ("a quota that no number holds", QUOTA, "{ tokens_per_hour: 99999999999999999999999999 }", "policies[0].quota.tokens_per_hour", "not a whole number"),
    ("a quota in parts", QUOTA, "{ tokens_per_hour: 1.5 }", "policies[0].quota.tokens_per_hour", "not a whole number"),
    ("a quota in hexadecimal", QUOTA, "{ tokens_per_hour: 0x10 }", "policies[0].quota.tokens_per_hour", "not a whole number"),
    ("a quota in words", QUOTA, "{ tokens_per_hour: many }", "policies[0].quota.tokens_per_hour", "not a whole number"),
    ("a quota that bounds nothing", QUOTA, "{}", "policies[0].quota", "bounds nothing"),
    ("hours of nowhere", HOURS, r#"{ time_zone: Mars/Olympus, from: "08:00", until: "18:00" }"#, "policies[0].hours.time_zone", "no IANA time zone"),
    ("hours by a file", HOURS, r#"{ time_zone: ../../etc/passwd, from: "08:00", until: "18:00" }"#, "policies[0].hours.time_zone", "no IANA time zone"),
    ("hours of no day", HOURS, r#"{ time_zone: UTC, days: [], from: "08:00", until: "18:00" }"#, "policies[0].hours.days", "is empty"),
    ("hours of a day that is none", HOURS, r#"{ time_zone: UTC, days: [someday], from: "08:00", until: "18:00" }"#, "policies[0].hours.days[0]", "none of those known"),
    ("hours from 25 o'clock", HOURS, r#"{ time_zone: UTC, from: "25:00", until: "18:00" }"#, "policies[0].hours.from", "no time of day"),
    ("hours from midnight on the other side", HOURS, r#"{ time_zone: UTC, from: "24:00", until: "18:00" }"#, "policies[0].hours.from", "no hours start at 24:00"),
    ("hours without a length", HOURS, r#"{ time_zone: UTC, from: "08:00", until: "08:00" }"#, "policies[0].hours.until", "give two times"),
    ("hours to the second", HOURS, r#"{ time_zone: UTC, from: "08:00:00", until: "18:00" }"#, "policies[0].hours.from", "no time of day"),
    ("an end before the start", "2036-12-31T00:00:00+01:00", "2025-12-31T00:00:00Z", "policies[0].not_after", "would never grant anything"),
    ("an end at the start", "2036-12-31T00:00:00+01:00", "2026-01-01T01:00:00+01:00", "policies[0].not_after", "would never grant anything"),
    ("a day that is not in the calendar", "2036-12-31T00:00:00+01:00", "2036-02-30T00:00:00Z", "policies[0].not_after", "not a time such as"),
    ("a day without a time", "2036-12-31T00:00:00+01:00", "2036-12-31", "policies[0].not_after", "not a time such as"),
    ("an end after all calendars", "2036-12-31T00:00:00+01:00", "9999-12-31T23:59:59-23:59", "policies[0].not_after", "not a time such as"),
    ("a life beyond twenty minutes", "max_ttl: 10m", "max_ttl: 21m", "policies[0].max_ttl", "at most 20 minutes"),
    ("a life of a month, by one letter", "max_ttl: 10m", "max_ttl: 10M", "policies[0].max_ttl", "not a duration of whole seconds"),
    ("a life too short to use", "max_ttl: 10m", "max_ttl: 1s", "policies[0].max_ttl|policies[0].default_ttl", "between 30s and"),
    ("a life that no number holds", "max_ttl: 10m", "max_ttl: 99999999999999999d", "policies[0].max_ttl", "not a duration of whole seconds"),
    ("a life below nothing", "max_ttl: 10m", "max_ttl: -10m", "policies[0].max_ttl", "not a duration of whole seconds"),
    ("a life without a unit", "max_ttl: 10m", "max_ttl: 600", "policies[0].max_ttl", "not a duration of whole seconds"),
    ("a life in parts of a second", "max_ttl: 10m", "max_ttl: 0.5h", "policies[0].max_ttl", "not a duration of whole seconds"),
    ("a default beyond the longest", "default_ttl: 90s", "default_ttl: 11m", "policies[0].default_ttl", "between 30s and max_ttl"),
    ("a long life for a read that Apple gives none", "require_scope: true", "require_scope: true\n    max_ttl: 30days", "policies[1].max_ttl", "long-lived reads"),
    ("a write in a scope", READ, "POST /v1/apps", "policies[1].operations[0]", "takes GET only"),
    ("a removal in a scope", READ, "DELETE /v1/users/1", "policies[1].operations[0]", "takes GET only"),
    ("a read in lower case", READ, "get /v1/apps", "policies[1].operations[0]", "takes GET only"),
    ("a read that climbs", READ, "GET /v1/apps/../users", "policies[1].operations[0]", "no path as Apple writes them"),
    ("a read that climbs in disguise", READ, "GET /v1/apps/%2e%2e/users", "policies[1].operations[0]", "no path as Apple writes them"),
    ("a read of everything", READ, "GET /v1/*", "policies[1].operations[0]", "no path as Apple writes them"),
    ("a read of another host", READ, "GET https://evil.example/v1/apps", "policies[1].operations[0]", "no path as Apple writes them"),
    ("a read with a parameter twice", READ, "GET /v1/builds?filter[app]=1&filter[app]=2", "policies[1].operations[0]", "no name twice"),
    ("a read with an end of line", READ, r"GET /v1/apps\nPOST /v1/apps", "policies[1].operations[0]", "no path as Apple writes them"),
    ("a read by part of an app's id", READ, "GET /v1/apps/{app}7", "policies[1].operations[0]", "no path as Apple writes them"),
    ("a feature that nobody knows", "[builds:read]", "[everything:read]", "policies[1].features[0]", "none of those known"),
    ("a feature without an access", "[builds:read]", "[builds]", "policies[1].features[0]", "none of those known"),
    ("a feature that writes beside operations", "[builds:read]", "[builds:write]", "policies[1].features", "make two policies of it"),
    ("a feature that writes where a scope is asked for", "features: [reviews:write]", "features: [reviews:write]\n    require_scope: true", "policies[2].features", "make two policies of it"),
    ("a role that is not Apple's", "[APP_MANAGER, DEVELOPER]", "[APP_MANAGER, KING]", "policies[0].roles[1]", "none of those known"),
    ("a role in lower case", "[APP_MANAGER, DEVELOPER]", "[admin]", "policies[0].roles[0]", "did you mean `ADMIN`?"),
    ("no roles", "[APP_MANAGER, DEVELOPER]", "[]", "policies[0].roles", "is empty"),
    ("an app that is no number", "[\"1234567890\", 2345678901]", "[com.acme.game]", "app_groups[0].apps[0]", "is not an app id"),
    ("an app by a pattern", "[\"1234567890\", 2345678901]", "[\"*\"]", "app_groups[0].apps[0]", "is not an app id"),
    ("no apps", "[\"1234567890\", 2345678901]", "[]", "app_groups[0].apps", "is empty"),
    ("an account without Apple's id", "57246542-96fe-1a63-e053-0824d011072a", "57246542", "accounts[0].issuer_id", "is not an Issuer ID"),
    ("a ceiling that bounds nothing", EVERYWHERE, "every_app_group: true", "ceilings[0]", "bounds nothing"),
    ("a ceiling over nothing", EVERYWHERE, "max_ttl: 15m", "ceilings[0].app_groups", "every_app_group: true"),
    ("a ceiling over no groups", EVERYWHERE, "app_groups: []\n    max_ttl: 15m", "ceilings[0].app_groups", "is empty"),
    ("a ceiling over some groups and all", EVERYWHERE, "every_app_group: true\n    app_groups: [games]\n    max_ttl: 15m", "ceilings[0].app_groups", "exclude each other"),
    ("a ceiling of no time", EVERYWHERE, "every_app_group: true\n    max_ttl: 0s", "ceilings[0].max_ttl", "between 30s and"),
    ("a ceiling over roles that are none", EVERYWHERE, "every_app_group: true\n    never_roles: []", "ceilings[0].never_roles", "is empty"),
    ("a ceiling without callers", EVERYWHERE, "every_app_group: true\n    issuers: []", "ceilings[0].issuers", "is empty"),
    ("an approval that only counts", EVERYWHERE, "every_app_group: true\n    require_approval: true\n    shadow: true", "ceilings[0].shadow", "leave one of the two out"),
    ("a trust domain that is an address", "trust_domains: [acme.internal]", "trust_domains: [\"spiffe://acme.internal\"]", "ceilings[1].trust_domains[0]", "is not a trust domain"),
    ("a trust domain with a star", "trust_domains: [acme.internal]", "trust_domains: [\"*.internal\"]", "ceilings[1].trust_domains[0]", "is not a trust domain"),
];

#[rustfmt::skip]
pub(super) const OF_STATE: &[Row] = &[
    ("an account that is not there", "app_groups:\n  - name: games", "app_groups:\n  - { name: toys, account: other, apps: [1] }\n  - name: games", "app_groups[0].account", "there is no account `other`"),
    ("a group that moves away from its keys", "app_groups:\n  - name: games\n    account: acme", "  - { name: other, issuer_id: 69a6de70-03db-47e3-e053-5b8c7c11a4d1 }\napp_groups:\n  - name: games\n    account: other", "app_groups[0].account", "the group has keys"),
    ("an account that becomes another", "57246542-96fe", "57246543-96fe", "accounts[0].issuer_id", "the account has keys"),
    ("a group that is not there", "[{ dns: reviews.ci.acme.internal }]\n    app_group: games", "[{ dns: reviews.ci.acme.internal }]\n    app_group: toys", "policies[1].app_group", "there is no app group `toys`"),
    ("a ceiling over a group that is not there", "of-games\n    app_groups: [games]", "of-games\n    app_groups: [games, toys]", "ceilings[1].app_groups[1]", "there is no app group `toys`"),
    ("two operators asked for where there is one", EVERYWHERE, "every_app_group: true\n    require_approval: true", "operators", "under different names and for different clients"),
];

#[rustfmt::skip]
pub(super) const OF_PRUNING: &[Row] = &[
    ("nobody who administers", "[administer, custody, author_policies, revoke, audit, unseal]", "[audit]", "operators", "nobody who is not revoked"),
    ("the administrator removed", "  - name: root\n    clients: [{ spiffe: spiffe://acme.internal/ns/ops/sa/admin }]\n    powers: [administer, custody, author_policies, revoke, audit, unseal]\n", "", "operators", "nobody who is not revoked"),
];

/// Documents that are made, or that name a part only.
pub(super) fn whole() -> Vec<Hostile> {
    let policy =
        |nth: usize| format!("  - {{ name: p{nth}, clients: [{{ dns: a.b }}], app_group: games, roles: [ADMIN] }}\n");
    let policies = |count: usize| format!("policies:\n{}", (0..count).map(policy).collect::<String>());
    let root = HONEST.split_once("operators:\n").map(|(_, rest)| format!("operators:\n{rest}")).unwrap_or_default();
    let alone = root.replace("    app_groups: [games]\n", "");
    let clients = vec!["{ dns: a.b }"; 1001].join(", ");
    let fleet = "issuers:\n  - name: fleet\n    kind: kubernetes\n    url: https://fleet.acme.internal\n    audiences: [p8broker]\n";
    vec![
        a_whole("98 policies more", policies(98), "policies[*].app_group|", "at most 100", Told::ByTheBroker),
        a_whole(
            "1001 clients",
            format!("policies: [{{ name: p, clients: [{clients}], app_group: games, roles: [ADMIN] }}]\n"),
            "policies[0].clients",
            "has 1001 entries",
            Told::Offline,
        ),
        a_whole(
            "an issuer that says less, and others rely on it",
            fleet.to_owned(),
            "issuers[0]",
            "policy emergency would match too much",
            Told::ByTheBroker,
        ),
        a_whole(
            "everything but operators removed",
            alone,
            "account acme|app_group games",
            "is still used",
            Told::ByTheBrokerWhenPruning,
        ),
    ]
}
