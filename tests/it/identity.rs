//! Certificates: which are accepted, what they are called, and when that ends.

use std::time::Duration;

use p8broker::client::Target;
use rcgen::{ExtendedKeyUsagePurpose, SanType};
use tonic::Code;

use crate::harness::*;

async fn with_files(broker: &Broker, pki: &Pki, name: &str) -> Result<Client, String> {
    let (cert, key) = pki.files(name);
    let cacert = broker.pki.dir.join("ca.pem");
    let target = Target::certified(broker.grpc().to_owned(), cacert, cert, key);
    target.connect().await.map(Client::new).map_err(|error| error.to_string())
}

fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
}

fn dns(text: &str) -> SanType {
    SanType::DnsName(text.try_into().unwrap())
}

#[tokio::test]
async fn a_certificate_gives_exactly_one_identity_or_none() {
    let mut broker = Broker::start().await;
    let mut operator = broker.as_(OPERATOR).await;
    let by_dns = p8broker::grpc::proto::Policy {
        name: "by-dns".to_owned(),
        clients: vec![p8broker::grpc::proto::ClientPattern {
            pattern: Some(p8broker::grpc::proto::client_pattern::Pattern::Dns("ci-*.acme.internal".to_owned())),
        }],
        ..release_policy()
    };
    operator.apply(policies(vec![by_dns])).await.unwrap();
    let cases: Vec<(&str, Vec<SanType>, Option<&str>)> = vec![
        ("spiffe-and-dns", vec![uri(CLIENT), dns("x.acme.internal")], Some(CLIENT)),
        ("one-dns", vec![dns("ci-1.acme.internal")], Some("dns:ci-1.acme.internal")),
        ("upper-dns", vec![dns("CI-2.ACME.internal")], Some("dns:ci-2.acme.internal")),
        (
            "url-and-dns",
            vec![uri("https://acme.internal/x"), dns("ci-3.acme.internal")],
            Some("dns:ci-3.acme.internal"),
        ),
        ("two-spiffe", vec![uri(CLIENT), uri(STRANGER)], None),
        ("two-spiffe-and-dns", vec![uri(CLIENT), uri(STRANGER), dns("ci-4.acme.internal")], None),
        ("two-dns", vec![dns("ci-5.acme.internal"), dns("ci-6.acme.internal")], None),
        ("no-san", vec![], None),
        ("url-only", vec![uri("https://acme.internal/x")], None),
        ("other-domain", vec![uri("spiffe://evil.internal/ns/ci/sa/release-bot")], None),
        ("other-suffix", vec![dns("ci-7.evil.internal")], None),
        ("suffix-trick", vec![dns("ci-8.notacme.internal")], None),
        ("bad-spiffe", vec![uri("spiffe://acme.internal/a//b")], None),
    ];
    for (name, names, expected) in cases {
        broker.pki.issue(name, names, ExtendedKeyUsagePurpose::ClientAuth, |_| ());
        let answer = with_files(&broker, &broker.pki, name).await.unwrap().issue(ask()).await;
        match expected {
            Some(expected) => {
                let decision = answer.unwrap_or_else(|status| panic!("{name}: {status:?}")).decision_id;
                let events = operator.all_events().await;
                let event = events.iter().find(|event| event.decision_id == decision).unwrap();
                assert_eq!(event.caller, expected, "{name}");
            }
            None => assert_eq!(refused(answer), (Code::Unauthenticated, "IDENTITY_REFUSED".to_owned()), "{name}"),
        }
    }
    broker.stop().await;
}

#[tokio::test]
async fn a_certificate_of_another_ca_or_another_use_is_refused() {
    let mut broker = Broker::start().await;
    let other = Pki::new(&broker.dir.path().join("other"));
    other.issue("client", vec![uri(CLIENT)], ExtendedKeyUsagePurpose::ClientAuth, |_| ());
    broker.pki.issue("server-use", vec![uri(CLIENT)], ExtendedKeyUsagePurpose::ServerAuth, |_| ());
    broker.pki.issue("expired", vec![uri(CLIENT)], ExtendedKeyUsagePurpose::ClientAuth, |params| {
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        params.not_after = rcgen::date_time_ymd(2021, 1, 1);
    });
    for (pki, name) in [(&other, "client"), (&broker.pki, "server-use"), (&broker.pki, "expired")] {
        let answer = match with_files(&broker, pki, name).await {
            Ok(mut client) => client.issue(ask()).await.map(|_| ()).map_err(|status| status.to_string()),
            Err(error) => Err(error),
        };
        assert!(answer.is_err(), "{name} was accepted");
    }
    broker.as_(CLIENT).await.issue(ask()).await.unwrap();
    broker.stop().await;
}

#[tokio::test]
async fn an_open_connection_loses_its_identity_when_the_certificate_expires() {
    let mut broker = Broker::start().await;
    broker.pki.issue("brief", vec![uri(CLIENT)], ExtendedKeyUsagePurpose::ClientAuth, |params| {
        params.not_after = rcgen::date_time_ymd(2030, 1, 1);
    });
    let mut client = with_files(&broker, &broker.pki, "brief").await.unwrap();
    client.issue(ask()).await.unwrap();
    broker.clock.advance(Duration::from_secs(4 * 366 * 86_400));
    assert_eq!(refused(client.issue(ask()).await).1, "IDENTITY_REFUSED");
    broker.stop().await;
}

#[tokio::test]
async fn clients_whose_certificate_is_not_renewed_are_counted() {
    let mut broker = Broker::start().await;
    let now_s = p8broker::clock::Clock::now(&*broker.clock).seconds();
    let at = |seconds: i64| time::OffsetDateTime::from_unix_timestamp(now_s + seconds).unwrap();
    broker.pki.issue("brief", vec![uri(CLIENT)], ExtendedKeyUsagePurpose::ClientAuth, |params| {
        (params.not_before, params.not_after) = (at(-3600), at(6400));
    });
    let mut client = with_files(&broker, &broker.pki, "brief").await.unwrap();
    for (seconds, near) in [(0, 0), (4300, 0), (200, 1), (601, 0)] {
        broker.clock.advance(Duration::from_secs(seconds));
        if seconds < 601 {
            client.issue(ask()).await.unwrap();
        }
        broker.inner().show_present();
        let line = format!("p8broker_client_certificates_near_expiry {near}\n");
        assert!(broker.ops("/metrics").await.1.contains(&line), "{seconds}: {line}");
    }
    broker.stop().await;
}

#[tokio::test]
async fn files_are_loaded_anew_without_dropping_connections() {
    let mut broker = Broker::prepare(&Options::default());
    let crl = broker.dir.path().join("crl.pem");
    std::fs::write(&crl, revocation_list(&broker.pki, &[])).unwrap();
    broker.config.tls.crls = vec![crl.clone()];
    broker.run(None).await;
    broker.as_(OPERATOR).await.system.init(p8broker::grpc::proto::InitRequest::default()).await.unwrap();
    broker.fill().await;
    broker.pki.issue("doomed", vec![uri(CLIENT)], ExtendedKeyUsagePurpose::ClientAuth, |params| {
        params.serial_number = Some(rcgen::SerialNumber::from(vec![0x0d, 0x0e]));
    });
    let mut doomed = with_files(&broker, &broker.pki, "doomed").await.unwrap();
    let mut other = broker.as_("spiffe://acme.internal/ns/ci/sa/release-two").await;
    doomed.issue(ask()).await.unwrap();
    other.issue(ask()).await.unwrap();
    // A certificate beside the key of another is refused, and the gauge shows the one that is served.
    let expiry = async |broker: &Broker| {
        let (_, text) = broker.ops("/metrics").await;
        let line = text.lines().find(|line| line.starts_with("p8broker_server_certificate_expiry")).unwrap();
        line.to_owned()
    };
    let (served, kept) = (expiry(&broker).await, std::fs::read(broker.pki.dir.join("server.pem")).unwrap());
    broker.pki.issue("sooner", vec![uri(CLIENT)], ExtendedKeyUsagePurpose::ServerAuth, |params| {
        params.not_after = rcgen::date_time_ymd(2030, 1, 1);
    });
    std::fs::copy(broker.pki.dir.join("sooner.pem"), broker.pki.dir.join("server.pem")).unwrap();
    eventually("the wrong certificate is noticed", async || {
        broker.ops("/metrics").await.1.contains("p8broker_tls_reloads_total{outcome=\"failed\"} 1")
    })
    .await;
    assert_eq!(expiry(&broker).await, served);
    std::fs::write(broker.pki.dir.join("server.pem"), kept).unwrap();
    // A list that can't be read is refused, and what was loaded before stays.
    std::fs::write(&crl, "-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n").unwrap();
    eventually("the bad list is noticed", async || {
        broker.ops("/metrics").await.1.contains("p8broker_tls_reloads_total{outcome=\"failed\"} 2")
    })
    .await;
    doomed.issue(ask()).await.unwrap();
    // A revoked certificate is refused on the connection it has open; others go on.
    std::fs::write(&crl, revocation_list(&broker.pki, &[&[0x0d, 0x0e]])).unwrap();
    eventually("the revoked certificate is refused", async || doomed.issue(ask()).await.is_err()).await;
    assert_eq!(refused(doomed.issue(ask()).await).1, "IDENTITY_REFUSED");
    other.issue(ask()).await.unwrap();
    // A new server certificate serves new connections; the old connection goes on.
    broker.pki.server();
    eventually("the new certificate is served", async || {
        broker.ops("/metrics").await.1.contains("p8broker_tls_reloads_total{outcome=\"ok\"} 2")
    })
    .await;
    other.issue(ask()).await.unwrap();
    broker.as_(CLIENT).await.issue(ask()).await.unwrap();
    // A CA that is gone takes its clients with it.
    let new = Pki::new(&broker.dir.path().join("new"));
    std::fs::copy(new.dir.join("ca.pem"), broker.pki.dir.join("ca.pem")).unwrap();
    eventually("clients of the old CA are refused", async || other.issue(ask()).await.is_err()).await;
    assert_eq!(refused(other.issue(ask()).await).1, "IDENTITY_REFUSED");
    broker.stop().await;
}

fn revocation_list(pki: &Pki, serials: &[&[u8]]) -> String {
    let revoked = serials.iter().map(|serial| rcgen::RevokedCertParams {
        serial_number: rcgen::SerialNumber::from(serial.to_vec()),
        revocation_time: rcgen::date_time_ymd(2026, 1, 1),
        reason_code: None,
        invalidity_date: None,
    });
    let params = rcgen::CertificateRevocationListParams {
        this_update: rcgen::date_time_ymd(2026, 1, 1),
        next_update: rcgen::date_time_ymd(2099, 1, 1),
        crl_number: rcgen::SerialNumber::from(vec![1]),
        issuing_distribution_point: None,
        revoked_certs: revoked.collect(),
        key_identifier_method: rcgen::KeyIdMethod::Sha256,
    };
    params.signed_by(pki.ca()).unwrap().pem().unwrap()
}
