//! avouch proves who people and workloads are, and takes tokens back in milliseconds.

pub mod domain;
pub mod pb;
#[cfg(feature = "server")]
pub mod store;
