//! The integration tests, as one binary.

// It is nothing else; said once more because clippy allows `expect` only under this.
#![cfg(test)]

mod crash;
mod harness;
mod hostile;
mod layering;
mod listen;
mod process;
mod race;
mod redaction;
mod story;
