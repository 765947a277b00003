//! avouch proves who people and workloads are, and takes tokens back in milliseconds.

pub mod client;
pub mod crypto;
pub mod domain;
#[cfg(feature = "server")]
pub mod feed;
#[cfg(feature = "server")]
pub mod grpc;
pub mod jwt;
#[cfg(feature = "server")]
pub mod keys;
#[cfg(feature = "server")]
pub mod listen;
#[cfg(feature = "server")]
pub mod password;
pub mod pb;
#[cfg(feature = "server")]
pub mod precis;
#[cfg(feature = "server")]
pub mod service;
#[cfg(feature = "server")]
pub mod store;
