//! The `avouch` program.
fn main() {}
