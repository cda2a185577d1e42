//! P4 under `kill -9`: the process is killed at random under load, fifty times. Every token that a client received must be
//! in the audit, the audit must verify, and the vault must open, also in the middle of revokes, rotations and imports.

use std::collections::HashSet;
use std::time::Duration;

use p8broker::client::Target;
use p8broker::grpc::proto;
use tokio::task::JoinSet;

use crate::cli::Playground;
use crate::harness::*;

const KILLS: u32 = 50;

/// A small generator of its own, so that a run can be repeated by its seed.
struct Random(u64);

impl Random {
    fn below(&mut self, most: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % most
    }
}

async fn connect(it: &Playground, who: &str) -> Client {
    let env: std::collections::HashMap<_, _> = it.env(who).into_iter().collect();
    let file = |name: &str| (&env[name]).into();
    let (cacert, cert, key) = (file("P8BROKER_CACERT"), file("P8BROKER_CERT"), file("P8BROKER_KEY"));
    let target = Target::certified(env["P8BROKER_ADDR"].clone(), cacert, cert, key);
    Client::new(target.connect().await.unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p4_every_token_a_client_received_is_in_the_audit_however_the_process_dies() {
    let seed = std::env::var("P8BROKER_TEST_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or_else(|| u64::try_from(p8broker::clock::Clock::now(&p8broker::clock::SystemClock).0).unwrap());
    println!("P8BROKER_TEST_SEED={seed}");
    let mut random = Random(seed);
    let mut received: HashSet<String> = HashSet::new();
    let mut it = Playground::start().await;
    for kill in 0..KILLS {
        let mut load = JoinSet::new();
        for worker in 0..4_u32 {
            let mut client = connect(&it, "client").await;
            load.spawn(async move {
                let mut ids = Vec::new();
                for nth in 0..100_000_u32 {
                    let scope = vec![format!("GET /v1/builds/{kill}{worker}{nth}")];
                    match client.issue(proto::IssueTokenRequest { scope, ..ask() }).await {
                        Ok(issued) => ids.push(issued.token_id),
                        Err(_) => break,
                    }
                }
                ids
            });
        }
        // Changes go on meanwhile, so that some kills meet them half done.
        let mut operator = connect(&it, "operator").await;
        load.spawn(async move {
            for nth in 0..100_000_u32 {
                let id = format!("K{kill:04}{:05}", nth / 5);
                let done = match nth % 5 {
                    0 => operator.import(&import(&id, &new_p8())).await.is_ok(),
                    1 => operator.system.rotate(proto::RotateRequest {}).await.is_ok(),
                    2 => operator.system.rekey(proto::RekeyRequest::default()).await.is_ok(),
                    3 => operator.revoke(proto::TargetKind::Key, &id).await.is_ok(),
                    _ => {
                        let confirm = proto::ConfirmRevokedAtAppleRequest { key_id: id };
                        operator.key.confirm_revoked_at_apple(confirm).await.is_ok()
                    }
                };
                if !done && nth > 500 {
                    break;
                }
                if operator.system.status(proto::StatusRequest {}).await.is_err() {
                    break;
                }
            }
            Vec::new()
        });
        tokio::time::sleep(Duration::from_millis(20 + random.below(130))).await;
        let dir = it.kill();
        received.extend(load.join_all().await.into_iter().flatten());
        it = Playground::go_on(dir).await;
        let status = connect(&it, "operator").await.system.status(proto::StatusRequest {}).await.unwrap().into_inner();
        assert_eq!(status.phase(), proto::Phase::Open, "after kill {kill}: {}", status.why);
    }
    let mut operator = connect(&it, "operator").await;
    let written: HashSet<String> = operator.all_events().await.into_iter().map(|event| event.token_id).collect();
    println!("{} tokens were received", received.len());
    assert!(received.len() > 500, "the load has to be one: {}", received.len());
    let lost: Vec<_> = received.difference(&written).collect();
    assert!(lost.is_empty(), "{} tokens are not in the audit", lost.len());
    let verified = operator.verify().await;
    assert!(verified.findings.is_empty(), "{:?}", verified.findings);
}
