//! Stands between two parties and does to their bytes what networks do.

use std::path::Path;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::raw::{Io, Place};

/// What becomes of the bytes.
#[derive(Clone, Debug)]
pub(crate) enum Mode {
    /// They go to this place.
    Pass(Place),
    /// The same, each so much later.
    Slow(Place, Duration),
    /// Connections are made and kept, and nothing passes.
    Frozen,
    /// The answer to everything is this.
    Garbage(&'static [u8]),
    /// Connections are closed, old ones and new ones.
    Gone,
}

/// It stands there until the test is over.
pub(crate) struct Relay {
    pub(crate) place: Place,
    mode: watch::Sender<Mode>,
}

impl Relay {
    /// On a port.
    pub(crate) async fn tcp(mode: Mode) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        let place = Place::Tcp(listener.local_addr().expect("its port"));
        let (sender, receiver) = watch::channel(mode);
        tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(relay(Box::new(stream), receiver.clone()));
            }
        });
        Self { place, mode: sender }
    }

    /// On a Unix socket.
    pub(crate) fn unix(path: &Path, mode: Mode) -> Self {
        let listener = UnixListener::bind(path).expect("a path");
        let (sender, receiver) = watch::channel(mode);
        tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(relay(Box::new(stream), receiver.clone()));
            }
        });
        Self { place: Place::Unix(path.to_owned()), mode: sender }
    }

    /// Connections that stand are closed, but by [`Mode::Frozen`], which keeps them.
    pub(crate) fn set(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }
}

async fn relay(mut near: Box<dyn Io>, mut modes: watch::Receiver<Mode>) {
    let mode = modes.borrow_and_update().clone();
    let (place, delay) = match mode {
        Mode::Gone => return,
        Mode::Frozen => {
            // Until there is another way to be.
            let _ = modes.changed().await;
            return;
        }
        Mode::Garbage(bytes) => {
            let mut ignored = [0; 4096];
            let _ = near.read(&mut ignored).await;
            let _ = near.write_all(bytes).await;
            let _ = modes.changed().await;
            return;
        }
        Mode::Pass(place) => (place, Duration::ZERO),
        Mode::Slow(place, delay) => (place, delay),
    };
    let Ok(mut far) = place.connect().await else { return };
    let (mut asked, mut answered) = (vec![0; 64 * 1024], vec![0; 64 * 1024]);
    loop {
        tokio::select! {
            changed = modes.changed() => {
                let frozen = changed.is_ok() && matches!(*modes.borrow_and_update(), Mode::Frozen);
                if frozen {
                    let _ = modes.changed().await;
                }
                return;
            }
            read = near.read(&mut asked) => {
                let Ok(length @ 1..) = read else { return };
                sleep(delay).await;
                if far.write_all(&asked[..length]).await.is_err() { return }
            }
            read = far.read(&mut answered) => {
                let Ok(length @ 1..) = read else { return };
                sleep(delay).await;
                if near.write_all(&answered[..length]).await.is_err() { return }
            }
        }
    }
}
