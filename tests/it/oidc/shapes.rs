//! Tokens as real issuers make them, with made-up values.

use p8broker::domain::glob::ClaimGlob;
use serde_json::json;

use super::forge::{IssuerKey, jwks_of};
use super::provider::{DISCOVERY, JWKS, answer, json_answer};
use super::*;

fn only(issuer: &mut Issuer, claim: &str, glob: &str) {
    issuer.claims.insert(claim.to_owned(), vec![ClaimGlob::parse(glob).unwrap()]);
}

/// A projected service account token, from a cluster whose discovery asks for a token and names the API server's address.
#[tokio::test]
async fn a_kubernetes_service_account_is_a_client() {
    let key = IssuerKey::rsa("5q1ZxV8tT2mC0bH7yXn3kR4uJ6wP9sLdAeFgIhKjMoQ");
    let provider = Provider::start(&[&key]).await;
    let jwks = jwks_of(&[&key]).to_string();
    provider.set("/openid/v1/jwks", answer("200 OK", &[("content-type", "application/jwk-set+json")], jwks));
    let mut document = provider.discovery();
    document["jwks_uri"] = json!(format!("{}/openid/v1/jwks", provider.url));
    provider.set(DISCOVERY, json_answer(&document));
    let token_file = provider.dir.path().join("token");
    std::fs::write(&token_file, "first.token.file\n").unwrap();
    let mut config = settings(&provider);
    config.hosts[0].bearer_file = Some(token_file.clone());
    let mut issuer = issuer(IssuerKind::Kubernetes, &provider.url, IssuerKeys::Discovery);
    issuer.subject = Some(ClaimGlob::parse("system:serviceaccount:ci:*").unwrap());
    let world = World::with(config, issuer);
    let token = key.token_with(
        &json!({ "alg": "RS256", "kid": key.kid }),
        &json!({
            "aud": [AUDIENCE],
            "exp": NOW + 3607,
            "iat": NOW,
            "iss": provider.url,
            "jti": "3f0b6d2e-1c55-4d0a-9d5e-0a3b7f6a9c11",
            "kubernetes.io": {
                "namespace": "ci",
                "node": { "name": "node-1", "uid": "b1d5f9a2-7e61-4a5e-8a58-2d1f0c9e4b77" },
                "pod": { "name": "release-bot-7c9d8", "uid": "0d9f1a35-3f3e-4b5b-9b0e-5f0f6e3a2c10" },
                "serviceaccount": { "name": "release-bot", "uid": "7a6b2c1d-90ab-4cde-8f01-23456789abcd" },
                "warnafter": NOW + 3607,
            },
            "nbf": NOW,
            "sub": "system:serviceaccount:ci:release-bot",
        }),
    );
    let bearer = world.verify(&token).await.unwrap();
    assert_eq!(bearer.client.as_str(), "oidc:acme:system:serviceaccount:ci:release-bot");
    assert_eq!(bearer.vouched.claims.values("/kubernetes.io/namespace"), ["ci"]);
    assert_eq!(bearer.vouched.expires_at, NOW + 3601, "older than an hour it is valid no more");
    assert!(bearer.identity.contains("/kubernetes.io/serviceaccount/uid 7a6b2c1d-90ab-4cde-8f01-23456789abcd"));
    // The token for the API server is read anew for every fetch, and sent with it.
    std::fs::write(&token_file, "second.token.file\n").unwrap();
    world.advance(3600);
    assert_eq!(world.reason(&world.token(&key)).await, "BEARER_CLAIMS");
    crate::harness::eventually("the keys are fetched again", async || provider.heads().len() == 4).await;
    let heads = provider.heads();
    let version = concat!("user-agent: p8broker/", env!("CARGO_PKG_VERSION"), "\r\n");
    assert!(heads.iter().all(|head| head.contains(version)), "{heads:?}");
    for (head, wanted) in heads.iter().zip(["first", "first", "second", "second"]) {
        assert!(head.contains(&format!("authorization: Bearer {wanted}.token.file\r\n")), "{head}");
    }
}

#[tokio::test]
async fn a_workflow_of_github_actions_is_a_client() {
    let key = IssuerKey::rsa("38826b17-6a30-5f9b-b169-8beb8202f723");
    let provider = Provider::start(&[&key]).await;
    let url = IssuerKind::GithubActions.default_url().unwrap();
    let mut issuer = issuer(IssuerKind::GithubActions, url, IssuerKeys::JwksUrl(provider.jwks_url()));
    only(&mut issuer, "repository_owner_id", "4242424");
    let world = World::with(settings(&provider), issuer);
    let sha = "9f8e7d6c5b4a39281706f5e4d3c2b1a098765432";
    let payload = json!({
        "jti": "2b1b5f0e-6f0c-4cc5-8f1f-1a2b3c4d5e6f",
        "sub": "repo:acme/review-bot:ref:refs/heads/main",
        "aud": AUDIENCE,
        "ref": "refs/heads/main",
        "sha": sha,
        "repository": "acme/review-bot",
        "repository_owner": "acme",
        "repository_owner_id": "4242424",
        "run_id": "9876543210",
        "run_number": "17",
        "run_attempt": "1",
        "repository_visibility": "private",
        "repository_id": "123456789",
        "actor_id": "1234567",
        "actor": "octo-dev",
        "workflow": "release",
        "head_ref": "",
        "base_ref": "",
        "event_name": "push",
        "ref_protected": "true",
        "ref_type": "branch",
        "workflow_ref": "acme/review-bot/.github/workflows/release.yml@refs/heads/main",
        "workflow_sha": sha,
        "job_workflow_ref": "acme/review-bot/.github/workflows/release.yml@refs/heads/main",
        "job_workflow_sha": sha,
        "runner_environment": "github-hosted",
        "iss": url,
        "nbf": NOW - 600,
        "exp": NOW + 300,
        "iat": NOW,
    });
    let header = json!({ "typ": "JWT", "alg": "RS256", "x5t": "ykNaY4qM_ta4k2TgZOCEYLkcYlA", "kid": key.kid });
    let bearer = world.verify(&key.token_with(&header, &payload)).await.unwrap();
    assert_eq!(bearer.client.as_str(), "oidc:acme:repo:acme/review-bot:ref:refs/heads/main");
    for fact in ["repository_id 123456789", "repository_owner_id 4242424", "run_id 9876543210", "actor_id 1234567", sha]
    {
        assert!(bearer.identity.contains(fact), "{}", bearer.identity);
    }
    assert_eq!(provider.requests(DISCOVERY), 0);
    let mut stranger = payload;
    stranger["repository_owner_id"] = json!("666");
    assert_eq!(world.reason(&key.token_with(&header, &stranger)).await, "BEARER_CLAIMS");
}

#[tokio::test]
async fn a_job_of_gitlab_ci_is_a_client() {
    let key = IssuerKey::rsa("4i3sFE7sxqNPOT7FdvcGA1ZVGGI_r-tsDXnEuYT4ZqE");
    let provider = Provider::start(&[&key]).await;
    let url = IssuerKind::GitlabCi.default_url().unwrap();
    let mut issuer = issuer(IssuerKind::GitlabCi, url, IssuerKeys::JwksUrl(provider.jwks_url()));
    only(&mut issuer, "project_id", "22");
    let world = World::with(settings(&provider), issuer);
    let payload = json!({
        "namespace_id": "72",
        "namespace_path": "acme",
        "project_id": "22",
        "project_path": "acme/review-bot",
        "user_id": "1",
        "user_login": "dev",
        "user_email": "dev@acme.example",
        "user_access_level": "developer",
        "user_identities": [{ "provider": "saml", "extern_uid": "11111" }],
        "pipeline_id": "574",
        "pipeline_source": "push",
        "job_id": "302",
        "ref": "main",
        "ref_type": "branch",
        "ref_path": "refs/heads/main",
        "ref_protected": "true",
        "groups_direct": ["acme/release"],
        "environment": "production",
        "environment_protected": "true",
        "deployment_tier": "production",
        "runner_id": 1,
        "runner_environment": "self-hosted",
        "sha": "714a629c0b401fdce83e847fc9589983fc6f46bc",
        "project_visibility": "private",
        "ci_config_ref_uri": "gitlab.com/acme/review-bot//.gitlab-ci.yml@refs/heads/main",
        "ci_config_sha": "714a629c0b401fdce83e847fc9589983fc6f46bc",
        "jti": "235b3a54-b797-45c7-ae9a-f72d7bc6ef5b",
        "iss": url,
        "iat": NOW,
        "nbf": NOW - 5,
        "exp": NOW + 3600,
        "sub": "project_path:acme/review-bot:ref_type:branch:ref:main",
        "aud": AUDIENCE,
    });
    let bearer = world.verify(&key.token(&payload)).await.unwrap();
    assert_eq!(bearer.client.as_str(), "oidc:acme:project_path:acme/review-bot:ref_type:branch:ref:main");
    assert_eq!(bearer.vouched.claims.values("groups_direct"), ["acme/release"]);
    assert!(bearer.identity.contains("project_id 22") && bearer.identity.contains("job_id 302"), "{}", bearer.identity);
}

/// An access token (RFC 9068) of a provider in a company, with every algorithm that is accepted.
#[tokio::test]
async fn an_access_token_of_any_provider_is_one_with_every_algorithm() {
    let keys = [IssuerKey::p256("es"), IssuerKey::p384("es3"), IssuerKey::ed25519("ed"), IssuerKey::rsa("rs")];
    let provider = Provider::start(&keys.each_ref()).await;
    let world = World::of(&provider);
    world.change(all_algorithms);
    let mut payload = world.payload();
    payload["aud"] = json!(["account", AUDIENCE]);
    payload["azp"] = json!("release-pipeline");
    payload["scope"] = json!("openid p8");
    payload["exp"] = json!(NOW as f64 + 300.5);
    for (key, algorithms) in keys.iter().zip([&["ES256"][..], &["ES384"], &["EdDSA"], &["RS256", "RS512", "PS256"]]) {
        for algorithm in algorithms {
            for kind in ["at+jwt", "application/at+jwt", "JWT", "jwt"] {
                let header = json!({ "alg": algorithm, "typ": kind, "kid": key.kid });
                let bearer = world.verify(&key.token_with(&header, &payload)).await.unwrap();
                assert_eq!(bearer.client.as_str(), "oidc:acme:release-bot", "{header}");
                assert!(bearer.identity.contains("azp release-pipeline"), "{}", bearer.identity);
            }
        }
    }
    assert_eq!((provider.requests(DISCOVERY), provider.requests(JWKS)), (1, 1));
}

#[tokio::test]
async fn pinned_keys_need_no_network() {
    let key = IssuerKey::p256("pinned");
    let pinned = IssuerKeys::Pinned(jwks_of(&[&key]).to_string());
    let pinned = issuer(IssuerKind::Oidc, "https://idp.acme.internal", pinned);
    assert_eq!(p8broker::identity::oidc::wrong_keys(&pinned), None);
    let world = World::with(OidcConfig::default(), pinned);
    world.verify(&world.token(&key)).await.unwrap();
    world.advance(30 * 86_400);
    world.verify(&world.token(&key)).await.unwrap();
    assert_eq!(world.reason(&world.token(&IssuerKey::p256("other"))).await, "BEARER_KEY_UNKNOWN");
    // What can't be keys is the operator's mistake, not the caller's.
    for bad in ["", "[]", r#"{"keys":1}"#, r#"{"keys":[],"keys":[]}"#] {
        world.change(|issuer| issuer.keys = IssuerKeys::Pinned(bad.to_owned()));
        assert!(p8broker::identity::oidc::wrong_keys(&world.trusted().unwrap()).is_some(), "{bad}");
        assert_eq!(world.reason(&world.token(&key)).await, "ISSUER_UNAVAILABLE", "{bad}");
    }
}

#[tokio::test]
async fn the_facts_for_the_audit_are_bounded_and_hold_nothing_of_the_token() {
    let key = IssuerKey::p256("ec");
    let provider = Provider::start(&[&key]).await;
    let world = World::of(&provider);
    let mut payload = world.payload();
    payload["azp"] = json!("line\nlevel=INFO \u{202e}".repeat(40));
    payload["client_id"] = json!(vec!["x".repeat(1000); 5]);
    let token = key.token(&payload);
    let identity = world.verify(&token).await.unwrap().identity;
    assert!(identity.len() <= 900 && identity.is_ascii() | identity.contains('…'), "{identity}");
    assert!(!identity.contains('\n') && !identity.contains('\u{202e}'), "{identity}");
    let signed = token.rsplit_once('.').unwrap().0;
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, signed.as_bytes());
    assert!(identity.contains(&data_encoding::HEXLOWER.encode(digest.as_ref())), "{identity}");
    assert!(token.split('.').all(|part| !identity.contains(part)), "{identity}");
}
