//! The integration tests, as one binary.

// It is nothing else; said once more because clippy allows `expect` only under this.
#![cfg(test)]

mod alone;
mod beside;
mod cli;
mod feed;
mod harness;
mod listen;
mod mtls;
mod story;
mod support;
mod watch;
