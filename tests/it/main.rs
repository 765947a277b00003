//! The integration tests, as one binary.

// It is nothing else; said once more because clippy allows `expect` only under this.
#![cfg(test)]

mod alone;
mod beside;
mod cli;
mod crash;
mod feed;
mod harness;
mod hostile;
mod layering;
mod listen;
mod mtls;
mod process;
mod race;
mod redaction;
mod story;
mod support;
mod watch;
