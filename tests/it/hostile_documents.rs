//! Hostile documents: each refused by the real binary with the right path and the right reason, before or after it asks
//! the broker, and each a step away from an honest one that is taken.

pub mod corpus;

use std::io::Write;
use std::process::{Command, Stdio};

use p8broker::grpc::proto;
use serde_json::Value;

use crate::cli::BINARY;
use crate::harness::*;
use corpus::{HONEST, Hostile, Told, honest, hostile};

/// `apply` of a text on standard input: exit code, and what was printed.
fn apply(text: &str, env: &[(&'static str, String)], options: &[&str]) -> (i32, Value) {
    let mut command = Command::new(BINARY);
    command.args(["apply", "-f", "-", "--output", "json"]).args(options).envs(env.iter().cloned());
    let streams = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = streams.spawn().unwrap();
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let printed = if output.status.success() { &output.stdout } else { &output.stderr };
    let parsed = serde_json::from_slice(printed);
    let code = output.status.code().unwrap_or(-1);
    (code, parsed.unwrap_or_else(|_| panic!("exit {code}: {}", String::from_utf8_lossy(printed))))
}

/// The path in a field such as `3:16: accounts[0].issuer_id`.
fn path(field: &str) -> &str {
    let placed = field.trim_start_matches(|c: char| c.is_ascii_digit() || c == ':');
    if placed.len() == field.len() { field } else { placed.strip_prefix(' ').unwrap_or(placed) }
}

/// The path with `*` for the number of each entry.
fn any_entry(path: &str) -> String {
    let parts = path.split('[').map(|part| match part.split_once(']') {
        Some((number, rest)) if number.bytes().all(|b| b.is_ascii_digit()) => format!("*]{rest}"),
        _ => part.to_owned(),
    });
    parts.collect::<Vec<_>>().join("[")
}

/// What is wrong with an answer, if anything.
fn misjudged(it: &Hostile, code: i32, answer: &Value) -> Option<String> {
    let error = &answer["error"];
    let violations = error["violations"].as_array().cloned().unwrap_or_default();
    let paths: Vec<&str> = it.path.split('|').collect();
    let known = |violation: &Value| {
        let at = path(violation["field"].as_str().unwrap());
        paths.iter().any(|path| *path == at || (path.contains("[*]") && *path == any_entry(at)))
    };
    let says = violations.first().is_some_and(|it_| it_["message"].as_str().unwrap().contains(&it.says));
    let right = code == 1 && error["reason"] == "INVALID_ARGUMENT" && says && violations.iter().all(known);
    (!right).then(|| format!("{}: exit {code}: {error:#}", it.name))
}

#[tokio::test]
async fn every_hostile_document_is_refused_with_the_right_reason_and_changes_nothing() {
    let mut broker = Broker::bare(Options::default()).await;
    let mut operator = broker.as_(OPERATOR).await;
    operator.system.init(proto::InitRequest::default()).await.unwrap();
    let env = broker.env(OPERATOR);
    let run = async |text: String, env: Vec<_>, options: &'static [&'static str]| {
        tokio::task::spawn_blocking(move || apply(&text, &env, options)).await.unwrap()
    };
    // The honest document is taken, and taken again.
    let (code, applied) = run(HONEST.to_owned(), env.clone(), &[]).await;
    assert_eq!(code, 0, "{applied:#}");
    let (code, again) = run(HONEST.to_owned(), env.clone(), &[]).await;
    assert!(code == 0 && again["steps"].as_array().unwrap().iter().all(|step| step["action"] == "KEEP"), "{again:#}");
    operator.import(&import(KEY_ID, &new_p8())).await.unwrap();
    let before = operator.system.status(proto::StatusRequest {}).await.unwrap().into_inner().revision;
    let (code, pruned) = run(HONEST.to_owned(), env.clone(), &["--plan", "--prune"]).await;
    assert_eq!(code, 0, "what pruning refuses is not the honest document: {pruned:#}");
    for text in honest() {
        let (code, planned) = run(text.clone(), env.clone(), &["--plan"]).await;
        assert_eq!(code, 0, "{planned:#}\n{text}");
    }
    let all = hostile();
    let of = |told: Told| all.iter().filter(move |it| it.told == told).count();
    assert!(all.len() >= 150 && of(Told::ByTheBroker) >= 20, "{} documents", all.len());
    let mut misjudgements = Vec::new();
    for it in all {
        // Nothing listens there: what is told offline is told without asking.
        let nowhere: Vec<(&'static str, String)> = vec![("P8BROKER_ADDR", "127.0.0.1:1".to_owned())];
        let (env, options): (_, &'static [&'static str]) = match it.told {
            Told::Offline => (nowhere, &[]),
            Told::ByTheBroker => (env.clone(), &[]),
            Told::ByTheBrokerWhenPruning => (env.clone(), &["--prune"]),
        };
        let (code, answer) = run(it.text.clone(), env, options).await;
        misjudgements.extend(misjudged(&it, code, &answer));
    }
    assert!(misjudgements.is_empty(), "{}\n{}", misjudgements.len(), misjudgements.join("\n"));
    let after = operator.system.status(proto::StatusRequest {}).await.unwrap().into_inner().revision;
    assert_eq!(after, before, "nothing was changed");
    broker.stop().await;
}

#[tokio::test]
async fn what_is_no_text_or_too_large_is_refused_before_it_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let run = |name: &str, content: &[u8]| {
        let path = dir.path().join(name);
        std::fs::write(&path, content).unwrap();
        let output = Command::new(BINARY).args(["apply", "--output", "json", "-f"]).arg(path).output().unwrap();
        let error: Value = serde_json::from_slice(&output.stderr).unwrap();
        (output.status.code(), error["error"]["message"].as_str().unwrap().to_owned())
    };
    let (code, message) = run("latin-1.yaml", b"accounts: # caf\xe9\n");
    assert!(code == Some(2) && message.contains("UTF-8"), "{message}");
    let (code, message) = run("huge.yaml", &vec![b'#'; 9 * 1024 * 1024]);
    assert!(code == Some(2) && message.contains("split it"), "{message}");
    let (code, message) = run("notes.txt", b"accounts: []");
    assert!(code == Some(2) && message.contains("cacert"), "a file is taken whatever its name: {message}");
}

#[test]
fn two_documents_are_not_the_same_and_each_has_its_name() {
    let all = hostile();
    let names: std::collections::BTreeSet<_> = all.iter().map(|it| &it.name).collect();
    let texts: std::collections::BTreeSet<_> = all.iter().map(|it| &it.text).collect();
    assert_eq!((names.len(), texts.len()), (all.len(), all.len()));
}
