//! Disks that fail under load: full, unwritable, read-only, their syncs failing or hanging. Nothing
//! is acknowledged from then on, health says so, the process ends with a reason, and what was
//! acknowledged is there when it starts on a disk that works.

use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use super::fuse::Fault;
use super::image::{HONEST, Tree, Unsynced, after_power_cut};
use super::server::{Log, Mounted, check_log, is_answer, outcome};
use super::{Dice, ROUNDS, SEED, Shelf, setting, with_own_mounts};
use crate::crash::{check, login};
use crate::process::{Addresses, Cast, PATIENCE, Process, channel, identity};

/// How long health may take to say that a call was not kept. Compared with the quickest of several
/// runs: a slow machine makes each run slower, a server that does not look makes all of them slow.
const PROMPT: Duration = Duration::from_secs(1);

/// Follows health until it no longer says SERVING, or the connection is gone with the process.
async fn not_serving(addresses: &Addresses) -> impl Future<Output = Instant> + Send + 'static {
    let mut health = HealthClient::new(channel(addresses).await);
    let request = HealthCheckRequest { service: String::new() };
    let mut stream = health.watch(request).await.expect("a stream").into_inner();
    // Whoever asks at the first moment may be told that it does not serve yet.
    let serving = i32::from(ServingStatus::Serving);
    while stream.message().await.expect("a status").expect("a status").status != serving {}
    async move {
        while let Ok(Some(next)) = stream.message().await {
            if next.status != serving {
                break;
            }
        }
        Instant::now()
    }
}

/// Waits until a process has ended but for threads that hang in the disk, which the kernel does not
/// let go. Nobody has asked for its exit code yet, so it is still listed, as a zombie.
async fn ended(process: &Process) {
    let stat = format!("/proc/{}/stat", process.id());
    let zombie = async {
        loop {
            let stat = std::fs::read_to_string(&stat).expect("Linux lists it");
            let state = stat.rsplit_once(") ").expect("a name in brackets").1;
            if state.starts_with('Z') {
                return;
            }
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, zombie).await.unwrap_or_else(|_| panic!("it lives on: {}", process.stderr()));
}

/// One failure. How long it took until health said so.
async fn fail(fault: Fault, only: Option<&str>, dice: &Dice, shelf: &mut Shelf) -> Duration {
    let mounted = Mounted::holding(Tree::default());
    let mut process = mounted.start();
    let addresses = process.serving().await;
    let served = mounted.disk.position();
    let cast = Cast::of(&mounted.data);
    let mut clients = JoinSet::new();
    for _ in 0..4 {
        clients.spawn(mounted.client(&addresses, &cast, dice).await.load(usize::MAX));
    }
    let told = tokio::spawn(not_serving(&addresses).await);
    let mut struck = mounted.disk.struck();
    let busy = async {
        while mounted.disk.position() < served + 100 {
            sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(PATIENCE, busy).await.expect("the clients get on");
    // A write that needs room comes once in a while, the others all the time.
    mounted.disk.fail(fault, only, dice.below(if fault == Fault::Full { 8 } else { 100 }));
    let (moment, _) = timeout(PATIENCE, struck.wait_for(Option::is_some))
        .await
        .expect("in time")
        .expect("the disk is there")
        .expect("it has struck");
    let told = timeout(PATIENCE, told).await.expect("health says so").expect("no panic");
    let took = told.saturating_duration_since(moment);

    let histories = timeout(PATIENCE, clients.join_all()).await.expect("nobody waits for ever");
    let (mut good, mut refused) = (0, 0);
    for (began, _, outcome) in histories.iter().flat_map(|history| &history.calls) {
        match outcome {
            Ok(()) => {
                good += 1;
                assert!(*began <= moment, "acknowledged after the disk failed");
            }
            Err(status) if is_answer(status) => {
                refused += 1;
                // Logins that fail with the disk count as attempts, and a slow machine sheds some.
                let codes = [Code::Unavailable, Code::ResourceExhausted];
                assert!(codes.contains(&status.code()), "{status:?}");
            }
            Err(_) => {}
        }
    }
    assert!(good > 0, "the load was none");
    ended(&process).await;
    mounted.disk.release();
    let end = process.end().await;
    assert_eq!(end.status.code(), Some(1), "{end:?}");
    assert!(end.stderr.contains("the store has failed: "), "{end:?}");
    println!("{fault:?} {only:?}: {good} acknowledged, {refused} refused, health after {took:?}");

    // Nothing but a write that needs room is left to a disk that is full.
    if only.is_none() && !matches!(fault, Fault::Full | Fault::SyncHangs) {
        let end = mounted.start().outcome().await.expect_err("the disk still fails");
        assert_eq!(end.status.code(), Some(1), "{end:?}");
    }

    let (base, steps) = mounted.disk.record();
    let lines = histories.iter().flat_map(|history| history.at(usize::MAX).0.into_iter().take(6));
    let lines: Vec<_> = lines.collect();
    let log: Log = histories.iter().flat_map(|history| history.at(usize::MAX).1).collect();
    let cut = |unsynced| after_power_cut(&base, &steps, unsynced, dice, HONEST);
    for disk in [mounted.disk.live(), cut(Unsynced::Lost), cut(Unsynced::Torn(512))] {
        let (place, process, started) = outcome(shelf, &disk).await;
        let addresses = started.expect("what was acknowledged is there");
        check_log(&addresses, &cast, &log).await;
        check(&addresses, &cast, &lines).await;
        login(&mut identity(&addresses).await, &cast).await.expect("it goes on");
        Process::kill(process).await;
        shelf.clear(&place);
    }
    took
}

/// A fault and the only file that it hits, if it is not every one.
type Plan = (Fault, Option<&'static str>);

const DATABASE: Option<&str> = Some("data/sled/db");
const HIGH_WATER_MARK: Option<&str> = Some("data/avouch.hwm");

async fn fails_as_it_should(plans: &[Plan]) -> Duration {
    let seed = setting(SEED, 93);
    println!("seed {seed}");
    let dice = Dice::new(seed);
    let mut shelf = Shelf::new(256);
    let mut quickest = Duration::MAX;
    for _ in 0..setting(ROUNDS, 1) {
        for (fault, only) in plans {
            quickest = quickest.min(fail(*fault, *only, &dice, &mut shelf).await);
        }
    }
    quickest
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_fails_under_load_ends_the_process_and_loses_nothing() {
    if !with_own_mounts(
        "disk::faults::a_disk_that_fails_under_load_ends_the_process_and_loses_nothing",
    ) {
        return;
    }
    let quickest = fails_as_it_should(&[
        (Fault::Full, None),
        (Fault::WriteFails, DATABASE),
        (Fault::WriteFails, HIGH_WATER_MARK),
        (Fault::WriteFails, None),
        (Fault::SyncFails, DATABASE),
        (Fault::SyncFails, HIGH_WATER_MARK),
        (Fault::SyncFails, None),
        (Fault::ReadOnly, None),
    ])
    .await;
    assert!(quickest < PROMPT, "health took {quickest:?} at the least");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sync_that_hangs_ends_the_process_and_loses_nothing() {
    if !with_own_mounts("disk::faults::a_sync_that_hangs_ends_the_process_and_loses_nothing") {
        return;
    }
    let plans = [DATABASE, HIGH_WATER_MARK, None].map(|only| (Fault::SyncHangs, only));
    let quickest = fails_as_it_should(&plans).await;
    // The deadline of a sync is 2 s.
    assert!(quickest < Duration::from_secs(2) + PROMPT, "health took {quickest:?} at the least");
}
