//! The parts alone: what a token costs to make and to check, how many commits a second become durable,
//! and whether the time of a failed login says who exists.
//!
//! `cargo bench --bench parts`, or with `-- --quick` for a look; `-- --only TEXT` for one of `tokens`,
//! `commits` and `logins`; `-- --samples N` failed logins of each kind; `-- --hash KIB,PASSES` for
//! other settings of the password hashes, cheap ones to see what hashing would drown.

#![expect(clippy::print_stdout, reason = "a benchmark prints")]

use std::error::Error;

mod commits;
mod logins;
mod statistics;
mod tokens;

type Failure = Box<dyn Error + Send + Sync>;

/// How much is measured.
struct Plan {
    /// How often each token is made and checked.
    tokens: usize,
    /// How many commits with many callers.
    commits: usize,
    /// How many failed logins of each kind.
    samples: usize,
    /// The settings of password hashes: KiB and passes.
    hash: (u32, u32),
    /// The one part that is measured.
    only: Option<String>,
}

impl Plan {
    fn of(arguments: &[String]) -> Result<Self, Failure> {
        let mut plan =
            Self { tokens: 2_000, commits: 200_000, samples: 300, hash: (19_456, 2), only: None };
        let mut arguments = arguments.iter();
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().ok_or(format!("{argument} needs a value"));
            match argument.as_str() {
                // What cargo says.
                "--bench" => {}
                "--quick" => {
                    plan.tokens = 100;
                    plan.commits = 5_000;
                    plan.samples = 20;
                    plan.hash = (64, 2);
                }
                "--only" => plan.only = Some(value()?.clone()),
                "--samples" => plan.samples = value()?.parse()?,
                "--hash" => {
                    let text = value()?;
                    let (memory, passes) = text.split_once(',').ok_or("KIB,PASSES")?;
                    plan.hash = (memory.parse()?, passes.parse()?);
                }
                other => return Err(format!("no such flag: {other}").into()),
            }
        }
        Ok(plan)
    }

    fn wants(&self, part: &str) -> bool {
        self.only.as_ref().is_none_or(|only| part.contains(only.as_str()))
    }
}

fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let plan = Plan::of(&arguments)?;
    let runtime = tokio::runtime::Runtime::new()?;
    if plan.wants("tokens") {
        tokens::measure(plan.tokens)?;
    }
    if plan.wants("commits") {
        runtime.block_on(commits::measure(plan.commits))?;
    }
    if plan.wants("logins") {
        runtime.block_on(logins::measure(plan.samples, plan.hash))?;
    }
    Ok(())
}

/// A directory beside the build, which is on a disk; the system's temporary directory may be memory.
fn directory() -> Result<tempfile::TempDir, Failure> {
    let beside = std::env::current_exe()?;
    let beside = beside.parent().ok_or("no directory")?;
    Ok(tempfile::Builder::new().prefix("parts-bench-").tempdir_in(beside)?)
}
