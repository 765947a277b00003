//! Stands between an engine and etcd, and cuts connections when it is told to.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// What happens to what passes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Passing {
    /// Everything passes.
    Everything,
    /// Nothing comes back: what etcd answers stays here.
    NoAnswers,
    /// Nothing passes.
    Nothing,
}

#[derive(Clone, Copy, Debug)]
struct State {
    passing: Passing,
    /// How often all connections were cut.
    cuts: u32,
}

/// A proxy in front of a port.
pub(super) struct Proxy {
    /// Where it listens.
    pub(super) port: u16,
    state: watch::Sender<State>,
}

impl Proxy {
    pub(super) async fn to(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap().port();
        let state = watch::Sender::new(State { passing: Passing::Everything, cuts: 0 });
        let seen = state.subscribe();
        tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.unwrap();
                let Ok(server) = TcpStream::connect(("127.0.0.1", port)).await else { continue };
                tokio::spawn(relay(client, server, seen.clone()));
            }
        });
        Self { port: at, state }
    }

    pub(super) fn set(&self, passing: Passing) {
        self.state.send_modify(|state| state.passing = passing);
    }

    /// Cuts every connection. What was held back of them is lost.
    pub(super) fn cut(&self) {
        self.state.send_modify(|state| {
            state.passing = Passing::Everything;
            state.cuts += 1;
        });
    }
}

async fn relay(client: TcpStream, server: TcpStream, state: watch::Receiver<State>) {
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let cuts = state.borrow().cuts;
    let mut cut = state.clone();
    let up =
        pass(from_client, to_server, state.clone(), cuts, |passing| passing != Passing::Nothing);
    let down = pass(from_server, to_client, state, cuts, |passing| passing == Passing::Everything);
    tokio::select! {
        _ = up => {}
        _ = down => {}
        _ = cut.wait_for(|state| state.cuts != cuts) => {}
    }
}

async fn pass(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    mut state: watch::Receiver<State>,
    cuts: u32,
    passes: impl Fn(Passing) -> bool,
) -> std::io::Result<()> {
    let mut bytes = vec![0; 1 << 16];
    loop {
        let count = from.read(&mut bytes).await?;
        if count == 0 {
            return Ok(());
        }
        let mut held = false;
        let state = state.wait_for(|state| {
            let may_pass = passes(state.passing);
            held |= !may_pass;
            may_pass || state.cuts != cuts
        });
        let lost = state.await.is_ok_and(|state| state.cuts != cuts);
        if lost {
            return Ok(());
        }
        to.write_all(&bytes[..count]).await?;
    }
}
