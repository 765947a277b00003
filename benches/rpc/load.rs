//! Load: so many calls in flight for so long, and what they took here and in the server.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::time::Instant;
use tonic::Status;

use crate::Failure;
use crate::child::Server;

/// What a phase of load came to.
#[derive(Clone, Debug, Default)]
pub(crate) struct Phase {
    /// How long each call took, in microseconds.
    pub(crate) latencies: Vec<u32>,
    /// How long it lasted.
    pub(crate) elapsed: Duration,
    /// The CPU time of the server.
    pub(crate) cpu: Duration,
}

impl Phase {
    /// Calls a second.
    pub(crate) fn rate(&self) -> f64 {
        count(self.latencies.len()) / self.elapsed.as_secs_f64()
    }

    /// Microseconds of the server's CPU for one call.
    pub(crate) fn cpu_per_call(&self) -> f64 {
        self.cpu.as_secs_f64() * 1e6 / count(self.latencies.len())
    }

    /// The same phase, longer.
    pub(crate) fn add(&mut self, other: &Self) {
        self.latencies.extend_from_slice(&other.latencies);
        self.elapsed += other.elapsed;
        self.cpu += other.cpu;
    }

    /// The latency that so much of the calls do not exceed, in microseconds.
    pub(crate) fn percentile(&self, part: f64) -> f64 {
        let mut sorted: Vec<f64> = self.latencies.iter().copied().map(f64::from).collect();
        percentile(&mut sorted, part)
    }
}

/// A count as a factor.
#[expect(clippy::cast_precision_loss, reason = "no count here comes near 2^52")]
pub(crate) fn count(number: usize) -> f64 {
    number as f64
}

/// The value that so much of the values do not exceed.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a position in a list, which is not negative and not large"
)]
pub(crate) fn percentile(values: &mut [f64], part: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let at = (count(values.len()) * part).ceil() as usize;
    values.get(at.saturating_sub(1)).copied().unwrap_or(f64::NAN)
}

/// The middle value.
pub(crate) fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    percentile(&mut values, 0.5)
}

/// Keeps `in_flight` calls in flight for `time`. `call` gets the number of the worker that calls and
/// says whether there is more to call.
pub(crate) async fn saturate<C, F>(
    server: &Server,
    in_flight: usize,
    time: Duration,
    call: C,
) -> Result<Phase, Failure>
where
    C: Fn(usize) -> F + Send + Sync + 'static,
    F: Future<Output = Result<bool, Status>> + Send,
{
    let call = Arc::new(call);
    let stop = Arc::new(AtomicBool::new(false));
    let (cpu, begun) = (server.cpu()?, Instant::now());
    let workers: Vec<_> = (0..in_flight)
        .map(|worker| {
            let (call, stop) = (Arc::clone(&call), Arc::clone(&stop));
            tokio::spawn(async move {
                let mut latencies = Vec::with_capacity(1024);
                while !stop.load(Ordering::Relaxed) {
                    let begun = Instant::now();
                    if !call(worker).await? {
                        stop.store(true, Ordering::Relaxed);
                        break;
                    }
                    let took = begun.elapsed().as_micros();
                    latencies.push(u32::try_from(took).unwrap_or(u32::MAX));
                }
                Ok::<_, Status>(latencies)
            })
        })
        .collect();
    let deadline = begun + time;
    while Instant::now() < deadline && !stop.load(Ordering::Relaxed) {
        tokio::time::sleep((deadline - Instant::now()).min(Duration::from_millis(20))).await;
    }
    stop.store(true, Ordering::Relaxed);
    let mut phase = Phase::default();
    for worker in workers {
        phase.latencies.extend(worker.await??);
    }
    phase.elapsed = begun.elapsed();
    phase.cpu = server.cpu()?.saturating_sub(cpu);
    Ok(phase)
}

/// Calls once every `every` for `time`, however long the answers take.
pub(crate) async fn pace<C, F>(every: Duration, time: Duration, call: C) -> Result<Phase, Failure>
where
    C: Fn() -> F,
    F: Future<Output = Result<(), Status>> + Send + 'static,
{
    let mut ticks = tokio::time::interval(every);
    let begun = Instant::now();
    let mut calls = Vec::new();
    while begun.elapsed() < time {
        let due = ticks.tick().await;
        let call = call();
        calls.push(tokio::spawn(async move {
            call.await?;
            Ok::<_, Status>(due.elapsed())
        }));
    }
    let mut phase = Phase::default();
    for call in calls {
        phase.latencies.push(u32::try_from(call.await??.as_micros()).unwrap_or(u32::MAX));
    }
    phase.elapsed = begun.elapsed();
    Ok(phase)
}
