//! Verdicts that are kept, and everything that ends them.

use std::collections::BTreeSet;

use p8broker::domain::glob::ClaimGlob;
use p256::ecdsa::Signature;
use p256::elliptic_curve::PrimeField;
use serde_json::json;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::forge::{IssuerKey, b64, jwks_of};
use super::provider::{Answer, JWKS, json_answer};
use super::*;
use crate::harness::eventually;

async fn start() -> (IssuerKey, Provider, World) {
    let key = IssuerKey::p256("key");
    let provider = Provider::start(&[&key]).await;
    let world = World::of(&provider);
    (key, provider, world)
}

#[tokio::test]
async fn a_token_is_verified_once() {
    let (key, provider, world) = start().await;
    let token = world.token(&key);
    let first = world.verify(&token).await.unwrap();
    for _ in 0..10 {
        let again = world.verify(&token).await.unwrap();
        assert!(Arc::ptr_eq(&first.vouched, &again.vouched), "it was verified anew");
        assert_eq!((first.client.as_str(), &first.identity), (again.client.as_str(), &again.identity));
    }
    assert_eq!(provider.requests(JWKS), 1);
    // Another signature of the same token is another token to the cache, and the same one in the audit.
    let (signed, signature) = token.rsplit_once('.').unwrap();
    let signature = Signature::from_slice(&data_encoding::BASE64URL_NOPAD.decode(signature.as_bytes()).unwrap());
    let (r, s) = signature.unwrap().split_scalars();
    let other = Signature::from_scalars(r.to_repr(), (-*s).to_repr()).unwrap();
    let other = world.verify(&format!("{signed}.{}", b64(other.to_bytes()))).await.unwrap();
    assert!(!Arc::ptr_eq(&first.vouched, &other.vouched));
    assert_eq!(first.identity, other.identity);
    // Anything but the whole token is not the token.
    for changed in [format!("{token}A"), token[..token.len() - 1].to_owned(), format!(" {token}")] {
        assert!(world.verify(&changed).await.is_err(), "{changed}");
    }
}

#[tokio::test]
async fn inv_bearer_2_a_verdict_ends_with_the_token() {
    let (key, _provider, world) = start().await;
    let token = world.token(&key);
    world.verify(&token).await.unwrap();
    world.advance(600 + 59);
    world.verify(&token).await.unwrap();
    world.advance(1);
    assert_eq!(world.reason(&token).await, "BEARER_EXPIRED");
    assert_eq!(world.reason(&token).await, "BEARER_EXPIRED");
    let mut payload = world.payload();
    payload["exp"] = json!(world.now() + 100_000);
    let token = key.token(&payload);
    world.verify(&token).await.unwrap();
    world.advance(3600 + 60);
    world.verify(&token).await.unwrap();
    world.advance(1);
    assert_eq!(world.reason(&token).await, "BEARER_TOO_OLD");
}

#[tokio::test]
async fn inv_bearer_2_a_verdict_ends_when_its_issuer_changes() {
    let (key, _provider, world) = start().await;
    let honest = (*world.trusted().unwrap()).clone();
    let token = world.token(&key);
    let glob = |text: &str| ClaimGlob::parse(text).unwrap();
    type Change = fn(&mut Issuer, ClaimGlob);
    let changes: Vec<(&str, Change)> = vec![
        ("BEARER_AUDIENCE", |issuer, _| issuer.audiences = ["other".to_owned()].into()),
        ("BEARER_AUDIENCE", |issuer, _| issuer.audiences = BTreeSet::new()),
        ("BEARER_ALGORITHM", |issuer, _| issuer.algorithms = [Algorithm::Rs256].into()),
        ("BEARER_CLAIMS", |issuer, other| issuer.subject = Some(other)),
        ("BEARER_CLAIMS", |issuer, other| drop(issuer.claims.insert("team".to_owned(), vec![other]))),
        ("BEARER_TOO_OLD", |issuer, _| issuer.max_age_s = -1000),
        ("BEARER_KEY_UNKNOWN", |issuer, _| {
            let other = jwks_of(&[&IssuerKey::p256("other")]);
            issuer.keys = IssuerKeys::Pinned(other.to_string());
        }),
        ("ISSUER_UNAVAILABLE", |issuer, _| {
            issuer.keys = IssuerKeys::JwksUrl("https://127.0.0.1/elsewhere".to_owned());
        }),
        ("BEARER_ISSUER_UNKNOWN", |issuer, _| issuer.url.push('/')),
    ];
    for (reason, change) in changes {
        *world.issuer.lock().unwrap() = Some(Arc::new(honest.clone()));
        world.advance(30);
        world.verify(&token).await.unwrap();
        world.verify(&token).await.unwrap();
        world.change(|issuer| change(issuer, glob("other")));
        assert_eq!(world.reason(&token).await, reason);
    }
    *world.issuer.lock().unwrap() = None;
    assert_eq!(world.reason(&token).await, "BEARER_ISSUER_UNKNOWN");
    // Another record with the same content is the same.
    *world.issuer.lock().unwrap() = Some(Arc::new(honest.clone()));
    world.advance(30);
    let kept = world.verify(&token).await.unwrap();
    *world.issuer.lock().unwrap() = Some(Arc::new(honest));
    assert!(Arc::ptr_eq(&kept.vouched, &world.verify(&token).await.unwrap().vouched));
}

#[tokio::test]
async fn inv_bearer_2_a_verdict_ends_when_its_key_is_taken_back() {
    let (key, provider, world) = start().await;
    let mut payload = world.payload();
    payload["exp"] = json!(NOW + 100_000);
    let token = key.token(&payload);
    world.change(|issuer| issuer.max_age_s = 86_400);
    world.verify(&token).await.unwrap();
    // The same kid, and another key.
    provider.publish(&[&IssuerKey::p256("key")]);
    world.advance(3600);
    eventually("the key is gone", async || world.reason(&token).await == "BEARER_SIGNATURE").await;
    provider.publish(&[&key]);
    world.advance(3600);
    eventually("the key is back", async || world.verify(&token).await.is_ok()).await;
    // And when the issuer is away for too long.
    provider.go_away();
    world.advance(3600);
    world.verify(&token).await.unwrap();
    eventually("the keys are stale", async || world.is_stale()).await;
    world.advance(86_400 - 3 * 3600);
    world.verify(&token).await.unwrap();
    world.advance(3 * 3600);
    assert_eq!(world.reason(&token).await, "ISSUER_UNAVAILABLE");
}

/// RFC 8705, section 3.1.
#[tokio::test]
async fn a_bound_token_is_good_on_its_own_connection_only() {
    let (key, _provider, world) = start().await;
    let (own, other) = (b"certificate".as_slice(), b"another certificate".as_slice());
    let thumbprint = b64(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, own));
    let mut payload = world.payload();
    payload["cnf"] = json!({ "x5t#S256": thumbprint });
    let token = key.token(&payload);
    // Refused first, so that nothing is kept yet; then kept, and asked again each time.
    for _ in 0..2 {
        for wrong in [None, Some(other), Some(&[][..])] {
            assert_eq!(world.verify_from(&token, wrong).await.err(), Some(BearerError::Confirmation), "{wrong:?}");
        }
        world.verify_from(&token, Some(own)).await.unwrap();
    }
    // One that is not bound is good on any.
    let token = world.token(&key);
    for any in [None, Some(own), Some(other)] {
        world.verify_from(&token, any).await.unwrap();
    }
}

#[tokio::test]
async fn refusals_are_not_kept_and_are_counted() {
    let (key, _provider, world) = start().await;
    let mut payload = world.payload();
    payload["nbf"] = json!(NOW + 90);
    let token = key.token(&payload);
    assert_eq!(world.reason(&token).await, "BEARER_NOT_YET_VALID");
    assert_eq!(world.reason("x").await, "BEARER_MALFORMED");
    world.advance(30);
    world.verify(&token).await.unwrap();
    let text = world.metrics.text().unwrap();
    for line in [
        r#"p8broker_bearer_refusals_total{reason="BEARER_NOT_YET_VALID"} 1"#,
        r#"p8broker_bearer_refusals_total{reason="BEARER_MALFORMED"} 1"#,
    ] {
        assert!(text.contains(line), "{text}");
    }
}

#[tokio::test]
async fn an_issuer_that_changes_while_its_keys_are_fetched_vouches_for_nobody() {
    let (key, provider, world) = start().await;
    let Answer::Bytes(bytes) = json_answer(&jwks_of(&[&key])) else { unreachable!() };
    let (release, released) = watch::channel(false);
    provider.set(JWKS, Answer::Held(released, bytes));
    let token = world.token(&key);
    let world = Arc::new(world);
    let mut waiting = JoinSet::new();
    let (theirs, sent) = (Arc::clone(&world), token.clone());
    waiting.spawn(async move { theirs.reason(&sent).await });
    eventually("the keys are asked for", async || provider.requests(JWKS) == 1).await;
    *world.issuer.lock().unwrap() = None;
    release.send_replace(true);
    assert_eq!(waiting.join_all().await, ["ISSUER_CHANGED"]);
    assert_eq!(world.reason(&token).await, "BEARER_ISSUER_UNKNOWN");
}

#[tokio::test]
async fn tending_drops_verdicts_that_are_over() {
    let (key, _provider, world) = start().await;
    let token = world.token(&key);
    let kept = world.verify(&token).await.unwrap();
    let trusted = world.trusted().unwrap();
    world.verifier.tend([&*trusted]);
    assert!(Arc::ptr_eq(&kept.vouched, &world.verify(&token).await.unwrap().vouched));
    world.verifier.tend([]);
    assert!(!Arc::ptr_eq(&kept.vouched, &world.verify(&token).await.unwrap().vouched));
}

#[tokio::test]
async fn the_iss_is_compared_to_the_letter_whatever_the_caller_answers() {
    let (key, provider, world) = start().await;
    let trusted = world.trusted().unwrap();
    let any = |_: &str| Some(Arc::clone(&trusted));
    world.verifier.verify(&world.token(&key), any, None).await.unwrap();
    let mut payload = world.payload();
    payload["iss"] = json!(format!("{}/", provider.url));
    let answer = world.verifier.verify(&key.token(&payload), any, None).await;
    assert_eq!(answer.err(), Some(BearerError::IssuerUnknown));
}
