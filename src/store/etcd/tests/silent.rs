//! Members that say nothing though their connections stand, and ways that are slow.

use futures_util::FutureExt as _;

use super::proxy::{Passing, Proxy};
use super::server::try_open;
use super::*;
use crate::store::etcd::feed::{fell_silent, patience};

/// Three ways to one etcd, as to three members.
struct Ways {
    etcd: Etcd,
    proxies: Vec<Proxy>,
    settings: EtcdSettings,
}

impl Ways {
    async fn new() -> Self {
        let etcd = Etcd::start();
        // Once it answers, nothing leaves the member that it began with.
        drop(open(&etcd.settings()).await);
        let mut proxies = Vec::new();
        for _ in 0..3 {
            proxies.push(Proxy::to(etcd.port).await);
        }
        let endpoints =
            proxies.iter().map(|proxy| format!("http://127.0.0.1:{}", proxy.port)).collect();
        let settings = EtcdSettings { endpoints, ..etcd.settings_at(etcd.port, "/w/") };
        Self { etcd, proxies, settings }
    }

    /// Waits until a connection is made, from now on, to another than this one.
    fn another_is_connected_to(&self, not: usize) -> impl Future<Output = ()> + use<> {
        let others = (0..self.proxies.len()).filter(|number| *number != not);
        let waiting = others.map(|number| {
            let mut made = self.proxies[number].made.subscribe();
            async move { made.changed().await.unwrap() }.boxed()
        });
        let made = futures_util::future::select_all(waiting.collect::<Vec<_>>());
        async move {
            tokio::time::timeout(Duration::from_secs(30), made)
                .await
                .expect("it stays where it was");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_says_nothing_is_left_and_not_asked_again_for_a_while() {
    let ways = Ways::new().await;
    let request_timeout = Duration::from_secs(1);
    let engine = open(&EtcdSettings { request_timeout, ..ways.settings.clone() }).await;
    engine.commit(count(b"c")).await.unwrap();
    let silent = engine.core.client.current();
    ways.proxies[silent].set(Passing::Nothing);
    // An event, too, which the watch has to tell of: that was at the same member.
    engine.commit(count(b"c")).await.unwrap();
    let left = *ways.proxies[silent].made.borrow();
    // Those that are asked instead fall away one after another, and come back.
    for _ in 0..6 {
        let current = engine.core.client.current();
        assert_ne!(current, silent);
        ways.proxies[current].cut();
        engine.commit(count(b"c")).await.unwrap();
    }
    assert_eq!(*ways.proxies[silent].made.borrow(), left, "it was asked again");
    assert!(engine.prove_contact().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn where_one_member_is_all_its_connection_is_made_anew() {
    let etcd = Etcd::start();
    let proxy = Proxy::to(etcd.port).await;
    let settings = EtcdSettings {
        request_timeout: Duration::from_millis(700),
        // Shorter than HTTP/2 takes to find out.
        deadline: Duration::from_secs(6),
        ..etcd.settings_at(proxy.port, "/w/")
    };
    let engine = open(&settings).await;
    engine.commit(put(b"k", b"1")).await.unwrap();
    proxy.silence_those_there();
    engine.commit(put(b"k", b"2")).await.unwrap();
    assert_eq!(get(&engine, b"k").await, Ok(Some(b"2".to_vec())));
}

#[tokio::test(flavor = "multi_thread")]
async fn watches_leave_a_member_that_says_nothing() {
    let ways = Ways::new().await;
    let engine = open(&ways.settings).await;
    engine.commit(count(b"c")).await.unwrap();
    let member = engine.core.client.current();
    // Only the watch of the events goes elsewhere: the calls were answered, as far as they know.
    let moved = ways.another_is_connected_to(member);
    engine.core.client.member(member).unwrap().note_silence();
    moved.await;

    // That of the replicas' notes begins with the first, and tells of everything once it has begun.
    let ways = Ways::new().await;
    let engine = open(&ways.settings).await;
    let mut notes = engine.board().unwrap().follow();
    assert!(notes.recv().await.is_some());
    // The watch may not have begun when it is said for the first time.
    let again = async {
        loop {
            engine.core.client.member(0).unwrap().note_silence();
            let soon = tokio::time::timeout(Duration::from_millis(100), notes.recv());
            if let Ok(change) = soon.await {
                return change;
            }
        }
    };
    let again = tokio::time::timeout(Duration::from_secs(30), again).await;
    assert!(matches!(again, Ok(Some(crate::store::board::Change::All(_)))), "{again:?}");
    drop(ways.etcd);
}

#[tokio::test]
async fn who_was_silent_is_asked_last() {
    let endpoints = (1..=3).map(|port| format!("127.0.0.1:{port}")).collect();
    let client = Client::new(&EtcdSettings::new(endpoints, "/p/".to_owned(), 1), 0);
    let member = |number| client.member(number).unwrap();
    assert_eq!((client.after(0), client.after(1), client.after(2), client.after(5)), (1, 2, 0, 0));
    let mut silences = member(0).silences();
    let mut watch = Box::pin(fell_silent(&client, 0, &mut silences));
    assert_eq!(watch.as_mut().now_or_never(), None);
    member(1).note_silence();
    assert_eq!((client.after(0), client.after(1), client.after(2)), (2, 2, 0));
    assert_eq!(watch.as_mut().now_or_never(), None, "another's silence is none of its own");
    member(2).note_silence();
    member(0).note_silence();
    // All are: one after another, and whoever waits at one goes on waiting.
    assert_eq!((client.after(0), client.after(1), client.after(2)), (1, 2, 0));
    assert_eq!(watch.as_mut().now_or_never(), None);
}

#[tokio::test]
async fn a_watch_leaves_where_there_is_better() {
    let endpoints = (1..=2).map(|port| format!("127.0.0.1:{port}")).collect();
    let client = Client::new(&EtcdSettings::new(endpoints, "/p/".to_owned(), 1), 0);
    let member = client.member(0).unwrap();
    let mut silences = member.silences();
    assert_eq!(fell_silent(&client, 0, &mut silences).now_or_never(), None);
    // Also where nobody waits just then.
    member.note_silence();
    let mut watch = Box::pin(fell_silent(&client, 0, &mut silences));
    assert_eq!(watch.as_mut().now_or_never(), Some(()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_log_comes_over_a_slow_way() {
    const EVENTS: usize = 256;
    let etcd = Etcd::start();
    let direct = open(&etcd.settings_at(etcd.port, "/w/")).await;
    for _ in 0..EVENTS {
        let append = decision(|txn| txn.append(vec![7; 3500]));
        direct.commit(append).await.unwrap();
    }
    let proxy = Proxy::to(etcd.port).await;
    // All of it takes more than two seconds.
    proxy.slow_down(4 << 10);
    let request_timeout = Duration::from_millis(300);
    let settings = EtcdSettings { request_timeout, ..etcd.settings_at(proxy.port, "/w/") };
    let opened = tokio::time::timeout(Duration::from_secs(120), try_open(&settings)).await;
    let engine = opened.expect("it ends").unwrap();
    assert_eq!(engine.events_after(Revision(0), 999).unwrap().len(), EVENTS);
}

/// Somebody waits for an event that the watch was to tell of while it was cut off.
#[tokio::test(flavor = "multi_thread")]
async fn a_watch_that_begins_again_is_given_time_though_it_is_waited_for() {
    let etcd = Etcd::start();
    let direct = open(&etcd.settings_at(etcd.port, "/w/")).await;
    let proxy = Proxy::to(etcd.port).await;
    let engine = open(&etcd.settings_at(proxy.port, "/w/")).await;
    proxy.set(Passing::Nothing);
    let (_, commit) = direct.commit(count(b"c")).await.unwrap();
    let missed = i64::try_from(commit.head.0).unwrap();
    engine.core.missed.send_replace(missed);
    // What comes does not come at once.
    proxy.slow_down(64);
    proxy.cut();
    let deadline = Instant::now() + Duration::from_secs(30);
    assert!(engine.core.log.wait_for(missed, deadline).await, "it is cut before it tells of it");
}

#[test]
fn a_watch_that_has_told_of_something_is_given_less_time() {
    let timeout = Duration::from_secs(2);
    assert_eq!((patience(timeout, false), patience(timeout, true)), (2 * timeout, timeout));
}
