//! A process of its own for each test: with network namespaces, mounts and process ids that nobody else
//! sees and that are gone with it, whatever becomes of the test.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

/// The word by which a process knows that it is such a one. As a filter it matches no test.
const MARK: &str = "in-a-world-of-its-own";

/// Whether this process is alone with its network. If not, runs `test` in one that is; it must succeed.
pub(crate) fn alone(test: &str) -> bool {
    if std::env::args().any(|argument| argument == MARK) {
        // Names of network namespaces are files, which should not be left over either.
        run("mount", &["-t", "tmpfs", "tmpfs", "/run"]);
        run("ip", &["link", "set", "lo", "up"]);
        return true;
    }
    assert!(
        rustix::process::geteuid().is_root(),
        "tests of a cluster make network namespaces and mount file systems, which takes root"
    );
    let directory = tempfile::tempdir().expect("a directory");
    let mut child = Command::new("unshare")
        .args(["--net", "--mount", "--propagation", "private"])
        // Whatever this test starts ends with it.
        .args(["--pid", "--fork", "--kill-child", "--mount-proc"])
        .arg(std::env::current_exe().expect("this program"))
        .args(["--exact", test, MARK, "--nocapture", "--test-threads=1"])
        .env("TMPDIR", directory.path())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .expect("unshare, of util-linux, runs");
    let mut passed = false;
    for line in BufReader::new(child.stdout.take().expect("its output")).lines() {
        let line = line.expect("text");
        passed |= line.contains("1 passed");
        println!("{line}");
    }
    let status = child.wait().expect("its end");
    assert!(status.success(), "{test} failed, {status}; what it said stands above");
    assert!(passed, "{test} is the name of a test");
    false
}

/// Runs a command that must succeed.
pub(crate) fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output();
    let output = output.unwrap_or_else(|error| panic!("{program} does not run: {error}"));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {}: {text}", arguments.join(" "));
}

/// A file system in memory, of a size.
pub(crate) fn mount(path: &Path, mebibytes: u32) {
    std::fs::create_dir_all(path).expect("a directory");
    let path = path.display().to_string();
    run("mount", &["-t", "tmpfs", "-o", &format!("size={mebibytes}m"), "tmpfs", &path]);
}
