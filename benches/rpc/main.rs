//! What each call costs, beside an RPC that does nothing on the same stack, machine and run; and the
//! targets, reached or missed. The server runs in a process of its own on a sled store on the disk.
//!
//! `cargo bench --bench rpc`, or with `-- --quick` for a look in some seconds whose numbers say
//! little; `-- --sessions N` for another size of the large store, 0 for none, and
//! 1000000 for the one that the targets speak of, which takes two minutes more; `-- --only TEXT` for the
//! calls whose names have that text; `-- --rounds N` and `-- --phase-ms N` for more patience.
//!
//! `-- --store etcd` measures on an etcd that it starts itself, on the disk of the build, with one member or
//! `--members 3`: the same rows, then Refresh and Revoke beside the bare transactions that they are made of,
//! and how soon a watcher at another replica hears of a revocation; `--callers 16,64` for other numbers of
//! callers than 64 and 256. Passwords, many watchers and the large
//! store are left to the run on sled. etcd is `AVOUCH_ETCD`, or the one in `target/tools`.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a benchmark prints")]

use std::error::Error;
use std::path::{Path, PathBuf};
use std::time::Duration;

use avouch::domain::clock::{Clock as _, SystemClock, Timestamp};

mod backups;
mod bare;
mod calls;
mod child;
#[path = "../cell/etcd.rs"]
mod etcd;
mod load;
mod nothing;
mod replicas;
mod report;
mod rows;
mod server;
mod transactions;
mod watchers;

use child::Server;
use report::{Report, mib};

type Failure = Box<dyn Error + Send + Sync>;

/// How many sessions the targets for memory and start speak of.
const TARGET_SESSIONS: usize = 1_000_000;

/// Where the server keeps its state.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Store {
    Sled,
    Etcd,
}

/// How much is measured.
pub(crate) struct Plan {
    /// How often each pair is measured.
    rounds: usize,
    /// How long each phase is.
    phase: Duration,
    /// How many revocations the watchers see.
    events: usize,
    /// How many sessions the large store has.
    sessions: usize,
    /// What the name of a call must have.
    only: Option<String>,
    store: Store,
    /// How many members an etcd has.
    members: usize,
    /// How many callers the calls and the bare transactions have.
    callers: Vec<usize>,
}

impl Plan {
    fn wants(&self, name: &str) -> bool {
        let has = |only: &String| name.to_lowercase().contains(&only.to_lowercase());
        self.only.as_ref().is_none_or(has)
    }

    fn of(arguments: &[String]) -> Result<Self, Failure> {
        let mut plan = Self {
            rounds: 7,
            phase: Duration::from_millis(700),
            events: 200,
            sessions: 200_000,
            only: None,
            store: Store::Sled,
            members: 1,
            callers: vec![64, 256],
        };
        let mut arguments = arguments.iter();
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().ok_or(format!("{argument} needs a value"));
            match argument.as_str() {
                // What cargo says.
                "--bench" => {}
                "--quick" => {
                    plan.rounds = 1;
                    plan.phase = Duration::from_millis(200);
                    plan.events = 10;
                    plan.sessions = 10_000;
                    plan.callers = vec![16];
                }
                "--store" => {
                    plan.store = match value()?.as_str() {
                        "sled" => Store::Sled,
                        "etcd" => Store::Etcd,
                        other => return Err(format!("no such store: {other}").into()),
                    }
                }
                "--members" => plan.members = value()?.parse()?,
                "--sessions" => plan.sessions = value()?.parse()?,
                "--rounds" => plan.rounds = value()?.parse()?,
                "--phase-ms" => plan.phase = Duration::from_millis(value()?.parse()?),
                "--callers" => {
                    let each = value()?.split(',').map(str::parse);
                    plan.callers = each.collect::<Result<_, _>>()?;
                }
                "--only" => plan.only = Some(value()?.clone()),
                other => return Err(format!("no such flag: {other}").into()),
            }
        }
        Ok(plan)
    }
}

fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let runtime = tokio::runtime::Runtime::new()?;
    match arguments.first().map(String::as_str) {
        Some("--server") => {
            let etcd = arguments.get(2).map(String::as_str);
            runtime.block_on(server::serve(&directory(&arguments)?, etcd))
        }
        Some("--fill") => {
            let count = arguments.get(2).ok_or("how many?")?.parse()?;
            let now = SystemClock::starting_at(Timestamp::default()).now();
            runtime.block_on(server::fill(&directory(&arguments)?, count, now))
        }
        _ => runtime.block_on(bench(&Plan::of(&arguments)?)),
    }
}

fn directory(arguments: &[String]) -> Result<PathBuf, Failure> {
    Ok(arguments.get(1).ok_or("where?")?.into())
}

async fn bench(plan: &Plan) -> Result<(), Failure> {
    // Beside the build, which is on a disk; the system's temporary directory may be memory.
    let dir = tempfile::Builder::new()
        .prefix("rpc-bench-")
        .tempdir_in(std::env::current_exe()?.parent().ok_or("no directory")?)?;
    let mut report = Report::default();
    if plan.store == Store::Etcd {
        replicas::measure(dir.path(), plan, &mut report).await?;
        println!("\n{report}");
        return Ok(());
    }
    let mut server = Server::start(dir.path()).await?;
    rows::measure(&mut server, plan, &mut report).await?;
    if plan.wants("Authenticate by password") {
        rows::passwords(&mut server, plan, &mut report).await?;
    }
    if plan.wants("watchers") {
        watchers::measure(&mut server, plan, &mut report).await?;
    }
    server.stop().await?;
    if plan.sessions > 0 && plan.wants("sessions") {
        sessions(dir.path(), plan, &mut report).await?;
    }
    println!("\n{report}");
    Ok(())
}

/// Fills a store and starts a server on it.
async fn sessions(dir: &Path, plan: &Plan, report: &mut Report) -> Result<(), Failure> {
    let count = plan.sessions;
    let dir = dir.join("many");
    let begun = tokio::time::Instant::now();
    let path = dir.to_str().ok_or("a path that is no text")?;
    child::run_as("--fill", &[path, &count.to_string()]).await?;
    let filled = begun.elapsed();
    let mut server = Server::start(&dir).await?;
    let resident = server.resident()?;
    let started = server.started_in;
    let beyond = resident.saturating_sub(server::CACHE_BYTES);
    let each = mib(beyond) * 1024.0 * 1024.0 / load::count(count);
    report.note(format!(
        "{count} sessions: opened in {:.1} s; server RSS {:.0} MiB with a cache of {:.0} MiB",
        filled.as_secs_f64(),
        mib(resident),
        mib(server::CACHE_BYTES),
    ));
    let seconds = started.as_secs_f64();
    if count < TARGET_SESSIONS {
        // Whether a million would do is not known from fewer.
        report.note(format!("{each:.0} bytes each beyond the cache; started in {seconds:.2} s"));
    } else {
        report.target(
            &format!("memory at {count} sessions beyond the cache: at most 100 bytes each"),
            format!("{each:.0} bytes"),
            each <= 100.0,
        );
        report.target(
            &format!("start with {count} sessions: under 5 s"),
            format!("{seconds:.2} s"),
            seconds < 5.0,
        );
    }
    backups::measure(&mut server, plan, report).await?;
    server.stop().await
}
