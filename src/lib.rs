//! p8broker keeps Apple's `.p8` keys in a sealed vault and hands out short-lived App Store Connect tokens by policy.
//!
//! # Map
//! A folder is a layer or a part of one; a module imports only from lines below its own, or before it on its own line.
//! `tests/layering.rs` holds that.
//!
//! | layer | modules | may use, beside lower layers |
//! | --- | --- | --- |
//! | 0 words | [`clock`], [`id`], [`secret`] | std, zeroize, time |
//! | 1 domain: pure, sync, no I/O | [`domain`] | serde |
//! | 2 mechanism | [`metrics`], [`trace`], [`vault`], [`signer`], [`store`] | aws-lc-rs, jsonwebtoken, sqlx, prometheus, opentelemetry |
//! | 3 use cases | [`broker`] | tokio sync and time |
//! | 4 edges | [`identity`], [`grpc`], [`tls`], [`ops`], [`client`] | tonic, prost, tower, rustls, axum, hyper |
//! | 5 assembly | [`config`], [`telemetry`], [`server`], [`cli`] | everything |
//!
//! # Words
//! issue: the whole use case; sign: the ECDSA step. seal, open: the envelope. suspend: stop for now; revoke: stop for
//! good. client: a workload that asks for tokens; operator: a person or robot that runs the broker. key: Apple's `.p8`
//! key; root key, unseal key, data key: ours. revision: a position in the control log; state: a replica's fold of it.
//! replica: one running process. ledger: the audit rows and their fence. exposure: tokens handed out and still alive.
//!
//! # Promises
//! Each is cited as `INVARIANT (Pn)` where the code upholds it, and by the test that proves it.
//!
//! - P1 key stays in: no RPC, log, metric, error, audit row, panic or core file carries key bytes.
//! - P2 sealed: without the root key the database shows no private key and can't be forged.
//! - P3 deny by default: no policy, no token; never for a role, lifetime, key, scope or group that a policy does not grant.
//! - P4 written down first: no token leaves before its audit row is durable.
//! - P5 revocation is instant: when a revoke returns, every token under it that is alive is in its answer.
//! - P6 terminal: a revoked key never signs again, is never imported again, and its sealed bytes are gone.
//! - P7 seal means seal: from the moment a seal returns nothing is signed for release, also across restarts.
//! - P8 within Apple's limits: lifetimes, GET-only scopes, 50 keys, the clock backdated inside the limit.
//! - P9 honest: every policy and token says who enforces each of its limits.

pub mod broker;
pub mod cli;
pub mod client;
pub mod clock;
pub mod config;
pub mod domain;
pub mod grpc;
pub mod id;
pub mod identity;
pub mod metrics;
pub mod ops;
#[cfg(test)]
mod pages;
pub mod secret;
pub mod server;
pub mod signer;
pub mod store;
pub mod telemetry;
pub mod tls;
pub mod trace;
pub mod vault;
