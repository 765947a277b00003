//! Three members of etcd and three replicas of avouch, in a network of their own that fails in every way
//! that is known here, under load. What every call answered is written down and checked afterwards:
//! whatever failed, no promise was broken.
//!
//! Needs root, /dev/net/tun, etcd and strace; `tests/run` sees to them. The long form plays faults at
//! random:
//!
//!     AVOUCH_TEST_ROUNDS=long AVOUCH_CLUSTER_MINUTES=20 cargo test --release --test cluster -- --nocapture

// It is nothing else; said once more because clippy allows `expect` only under this.
#![cfg(test)]

mod access;
mod calls;
mod cast;
mod checker;
mod clock;
mod dice;
mod etcd;
mod fault;
mod finale;
mod follow;
mod gateway;
mod history;
mod load;
mod net;
mod own;
mod play;
mod process;
mod replica;
mod report;
mod rig;
mod strike;

use std::time::Duration;

use dice::Dice;
use etcd::Sizes;
use fault::{Fault, Trouble};
use load::Load;
use own::alone;
use play::{Plan, play};
use replica::Store;

/// How long each test takes: `long` for the long form.
const ROUNDS: &str = "AVOUCH_TEST_ROUNDS";
/// How many minutes the long form plays.
const MINUTES: &str = "AVOUCH_CLUSTER_MINUTES";
/// Of the long form, only faults whose names hold this.
const FAULT: &str = "AVOUCH_CLUSTER_FAULT";
/// What decides the faults and what everybody does; drawn anew in the long form unless it is set.
const SEED: &str = "AVOUCH_CLUSTER_SEED";

#[expect(clippy::disallowed_methods, reason = "tests have no configuration file")]
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

fn number(name: &str) -> Option<u64> {
    variable(name).map(|text| text.parse().expect("the variable holds a number"))
}

fn is_long() -> bool {
    variable(ROUNDS).is_some_and(|rounds| rounds == "long")
}

/// A little of everything, for a machine that has other things to do.
const LIGHT: Load = Load {
    honest: 3,
    racers: 2,
    thieves: 1,
    late: 2,
    revokers: 2,
    askers: 2,
    pause: Duration::from_millis(60),
    subject_every: Duration::from_secs(2),
    everything_every: Duration::from_secs(20),
};

/// More of it.
const HEAVY: Load = Load {
    honest: 6,
    racers: 3,
    thieves: 2,
    late: 4,
    revokers: 3,
    askers: 4,
    pause: Duration::from_millis(60),
    subject_every: Duration::from_secs(3),
    everything_every: Duration::from_secs(60),
};

/// The short form: each fault once, in an order that the seed decides, and two at once. The long form:
/// faults at random, one or two at once, for so many minutes; with certificates and logins between
/// replicas and etcd if the seed is odd, as in the short form.
fn plan(store: Store) -> Plan {
    if !is_long() {
        let seed = number(SEED).unwrap_or(1);
        let dice = Dice::new(seed, "plan");
        let mut faults = Fault::each(store, &dice);
        for at in (1..faults.len()).rev() {
            faults.swap(at, dice.below(at + 1));
        }
        let hold = Duration::from_secs(2);
        let single = |first: Fault| Trouble { first, second: None, hold };
        let mut troubles: Vec<Trouble> = faults.into_iter().map(single).collect();
        if store == Store::Etcd {
            let (first, second) = (Fault::MemberPaused { leader: true }, Fault::ReplicaKilled(1));
            troubles.push(Trouble { first, second: Some(second), hold });
        }
        let sizes = Sizes { quota_mebibytes: 48, disk_mebibytes: 512, compact_after_minutes: None };
        let at_most = Duration::from_secs(3600);
        return Plan { store, seed, secured: true, sizes, load: LIGHT, troubles, at_most };
    }
    let drawn = || {
        let entropy: &dyn avouch::domain::entropy::Entropy = &avouch::crypto::OsEntropy;
        u64::from(u32::from_le_bytes(entropy.bytes()))
    };
    let seed = number(SEED).unwrap_or_else(drawn);
    let dice = Dice::new(seed, "plan");
    let minutes = number(MINUTES).unwrap_or(20);
    // It is there for what a single server and the load have in common with a cluster.
    let minutes = if store == Store::Sled { minutes.min(2) } else { minutes };
    let wanted = variable(FAULT).unwrap_or_default();
    let drawn = std::iter::repeat_with(|| Trouble::any(store, &dice));
    let drawn = drawn.filter(|trouble| trouble.name().contains(&wanted));
    let troubles = drawn.take(usize::try_from(minutes * 60).expect("not that long")).collect();
    let sizes = Sizes { quota_mebibytes: 64, disk_mebibytes: 1024, compact_after_minutes: Some(2) };
    let at_most = Duration::from_secs(minutes * 60);
    Plan { store, seed, secured: seed % 2 == 1, sizes, load: HEAVY, troubles, at_most }
}

/// One server without etcd keeps what it promises alone, too; and what is found here is not etcd's.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn one_server_on_its_disk_keeps_its_promises_while_it_is_killed_and_cut_off() {
    if alone("one_server_on_its_disk_keeps_its_promises_while_it_is_killed_and_cut_off") {
        play(plan(Store::Sled)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn three_replicas_on_etcd_keep_their_promises_whatever_fails() {
    if alone("three_replicas_on_etcd_keep_their_promises_whatever_fails") {
        play(plan(Store::Etcd)).await;
    }
}
