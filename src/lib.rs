//! avouch proves who people and workloads are, and takes tokens back in milliseconds.
//!
//! The program `avouch` is the way to use it; `README.md` says how. This crate holds its layers, each
//! knowing only those below it:
//!
//! ```text
//! cli                            the command line: asks over gRPC, as everybody does
//! app                            puts the layers together, and starts them
//! agent                          serves the stream of another avouch on, for a whole machine
//! grpc        http    listen     the wire: who calls, decode, encode; the accept loop
//! service                        what avouch does, one operation a file
//! feed                           from durable to subscribed
//! store       keys    password   state and its events in one commit; the ring; the hasher
//! jwt         crypto  precis     tokens, HMAC and sealing, spelling
//! domain                         ids, sessions, epochs, time: pure functions
//!
//! where tokens are used:
//! sidecar                        answers Envoy, nginx, Traefik and Caddy
//! layer                          verifies the requests of tonic and axum services
//! verifier                       local checks that know what was revoked
//! client                         follows the stream of revocations
//! verified                       tokens that were checked once, for both sides
//!
//! beside them: config, audit, metrics, lifecycle, telemetry, trace; pb is generated from proto/
//! ```
//!
//! The feature `server` is on by default. Without it there are the domain types, tokens, the wire
//! types, the client, the verifier and the layer.

#[cfg(feature = "server")]
pub mod agent;
#[cfg(feature = "server")]
pub mod app;
#[cfg(feature = "server")]
pub mod audit;
#[cfg(feature = "server")]
pub mod cli;
pub mod client;
#[cfg(feature = "server")]
pub mod config;
pub mod crypto;
pub mod domain;
#[cfg(feature = "server")]
pub mod feed;
#[cfg(feature = "server")]
pub mod grpc;
#[cfg(feature = "server")]
pub mod http;
pub mod jwt;
#[cfg(feature = "server")]
pub mod keys;
pub mod layer;
#[cfg(feature = "server")]
pub mod lifecycle;
#[cfg(feature = "server")]
pub mod listen;
#[cfg(feature = "server")]
pub mod metrics;
#[cfg(feature = "server")]
pub mod password;
pub mod pb;
#[cfg(feature = "server")]
pub mod precis;
#[cfg(feature = "server")]
pub mod service;
#[cfg(feature = "server")]
pub mod sidecar;
#[cfg(feature = "server")]
pub mod store;
#[cfg(feature = "server")]
pub mod telemetry;
#[cfg(feature = "server")]
pub mod trace;
pub mod verified;
pub mod verifier;
