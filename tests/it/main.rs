//! The integration tests, as one binary.

// It is nothing else; said once more because clippy allows `expect` only under this.
#![cfg(test)]

mod harness;
mod listen;
mod refresh;
mod story;
mod tokens;
