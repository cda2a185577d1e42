//! What a fetch puts up with, and where it never goes.

use std::time::Duration;

use serde_json::json;

use super::forge::{IssuerKey, jwks, jwks_of};
use super::provider::{Answer, DISCOVERY, JWKS, answer, json_answer};
use super::*;

const JSON: (&str, &str) = ("content-type", "application/json");

fn raw(text: &str) -> Answer {
    Answer::Bytes(text.as_bytes().to_vec())
}

/// Answers that no keys come out of.
fn bad_answers(good: &str) -> Vec<(&'static str, Answer)> {
    let ok = |headers: &[(&str, &str)], body: &str| answer("200 OK", headers, body);
    let chunk = format!("{:x}\r\n{}\r\n", 65_536, " ".repeat(65_536));
    let chunked = format!("HTTP/1.1 200 OK\r\n{}: {}\r\ntransfer-encoding: chunked\r\n\r\n", JSON.0, JSON.1);
    let many: String = (0..100).map(|n| format!("x-{n}: y\r\n")).collect();
    vec![
        ("301", answer("301 Moved Permanently", &[JSON, ("location", "/elsewhere")], good)),
        ("302", answer("302 Found", &[JSON, ("location", "/elsewhere")], good)),
        ("303", answer("303 See Other", &[JSON, ("location", "/elsewhere")], good)),
        ("304", answer("304 Not Modified", &[JSON], "")),
        ("307", answer("307 Temporary Redirect", &[JSON, ("location", "/elsewhere")], good)),
        ("308", answer("308 Permanent Redirect", &[JSON, ("location", "/elsewhere")], good)),
        ("201", answer("201 Created", &[JSON], good)),
        ("204", answer("204 No Content", &[JSON], "")),
        ("401", answer("401 Unauthorized", &[JSON], good)),
        ("404", answer("404 Not Found", &[JSON], good)),
        ("500", answer("500 Internal Server Error", &[JSON], good)),
        ("503", answer("503 Service Unavailable", &[JSON, ("retry-after", "0")], good)),
        ("html", ok(&[("content-type", "text/html")], good)),
        ("no type", ok(&[], good)),
        ("javascript", ok(&[("content-type", "application/javascript")], good)),
        ("compressed", ok(&[JSON, ("content-encoding", "gzip")], good)),
        ("a page", ok(&[JSON], "<html></html>")),
        ("empty", ok(&[JSON], "")),
        ("a list", ok(&[JSON], &format!("[{good}]"))),
        ("null", ok(&[JSON], "null")),
        ("an object", ok(&[JSON], "{}")),
        ("cut short", ok(&[JSON], &good[..good.len() - 1])),
        ("two objects", ok(&[JSON], &format!("{good}{good}"))),
        ("repeated members", ok(&[JSON], &format!("{{\"x\":1,\"x\":1,{}", &good[1..]))),
        ("deep", ok(&[JSON], &format!("{{\"x\":{}{}}}", "[".repeat(200), "]".repeat(200)))),
        ("huge", ok(&[JSON], &format!("{good}{}", " ".repeat(256 * 1024)))),
        ("huge in chunks", raw(&format!("{chunked}{}", chunk.repeat(20)))),
        ("huge head", ok(&[JSON, ("x-long", &"x".repeat(64 * 1024))], good)),
        ("many headers", raw(&format!("HTTP/1.1 200 OK\r\n{}: {}\r\n{many}\r\n{good}", JSON.0, JSON.1))),
        (
            "two lengths",
            raw(&format!(
                "HTTP/1.1 200 OK\r\n{}: {}\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n{good}",
                JSON.0, JSON.1
            )),
        ),
        (
            "fewer bytes",
            raw(&format!("HTTP/1.1 200 OK\r\n{}: {}\r\ncontent-length: 90000\r\n\r\n{good}", JSON.0, JSON.1)),
        ),
        ("http/0.9", raw(good)),
        ("another protocol", raw("SSH-2.0-OpenSSH_9.9\r\n")),
        ("nothing", Answer::Close),
    ]
}

#[tokio::test]
async fn answers_that_are_no_keys_are_refused_and_the_next_good_one_taken() {
    let key = IssuerKey::p256("key");
    for path in [DISCOVERY, JWKS] {
        let provider = Provider::start(&[&key]).await;
        let world = World::of(&provider);
        let good = if path == JWKS { jwks_of(&[&key]) } else { provider.discovery() };
        for (failed, (name, bad)) in (1..).zip(bad_answers(&good.to_string())) {
            provider.set(path, bad);
            assert_eq!(world.reason(&world.token(&key)).await, "ISSUER_UNAVAILABLE", "{path} {name}");
            assert_eq!((world.fetches("failed"), world.fetches("ok")), (failed, 0), "{path} {name}");
            world.advance(30);
        }
        assert_eq!(provider.requests("/elsewhere"), 0);
        provider.set(path, json_answer(&good));
        world.verify(&world.token(&key)).await.unwrap();
    }
}

#[tokio::test]
async fn a_set_of_too_many_keys_is_refused_and_one_with_strange_keys_used() {
    let key = IssuerKey::p256("key");
    let provider = Provider::start(&[&key]).await;
    let world = World::of(&provider);
    provider.set(JWKS, json_answer(&jwks(&vec![key.jwk(); 101])));
    assert_eq!(world.reason(&world.token(&key)).await, "ISSUER_UNAVAILABLE");
    world.advance(30);
    let strange = [json!({}), json!({ "kty": "oct", "k": "AAAA", "kid": "key" }), json!({ "kty": 7 }), key.jwk()];
    provider.set(JWKS, json_answer(&jwks(&strange)));
    world.verify(&world.token(&key)).await.unwrap();
}

#[tokio::test]
async fn a_slow_issuer_is_given_up_and_does_not_hold_callers() {
    let key = IssuerKey::p256("key");
    for (path, slow) in [(DISCOVERY, Answer::Never), (JWKS, Answer::Never), (JWKS, Answer::Drip)] {
        let provider = Provider::start(&[&key]).await;
        provider.set(path, slow);
        let config = OidcConfig { fetch_timeout_s: 1, ..settings(&provider) };
        let world = World::with(config, issuer_of(&provider));
        let answer = tokio::time::timeout(Duration::from_secs(8), world.verify(&world.token(&key))).await;
        assert_eq!(answer.expect("it ends").err(), Some(BearerError::IssuerUnavailable), "{path}");
        assert_eq!(world.fetches("failed"), 1);
    }
}

#[tokio::test]
async fn a_discovery_document_of_somebody_else_is_refused() {
    let key = IssuerKey::p256("key");
    let provider = Provider::start(&[&key]).await;
    let world = World::of(&provider);
    let with = |name: &str, value: Value| {
        let mut document = provider.discovery();
        document[name] = value;
        document
    };
    let url = &provider.url;
    for (name, document) in [
        ("another issuer", with("issuer", json!("https://evil.example"))),
        ("a slash more", with("issuer", json!(format!("{url}/")))),
        ("upper case", with("issuer", json!(url.to_uppercase()))),
        ("no issuer", with("issuer", Value::Null)),
        ("a list of issuers", with("issuer", json!([url]))),
        ("no address", with("jwks_uri", Value::Null)),
        ("a relative address", with("jwks_uri", json!(JWKS))),
        ("no TLS", with("jwks_uri", json!(provider.jwks_url().replace("https", "http")))),
        ("a file", with("jwks_uri", json!("file:///etc/passwd"))),
        ("a user", with("jwks_uri", json!(format!("https://x@127.0.0.1:{}{JWKS}", provider.port)))),
        ("a fragment", with("jwks_uri", json!(format!("{}#x", provider.jwks_url())))),
        ("inline keys", with("jwks_uri", jwks_of(&[&key]))),
    ] {
        provider.set(DISCOVERY, json_answer(&document));
        assert_eq!(world.reason(&world.token(&key)).await, "ISSUER_UNAVAILABLE", "{name}");
        world.advance(30);
    }
    assert_eq!(provider.requests(JWKS), 0);
    provider.set(DISCOVERY, json_answer(&provider.discovery()));
    world.verify(&world.token(&key)).await.unwrap();
}

/// INV-FETCH-1: whatever the spelling, nothing inside is connected to that the settings do not name.
#[tokio::test]
async fn inv_fetch_1_hosts_inside_are_not_connected_to_unless_named() {
    let key = IssuerKey::p256("key");
    let victim = Provider::start(&[&key]).await;
    let port = victim.port;
    let spellings = [
        format!("https://127.0.0.1:{port}/jwks"),
        format!("https://localhost:{port}/jwks"),
        format!("https://LOCALHOST:{port}/jwks"),
        format!("https://[::1]:{port}/jwks"),
        format!("https://[::ffff:127.0.0.1]:{port}/jwks"),
        format!("https://[64:ff9b::127.0.0.1]:{port}/jwks"),
        format!("https://[2002:7f00:1::]:{port}/jwks"),
        format!("https://0.0.0.0:{port}/jwks"),
        format!("https://[::]:{port}/jwks"),
        format!("https://127.1:{port}/jwks"),
        format!("https://2130706433:{port}/jwks"),
        format!("https://0x7f000001:{port}/jwks"),
        format!("https://0177.0.0.1:{port}/jwks"),
        format!("https://127.255.255.254:{port}/jwks"),
        format!("http://127.0.0.1:{port}/jwks"),
        "https://169.254.169.254/latest/meta-data".to_owned(),
        "https://[fd00:ec2::254]/latest/meta-data".to_owned(),
        "https://10.0.0.1/jwks".to_owned(),
        "https://100.64.0.1/jwks".to_owned(),
        "https://192.168.0.1/jwks".to_owned(),
        "https://[fe80::1]/jwks".to_owned(),
        "https://224.0.0.1/jwks".to_owned(),
    ];
    // By itself; and named by the document of a provider that may be asked.
    let provider = Provider::start(&[&key]).await;
    for url in &spellings {
        for (config, issuer) in [
            (OidcConfig::default(), issuer(IssuerKind::Oidc, "https://acme.example", IssuerKeys::JwksUrl(url.clone()))),
            (settings(&provider), issuer_of(&provider)),
        ] {
            let mut document = provider.discovery();
            document["jwks_uri"] = json!(url);
            provider.set(DISCOVERY, json_answer(&document));
            let world = World::with(config, issuer);
            let answer = tokio::time::timeout(Duration::from_secs(3), world.verify(&world.token(&key))).await;
            assert_eq!(answer.expect("at once").err(), Some(BearerError::IssuerUnavailable), "{url}");
            assert_eq!(world.fetches("failed"), 1, "{url}");
        }
    }
    assert_eq!(victim.connections(), 0);
    // Named, but not as private; named with another port; named.
    let issuer = issuer(IssuerKind::Oidc, "https://acme.example", IssuerKeys::JwksUrl(victim.jwks_url()));
    let mut config = settings(&victim);
    config.hosts[0].private = false;
    let world = World::with(config, issuer.clone());
    assert_eq!(world.reason(&world.token(&key)).await, "ISSUER_UNAVAILABLE");
    let mut config = settings(&victim);
    config.hosts[0].name = format!("127.0.0.1:{}", provider.port);
    let world = World::with(config, issuer.clone());
    assert_eq!(world.reason(&world.token(&key)).await, "ISSUER_UNAVAILABLE");
    assert_eq!(victim.connections(), 0);
    let world = World::with(settings(&victim), issuer);
    world.verify(&world.token(&key)).await.unwrap();
    assert_eq!(victim.connections(), 1);
}

#[tokio::test]
async fn a_host_must_show_a_certificate_of_its_ca_for_its_name() {
    let key = IssuerKey::p256("key");
    let (provider, other) = (Provider::start(&[&key]).await, Provider::start(&[&key]).await);
    let refused = async |change: &dyn Fn(&mut OidcHost), url: &str| {
        let mut config = settings(&provider);
        change(&mut config.hosts[0]);
        let world =
            World::with(config, issuer(IssuerKind::Oidc, "https://acme.example", IssuerKeys::JwksUrl(url.to_owned())));
        world.reason(&world.token(&key)).await == "ISSUER_UNAVAILABLE"
    };
    let url = provider.jwks_url();
    assert!(!refused(&|_| (), &url).await);
    assert!(refused(&|host| host.ca_file = Some(other.ca()), &url).await, "another CA");
    assert!(refused(&|host| host.ca_file = None, &url).await, "the CAs of the web");
    let by_name = |host: &mut OidcHost| host.name = format!("localhost:{}", provider.port);
    assert!(refused(&by_name, &format!("https://localhost:{}{JWKS}", provider.port)).await, "another name");
    // One request came through: the first.
    assert_eq!(provider.requests(JWKS), 1);
}

#[tokio::test]
async fn files_that_cannot_be_used_are_found_at_the_start_and_read_at_every_fetch() {
    let key = IssuerKey::p256("key");
    let provider = Provider::start(&[&key]).await;
    let file = provider.dir.path().join("file");
    let clock = || Arc::new(ManualClock::at(UnixMillis::from_seconds(NOW))) as Arc<dyn Clock>;
    let start = |config: &OidcConfig| Verifier::new(config, clock(), Metrics::new().unwrap()).map(drop);
    let (mut by_ca, mut by_token) = (settings(&provider), settings(&provider));
    by_ca.hosts[0].ca_file = Some(file.clone());
    by_token.hosts[0].bearer_file = Some(file.clone());
    for content in
        [None, Some(""), Some("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"), Some("a\nb")]
    {
        if let Some(content) = content {
            std::fs::write(&file, content).unwrap();
        }
        let error = start(&by_ca).unwrap_err().to_string();
        assert!(error.contains(&file.display().to_string()), "{error}");
        let error = start(&by_token).unwrap_err().to_string();
        assert!(error.contains(&file.display().to_string()) && !error.contains("AAAA"), "{error}");
    }
    // A CA that changes while serving.
    std::fs::copy(provider.ca(), &file).unwrap();
    let world = World::with(by_ca, issuer_of(&provider));
    std::fs::write(&file, "no CA any more").unwrap();
    assert_eq!(world.reason(&world.token(&key)).await, "ISSUER_UNAVAILABLE");
    std::fs::copy(provider.ca(), &file).unwrap();
    world.advance(30);
    world.verify(&world.token(&key)).await.unwrap();
}
