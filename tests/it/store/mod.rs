//! What every engine must do, and what the broker does where one fails.

mod conformance;
pub mod faults;
mod quota;
mod race;
mod scrub;
mod tls;
