//! The one integration binary: real servers on loopback with mutual TLS, real SQLite files, an injected clock.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    unreachable_pub,
    reason = "tests"
)]

mod access;
mod access_list;
mod approval;
mod audit;
mod backup;
mod bad_input;
mod bearer;
mod break_glass;
mod canary;
mod chaos;
mod cli;
mod cli_explain;
mod cli_fleet;
mod compat;
mod crash;
mod desired;
mod docs;
mod explain;
mod fake;
mod fleet;
mod gauges;
mod harness;
mod hostile_documents;
mod identity;
mod inspect;
mod issue;
mod keys;
mod leak;
mod limits;
mod naive;
mod oidc;
mod policy;
mod policy_test;
mod quota;
mod read;
mod resend;
mod revoke;
mod rolling;
mod rules;
mod seal;
mod shadow;
mod sim;
mod stale;
mod store;
mod tamper;
mod token_source;
mod traces;
mod watch;
mod watcher;
