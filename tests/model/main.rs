//! The rotation and the feed of many replicas as a model, checked exhaustively for small sizes.

// It is nothing else; said once more because clippy allows `expect` only under this.
#![cfg(test)]

mod broken;
mod cells;
mod commit;
mod feed;
mod holds;
mod properties;
mod protocol;
mod reached;
mod real;
mod rules;
mod state;

/// Says it where it shows without `--nocapture`.
fn say(what: &str) {
    use std::io::Write as _;
    std::io::stderr().write_all(format!("model, {what}\n").as_bytes()).expect("stderr");
}
