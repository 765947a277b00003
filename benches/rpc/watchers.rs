//! From `Revoke` returned to the event in the hands of every watcher.

use std::sync::Arc;
use std::time::Duration;

use avouch::pb::v1 as pb;
use avouch::pb::v1::authenticate_request::Grant;
use avouch::pb::v1::revocation_service_client::RevocationServiceClient;
use avouch::pb::v1::watch_revocations_response::Frame;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tonic::metadata::MetadataValue;
use tonic::transport::Channel;

use crate::calls::{self, Identity};
use crate::child::Server;
use crate::load::percentile;
use crate::report::Report;
use crate::{Failure, Plan};

/// Streams on one connection; the server allows 100.
const STREAMS: usize = 50;
/// How long the last watcher may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// The revision through which a batch tells, and when it came.
pub(crate) type Got = (u64, Instant);

/// Measures with 1, 100 and 1,000 watchers.
pub(crate) async fn measure(
    server: &mut Server,
    plan: &Plan,
    report: &mut Report,
) -> Result<(), Failure> {
    let caller = Identity::new(server.connect(1).await?.remove(0));
    let token = own_token(caller.clone()).await?;
    for (watchers, limit) in [(1_usize, Some(5.0)), (100, None), (1000, Some(50.0))] {
        let mut sessions = server.sessions(plan.events).await?;
        let channels = server.connect(watchers.div_ceil(STREAMS)).await?;
        let (got, mut arrivals) = mpsc::unbounded_channel();
        let mut streams = JoinSet::new();
        let ready = Arc::new(tokio::sync::Semaphore::new(0));
        for number in 0..watchers {
            let channel = channels[number % channels.len()].clone();
            let (token, got, ready) = (token.clone(), got.clone(), Arc::clone(&ready));
            streams.spawn(async move {
                // An error shows as a watcher that never gets its event.
                if let Err(error) = watch(channel, &token, &ready, &got).await {
                    eprintln!("a watcher: {error}");
                }
            });
        }
        let all = u32::try_from(watchers)?;
        timeout(PATIENCE, ready.acquire_many(all)).await??.forget();
        let (mut each, mut last) = (Vec::new(), Vec::new());
        while let Some((session, _)) = sessions.pop() {
            let answer = calls::revoke(caller.clone(), session).await?;
            let returned = Instant::now();
            let revision = answer.cursor.unwrap_or_default().revision;
            let mut slowest: f64 = 0.0;
            for _ in 0..watchers {
                let (seen, at): Got =
                    timeout(PATIENCE, arrivals.recv()).await?.ok_or("the watchers ended")?;
                if seen != revision {
                    return Err(format!("revision {seen} came for {revision}").into());
                }
                let took = at.saturating_duration_since(returned).as_secs_f64() * 1e3;
                each.push(took);
                slowest = slowest.max(took);
            }
            last.push(slowest);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let p99 = percentile(&mut each, 0.99);
        report.note(format!(
            "Revoke -> {watchers} watchers: p50 {:.2} ms, p99 {p99:.2} ms; the last of them: p50 {:.2} ms, p99 {:.2} ms",
            percentile(&mut each, 0.5),
            percentile(&mut last, 0.5),
            percentile(&mut last, 0.99),
        ));
        if let Some(limit) = limit {
            report.target(
                &format!("Revoke -> {watchers} watchers: p99 at most {limit:.0} ms"),
                format!("{p99:.2} ms"),
                p99 <= limit,
            );
        }
    }
    Ok(())
}

/// A token that may watch.
pub(crate) async fn own_token(mut client: Identity) -> Result<String, Failure> {
    let request = pb::AuthenticateRequest {
        client: calls::credentials(),
        grant: Some(Grant::ClientCredentials(pb::ClientCredentialsGrant {})),
        audiences: vec!["avouch".to_owned()],
        ..Default::default()
    };
    let answer = client.authenticate(request).await?.into_inner();
    Ok(answer.tokens.ok_or("no tokens")?.access_token)
}

/// Hands on what comes, with when, until the stream or whoever takes it ends.
pub(crate) async fn watch(
    channel: Channel,
    token: &str,
    ready: &tokio::sync::Semaphore,
    got: &mpsc::UnboundedSender<Got>,
) -> Result<(), Failure> {
    let mut request = tonic::Request::new(pb::WatchRevocationsRequest::default());
    let value = MetadataValue::try_from(format!("Bearer {token}"))?;
    request.metadata_mut().insert("authorization", value);
    let mut client = RevocationServiceClient::new(channel);
    let mut stream = client.watch_revocations(request).await?.into_inner();
    while let Some(message) = stream.message().await? {
        match message.frame {
            Some(Frame::Synced(_)) => ready.add_permits(1),
            Some(Frame::Batch(batch)) => {
                let at = Instant::now();
                let through = batch.through.unwrap_or_default().revision;
                if got.send((through, at)).is_err() {
                    return Ok(());
                }
            }
            _ => {}
        }
    }
    Err("the stream ended".into())
}
