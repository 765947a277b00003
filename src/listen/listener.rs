//! The accept loop, and how it ends.

use std::convert::Infallible;
use std::error::Error;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response};
use http_body::Body;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::sync::CancellationToken;
use tower_service::Service;

use super::admission::Admission;
use super::after;
use super::body::RequestBody;
use super::connection::{self, Arrival, Shared};
use super::settings::ListenSettings;
use super::socket::Socket;
use super::stats::ListenStats;
use super::tls::{Tls, TlsError, TlsSettings};
use crate::domain::address::Address;
use crate::domain::entropy::Entropy;

/// How long `accept` rests when the process has no file descriptors or memory left: trying at once
/// would burn a core and free nothing.
const ACCEPT_REST: Duration = Duration::from_millis(100);

/// Why a listener did not start.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {source}{}", hint(source))]
    Bind {
        /// The address that was asked for.
        address: Address,
        /// Why not.
        source: io::Error,
    },
    /// The certificates cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// The likely cause, for those whose text does not tell.
fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => "; another process listens there",
        io::ErrorKind::AlreadyExists => "; a file stands there that is no socket",
        io::ErrorKind::AddrNotAvailable => "; no interface of this machine has that address",
        io::ErrorKind::NotFound => "; the directory is not there",
        io::ErrorKind::PermissionDenied => {
            "; ports below 1024 need a privilege, and a socket needs a directory that can be written"
        }
        _ => "",
    }
}

/// How a listener ended.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct DrainSummary {
    /// Connections that were open when the drain began and ended by themselves.
    pub drained: usize,
    /// Connections that were cut at the deadline.
    pub aborted: usize,
}

/// A bound socket, not yet served: peers that connect now wait in the backlog.
pub struct Listener {
    admission: Arc<Admission>,
    jitter: Arc<dyn Entropy>,
    local: Address,
    shared: Arc<Shared>,
    socket: Socket,
}

impl std::fmt::Debug for Listener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Listener").field("local", &self.local).finish_non_exhaustive()
    }
}

impl Listener {
    /// Binds `address` and loads the certificates. `jitter` spreads the ages of connections. Has
    /// to be called within a tokio runtime.
    pub fn bind(
        address: SocketAddr,
        settings: ListenSettings,
        tls: Option<TlsSettings>,
        jitter: Arc<dyn Entropy>,
    ) -> Result<Self, ListenError> {
        Self::bind_to(Address::Tcp(address), settings, tls, jitter)
    }

    /// The same for an address of either kind.
    pub fn bind_to(
        address: Address,
        settings: ListenSettings,
        tls: Option<TlsSettings>,
        jitter: Arc<dyn Entropy>,
    ) -> Result<Self, ListenError> {
        let stats = Arc::new(ListenStats::default());
        let tls = tls
            .map(|tls| Tls::load(tls, settings.protocol, Arc::clone(&stats)).map(Arc::new))
            .transpose()?;
        let (socket, local) = Socket::bind(&address, &settings)
            .map_err(|source| ListenError::Bind { address, source })?;
        Ok(Self {
            admission: Admission::new(
                settings.max_connections,
                settings.max_connections_per_peer,
                Arc::clone(&stats),
            ),
            jitter,
            local,
            shared: Arc::new(Shared {
                builder: connection::builder(&settings),
                settings,
                tls,
                stats,
            }),
            socket,
        })
    }

    /// The address in fact bound, the port never 0.
    pub const fn local(&self) -> &Address {
        &self.local
    }

    /// The same of a listener that has a port; for a Unix socket the unspecified address.
    pub fn local_addr(&self) -> SocketAddr {
        match &self.local {
            Address::Tcp(address) => *address,
            Address::Unix(_) => SocketAddr::from(([0, 0, 0, 0], 0)),
        }
    }

    /// The counters; they outlive the listener.
    pub fn stats(&self) -> Arc<ListenStats> {
        Arc::clone(&self.shared.stats)
    }

    /// Serves until `shutdown`, then drains: accepts no more, sends each connection a GOAWAY,
    /// waits up to `deadline` for them to finish their calls, and cuts what is left.
    pub async fn serve<S, B>(
        self,
        service: S,
        shutdown: CancellationToken,
        deadline: Duration,
    ) -> DrainSummary
    where
        S: Service<Request<RequestBody>, Response = Response<B>, Error = Infallible>,
        S: Clone + Send + 'static,
        S::Future: Send,
        B: Body + Send + 'static,
        B::Data: Send,
        B::Error: Into<Box<dyn Error + Send + Sync>>,
    {
        let Self { admission, jitter, local: _, shared, socket } = self;
        let mut reload = JoinSet::new();
        if let Some(tls) = &shared.tls {
            reload.spawn(Arc::clone(tls).follow_files());
        }
        let mut connections = JoinSet::new();
        let mut id = 0;
        loop {
            let (stream, address) = tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                // Finished connections are taken out as they finish, so that the set holds no more
                // than what is open.
                Some(ended) = connections.join_next() => {
                    report_panic(ended);
                    continue;
                }
                accepted = socket.accept() => match accepted {
                    Ok(accepted) => accepted,
                    Err(error) if is_about_the_peer(&error) => continue,
                    Err(error) => {
                        shared.stats.accept_errors.add();
                        tracing::warn!(%error, "cannot accept connections");
                        tokio::select! {
                            () = shutdown.cancelled() => break,
                            () = sleep(ACCEPT_REST) => continue,
                        }
                    }
                },
            };
            let Some(place) = admission.admit(address.ip()) else {
                tracing::debug!(peer = %address, "connection refused: too many are open");
                continue;
            };
            if let Err(error) = stream.prepare(&shared.settings) {
                tracing::debug!(peer = %address, %error, "connection gone before it was served");
                continue;
            }
            id += 1;
            let max_age =
                jittered(shared.settings.max_connection_age, u16::from_be_bytes(jitter.bytes()));
            let draining = shutdown.child_token();
            let arrival = Arrival { id, address, max_age, place, draining };
            connections.spawn(connection::run(
                Arc::clone(&shared),
                arrival,
                stream,
                service.clone(),
            ));
        }
        drop(socket);
        drain(connections, after(deadline)).await
    }
}

/// Waits for the connections, which know of the shutdown, and cuts those that do not end.
async fn drain(mut connections: JoinSet<()>, deadline: Instant) -> DrainSummary {
    let mut summary = DrainSummary::default();
    loop {
        match timeout_at(deadline, connections.join_next()).await {
            Ok(Some(ended)) => {
                report_panic(ended);
                summary.drained += 1;
            }
            Ok(None) => return summary,
            Err(_) => break,
        }
    }
    connections.abort_all();
    while let Some(ended) = connections.join_next().await {
        // One that ended by itself while the others were being cut was not cut.
        match ended {
            Err(error) if error.is_cancelled() => summary.aborted += 1,
            ended => {
                report_panic(ended);
                summary.drained += 1;
            }
        }
    }
    tracing::warn!(aborted = summary.aborted, "connections were cut at the end of the drain");
    summary
}

fn report_panic(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        tracing::error!("a connection's task panicked");
    }
}

/// Whether `accept` failed for one connection only, so that the next may well work.
fn is_about_the_peer(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::Interrupted
    )
}

/// `age`, give or take a fifth: connections that came together must not leave together.
fn jittered(age: Duration, random: u16) -> Duration {
    let factor = 0.8 + 0.4 * f64::from(random) / f64::from(u16::MAX);
    Duration::try_from_secs_f64(age.as_secs_f64() * factor).unwrap_or(Duration::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jitter_stays_within_a_fifth() {
        let age = Duration::from_secs(600);
        assert_eq!(jittered(age, 0), Duration::from_secs(480));
        assert_eq!(jittered(age, u16::MAX), Duration::from_secs(720));
        assert!(jittered(Duration::MAX, u16::MAX) > Duration::from_secs(1 << 60));
    }

    #[test]
    fn only_errors_of_the_process_rest_the_accept_loop() {
        const EMFILE: i32 = 24;
        assert!(!is_about_the_peer(&io::Error::from_raw_os_error(EMFILE)));
        assert!(is_about_the_peer(&io::ErrorKind::ConnectionAborted.into()));
    }
}
