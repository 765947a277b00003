//! What avouch is about, in plain Rust: identifiers, time, sessions, tokens, events, and the pure
//! functions that decide what may happen to them.
//!
//! Nothing here does I/O, knows an engine, a wire format or a runtime. Time and randomness come in
//! as arguments.

pub mod address;
pub mod caller;
pub mod claims;
pub mod client;
pub mod clock;
pub mod entropy;
pub mod event;
pub mod ids;
pub mod key;
pub mod refresh_token;
pub mod route;
pub mod scope;
pub mod secret;
pub mod session;
pub mod throttle;
pub mod user;
pub mod username;
pub mod view;
