//! The verbs of the store on two engines, and how many calls each takes.

use super::*;
use crate::domain::client::{Client, ClientType, Lifetimes, ReuseDetection};
use crate::domain::event::{Cause, Initiator, Reason};
use crate::domain::ids::{ClientId, Epoch, Epochs, Generation, SubjectId};
use crate::domain::key::MacKeyId;
use crate::domain::scope::Names;
use crate::domain::secret::{SecretBytes, SecretText};
use crate::domain::session::{Device, Presented, RotationRules, Session};
use crate::domain::throttle::{ThrottleDecision, ThrottlePolicy};
use crate::domain::user::User;
use crate::store::ledger::Ledger;
use crate::store::{
    ClientChange, Level, NewSession, Opened, Revoked, Rotation, Store as _, UserChange,
};

const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);
const CAUSE: Cause = Cause { reason: Reason::AdminAction, initiator: Initiator::Admin };

fn client() -> ClientId {
    "web".parse().unwrap()
}

fn subject(name: &str) -> SubjectId {
    name.parse().unwrap()
}

fn new_session(name: &str, at: Timestamp) -> NewSession {
    let entropy = entropy();
    let session = Session {
        id: entropy.session_id(),
        subject: subject(name),
        client: client(),
        scope: Names::new(["read"]).unwrap(),
        audience: Names::new(["orders"]).unwrap(),
        epochs: Epochs::default(),
        nonce: SecretBytes::new(entropy.bytes()),
        generation: Generation::default(),
        mac_key: MacKeyId(1),
        created_at: at,
        rotated_at: at,
        idle_expires_at: at.after(Duration::from_secs(7 * 86_400)),
        expires_at: at.after(Duration::from_secs(30 * 86_400)),
        access_expires_at: at.after(Duration::from_secs(600)),
        methods: Names::new(["pwd"]).unwrap(),
        device: Device::default(),
        revoked: None,
    };
    NewSession {
        session,
        max_per_subject: 3,
        looked_beyond: false,
        clear_attempts: Some(([1; 8], [2; 8])),
    }
}

async fn rotate(
    ledger: &Ledger<EtcdEngine>,
    session: &Session,
    generation: u32,
    now: Timestamp,
) -> Rotation {
    let presented = Presented {
        session: session.id,
        generation: Generation(generation),
        client: client(),
        scope: None,
        audience: None,
        permitted_audience: session.audience.clone(),
    };
    let rules = RotationRules {
        lifetimes: Lifetimes::default(),
        reuse_detection: ReuseDetection::Enforce,
        mac_key: MacKeyId(1),
    };
    // As Refresh does: whose token it is may be known from before.
    assert!(ledger.recall_session(session.id).await.unwrap().is_some());
    ledger.rotate(presented, rules, None, now).await.unwrap()
}

/// How many calls to etcd something takes.
async fn calls<T>(ledger: &Ledger<EtcdEngine>, what: impl Future<Output = T>) -> (u64, T) {
    let before = ledger.engine().calls();
    let answer = what.await;
    (ledger.engine().calls() - before, answer)
}

async fn two() -> (Etcd, Ledger<EtcdEngine>, Ledger<EtcdEngine>) {
    let etcd = Etcd::start();
    let settings = etcd.settings();
    let (one, other) = (open(&settings).await, open(&settings).await);
    (etcd, Ledger::new(one), Ledger::new(other))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refresh_is_one_call_and_a_revocation_is_too() {
    let (_etcd, one, other) = two().await;
    let new = new_session("ada", NOW);
    let session = new.session.clone();
    assert_eq!(one.open_session(new, NOW).await, Ok(Opened::Open { evicted: None }));
    for generation in 0..5 {
        let (calls, rotation) = calls(&one, rotate(&one, &session, generation, NOW)).await;
        assert!(matches!(rotation, Rotation::Rotated(_)), "{rotation:?}");
        assert_eq!(calls, 1);
    }
    // The other has never seen it: it reads the session, and finds that nothing was revoked as it
    // changes it.
    other.open_session(new_session("bob", NOW), NOW).await.unwrap();
    let (cold, rotation) = calls(&other, rotate(&other, &session, 5, NOW)).await;
    assert!(matches!(rotation, Rotation::Rotated(_)), "{rotation:?}");
    assert_eq!(cold, 2);
    // Now this one has what is old.
    let (stale, rotation) = calls(&one, rotate(&one, &session, 6, NOW)).await;
    assert!(matches!(rotation, Rotation::Rotated(_)), "{rotation:?}");
    assert_eq!(stale, 2);
    // The answer to a retry is compared, too.
    let (retry, rotation) = calls(&one, rotate(&one, &session, 6, NOW)).await;
    assert!(matches!(rotation, Rotation::Retried(_)), "{rotation:?}");
    assert_eq!(retry, 1);
    let (revoke, revoked) = calls(&one, one.revoke_session(session.id, CAUSE, NOW)).await;
    assert!(matches!(revoked, Ok(Revoked::Now(_))), "{revoked:?}");
    assert_eq!(revoke, 1);
    // Read your revocation, anywhere, at once.
    let found = other.find_session(session.id).await.unwrap().unwrap();
    assert!(found.revoked.is_some());
    assert_eq!(other.revoke_session(session.id, CAUSE, NOW).await, Ok(Revoked::Already));
}

fn user(name: &str, id: &str) -> User {
    User {
        subject: subject(id),
        username: name.into(),
        display_name: "A user".into(),
        password_hash: Some(SecretText::new("a hash".to_owned())),
        password_changed_at: Some(NOW),
        scope: Names::new(["read"]).unwrap(),
        disabled: false,
        created_at: NOW,
    }
}

/// Registers a client and so many users, the first of them ada.
async fn register(ledger: &Ledger<EtcdEngine>, users: usize) {
    let registered = Client {
        id: client(),
        display_name: "Web".into(),
        kind: ClientType::Confidential,
        secret_digest: Some(SecretBytes::new([5; 32])),
        first_party: true,
        scope: Names::new(["read"]).unwrap(),
        audience: Names::new(["orders"]).unwrap(),
        grants: Vec::new(),
        certificate_names: Vec::new(),
        lifetimes: Lifetimes::default(),
        reuse_detection: ReuseDetection::Enforce,
        disabled: false,
        created_at: NOW,
    };
    assert!(ledger.create_client(registered, NOW).await.unwrap());
    for number in 0..users {
        let name = if number == 0 { "ada".to_owned() } else { format!("user-{number:03}") };
        let user = user(&name, &format!("usr_{name}"));
        assert!(ledger.create_user(user, NOW).await.unwrap());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_login_asks_for_comes_in_one_call_whoever_exists() {
    let (_etcd, one, other) = two().await;
    register(&one, 3).await;
    // Names that this replica has not seen, and then has; of somebody and of nobody. What is written
    // meanwhile makes old what is known of the client.
    for (name, there) in [("ada", true), ("eve", false), ("user-001", true), ("mallory", false)] {
        for expected in [2, 1, 1] {
            one.begin_attempt([9; 8], [9; 8], ThrottlePolicy::default(), NOW).await.unwrap();
            let (calls, login) = calls(&other, other.find_login(name, &client())).await;
            let login = login.unwrap();
            assert_eq!((login.user.is_some(), login.client.is_some()), (there, true), "{name}");
            assert_eq!(calls, expected, "{name}");
        }
    }
    // Nobody is not the user whose subject is spelled as the client.
    let shadow = user("shadow", client().as_str());
    assert!(one.create_user(shadow, NOW).await.unwrap());
    assert!(other.find_login("eve", &client()).await.unwrap().user.is_none());
    // What has changed elsewhere since then is seen at once: to find that it has is to read it.
    let disable = UserChange { disabled: Some(true), ..UserChange::default() };
    one.change_user(subject("usr_ada"), disable, Some(CAUSE), NOW).await.unwrap();
    let (changed, login) = calls(&other, other.find_login("ada", &client())).await;
    let login = login.unwrap();
    assert!(login.user.unwrap().disabled);
    assert_eq!((login.epochs.subject, changed), (Epoch(1), 1));
    one.change_client(client(), ClientChange::Disabled(true), Some(CAUSE), NOW).await.unwrap();
    let login = other.find_login("ada", &client()).await.unwrap();
    assert!(login.client.unwrap().disabled);
    assert_eq!(login.epochs.client, Epoch(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_for_itself_is_one_call_and_sees_what_changed_elsewhere() {
    let (_etcd, one, other) = two().await;
    register(&one, 0).await;
    for _ in 0..3 {
        let (calls, found) = calls(&other, other.find_client_and_epochs(&client())).await;
        let (found, epochs) = found.unwrap();
        assert!(!found.unwrap().disabled);
        assert_eq!((epochs, calls), (Epochs::default(), 1));
    }
    one.change_client(client(), ClientChange::Disabled(true), Some(CAUSE), NOW).await.unwrap();
    let (found, epochs) = other.find_client_and_epochs(&client()).await.unwrap();
    assert!(found.unwrap().disabled);
    assert_eq!(epochs.client, Epoch(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_is_one_call_and_to_open_a_session_is_two() {
    let (_etcd, one, _other) = two().await;
    let policy = ThrottlePolicy::default();
    // The first that this replica opens: it finds that nothing was revoked.
    one.open_session(new_session("bob", NOW), NOW).await.unwrap();
    for number in 0..3 {
        let at = NOW.after(Duration::from_millis(number));
        let (attempt, begun) = calls(&one, one.begin_attempt([1; 8], [2; 8], policy, at)).await;
        assert!(matches!(begun, Ok(ThrottleDecision::Allow(_))), "{begun:?}");
        let (open, opened) = calls(&one, one.open_session(new_session("ada", at), at)).await;
        assert_eq!(opened, Ok(Opened::Open { evicted: None }));
        assert_eq!((attempt, open), (1, 2));
    }
    // One has to go: whose session it is, and whether they live, is looked at.
    let at = NOW.after(Duration::from_millis(3));
    let (open, opened) = calls(&one, one.open_session(new_session("ada", at), at)).await;
    assert!(matches!(opened, Ok(Opened::Open { evicted: Some(_) })), "{opened:?}");
    assert_eq!(open, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_of_users_or_clients_and_their_epochs_is_two_calls() {
    const USERS: usize = 60;
    let (_etcd, one, other) = two().await;
    register(&one, USERS).await;
    one.raise_epoch(Level::Subject(subject("usr_user-007")), CAUSE, NOW).await.unwrap();
    one.raise_epoch(Level::Client(client()), CAUSE, NOW).await.unwrap();
    // Whether it knows some of them or none; what is known is old.
    for ledger in [&one, &other, &other] {
        one.begin_attempt([9; 8], [9; 8], ThrottlePolicy::default(), NOW).await.unwrap();
        let (calls, page) = calls(ledger, ledger.users(None, 50)).await;
        let page = page.unwrap();
        assert_eq!((page.len(), calls), (50, 2));
        for (user, epoch) in page {
            let raised = u32::from(user.subject.as_str() == "usr_user-007");
            assert_eq!(epoch, Epoch(raised), "{user:?}");
        }
        let (calls, page) = self::calls(ledger, ledger.clients(None, 50)).await;
        let page = page.unwrap();
        assert_eq!((page.len(), page[0].1, calls), (1, Epoch(1), 2));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_who_present_one_token_anywhere_one_rotates_and_all_get_the_same() {
    let (_etcd, one, other) = two().await;
    let ledgers = [Arc::new(one), Arc::new(other)];
    let new = new_session("ada", NOW);
    let session = new.session.clone();
    ledgers[0].open_session(new, NOW).await.unwrap();
    for generation in 0..4_u32 {
        let mut tasks = JoinSet::new();
        for task in 0..8 {
            let (ledger, session) = (Arc::clone(&ledgers[task % 2]), session.clone());
            tasks.spawn(async move { rotate(&ledger, &session, generation, NOW).await });
        }
        let (mut rotated, mut all) = (0, Vec::new());
        for rotation in tasks.join_all().await {
            match rotation {
                Rotation::Rotated(next) => {
                    rotated += 1;
                    all.push(*next);
                }
                Rotation::Retried(next) => all.push(*next),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(rotated, 1);
        assert!(all.iter().all(|next| *next == all[0] && next.generation.0 == generation + 1));
    }
    // One of them again is reuse, whoever sees it, and ends the session everywhere.
    let late = NOW.after(Duration::from_secs(60));
    let reused = rotate(&ledgers[1], &session, 1, late).await;
    assert!(matches!(reused, Rotation::Reused(_, _, Some(_))), "{reused:?}");
    let after = rotate(&ledgers[0], &session, 4, late).await;
    assert!(matches!(after, Rotation::Refused(..)), "{after:?}");
}

/// Opens a session as a login does that has looked: here nobody has any beyond the limit.
async fn opened(ledger: &Ledger<EtcdEngine>, new: NewSession, at: Timestamp) -> Opened {
    match ledger.open_session(new.clone(), at).await.unwrap() {
        Opened::LookBeyond => {
            let new = NewSession { looked_beyond: true, ..new };
            ledger.open_session(new, at).await.unwrap()
        }
        opened => opened,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_has_more_sessions_than_the_limit_wherever_they_log_in() {
    let (_etcd, one, other) = two().await;
    let ledgers = [Arc::new(one), Arc::new(other)];
    let mut tasks = JoinSet::new();
    for task in 0..8 {
        let ledger = Arc::clone(&ledgers[task % 2]);
        let at = NOW.after(Duration::from_millis(u64::try_from(task).unwrap()));
        tasks.spawn(async move { opened(&ledger, new_session("ada", at), at).await });
    }
    let opened = tasks.join_all().await;
    let evicted =
        opened.iter().filter(|opened| matches!(opened, Opened::Open { evicted: Some(_) }));
    assert_eq!(evicted.count(), 5, "eight in, three left");
    let sessions = ledgers[0].sessions_of(&subject("ada"), None, 99).await.unwrap();
    let live = sessions.iter().filter(|(session, _)| session.revoked.is_none()).count();
    assert_eq!((sessions.len(), live), (8, 3));
    // An epoch that was raised there is seen here.
    ledgers[1].raise_epoch(Level::Subject(subject("ada")), CAUSE, NOW).await.unwrap();
    let stale = ledgers[0].open_session(new_session("ada", NOW), NOW).await.unwrap();
    assert_eq!(stale, Opened::Stale);
}

#[tokio::test(flavor = "multi_thread")]
async fn logins_of_one_user_at_one_replica_do_not_meet() {
    const LOGINS: u64 = 64;
    let (_etcd, one, other) = two().await;
    let ledger = Arc::new(one);
    let mut tasks = JoinSet::new();
    for number in 0..LOGINS {
        let ledger = Arc::clone(&ledger);
        tasks.spawn(async move {
            let at = NOW.after(Duration::from_millis(number));
            let (source, policy) = (number.to_be_bytes(), ThrottlePolicy::default());
            ledger.begin_attempt([1; 8], source, policy, NOW).await.unwrap();
            let clear_attempts = Some(([1; 8], source));
            let new = NewSession { clear_attempts, ..new_session("ada", at) };
            opened(&ledger, new, NOW).await
        });
    }
    let opened = tasks.join_all().await;
    assert!(opened.iter().all(|opened| matches!(opened, Opened::Open { .. })), "{opened:?}");
    assert_eq!(ledger.engine().conflicts(), 0, "one after another, each on what is there");
    drop(other);
}

#[tokio::test(flavor = "multi_thread")]
async fn guesses_at_two_replicas_count_together() {
    let (_etcd, one, other) = two().await;
    let ledgers = [Arc::new(one), Arc::new(other)];
    let policy = ThrottlePolicy { free_failures: 5, ..ThrottlePolicy::default() };
    let mut tasks = JoinSet::new();
    for task in 0..16 {
        let ledger = Arc::clone(&ledgers[task % 2]);
        tasks
            .spawn(async move { ledger.begin_attempt([1; 8], [2; 8], policy, NOW).await.unwrap() });
    }
    let decisions = tasks.join_all().await;
    let allowed = |decision: &&_| matches!(decision, ThrottleDecision::Allow(_));
    let alone = {
        let memory = Ledger::new(crate::store::memory::MemoryEngine::new(server::LOG));
        let mut alone = 0;
        for _ in 0..16 {
            let decision = memory.begin_attempt([1; 8], [2; 8], policy, NOW).await.unwrap();
            alone += usize::from(allowed(&&decision));
        }
        alone
    };
    assert_eq!(decisions.iter().filter(allowed).count(), alone);
    assert!(ledgers[0].clear_attempts([1; 8], None, NOW).await.is_ok());
    let again = ledgers[1].begin_attempt([1; 8], [2; 8], policy, NOW).await.unwrap();
    assert!(allowed(&&again));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_over_is_swept_however_much_it_is() {
    const SESSIONS: usize = 100;
    let (_etcd, one, other) = two().await;
    let ledgers = [Arc::new(one), Arc::new(other)];
    let mut tasks = JoinSet::new();
    for number in 0..SESSIONS {
        let ledger = Arc::clone(&ledgers[number % 2]);
        tasks.spawn(async move {
            let new = new_session(&format!("user-{number}"), NOW);
            let id = new.session.id;
            ledger.open_session(new, NOW).await.unwrap();
            ledger.revoke_session(id, CAUSE, NOW).await.unwrap();
            let policy = ThrottlePolicy::default();
            let source = u64::try_from(number).unwrap().to_be_bytes();
            ledger.begin_attempt([3; 8], source, policy, NOW).await.unwrap();
            id
        });
    }
    let ids = tasks.join_all().await;
    let before = ledgers[1].head();
    let later = NOW.after(Duration::from_secs(31 * 86_400));
    // Both at once: what one has swept the other has not.
    let both = tokio::join!(ledgers[0].sweep(1000, later), ledgers[1].sweep(1000, later));
    let swept = [both.0.unwrap(), both.1.unwrap()];
    assert!(swept.iter().all(|swept| !swept.more), "{swept:?}");
    for ledger in &ledgers {
        assert_eq!(ledger.sweep(1000, later).await.unwrap(), crate::store::Swept::default());
        for id in &ids {
            assert_eq!(ledger.find_session(*id).await, Ok(None));
        }
    }
    let left = ledgers[0].engine().core.read_all(ledgers[0].engine().core.keys.at(b""));
    let (left, _) = left.await.unwrap();
    let keys: Vec<_> = left
        .iter()
        .map(|kv| ledgers[0].engine().core.keys.key_at(&kv.key).unwrap())
        .filter(|key| !key.starts_with(b"!") && !key.starts_with(b"m/"))
        .map(String::from_utf8_lossy)
        .collect();
    assert!(keys.is_empty(), "{keys:?}");
    assert_eq!(ledgers[1].head(), before, "the log is empty, and its end where it was");
    let settings = ledgers[0].engine().core.settings.clone();
    let third = open(&settings).await;
    assert_eq!(third.head(), before);
    assert!(third.time_floor() >= later);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_log_is_read_in_few_calls_and_whole() {
    const EVENTS: usize = 20_000;
    let etcd = Etcd::start();
    let settings = etcd.settings();
    let engine = open(&settings).await;
    let core = &engine.core;
    let mut expected = std::collections::BTreeSet::new();
    for _ in 0..EVENTS / 100 {
        let at: Vec<_> = (0..100).map(|_| core.keys.event(core.entropy.bytes())).collect();
        let success = at.iter().map(|at| request::put(at.clone(), b"event".to_vec())).collect();
        expected.extend(at);
        let txn = pb::TxnRequest { success, ..pb::TxnRequest::default() };
        core.client.txn(txn, core.deadline()).await.unwrap();
    }
    let (read, _) = core.read_all(core.keys.at(b"e")).await.unwrap();
    assert_eq!(read.len(), EVENTS, "each once");
    assert!(read.iter().all(|event| expected.contains(&*event.key)));
    // Seven, and those that open it; by pages of 500 it would be forty.
    let calls = open(&settings).await.calls();
    assert!(calls <= 20, "{calls} calls to open a log of {EVENTS} events");
}
