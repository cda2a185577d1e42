//! Three replicas as processes, each with a network of its own between it and the database.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use p8broker::client::Target;
use p8broker::grpc::proto;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::sync::watch;

use super::postgres::Postgres;
use super::proxy::Proxy;
use super::{Random, free_port};
use crate::cli::BINARY;
use crate::harness::*;

pub const REPLICAS: usize = 3;

/// Teams of the sample: each has an app group, a policy and clients.
pub const TEAMS: [&str; 3] = ["games", "tools", "music"];

const CLIENTS_OF_A_TEAM: usize = 2;

/// How long a replica may take to answer a question of the test itself before it is asked again.
const ANSWER: Duration = Duration::from_secs(3);

pub struct Cluster {
    // Dropped in this order: whoever uses the database before the database, and the folder last.
    pub replicas: Vec<Replica>,
    pub postgres: Postgres,
    pki: Pki,
    dir: TempDir,
}

/// Whether something is wrong with a replica or its database; whoever measures how long things take leaves it out.
pub type Sick = watch::Sender<bool>;

/// One replica.
pub struct Replica {
    pub proxy: Proxy,
    pub sick: Sick,
    name: String,
    addr: String,
    config: PathBuf,
    log: PathBuf,
    process: Option<Child>,
}

/// The name of a team's policy.
pub fn policy_of(team: &str) -> String {
    format!("{team}-ci")
}

/// Every client, with its team.
pub fn clients() -> Vec<(String, &'static str)> {
    let of =
        |team| (1..=CLIENTS_OF_A_TEAM).map(move |nth| (format!("spiffe://acme.internal/ns/ci/sa/{team}-{nth}"), team));
    TEAMS.into_iter().flat_map(of).collect()
}

/// One account and one key for all teams.
fn document() -> proto::Document {
    let group = |team: &str| proto::AppGroup {
        name: team.to_owned(),
        account: "acme".to_owned(),
        apps: vec!["1234567890".to_owned()],
    };
    let policy = |team: &str| proto::Policy {
        name: policy_of(team),
        clients: vec![spiffe(&format!("spiffe://acme.internal/ns/ci/sa/{team}-*"))],
        app_group: team.to_owned(),
        ..release_policy()
    };
    proto::Document {
        app_groups: TEAMS.into_iter().map(group).collect(),
        policies: TEAMS.into_iter().map(policy).collect(),
        ..sample()
    }
}

impl Cluster {
    /// A vault on a database of its own, and three replicas that serve it.
    pub async fn start(random: &mut Random) -> Self {
        let dir = TempDir::new().unwrap();
        let pki = Pki::new(&dir.path().join("pki"));
        std::fs::write(dir.path().join("unseal.key"), "5a".repeat(32)).unwrap();
        let postgres = Postgres::create(&dir.path().join("primary"), free_port(random)).await;
        let mut cluster = Self { replicas: Vec::new(), postgres, pki, dir };
        for name in ["a", "b", "c"] {
            let replica = Replica::prepare(&cluster, name, random).await;
            cluster.replicas.push(replica);
        }
        cluster.replicas[0].run();
        let mut operator = cluster.operator(0).await;
        operator.system.init(proto::InitRequest::default()).await.unwrap();
        operator.apply(document()).await.unwrap();
        let key =
            proto::ImportKeyRequest { app_groups: TEAMS.map(ToOwned::to_owned).to_vec(), ..import(KEY_ID, &new_p8()) };
        operator.import(&key).await.unwrap();
        for replica in &mut cluster.replicas[1..] {
            replica.run();
        }
        for nth in 0..REPLICAS {
            cluster.well(nth).await;
        }
        cluster
    }

    pub fn folder(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Who asks which replica.
    pub fn target(&self, nth: usize, identity: &str) -> Target {
        let (cert, key) = self.pki.client(identity);
        let cacert = self.pki.dir.join("ca.pem");
        Target::certified(self.replicas[nth].addr.clone(), cacert, cert, key)
    }

    /// An operator's connection, as soon as the replica takes it.
    pub async fn operator(&mut self, nth: usize) -> Client {
        self.connect(nth, OPERATOR).await
    }

    pub async fn connect(&mut self, nth: usize, identity: &str) -> Client {
        let target = self.target(nth, identity);
        let mut connected = None;
        eventually("the replica takes connections", async || {
            self.replicas[nth].lives();
            connected = target.connect().await.ok();
            connected.is_some()
        })
        .await;
        Client::new(connected.unwrap())
    }

    pub async fn status(&mut self, nth: usize) -> proto::StatusResponse {
        let mut operator = self.operator(nth).await;
        let mut status = None;
        eventually("the replica says how it is", async || {
            let asked = tokio::time::timeout(ANSWER, operator.system.status(proto::StatusRequest {})).await;
            status = asked.ok().and_then(Result::ok).map(tonic::Response::into_inner);
            status.is_some()
        })
        .await;
        status.unwrap()
    }

    /// Waits until a replica serves, with its database.
    pub async fn well(&mut self, nth: usize) {
        let mut operator = self.operator(nth).await;
        let name = self.replicas[nth].name.clone();
        let mut last = String::new();
        for _ in 0..500 {
            self.replicas[nth].lives();
            let target = proto::Target { kind: proto::TargetKind::AppGroup.into(), name: TEAMS[0].to_owned() };
            let request = proto::ExposureRequest { target: Some(target), page_token: String::new() };
            let asked = operator.revocation.exposure(request);
            match tokio::time::timeout(ANSWER, asked).await {
                Ok(Ok(_)) => {
                    self.replicas[nth].sick.send_replace(false);
                    return;
                }
                Ok(Err(status)) => last = status.to_string(),
                Err(_) => "no answer".clone_into(&mut last),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("replica {name} does not come back: {last}\n{}", self.replicas[nth].last_words());
    }

    /// Waits until a replica has a revision.
    pub async fn reaches(&mut self, nth: usize, revision: u64) {
        let mut operator = self.operator(nth).await;
        eventually("the replica follows", async || {
            let asked = tokio::time::timeout(ANSWER, operator.system.status(proto::StatusRequest {})).await;
            asked.is_ok_and(|status| status.is_ok_and(|status| status.into_inner().revision >= revision))
        })
        .await;
    }

    /// Leads every replica to another server, which is the database from now on.
    pub fn move_to(&mut self, postgres: Postgres) {
        for replica in &self.replicas {
            replica.proxy.lead_to(postgres.port);
        }
        self.postgres = postgres;
    }

    /// Stops the replicas as an operator would, and the database.
    pub async fn stop(mut self) {
        for replica in &mut self.replicas {
            replica.signal(Signal::TERM);
        }
        for replica in &mut self.replicas {
            let mut process = replica.process.take().expect("it runs");
            let mut ended = None;
            eventually("the replica drains", async || {
                ended = process.try_wait().unwrap();
                ended.is_some()
            })
            .await;
            assert!(ended.unwrap().success(), "replica {}: {}", replica.name, replica.last_words());
        }
        self.postgres.stop(super::postgres::Stop::Fast).await;
    }
}

impl Replica {
    async fn prepare(cluster: &Cluster, name: &str, random: &mut Random) -> Self {
        let dir = cluster.dir.path();
        let proxy = Proxy::start(cluster.postgres.port).await;
        let (grpc, ops) = (free_port(random), free_port(random));
        let config = dir.join(format!("{name}.toml"));
        let url = format!("postgres://p8broker@127.0.0.1:{}/postgres?sslmode=disable", proxy.port);
        let limits =
            "admin_per_second = 1000000\nrequests_per_connection_per_second = 1000000\nsignatures_per_second = 1000000";
        std::fs::write(&config, settings(dir, name, (grpc, ops), &url, limits)).unwrap();
        Self {
            proxy,
            sick: Sick::default(),
            name: name.to_owned(),
            addr: format!("127.0.0.1:{grpc}"),
            config,
            log: dir.join(format!("{name}.log")),
            process: None,
        }
    }

    /// Starts the process, for the first time or again.
    pub fn run(&mut self) {
        assert!(self.process.is_none(), "it runs already");
        let log = std::fs::File::options().create(true).append(true).open(&self.log).unwrap();
        let mut command = Command::new(BINARY);
        command.args(["serve", "--config"]).arg(&self.config).stdin(Stdio::null());
        self.process = Some(command.stdout(Stdio::null()).stderr(log).spawn().unwrap());
    }

    /// As `kill -9` does.
    pub fn kill(&mut self) {
        self.sick.send_replace(true);
        let mut process = self.process.take().expect("it runs");
        process.kill().unwrap();
        process.wait().unwrap();
    }

    /// Stops it wherever it is; it notices nothing.
    pub fn pause(&mut self) {
        self.sick.send_replace(true);
        self.signal(Signal::STOP);
    }

    pub fn go_on(&mut self) {
        self.signal(Signal::CONT);
    }

    fn signal(&mut self, signal: Signal) {
        kill_process(Pid::from_child(self.process.as_ref().expect("it runs")), signal).unwrap();
    }

    /// Fails where the process has ended by itself.
    fn lives(&mut self) {
        let ended = self.process.as_mut().expect("it runs").try_wait().unwrap();
        assert!(ended.is_none(), "replica {} ended with {ended:?}: {}", self.name, self.last_words());
    }

    fn last_words(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }
}

impl Drop for Replica {
    /// Ends what a failed test left behind, also where it is paused.
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

/// A replica's configuration, with what stands under `[limits]`.
pub fn settings(dir: &Path, name: &str, (grpc, ops): (u16, u16), url: &str, limits: &str) -> String {
    let dir = dir.display();
    format!(
        r#"
[listen]
grpc = "127.0.0.1:{grpc}"
ops = "127.0.0.1:{ops}"
[tls]
certificate = "{dir}/pki/server.pem"
key = "{dir}/pki/server-key.pem"
[[tls.client_cas]]
file = "{dir}/pki/ca.pem"
trust_domains = ["acme.internal"]
[store]
url = "{url}"
[unseal]
key_file = "{dir}/unseal.key"
[bootstrap]
operators = ["{OPERATOR}"]
[replica]
name = "{name}"
[limits]
tokens_per_second = 1000000
{limits}
[log]
level = "warn"
[drain]
timeout_s = 5
"#
    )
}
