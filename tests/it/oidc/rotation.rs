//! Keys that come and go: rotation, outages, and how often an issuer is asked.

use serde_json::json;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::forge::{IssuerKey, jwks_of};
use super::provider::{Answer, DISCOVERY, JWKS, json_answer};
use super::*;
use crate::harness::eventually;

fn held(answer: Answer) -> (watch::Sender<bool>, Answer) {
    let Answer::Bytes(bytes) = answer else { panic!("only bytes are held") };
    let (release, released) = watch::channel(false);
    (release, Answer::Held(released, bytes))
}

#[tokio::test]
async fn a_new_key_is_picked_up_and_the_cooldown_respected() {
    let (old, new) = (IssuerKey::p256("old"), IssuerKey::p256("new"));
    let provider = Provider::start(&[&old]).await;
    let world = World::of(&provider);
    world.verify(&world.token(&old)).await.unwrap();
    provider.publish(&[&old, &new]);
    assert_eq!(world.reason(&world.token(&new)).await, "BEARER_KEY_UNKNOWN");
    world.advance(29);
    assert_eq!(world.reason(&world.token(&new)).await, "BEARER_KEY_UNKNOWN");
    assert_eq!(provider.requests(JWKS), 1);
    world.advance(1);
    world.verify(&world.token(&new)).await.unwrap();
    world.verify(&world.token(&old)).await.unwrap();
    assert_eq!((provider.requests(JWKS), world.fetches("ok")), (2, 2));
    // The old one goes: found at the next refresh, which nobody waits for.
    provider.publish(&[&new]);
    world.advance(3600);
    eventually("the key that was taken back is refused", async || {
        world.reason(&world.token(&old)).await == "BEARER_KEY_UNKNOWN"
    })
    .await;
    world.verify(&world.token(&new)).await.unwrap();
}

#[tokio::test]
async fn inv_keys_2_unknown_kids_cause_no_flood() {
    let key = IssuerKey::p256("key");
    let provider = Provider::start(&[&key]).await;
    let world = Arc::new(World::of(&provider));
    world.verify(&world.token(&key)).await.unwrap();
    for round in 1..=5 {
        world.advance(30);
        let mut attacks = JoinSet::new();
        for n in 0..40 {
            let header = json!({ "alg": "ES256", "kid": format!("{round}-{n}") });
            let (world, token) = (Arc::clone(&world), key.token_with(&header, &world.payload()));
            attacks.spawn(async move { world.reason(&token).await });
        }
        let reasons = attacks.join_all().await;
        assert!(reasons.iter().all(|reason| *reason == "BEARER_KEY_UNKNOWN"), "{reasons:?}");
        // Those share a fetch as they come together; and these, one after another, get none.
        for n in 0..5 {
            let header = json!({ "alg": "ES256", "kid": format!("{round}-later-{n}") });
            assert_eq!(world.reason(&key.token_with(&header, &world.payload())).await, "BEARER_KEY_UNKNOWN");
        }
        assert_eq!((provider.requests(JWKS), provider.requests(DISCOVERY)), (1 + round, 1 + round));
        world.verify(&world.token(&key)).await.unwrap();
    }
}

#[tokio::test]
async fn callers_that_wait_share_one_fetch() {
    let key = IssuerKey::p256("key");
    let provider = Provider::start(&[&key]).await;
    let (release, answer) = held(json_answer(&jwks_of(&[&key])));
    provider.set(JWKS, answer);
    let world = Arc::new(World::of(&provider));
    let mut callers = JoinSet::new();
    for n in 0..50 {
        let mut payload = world.payload();
        payload["jti"] = json!(n);
        let (world, token) = (Arc::clone(&world), key.token(&payload));
        callers.spawn(async move { world.verify(&token).await.map(drop) });
    }
    eventually("the keys are asked for", async || provider.requests(JWKS) == 1).await;
    release.send_replace(true);
    assert!(callers.join_all().await.iter().all(Result::is_ok));
    assert_eq!((provider.requests(DISCOVERY), provider.requests(JWKS)), (1, 1));
}

#[tokio::test]
async fn a_fetch_does_not_keep_users_of_known_keys_waiting() {
    let (old, new) = (IssuerKey::p256("old"), IssuerKey::p256("new"));
    let provider = Provider::start(&[&old]).await;
    let world = Arc::new(World::of(&provider));
    world.verify(&world.token(&old)).await.unwrap();
    world.advance(30);
    let (release, answer) = held(json_answer(&jwks_of(&[&old, &new])));
    provider.set(JWKS, answer);
    let mut waiting = JoinSet::new();
    let (theirs, token) = (Arc::clone(&world), world.token(&new));
    waiting.spawn(async move { theirs.verify(&token).await.map(drop) });
    eventually("the keys are asked for", async || provider.requests(JWKS) == 2).await;
    world.verify(&world.token(&old)).await.unwrap();
    // Nor does the refresh of keys that are due.
    world.advance(3600);
    world.verify(&world.token(&old)).await.unwrap();
    assert!(waiting.try_join_next().is_none(), "nothing was released yet");
    release.send_replace(true);
    // The answer comes for whoever waited; by its `exp`, the token is an old one by now.
    assert_eq!(waiting.join_all().await, [Err(BearerError::Expired)]);
    world.verify(&world.token(&new)).await.unwrap();
}

#[tokio::test]
async fn a_caller_that_goes_away_does_not_take_the_fetch_with_it() {
    let key = IssuerKey::p256("key");
    let provider = Provider::start(&[&key]).await;
    let (release, answer) = held(json_answer(&jwks_of(&[&key])));
    provider.set(JWKS, answer);
    let world = Arc::new(World::of(&provider));
    let mut caller = JoinSet::new();
    let (theirs, token) = (Arc::clone(&world), world.token(&key));
    caller.spawn(async move { theirs.verify(&token).await.map(drop) });
    eventually("the keys are asked for", async || provider.requests(JWKS) == 1).await;
    caller.shutdown().await;
    release.send_replace(true);
    world.verify(&world.token(&key)).await.unwrap();
    assert_eq!(provider.requests(JWKS), 1);
}

#[tokio::test]
async fn inv_keys_1_stale_keys_are_used_for_a_bounded_time() {
    let key = IssuerKey::p256("key");
    let provider = Provider::start(&[&key]).await;
    let world = World::of(&provider);
    world.verify(&world.token(&key)).await.unwrap();
    provider.go_away();
    world.advance(3599);
    world.verify(&world.token(&key)).await.unwrap();
    assert!(!world.is_stale() && world.fetches("failed") == 0);
    world.advance(1);
    world.verify(&world.token(&key)).await.unwrap();
    eventually("the keys are known to be stale", async || world.is_stale()).await;
    // A key that is not known can't be known to be unknown.
    assert_eq!(world.reason(&world.token(&IssuerKey::p256("new"))).await, "ISSUER_UNAVAILABLE");
    world.advance(86_400 - 3600 - 1);
    world.verify(&world.token(&key)).await.unwrap();
    world.advance(1);
    assert_eq!(world.reason(&world.token(&key)).await, "ISSUER_UNAVAILABLE");
    world.advance(30);
    assert_eq!(world.reason(&world.token(&key)).await, "ISSUER_UNAVAILABLE");
    assert!(world.is_stale());
    provider.come_back(&[&key]);
    assert_eq!(world.reason(&world.token(&key)).await, "ISSUER_UNAVAILABLE");
    world.advance(30);
    world.verify(&world.token(&key)).await.unwrap();
    assert!(!world.is_stale());
}

#[tokio::test]
async fn an_issuer_that_is_away_from_the_start_is_asked_once_a_cooldown() {
    let key = IssuerKey::p256("key");
    let provider = Provider::start(&[&key]).await;
    provider.go_away();
    let world = World::of(&provider);
    for round in 1..=3 {
        for _ in 0..5 {
            assert_eq!(world.reason(&world.token(&key)).await, "ISSUER_UNAVAILABLE");
        }
        assert_eq!(provider.requests(DISCOVERY), round);
        world.advance(30);
    }
    assert!(!world.is_stale());
    provider.come_back(&[&key]);
    world.verify(&world.token(&key)).await.unwrap();
    assert_eq!((world.fetches("failed"), world.fetches("ok")), (3, 1));
}

#[tokio::test]
async fn inv_keys_1_after_a_long_silence_the_issuer_is_asked_first() {
    let (old, new) = (IssuerKey::p256("old"), IssuerKey::p256("new"));
    let provider = Provider::start(&[&old]).await;
    let world = World::of(&provider);
    world.verify(&world.token(&old)).await.unwrap();
    provider.publish(&[&new]);
    world.advance(7200);
    assert_eq!(world.reason(&world.token(&old)).await, "BEARER_KEY_UNKNOWN");
    world.verify(&world.token(&new)).await.unwrap();
    // Where it is away by then, what it said before is used.
    provider.go_away();
    world.advance(7200);
    world.verify(&world.token(&new)).await.unwrap();
    assert!(world.is_stale());
}

#[tokio::test]
async fn an_issuer_without_kids_can_rotate_too() {
    let nameless = |key: &IssuerKey| {
        let mut jwk = key.jwk();
        jwk.as_object_mut().unwrap().remove("kid");
        jwk
    };
    let (old, new, other) = (IssuerKey::p256(""), IssuerKey::p256(""), IssuerKey::rsa("other"));
    let provider = Provider::start(&[]).await;
    let publish = |keys: &[Value]| provider.set(JWKS, json_answer(&json!({ "keys": keys })));
    publish(&[nameless(&old), other.jwk()]);
    let world = World::of(&provider);
    let header = json!({ "alg": "ES256" });
    world.verify(&old.token_with(&header, &world.payload())).await.unwrap();
    publish(&[nameless(&new), other.jwk()]);
    world.advance(30);
    world.verify(&new.token_with(&header, &world.payload())).await.unwrap();
    world.advance(30);
    assert_eq!(world.reason(&old.token_with(&header, &world.payload())).await, "BEARER_SIGNATURE");
    // Two that fit: there is no saying which, so neither.
    publish(&[nameless(&old), nameless(&new)]);
    world.advance(30);
    assert_eq!(world.reason(&old.token_with(&header, &world.payload())).await, "BEARER_KEY_UNKNOWN");
    assert_eq!(world.reason(&new.token_with(&header, &world.payload())).await, "BEARER_KEY_UNKNOWN");
}

#[tokio::test]
async fn keys_that_share_a_kid_are_told_apart_by_their_signature() {
    let keys = [IssuerKey::rsa("same"), IssuerKey::p256("same"), IssuerKey::p256("same")];
    let provider = Provider::start(&keys.each_ref()).await;
    let world = World::of(&provider);
    for key in &keys {
        world.verify(&world.token(key)).await.unwrap();
    }
    assert_eq!(world.reason(&world.token(&IssuerKey::p256("same"))).await, "BEARER_SIGNATURE");
}

#[tokio::test]
async fn an_issuer_that_publishes_no_key_has_none() {
    let key = IssuerKey::p256("key");
    let provider = Provider::start(&[&key]).await;
    let world = World::of(&provider);
    world.verify(&world.token(&key)).await.unwrap();
    provider.publish(&[]);
    world.advance(7200);
    assert_eq!(world.reason(&world.token(&key)).await, "BEARER_KEY_UNKNOWN");
}

#[tokio::test]
async fn tending_fetches_what_is_due_and_forgets_what_is_not_trusted() {
    let key = IssuerKey::p256("key");
    let provider = Provider::start(&[&key]).await;
    let world = World::of(&provider);
    world.verify(&world.token(&key)).await.unwrap();
    let trusted = world.trusted().unwrap();
    world.advance(3599);
    world.verifier.tend([&*trusted]);
    world.advance(1);
    world.verifier.tend([&*trusted]);
    eventually("the keys are fetched again", async || world.fetches("ok") == 2).await;
    assert!(world.metrics.text().unwrap().contains(r#"jwks_fetches_total{issuer="acme",outcome="ok"} 2"#));
    world.verifier.tend([]);
    assert!(!world.metrics.text().unwrap().contains(r#"issuer="acme""#));
    world.verify(&world.token(&key)).await.unwrap();
    assert_eq!(world.fetches("ok"), 1);
}

#[tokio::test]
async fn a_verifier_that_stops_ends_its_fetches_and_still_knows_its_keys() {
    let key = IssuerKey::p256("key");
    let provider = Provider::start(&[&key]).await;
    let world = Arc::new(World::of(&provider));
    world.verify(&world.token(&key)).await.unwrap();
    provider.set(JWKS, Answer::Never);
    world.advance(3600);
    let mut waiting = JoinSet::new();
    let (theirs, token) = (Arc::clone(&world), world.token(&IssuerKey::p256("new")));
    waiting.spawn(async move { theirs.reason(&token).await });
    eventually("the keys are asked for", async || provider.requests(JWKS) == 2).await;
    world.verifier.stop().await;
    assert_eq!(waiting.join_all().await, ["BEARER_KEY_UNKNOWN"]);
    world.verify(&world.token(&key)).await.unwrap();
}
