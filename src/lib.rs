//! avouch proves who people and workloads are, and takes tokens back in milliseconds.

pub mod crypto;
pub mod domain;
pub mod jwt;
#[cfg(feature = "server")]
pub mod keys;
