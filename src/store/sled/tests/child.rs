//! A second process, since a crash cannot be had in the first: the test binary runs itself and is
//! told over its standard input what to do.

use std::io::{BufRead, BufReader, IsTerminal, Write};
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, channel};

use super::*;
use crate::store::engine_suite::number;

/// How many tasks write at once.
pub(super) const WRITERS: u64 = 8;

/// What a child does with a directory.
#[derive(Clone, Copy, Debug)]
pub(super) enum Work {
    /// Opens it and holds it.
    Hold,
    /// Opens it and writes, records this long, until it is killed or the engine fails.
    Write(usize),
    /// Opens it, writes, and dies the moment the observer hears of it.
    DieWhenHeard,
}

/// A running child.
pub(super) struct Child {
    process: std::process::Child,
    lines: Receiver<String>,
}

impl Child {
    pub(super) fn start(work: Work, path: &Path) -> Self {
        Self::spawn(Command::new(std::env::current_exe().unwrap()), work, path)
    }

    /// As on a disk that is full once a file has this many blocks, of 512 or 1024 bytes as the shell counts.
    pub(super) fn start_on_small_disk(work: Work, path: &Path, blocks: u32) -> Self {
        let mut shell = Command::new("sh");
        let script = format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$0\" \"$@\"");
        shell.arg("-c").arg(script).arg(std::env::current_exe().unwrap());
        Self::spawn(shell, work, path)
    }

    fn spawn(mut command: Command, work: Work, path: &Path) -> Self {
        let mut process = command
            .args(["--exact", "store::sled::tests::child::child", "--ignored", "--nocapture"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let order = match work {
            Work::Hold => "hold 0".to_owned(),
            Work::Write(bytes) => format!("write {bytes}"),
            Work::DieWhenHeard => "die 0".to_owned(),
        };
        let stdin = process.stdin.as_mut().unwrap();
        writeln!(stdin, "{order} {}", path.display()).unwrap();
        let output = BufReader::new(process.stdout.take().unwrap());
        let (to_parent, lines) = channel();
        thread::spawn(move || {
            // A line that the kill has torn has no end, and was not said.
            let mut output = output;
            let mut line = String::new();
            while output.read_line(&mut line).is_ok_and(|read| read > 0) && line.ends_with('\n') {
                _ = to_parent.send(line.trim_end().to_owned());
                line.clear();
            }
        });
        Self { process, lines }
    }

    /// Waits until the child says a line that begins like this.
    pub(super) fn wait_for(&self, start: &str) -> String {
        let deadline = Duration::from_secs(20);
        loop {
            let line = self.lines.recv_timeout(deadline).unwrap();
            assert!(!line.starts_with("did not open"), "{line}");
            if line.starts_with(start) {
                return line;
            }
        }
    }

    /// Whether the next line that the child has said is this one.
    pub(super) fn has_said(&self, line: &str) -> bool {
        self.lines.try_recv().is_ok_and(|said| said == line)
    }

    /// Waits for the end of the child and gives what else it said.
    pub(super) fn wait(mut self) -> Vec<String> {
        self.process.wait().unwrap();
        self.lines.iter().collect()
    }

    /// SIGKILL, and what else the child said.
    pub(super) fn kill(mut self) -> Vec<String> {
        self.process.kill().unwrap();
        self.wait()
    }
}

/// Not a test: the tests beside this one run it in a process of its own, which they kill.
#[test]
#[ignore = "the other process of the tests beside this one"]
fn child() {
    if io::stdin().is_terminal() {
        return;
    }
    let mut order = String::new();
    io::stdin().read_line(&mut order).unwrap();
    let mut words = order.trim().splitn(3, ' ');
    let (Some(work), Some(bytes), Some(path)) = (words.next(), words.next(), words.next()) else {
        return;
    };
    // The test harness has begun a line of its own.
    println!();
    println!("opening");
    let engine = match open(Path::new(path)) {
        Ok(engine) => Arc::new(engine),
        Err(error) => return println!("did not open: {error}"),
    };
    println!("opened");
    let runtime = tokio::runtime::Runtime::new().unwrap();
    match work {
        "hold" => _ = io::stdin().read_line(&mut order),
        "write" => runtime.block_on(write(&engine, bytes.parse().unwrap())),
        _ => {
            engine.observe(Arc::new(Dies));
            _ = runtime.block_on(engine.commit(step(1, 0)));
        }
    }
}

struct Dies;

impl Observer for Dies {
    fn durable(&self, _: &[LoggedEvent], head: Revision) {
        println!("heard {head}");
        std::process::abort();
    }
}

async fn write(engine: &Arc<SledEngine>, bytes: usize) {
    let tasks: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let engine = Arc::clone(engine);
            tokio::spawn(async move {
                loop {
                    match engine.commit(step(writer, bytes)).await {
                        Ok((n, _)) => println!("acked {writer} {}", n.downcast::<u64>().unwrap()),
                        Err(error) => return println!("refused {writer} {error}"),
                    }
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    // As `serve` does: an engine that has failed is not closed, its process ends.
    std::process::exit(3);
}

/// Counts a writer's two records up, with an event that says so, and an index entry for the upper
/// half of the counts.
pub(super) fn step(writer: u64, bytes: usize) -> Decision {
    Box::new(move |txn| {
        let next = number(txn.get(&half(b'a', writer))?.as_deref()) + 1;
        txn.put(half(b'a', writer), next.to_be_bytes().to_vec());
        txn.put(half(b'b', writer), next.to_be_bytes().to_vec());
        txn.put(index(writer, next), Vec::new());
        if next.is_multiple_of(2) {
            txn.delete(index(writer, next / 2));
        }
        let mut event = [writer.to_be_bytes(), next.to_be_bytes()].concat();
        event.resize(16 + bytes, b'.');
        txn.append(event)?;
        Ok(Box::new(next))
    })
}

/// One of a writer's two records.
pub(super) fn half(which: u8, writer: u64) -> Vec<u8> {
    [&[which, b'/'], writer.to_be_bytes().as_slice()].concat()
}

/// The index entry of a count, anywhere among the others.
pub(super) fn index(writer: u64, n: u64) -> Vec<u8> {
    let anywhere = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    [b"x", anywhere.to_be_bytes().as_slice(), &writer.to_be_bytes(), &n.to_be_bytes()].concat()
}
