//! Commands in pages, run as a reader would run them: in a folder with a playground, by a shell, one after the other.
//!
//! What a reader has to fill in is filled in here ([`filled`]); what a command needs to be there before is made
//! ([`World::prepare`]). What runs elsewhere is said in [`ELSEWHERE`], with the test that runs it.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

use super::{commands, pages, words};
use crate::cli::{BINARY, Playground};
use crate::harness::*;

/// What no playground can do, by its first words; the test that does it, and the word that it does it with.
const ELSEWHERE: [(&str, &str, &str); 11] = [
    ("apply -f policies.yaml --plan --refuse-advisory", "tests/it/desired.rs", "\"--refuse-advisory\""),
    ("operator accept-history", "tests/it/backup/older.rs", "\"accept-history\""),
    ("operator init", "tests/it/cli.rs", "\"operator\", \"init\""),
    ("operator rekey --share-file", "tests/it/cli.rs", "\"operator\", \"rekey\", \"--shares\""),
    ("dev --dir playground --store-url", "tests/it/cli_fleet.rs", "\"--store-url\""),
    ("dev --dir fleet", "tests/it/cli_fleet.rs", "\"--replicas\""),
    ("token issue --bearer-file", "tests/it/leak.rs", "bearer-file"),
    ("operator unseal --addr ONE_REPLICA --share-file", "tests/it/cli.rs", "\"unseal\", \"--share-file\""),
    ("access list --client oidc:", "tests/it/access_list.rs", "\"--client\", \"oidc:"),
    ("proposal", "tests/it/approval.rs", "\"proposal\""),
    ("break-glass", "tests/it/break_glass.rs", "\"break-glass\""),
];

/// Commands that go on until somebody ends them.
const ENDLESS: [&str; 3] = ["token watch", "audit follow", "serve"];

/// Commands after which a playground is not what the next command expects.
const LASTING: [&str; 9] = [
    "revoke",
    "panic",
    "reinstate",
    "key revoke",
    "operator seal",
    "operator rekey",
    "operator rotate",
    "restore",
    "dev",
];

/// A folder with a playground in it, and what commands find there.
struct World {
    dir: TempDir,
    playground: Playground,
    decision: String,
    token: String,
    key: String,
}

impl World {
    async fn new() -> Self {
        let playground = Playground::start().await;
        let dir = TempDir::new().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::os::unix::fs::symlink(playground.dir.path(), at("playground")).unwrap();
        std::fs::create_dir_all(at("bin")).unwrap();
        std::fs::create_dir_all(at("target/release")).unwrap();
        std::fs::create_dir_all(at("policies")).unwrap();
        std::os::unix::fs::symlink(BINARY, at("bin/p8broker")).unwrap();
        std::os::unix::fs::symlink(BINARY, at("target/release/p8broker")).unwrap();
        for copy in ["policies.yaml", "policies/games.yaml", "acme.yaml"] {
            std::fs::copy(playground.dir.path().join("policies.yaml"), at(copy)).unwrap();
        }
        std::fs::write(at("cases.yaml"), CASES).unwrap();
        for p8 in ["AuthKey_2X9R4HXF34.p8", "key.p8"] {
            std::fs::write(at(p8), new_p8()).unwrap();
        }
        let leaked = at("leaked.jwt");
        let asked = ["token", "issue", "--app-group", "games", "--role", "APP_MANAGER"];
        let file = ["--token-file", leaked.to_str().unwrap()];
        let issued = playground.json("client", &[&asked[..], &file].concat());
        let text = |name: &str| issued[name].as_str().unwrap().to_owned();
        let (decision, token, key) = (text("decision_id"), text("token_id"), text("key_id"));
        Self { dir, playground, decision, token, key }
    }

    fn at(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }

    /// A configuration of the playground's own vault, or of one that is not there yet.
    fn configuration(&self, name: &str, empty: bool) {
        let text = std::fs::read_to_string(self.playground.dir.path().join("p8broker.toml")).unwrap();
        let (vault, anchor) = (format!("{name}.db"), format!("{name}.anchor"));
        let text = if empty {
            let other = |text: String, of: &str, file: &str| {
                let old = self.playground.dir.path().join(of).display().to_string();
                text.replace(&old, &self.at(file).display().to_string())
            };
            other(other(text, "vault.db", &vault), "anchor.json", &anchor)
        } else {
            text
        };
        std::fs::write(self.at(name), text).unwrap();
    }

    /// Makes what a command expects to be there; some can't run beside a broker on the same SQLite file.
    fn prepare(&mut self, command: &str) {
        let words: Vec<&str> = command.split_whitespace().collect();
        let after = |flag: &str| words.windows(2).find(|pair| pair[0] == flag).map(|pair| pair[1]);
        if let Some(backup) = after("--in").or(after("--from")).filter(|file| file.ends_with(".backup"))
            && !self.at(backup).exists()
        {
            let out = self.at(backup);
            self.playground.json("operator", &["operator", "backup", "--out", out.to_str().unwrap()]);
        }
        if let Some(out) = after("--out") {
            let _ = std::fs::remove_file(self.at(out));
        }
        if let Some(name) = after("--config") {
            self.configuration(name, ["restore", "migrate", "serve", "doctor"].contains(&words[0]));
            if words[0] == "operator" {
                self.stop();
            }
        }
        if let Some(name) = after("--previous") {
            self.configuration(name, false);
            self.stop();
        }
        let first: &[&str] = match words[..] {
            ["operator", "unseal", ..] => &["operator", "seal"],
            ["reinstate", kind, name, ..] => &["revoke", kind, name, "--yes"],
            ["key", "resume", ..] => &["key", "suspend", &self.key],
            ["key", "confirm-revoked-at-apple", ..] => &["key", "revoke", &self.key, "--yes"],
            _ => return,
        };
        self.playground.json("operator", &[first, &["--reason", "what comes first"]].concat());
    }

    fn stop(&mut self) {
        self.playground.signal("TERM");
        self.playground.wait();
    }

    /// What a reader fills in.
    fn filled(&self, command: &str) -> String {
        let mut out = Vec::new();
        let mut before = "";
        for word in command.split_whitespace() {
            let filled = match (before, word) {
                ("--key-id", _) => "3Y9R4HXF35".to_owned(),
                ("--reason", "…" | "TEXT" | "\"…\"") => "docs".to_owned(),
                ("client", "NAME" | "CLIENT") | ("--client", "CLIENT" | "NAME") => CLIENT.to_owned(),
                ("policy", "NAME" | "POLICY") => "games-release-ci".to_owned(),
                ("app-group", "NAME") | ("--app-group", "NAME" | "everything" | "puzzle") => "games".to_owned(),
                ("operator", "NAME") => "bootstrap-1".to_owned(),
                ("issuer", "NAME") => "ci".to_owned(),
                ("account", "NAME") => "acme".to_owned(),
                ("key", "OLD" | "NAME" | "ID" | "KEY_ID") => self.key.clone(),
                ("revoke" | "suspend" | "resume" | "confirm-revoked-at-apple", "ID" | "KEY_ID") => self.key.clone(),
                ("explain" | "--decision", "ID" | "DECISION_ID") => self.decision.clone(),
                ("exposure", "KIND") => "client".to_owned(),
                ("KIND", "NAME") => CLIENT.to_owned(),
                ("token" | "introspect", "TOKEN_ID" | "ID") => self.token.clone(),
                ("<" | "--jwt", "FILE") => "leaked.jwt".to_owned(),
                ("--config", "FILE") => "p8broker.toml".to_owned(),
                ("--token-file", "FILE") => "token.jwt".to_owned(),
                ("-f", "FILE") if command.starts_with("policy test") => "cases.yaml".to_owned(),
                ("-f", "PATH" | "FILE") => "policies.yaml".to_owned(),
                (_, "spiffe://…") => CLIENT.to_owned(),
                (_, "ONE_REPLICA" | "THAT_REPLICA") => "\"$P8BROKER_ADDR\"".to_owned(),
                (_, word) => word.to_owned(),
            };
            before = word;
            out.push(filled);
        }
        out.join(" ")
    }

    /// Runs one line as a shell would, as an operator where nobody else is meant.
    fn shell(&self, line: &str) -> Output {
        let who = if line.contains("token issue") || line.contains("token watch") { "client" } else { "operator" };
        let path = format!("{}:{}", self.at("bin").display(), std::env::var("PATH").unwrap());
        let mut shell = Command::new("timeout");
        shell.args(["-s", "TERM", if ends(line) { "60" } else { "1" }, "bash", "-c", line]);
        shell.envs(self.playground.env(who)).env("PATH", path).current_dir(self.dir.path());
        // Whoever is asked says yes.
        let yes = self.at("yes");
        std::fs::write(&yes, "yes\n".repeat(20)).unwrap();
        shell.stdin(Stdio::from(std::fs::File::open(yes).unwrap())).output().unwrap()
    }
}

const CASES: &str = "documents: [policies.yaml]\ncases:\n  - { name: a release, client: \
                     \"spiffe://acme.internal/ns/ci/sa/release-bot\", app_group: games, role: APP_MANAGER, expect: allow }\n";

fn is(command: &str, of: &[&str]) -> bool {
    of.iter().any(|start| command == *start || command.starts_with(&format!("{start} ")))
}

fn ends(line: &str) -> bool {
    !ENDLESS.iter().any(|endless| line.contains(&format!("p8broker {endless}")))
}

/// The command without what is said about it.
fn bare(command: &str) -> String {
    let said = command.find(" #").map_or(command, |at| &command[..at]);
    said.split("  ").next().unwrap_or_default().trim().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_command_in_a_page_does_what_it_is_there_for() {
    let (mut ran, mut wrong) = (0, Vec::new());
    let mut world = World::new().await;
    for (page, text) in pages() {
        if page.starts_with("docs/adr") || page.starts_with("docs/reference") || page == Path::new("CHANGELOG.md") {
            continue;
        }
        for command in commands(&text) {
            let command = bare(&command);
            let line = words(&command);
            // A word of another program's command, such as the name of a release.
            let is_other = line.first().is_none_or(|word| word.starts_with('-') || word.contains('/'));
            if is_other || is_mention(&line) {
                continue;
            }
            if let Some((start, test, word)) = ELSEWHERE.iter().find(|(start, ..)| command.starts_with(start)) {
                let source = std::fs::read_to_string(test).unwrap_or_default();
                assert!(source.contains(word), "{test} does not run {start}");
                continue;
            }
            let filled = world.filled(&command);
            world.prepare(&filled);
            let shown = world.shell(&format!("p8broker {filled}"));
            ran += 1;
            let ended = shown.status.code();
            // 124: ended from without, as it must be.
            if !(shown.status.success() || !ends(&format!("p8broker {filled}")) && ended == Some(124)) {
                let why = String::from_utf8_lossy(&shown.stderr).into_owned();
                wrong.push(format!("{}: p8broker {filled}: {ended:?} {}", page.display(), why.trim()));
            }
            if is(&command, &LASTING) || command.contains("--config") || command.contains("confirm-revoked") {
                world = World::new().await;
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(ran > 60, "{ran}");
}

/// A name of a command that takes more, or of a family, said in passing; that there is one, another test knows.
fn is_mention(words: &[&str]) -> bool {
    let help = Command::new(BINARY).args(words).arg("--help").output().unwrap();
    let help = String::from_utf8_lossy(&help.stdout);
    let usage = help.lines().find_map(|line| line.strip_prefix("Usage: p8broker ")).unwrap_or_default();
    let name = usage.split_whitespace().take_while(|word| !word.starts_with(['<', '[']));
    usage.contains('<') && name.eq(words.iter().copied())
}
