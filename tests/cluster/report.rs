//! What a run came to, for people.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use crate::checker::Findings;
use crate::history::{Answer, History, Judged, Micros, Seen};

/// One fault, and what it did to the callers.
#[derive(Clone, Debug)]
pub(crate) struct Struck {
    pub(crate) name: String,
    /// From when it was put right until every replica said that it serves.
    pub(crate) serving: Duration,
    /// Until every kind of call had succeeded at every replica.
    pub(crate) progress: Duration,
    /// Of each kind of call, the longest time without any success.
    pub(crate) stalls: BTreeMap<&'static str, Duration>,
}

/// The kinds whose stalls are told.
pub(crate) const KINDS: [&str; 4] = ["Authenticate", "Refresh", "Revoke", "Introspect"];

/// Of each kind of call, the longest time without a success between two moments.
pub(crate) fn stalls(
    history: &History,
    from: Micros,
    to: Micros,
) -> BTreeMap<&'static str, Duration> {
    let mut last: BTreeMap<&str, Micros> = KINDS.iter().map(|kind| (*kind, from)).collect();
    let mut longest: BTreeMap<&'static str, Micros> = KINDS.iter().map(|kind| (*kind, 0)).collect();
    let mut done: Vec<(Micros, &'static str)> = Vec::new();
    // They are written down as they return.
    for call in history.calls.iter().rev().take_while(|call| call.returned >= from) {
        let good =
            matches!(call.answer, Answer::Issued(_) | Answer::Revoked { .. } | Answer::Active(_));
        if good && call.returned <= to {
            done.push((call.returned, call.asked.name()));
        }
    }
    done.extend(KINDS.iter().map(|kind| (to, *kind)));
    done.sort_unstable();
    for (at, kind) in done {
        if let Some(last) = last.get_mut(kind) {
            let gap = longest.entry(kind).or_default();
            *gap = at.saturating_sub(*last).max(*gap);
            *last = at;
        }
    }
    longest.into_iter().map(|(kind, gap)| (kind, Duration::from_micros(gap))).collect()
}

fn seconds(it: Duration) -> String {
    format!("{:.1}", it.as_secs_f64())
}

/// The report of one run, in Markdown.
pub(crate) fn markdown(
    title: &str,
    took: Duration,
    history: &History,
    struck: &[Struck],
    findings: &Findings,
) -> String {
    let mut text = String::new();
    let mut line = |it: String| {
        // Writing to a String does not fail.
        _ = writeln!(text, "{it}");
    };
    line(format!("### {title}, {} min\n", took.as_secs() / 60));
    line("| fault | times | serving again | all calls again | Authenticate | Refresh | Revoke | Introspect |".into());
    line("|---|--:|--:|--:|--:|--:|--:|--:|".into());
    let mut by_name: BTreeMap<&str, Vec<&Struck>> = BTreeMap::new();
    let mut pairs: BTreeMap<&str, usize> = BTreeMap::new();
    for it in struck {
        // There are more pairs than anybody reads.
        let name = if it.name.contains(" + ") { "two at once" } else { it.name.as_str() };
        by_name.entry(name).or_default().push(it);
        if name != it.name {
            *pairs.entry(&it.name).or_default() += 1;
        }
    }
    for (name, them) in &by_name {
        let most = |of: &dyn Fn(&Struck) -> Duration| {
            seconds(them.iter().map(|it| of(it)).max().unwrap_or_default())
        };
        let stalls = KINDS.map(|kind| most(&|it: &Struck| it.stalls[kind]));
        line(format!(
            "| {name} | {} | {} | {} | {} |",
            them.len(),
            most(&|it| it.serving),
            most(&|it| it.progress),
            stalls.join(" | ")
        ));
    }
    if !pairs.is_empty() {
        let told = pairs.iter().map(|(name, times)| match times {
            1 => (*name).to_owned(),
            _ => format!("{name} ({times})"),
        });
        line(format!("\nTwo at once: {}.", told.collect::<Vec<_>>().join("; ")));
    }
    line("\n| call | answered | refused | unanswered |\n|---|--:|--:|--:|".into());
    let mut counts: BTreeMap<&str, [usize; 3]> = BTreeMap::new();
    for call in &history.calls {
        let of = counts.entry(call.asked.name()).or_default();
        match call.answer {
            Answer::Refused => of[1] += 1,
            Answer::Unknown | Answer::Strange(_) => of[2] += 1,
            Answer::Issued(_) | Answer::Revoked { .. } | Answer::Active(_) => of[0] += 1,
        }
    }
    for (name, [answered, refused, unanswered]) in counts {
        line(format!("| {name} | {answered} | {refused} | {unanswered} |"));
    }
    let judged = |wanted: Judged| history.verdicts.iter().filter(|it| it.judged == wanted).count();
    let all = || history.watched.iter().flatten().map(|(_, seen)| seen);
    let events: usize =
        all().map(|seen| if let Seen::Batch { shown, .. } = seen { shown.len() } else { 0 }).sum();
    let lost = all().filter(|seen| matches!(seen, Seen::Lost(_))).count();
    let resumed = all().filter(|seen| matches!(seen, Seen::Connected { resumed: true })).count();
    let whole = all().filter(|seen| matches!(seen, Seen::Connected { resumed: false })).count();
    line(format!(
        "\n{} sessions. Verifiers: {} good, {} revoked, {} not now; a token was last accepted {:.2} s after \
         its revocation was acknowledged. {} watchers: {events} events, {lost} streams lost, {resumed} \
         resumed, {whole} begun with the whole set. Ended by a call that came late: {} sessions.\n",
        findings.sessions,
        judged(Judged::Good),
        judged(Judged::Revoked),
        judged(Judged::Unsure),
        findings.latest_acceptance as f64 / 1e6,
        history.watched.len(),
        findings.killed_by_a_late_call,
    ));
    line(format!("Broken promises: {}.", findings.violations.len()));
    for violation in findings.violations.iter().take(40) {
        line(format!("\n- {violation}"));
    }
    text
}
