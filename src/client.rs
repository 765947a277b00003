//! The client side: what a service or a sidecar needs to follow avouch.

pub mod watch;
