//! A gate beside a workload: proxies ask it about each request, and it answers from what a verifier
//! knows here. [`ext_authz`] is for Envoy, [`forward_auth`] for nginx, Traefik and Caddy; both ask one
//! [`Gate`].
//!
//! Two kinds of no. A denial says that the request is not to pass, and reaches the client. Being
//! unavailable says that nobody can tell now: for Envoy an error of the call, so that its
//! `failure_mode_allow` is the one switch. Nothing that a client sends makes the gate unavailable: a
//! request that cannot be understood is denied.

pub mod ext_authz;
pub mod forward_auth;
mod gate;
mod identity;
mod wire;

pub use gate::{Gate, Rule};
