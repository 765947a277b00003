//! avouch proves who people and workloads are, and takes tokens back in milliseconds.

pub mod client;
pub mod domain;
#[cfg(feature = "server")]
pub mod feed;
#[cfg(feature = "server")]
pub mod grpc;
pub mod pb;
#[cfg(feature = "server")]
pub mod store;
