//! P1: a canary key is imported, every RPC driven, the vault rotated, sealed and revoked; then everything that the process
//! wrote or answered is searched for the key: raw, as DER, in hex and in base64 at every alignment.

use std::process::Stdio;
use std::sync::{Arc, Mutex};

use data_encoding::{BASE64, BASE64URL, HEXLOWER, HEXUPPER};
use p8broker::grpc::proto;
use p256::SecretKey;
use p256::pkcs8::DecodePrivateKey;

use crate::cli::Playground;
use crate::harness::*;

/// Every spelling of the secret bytes, without the parts that depend on what stands around them.
pub fn spellings(pem: &str) -> Vec<Vec<u8>> {
    let key = SecretKey::from_pkcs8_pem(pem).unwrap();
    let scalar = key.to_bytes().to_vec();
    let mut out = vec![scalar.clone(), HEXLOWER.encode(&scalar).into_bytes(), HEXUPPER.encode(&scalar).into_bytes()];
    // Base64 of the scalar at each of the three alignments; the first and last characters depend on the neighbours.
    for shift in 0..3 {
        for encoding in [BASE64, BASE64URL] {
            let padded = [vec![0; shift], scalar.clone()].concat();
            let text = encoding.encode(&padded);
            out.push(text.as_bytes()[4..40].to_vec());
        }
    }
    // As a Rust debug print of bytes.
    out.push(format!("{:?}", &scalar[..8]).trim_matches(['[', ']']).to_owned().into_bytes());
    // A line of the file itself, as text and as a debug print of its bytes.
    let line = pem.lines().nth(1).unwrap().as_bytes();
    out.push(line.to_vec());
    out.push(format!("{:?}", &line[..24]).trim_matches(['[', ']']).to_owned().into_bytes());
    out
}

fn search(what: &str, content: &[u8], wanted: &[Vec<u8>]) {
    for spelling in wanted {
        let found = content.windows(spelling.len()).any(|window| window == spelling.as_slice());
        assert!(!found, "{what} holds the key as {:?}", String::from_utf8_lossy(spelling));
    }
}

#[test]
fn the_search_finds_a_key_where_there_is_one() {
    let pem = new_p8();
    let found = |content: &[u8]| {
        spellings(&pem).iter().any(|wanted| content.windows(wanted.len()).any(|window| window == wanted.as_slice()))
    };
    let der = BASE64.decode(pem.lines().filter(|line| !line.starts_with('-')).collect::<String>().as_bytes()).unwrap();
    for content in
        [pem.clone().into_bytes(), der.clone(), HEXLOWER.encode(&der).into_bytes(), format!("{der:?}").into_bytes()]
    {
        assert!(found(&content));
    }
    assert!(!found(new_p8().as_bytes()));
}

#[tokio::test]
async fn p1_nothing_that_leaves_the_process_carries_the_key() {
    let mut broker = Broker::start().await;
    let pem = new_p8();
    let wanted = spellings(&pem);
    let answers = Arc::new(Mutex::new(Vec::new()));
    let keep = |answer: String| answers.lock().unwrap().extend(answer.into_bytes());
    let mut operator = broker.as_(OPERATOR).await;
    let mut client = broker.as_(CLIENT).await;
    keep(format!("{:?}", import("CANARYKEY1", &pem)));
    keep(format!("{:?}", operator.import(&import("CANARYKEY1", &pem)).await));
    // Refused imports must not echo it either.
    for broken in [pem.replace("PRIVATE", "EC PRIVATE"), pem.replace("-----END", "--END"), format!("{pem}{pem}")] {
        keep(format!("{:?}", operator.import(&import("CANARYKEY2", &broken)).await));
    }
    keep(format!("{:?}", operator.import(&import("CANARYKEY2", &pem)).await));
    for _ in 0..3 {
        keep(format!("{:?}", client.issue(ask_fresh()).await));
    }
    keep(format!("{:?}", operator.key.get_key(proto::GetKeyRequest { key_id: "CANARYKEY1".to_owned() }).await));
    keep(format!("{:?}", operator.key.list_keys(proto::ListKeysRequest::default()).await));
    keep(format!("{:?}", operator.system.rotate(proto::RotateRequest {}).await));
    keep(format!("{:?}", operator.system.rekey(proto::RekeyRequest::default()).await));
    let (key_id, reason) = ("CANARYKEY1".to_owned(), "a test".to_owned());
    let suspend = proto::SuspendKeyRequest { key_id: key_id.clone(), reason: reason.clone() };
    keep(format!("{:?}", operator.key.suspend_key(suspend).await));
    keep(format!("{:?}", operator.key.resume_key(proto::ResumeKeyRequest { key_id: key_id.clone(), reason }).await));
    let target = Some(proto::Target { kind: proto::TargetKind::Key.into(), name: key_id.clone() });
    let exposure = proto::ExposureRequest { target, page_token: String::new() };
    keep(format!("{:?}", operator.revocation.exposure(exposure).await));
    keep(format!("{:?}", operator.apply(sample()).await));
    keep(format!("{:?}", operator.policy.list_policies(proto::ListPoliciesRequest::default()).await));
    keep(format!("{:?}", operator.verify().await));
    let cut = Some(prost_types::Timestamp { seconds: 1, nanos: 0 });
    keep(format!("{:?}", operator.audit.prune(proto::PruneRequest { before: cut }).await));
    let seal = proto::SealRequest { reason: "a test".to_owned() };
    keep(format!("{:?}", operator.system.seal(seal).await));
    keep(format!("{:?}", broker.ops("/readyz").await));
    keep(format!("{:?}", operator.system.unseal(proto::UnsealRequest::default()).await));
    keep(format!("{:?}", operator.system.status(proto::StatusRequest {}).await));
    keep(format!("{:?}", operator.all_events().await));
    keep(broker.ops("/metrics").await.1);
    keep(format!("{:?}", broker.inner().phase()));
    search("an answer", &answers.lock().unwrap(), &wanted);
    for name in ["vault.db", "vault.db-wal", "vault.db-shm"] {
        let path = broker.dir.path().join(name);
        search(name, &std::fs::read(path).unwrap_or_default(), &wanted);
    }
    keep(format!("{:?}", operator.revoke(proto::TargetKind::Key, "CANARYKEY1").await.unwrap()));
    let confirm = proto::ConfirmRevokedAtAppleRequest { key_id };
    keep(format!("{:?}", operator.key.confirm_revoked_at_apple(confirm).await.unwrap()));
    search("an answer", &answers.lock().unwrap(), &wanted);
    broker.stop().await;
    search("vault.db", &std::fs::read(broker.database()).unwrap(), &wanted);
}

#[tokio::test]
async fn p1_logs_at_their_most_talkative_carry_neither_keys_nor_tokens() {
    let it = Playground::start().await;
    let (mut it, text) = (it, std::fs::read_to_string);
    it.signal("TERM");
    assert!(it.wait().success());
    let config = it.dir.path().join("p8broker.toml");
    let (grpc, log) = ("127.0.0.1:0", it.dir.path().join("log"));
    // The playground's vault, served with every log line there is; a fixed port is not needed, the log says it.
    let mut child = std::process::Command::new(crate::cli::BINARY)
        .args(["serve", "--config"])
        .arg(&config)
        .envs([("P8BROKER_LOG__LEVEL", "debug"), ("P8BROKER_LOG__FORMAT", "json"), ("P8BROKER_LISTEN__GRPC", grpc)])
        .stdout(Stdio::null())
        .stderr(std::fs::File::create(&log).unwrap())
        .spawn()
        .unwrap();
    let mut address = String::new();
    eventually("the log says where it listens", async || {
        let content = text(&log).unwrap_or_default();
        let line = content.lines().find(|line| line.contains("\"message\":\"serving\"")).map(ToOwned::to_owned);
        let Some(line) = line else { return false };
        let object: serde_json::Value = serde_json::from_str(&line).unwrap();
        address = object["grpc"].as_str().unwrap().to_owned();
        true
    })
    .await;
    let pem = new_p8();
    let file = it.dir.path().join("AuthKey_LOGKEY2345.p8");
    std::fs::write(&file, &pem).unwrap();
    let at = |arguments: &[&str]| {
        let mut out: Vec<String> = arguments.iter().map(|it| (*it).to_owned()).collect();
        out.extend(["--addr".to_owned(), address.clone()]);
        out
    };
    let run = |who: &str, arguments: &[&str]| {
        let arguments = at(arguments);
        it.run(who, &arguments.iter().map(String::as_str).collect::<Vec<_>>())
    };
    let imported = run(
        "operator",
        &[
            "key",
            "import",
            file.to_str().unwrap(),
            "--account",
            "acme",
            "--kind",
            "team",
            "--role",
            "APP_MANAGER",
            "--app-group",
            "games",
        ],
    );
    assert!(imported.status.success(), "{}", String::from_utf8_lossy(&imported.stderr));
    let token = run("client", &["token", "issue", "--app-group", "games", "--role", "APP_MANAGER"]);
    let token = String::from_utf8(token.stdout).unwrap();
    assert!(!run("stranger", &["token", "issue", "--app-group", "games", "--role", "APP_MANAGER"]).status.success());
    let (bearer, canary) = (it.dir.path().join("bearer"), "Y2FuYXJ5.Y2FuYXJ5.Y2FuYXJ5");
    std::fs::write(&bearer, canary).unwrap();
    let bearer = bearer.to_str().unwrap();
    let refused =
        run("client", &["token", "issue", "--app-group", "games", "--role", "APP_MANAGER", "--bearer-file", bearer]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("BEARER_MALFORMED"), "it arrived: {refused:?}");
    child.kill().unwrap();
    child.wait().unwrap();
    let content = std::fs::read(&log).unwrap();
    assert!(content.len() > 200, "there is a log");
    search("the log", &content, &spellings(&pem));
    let signature = token.trim().rsplit_once('.').unwrap().1;
    assert!(!String::from_utf8_lossy(&content).contains(signature), "the log holds a token");
    assert!(!String::from_utf8_lossy(&content).contains(canary), "the log holds a bearer token");
}
