use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::task::JoinHandle;

use super::queue::MIN_RETRY_AFTER;
use super::worker::step_back;
use super::*;
use crate::domain::entropy::SeededEntropy;

/// Holds up, or fails, each hash at the moment that it draws its salt.
struct Gate {
    closed: Mutex<bool>,
    opened: Condvar,
    broken: AtomicBool,
    drawn: AtomicUsize,
    seeded: SeededEntropy,
}

impl Gate {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            closed: Mutex::new(false),
            opened: Condvar::new(),
            broken: AtomicBool::new(false),
            drawn: AtomicUsize::new(0),
            seeded: SeededEntropy::new(1),
        })
    }

    fn close(&self) {
        *self.closed.lock().unwrap() = true;
    }

    fn open(&self) {
        *self.closed.lock().unwrap() = false;
        self.opened.notify_all();
    }
}

impl Entropy for Gate {
    fn fill(&self, bytes: &mut [u8]) {
        self.drawn.fetch_add(1, Ordering::SeqCst);
        let closed = self.opened.wait_while(self.closed.lock().unwrap(), |closed| *closed);
        drop(closed.unwrap());
        assert!(!self.broken.load(Ordering::SeqCst), "broken by the test");
        self.seeded.fill(bytes);
    }
}

fn text(text: &str) -> SecretText {
    SecretText::new(text.into())
}

fn settings(workers: usize, max_queued: usize) -> PoolSettings {
    // So long that only the length of the queue decides.
    let queue_max_wait = Duration::from_secs(86_400);
    PoolSettings { workers, max_queued, queue_max_wait, source_share: 1 }
}

fn hasher(settings: PoolSettings) -> (Arc<Hasher>, Arc<Gate>) {
    let gate = Gate::new();
    let hasher = Hasher::new(HashParams::weak_for_tests(), settings, gate.clone()).unwrap();
    (Arc::new(hasher), gate)
}

fn start(hasher: &Arc<Hasher>, source: u64) -> JoinHandle<Result<PasswordHash, HashError>> {
    let hasher = hasher.clone();
    tokio::spawn(async move { hasher.hash(source, text("password")).await })
}

/// In a place of its own.
async fn verify(
    hasher: &Hasher,
    source: u64,
    candidate: SecretText,
    stored: Option<PasswordHash>,
) -> Result<Verification, HashError> {
    hasher.verify(hasher.reserve(source)?, candidate, stored).await
}

async fn until(hasher: &Hasher, reached: impl Fn(PoolStats) -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !reached(hasher.stats()) {
        assert!(Instant::now() < deadline, "stuck at {:?}", hasher.stats());
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// One job that runs and stays there.
async fn occupy(hasher: &Arc<Hasher>, gate: &Gate) -> JoinHandle<Result<PasswordHash, HashError>> {
    gate.close();
    let drawn = gate.drawn.load(Ordering::SeqCst);
    let job = start(hasher, 0);
    until(hasher, |stats| {
        stats.running == 1 && stats.queued == 0 && gate.drawn.load(Ordering::SeqCst) > drawn
    })
    .await;
    job
}

#[tokio::test]
async fn checks_what_it_hashed() {
    let (hasher, _) = hasher(settings(2, 8));
    let hash = hasher.hash(1, text("Passe\u{301} compose\u{301}")).await.unwrap();
    let stored = PasswordHash::from_phc(hash.to_phc().expose()).unwrap();
    for (candidate, verdict) in [
        ("Passe\u{301} compose\u{301}", Verification::Match),
        ("Pass\u{e9} compos\u{e9}", Verification::Match),
        ("Pass\u{e9}\u{a0}compos\u{e9}", Verification::Match),
        ("Pass\u{e9} compos\u{e9} ", Verification::Mismatch),
        ("pass\u{e9} compos\u{e9}", Verification::Mismatch),
    ] {
        let answer = verify(&hasher, 1, text(candidate), Some(stored.clone())).await;
        assert_eq!(answer, Ok(verdict), "{candidate:?}");
    }
    let second = hasher.hash(1, text("Pass\u{e9} compos\u{e9}")).await.unwrap();
    assert_ne!(hash.to_phc().expose(), second.to_phc().expose(), "a salt of its own");
    assert!(!format!("{hasher:?} {hash:?}").contains("argon2id"));
}

#[tokio::test]
async fn an_unknown_user_never_matches_and_costs_a_hash() {
    let (hasher, _) = hasher(settings(1, 8));
    for candidate in ["password", "a first hash", " "] {
        let answer = verify(&hasher, 1, text(candidate), None).await;
        assert_eq!(answer, Ok(Verification::Mismatch));
    }
    assert_eq!(hasher.stats().completed, 3);
}

#[tokio::test]
async fn what_can_be_no_password_is_not_hashed() {
    let (hasher, _) = hasher(settings(1, 8));
    let long = "a".repeat(precis::MAX_PASSWORD_CODE_POINTS + 1);
    for (candidate, error) in [
        ("", PasswordError::Empty),
        ("a\0b", PasswordError::Character),
        (&long, PasswordError::TooLong),
    ] {
        let answer = verify(&hasher, 1, text(candidate), None).await;
        assert_eq!(answer, Err(HashError::Password(error)));
        let answer = hasher.hash(1, text(candidate)).await;
        assert_eq!(answer.unwrap_err(), HashError::Password(error));
    }
    assert_eq!(hasher.stats().completed, 0);
}

#[tokio::test]
async fn an_old_hash_still_verifies_and_asks_to_be_replaced() {
    let current = HashParams::stored(256, 2, 1).unwrap();
    let entropy = Arc::new(SeededEntropy::new(1));
    let hasher = Hasher::new(current, settings(1, 8), entropy).unwrap();
    let old = Engine::new(HashParams::weak_for_tests(), Arc::default())
        .hash(&text("password"), [1; 16])
        .unwrap();
    let answer = verify(&hasher, 1, text("password"), Some(old.clone())).await;
    assert_eq!(answer, Ok(Verification::Match));
    assert!(hasher.needs_rehash(&old));
    let new = hasher.hash(1, text("password")).await.unwrap();
    assert!(!hasher.needs_rehash(&new));
    assert_eq!(new.params(), &current);
}

#[tokio::test]
async fn turns_away_at_once_what_does_not_fit() {
    let (hasher, gate) = hasher(settings(1, 2));
    let mut admitted = vec![occupy(&hasher, &gate).await];
    for source in 1..=2 {
        admitted.push(start(&hasher, source));
        until(&hasher, |stats| stats.queued as u64 == source).await;
    }
    let Err(HashError::Busy { retry_after }) = verify(&hasher, 3, text("a"), None).await else {
        panic!("should be turned away");
    };
    assert!(retry_after >= MIN_RETRY_AFTER);
    let stats = hasher.stats();
    assert_eq!((stats.shed_full, stats.shed_source, stats.queued), (1, 0, 2));

    gate.open();
    for job in admitted {
        assert!(job.await.unwrap().is_ok());
    }
    assert!(verify(&hasher, 3, text("a"), None).await.is_ok());
}

#[tokio::test]
async fn turns_away_what_would_wait_too_long() {
    let queue_max_wait = Duration::from_nanos(1);
    let (hasher, gate) = hasher(PoolSettings { queue_max_wait, ..settings(1, 1000) });
    let running = occupy(&hasher, &gate).await;
    let answer = verify(&hasher, 1, text("a"), None).await;
    assert!(matches!(answer, Err(HashError::Busy { .. })));
    gate.open();
    assert!(running.await.unwrap().is_ok());
    assert!(verify(&hasher, 1, text("a"), None).await.is_ok(), "a free worker is never refused");
}

#[test]
fn the_wait_is_the_queue_times_the_time_of_a_hash() {
    let queue_max_wait = Duration::from_secs(1);
    let (hasher, _) = hasher(PoolSettings { queue_max_wait, ..settings(2, 1000) });
    let mut state = State::default();
    state.stats.mean = Duration::from_millis(25);
    assert_eq!(hasher.shared.capacity(&state), 80);
    assert_eq!(hasher.shared.wait_at(&state, 80), Duration::from_secs(1));
    assert_eq!(hasher.shared.place(&state), 0);
    state.stats.running = 2;
    assert_eq!(hasher.shared.place(&state), 1);
    state.stats.mean = Duration::MAX;
    assert_eq!(hasher.shared.capacity(&state), 0);
    assert!(hasher.shared.wait_at(&state, usize::MAX) > Duration::from_secs(1));
    state.stats.mean = Duration::ZERO;
    assert_eq!(hasher.shared.capacity(&state), 1000);
}

#[tokio::test]
async fn one_source_holds_its_share_and_no_more() {
    let (hasher, gate) = hasher(PoolSettings { source_share: 4, ..settings(1, 8) });
    let mut admitted = vec![occupy(&hasher, &gate).await];
    for queued in 1..=2 {
        admitted.push(start(&hasher, 66));
        until(&hasher, |stats| stats.queued == queued).await;
    }
    for _ in 0..3 {
        let answer = verify(&hasher, 66, text("a"), None).await;
        assert!(matches!(answer, Err(HashError::Busy { .. })));
    }
    admitted.push(start(&hasher, 1));
    until(&hasher, |stats| stats.queued == 3).await;
    let stats = hasher.stats();
    assert_eq!((stats.shed_full, stats.shed_source), (0, 3));

    gate.open();
    for job in admitted {
        assert!(job.await.unwrap().is_ok());
    }
    assert!(hasher.shared.lock().waiting.is_empty());
}

#[tokio::test]
async fn who_has_a_place_is_not_turned_away_and_who_waits_for_one_is() {
    let (hasher, _) = hasher(PoolSettings { source_share: 2, ..settings(1, 2) });
    let busy = |source| matches!(hasher.reserve(source), Err(HashError::Busy { .. }));
    // One for the worker, two to wait. Nothing was hashed yet.
    let places = [1, 2, 3].map(|source| hasher.reserve(source).unwrap());
    assert!(busy(4));
    assert_eq!((hasher.stats().shed_full, hasher.stats().queued), (1, 0));
    let [first, second, third] = places;
    assert_eq!(hasher.verify(first, text("a"), None).await, Ok(Verification::Mismatch));
    // Whoever leaves before the hash leaves the place.
    drop(second);
    assert!(busy(3), "that source has its share");
    assert_eq!(hasher.stats().shed_source, 1);
    let other = hasher.reserve(5).unwrap();
    drop((third, other));
    let state = hasher.shared.lock();
    assert!(state.waiting.is_empty() && state.reserved == 0);
}

#[tokio::test]
async fn a_caller_who_leaves_frees_nothing_that_still_runs() {
    let (hasher, gate) = hasher(settings(1, 8));
    let running = occupy(&hasher, &gate).await;
    let waiting = start(&hasher, 1);
    until(&hasher, |stats| stats.queued == 1).await;
    running.abort();
    waiting.abort();
    assert!(running.await.unwrap_err().is_cancelled());
    assert!(waiting.await.unwrap_err().is_cancelled());
    assert_eq!(hasher.stats().running, 1, "its hash still runs");

    gate.open();
    until(&hasher, |stats| stats.abandoned == 1).await;
    assert_eq!(hasher.stats().completed, 1, "the one that waited was never hashed");
}

#[tokio::test]
async fn those_who_left_make_room() {
    let (hasher, gate) = hasher(settings(1, 4));
    let running = occupy(&hasher, &gate).await;
    for queued in 1..=4 {
        let job = start(&hasher, 66);
        until(&hasher, |stats| stats.queued == queued).await;
        job.abort();
        assert!(job.await.unwrap_err().is_cancelled());
    }
    let admitted = start(&hasher, 1);
    until(&hasher, |stats| stats.abandoned == 4 && stats.queued == 1).await;
    gate.open();
    assert!(running.await.unwrap().is_ok());
    assert!(admitted.await.unwrap().is_ok());
}

#[tokio::test]
async fn many_at_once_each_get_their_own_answer() {
    let (hasher, _) = hasher(settings(4, 64));
    let jobs = Vec::from_iter((0..64_u64).map(|n| {
        let hasher = hasher.clone();
        tokio::spawn(async move {
            let own = format!("password {n}");
            let hash = hasher.hash(n, text(&own)).await?;
            let right = verify(&hasher, n, text(&own), Some(hash.clone())).await?;
            let wrong =
                verify(&hasher, n, text(&format!("password {}", n + 1)), Some(hash)).await?;
            Ok::<_, HashError>((right, wrong))
        })
    }));
    for job in jobs {
        let answers = job.await.unwrap();
        assert_eq!(answers, Ok((Verification::Match, Verification::Mismatch)));
    }
    let stats = hasher.stats();
    assert_eq!((stats.completed, stats.running, stats.queued), (192, 0, 0));
}

#[tokio::test]
async fn a_panic_costs_one_answer() {
    let (hasher, gate) = hasher(settings(1, 8));
    gate.broken.store(true, Ordering::SeqCst);
    for _ in 0..3 {
        assert_eq!(hasher.hash(1, text("password")).await.unwrap_err(), HashError::Internal);
    }
    gate.broken.store(false, Ordering::SeqCst);
    assert!(hasher.hash(1, text("password")).await.is_ok());
    let stats = hasher.stats();
    assert_eq!((stats.failed, stats.completed, stats.running), (3, 4, 0));
}

#[tokio::test]
async fn dropping_it_ends_its_threads() {
    let (hasher, _) = hasher(settings(3, 8));
    assert!(hasher.hash(1, text("password")).await.is_ok());
    let shared = Arc::downgrade(&hasher.shared);
    drop(hasher);
    let deadline = Instant::now() + Duration::from_secs(30);
    while shared.strong_count() > 0 {
        assert!(Instant::now() < deadline, "a thread is still there");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[test]
fn refuses_settings_that_make_no_sense() {
    let good = settings(1, 1);
    for bad in [
        PoolSettings { workers: 0, ..good.clone() },
        PoolSettings { workers: MAX_WORKERS + 1, ..good.clone() },
        PoolSettings { max_queued: 0, ..good.clone() },
        PoolSettings { queue_max_wait: Duration::ZERO, ..good.clone() },
        PoolSettings { source_share: 0, ..good },
    ] {
        let entropy = Arc::new(SeededEntropy::new(1));
        let result = Hasher::new(HashParams::weak_for_tests(), bad, entropy);
        assert!(matches!(result, Err(PoolError::Settings(_))));
    }
}

#[cfg(target_os = "linux")]
#[test]
fn only_the_hashing_thread_steps_back() {
    let priority = || rustix::process::getpriority_process(None).unwrap();
    let before = priority();
    let stepped_back = thread::spawn(move || {
        step_back();
        priority()
    });
    assert_eq!(stepped_back.join().unwrap(), (before + 10).min(19));
    assert_eq!(priority(), before);
}

#[tokio::test]
async fn no_work_says_who_exists() {
    let entropy = Arc::new(SeededEntropy::new(1));
    let current = HashParams::stored(512, 4, 1).unwrap();
    let hasher = Hasher::new(current, settings(1, 8), entropy).unwrap();
    let stored = |m, t, p| {
        let params = HashParams::stored(m, t, p).unwrap();
        Some(Engine::new(params, Arc::default()).hash(&text("password"), [1; 16]).unwrap())
    };
    for (class, stored) in [
        ("unknown", None),
        ("current", stored(512, 4, 1)),
        ("fewer passes", stored(512, 1, 1)),
        ("less memory", stored(64, 7, 1)),
        ("as much in another shape", stored(1024, 2, 4)),
        ("next to nothing", stored(8, 1, 1)),
        ("all but a little", stored(1021, 2, 1)),
    ] {
        for password in ["password", "wrong"] {
            let before = hasher.stats();
            verify(&hasher, 1, text(password), stored.clone()).await.unwrap();
            let after = hasher.stats();
            assert_eq!(after.completed - before.completed, 1, "{class}");
            let (work, usual) = (after.work_kib - before.work_kib, current.cost());
            // The filler cannot be a part of a KiB, nor less than argon2 takes at all.
            assert!(work.abs_diff(usual) * 100 <= usual, "{class}: {work} of {usual}");
        }
    }
}
