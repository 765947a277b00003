//! What a backup takes of a large store, and what it does to Refresh meanwhile.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use avouch::pb::v1 as pb;
use avouch::pb::v1::admin_service_client::AdminServiceClient;
use avouch::pb::v1::authenticate_request::Grant;
use tokio::time::Instant;
use tonic::Request;
use tonic::transport::Channel;

use crate::calls::{self, Identity, Wheel};
use crate::child::Server;
use crate::load::{Phase, count, median, pace};
use crate::report::{Report, mib};
use crate::{Failure, Plan};

/// The time between two refreshes.
const EVERY: Duration = Duration::from_millis(2);
/// Sessions that are refreshed in turn.
const SESSIONS: usize = 1024;

/// A whole backup, thrown away: how long it took and how large it was.
async fn backup(channel: Channel, token: String) -> Result<(Duration, usize), Failure> {
    let begun = Instant::now();
    let mut request = Request::new(pb::CreateBackupRequest {});
    request.metadata_mut().insert("authorization", format!("Bearer {token}").parse()?);
    let mut pieces = AdminServiceClient::new(channel).create_backup(request).await?.into_inner();
    let (mut bytes, mut whole) = (0, false);
    while let Some(piece) = pieces.message().await? {
        bytes += piece.chunk.len();
        whole = piece.point.is_some();
    }
    if whole { Ok((begun.elapsed(), bytes)) } else { Err("the backup has no end".into()) }
}

async fn own_token(channel: Channel) -> Result<String, Failure> {
    let request = pb::AuthenticateRequest {
        client: calls::credentials(),
        grant: Some(Grant::ClientCredentials(pb::ClientCredentialsGrant {})),
        audiences: vec!["avouch".to_owned()],
        ..Default::default()
    };
    let answer = Identity::new(channel).authenticate(request).await?.into_inner();
    Ok(answer.tokens.ok_or("no tokens")?.access_token)
}

/// Refreshes at a pace, in turns with and without a backup.
pub(crate) async fn measure(
    server: &mut Server,
    plan: &Plan,
    report: &mut Report,
) -> Result<(), Failure> {
    let mut channels = server.connect(2).await?;
    let (apart, calm) = (channels.remove(0), channels.remove(0));
    let token = own_token(calm.clone()).await?;
    let tokens = server.sessions(SESSIONS).await?.into_iter().map(|(_, token)| token);
    // A wheel each, so that none waits for another.
    let wheels: Arc<Vec<_>> = Arc::new(tokens.map(|token| Wheel::new((0, vec![token]))).collect());
    let paced = |time| {
        let (calm, wheels) = (calm.clone(), Arc::clone(&wheels));
        async move {
            let turn = AtomicUsize::new(0);
            pace(EVERY, time, || {
                let at = turn.fetch_add(1, Ordering::Relaxed) % SESSIONS;
                let (client, wheels) = (Identity::new(calm.clone()), Arc::clone(&wheels));
                async move { calls::turn(client, &wheels[at]).await }
            })
            .await
        }
    };
    let (mut idle, mut amid) = (Phase::default(), Phase::default());
    let (mut took, mut size) = (Vec::new(), 0);
    for _ in 0..plan.rounds.min(3) {
        let (alone, bytes) = backup(apart.clone(), token.clone()).await?;
        took.push(alone.as_secs_f64());
        size = bytes;
        idle.add(&paced(alone.max(plan.phase)).await?);
        let busy = async {
            let begun = Instant::now();
            while begun.elapsed() < alone.max(plan.phase) {
                backup(apart.clone(), token.clone()).await?;
            }
            Ok::<_, Failure>(())
        };
        let (during, ()) = tokio::try_join!(paced(alone.max(plan.phase)), busy)?;
        amid.add(&during);
    }
    let seconds = median(took);
    let bytes = u64::try_from(size)?;
    report.note(format!(
        "a backup of it: {:.0} MiB in {seconds:.1} s, {:.0} MiB/s, without load",
        mib(bytes),
        mib(bytes) / seconds
    ));
    let (calm, loaded) = (idle.percentile(0.99), amid.percentile(0.99));
    report.target(
        "p99 of 500 Refresh/s during a backup: at most 3 x without",
        format!("{:.1} ms, without {:.1} ms, {:.1} x", loaded / 1e3, calm / 1e3, loaded / calm),
        loaded <= 3.0 * calm,
    );
    report.note(format!(
        "Refresh during a backup: median {:.1} ms, without {:.1} ms, {:.0} calls each",
        amid.percentile(0.5) / 1e3,
        idle.percentile(0.5) / 1e3,
        count(amid.latencies.len())
    ));
    Ok(())
}
