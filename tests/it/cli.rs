//! The command line: what scripts outside of this project rely on.
//!
//! Over 400 lines, as it is the contract as a whole.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use crate::harness::*;

pub const BINARY: &str = env!("CARGO_BIN_EXE_p8broker");

/// `p8broker dev` in a folder, ended by its own id.
pub struct Playground {
    pub dir: TempDir,
    child: Child,
}

impl Playground {
    pub async fn start() -> Self {
        Self::go_on(TempDir::new().unwrap()).await
    }

    pub async fn go_on(dir: TempDir) -> Self {
        Self::with(dir, &[]).await
    }

    /// With further arguments.
    pub async fn with(dir: TempDir, arguments: &[&str]) -> Self {
        // What a killed process left behind does not say that this one is ready.
        let _ = std::fs::remove_file(dir.path().join("ready.json"));
        let child = Command::new(BINARY)
            .args(["dev", "--dir"])
            .arg(dir.path())
            .args(arguments)
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(dir.path().join("stderr")).unwrap())
            .spawn()
            .unwrap();
        let ready = dir.path().join("ready.json");
        let mut playground = Self { dir, child };
        eventually("the playground is ready", async || {
            assert!(playground.child.try_wait().unwrap().is_none(), "it ended");
            ready.exists()
        })
        .await;
        playground
    }

    pub fn env(&self, name: &str) -> Vec<(String, String)> {
        let text = std::fs::read_to_string(self.dir.path().join(format!("{name}.env"))).unwrap();
        let parse = |line: &str| {
            let (name, value) = line.strip_prefix("export ").unwrap().split_once('=').unwrap();
            (name.to_owned(), value.trim_matches('\'').to_owned())
        };
        text.lines().map(parse).collect()
    }

    pub fn run(&self, who: &str, arguments: &[&str]) -> Output {
        Command::new(BINARY).args(arguments).envs(self.env(who)).stdin(Stdio::null()).output().unwrap()
    }

    pub fn json(&self, who: &str, arguments: &[&str]) -> Value {
        let output = self.run(who, &[arguments, &["--output", "json"]].concat());
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    #[track_caller]
    pub fn fails(&self, who: &str, arguments: &[&str], code: i32, reason: &str) -> Value {
        let output = self.run(who, &[arguments, &["--output", "json"]].concat());
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {stderr}");
        let error: Value = serde_json::from_str(&stderr).unwrap_or_else(|_| panic!("{arguments:?}: {stderr}"));
        assert_eq!(error["error"]["reason"], reason, "{arguments:?}: {stderr}");
        error["error"].clone()
    }

    pub fn signal(&self, name: &str) {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args([&format!("-{name}"), &id]).status().unwrap().success());
    }

    /// Kills it, and keeps the folder.
    pub fn kill(mut self) -> TempDir {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        let dir = TempDir::new().unwrap();
        std::mem::replace(&mut self.dir, dir)
    }

    pub fn wait(&mut self) -> std::process::ExitStatus {
        for _ in 0..500 {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("it does not end");
    }
}

impl Drop for Playground {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a command line did: exit code, standard output, standard error.
pub type Ran = (i32, String, String);

/// Runs the binary as somebody, with this on its standard input.
pub async fn run_as(broker: &Broker, identity: &str, arguments: &[&str], input: &str) -> Ran {
    let mut command = Command::new(BINARY);
    command.args(arguments).envs(broker.env(identity)).current_dir(broker.dir.path());
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let input = input.to_owned();
    let run = move || {
        use std::io::Write;
        let mut child = command.spawn().unwrap();
        // A command that does not read ends before it is written to.
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        let output = child.wait_with_output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr))
    };
    tokio::task::spawn_blocking(run).await.unwrap()
}

/// The same with JSON as its answer; of a failure the error.
pub async fn json_as(broker: &Broker, identity: &str, arguments: &[&str], input: &str) -> (i32, Value) {
    let (code, out, err) = run_as(broker, identity, &[arguments, &["--output", "json"]].concat(), input).await;
    let text = if code == 0 { out } else { err };
    let mut value: Value = serde_json::from_str(&text).unwrap_or_else(|_| panic!("{arguments:?}: {text}"));
    (code, if code == 0 { value } else { value["error"].take() })
}

fn keys(object: &Value) -> Vec<&str> {
    object.as_object().unwrap().keys().map(String::as_str).collect()
}

fn write(dir: &Path, name: &str, content: &str) -> PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, content).unwrap();
    path
}

#[tokio::test]
async fn a_token_is_printed_bare_or_with_all_there_is_to_know() {
    let it = Playground::start().await;
    let ready: Value = serde_json::from_slice(&std::fs::read(it.dir.path().join("ready.json")).unwrap()).unwrap();
    for field in ["grpc_addr", "ops_addr", "ca", "operator_env", "client_env"] {
        assert!(ready[field].is_string(), "{field}");
    }
    let issue = ["token", "issue", "--app-group", "games", "--role", "APP_MANAGER"];
    let bare = it.run("client", &issue);
    assert!(bare.status.success());
    let bare = String::from_utf8(bare.stdout).unwrap();
    assert_eq!(bare.trim().split('.').count(), 3, "{bare}");
    let object = it.json("client", &issue);
    let wanted =
        ["enforced_by", "expires_at", "expires_in_s", "issuer_id", "key_id", "policy", "revision", "token", "token_id"];
    assert!(wanted.iter().all(|field| keys(&object).contains(field)), "{object}");
    assert_eq!(object["token"], bare.trim());
    assert_eq!(object["policy"], "games-release-ci");
    let short = [&issue[..], &["--ttl", "90s", "--scope", "GET /v1/apps", "--fresh"]].concat();
    let object = it.json("client", &short);
    assert_eq!(object["expires_in_s"], 90);
    it.fails("stranger", &issue, 3, "NO_POLICY");
    it.fails("client", &["key", "list"], 3, "NOT_AN_OPERATOR");
    it.fails("client", &["token", "issue", "--app-group", "games"], 2, "USAGE");
    it.fails("client", &["token", "issue", "--app-group", "games", "--role", "KING"], 2, "USAGE");
    let unreachable = [&issue[..], &["--addr", "127.0.0.1:1"]].concat();
    it.fails("client", &unreachable, 4, "UNREACHABLE");
}

#[tokio::test]
async fn a_token_goes_to_a_file_of_its_owner_alone_and_is_not_printed() {
    use std::os::unix::fs::PermissionsExt;
    let mut broker = Broker::start().await;
    let file = broker.dir.path().join("token");
    let issue =
        ["token", "issue", "--app-group", "games", "--role", "APP_MANAGER", "--token-file", file.to_str().unwrap()];
    let (code, out, _) = run_as(&broker, CLIENT, &issue, "").await;
    let token = std::fs::read_to_string(&file).unwrap();
    assert!(code == 0 && token.starts_with("eyJ") && !out.contains(&token) && out.contains("good until"), "{out}");
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let (code, answer) = json_as(&broker, CLIENT, &issue, "").await;
    assert!(code == 0 && answer.get("token").is_none() && answer["reused"] == true, "{answer}");
    let nowhere = [&issue[..6], &["--token-file", "/nowhere/token"]].concat();
    let (code, error) = json_as(&broker, CLIENT, &nowhere, "").await;
    assert!(code == 1 && error["message"].as_str().unwrap().contains("/nowhere/token"), "{error}");
    broker.stop().await;
}

#[tokio::test]
async fn init_if_needed_makes_a_vault_once_and_leaves_one_alone_that_is_there() {
    let mut broker = Broker::bare(Options::default()).await;
    let init = ["operator", "init", "--if-needed"];
    let (code, made) = json_as(&broker, OPERATOR, &init, "").await;
    assert!(code == 0 && made["vault"].is_string(), "{made}");
    let (code, again) = json_as(&broker, OPERATOR, &init, "").await;
    assert_eq!((code, &again), (0, &serde_json::json!({ "initialised": false })));
    let (code, error) = json_as(&broker, OPERATOR, &init[..2], "").await;
    assert_eq!((code, error["reason"].as_str()), (1, Some("ALREADY_INITIALISED")), "{error}");
    let revision = broker.inner().open().unwrap().state().head().revision;
    broker.stop().await;
    // On the machine itself, too; it does not even open it.
    let config = crate::backup::config_file(&broker, "p8broker.toml", &crate::backup::store_of(&broker));
    let here = ["operator", "init", "--if-needed", "--config", config.to_str().unwrap()];
    let (code, again) = crate::backup::here(&here);
    assert_eq!((code, &again), (0, &serde_json::json!({ "initialised": false })));
    broker.run(None).await;
    let now = broker.inner().open().unwrap().state().head().revision;
    assert_eq!(now.0, revision.0 + 1, "the start of a writer, and nothing else");
    broker.stop().await;
}

#[tokio::test]
async fn keys_are_imported_and_revoked() {
    let it = Playground::start().await;
    let file = write(it.dir.path(), "AuthKey_CLIKEY2345.p8", &new_p8());
    let file = file.to_str().unwrap();
    let import = |file: &str, extra: &[&str]| {
        let mut out: Vec<String> = ["key", "import", file, "--account", "acme"].map(ToOwned::to_owned).to_vec();
        out.extend(["--role", "APP_MANAGER", "--app-group", "games"].map(ToOwned::to_owned));
        out.extend(extra.iter().map(|it| (*it).to_owned()));
        out
    };
    let run = |arguments: &[String]| it.json("operator", &arguments.iter().map(String::as_str).collect::<Vec<_>>());
    let key = run(&import(file, &["--kind", "team"]));
    assert_eq!((key["key_id"].as_str(), key["state"].as_str()), (Some("CLIKEY2345"), Some("ACTIVE")));
    let other = write(it.dir.path(), "key.p8", &new_p8());
    let unnamed = import(other.to_str().unwrap(), &["--kind", "team"]);
    it.fails("operator", &unnamed.iter().map(String::as_str).collect::<Vec<_>>(), 2, "USAGE");
    let individual = ["--kind", "individual", "--key-id", "INDIVIDUAL", "--user", "a@b", "--app-access", "1234567890"];
    let key = run(&import(other.to_str().unwrap(), &individual));
    assert_eq!(key["app_access"], serde_json::json!(["1234567890"]));
    assert_eq!(it.json("operator", &["key", "list"]).as_array().unwrap().len(), 3);
    for (verb, state) in [("suspend", "SUSPENDED"), ("resume", "ACTIVE")] {
        assert_eq!(it.json("operator", &["key", verb, "CLIKEY2345", "--reason", "test"])["state"], state);
    }
    // Nobody says yes: nothing is revoked.
    it.fails("operator", &["key", "revoke", "CLIKEY2345", "--reason", "test"], 1, "NOT_CONFIRMED");
    it.json("operator", &["key", "revoke", "CLIKEY2345", "--reason", "test", "--yes"]);
    assert_eq!(it.json("operator", &["key", "show", "CLIKEY2345"])["state"], "REVOKED");
    let confirmed = it.json("operator", &["key", "confirm-revoked-at-apple", "CLIKEY2345"]);
    assert_eq!(confirmed["confirmed_at_apple"]["by"], "bootstrap-1");
    it.fails("operator", &["key", "show", "NOSUCHKEY1"], 1, "NOT_FOUND");
}

#[tokio::test]
async fn revokes_and_exposures_have_the_fields_that_scripts_read() {
    let it = Playground::start().await;
    let client = "spiffe://acme.internal/ns/ci/sa/release-bot";
    let issued = it.json("client", &["token", "issue", "--app-group", "games", "--role", "APP_MANAGER"]);
    for kind_and_name in [["policy", "games-release-ci"], ["app-group", "games"], ["client", client]] {
        let seen = it.json("operator", &["exposure", kind_and_name[0], kind_and_name[1]]);
        assert_eq!(seen["count"], 1, "{kind_and_name:?}");
        let revoked = it.json("operator", &["revoke", kind_and_name[0], kind_and_name[1], "--reason", "test", "--yes"]);
        let token = &revoked["exposure"][0];
        assert_eq!(token["token_id"], issued["token_id"]);
        for field in ["client", "policy", "key_id", "issued_at", "expires_at"] {
            assert!(token[field].is_string(), "{field}");
        }
        assert!(revoked["revision"].is_u64() && revoked["last_expires_at"].is_string());
        it.json("operator", &["reinstate", kind_and_name[0], kind_and_name[1], "--reason", "test"]);
    }
    it.fails("operator", &["revoke", "planet", "mars", "--reason", "test", "--yes"], 2, "USAGE");
    it.fails("operator", &["revoke", "client", "nobody", "--reason", "test", "--yes"], 1, "INVALID_ARGUMENT");
}

#[tokio::test]
async fn a_bad_document_is_refused_with_line_and_column_and_changes_nothing() {
    let it = Playground::start().await;
    let bad = "policies:\n  - name: p\n    clients: [{ spiffe: x }]\n    app_group: nowhere\n    roles: [KING]\n";
    let bad = write(it.dir.path(), "bad.yaml", bad);
    let error = it.fails("operator", &["apply", "-f", bad.to_str().unwrap()], 1, "INVALID_ARGUMENT");
    let fields: Vec<&str> =
        error["violations"].as_array().unwrap().iter().map(|it| it["field"].as_str().unwrap()).collect();
    assert_eq!(fields, ["3:25: policies[0].clients[0].spiffe", "5:13: policies[0].roles[0]"]);
    // What only the broker can tell has its line and column, too.
    let lost = "policies:\n  - name: p\n    clients: [{ spiffe: 'spiffe://a/b' }]\n    app_group: nowhere\n    roles: [ADMIN]\n";
    let lost = write(it.dir.path(), "lost.yaml", lost);
    let error = it.fails("operator", &["apply", "-f", lost.to_str().unwrap()], 1, "INVALID_ARGUMENT");
    assert_eq!(error["violations"][0]["field"], "4:16: policies[0].app_group");
    let good = it.dir.path().join("policies.yaml");
    let plan = it.json("operator", &["apply", "-f", good.to_str().unwrap(), "--plan"]);
    assert!(plan["applied"] == false && plan["steps"].as_array().unwrap().iter().all(|step| step["action"] == "KEEP"));
    let text = std::fs::read_to_string(&good).unwrap().replace("max_ttl: 10m", "max_ttl: 9m");
    std::fs::write(&good, text).unwrap();
    let applied = it.json("operator", &["apply", "-f", good.to_str().unwrap()]);
    assert_eq!(applied["steps"][2]["changes"][0], "max_ttl: 600s -> 540s");
    it.fails("operator", &["apply", "-f", "/no/such/file"], 2, "USAGE");
}

#[tokio::test]
async fn the_audit_is_listed_followed_verified_and_pruned() {
    let it = Playground::start().await;
    let mut follower = Command::new(BINARY)
        .args(["audit", "follow", "--from", "1h", "--output", "json"])
        .envs(it.env("operator"))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    it.json("client", &["token", "issue", "--app-group", "games", "--role", "APP_MANAGER"]);
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(follower.stdout.take().unwrap()));
    let found = lines.by_ref().take(20).find(|line| {
        let event: Value = serde_json::from_str(line.as_ref().unwrap()).unwrap();
        event["outcome"] == "SIGNED"
    });
    assert!(found.is_some());
    follower.kill().unwrap();
    follower.wait().unwrap();
    let list = it.run("operator", &["audit", "list", "--outcome", "signed", "--output", "json"]);
    assert_eq!(String::from_utf8(list.stdout).unwrap().lines().count(), 1, "one object a line");
    let verified = it.json("operator", &["audit", "verify"]);
    assert!(verified["ok"] == true && verified["rows"].as_u64().unwrap() > 4);
    assert!(it.json("operator", &["audit", "prune", "--before", "30days"])["rows"] == 0);
    it.fails("operator", &["audit", "prune", "--before", "never"], 2, "USAGE");
}

#[tokio::test]
async fn the_operator_commands_seal_unseal_rotate_and_rekey() {
    let mut it = Playground::start().await;
    assert_eq!(it.json("operator", &["operator", "status"])["phase"], "OPEN");
    it.json("operator", &["operator", "seal", "--reason", "test"]);
    it.fails("client", &["token", "issue", "--app-group", "games", "--role", "APP_MANAGER"], 4, "SEALED");
    assert_eq!(it.json("operator", &["operator", "status"])["phase"], "SEALED");
    assert_eq!(it.json("operator", &["operator", "unseal"])["sealed"], false);
    assert_eq!(it.json("operator", &["operator", "rotate"])["root_key_version"], 2);
    assert_eq!(it.json("operator", &["operator", "rekey"])["done"], true);
    // It drains on SIGTERM, and goes on with the same vault.
    it.signal("TERM");
    assert!(it.wait().success());
    let dir = std::mem::replace(&mut it.dir, TempDir::new().unwrap());
    let it = Playground::go_on(dir).await;
    it.json("client", &["token", "issue", "--app-group", "games", "--role", "APP_MANAGER"]);
    let status = it.json("operator", &["operator", "status"]);
    assert_eq!((&status["unseal_generation"], &status["root_key_version"]), (&2.into(), &2.into()));
}

#[tokio::test]
async fn shares_are_made_on_the_machine_written_for_their_owner_alone_and_replaced() {
    use std::os::unix::fs::PermissionsExt;
    let mut broker = Broker::prepare(&Options { by_shares: true, ..Options::default() });
    let pki = broker.pki.dir.display().to_string();
    let config = write(
        broker.dir.path(),
        "p8broker.toml",
        &format!(
            "[listen]\ngrpc = \"127.0.0.1:0\"\nops = \"127.0.0.1:0\"\n[tls]\ncertificate = \"{pki}/server.pem\"\n\
             key = \"{pki}/server-key.pem\"\n[[tls.client_cas]]\nfile = \"{pki}/ca.pem\"\ntrust_domains = [\"acme.internal\"]\n\
             [store]\nsqlite = \"{}\"\n",
            broker.database().display()
        ),
    );
    let shares = broker.dir.path().join("shares");
    let init = |extra: &[&str]| {
        let config = config.to_str().unwrap();
        let mut command = Command::new(BINARY);
        command
            .args(["operator", "init", "--output", "json", "--config", config, "--shares-dir"])
            .arg(&shares)
            .args(extra);
        command.stdin(Stdio::null()).output().unwrap()
    };
    assert!(!init(&[]).status.success(), "nobody would be an operator");
    let made = init(&["--operator", OPERATOR, "--shares", "3", "--threshold", "2"]);
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    assert!(!String::from_utf8_lossy(&made.stdout).contains("p8share-"), "written to files, not shown");
    let file = |dir: &Path, nth: usize| dir.join(format!("share-{nth}.txt"));
    assert_eq!(std::fs::metadata(file(&shares, 1)).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(init(&["--operator", OPERATOR]).status.code(), Some(2), "shares are never written over");
    broker.run(None).await;
    let run = |broker: &Broker, arguments: &[&str]| {
        let mut command = Command::new(BINARY);
        command.args(arguments).args(["--output", "json"]).envs(broker.env(OPERATOR)).stdin(Stdio::null());
        async move {
            let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
            let text = if output.status.success() { output.stdout } else { output.stderr };
            (output.status.code().unwrap(), serde_json::from_slice::<Value>(&text).unwrap())
        }
    };
    let path = |dir: &Path, nth: usize| file(dir, nth).display().to_string();
    assert_eq!(run(&broker, &["operator", "unseal", "--share-file", &path(&shares, 3)]).await.1["given"], 1);
    let (code, error) = run(&broker, &["operator", "unseal", "--share-file", &path(&shares, 3)]).await;
    assert!(code == 1 && error["error"]["reason"] == "BAD_SHARE", "{error}");
    assert_eq!(run(&broker, &["operator", "unseal", "--share-file", &path(&shares, 1)]).await.1["sealed"], false);
    let new = broker.dir.path().join("new").display().to_string();
    let mut rekey = vec!["operator", "rekey", "--shares", "4", "--threshold", "3", "--shares-dir", &new];
    let (one, two) = (path(&shares, 1), path(&shares, 2));
    rekey.extend(["--share-file", &one, "--share-file", &two]);
    let (code, done) = run(&broker, &rekey).await;
    assert!(code == 0 && done["done"] == true && done["generation"] == 2, "{done}");
    broker.restart().await;
    let (code, error) = run(&broker, &["operator", "unseal", "--share-file", &one]).await;
    assert!(code == 1 && error["error"]["message"].as_str().unwrap().contains("outdated"), "{error}");
    for nth in 1..=3 {
        let share = path(Path::new(&new), nth);
        assert_eq!(run(&broker, &["operator", "unseal", "--share-file", &share]).await.0, 0);
    }
    assert_eq!(run(&broker, &["operator", "status"]).await.1["phase"], "OPEN");
    broker.stop().await;
}

#[tokio::test]
async fn a_bad_configuration_is_refused_with_suggestions() {
    let it = Playground::start().await;
    let good = std::fs::read_to_string(it.dir.path().join("p8broker.toml")).unwrap();
    let path = it.dir.path().join("changed.toml");
    let path = path.to_str().unwrap();
    let check = |text: &str, env: &[(&str, &str)]| {
        std::fs::write(path, text).unwrap();
        let mut command = Command::new(BINARY);
        command.args(["config", "check", "--config", path, "--output", "json"]).envs(env.iter().copied());
        let output = command.output().unwrap();
        (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    assert_eq!(check(&good, &[]).0, 0);
    let (code, error) = check(&good.replace("certificate =", "certificat ="), &[]);
    assert!(code == 2 && error.contains("did you mean `certificate`?"), "{error}");
    let (code, error) = check(&good.replace("acme.internal\"]", "ACME\"]"), &[]);
    assert!(code == 2 && error.contains("is not a trust domain"), "{error}");
    let by_token = r#"operators = ["oidc:corp:root", "#;
    let (code, error) = check(&good.replace("operators = [", by_token), &[]);
    assert!(code == 2 && error.contains("bootstrap.operators[0]") && error.contains("by certificate"), "{error}");
    let (code, error) = check(&good, &[("P8BROKER_LISTEN__GRPC", "nowhere")]);
    assert!(code == 2 && error.contains("listen"), "{error}");
    let (code, error) = check(&good, &[("P8BROKER_LISTEN__GRCP", "127.0.0.1:1")]);
    assert!(code == 2 && error.contains("did you mean `grpc`?"), "{error}");
    let (code, error) = check(&good.replace("server-key.pem", "no-such.pem"), &[]);
    assert!(code == 1 && error.contains("no-such.pem"), "{error}");
    let (code, error) = check(&good, &[("P8BROKER_TRACES__ENDPOINT", "collector:4317")]);
    assert!(code == 2 && error.contains("traces.endpoint"), "{error}");
    let collector = ("P8BROKER_TRACES__ENDPOINT", "https://collector:4317");
    assert_eq!(check(&good, &[collector]).0, 0);
    for name in ["CA_FILE", "HEADERS_FILE"] {
        let (code, error) = check(&good, &[collector, (&format!("P8BROKER_TRACES__{name}"), "no-such-file")]);
        assert!(code == 1 && error.contains("no-such-file"), "{error}");
    }
}

#[tokio::test]
async fn a_second_process_on_the_same_vault_is_refused() {
    let it = Playground::start().await;
    let config = it.dir.path().join("p8broker.toml");
    let second = Command::new(BINARY).args(["serve", "--config"]).arg(config).output().unwrap();
    assert_eq!(second.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&second.stderr).contains("another process has"));
}
