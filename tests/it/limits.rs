//! Limits that each replica counts by itself: of one connection, and of signing.

use std::time::Duration;

use p8broker::grpc::proto;
use rcgen::{ExtendedKeyUsagePurpose, SanType};
use tonic::Code;
use tonic_types::StatusExt;

use crate::harness::*;

const OTHER: &str = "spiffe://acme.internal/ns/ci/sa/release-two";

#[tokio::test]
async fn one_connection_that_floods_is_stopped_before_anybody_asks_who_it_is() {
    let mut broker = Broker::with(Options { requests_per_connection: 5, ..Options::default() }).await;
    // A certificate of the right CA with a name that it may not vouch for: refused with every request.
    let names = vec![SanType::URI("spiffe://elsewhere.internal/x".try_into().unwrap())];
    broker.pki.issue("elsewhere", names, ExtendedKeyUsagePurpose::ClientAuth, |_| ());
    let (cert, key) = broker.pki.files("elsewhere");
    let unknown = p8broker::client::Target {
        certificate: Some(p8broker::client::CertificateFiles { cert, key }),
        ..broker.target(CLIENT)
    };
    let mut unknown = Client::new(unknown.connect().await.unwrap());
    let mut answers = Vec::new();
    for _ in 0..20 {
        answers.push(unknown.issue(ask()).await.unwrap_err());
    }
    assert_eq!(answers[0].code(), Code::Unauthenticated);
    let limited: Vec<_> = answers.into_iter().filter(|status| status.code() == Code::ResourceExhausted).collect();
    assert!(limited.len() >= 10, "{}", limited.len());
    let details = limited[0].get_error_details();
    assert_eq!(details.error_info().unwrap().reason, "RATE_LIMITED");
    assert_eq!(details.retry_info().unwrap().retry_delay, Some(Duration::from_secs(1)));
    assert!(limited[0].message().contains("connection"), "{}", limited[0].message());
    // Another connection is another count, also of the same client; operators are held to it too.
    for _ in 0..4 {
        broker.as_(CLIENT).await.issue(ask()).await.unwrap();
    }
    let mut operator = broker.as_(OPERATOR).await;
    let mut limited = 0;
    for _ in 0..20 {
        let answer = operator.system.status(proto::StatusRequest {}).await;
        limited += usize::from(answer.is_err_and(|status| status.code() == Code::ResourceExhausted));
    }
    assert!(limited >= 10, "{limited}");
    broker.stop().await;
}

#[tokio::test]
async fn signing_has_a_limit_for_all_callers_together() {
    let mut broker = Broker::with(Options { signatures_per_second: 3, ..Options::default() }).await;
    let (mut client, mut other) = (broker.as_(CLIENT).await, broker.as_(OTHER).await);
    client.issue(ask()).await.unwrap();
    let mut limited = Vec::new();
    for _ in 0..10 {
        limited.extend(client.issue(ask_fresh()).await.err());
        limited.extend(other.issue(ask_fresh()).await.err());
    }
    assert!(limited.len() >= 10, "{}", limited.len());
    for status in limited {
        assert!(status.message().contains("signing"), "{}", status.message());
        let retry = status.get_error_details().retry_info().unwrap().retry_delay;
        assert_eq!(retry, Some(Duration::from_secs(1)));
        assert_eq!(refused::<()>(Err(status)), (Code::ResourceExhausted, "RATE_LIMITED".to_owned()));
    }
    // What needs no signature goes on.
    assert!(client.issue(ask()).await.unwrap().reused);
    tokio::time::sleep(Duration::from_millis(1100)).await;
    other.issue(ask_fresh()).await.unwrap();
    broker.stop().await;
}
