//! Those who follow the stream of revocations, by the client library: watchers, which write down what
//! they are told, and verifiers, which are asked about tokens all the time.

use std::sync::Arc;
use std::time::Duration;

use avouch::client::balance::{BalanceSettings, Replicas, Resolve, Target};
use avouch::client::identity::{ClientCredential, Identity, Login};
use avouch::client::token_source::TokenSource;
use avouch::client::watch::{SharedView, Watch, WatchEvent, WatchSettings};
use avouch::crypto::OsEntropy;
use avouch::domain::clock::SystemClock;
use avouch::verifier::{Policy, Refusal, Verifier, VerifierSettings};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{sleep, timeout};
use tonic::transport::Endpoint;

use crate::calls::{Shared, shown};
use crate::dice::Dice;
use crate::history::{Judged, Seen, Session, Token, Verdict};
use crate::net::Node;
use crate::process::PATIENCE;
use crate::replica::{ISSUER, PORT};

/// How old the view of a verifier may be.
pub(crate) const MAX_STALENESS: Duration = Duration::from_secs(3);

/// The name under which the library finds all replicas.
pub(crate) struct Names(pub(crate) usize);

#[async_trait::async_trait]
impl Resolve for Names {
    async fn resolve(&self, _: &str, port: u16) -> std::io::Result<Vec<std::net::SocketAddr>> {
        let addresses = Node::REPLICAS[..self.0].iter().map(|it| (it.address(), port).into());
        Ok(addresses.collect())
    }
}

/// The library's view of all replicas.
pub(crate) fn replicas(count: usize) -> Replicas {
    let target = Target::plaintext(&format!("http://avouch:{PORT}")).expect("a target");
    let settings = BalanceSettings::default();
    Replicas::start(target, Arc::new(Names(count)), settings, Arc::new(OsEntropy))
}

/// How to follow: with a credential that is renewed, beginning at one of the replicas.
async fn settings(shared: &Shared, first: usize) -> (WatchSettings, AbortHandle) {
    let (clock, entropy) = (Arc::new(SystemClock::default()), Arc::new(OsEntropy));
    let own = &shared.cast.watcher;
    let own = ClientCredential::secret(own.client_id.clone(), own.client_secret.clone());
    let identity = Identity::new(replicas(shared.replicas), own, entropy.clone());
    let login = Login::client_credentials().for_audiences(["avouch"]);
    let source = TokenSource::client_credentials(identity, login, clock, entropy);
    timeout(PATIENCE, source.token()).await.expect("in time").expect("a token");
    let endpoints = (0..shared.replicas).map(|n| {
        let address = Node::Replica((first + n) % shared.replicas).address();
        Endpoint::from_shared(format!("http://{address}:{PORT}")).expect("a URL")
    });
    let mut settings = WatchSettings::new(endpoints.collect());
    settings.authorization = Some(source.authorization());
    settings.refused = Some(source.refused());
    let renewing = tokio::spawn(async move { source.keep_fresh().await });
    (settings, renewing.abort_handle())
}

/// Lets so many watchers follow, until `tasks` is dropped; what each holds.
pub(crate) async fn watch(
    shared: &Arc<Shared>,
    count: usize,
    tasks: &mut JoinSet<()>,
) -> Vec<SharedView> {
    let mut views = Vec::new();
    for watcher in 0..count {
        let (mut settings, renewing) = settings(shared, watcher).await;
        settings.subscriber_id = format!("watcher-{watcher}");
        let mut watch = Watch::new(settings, Arc::new(OsEntropy));
        views.push(watch.view());
        let shared = Arc::clone(shared);
        tasks.spawn(async move {
            let _renewing = Renewing(renewing);
            loop {
                let recorder = &shared.recorder;
                let seen = match watch.next().await {
                    WatchEvent::Connected { resumed, .. } => Seen::Connected { resumed },
                    WatchEvent::Synced(fresh) => Seen::Synced(fresh.through.revision.0),
                    WatchEvent::Batch(them, fresh) => Seen::Batch {
                        shown: them.iter().map(|it| shown(recorder, it)).collect(),
                        through: fresh.through.revision.0,
                    },
                    WatchEvent::Heartbeat(fresh) => Seen::Heartbeat(fresh.through.revision.0),
                    WatchEvent::Reset => Seen::Reset,
                    WatchEvent::KeySet(_) => continue,
                    WatchEvent::Disconnected { lost, .. } => Seen::Lost(format!("{lost:?}")),
                    WatchEvent::Refused(code, text) => Seen::Lost(format!("{code:?}: {text}")),
                };
                recorder.seen(watcher, seen);
            }
        });
    }
    views
}

struct Renewing(AbortHandle);

impl Drop for Renewing {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A verifier of this cluster's tokens, that says nothing when it knows too little.
pub(crate) struct Checking {
    verifier: Verifier,
    _renewing: Renewing,
}

pub(crate) async fn verifiers(shared: &Arc<Shared>, count: usize) -> Vec<Arc<Checking>> {
    let mut all = Vec::new();
    for number in 0..count {
        let (mut watch, renewing) = settings(shared, number + 1).await;
        watch.subscriber_id = format!("verifier-{number}");
        let mut settings = VerifierSettings::new(ISSUER, watch);
        settings.policy = Policy::Closed;
        settings.max_staleness = MAX_STALENESS;
        let (clock, entropy) = (Arc::new(SystemClock::default()), Arc::new(OsEntropy));
        let verifier = Verifier::start(settings, clock, entropy, None);
        all.push(Arc::new(Checking { verifier, _renewing: Renewing(renewing) }));
    }
    all
}

impl Checking {
    /// Asks about a token and writes down what it says.
    pub(crate) async fn judge(
        &self,
        number: usize,
        shared: &Shared,
        session: Session,
        access: &str,
    ) -> Judged {
        let invoked = shared.recorder.now();
        let judged = match self.verifier.verify(access).await {
            Ok(_) => Judged::Good,
            Err(Refusal::Revoked(_) | Refusal::Inactive) => Judged::Revoked,
            Err(Refusal::Stale | Refusal::NotReady) => Judged::Unsure,
            Err(Refusal::Invalid(_)) => Judged::Invalid,
        };
        let returned = shared.recorder.now();
        let token = Token::of(access);
        shared.recorder.verdict(Verdict {
            verifier: number,
            session,
            token,
            invoked,
            returned,
            judged,
        });
        judged
    }
}

/// Asks each verifier about tokens of all kinds until the load is told to stop.
pub(crate) fn ask(
    shared: &Arc<Shared>,
    verifiers: &[Arc<Checking>],
    pause: Duration,
    seed: u64,
    tasks: &mut JoinSet<()>,
) {
    for (number, checking) in verifiers.iter().enumerate() {
        let (shared, checking) = (Arc::clone(shared), Arc::clone(checking));
        let dice = Dice::new(seed, &format!("verifier {number}"));
        tasks.spawn(async move {
            while !shared.stop.is_cancelled() {
                if let Some(known) = shared.pool.any(&dice) {
                    checking.judge(number, &shared, known.session, &known.access).await;
                }
                sleep(dice.between(Duration::from_millis(1), pause)).await;
            }
        });
    }
}
