//! Measures starting.
fn main() {}
