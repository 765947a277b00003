//! avouch proves who people and workloads are, and takes tokens back in milliseconds.

pub mod domain;
#[cfg(feature = "server")]
pub mod listen;
