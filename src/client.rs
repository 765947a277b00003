//! The client side: what a service or a sidecar needs to get tokens from avouch and to follow it.

pub mod authorization;
pub mod balance;
pub mod identity;
mod retry;
pub mod token_source;
pub mod transport;
pub mod upstream;
pub mod watch;

pub use retry::RetrySettings;
