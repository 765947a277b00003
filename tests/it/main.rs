//! The integration tests, as one binary.

// It is nothing else; said once more because clippy allows `expect` only under this.
#![cfg(test)]

mod admin;
mod agent;
mod alone;
mod audit;
mod authenticate;
mod backup;
mod beside;
mod bootstrap;
mod cli;
mod client;
mod clock;
mod crash;
mod disk;
mod drain;
mod examples;
mod feed;
mod harness;
mod hostile;
mod introspect;
mod keys;
mod layer;
mod layering;
mod listen;
mod metrics;
mod migrate;
mod mtls;
mod peers;
mod process;
mod race;
mod redaction;
mod refresh;
mod replicas;
mod revoke;
mod sessions;
mod sidecar;
mod story;
mod support;
mod tokens;
mod top;
mod traces;
mod verifier;
mod watch;
