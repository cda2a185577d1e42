//! The command lines: what a person is told, and bad input.

use super::*;
use crate::cli::run_as;

#[tokio::test]
async fn a_person_is_told_what_is_in_a_backup_and_what_nobody_knows() {
    let mut broker = Broker::start().await;
    let file = broker.dir.path().join("vault.backup").display().to_string();
    let (code, out, err) = run_as(&broker, OPERATOR, &["operator", "backup", "--out", &file], "").await;
    assert!(code == 0 && out.contains("1 keys") && out.contains("verify-backup"), "{out}{err}");
    use std::os::unix::fs::PermissionsExt;
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let restored = elsewhere(&broker, StoreConfig::sqlite(broker.dir.path().join("restored.db")));
    let config = config_file(&restored, "p8broker.toml", &store_of(&restored)).display().to_string();
    let (code, out, err) =
        run_as(&broker, OPERATOR, &["operator", "verify-backup", "--in", &file, "--config", &config], "").await;
    assert!(code == 0 && out.contains("it can be restored") && out.contains("every chain is whole"), "{out}{err}");
    let (code, out, err) = run_as(&broker, OPERATOR, &["restore", "--from", &file, "--config", &config], "").await;
    assert_eq!(code, 0, "{err}");
    for wanted in ["restored", "nobody knows here what happened after", "--previous", "repeat the revocations first"] {
        assert!(out.contains(wanted), "{wanted}: {out}");
    }
    broker.stop().await;
}

#[tokio::test]
async fn bad_input_is_named_with_the_exit_code_of_its_kind() {
    let mut broker = Broker::start().await;
    let file = back_up(&broker, "vault.backup").await;
    let (file, folder) = (file.display().to_string(), broker.dir.path().display().to_string());
    let config = config_file(&broker, "p8broker.toml", &store_of(&broker)).display().to_string();
    let online = async |arguments: &[&str], code: i32, reason: &str| {
        let (found, error) = json_as(&broker, OPERATOR, &[&["operator", "backup"], arguments].concat(), "").await;
        assert_eq!((found, error["reason"].as_str()), (code, Some(reason)), "{arguments:?}: {error}");
    };
    online(&["--out", &file], 2, "USAGE").await;
    online(&["--out", &format!("{folder}/absent/x")], 2, "USAGE").await;
    online(&["--out", &folder], 2, "USAGE").await;
    online(&[], 2, "USAGE").await;
    // The broker that runs holds the database.
    online(&["--out", &format!("{folder}/x"), "--config", &config], 1, "FAILED").await;
    broker.stop().await;
    let bad = format!("{folder}/bad.toml");
    std::fs::write(&bad, "[store]\nurl = 3\n").unwrap();
    let gone = config_file(&broker, "gone.toml", "sqlite = \"/nonexistent/vault.db\"").display().to_string();
    let away = config_file(&broker, "away.toml", "url = \"postgres://x@127.0.0.1:1/x\"").display().to_string();
    let empty = config_file(&broker, "empty.toml", &format!("sqlite = \"{folder}/empty.db\"")).display().to_string();
    let absent = format!("{folder}/absent");
    let cases: &[(&[&str], i32, &str)] = &[
        (&["operator", "verify-backup", "--in", &absent, "--config", &config], 2, "USAGE"),
        (&["operator", "verify-backup", "--in", &file, "--config", &absent], 2, "USAGE"),
        (&["operator", "verify-backup", "--in", &file], 2, "USAGE"),
        (&["operator", "verify-backup", "--in", &folder, "--config", &config], 1, "BACKUP_UNREADABLE"),
        (&["operator", "verify-backup", "--in", &config, "--config", &config], 1, "NO_BACKUP"),
        (&["operator", "verify-backup", "--in", &file, "--config", &config, "--share-file", &absent], 2, "USAGE"),
        (&["restore", "--from", &absent, "--config", &config], 2, "USAGE"),
        (&["restore", "--from", &file, "--config", &bad], 2, "USAGE"),
        (&["restore", "--from", &file, "--config", &gone], 4, "DATABASE_UNAVAILABLE"),
        (&["restore", "--from", &file, "--config", &away], 4, "DATABASE_UNAVAILABLE"),
        (&["restore", "--from", &file, "--config", &config, "--accept-older", "many"], 2, "USAGE"),
        (&["restore", "--from", &file, "--config", &config, "--commands", "x"], 2, "USAGE"),
        (&["restore", "--from", &file, "--config", &config, "--previous", &gone], 2, "USAGE"),
        (&["restore", "--from", &file, "--config", &config, "--previous", &config, "--commands", &file], 2, "USAGE"),
        (&["operator", "backup", "--out", &absent, "--config", &gone], 2, "USAGE"),
        (&["operator", "backup", "--out", &absent, "--config", &away], 4, "DATABASE_UNAVAILABLE"),
        (&["operator", "backup", "--out", &absent, "--share-file", &file], 2, "USAGE"),
    ];
    for (arguments, code, reason) in cases {
        let (found, error) = here(arguments);
        assert_eq!((found, error["reason"].as_str()), (*code, Some(*reason)), "{arguments:?}: {error}");
    }
    assert!(!std::path::Path::new(&absent).exists());
    // A database without a vault has nothing to back up; one is never made by looking.
    std::fs::write(format!("{folder}/empty.db"), b"").unwrap();
    assert_eq!(here(&["operator", "backup", "--out", &absent, "--config", &empty]).1["reason"], "NOT_INITIALISED");
}
