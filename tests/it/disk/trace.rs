//! The system calls of a server between a request and its response, as `strace` sees them: there is
//! an `fdatasync` of the database, and one of the high-water mark after it.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::process::Stdio;

use avouch::pb::v1 as pb;
use avouch::pb::v1::revoke_request::Target;
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use super::{WITHOUT, variable};
use crate::crash::{login, refresh};
use crate::process::{Addresses, Cast, PATIENCE, Process, identity};

/// A running `strace`.
struct Strace(Child);

impl Strace {
    /// Attaches to a process and returns once every one of its threads is traced.
    async fn attach(process: &Process, output: &Path) -> Self {
        let calls = "fdatasync,read,readv,recvfrom,recvmsg,write,writev,sendto,sendmsg";
        let mut child = Command::new("strace")
            .args(["-f", "-yy", "-xx", "-s", "1000000", "-e", &format!("trace={calls}"), "-o"])
            .arg(output)
            .args(["-p", &process.id().to_string()])
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap_or_else(|error| {
                panic!("strace, of Debian's package strace: {error}; {WITHOUT}=1 leaves this out")
            });
        let mut said = BufReader::new(child.stderr.take().expect("a pipe")).lines();
        let line = timeout(PATIENCE, said.next_line()).await.expect("in time").expect("text");
        let line = line.expect("it says something");
        assert!(line.contains(" attached"), "strace may not attach: {line}");
        // What it says later must not fill the pipe.
        tokio::spawn(async move { while let Ok(Some(_)) = said.next_line().await {} });
        Self(child)
    }

    /// Detaches, and waits until everything is written.
    async fn finish(mut self) {
        let id = i32::try_from(self.0.id().expect("it runs")).expect("a pid");
        kill_process(Pid::from_raw(id).expect("a pid"), Signal::INT).expect("signalled");
        timeout(PATIENCE, self.0.wait()).await.expect("in time").expect("it ends");
    }
}

/// A system call that has returned.
#[derive(Debug)]
struct Call {
    name: String,
    /// What its first argument stands for: a path, or the two ends of a connection.
    file: String,
    /// The lines at which it began and returned. Calls that overlap do so here, too.
    begun: usize,
    ended: usize,
    bytes: Vec<u8>,
    result: i64,
}

/// Reads `\x2f` as a slash; everything else stays.
fn plain(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("\\x") {
        bytes.extend_from_slice(before.as_bytes());
        let (digits, more) = after.split_at(2);
        bytes.push(u8::from_str_radix(digits, 16).expect("two digits"));
        rest = more;
    }
    bytes.extend_from_slice(rest.as_bytes());
    bytes
}

fn call(text: &str, begun: usize, ended: usize) -> Option<Call> {
    let (name, arguments) = text.split_once('(')?;
    let (_, after) = arguments.split_once('<')?;
    // The arrow in the name of a connection is no end of the name.
    let after = after.replace("->", " to ");
    let (file, rest) = after.split_once('>')?;
    let (rest, result) = rest.rsplit_once(" = ")?;
    let result: i64 = result.split(' ').next()?.parse().ok()?;
    // Between quotes are the bytes: of one buffer or of several.
    let mut bytes: Vec<u8> = rest.split('"').skip(1).step_by(2).flat_map(plain).collect();
    bytes.truncate(usize::try_from(result).unwrap_or(0));
    let file = String::from_utf8(plain(file)).ok()?;
    Some(Call { name: name.to_owned(), file, begun, ended, bytes, result })
}

fn calls(text: &str) -> Vec<Call> {
    let mut unfinished: HashMap<&str, (usize, &str)> = HashMap::new();
    let mut calls = Vec::new();
    for (n, line) in text.lines().enumerate() {
        let Some((thread, line)) = line.split_once(' ') else { continue };
        let line = line.trim_start();
        if let Some(start) = line.strip_suffix(" <unfinished ...>") {
            unfinished.insert(thread, (n, start));
        } else if let Some(resumed) = line.strip_prefix("<... ") {
            let Some((begun, start)) = unfinished.remove(thread) else { continue };
            let Some((_, end)) = resumed.split_once(" resumed>") else { continue };
            calls.extend(call(&format!("{start}{end}"), begun, n));
        } else {
            calls.extend(call(line, n, n));
        }
    }
    calls
}

/// The frames of one direction of an HTTP/2 connection: type, flags, stream, and the calls that
/// carried the first and the last byte of each.
fn frames(bytes: &[(u8, usize)]) -> Vec<(u8, u8, u32, usize, usize)> {
    let mut frames = Vec::new();
    let mut rest = bytes;
    while let Some((head, after)) = rest.split_at_checked(9) {
        let at = |n: usize| u32::from(head[n].0);
        let length = usize::try_from(at(0) << 16 | at(1) << 8 | at(2)).expect("24 bit");
        let stream = (at(5) & 0x7f) << 24 | at(6) << 16 | at(7) << 8 | at(8);
        let Some((body, more)) = after.split_at_checked(length) else { break };
        let last = body.last().unwrap_or(&head[8]).1;
        frames.push((head[3].0, head[4].0, stream, head[0].1, last));
        rest = more;
    }
    frames
}

/// Of each stream, the call that brought the end of the request and the one that sent the beginning
/// of the response.
fn exchanges(calls: &[Call], server: &str) -> BTreeMap<u32, (usize, usize)> {
    const DATA: u8 = 0;
    const HEADERS: u8 = 1;
    const END_STREAM: u8 = 1;
    const PREFACE: usize = 24;
    let (mut read, mut sent) = (Vec::new(), Vec::new());
    for (n, call) in calls.iter().enumerate() {
        if call.file.starts_with(&format!("TCP:[{server} to ")) {
            let incoming = matches!(&*call.name, "read" | "readv" | "recvfrom" | "recvmsg");
            let bytes = if incoming { &mut read } else { &mut sent };
            bytes.extend(call.bytes.iter().map(|byte| (*byte, n)));
        }
    }
    assert!(read.len() > PREFACE, "no connection was seen");
    let mut asked = HashMap::new();
    for (kind, flags, stream, _, last) in frames(&read[PREFACE..]) {
        if matches!(kind, DATA | HEADERS) && flags & END_STREAM != 0 {
            asked.insert(stream, last);
        }
    }
    let mut exchanges = BTreeMap::new();
    for (kind, _, stream, first, _) in frames(&sent) {
        if kind == HEADERS
            && let Some(asked) = asked.get(&stream)
        {
            exchanges.entry(stream).or_insert((*asked, first));
        }
    }
    exchanges
}

/// A call that synced this file, began after `after` and returned before `before`.
fn synced(calls: &[Call], file: &str, after: usize, before: usize) -> Option<usize> {
    let ours = |call: &&Call| {
        call.name == "fdatasync"
            && call.file.ends_with(file)
            && call.result == 0
            && call.begun > after
            && call.ended < before
    };
    calls.iter().find(ours).map(|call| call.ended)
}

/// Ten refreshes and ten revocations, one call after the other on one connection, and one call that counts
/// for nothing: of what comes last the end may be missing.
async fn talk(addresses: &Addresses, cast: &Cast) -> usize {
    let mut server = identity(addresses).await;
    let mut exchanges = 0;
    for _ in 0..10 {
        let tokens = login(&mut server, cast).await.expect("a login");
        refresh(&mut server, cast, &tokens.refresh_token).await.expect("it is current");
        let request = pb::RevokeRequest {
            client: Some(cast.admin.clone()),
            target: Some(Target::SessionId(tokens.session_id)),
            ..Default::default()
        };
        server.revoke(request).await.expect("it is live");
        exchanges += 3;
    }
    server.get_key_set(pb::GetKeySetRequest {}).await.expect("keys");
    exchanges
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn between_request_and_response_of_refresh_and_revoke_the_database_is_synced() {
    if variable(WITHOUT).is_some_and(|value| !value.is_empty()) {
        return eprintln!("left out: {WITHOUT} is set");
    }
    let home = tempfile::tempdir().expect("a directory");
    let data = home.path().join("data");
    let mut process = Process::start(&data, &[]);
    let addresses = process.serving().await;
    let output = home.path().join("strace");
    let strace = Strace::attach(&process, &output).await;
    let made = talk(&addresses, &Cast::of(&data)).await;
    strace.finish().await;
    process.kill().await;

    let text = std::fs::read_to_string(output).expect("its output");
    let calls = calls(&text);
    let exchanges = exchanges(&calls, &addresses.grpc);
    assert!(exchanges.len() >= made, "{} of {made} calls were seen", exchanges.len());
    for (stream, (asked, answered)) in exchanges.into_iter().take(made) {
        let (asked, answered) = (calls[asked].ended, calls[answered].begun);
        let database = synced(&calls, "/data/sled/db", asked, answered);
        let database = database.unwrap_or_else(|| {
            panic!("stream {stream} was answered before the database was synced")
        });
        assert!(
            synced(&calls, "/data/avouch.hwm", database, answered).is_some(),
            "stream {stream} was answered before the mark was synced"
        );
    }
}
