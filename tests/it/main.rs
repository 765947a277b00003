//! The integration tests, as one binary.

// It is nothing else; said once more because clippy allows `expect` only under this.
#![cfg(test)]

mod cli;
mod harness;
mod listen;
mod story;
