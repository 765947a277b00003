//! One run from its beginning to its end.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::calls::{Pool, Shared, endpoint};
use crate::cast::Cast;
use crate::checker::{self, Findings, Rules};
use crate::clock::LEAD_SECS;
use crate::dice::Dice;
use crate::etcd::Sizes;
use crate::fault::Trouble;
use crate::finale;
use crate::follow::{self, MAX_STALENESS};
use crate::history::{Answer, History, Micros, Recorder};
use crate::load::{self, Load};
use crate::process::Patience;
use crate::replica::Store;
use crate::report::{self, KINDS, Struck};
use crate::rig::{Rig, kept};

/// What is to happen.
pub(crate) struct Plan {
    pub(crate) store: Store,
    pub(crate) seed: u64,
    /// Whether there are certificates and logins between replicas and etcd.
    pub(crate) secured: bool,
    pub(crate) sizes: Sizes,
    pub(crate) load: Load,
    pub(crate) troubles: Vec<Trouble>,
    /// No fault begins later than this.
    pub(crate) at_most: Duration,
}

/// How many watchers and how many verifiers there are.
const FOLLOWERS: usize = 3;
/// Beyond the limit of staleness: the clocks are one, but packets may take long.
const SKEW: Duration = Duration::from_millis(1500);

/// What is measured by.
pub(crate) fn rules() -> Rules {
    let micros = |it: Duration| u64::try_from(it.as_micros()).expect("short");
    let lead = Duration::from_secs(LEAD_SECS.unsigned_abs());
    let (bound, lead) = (micros(MAX_STALENESS + SKEW), micros(lead));
    Rules { slack: 1_000_000, bound, lead, leeway: micros(avouch::jwt::MAX_LEEWAY) }
}

/// Plays it. Panics when a promise was broken, or nothing goes on after a fault.
pub(crate) async fn play(plan: Plan) {
    let began = Instant::now();
    let said = |what: &str| println!("{:>6.1} s  {what}", began.elapsed().as_secs_f64());
    println!("seed {}{}", plan.seed, if plan.secured { ", with TLS and logins" } else { "" });
    let mut rig = Rig::start(plan.store, plan.sizes, plan.secured, plan.seed).await;
    said("all serve");
    let channel = endpoint(0).connect().await.expect("it serves");
    let cast = Cast::register(channel, &rig.files()).await;
    let shared = Arc::new(Shared {
        recorder: Recorder::new(FOLLOWERS),
        pool: Pool::default(),
        cast,
        log_id: Mutex::default(),
        replicas: plan.store.replicas(),
        stop: CancellationToken::new(),
    });
    let mut following = JoinSet::new();
    let views = follow::watch(&shared, FOLLOWERS, &mut following).await;
    let verifiers = follow::verifiers(&shared, FOLLOWERS).await;
    let mut calling = load::begin(&shared, plan.load, plan.seed);
    follow::ask(&shared, &verifiers, plan.load.pause, plan.seed, &mut calling);
    said("everybody calls");
    progress(&mut rig, &shared, 0).await.expect("every call succeeds before anything fails");
    let dice = Dice::new(plan.seed, "faults");
    let mut struck = Vec::new();
    let mut stuck = None;
    for trouble in &plan.troubles {
        if began.elapsed() > plan.at_most {
            break;
        }
        said(&format!("{} {trouble:?}", trouble.name()));
        let from = shared.recorder.now();
        let healed = trouble.strike(&mut rig, &shared.recorder, &dice).await;
        let since = shared.recorder.now();
        let served = rig.serving().await;
        let serving = healed.elapsed();
        let went_on = match served {
            Ok(_) => progress(&mut rig, &shared, since).await,
            Err(why) => Err(why),
        };
        let progress = match went_on {
            Ok(progress) => progress,
            Err(why) => {
                stuck = Some(format!("{} was put right, and yet: {why}", trouble.name()));
                break;
            }
        };
        let stalls =
            shared.recorder.look(|history| report::stalls(history, from, shared.recorder.now()));
        said(&format!(
            "    serving after {serving:.1?}, all calls after {progress:.1?}; {stalls:.1?}"
        ));
        struck.push(Struck { name: trouble.name(), serving, progress, stalls });
    }
    shared.stop.cancel();
    while let Some(ended) = calling.join_next().await {
        ended.expect("no caller panics");
    }
    said("nobody calls any more");
    // Where something stands still, the end would never come. What was answered until then is checked.
    let end = match stuck {
        None => Some(finale::look(&shared, &views, &verifiers, &dice).await),
        Some(_) => None,
    };
    following.shutdown().await;
    let mut history = shared.recorder.take();
    history.end = end;
    said(&format!("{} calls to check", history.calls.len()));
    let mut findings = checker::check(&history, rules());
    findings.explain_none_of(rig.panics());
    findings.explain_none_of(stuck.into_iter().collect());
    // A server on its disk may give up when a sync takes too long, as after a pause.
    if plan.store == Store::Etcd {
        findings.explain_none_of(rig.fallen.clone());
    }
    let title = format!("Seed {}{}", plan.seed, if plan.secured { ", TLS and logins" } else { "" });
    let text = report::markdown(&title, began.elapsed(), &history, &struck, &findings);
    println!("{text}");
    keep(&rig, plan.seed, &text, &findings, &history);
    said("done");
    let broken: Vec<String> =
        findings.violations.iter().take(10).map(ToString::to_string).collect();
    assert!(broken.is_empty(), "seed {}:\n{}", plan.seed, broken.join("\n"));
}

/// The report, and, if a promise was broken, what everybody said.
fn keep(rig: &Rig, seed: u64, text: &str, findings: &Findings, history: &History) {
    let into = kept(seed);
    std::fs::write(into.join("report.md"), text).expect("written");
    println!("the report is in {}", into.display());
    if !findings.violations.is_empty() {
        rig.keep_logs(&into);
        let all: Vec<String> = findings.violations.iter().map(ToString::to_string).collect();
        std::fs::write(into.join("violations.txt"), all.join("\n\n")).expect("written");
        // With the revocations of subjects, they are all that a session can have met.
        let calls: Vec<String> = history.calls.iter().map(|call| format!("{call:?}")).collect();
        std::fs::write(into.join("calls.txt"), calls.join("\n")).expect("written");
        std::fs::write(into.join("watched.txt"), format!("{:#?}", history.watched))
            .expect("written");
    }
}

/// Waits until every kind of call that began after `since` has succeeded at every replica.
async fn progress(rig: &mut Rig, shared: &Shared, since: Micros) -> Result<Duration, String> {
    let began = Instant::now();
    let mut patience = Patience::new();
    loop {
        let missing = shared.recorder.look(|history| {
            let mut missing: Vec<(&str, usize)> = KINDS
                .iter()
                .flat_map(|kind| (0..shared.replicas).map(|replica| (*kind, replica)))
                .collect();
            for call in history.calls.iter().rev().take_while(|call| call.returned >= since) {
                let good = matches!(
                    call.answer,
                    Answer::Issued(_) | Answer::Revoked { .. } | Answer::Active(_)
                );
                if good && call.invoked >= since {
                    missing.retain(|it| (it.0, Some(it.1)) != (call.asked.name(), call.replica));
                }
            }
            missing
        });
        if missing.is_empty() {
            return Ok(began.elapsed());
        }
        rig.start_the_fallen();
        if patience.is_over() {
            return Err(format!("no {missing:?} for {:?}", began.elapsed()));
        }
        sleep(Duration::from_millis(20)).await;
    }
}
