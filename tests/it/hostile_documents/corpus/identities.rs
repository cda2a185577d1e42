//! Who is trusted, and who is meant: issuers, patterns over callers, operators.

use super::{HONEST, Hostile, Row, Told, whole as a_whole};

const SPIFFE: &str = "spiffe://acme.internal/ns/ci/sa/release-*";
const DNS: &str = "release-*.ci.acme.internal";
const GITHUB: &str = "{ repository_id: 42, ref: refs/heads/main }";
const CLUSTER: &str = "system:serviceaccount:ci:release-*";
const CORP: &str = "subject: release-bot";
const KEYS: &str = r#"{"keys": [{"kty": "EC", "crv": "P-256", "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU", "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}]}"#;
const CORP_URL: &str = "url: https://login.acme.internal\n";
const CORP_KEYS: &str = "jwks_url: https://login.acme.internal/keys";

#[rustfmt::skip]
pub(super) const OFFLINE: &[Row] = &[
    ("a bare star as a host", DNS, r#""*""#, "policies[0].clients[1].dns", "the last two labels exact"),
    ("a star for a whole domain", DNS, r#""*.internal""#, "policies[0].clients[1].dns", "the last two labels exact"),
    ("a host in upper case", DNS, "CI.acme.internal", "policies[0].clients[1].dns", "lower-case labels"),
    ("a host with an address", DNS, r#""ci.acme.internal:8443""#, "policies[0].clients[1].dns", "not a DNS pattern"),
    ("a bare star as a SPIFFE ID", SPIFFE, r#""*""#, "policies[0].clients[0].spiffe", "not a SPIFFE pattern"),
    ("any trust domain", SPIFFE, "spiffe://*/ns/ci/sa/release", "policies[0].clients[0].spiffe", "the trust domain exact"),
    ("a trust domain with a star in it", SPIFFE, "spiffe://acme.*/ns/ci", "policies[0].clients[0].spiffe", "the trust domain exact"),
    ("a whole trust domain", SPIFFE, "spiffe://acme.internal/*", "policies[0].clients[0].spiffe", "matches too much"),
    ("a whole trust domain by two stars", SPIFFE, "spiffe://acme.internal/**/*", "policies[0].clients[0].spiffe", "matches too much"),
    ("a trust domain without a path", SPIFFE, "spiffe://acme.internal", "policies[0].clients[0].spiffe", "spiffe://trust-domain/path"),
    ("a SPIFFE ID that climbs", SPIFFE, "spiffe://acme.internal/ns/../ops/sa/admin", "policies[0].clients[0].spiffe", "not a SPIFFE pattern"),
    ("a SPIFFE ID that climbs in disguise", SPIFFE, "spiffe://acme.internal/ns/%2e%2e/ops", "policies[0].clients[0].spiffe", "not a SPIFFE pattern"),
    ("another scheme", SPIFFE, "https://acme.internal/ns/ci", "policies[0].clients[0].spiffe", "not a SPIFFE pattern"),
    ("a regular expression", SPIFFE, "spiffe://acme.internal/ns/ci/sa/(a|b)", "policies[0].clients[0].spiffe", "not a SPIFFE pattern"),
    ("two kinds of client in one", "- dns: release-*", "- spiffe: spiffe://acme.internal/ns/a\n        dns: release-*", "policies[0].clients[1]", "names two kinds of client"),
    ("a certificate and a bearer token in one", "- oidc: { issuer: github", "- spiffe: spiffe://acme.internal/ns/a\n        oidc: { issuer: github", "policies[0].clients[2]", "names two kinds of client"),
    ("a client that is nobody", "[{ dns: reviews.ci.acme.internal }]", "[{}]", "policies[1].clients[0]", "names nobody"),
    ("no clients", "[{ dns: reviews.ci.acme.internal }]", "[]", "policies[1].clients", "is empty"),
    ("clients that are left blank", "[{ dns: reviews.ci.acme.internal }]", "", "policies[1].clients", "must be a list"),
    ("everyone of an issuer", "{ issuer: corp, subject: release-bot }", "{ issuer: corp }", "policies[0].clients[5].oidc", "means everyone whom the issuer vouches for"),
    ("everyone by an empty condition", "{ issuer: corp, subject: release-bot }", "{ issuer: corp, claims: {} }", "policies[0].clients[5].oidc", "means everyone whom the issuer vouches for"),
    ("any subject", CORP, r#"subject: "*""#, "policies[0].clients[5].oidc.subject", "matches everything"),
    ("any subject of two parts, the second begun with nothing", CORP, r#"subject: "*:*@""#, "policies[0].clients[5].oidc.subject", "matches everything"),
    ("everyone by who vouches for them", CORP, r#"claims: { iss: "https://login.acme.internal" }"#, "policies[0].clients[5].oidc.claims.iss", "the same for everyone"),
    ("everyone by the audience that all ask for", CORP, "claims: { aud: corp-to-p8broker }", "policies[0].clients[5].oidc.claims.aud", "the same for everyone"),
    ("an issuer that says its own audience", "hd: acme.internal,", "aud: corp-to-p8broker,", "issuers[4].claims.aud", "the same for everyone"),
    ("GitHub as any OpenID provider", CORP_URL, "url: https://token.actions.githubusercontent.com\n", "issuers[4].url", "write `kind: github_actions`"),
    ("GitLab as any OpenID provider", CORP_URL, "url: https://gitlab.com/\n", "issuers[4].url", "write `kind: gitlab_ci`"),
    ("GitLab as a cluster", "url: https://fleet.acme.internal\n", "url: https://gitlab.com\n", "issuers[3].url", "write `kind: gitlab_ci`"),
    ("an empty subject", CORP, r#"subject: """#, "policies[0].clients[5].oidc.subject", "not a claim's value"),
    ("a subject with a control character", CORP, r#"subject: "a\u0007b""#, "policies[0].clients[5].oidc.subject", "printable ASCII"),
    ("any value of a claim", "ref: refs/heads/main }", r#"ref: "*" }"#, "policies[0].clients[2].oidc.claims.ref[0]", "matches everything"),
    ("any value of a claim with a part", "ref: refs/heads/main }", r#"ref: "*/*" }"#, "policies[0].clients[2].oidc.claims.ref[0]", "matches everything"),
    ("one of no values", "ref: refs/heads/main }", "ref: [] }", "policies[0].clients[2].oidc.claims.ref", "is empty"),
    ("a claim without a value", "ref: refs/heads/main }", "ref: }", "policies[0].clients[2].oidc.claims.ref", "is empty"),
    ("a claim that is another for each token", GITHUB, "{ repository_id: 42, exp: 5 }", "policies[0].clients[2].oidc.claims.exp", "is another for each token"),
    ("a claim with a space in its name", GITHUB, r#"{ repository_id: 42, "a b": c }"#, "policies[0].clients[2].oidc.claims.a b", "not the name of a claim"),
    ("a claim whose name colours the terminal", GITHUB, r#"{ repository_id: 42, "a\e[31m": c }"#, r"policies[0].clients[2].oidc.claims.a\u{1b}[31m", "not the name of a claim"),
    ("a bearer token as a certificate", "[{ spiffe: spiffe://acme.internal/ns/ci/sa/proxy }]", "[{ oidc: { issuer: corp, subject: proxy } }]", "policies[0].require_mtls[0]", "names who must present a certificate"),
    ("a private key", KEYS, r#"{"keys": [{"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA", "d": "AA"}]}"#, "issuers[2].jwks", "private or symmetric key"),
    ("a private key after a public one", KEYS, r#"{"keys": [{"kty": "RSA", "n": "AA", "e": "AQAB"}, {"kty": "RSA", "n": "AA", "e": "AQAB", "p": "AA"}]}"#, "issuers[2].jwks", "private or symmetric key"),
    ("a shared secret", KEYS, r#"{"keys": [{"kty": "oct", "k": "c2VjcmV0"}]}"#, "issuers[2].jwks", "private or symmetric key"),
    ("keys of a kind that nobody knows", KEYS, r#"{"keys": [{"kty": "oct"}, {}]}"#, "issuers[2].jwks", "no public key"),
    ("keys that are no JSON", KEYS, "-----BEGIN PUBLIC KEY-----", "issuers[2].jwks", "not a JWK Set"),
    ("no keys", KEYS, r#"{"keys": []}"#, "issuers[2].jwks", "at least one key"),
    ("keys pinned, and elsewhere", CORP_KEYS, "jwks_url: https://login.acme.internal/keys\n    jwks: '{\"keys\": [{\"kty\": \"EC\"}]}'", "issuers[4].jwks", "exclude each other"),
    ("an issuer without TLS", CORP_URL, "url: http://login.acme.internal\n", "issuers[4].url", "https, without user"),
    ("an issuer with a password", CORP_URL, "url: https://u:p@login.acme.internal\n", "issuers[4].url", "https, without user"),
    ("an issuer with a query", CORP_URL, "url: https://login.acme.internal/?a=b\n", "issuers[4].url", "https, without user"),
    ("an issuer without a host", CORP_URL, "url: https:///login\n", "issuers[4].url", "https, without user"),
    ("an issuer that looks like another", CORP_URL, "url: https://login.асme.internal\n", "issuers[4].url", "https, without user"),
    ("an issuer without an address", CORP_URL, "\n", "issuers[4].url", "is missing"),
    ("keys without TLS", CORP_KEYS, "jwks_url: http://login.acme.internal/keys", "issuers[4].jwks_url", "https, without user"),
    ("keys from a file", CORP_KEYS, "jwks_url: file:///etc/passwd", "issuers[4].jwks_url", "https, without user"),
    ("a kind in upper case, of an issuer that needs no url", "kind: github_actions", "kind: GITHUB_ACTIONS", "issuers[0].kind", "did you mean `github_actions`?"),
    ("a kind of issuer that nobody knows", "kind: oidc", "kind: saml", "issuers[4].kind", "none of those known"),
    ("a signature that is none", "[ES256]", "[none]", "issuers[4].algorithms[0]", "none of those known"),
    ("a signature with a shared secret", "[ES256]", "[ES256, HS256]", "issuers[4].algorithms[1]", "none of those known"),
    ("a leeway of an hour", "leeway: 10s", "leeway: 1h", "issuers[4].leeway", "between 0s and 300s"),
    ("tokens that are a year old", "max_age: 5m", "max_age: 365days", "issuers[4].max_age", "between 60s and 86400s"),
    ("no audience", "[corp-to-p8broker]", "[]", "issuers[4].audiences", "is empty"),
    ("an audience with a space", "[corp-to-p8broker]", r#"["a b"]"#, "issuers[4].audiences[0]", "not an audience"),
    ("an issuer whose name is a path", "name: corp", "name: ../corp", "issuers[4].name", "is not a name"),
    ("a power that nobody has", "[administer, custody,", "[administer, rule,", "operators[0].powers[1]", "none of those known"),
    ("an operator without powers", "    powers: [author_policies]\n", "    powers: []\n", "operators[1].powers", "is empty"),
    ("a confined operator with another power", "    powers: [author_policies]\n", "    powers: [author_policies, revoke]\n", "operators[1].app_groups", "confines author_policies alone"),
    ("an operator who is everybody", "ns/games/sa/lead-* }", "* }", "operators[1].clients[0].spiffe", "matches too much"),
];

#[rustfmt::skip]
pub(super) const OF_STATE: &[Row] = &[
    ("GitHub without an owner", GITHUB, "{ ref: refs/heads/main }", "policies[0].clients[2].oidc", "GitHub signs for everyone"),
    ("any repository of GitHub's", GITHUB, r#"{ sub: "repo:*" }"#, "policies[0].clients[2].oidc", "GitHub signs for everyone"),
    ("a repository of any owner", GITHUB, r#"{ repository: "*/bot" }"#, "policies[0].clients[2].oidc", "GitHub signs for everyone"),
    ("owners whose ids begin alike", GITHUB, r#"{ repository_owner_id: "4*" }"#, "policies[0].clients[2].oidc", "GitHub signs for everyone"),
    ("one owner, or any", GITHUB, r#"{ repository: [acme/bot, "*/bot"] }"#, "policies[0].clients[2].oidc", "GitHub signs for everyone"),
    ("GitLab without a project", "{ project_path: acme/bot, ref_protected: true }", "{ ref_protected: true }", "policies[0].clients[3].oidc", "GitLab signs for everyone"),
    ("Kubernetes without a namespace", CLUSTER, "system:serviceaccount:*:default", "policies[0].clients[4].oidc", "name the namespace"),
    ("Kubernetes by a namespace that is begun", CLUSTER, "system:serviceaccount:c*:default", "policies[0].clients[4].oidc", "name the namespace"),
    ("a ceiling whose only callers are everybody at GitHub", r#"clients: [{ dns: "*.ci.acme.internal" }]"#, r#"clients: [{ oidc: { issuer: github, subject: "repo:*" } }]"#, "ceilings[1].clients[0].oidc", "GitHub signs for everyone"),
    ("an operator who is everybody at GitHub", "[{ spiffe: spiffe://acme.internal/ns/games/sa/lead-* }]", "[{ oidc: { issuer: github, claims: { actor: root } } }]", "operators[1].clients[0].oidc", "GitHub signs for everyone"),
    ("an issuer that is not there", "{ issuer: corp, subject: release-bot }", "{ issuer: nobody, subject: release-bot }", "policies[0].clients[5].oidc.issuer", "there is no issuer `nobody`"),
    ("an issuer that is not there in a ceiling", "[github, gitlab, cluster, fleet, corp]", "[github, nobody]", "ceilings[1].issuers[1]", "there is no issuer `nobody`"),
    ("an issuer with the address of another", "url: https://k8s.acme.internal", "url: https://login.acme.internal", "issuers[2].url|issuers[4].url", "is the url of issuer `corp`, too"),
    ("an operator confined to a group that is not there", "    powers: [author_policies]\n    app_groups: [games]", "    powers: [author_policies]\n    app_groups: [toys]", "operators[1].app_groups[0]", "there is no app group `toys`"),
];

/// The honest document, where `corp` vouches for more than one company and its client is meant by this alone.
fn only_by(client: &str) -> String {
    let issuer = "    claims: { hd: acme.internal, tier: [gold, silver] }\n";
    assert!(HONEST.contains(issuer) && HONEST.matches(CORP).count() == 1, "as the honest document has them");
    HONEST.replace(issuer, "").replace(CORP, client)
}

/// Patterns over an issuer that says nothing of whose tokens it signs.
pub(super) fn whole() -> Vec<Hostile> {
    let rows = [
        ("a subject of which the first part is written out", r#"subject: "user:*""#),
        ("any URL as a subject", r#"subject: "https://*/*""#),
        ("any SPIFFE ID as a subject", r#"subject: "spiffe://*/*/*""#),
        ("a subject that goes on with nothing", r#"subject: "user:""#),
        ("whoever has an address", r#"claims: { email_verified: "true" }"#),
        ("whoever has an address or not", r#"claims: { email_verified: ["true", "False"] }"#),
        ("one subject, or any URL", r#"claims: { sub: [release-bot, "https://*/*"] }"#),
    ];
    let path = "policies[0].clients[5].oidc";
    let row = |(name, client)| a_whole(name, only_by(client), path, "more than the first part", Told::ByTheBroker);
    rows.into_iter().map(row).collect()
}

/// The same with patterns that say it.
pub(super) fn honest() -> Vec<String> {
    let clients = [
        CORP,
        r#"subject: "release-*""#,
        r#"subject: "https://login.acme.internal/bots/*""#,
        r#"subject: "*@acme.internal""#,
        r#"claims: { email_verified: "true", hd: acme.internal }"#,
        r#"subject: "spiffe://*/ns/release/*""#,
    ];
    clients.map(only_by).to_vec()
}
