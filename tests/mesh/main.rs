//! Networks that fall silent. `tests/run` gets the programs that these tests need; without them they fail.

// It is nothing else; said once more because clippy allows `expect` only under this.
#![cfg(test)]

mod half_open;
mod parts;
#[path = "../it/process.rs"]
#[expect(dead_code, reason = "the other tests need more of it")]
mod process;
