//! Measures issuing.
fn main() {}
