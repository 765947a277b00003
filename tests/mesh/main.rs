//! Real Envoy and real nginx in front of a workload, with `avouch sidecar` beside it; and networks
//! that fall silent. `tests/run` gets the programs that these tests need; without them they fail.

// It is nothing else; said once more because clippy allows `expect` only under this.
#![cfg(test)]

mod calls;
mod documents;
mod half_open;
mod parts;
mod paths;
#[path = "../it/process.rs"]
#[expect(dead_code, reason = "the other tests need more of it")]
mod process;
mod proxy;
mod raw;
mod relay;
mod rig;
mod trouble;
mod verdicts;
mod workload;
