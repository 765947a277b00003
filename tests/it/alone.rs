//! Tests that measure their own process run in one that runs nothing else.

use std::process::Command;

/// The word by which a process knows that it is the one that runs nothing else. As a filter it
/// matches no test.
const MARK: &str = "in-a-process-of-its-own";

/// Whether this process runs nothing but `test`. If not, runs one that does, which must succeed.
pub(crate) fn alone(test: &str) -> bool {
    if std::env::args().any(|argument| argument == MARK) {
        return true;
    }
    let this = std::env::current_exe().expect("this program");
    let output = Command::new(this)
        .args(["--exact", test, MARK, "--nocapture", "--test-threads=1"])
        .output()
        .expect("it runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("1 passed"), "{test} is the name of a test: {text}");
    false
}
