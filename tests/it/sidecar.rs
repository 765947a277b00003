//! A sidecar between a proxy and a server: real sockets on both sides. The proxy is played here; the
//! questions have the form of Envoy's protos, and of HTTP/1 as nginx, Traefik and Caddy send it.

mod command;
mod envoy;
mod forward;
mod hostile;
mod replicas;
pub(crate) mod rig;
mod stale;
