//! What every engine must do, and what the broker does where one fails.

mod conformance;
pub mod faults;
mod race;
mod scrub;
mod tls;
