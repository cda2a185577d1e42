//! The domain: pure, synchronous, without I/O, clocks or randomness. Everything it depends on is an argument.

pub mod access;
pub mod account;
#[cfg(test)]
pub(crate) mod any;
pub mod app_group;
pub mod apple;
pub mod audit;
pub mod ceiling;
pub mod change;
pub mod claims;
pub mod decide;
pub mod document;
pub mod enforcement;
pub mod explain;
pub mod feature;
pub mod glob;
pub mod hours;
pub mod issuer;
pub mod key;
pub mod meaning;
pub mod operation;
pub mod operator;
pub mod pattern;
pub mod plan;
pub mod policy;
pub mod principal;
pub mod proposal;
pub mod quota;
pub mod role;
pub mod state;
pub mod target;
