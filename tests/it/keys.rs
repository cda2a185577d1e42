//! Apple's keys: import, states, and what is left of one that was revoked.

use p8broker::grpc::proto;
use tonic::Code;

use crate::harness::*;

#[tokio::test]
async fn a_key_shows_everything_but_itself() {
    let mut broker = Broker::start().await;
    let mut operator = broker.as_(OPERATOR).await;
    let request = proto::GetKeyRequest { key_id: KEY_ID.to_owned() };
    let key = operator.key.get_key(request).await.unwrap().into_inner().key.unwrap();
    assert_eq!((key.kind(), key.state()), (proto::KeyKind::Team, proto::KeyState::Active));
    assert_eq!((key.account.as_str(), key.app_groups.as_slice()), ("acme", &["games".to_owned()][..]));
    assert_eq!(key.public_key_fingerprint.len(), 64);
    assert_eq!(key.imported.unwrap().by, "bootstrap-1");
    broker.stop().await;
}

#[tokio::test]
async fn a_key_id_and_its_material_are_taken_for_good() {
    let mut broker = Broker::start().await;
    let mut operator = broker.as_(OPERATOR).await;
    let p8 = new_p8();
    operator.import(&import("AAAAAAAAA1", &p8)).await.unwrap();
    let again = operator.import(&import("AAAAAAAAA1", &new_p8())).await;
    assert_eq!(refused(again), (Code::AlreadyExists, "KEY_EXISTS".to_owned()));
    let renamed = operator.import(&import("AAAAAAAAA2", &p8)).await;
    assert_eq!(refused(renamed), (Code::AlreadyExists, "KEY_MATERIAL_EXISTS".to_owned()));
    operator.revoke(proto::TargetKind::Key, "AAAAAAAAA1").await.unwrap();
    // P6: also after it was revoked, under its own name or another, and after a restart.
    broker.restart().await;
    let mut operator = broker.as_(OPERATOR).await;
    let revoked = operator.import(&import("AAAAAAAAA1", &p8)).await;
    assert_eq!(refused(revoked), (Code::AlreadyExists, "KEY_EXISTS".to_owned()));
    let renamed = operator.import(&import("AAAAAAAAA2", &p8)).await;
    assert_eq!(refused(renamed), (Code::AlreadyExists, "KEY_MATERIAL_EXISTS".to_owned()));
    broker.stop().await;
}

#[tokio::test]
async fn p6_a_revoked_key_never_signs_again_and_its_bytes_are_gone() {
    let mut broker = Broker::start().await;
    let mut operator = broker.as_(OPERATOR).await;
    broker.as_(CLIENT).await.issue(ask()).await.unwrap();
    // The sealed bytes, as they lie in the file.
    let sealed = blob(&broker.database(), "select sealed from sealed_keys").await;
    let tail = &sealed[sealed.len() - 64..];
    let wal = broker.dir.path().join("vault.db-wal");
    assert!(file_holds(&broker.database(), tail) || file_holds(&wal, tail), "the search finds what is there");
    let revoked = operator.revoke(proto::TargetKind::Key, KEY_ID).await.unwrap();
    assert_eq!(revoked.count, 1);
    assert!(revoked.left_at_apple.contains("Users and Access"), "{}", revoked.left_at_apple);
    for file in [broker.database(), wal] {
        assert!(!file_holds(&file, tail), "{} still holds the sealed key", file.display());
    }
    let denied = broker.as_(CLIENT).await.issue(ask()).await;
    assert_eq!(refused(denied), (Code::PermissionDenied, "NO_ACTIVE_KEY".to_owned()));
    let request = proto::ResumeKeyRequest { key_id: KEY_ID.to_owned(), reason: "please".to_owned() };
    assert_eq!(refused(operator.key.resume_key(request).await), (Code::FailedPrecondition, "KEY_STATE".to_owned()));
    let target = Some(proto::Target { kind: proto::TargetKind::Key.into(), name: KEY_ID.to_owned() });
    let reinstate = proto::ReinstateRequest { target, reason: "please".to_owned() };
    assert_eq!(
        refused(operator.revocation.reinstate(reinstate).await),
        (Code::FailedPrecondition, "KEY_IS_GONE".to_owned())
    );
    // Repeating it answers the same and changes nothing.
    let again = operator.revoke(proto::TargetKind::Key, KEY_ID).await.unwrap();
    assert_eq!((again.revision, again.exposure), (revoked.revision, revoked.exposure));
    broker.restart().await;
    let denied = broker.as_(CLIENT).await.issue(ask()).await;
    assert_eq!(refused(denied), (Code::PermissionDenied, "NO_ACTIVE_KEY".to_owned()));
    broker.stop().await;
}

#[tokio::test]
async fn a_suspended_key_waits_and_a_replaced_one_drains() {
    let mut broker = Broker::start().await;
    let mut operator = broker.as_(OPERATOR).await;
    let mut client = broker.as_(CLIENT).await;
    let suspend = proto::SuspendKeyRequest { key_id: KEY_ID.to_owned(), reason: "holiday".to_owned() };
    operator.key.suspend_key(suspend).await.unwrap();
    assert_eq!(refused(client.issue(ask()).await), (Code::PermissionDenied, "NO_ACTIVE_KEY".to_owned()));
    let resume = proto::ResumeKeyRequest { key_id: KEY_ID.to_owned(), reason: "back".to_owned() };
    operator.key.resume_key(resume).await.unwrap();
    assert_eq!(client.issue(ask()).await.unwrap().key_id, KEY_ID);
    // A second key beside it: the newest import wins, both may serve, then the old one goes.
    operator.import(&import("NEWKEY2345", &new_p8())).await.unwrap();
    assert_eq!(client.issue(ask()).await.unwrap().key_id, "NEWKEY2345");
    let suspend = proto::SuspendKeyRequest { key_id: "NEWKEY2345".to_owned(), reason: "not yet".to_owned() };
    operator.key.suspend_key(suspend).await.unwrap();
    assert_eq!(client.issue(ask_fresh()).await.unwrap().key_id, KEY_ID);
    broker.stop().await;
}

#[tokio::test]
async fn p8_the_51st_team_key_that_apple_may_count_is_refused() {
    let mut broker = Broker::start().await;
    let mut operator = broker.as_(OPERATOR).await;
    for nth in 1..50 {
        operator.import(&import(&format!("KEY{nth:07}"), &new_p8())).await.unwrap();
    }
    let more = import("KEY0000099", &new_p8());
    let status = operator.import(&more).await.unwrap_err();
    assert!(status.message().contains("has 50 team keys"), "{}", status.message());
    assert_eq!(refused::<()>(Err(status)), (Code::FailedPrecondition, "TOO_MANY_KEYS".to_owned()));
    // Revoked here is not revoked at Apple: only a confirmation makes room.
    operator.revoke(proto::TargetKind::Key, "KEY0000001").await.unwrap();
    assert_eq!(refused(operator.import(&more).await).1, "TOO_MANY_KEYS");
    let unrevoked = proto::ConfirmRevokedAtAppleRequest { key_id: KEY_ID.to_owned() };
    assert_eq!(refused(operator.key.confirm_revoked_at_apple(unrevoked).await).1, "KEY_STATE");
    let confirm = proto::ConfirmRevokedAtAppleRequest { key_id: "KEY0000001".to_owned() };
    let key = operator.key.confirm_revoked_at_apple(confirm).await.unwrap().into_inner().key.unwrap();
    assert_eq!(key.confirmed_at_apple.unwrap().by, "bootstrap-1");
    operator.import(&more).await.unwrap();
    // Individual keys do not count.
    operator
        .import(&proto::ImportKeyRequest {
            kind: proto::KeyKind::Individual.into(),
            user: "dev@acme.example".to_owned(),
            app_access: Some(proto::AppAccess { all: true, app_ids: vec![] }),
            ..import("INDIVIDUAL", &new_p8())
        })
        .await
        .unwrap();
    broker.stop().await;
}

#[tokio::test]
async fn a_user_has_one_individual_key() {
    let mut broker = Broker::start().await;
    let mut operator = broker.as_(OPERATOR).await;
    let individual = |id: &str| proto::ImportKeyRequest {
        kind: proto::KeyKind::Individual.into(),
        user: "dev@acme.example".to_owned(),
        app_access: Some(proto::AppAccess { all: true, app_ids: vec![] }),
        ..import(id, &new_p8())
    };
    operator.import(&individual("INDIVIDUA1")).await.unwrap();
    let second = operator.import(&individual("INDIVIDUA2")).await;
    assert_eq!(refused(second), (Code::AlreadyExists, "USER_HAS_KEY".to_owned()));
    operator.revoke(proto::TargetKind::Key, "INDIVIDUA1").await.unwrap();
    operator.import(&individual("INDIVIDUA2")).await.unwrap();
    broker.stop().await;
}

/// One blob, read beside the broker.
pub async fn blob(database: &std::path::Path, sql: &'static str) -> Vec<u8> {
    use sqlx::{ConnectOptions, Connection, Row};
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(database).read_only(true);
    let mut connection = options.connect().await.unwrap();
    let found = sqlx::query(sql).fetch_one(&mut connection).await.unwrap().get(0);
    connection.close().await.unwrap();
    found
}
