//! Processes in a namespace, which can be killed, paused and started again.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};
use tokio::time::{Instant, timeout};

use crate::net::Node;

/// No wait is expected to come near it; it only turns a hang into a failure.
pub(crate) const PATIENCE: Duration = Duration::from_secs(90);

/// What of a patience is left. A machine that stood still altogether used up none of it.
pub(crate) struct Patience {
    left: Duration,
    looked: Instant,
}

impl Patience {
    /// All of it.
    pub(crate) fn new() -> Self {
        Self { left: PATIENCE, looked: Instant::now() }
    }

    /// Whether none is left. To be asked again and again.
    pub(crate) fn is_over(&mut self) -> bool {
        // Longer than any one step of who waits.
        let passed = self.looked.elapsed().min(Duration::from_secs(3));
        self.left = self.left.saturating_sub(passed);
        self.looked = Instant::now();
        self.left.is_zero()
    }
}

/// A program in the namespace of a node. It may run or not.
pub(crate) struct Program {
    node: Node,
    words: Vec<String>,
    variables: Vec<(&'static str, PathBuf)>,
    directory: PathBuf,
    log: PathBuf,
    child: Option<Child>,
}

impl Program {
    /// One that does not run yet; it will in this directory, and append what it says to a log.
    pub(crate) fn new(node: Node, words: Vec<String>, directory: &Path, log: PathBuf) -> Self {
        let (variables, directory) = (Vec::new(), directory.to_owned());
        Self { node, words, variables, directory, log, child: None }
    }

    /// The same, with this in its environment.
    pub(crate) fn with_variable(mut self, name: &'static str, value: &Path) -> Self {
        self.variables.push((name, value.to_owned()));
        self
    }

    /// Starts it, unless it runs.
    pub(crate) fn start(&mut self) {
        if self.runs() {
            return;
        }
        let log = std::fs::OpenOptions::new().create(true).append(true).open(&self.log);
        let log = log.expect("a log");
        let child = Command::new("ip")
            .args(["netns", "exec", &self.node.name()])
            .args(&self.words)
            .current_dir(&self.directory)
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("RUST_BACKTRACE", "1")
            .envs(self.variables.iter().map(|(name, value)| (*name, value)))
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a log"))
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .expect("ip, of iproute2, runs");
        self.child = Some(child);
    }

    /// Whether it runs. One that has ended is forgotten.
    pub(crate) fn runs(&mut self) -> bool {
        let ended = match &mut self.child {
            None => return false,
            Some(child) => child.try_wait().expect("its state").is_some(),
        };
        if ended {
            self.child = None;
        }
        !ended
    }

    /// Its process, if it runs.
    pub(crate) fn id(&self) -> Option<u32> {
        self.child.as_ref().and_then(Child::id)
    }

    /// Sends a signal, if it runs.
    pub(crate) fn signal(&self, signal: Signal) {
        let id = self.id().and_then(|id| Pid::from_raw(i32::try_from(id).expect("a pid")));
        if let Some(id) = id {
            // It may have ended by itself.
            _ = kill_process(id, signal);
        }
    }

    /// SIGKILL, and its end.
    pub(crate) async fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().await.expect("killed");
        }
    }

    /// Its end, which comes by itself; what it said last.
    pub(crate) async fn ended(&mut self) -> String {
        if let Some(mut child) = self.child.take() {
            let ended = timeout(PATIENCE, child.wait()).await;
            let status = ended.expect("it ends by itself").expect("its end");
            assert!(!status.success(), "it ends with an error: {}", self.tail(20));
        }
        self.tail(20)
    }

    /// SIGTERM, and its end.
    pub(crate) async fn terminate(&mut self) {
        self.signal(Signal::TERM);
        if let Some(mut child) = self.child.take() {
            let ended = timeout(PATIENCE, child.wait()).await;
            let tail = || self.tail(20);
            ended
                .unwrap_or_else(|_| panic!("{:?} does not end: {}", self.node, tail()))
                .expect("its end");
        }
    }

    /// The first panic that it told of.
    pub(crate) fn panicked(&self) -> Option<String> {
        let text = std::fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let line = text.lines().find(|line| line.contains("panicked at"))?;
        Some(format!("{:?}: {line}", self.node))
    }

    /// The last lines that it said.
    pub(crate) fn tail(&self, lines: usize) -> String {
        let text = std::fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let all: Vec<&str> = text.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }
}
