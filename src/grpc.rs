//! The wire side: decode, ask the service, encode. Decides nothing.

pub mod admin;
pub mod caller;
pub mod convert;
pub mod frame;
pub mod health;
pub mod identity;
pub mod observe;
pub mod session;
pub mod status;
mod trace;
pub mod watch;
