//! The server's process as the bench sees it: started, told what to do, and measured from outside.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::time::Instant;
use tonic::transport::{Channel, Endpoint};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::Failure;

/// The server in its process. It ends with this.
pub(crate) struct Server {
    process: Child,
    commands: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
    dir: PathBuf,
    uri: String,
    /// From the start of the process until it said SERVING.
    pub(crate) started_in: Duration,
}

/// Runs this program again in another role, until it ends.
pub(crate) async fn run_as(role: &str, arguments: &[&str]) -> Result<(), Failure> {
    let status = Command::new(std::env::current_exe()?).arg(role).args(arguments).status().await?;
    if status.success() { Ok(()) } else { Err(format!("{role} ended with {status}").into()) }
}

impl Server {
    /// Starts one on the state in `dir`.
    pub(crate) async fn start(dir: &Path) -> Result<Self, Failure> {
        Self::start_on(dir, None).await
    }

    /// Starts one with its files in `dir` and its state in the etcd that listens there, if one is named.
    pub(crate) async fn start_on(dir: &Path, etcd: Option<String>) -> Result<Self, Failure> {
        std::fs::create_dir_all(dir)?;
        let begun = Instant::now();
        let mut process = Command::new(std::env::current_exe()?)
            .arg("--server")
            .arg(dir)
            .args(etcd)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let commands = process.stdin.take().ok_or("no stdin")?;
        let mut answers = BufReader::new(process.stdout.take().ok_or("no stdout")?).lines();
        let address = answers.next_line().await?.ok_or("the server did not start")?;
        let uri = format!("http://{address}");
        let mut health = HealthClient::new(Endpoint::from_shared(uri.clone())?.connect().await?);
        loop {
            let answer = health.check(HealthCheckRequest::default()).await?.into_inner();
            if answer.status() == ServingStatus::Serving {
                break;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let started_in = begun.elapsed();
        Ok(Self { process, commands, answers, dir: dir.to_owned(), uri, started_in })
    }

    /// So many connections of their own.
    pub(crate) async fn connect(&self, count: usize) -> Result<Vec<Channel>, Failure> {
        let mut channels = Vec::with_capacity(count);
        for _ in 0..count {
            channels.push(Endpoint::from_shared(self.uri.clone())?.connect().await?);
        }
        Ok(channels)
    }

    async fn command(&mut self, command: &str) -> Result<(), Failure> {
        self.commands.write_all(format!("{command}\n").as_bytes()).await?;
        match self.answers.next_line().await? {
            Some(answer) if answer == "done" => Ok(()),
            _ => Err(format!("the server did not do this: {command}").into()),
        }
    }

    /// Sessions that were not used yet: id and refresh token.
    pub(crate) async fn sessions(
        &mut self,
        count: usize,
    ) -> Result<Vec<(String, String)>, Failure> {
        self.command(&format!("sessions {count}")).await?;
        let text = std::fs::read_to_string(self.dir.join("sessions"))?;
        let pair = |line: &str| line.split_once(' ').map(|(id, token)| (id.into(), token.into()));
        Ok(text.lines().filter_map(pair).collect())
    }

    /// Access tokens that the server has not seen yet.
    pub(crate) async fn tokens(&mut self, count: usize) -> Result<Vec<String>, Failure> {
        self.command(&format!("tokens {count}")).await?;
        let text = std::fs::read_to_string(self.dir.join("tokens"))?;
        Ok(text.lines().map(str::to_owned).collect())
    }

    /// Creates the users `user0`, `user1`, and so on.
    pub(crate) async fn users(&mut self, count: usize) -> Result<(), Failure> {
        self.command(&format!("users {count}")).await
    }

    /// The CPU time that its threads have used.
    pub(crate) fn cpu(&self) -> Result<Duration, Failure> {
        let mut nanos = 0;
        for task in std::fs::read_dir(format!("/proc/{}/task", self.id()?))? {
            // A thread may end meanwhile.
            let Ok(text) = std::fs::read_to_string(task?.path().join("schedstat")) else {
                continue;
            };
            let on_cpu = text.split_whitespace().next().ok_or("no schedstat")?;
            nanos += on_cpu.parse::<u64>()?;
        }
        Ok(Duration::from_nanos(nanos))
    }

    /// Its resident memory in bytes.
    pub(crate) fn resident(&self) -> Result<u64, Failure> {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.id()?))?;
        let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no VmRSS")?;
        let kib: u64 = line.trim().trim_end_matches(" kB").parse()?;
        Ok(kib * 1024)
    }

    fn id(&self) -> Result<u32, Failure> {
        self.process.id().ok_or_else(|| "the server has ended".into())
    }

    /// Ends it, as SIGTERM would.
    pub(crate) async fn stop(self) -> Result<(), Failure> {
        let Self { mut process, commands, .. } = self;
        drop(commands);
        let status = process.wait().await?;
        if status.success() { Ok(()) } else { Err(format!("the server: {status}").into()) }
    }
}
