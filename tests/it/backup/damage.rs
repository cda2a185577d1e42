//! What is not as it was written is refused, wherever it was changed, and by whomever.

use std::fs;
use std::path::Path;

use p8broker::broker::KeySource;
use p8broker::broker::restore::{Restorable, RestoreError, Unsealing};
use p8broker::secret::UnsealKey;
use p8broker::store::part::{PART_HEADER, Part, Totals, header};
use p8broker::vault::backup::{Beginning, Opener, Sealer};
use p8broker::vault::keyring::Keyring;

use super::*;

/// Sealed bytes of one chunk.
const CHUNK: usize = 64 * 1024 + 16;

fn key_file(broker: &Broker) -> KeySource {
    KeySource::Files { current: broker.dir.path().join("unseal.key"), previous: None }
}

fn read(file: &Path, key_source: &KeySource) -> Result<Totals, RestoreError> {
    let unsealing = Unsealing { key_source, shares: &[] };
    Restorable::read(file, &unsealing, None).map(|restorable| restorable.checked().totals())
}

/// A vault with a destroyed key, two writers and some chunks of rows, backed up.
async fn backed_up(rows: i64) -> (Broker, PathBuf) {
    let mut broker = Broker::start().await;
    broker.as_(CLIENT).await.issue(ask()).await.unwrap();
    broker.restart().await;
    let mut operator = broker.as_(OPERATOR).await;
    operator.import(&import("SECONDKEY1", &new_p8())).await.unwrap();
    operator.import(&import("THIRDKEY12", &new_p8())).await.unwrap();
    operator.revoke(proto::TargetKind::Key, "SECONDKEY1").await.unwrap();
    let mut client = broker.as_(CLIENT).await;
    for nth in 0..rows {
        client.issue(proto::IssueTokenRequest { ttl: duration(60 + nth % 400), ..ask_fresh() }).await.unwrap();
    }
    let file = back_up(&broker, "vault.backup").await;
    broker.stop().await;
    (broker, file)
}

#[tokio::test]
async fn a_changed_byte_is_found_wherever_it_is_and_a_cut_wherever_it_is_made() {
    let (broker, file) = backed_up(500).await;
    let key_source = key_file(&broker);
    let whole = fs::read(&file).unwrap();
    let begins = Beginning::read(&mut whole.as_slice()).unwrap().bytes().len();
    assert!(whole.len() > begins + 3 * CHUNK, "some chunks: {}", whole.len());
    let changed = broker.dir.path().join("changed.backup");
    let mut tried = 0;
    let mut refused = |bytes: &[u8], what: String| {
        fs::write(&changed, bytes).unwrap();
        tried += 1;
        assert!(read(&changed, &key_source).is_err(), "{what}");
    };
    // Every byte of the header; of the chunks each first and last ones, and some between; each with another bit.
    let near = |at: usize| (at - begins) % CHUNK < 20 || (at - begins) % CHUNK > CHUNK - 20 || at + 40 > whole.len();
    for at in (0..whole.len()).filter(|at| *at < begins || near(*at) || at % 509 == 0) {
        let mut bytes = whole.clone();
        bytes[at] ^= 1 << (at % 8);
        refused(&bytes, format!("byte {at} was changed"));
    }
    for at in (0..whole.len()).filter(|at| at % 1013 == 0 || (*at >= begins && (at - begins) % CHUNK < 2)) {
        refused(&whole[..at], format!("cut at {at}"));
    }
    refused(&[whole.as_slice(), b"x"].concat(), "a byte more".to_owned());
    let swapped =
        [&whole[..begins], &whole[begins + CHUNK..begins + 2 * CHUNK], &whole[begins..begins + CHUNK]].concat();
    refused(&[&swapped, &whole[begins + 2 * CHUNK..]].concat(), "chunks swapped".to_owned());
    assert!(tried > 1000, "{tried}");
    fs::write(&changed, &whole).unwrap();
    assert!(read(&changed, &key_source).unwrap().rows > 500);
    // The command line says which.
    let config = config_file(&broker, "p8broker.toml", "sqlite = \"new.db\"");
    for (bytes, reason) in [
        (&whole[..begins + CHUNK], "BACKUP_CUT_OFF"),
        (&whole[..whole.len() - 1], "BACKUP_CHANGED"),
        (&whole[..10], "NO_BACKUP"),
        (b"hunter2".as_slice(), "NO_BACKUP"),
        (b"", "NO_BACKUP"),
    ] {
        fs::write(&changed, bytes).unwrap();
        let (code, error) = verify(&changed, &config);
        assert_eq!((code, error["reason"].as_str()), (1, Some(reason)), "{error}");
        let (code, error) = restore(&changed, &config, &[]);
        assert_eq!((code, error["reason"].as_str()), (1, Some(reason)), "{error}");
    }
    assert!(!broker.dir.path().join("new.db").exists(), "nothing was touched");
}

/// Opens a file with its own keyring, lets `change` at its parts, and seals it again: what somebody with the root keys could
/// make, or a mistake of ours.
fn forged(whole: &[u8], change: impl FnOnce(&mut Vec<Part>)) -> Vec<u8> {
    let mut rest = whole;
    let beginning = Beginning::read(&mut rest).unwrap();
    let key = UnsealKey::from_slice(&[0x5a; 32]).unwrap();
    let keyring: Keyring = beginning.header.seal_row().unwrap().open(&key).unwrap();
    let mut opener = Opener::new(&keyring, &beginning, rest).unwrap();
    let mut parts = Vec::new();
    while !opener.is_at_end().unwrap() {
        let mut head = [0; PART_HEADER];
        opener.fill(&mut head).unwrap();
        let (kind, length) = header(head);
        let mut fields = vec![0; length as usize];
        opener.fill(&mut fields).unwrap();
        parts.push(Part::read(kind, &fields).unwrap());
    }
    change(&mut parts);
    // Totals that fit, so that what is found is what was changed.
    let mut totals = Totals::default();
    parts.iter().take_while(|part| !matches!(part, Part::Totals(_))).for_each(|part| totals.count(part));
    for part in &mut parts {
        if let Part::Totals(said) = part {
            *said = totals;
        }
    }
    let mut out = beginning.bytes().to_vec();
    let mut sealer = Sealer::new(&keyring, &beginning).unwrap();
    for part in &parts {
        let mut bytes = Vec::new();
        part.write(&mut bytes);
        sealer.push(&bytes, &mut out).unwrap();
    }
    sealer.finish(&mut out).unwrap();
    out
}

#[tokio::test]
async fn a_file_that_opens_and_is_no_whole_vault_is_refused_with_what_is_wrong() {
    let (broker, file) = backed_up(5).await;
    let whole = fs::read(&file).unwrap();
    let first = |parts: &[Part], is: fn(&Part) -> bool| parts.iter().position(is).unwrap();
    let is_row = |part: &Part| matches!(part, Part::Row(_));
    let is_key = |part: &Part| matches!(part, Part::Key(_));
    let is_writer = |part: &Part| matches!(part, Part::Writer(_));
    type Change = Box<dyn Fn(&mut Vec<Part>)>;
    let cases: Vec<(&str, Change)> = vec![
        // One amid the rows of one writer.
        (
            "rows are missing",
            Box::new(move |parts| {
                let at = parts.windows(3).position(|three| three.iter().all(is_row)).unwrap();
                parts.remove(at + 1);
            }),
        ),
        (
            "end at",
            Box::new(move |parts| {
                let last = parts.iter().rposition(is_row).unwrap();
                parts.remove(last);
            }),
        ),
        (
            "was changed",
            Box::new(move |parts| {
                let at = first(parts, is_row);
                if let Part::Row(row) = &mut parts[at] {
                    row.event.caller = "dns:somebody.else".to_owned();
                }
            }),
        ),
        (
            "another writer",
            Box::new(move |parts| {
                let theirs = parts[first(parts, is_row)].clone();
                let end = parts.iter().rposition(is_row).unwrap();
                parts.insert(end + 1, theirs);
            }),
        ),
        (
            "is missing",
            Box::new(move |parts| {
                let at = first(parts, is_writer);
                parts.remove(at);
                while is_row(&parts[at]) {
                    parts.remove(at);
                }
            }),
        ),
        (
            "was changed",
            Box::new(move |parts| {
                let at = first(parts, is_writer);
                if let Part::Writer(end) = &mut parts[at] {
                    end.tag.0[0] ^= 1;
                }
            }),
        ),
        ("sealed key", Box::new(move |parts| drop(parts.remove(first(parts, is_key))))),
        (
            "does not open",
            Box::new(move |parts| {
                let at = first(parts, is_key);
                if let Part::Key(key) = &mut parts[at] {
                    let last = key.sealed.len() - 1;
                    key.sealed[last] ^= 1;
                }
            }),
        ),
        ("does not follow", Box::new(|parts| drop(parts.remove(2)))),
        (
            "its header says",
            Box::new(move |parts| {
                let last = parts.iter().rposition(|part| matches!(part, Part::Record(_))).unwrap();
                parts.remove(last);
            }),
        ),
        ("not the checkpoint", Box::new(|parts| drop(parts.remove(0)))),
        (
            "does not open",
            Box::new(|parts| {
                if let Part::Record(record) = &mut parts[3] {
                    record.checkpoint = true;
                }
            }),
        ),
        (
            "not in order",
            Box::new(move |parts| {
                let at = first(parts, is_key);
                parts.swap(0, at);
            }),
        ),
        ("something comes after", Box::new(|parts| parts.push(parts[0].clone()))),
        ("in the middle", Box::new(|parts| drop(parts.pop()))),
    ];
    let config = config_file(&broker, "p8broker.toml", "sqlite = \"new.db\"");
    for (nth, (says, change)) in cases.iter().enumerate() {
        fs::write(&file, forged(&whole, change)).unwrap();
        let error = read(&file, &key_file(&broker)).expect_err(says);
        assert!(error.to_string().contains(says), "{nth}: {says}: {error}");
        assert_eq!(restore(&file, &config, &[]).0, 1);
    }
    assert!(!broker.dir.path().join("new.db").exists(), "nothing was touched");
    fs::write(&file, forged(&whole, |_| ())).unwrap();
    assert!(read(&file, &key_file(&broker)).is_ok(), "what is not changed is whole");
}

#[tokio::test]
async fn only_the_unseal_key_of_that_time_opens_a_backup() {
    let (broker, file) = backed_up(1).await;
    let config = config_file(&broker, "p8broker.toml", "sqlite = \"new.db\"");
    fs::write(broker.dir.path().join("unseal.key"), "5b".repeat(32)).unwrap();
    let (code, error) = verify(&file, &config);
    assert_eq!((code, error["reason"].as_str()), (1, Some("WRONG_UNSEAL_KEY")), "{error}");
    fs::remove_file(broker.dir.path().join("unseal.key")).unwrap();
    assert_eq!(verify(&file, &config).1["reason"], "WRONG_UNSEAL_KEY");
    // The file before it does, as it does for a broker.
    let mut other = elsewhere(&broker, StoreConfig::sqlite("unused".into()));
    fs::write(broker.dir.path().join("new.key"), "5b".repeat(32)).unwrap();
    fs::write(broker.dir.path().join("old.key"), "5a".repeat(32)).unwrap();
    other.config.unseal.key_file = Some(broker.dir.path().join("new.key"));
    other.config.unseal.previous_key_file = Some(broker.dir.path().join("old.key"));
    let config = config_file(&other, "both.toml", "sqlite = \"new.db\"");
    assert_eq!(verify(&file, &config).0, 0);
    other.config.unseal.key_file = None;
    other.config.unseal.previous_key_file = None;
    let config = config_file(&other, "none.toml", "sqlite = \"new.db\"");
    let (code, error) = verify(&file, &config);
    assert!(code == 1 && error["message"].as_str().unwrap().contains("unseal.key_file"), "{error}");
}

#[tokio::test]
async fn shares_of_that_time_open_a_backup_and_others_are_named() {
    let mut broker = Broker::bare(Options { by_shares: true, ..Options::default() }).await;
    let mut operator = broker.as_(OPERATOR).await;
    let request = proto::InitRequest { shares: 3, threshold: 2 };
    let old = operator.system.init(request).await.unwrap().into_inner().shares;
    broker.fill().await;
    let file = back_up(&broker, "vault.backup").await;
    let rekey = proto::RekeyRequest { shares: old[..2].to_vec(), new_shares: 3, new_threshold: 2 };
    let new = operator.system.rekey(rekey).await.unwrap().into_inner().new_shares;
    operator.system.confirm_rekey(proto::ConfirmRekeyRequest { shares: new[..2].to_vec() }).await.unwrap();
    let later = back_up(&broker, "later.backup").await;
    broker.stop().await;
    let restored = elsewhere(&broker, StoreConfig::sqlite(broker.dir.path().join("restored.db")));
    let config = config_file(&restored, "p8broker.toml", &store_of(&restored));
    let share = |text: &str, name: &str| {
        let path = broker.dir.path().join(name);
        fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let (one, two) = (share(&old[0], "one"), share(&old[2], "two"));
    let (new_one, new_two) = (share(&new[0], "new-one"), share(&new[1], "new-two"));
    let says = |file: &Path, shares: &[&str], wanted: &str| {
        let flags: Vec<&str> = shares.iter().flat_map(|share| ["--share-file", share]).collect();
        let (code, error) = restore(file, &config, &flags);
        assert_eq!((code, error["reason"].as_str()), (1, Some("WRONG_UNSEAL_KEY")), "{error}");
        assert!(error["message"].as_str().unwrap().contains(wanted), "{wanted}: {error}");
    };
    says(&file, &[], "2 shares of generation 1 open this backup; 0 were given");
    says(&file, &[&one], "1 were given");
    says(&file, &[&one, &one], "given before");
    says(&file, &[&new_one, &new_two], "opens with those");
    says(&later, &[&one, &two], "a share is of generation 1");
    // Shares of another time among them do no harm: a restore with --previous opens two states.
    says(&later, &[&one, &new_one], "2 shares of generation 2 open this backup; 1 were given");
    let all = ["--share-file", &one, "--share-file", &new_one, "--share-file", &two, "--share-file", &new_two];
    assert_eq!(restore(&later, &config, &all).0, 0);
    fs::remove_file(broker.dir.path().join("restored.db")).unwrap();
    assert_eq!(restore(&file, &config, &["--share-file", &one, "--share-file", &two]).0, 0);
}

#[tokio::test]
async fn a_database_that_was_changed_is_found_while_it_is_backed_up() {
    let (mut broker, _) = backed_up(3).await;
    let whole = fs::read(broker.database()).unwrap();
    for (sql, says) in [
        ("update audit set caller = 'dns:somebody.else' where sequence = 3", "was changed"),
        ("delete from audit where sequence = 2", "is not there any more"),
    ] {
        fs::write(broker.database(), &whole).unwrap();
        crate::tamper::change(&broker, sql).await;
        broker.run(None).await;
        let out = broker.dir.path().join("never.backup").display().to_string();
        let (code, error) = json_as(&broker, OPERATOR, &["operator", "backup", "--out", &out], "").await;
        assert_eq!((code, error["reason"].as_str()), (1, Some("BACKUP_GIVEN_UP")), "{error}");
        assert!(error["message"].as_str().unwrap().contains(says), "{error}");
        let left: Vec<_> = fs::read_dir(broker.dir.path()).unwrap().map(|it| it.unwrap().file_name()).collect();
        assert!(!left.iter().any(|name| name.to_string_lossy().starts_with("never")), "no half file is left: {left:?}");
        broker.stop().await;
    }
}

#[tokio::test]
async fn a_restore_into_a_database_that_is_not_empty_is_refused_and_changes_nothing() {
    let (broker, file) = backed_up(1).await;
    let config = config_file(&broker, "p8broker.toml", &store_of(&broker));
    let before = fs::read(broker.database()).unwrap();
    let (code, error) = restore(&file, &config, &[]);
    assert_eq!((code, error["reason"].as_str()), (1, Some("STORE_NOT_EMPTY")), "{error}");
    assert!(error["message"].as_str().unwrap().contains("the same vault"), "{error}");
    assert_eq!(fs::read(broker.database()).unwrap(), before);
}
