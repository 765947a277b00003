//! The integration tests, as one binary.

// It is nothing else; said once more because clippy allows `expect` only under this.
#![cfg(test)]

mod authenticate;
mod harness;
mod introspect;
mod listen;
mod refresh;
mod revoke;
mod story;
mod tokens;
