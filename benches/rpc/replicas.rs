//! On etcd: the rows as on sled, Refresh and Revoke beside the bare transactions that they are made of, and
//! from `Revoke` at one replica to a watcher at another.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{Instant, timeout};
use tonic::transport::Channel;

use crate::calls::{self, Identity, Supply, Wheel};
use crate::child::Server;
use crate::etcd::Cluster;
use crate::load::{Phase, count, median, percentile, saturate};
use crate::report::{Report, Row, mib};
use crate::rows;
use crate::transactions::{Bare, puts_of};
use crate::watchers::{self, Got, PATIENCE};
use crate::{Failure, Plan};

/// The part of the bare rate that the calls are to reach.
const TARGET: f64 = 0.8;
/// Refresh tokens for each caller.
const TOKENS_EACH: usize = 4;

/// Starts etcd and two replicas, and measures.
pub(crate) async fn measure(dir: &Path, plan: &Plan, report: &mut Report) -> Result<(), Failure> {
    let cluster = Cluster::start(plan.members).await?;
    // One member each, so that the bare transactions go where those of the first replica go.
    let mut server = Server::start_on(&dir.join("a"), Some(cluster.address(0))).await?;
    report.note(format!(
        "etcd {} on the disk of the build, members: {}; load average {}",
        cluster.version().await?,
        plan.members,
        load_average()?
    ));
    beside_bare(&cluster, &mut server, plan, report).await?;
    if plan.wants("replicas") {
        let other = Server::start_on(&dir.join("b"), Some(cluster.address(1))).await?;
        across(&mut server, &other, plan, report).await?;
        other.stop().await?;
    }
    rows::measure(&mut server, plan, report).await?;
    let size = cluster.size()?;
    report.note(format!(
        "etcd at the end: database file {:.0} MiB, memory {:.0} MiB; load average {}",
        mib(size.file),
        mib(size.memory),
        load_average()?
    ));
    server.stop().await
}

/// The first of the numbers, of the last minute.
fn load_average() -> Result<String, Failure> {
    let text = std::fs::read_to_string("/proc/loadavg")?;
    Ok(text.split_whitespace().next().ok_or("no load average")?.to_owned())
}

/// How many transactions the first member was asked for, as it says itself.
async fn transactions(cluster: &Cluster) -> Result<f64, Failure> {
    let address = cluster.address(0);
    let mut stream = TcpStream::connect(&address).await?;
    let ask = format!("GET /metrics HTTP/1.0\r\nhost: {address}\r\n\r\n");
    stream.write_all(ask.as_bytes()).await?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await?;
    let txn = |line: &&str| {
        line.starts_with("grpc_server_started_total{") && line.contains("grpc_method=\"Txn\"")
    };
    let line = text.lines().find(txn).ok_or("etcd counts no transactions")?;
    Ok(line.split_whitespace().last().ok_or("no number")?.parse()?)
}

/// The CPU that this process, which calls, has taken so far.
fn own_cpu() -> Result<Duration, Failure> {
    let mut nanos = 0;
    for task in std::fs::read_dir("/proc/self/task")? {
        // A thread may end meanwhile.
        let Ok(text) = std::fs::read_to_string(task?.path().join("schedstat")) else { continue };
        nanos += text.split_whitespace().next().ok_or("no schedstat")?.parse::<u64>()?;
    }
    Ok(Duration::from_nanos(nanos))
}

/// What was taken so far, before a phase of load.
struct Before {
    etcd: Duration,
    own: Duration,
    transactions: f64,
}

/// A phase of load, and what it took of etcd and of this process.
#[derive(Default)]
struct Measured {
    phase: Phase,
    etcd: Duration,
    own: Duration,
    transactions: f64,
}

impl Measured {
    fn add(&mut self, other: &Self) {
        self.phase.add(&other.phase);
        self.etcd += other.etcd;
        self.own += other.own;
        self.transactions += other.transactions;
    }

    fn calls(&self) -> f64 {
        count(self.phase.latencies.len())
    }

    /// Microseconds for one call.
    fn each(&self, cpu: Duration) -> f64 {
        cpu.as_secs_f64() * 1e6 / self.calls()
    }
}

/// The calls that have a bare transaction beside them.
#[derive(Clone, Copy, Eq, PartialEq)]
enum Call {
    Refresh,
    Revoke,
}

struct Bench<'a> {
    cluster: &'a Cluster,
    server: &'a mut Server,
    channels: Arc<Vec<Channel>>,
    wheels: Arc<Vec<Wheel>>,
    plan: &'a Plan,
}

impl Bench<'_> {
    async fn rpc(&mut self, call: Call, callers: usize) -> Result<Measured, Failure> {
        let sessions = match call {
            Call::Refresh => Vec::new(),
            Call::Revoke => self.server.sessions(rows::enough_sessions(self.plan)).await?,
        };
        let sessions = Supply::new(sessions);
        let (channels, wheels) = (Arc::clone(&self.channels), Arc::clone(&self.wheels));
        let before = self.before().await?;
        let phase = saturate(self.server, callers, self.plan.phase, move |worker| {
            let client = Identity::new(channels[worker % channels.len()].clone());
            let (sessions, wheels) = (Arc::clone(&sessions), Arc::clone(&wheels));
            async move {
                match call {
                    Call::Refresh => calls::turn(client, &wheels[worker]).await.map(|()| true),
                    Call::Revoke => match sessions.next() {
                        Some((id, _)) => calls::revoke(client, id).await.map(|_| true),
                        None => Ok(false),
                    },
                }
            }
        })
        .await?;
        self.measured(phase, before).await
    }

    async fn bare(&self, bare: &Arc<Bare>, callers: usize) -> Result<Measured, Failure> {
        let before = self.before().await?;
        let bare = Arc::clone(bare);
        let phase = saturate(self.server, callers, self.plan.phase, move |worker| {
            let bare = Arc::clone(&bare);
            async move { bare.call(worker).await }
        })
        .await?;
        self.measured(phase, before).await
    }

    async fn before(&self) -> Result<Before, Failure> {
        let transactions = transactions(self.cluster).await?;
        Ok(Before { etcd: self.cluster.cpu()?, own: own_cpu()?, transactions })
    }

    async fn measured(&self, phase: Phase, before: Before) -> Result<Measured, Failure> {
        Ok(Measured {
            phase,
            etcd: self.cluster.cpu()?.saturating_sub(before.etcd),
            own: own_cpu()?.saturating_sub(before.own),
            transactions: transactions(self.cluster).await? - before.transactions,
        })
    }
}

/// Refresh and Revoke in turns with their bare transactions, with the same number of callers.
async fn beside_bare(
    cluster: &Cluster,
    server: &mut Server,
    plan: &Plan,
    report: &mut Report,
) -> Result<(), Failure> {
    let most = plan.callers.iter().copied().max().unwrap_or(1);
    let channels = Arc::new(server.connect(8).await?);
    let mut sessions = server.sessions(2).await?;
    let (ended, _) = sessions.pop().ok_or("no session")?;
    let (renewed, token) = sessions.pop().ok_or("no session")?;
    let client = || Identity::new(channels[0].clone());
    calls::refresh(client(), token).await?;
    let refresh = puts_of(cluster.channel(0)?, &renewed).await?;
    calls::revoke(client(), ended.clone()).await?;
    let revoke = puts_of(cluster.channel(0)?, &ended).await?;
    report.note(format!("puts of Refresh: {}, of Revoke: {}", refresh.sizes(), revoke.sizes()));
    let tokens = server.sessions(most * TOKENS_EACH).await?;
    let wheels = tokens
        .chunks(TOKENS_EACH)
        .map(|sessions| Wheel::new((0, sessions.iter().map(|(_, token)| token.clone()).collect())));
    // One connection, as a replica has.
    let refresh = Bare::new(cluster.channel(0)?, refresh, most).await?;
    let revoke = Bare::new(cluster.channel(0)?, revoke, most).await?;
    let wheels = Arc::new(wheels.collect());
    let mut bench = Bench { cluster, server, channels, wheels, plan };
    let calls = [(Call::Refresh, "Refresh", refresh), (Call::Revoke, "Revoke", revoke)];
    for callers in &plan.callers {
        for (call, name, bare) in &calls {
            if !plan.wants(name) {
                continue;
            }
            let (mut rpc, mut alone) = (Measured::default(), Measured::default());
            let mut ratios = Vec::new();
            for _ in 0..plan.rounds {
                let before = bench.bare(bare, *callers).await?;
                let phase = bench.rpc(*call, *callers).await?;
                ratios.push(phase.phase.rate() / before.phase.rate());
                alone.add(&before);
                rpc.add(&phase);
            }
            let ratio = median(ratios.iter().copied());
            report.row(Row::new(format!("{name}, bare, {callers} callers"), &alone.phase));
            report.row(Row::new(format!("{name}, {callers} callers"), &rpc.phase));
            report.note(format!(
                "{name}, {callers} callers, CPU us each: etcd {:.0}, the server {:.0}, who calls {:.0}; bare: etcd {:.0}, who calls {:.0}; {:.2} transactions each",
                rpc.each(rpc.etcd),
                rpc.phase.cpu_per_call(),
                rpc.each(rpc.own),
                alone.each(alone.etcd),
                alone.each(alone.own),
                rpc.transactions / rpc.calls(),
            ));
            report.target(
                &format!("{name}, {callers} callers: at least {TARGET} of the bare rate"),
                format!(
                    "{ratio:.2}, of {} rounds {:.2} to {:.2}",
                    ratios.len(),
                    percentile(&mut ratios.clone(), 0.0),
                    percentile(&mut ratios.clone(), 1.0),
                ),
                ratio >= TARGET,
            );
        }
    }
    Ok(())
}

/// From `Revoke` at one replica to a watcher at another.
async fn across(
    here: &mut Server,
    there: &Server,
    plan: &Plan,
    report: &mut Report,
) -> Result<(), Failure> {
    let caller = Identity::new(here.connect(1).await?.remove(0));
    let token = watchers::own_token(caller.clone()).await?;
    let mut sessions = here.sessions(plan.events).await?;
    let channel = there.connect(1).await?.remove(0);
    let (got, mut arrivals) = mpsc::unbounded_channel();
    let ready = Arc::new(Semaphore::new(0));
    let watching = {
        let ready = Arc::clone(&ready);
        tokio::spawn(async move { watchers::watch(channel, &token, &ready, &got).await })
    };
    timeout(PATIENCE, ready.acquire()).await??.forget();
    let (mut called, mut returned, mut answered) = (Vec::new(), Vec::new(), Vec::new());
    while let Some((session, _)) = sessions.pop() {
        let begun = Instant::now();
        let answer = calls::revoke(caller.clone(), session).await?;
        let done = Instant::now();
        let revision = answer.cursor.unwrap_or_default().revision;
        let (seen, at): Got =
            timeout(PATIENCE, arrivals.recv()).await?.ok_or("the watcher ended")?;
        if seen != revision {
            return Err(format!("revision {seen} came for {revision}").into());
        }
        let millis = |time: Duration| time.as_secs_f64() * 1e3;
        answered.push(millis(done - begun));
        called.push(millis(at - begun));
        returned.push(millis(at.saturating_duration_since(done)));
    }
    watching.abort();
    for (what, times) in [
        ("Revoke at one replica, until it returned", &mut answered),
        ("Revoke called -> a watcher at another replica", &mut called),
        ("Revoke returned -> a watcher at another replica", &mut returned),
    ] {
        report.note(format!(
            "{what}: p50 {:.2} ms, p99 {:.2} ms, {} times",
            percentile(times, 0.5),
            percentile(times, 0.99),
            times.len()
        ));
    }
    Ok(())
}
