//! The power cut of a whole server, under load over gRPC and while it starts: at every moment of
//! which the disk has a record, what clients had been told by then is there when it starts again.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use avouch::pb::v1 as pb;
use avouch::pb::v1::revocation_service_client::RevocationServiceClient;
use avouch::pb::v1::revoke_request::Target;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tonic::{Code, Status};

use super::fuse::Disk;
use super::image::{HONEST, Honours, Step, Tree, Unsynced, after_power_cut};
use super::{Dice, ROUNDS, SEED, Shelf, setting, with_own_mounts};
use crate::crash::{Identity, Line, Revoked, active, admin_token, check, login, refresh};
use crate::harness::{bearer, reason};
use crate::process::{Addresses, Cast, End, PATIENCE, Process, channel, identity};

/// The data directory, below the mount.
pub(super) const DATA: &str = "data";

/// What a client saw.
enum Seen {
    LoggedIn(pb::TokenSet),
    Refreshed(usize, pb::TokenSet),
    /// It has asked for a revocation.
    Revoking(usize),
    /// And has it, with its revision.
    Revoked(usize, u64),
}

/// What one client saw, each with how far the disk's record had come by then.
#[derive(Default)]
pub(super) struct History {
    seen: Vec<(usize, Seen)>,
    /// The calls, in order: when each began, how long it took, and what it came to.
    pub(super) calls: Vec<(Instant, Duration, Result<(), Status>)>,
}

/// Revisions of the revocations that were acknowledged, and the sessions they ended.
pub(super) type Log = BTreeMap<u64, String>;

impl History {
    /// What the client had been told when the record was this long. Its lines in the order of the
    /// last news of each, the newest first.
    pub(super) fn at(&self, position: usize) -> (Vec<Line>, Log) {
        let mut lines: Vec<(usize, Line)> = Vec::new();
        let mut log = Log::new();
        let told = self.seen.iter().take_while(|(at, _)| *at <= position);
        for (n, (_, seen)) in told.enumerate() {
            let line = match seen {
                Seen::LoggedIn(tokens) => {
                    lines.push((n, Line::new(tokens.clone())));
                    continue;
                }
                Seen::Refreshed(line, _) | Seen::Revoking(line) | Seen::Revoked(line, _) => {
                    &mut lines[*line]
                }
            };
            line.0 = n;
            match seen {
                Seen::LoggedIn(_) => {}
                Seen::Refreshed(_, tokens) => line.1.push(tokens.clone()),
                Seen::Revoking(_) => line.1.revoked = Revoked::Unanswered,
                Seen::Revoked(_, revision) => {
                    line.1.revoked = Revoked::Acknowledged;
                    log.insert(*revision, line.1.session.clone());
                }
            }
        }
        lines.sort_by_key(|(n, _)| std::cmp::Reverse(*n));
        (lines.into_iter().map(|(_, line)| line).collect(), log)
    }

    /// The first moment at which something was acknowledged.
    fn first(&self) -> Option<usize> {
        self.seen.first().map(|(at, _)| *at)
    }
}

async fn revoke(i: &mut Identity, cast: &Cast, session: &str) -> Result<u64, Status> {
    let request = pb::RevokeRequest {
        client: Some(cast.admin.clone()),
        target: Some(Target::SessionId(session.to_owned())),
        ..Default::default()
    };
    let answer = i.revoke(request).await?.into_inner();
    Ok(answer.revoked.expect("it was live").revision)
}

/// One client, which logs in, refreshes and revokes.
pub(super) struct Client {
    pub(super) server: Identity,
    pub(super) cast: Cast,
    pub(super) disk: Disk,
    pub(super) dice: Dice,
}

impl Client {
    /// Makes so many calls, or fewer if the server is gone.
    pub(super) async fn load(mut self, calls: usize) -> History {
        let mut history = History::default();
        // The session of each line and its current token; none once its revocation was asked for.
        let mut lines: Vec<(String, Option<String>)> = Vec::new();
        for _ in 0..calls {
            let began = Instant::now();
            let outcome = self.call(&mut lines, &mut history.seen).await;
            let gone = outcome.as_ref().is_err_and(|status| !is_answer(status));
            history.calls.push((began, began.elapsed(), outcome));
            if gone {
                break;
            }
        }
        history
    }

    async fn call(
        &mut self,
        lines: &mut Vec<(String, Option<String>)>,
        seen: &mut Vec<(usize, Seen)>,
    ) -> Result<(), Status> {
        let Self { server, cast, disk, dice } = self;
        let open: Vec<usize> = (0..lines.len()).filter(|n| lines[*n].1.is_some()).collect();
        if open.len() < 2 {
            let tokens = login(server, cast).await?;
            lines.push((tokens.session_id.clone(), Some(tokens.refresh_token.clone())));
            seen.push((disk.position(), Seen::LoggedIn(tokens)));
            return Ok(());
        }
        let n = open[dice.below(open.len())];
        let (session, token) = &mut lines[n];
        if dice.chance(15) {
            *token = None;
            seen.push((disk.position(), Seen::Revoking(n)));
            let revision = revoke(server, cast, session).await?;
            seen.push((disk.position(), Seen::Revoked(n, revision)));
        } else {
            let current = token.as_deref().expect("it is open");
            let tokens = refresh(server, cast, current).await?;
            *token = Some(tokens.refresh_token.clone());
            seen.push((disk.position(), Seen::Refreshed(n, tokens)));
        }
        Ok(())
    }
}

/// Whether it is the server that says this, and not the connection, which is no more.
pub(super) fn is_answer(status: &Status) -> bool {
    !reason(status).is_empty()
}

/// A server on a disk, with diagnostics that are not.
pub(super) fn start(home: &Path, data: &Path, settings: &[(&str, &str)]) -> Process {
    static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let n = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    Process::start_telling(home.join(format!("stderr-{n}")), "info", data, settings)
}

/// A disk and a place to mount it.
pub(super) struct Mounted {
    pub(super) disk: Disk,
    pub(super) data: PathBuf,
    pub(super) home: tempfile::TempDir,
    session: Option<fuser::BackgroundSession>,
}

impl Mounted {
    pub(super) fn holding(base: Tree) -> Self {
        let home = tempfile::tempdir().expect("a directory");
        let mount = home.path().join("disk");
        std::fs::create_dir(&mount).expect("a directory");
        let disk = Disk::holding(base);
        let session = Some(disk.mount(&mount));
        Self { disk, data: mount.join(DATA), home, session }
    }

    /// A server on it.
    pub(super) fn start(&self) -> Process {
        start(self.home.path(), &self.data, &[])
    }

    /// A client of it, with dice of its own.
    pub(super) async fn client(&self, addresses: &Addresses, cast: &Cast, dice: &Dice) -> Client {
        Client {
            server: identity(addresses).await,
            cast: cast.clone(),
            disk: self.disk.clone(),
            dice: Dice::new(dice.below(usize::MAX) as u64),
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        self.disk.release();
        drop(self.session.take());
    }
}

/// What happened on a disk from the start of a server to its death.
struct Run {
    base: Tree,
    steps: Vec<Step>,
    /// How far the record had come when it served.
    served: usize,
    histories: Vec<History>,
    cast: Cast,
}

impl Run {
    /// Starts a server on a disk that holds this, and kills it while clients keep it busy.
    async fn on(base: Tree, dice: &Dice) -> Self {
        let mounted = Mounted::holding(base);
        let mut process = mounted.start();
        let addresses = process.serving().await;
        let served = mounted.disk.position();
        let cast = Cast::of(&mounted.data);
        let mut clients = JoinSet::new();
        for _ in 0..4 {
            let client = mounted.client(&addresses, &cast, dice).await;
            clients.spawn(client.load(40));
        }
        let mut histories = Vec::new();
        // The first that is done is the sign; the others are in the middle of something.
        histories.extend(clients.join_next().await);
        process.kill().await;
        histories.extend(clients.join_all().await.into_iter().map(Ok));
        let histories = histories.into_iter().map(|history| history.expect("no panic")).collect();
        let (base, steps) = mounted.disk.record();
        Self { base, steps, served, histories, cast }
    }

    fn cut(&self, at: usize, unsynced: Unsynced, dice: &Dice, honours: Honours<'_>) -> Tree {
        after_power_cut(&self.base, &self.steps[..at], unsynced, dice, honours)
    }

    /// What all clients had been told when the record was this long: the newest lines of each.
    fn told(&self, at: usize, newest: usize) -> (Vec<Line>, Log) {
        let (mut lines, mut log) = (Vec::new(), Log::new());
        for history in &self.histories {
            let (its_lines, its_log) = history.at(at);
            lines.extend(its_lines.into_iter().take(newest));
            log.extend(its_log);
        }
        (lines, log)
    }

    /// The first moment at which something was acknowledged.
    fn first(&self) -> usize {
        self.histories.iter().filter_map(History::first).min().expect("the load is not none")
    }
}

/// The list of revocations has these, and its revisions rise.
pub(super) async fn check_log(addresses: &Addresses, cast: &Cast, log: &Log) {
    let token = admin_token(addresses, cast).await;
    let mut server = RevocationServiceClient::new(channel(addresses).await);
    let request = pb::ListRevocationsRequest { page_size: 1000, ..Default::default() };
    let list = server.list_revocations(bearer(request, &token)).await.expect("a list").into_inner();
    assert!(list.next_page_token.is_empty(), "one page holds them");
    let revisions: Vec<u64> = list.revocations.iter().map(|one| one.revision).collect();
    assert!(revisions.is_sorted_by(|a, b| a < b), "{revisions:?}");
    for (revision, session) in log {
        let found = list.revocations.iter().find(|one| one.revision == *revision);
        let target = found.and_then(|one| one.target.clone());
        match target {
            Some(pb::revocation::Target::Session(found)) => assert_eq!(found.session_id, *session),
            other => panic!("{other:?} in the place of the revocation of {session}"),
        }
    }
}

/// Starts a server on what a disk holds, outside of it.
pub(super) async fn outcome(
    shelf: &mut Shelf,
    disk: &Tree,
) -> (PathBuf, Process, Result<Addresses, End>) {
    let place = shelf.put(disk);
    let mut process = start(&place, &place.join(DATA), &[]);
    let outcome = timeout(PATIENCE, process.outcome()).await.expect("in time");
    (place, process, outcome)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_power_cut_under_load_or_while_starting_loses_nothing_that_was_acknowledged() {
    if !with_own_mounts(
        "disk::server::a_power_cut_under_load_or_while_starting_loses_nothing_that_was_acknowledged",
    ) {
        return;
    }
    let seed = setting(SEED, 91);
    println!("seed {seed}");
    let dice = Dice::new(seed);
    let mut shelf = Shelf::new(256);
    let mut base = Tree::default();
    let mut dead: Vec<Line> = Vec::new();
    let (mut cuts, mut refreshed, mut revoked) = (0, 0, 0);
    for round in 0..2 * setting(ROUNDS, 1) {
        let run = Run::on(base, &dice).await;
        let end = run.steps.len();
        // While it starts, then while it is busy, then at the last.
        let starting = (0..4).map(|_| dice.below(run.served));
        let busy = (0..4).map(|_| run.served + dice.below(end - run.served));
        let moments: Vec<_> = starting.chain(busy).chain([end]).collect();
        for (n, at) in moments.into_iter().enumerate() {
            let unsynced = Unsynced::ALL[(n + dice.below(2)) % Unsynced::ALL.len()];
            println!(
                "round {round}, after step {at} of {end}, serving at {}, {unsynced:?}",
                run.served
            );
            let (place, process, started) =
                outcome(&mut shelf, &run.cut(at, unsynced, &dice, HONEST)).await;
            let addresses = started.expect("an honest disk holds what it needs");
            // A first start that was cut short makes new credentials.
            let cast = Cast::of(&place.join(DATA));
            if at >= run.served {
                assert_eq!(
                    cast.admin, run.cast.admin,
                    "the credentials are the ones it served with"
                );
            }
            let (lines, log) = run.told(at, 4);
            check_log(&addresses, &cast, &log).await;
            check(&addresses, &cast, &lines).await;
            check(&addresses, &cast, &dead).await;
            let tokens = login(&mut identity(&addresses).await, &cast).await.expect("it goes on");
            assert!(active(&mut identity(&addresses).await, &cast, &tokens.access_token).await);
            process.kill().await;
            shelf.clear(&place);
            cuts += 1;
            refreshed += lines.iter().map(|line| line.refresh.len() - 1).sum::<usize>();
            revoked += log.len();
        }
        // The next server finds what a cut in the middle has left.
        let at = run.served + (end - run.served) / 2;
        base = run.cut(at, Unsynced::Torn(512), &dice, HONEST);
        let (lines, _) = run.told(at, usize::MAX);
        dead.extend(lines.into_iter().filter(|line| line.revoked == Revoked::Acknowledged).take(6));
    }
    println!(
        "{cuts} power cuts; {refreshed} refreshes and {revoked} revocations held against them"
    );
    assert!(refreshed > 0 && revoked > 0, "the load was none");
}

/// How much of what was acknowledged a server has not.
async fn lost(addresses: &Addresses, cast: &Cast, lines: &[Line]) -> (usize, usize) {
    let mut server = identity(addresses).await;
    let (mut tokens, mut revocations) = (0, 0);
    for line in lines {
        match line.revoked {
            Revoked::NotAsked => {
                if let Err(status) = refresh(&mut server, cast, line.current()).await {
                    assert_eq!(status.code(), Code::Unauthenticated);
                    tokens += 1;
                }
            }
            Revoked::Acknowledged => {
                let session = login_of(line);
                revocations += usize::from(active(&mut server, cast, session).await);
            }
            Revoked::Unanswered => {}
        }
    }
    (tokens, revocations)
}

/// The access token that is the oldest of a line: the likeliest whose session is on the disk.
fn login_of(line: &Line) -> &str {
    line.access.first().expect("a line begins with a login")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_a_disk_that_ignores_syncs_tokens_are_lost_and_a_lost_database_is_refused() {
    if !with_own_mounts(
        "disk::server::on_a_disk_that_ignores_syncs_tokens_are_lost_and_a_lost_database_is_refused",
    ) {
        return;
    }
    let dice = Dice::new(7);
    let run = Run::on(Tree::default(), &dice).await;
    let mut shelf = Shelf::new(256);
    let (at, first) = (run.steps.len(), run.first());
    let mut whole = run.base.clone();
    run.steps.iter().for_each(|step| whole.apply(step));
    let data = whole.find(&format!("{DATA}/sled/db")).expect("a database");
    let (lines, _) = run.told(at, usize::MAX);
    assert!(lines.iter().any(|line| line.revoked == Revoked::NotAsked), "the load was none");

    // As if there were sled's own flush and nothing else.
    let disk = run.cut(at, Unsynced::Lost, &dice, &|n, _| n < first);
    let (place, process, started) = outcome(&mut shelf, &disk).await;
    let addresses = started.expect("nothing tells it that something is missing");
    let (tokens, _) = lost(&addresses, &Cast::of(&place.join(DATA)), &lines).await;
    assert!(tokens > 0, "nothing was lost, so the checks above show nothing");
    process.kill().await;

    // The mark is kept and says what the database lacks.
    let disk = run.cut(at, Unsynced::Lost, &dice, &|n, ino| n < first || ino != data);
    let (_, _, started) = outcome(&mut shelf, &disk).await;
    let end = started.expect_err("it must not serve without what it acknowledged");
    assert_eq!(end.status.code(), Some(1), "{end:?}");
    assert!(end.stderr.contains("acknowledged commits are missing"), "{end:?}");

    // And the same record on an honest disk.
    let disk = run.cut(at, Unsynced::Lost, &dice, HONEST);
    let (place, process, started) = outcome(&mut shelf, &disk).await;
    let addresses = started.expect("an honest disk holds what it needs");
    assert_eq!(lost(&addresses, &Cast::of(&place.join(DATA)), &lines).await, (0, 0));
    process.kill().await;
}
