//! The command line on PostgreSQL, and its commands for when something leaked.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use crate::cli::{BINARY, Playground};
use crate::harness::fleet::new_database;
use crate::harness::*;

const ISSUE: [&str; 6] = ["token", "issue", "--app-group", "games", "--role", "APP_MANAGER"];

/// A playground of three replicas, and their addresses.
async fn fleet() -> (Playground, Vec<String>) {
    let url = new_database().await;
    let it = Playground::with(TempDir::new().unwrap(), &["--store-url", &url, "--replicas", "3"]).await;
    let ready: Value = serde_json::from_slice(&std::fs::read(it.dir.path().join("ready.json")).unwrap()).unwrap();
    let addresses: Vec<String> =
        ready["grpc_addrs"].as_array().unwrap().iter().map(|it| it.as_str().unwrap().to_owned()).collect();
    assert_eq!((addresses.len(), ready["grpc_addr"].as_str()), (3, Some(addresses[0].as_str())));
    (it, addresses)
}

fn with_input(it: &Playground, who: &str, arguments: &[&str], input: &str) -> Output {
    let mut child = Command::new(BINARY)
        .args(arguments)
        .envs(it.env(who))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

#[tokio::test]
async fn three_replicas_in_one_playground_are_one_broker() {
    let (mut it, addresses) = fleet().await;
    for (nth, address) in addresses.iter().enumerate() {
        let other = &addresses[(nth + 1) % 3];
        it.json("client", &[&ISSUE[..], &["--addr", address]].concat());
        it.json("operator", &["revoke", "app-group", "games", "--reason", "test", "--yes", "--addr", address]);
        it.fails("client", &[&ISSUE[..], &["--addr", other]].concat(), 3, "APP_GROUP_REVOKED");
        it.json("operator", &["reinstate", "app-group", "games", "--reason", "test", "--addr", other]);
    }
    // One of several addresses that answers.
    let several = format!("127.0.0.1:1,{}", addresses[2]);
    it.json("client", &[&ISSUE[..], &["--addr", &several]].concat());
    eventually("every replica is in the status", async || {
        let status = it.json("operator", &["operator", "status"]);
        let names: Vec<_> = status["replicas"].as_array().unwrap().iter().map(|it| it["name"].clone()).collect();
        assert_eq!(status["replica"], "dev-1");
        names == ["dev-1", "dev-2", "dev-3"]
    })
    .await;
    let config = it.dir.path().join("p8broker.toml").display().to_string();
    assert_eq!(it.json("operator", &["doctor", "--config", &config])["ok"], true);
    assert_eq!(it.json("operator", &["migrate", "--config", &config])["migration"], 6);
    it.fails(
        "operator",
        &["operator", "accept-history", "--database-revision", "1", "--seen-revision", "2", "--reason", "x"],
        1,
        "HISTORY_UNCHANGED",
    );
    it.signal("TERM");
    assert!(it.wait().success());
}

#[tokio::test]
async fn a_leaked_token_is_looked_up_and_revoked_step_by_step() {
    let it = Playground::start().await;
    let issued = it.json("client", &ISSUE);
    let (jwt, id) = (issued["token"].as_str().unwrap(), issued["token_id"].as_str().unwrap());
    let found = with_input(&it, "operator", &["whois", "--output", "json"], jwt);
    let found: Value = serde_json::from_slice(&found.stdout).unwrap();
    assert_eq!((found["token_id"].as_str(), found["issued_here"].as_bool()), (Some(id), Some(true)));
    assert_eq!((found["handouts"][0]["replica"].as_str(), found["revoked"].as_bool()), (Some("dev-1"), Some(false)));
    assert_eq!(found["stops"][0], format!("token {id}"));
    assert!(found["expires_in_s"].as_i64().unwrap() > 200);
    let human = with_input(&it, "operator", &["whois"], jwt);
    assert!(!String::from_utf8_lossy(&human.stdout).contains(jwt), "the credential is not shown");
    for input in ["", "hunter2", "a.b.c"] {
        assert!(!with_input(&it, "operator", &["whois"], input).status.success(), "{input}");
    }
    assert_eq!(it.json("client", &["token", "introspect", id])["revoked"], false);
    it.fails("stranger", &["token", "introspect", id], 1, "NOT_FOUND");
    it.fails("client", &["token", "introspect", "12"], 1, "INVALID_ARGUMENT");

    // A person says yes to the first two steps, and no to the rest; each shows first what is alive.
    let answers = "yes\nyes\nno\nno\nno\nno\nno\n";
    let steps = with_input(&it, "operator", &["panic", "--token-id", id, "--reason", "leaked"], answers);
    let said = String::from_utf8_lossy(&steps.stderr).into_owned();
    assert!(steps.status.success(), "{said}");
    let asked: Vec<&str> = said.lines().filter(|line| line.contains("Type `yes`")).collect();
    assert_eq!(asked.len(), 7, "{said}");
    for (question, step) in asked.iter().zip(["token", "client", "policy", "app-group", "key", "account", "Seal"]) {
        assert!(question.contains(step), "{question}");
    }
    assert_eq!(said.matches("1 token is alive").count(), 7, "each step is previewed: {said}");
}

#[tokio::test]
async fn the_ladder_takes_steps_without_asking_only_where_it_is_told_how_far() {
    let it = Playground::start().await;
    let id = it.json("client", &ISSUE)["token_id"].as_str().unwrap().to_owned();
    it.fails("operator", &["panic", "--token-id", &id, "--reason", "leaked"], 1, "NOT_CONFIRMED");
    it.fails("operator", &["panic", "--token-id", &id, "--reason", "leaked", "--yes"], 2, "USAGE");
    it.fails("operator", &["panic", "--reason", "leaked"], 2, "USAGE");
    let done = it.json("operator", &["panic", "--token-id", &id, "--reason", "leaked", "--yes", "--through", "policy"]);
    let revoked: Vec<&str> =
        done["steps"].as_array().unwrap().iter().map(|it| it["revoked"].as_str().unwrap()).collect();
    assert_eq!(revoked.len(), 3);
    assert!(revoked[0].starts_with("token ") && revoked[2] == "policy games-release-ci", "{revoked:?}");
    it.fails("client", &ISSUE, 3, "CLIENT_REVOKED");
    let wide = ["panic", "--token-id", &id, "--reason", "leaked", "--yes", "--through", "everything"];
    let done = it.json("operator", &wide);
    assert_eq!(done["steps"].as_array().unwrap().last().unwrap()["revoked"], "everything");
    it.fails("client", &ISSUE, 4, "SEALED");
}

#[tokio::test]
async fn token_watch_tells_a_program_line_by_line_and_never_shows_a_token() {
    let it = Playground::start().await;
    let mut watch = Command::new(BINARY)
        .args(["token", "watch", "--app-group", "games", "--role", "APP_MANAGER", "--output", "json"])
        .envs(it.env("client"))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines();
    let mut next = |event: &str| {
        let found = lines.by_ref().take(20).map(Result::unwrap).find(|line| {
            assert!(!line.contains("eyJ"), "a JWT is shown: {line}");
            serde_json::from_str::<Value>(line).unwrap()["event"] == event
        });
        serde_json::from_str::<Value>(&found.unwrap()).unwrap()
    };
    let id = next("TOKEN")["token_id"].as_str().unwrap().to_owned();
    next("CONNECTED");
    it.json("operator", &["revoke", "token", &id, "--reason", "test", "--yes"]);
    assert_eq!(next("REVOKED")["token_ids"][0], id.as_str());
    assert_ne!(next("TOKEN")["token_id"], id.as_str());
    let pid = watch.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    assert_eq!(watch.wait().unwrap().code(), Some(0));
}

#[tokio::test]
async fn doctor_and_migrate_say_what_is_wrong_and_change_nothing_else() {
    let url = new_database().await;
    let broker = Broker::prepare(&Options { url: Some(url.clone()), ..Options::default() });
    let pki = broker.pki.dir.display().to_string();
    let write = |store: &str| {
        let file = broker.dir.path().join("p8broker.toml");
        let text = format!(
            "[listen]\ngrpc = \"127.0.0.1:0\"\nops = \"127.0.0.1:0\"\n[tls]\ncertificate = \"{pki}/server.pem\"\n\
             key = \"{pki}/server-key.pem\"\n[[tls.client_cas]]\nfile = \"{pki}/ca.pem\"\ntrust_domains = [\"acme.internal\"]\n\
             [store]\n{store}\n"
        );
        std::fs::write(&file, text).unwrap();
        file
    };
    let run = |store: &str, arguments: &[&str]| {
        let config = write(store);
        let output = Command::new(BINARY)
            .args(arguments)
            .arg("--config")
            .arg(config)
            .args(["--output", "json"])
            .env_remove("P8BROKER_STORE_URL")
            .output()
            .unwrap();
        let text = if output.status.success() { output.stdout } else { output.stderr };
        (output.status.code().unwrap(), String::from_utf8(text).unwrap())
    };
    let here = format!("url = \"{url}\"");
    let (code, said) = run(&here, &["doctor"]);
    assert!(code == 1 && said.contains("DATABASE_UNFIT") && said.contains("p8broker migrate"), "{said}");
    let manual = format!("{here}\nmigrate = false");
    let (code, said) = run(&manual, &["serve"]);
    assert!(code == 1 && said.contains("DATABASE_UNFIT"), "{said}");
    assert_eq!(run(&here, &["migrate"]).0, 0);
    assert_eq!(run(&here, &["doctor"]).0, 0);
    let (code, said) = run("url = \"postgres://p8broker@127.0.0.1:1/x?sslmode=disable\"", &["doctor"]);
    assert!(code == 4 && said.contains("DATABASE_UNAVAILABLE"), "{said}");
    for (wrong, what) in [
        ("", "name a database"),
        ("url = \"mysql://x\"", "postgres://"),
        ("url = \"sqlite:///x\"\nsqlite = \"/x\"", "exclude each other"),
        ("url = \"postgres://b:hunter2@db.acme.internal/v?sslmode=require\"", "verify-full"),
        ("url = \"postgres://b@127.0.0.1/v\"\npassword_file = \"/a\"\npassword_env = \"B\"", "exclude each other"),
        ("url = \"postgres://b@127.0.0.1/v\"\nclient_key_env = \"B\"", "go together"),
    ] {
        let (code, said) = run(wrong, &["config", "check"]);
        assert!(code == 2 && said.contains(what) && !said.contains("hunter2"), "{wrong}: {said}");
    }
    let twice = Command::new(BINARY).args(["dev", "--replicas", "2", "--dir"]).arg(broker.dir.path()).output().unwrap();
    assert_eq!(twice.status.code(), Some(2));
}
