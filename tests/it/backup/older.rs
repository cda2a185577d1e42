//! An older state over a newer one: refused unless told, and what it brings back to life is listed and brought forward.

use std::fs;
use std::process::Command;

use super::*;

const LATER: &str = "spiffe://acme.internal/ns/ci/sa/release-later";

/// A vault that was backed up, and on which much happened since.
async fn moved_on(anchor: bool) -> (Broker, PathBuf) {
    let broker = Broker::with(Options { anchor, ..Options::default() }).await;
    let mut operator = broker.as_(OPERATOR).await;
    operator.import(&import("SECONDKEY1", &new_p8())).await.unwrap();
    operator.import(&import("THIRDKEY12", &new_p8())).await.unwrap();
    operator.revoke(proto::TargetKind::Client, "dns:lifted.acme.internal").await.unwrap();
    let file = back_up(&broker, "vault.backup").await;
    operator.revoke(proto::TargetKind::Client, LATER).await.unwrap();
    operator.revoke(proto::TargetKind::Key, "SECONDKEY1").await.unwrap();
    let suspend = proto::SuspendKeyRequest { key_id: "THIRDKEY12".to_owned(), reason: "it's $(odd)".to_owned() };
    operator.key.suspend_key(suspend).await.unwrap();
    operator.revoke(proto::TargetKind::Policy, "no-more").await.unwrap();
    let lift = |kind, name| proto::ReinstateRequest { target: Some(target(kind, name)), reason: "a test".to_owned() };
    operator.revocation.reinstate(lift(proto::TargetKind::Policy, "no-more")).await.unwrap();
    operator.revocation.reinstate(lift(proto::TargetKind::Client, "dns:lifted.acme.internal")).await.unwrap();
    operator.import(&import("FOURTHKEY1", &new_p8())).await.unwrap();
    let suspend = proto::SuspendKeyRequest { key_id: "FOURTHKEY1".to_owned(), reason: "a test".to_owned() };
    operator.key.suspend_key(suspend).await.unwrap();
    // Imported and revoked since: the restored vault knows of neither.
    operator.import(&import("FIFTHKEY12", &new_p8())).await.unwrap();
    operator.revoke(proto::TargetKind::Key, "FIFTHKEY12").await.unwrap();
    operator.apply(policies(vec![proto::Policy { max_ttl: duration(60), ..release_policy() }])).await.unwrap();
    operator.system.rotate(proto::RotateRequest {}).await.unwrap();
    (broker, file)
}

#[tokio::test]
async fn an_anchor_that_has_seen_more_refuses_an_older_backup_until_that_is_named_and_accepted() {
    let (mut broker, file) = moved_on(true).await;
    broker.stop().await;
    let anchor = fs::read(broker.config.anchor.file.as_ref().unwrap()).unwrap();
    fs::remove_file(broker.database()).unwrap();
    let config = config_file(&broker, "p8broker.toml", &store_of(&broker));
    let (code, error) = restore(&file, &config, &[]);
    assert_eq!((code, error["reason"].as_str()), (1, Some("OLDER_THAN_SEEN")), "{error}");
    let message = error["message"].as_str().unwrap();
    let seen = message.rsplit_once("--accept-older ").unwrap().1.to_owned();
    assert!(!broker.database().exists(), "nothing was touched");
    // Another number is no consent.
    assert_eq!(restore(&file, &config, &["--accept-older", "3"]).1["reason"], "OLDER_THAN_SEEN");
    let (code, done) = restore(&file, &config, &["--accept-older", &seen]);
    assert_eq!((code, &done["accept_history"]), (0, &seen.parse::<u64>().unwrap().into()), "{done}");
    // INVARIANT (INV-RESTORE-2): the anchor still knows, and an administrator accepts it by name, in the audit.
    assert_eq!(fs::read(broker.config.anchor.file.as_ref().unwrap()).unwrap(), anchor);
    broker.run(None).await;
    assert_eq!(refused(broker.as_(CLIENT).await.issue(ask()).await).1, "REFUSING_TO_SERVE");
    let revision = done["revision"].to_string();
    let accept =
        ["operator", "accept-history", "--database-revision", &revision, "--seen-revision", &seen, "--reason", "lost"];
    let (code, answer) = json_as(&broker, OPERATOR, &accept, "").await;
    assert_eq!(code, 0, "{answer}");
    broker.as_(CLIENT).await.issue(ask()).await.unwrap();
    broker.restart().await;
    broker.as_(CLIENT).await.issue(ask()).await.unwrap();
    broker.stop().await;
}

#[tokio::test]
async fn what_an_older_state_brings_back_to_life_is_listed_and_brought_forward_by_commands() {
    let (mut broker, file) = moved_on(false).await;
    broker.stop().await;
    let previous = config_file(&broker, "previous.toml", &store_of(&broker));
    let kept = fs::read(broker.database()).unwrap();
    let mut restored = elsewhere(&broker, StoreConfig::sqlite(broker.dir.path().join("restored.db")));
    let config = config_file(&restored, "p8broker.toml", &store_of(&restored));
    let script = broker.dir.path().join("forward.sh");
    let compare = ["--previous", previous.to_str().unwrap(), "--commands", script.to_str().unwrap()];
    let (code, error) = restore(&file, &config, &compare);
    assert_eq!((code, error["reason"].as_str()), (1, Some("OLDER_THAN_SEEN")), "{error}");
    let told = error["violations"].to_string();
    assert!(told.contains(LATER) && told.contains("signs again"), "the refusal lists it: {error}");
    let seen = error["message"].as_str().unwrap().rsplit_once(' ').unwrap().1.to_owned();
    fs::remove_file(&script).unwrap();
    let (code, done) = restore(&file, &config, &[&compare[..], &["--accept-older", &seen]].concat());
    assert_eq!(code, 0, "{done}");
    let alive: Vec<&str> =
        done["since"]["alive_again"].as_array().unwrap().iter().map(|it| it["what"].as_str().unwrap()).collect();
    assert_eq!(
        alive,
        [
            &format!("client {LATER} was revoked, and is alive again"),
            "key SECONDKEY1 was revoked, and is alive again",
            "key THIRDKEY12 was suspended, and signs again",
        ]
    );
    let lost = done["since"]["lost"].to_string();
    for wanted in [
        "FOURTHKEY1",
        "import it again",
        "suspend it once",
        "reinstate it",
        "apply them again",
        "rotate again",
        "games-release-ci",
    ] {
        assert!(lost.contains(wanted), "{wanted}: {lost}");
    }
    let fifth: Vec<&str> = lost.split("revision").filter(|one| one.contains("FIFTHKEY12")).collect();
    assert!(fifth.len() == 1 && fifth[0].contains("never import it again"), "{fifth:?}");
    assert!(!lost.contains("no-more"), "what was revoked and reinstated since is as it was: {lost}");
    // What they bring back is alive, and the script ends it.
    restored.run(None).await;
    restored.as_(LATER).await.issue(ask()).await.unwrap();
    let mut operator = restored.as_(OPERATOR).await;
    let bin = Path::new(crate::cli::BINARY).parent().unwrap().display().to_string();
    let path = format!("{bin}:{}", std::env::var("PATH").unwrap());
    let mut command = Command::new("sh");
    command.arg(&script).envs(restored.env(OPERATOR)).env("PATH", path);
    let ran = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    assert_eq!(refused(restored.as_(LATER).await.issue(ask()).await).1, "CLIENT_REVOKED");
    let keys = operator.key.list_keys(proto::ListKeysRequest::default()).await.unwrap().into_inner().keys;
    let states: Vec<_> = keys.iter().map(|key| (key.key_id.as_str(), key.state())).collect();
    use proto::KeyState::{Active, Revoked, Suspended};
    assert_eq!(states, [(KEY_ID, Active), ("SECONDKEY1", Revoked), ("THIRDKEY12", Suspended)]);
    let events = operator.all_events().await;
    assert!(events.iter().any(|event| event.detail.contains("it's $(odd) (brought forward")), "the reason is the same");
    restored.stop().await;
    // Looking changed nothing that counts: the previous database is whole, and where it was.
    fs::write(broker.dir.path().join("kept.db"), kept).unwrap();
    broker.run(None).await;
    assert!(broker.is_open());
    broker.stop().await;
}

#[tokio::test]
async fn a_previous_database_that_is_damaged_is_read_as_far_as_it_goes_and_that_is_said() {
    let (mut broker, file) = moved_on(false).await;
    broker.stop().await;
    crate::tamper::change(
        &broker,
        "update control_log set sealed = x'00' where revision = (select max(revision) - 3 from control_log)",
    )
    .await;
    let previous = config_file(&broker, "previous.toml", &store_of(&broker));
    let restored = elsewhere(&broker, StoreConfig::sqlite(broker.dir.path().join("restored.db")));
    let config = config_file(&restored, "p8broker.toml", &store_of(&restored));
    let (code, error) = restore(&file, &config, &["--previous", previous.to_str().unwrap()]);
    assert_eq!((code, error["reason"].as_str()), (1, Some("OLDER_THAN_SEEN")), "{error}");
    let told = error["violations"].to_string();
    assert!(told.contains(LATER) && told.contains("can't be read, so nobody knows it"), "{told}");
}

#[tokio::test]
async fn an_anchor_or_a_previous_database_of_another_vault_is_refused_and_a_new_machine_gets_an_anchor() {
    let (mut broker, file) = moved_on(true).await;
    broker.stop().await;
    let mut other = Broker::with(Options { anchor: true, ..Options::default() }).await;
    other.stop().await;
    let config = config_file(&broker, "p8broker.toml", "sqlite = \"unused.db\"");
    let theirs = config_file(&other, "theirs.toml", &store_of(&other));
    let (code, error) = restore(&file, &config, &["--previous", theirs.to_str().unwrap()]);
    assert_eq!((code, error["reason"].as_str()), (1, Some("OTHER_VAULT")), "{error}");
    let (code, error) = restore(&file, &theirs, &[]);
    assert_eq!((code, error["reason"].as_str()), (1, Some("OTHER_VAULT")), "{error}");
    // A machine without an anchor yet: it begins with the restored head, and the broker serves.
    let mut fresh = elsewhere(&broker, StoreConfig::sqlite(broker.dir.path().join("restored.db")));
    fresh.config.anchor.file = Some(broker.dir.path().join("fresh-anchor.json"));
    let config = config_file(&fresh, "fresh.toml", &store_of(&fresh));
    let (code, done) = restore(&file, &config, &[]);
    assert_eq!((code, &done["accept_history"]), (0, &Value::Null), "{done}");
    assert!(fs::read_to_string(fresh.config.anchor.file.as_ref().unwrap()).unwrap().contains("\"revision\""));
    fresh.run(None).await;
    fresh.as_(CLIENT).await.issue(ask()).await.unwrap();
    fresh.stop().await;
}
