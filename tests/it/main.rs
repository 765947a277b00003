//! The integration tests, as one binary.

// It is nothing else; said once more because clippy allows `expect` only under this.
#![cfg(test)]

mod admin;
mod authenticate;
mod harness;
mod introspect;
mod keys;
mod listen;
mod refresh;
mod revoke;
mod sessions;
mod story;
mod tokens;
