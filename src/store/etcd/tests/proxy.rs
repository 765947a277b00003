//! Stands between an engine and etcd, and cuts connections when it is told to.

use std::time::Duration;

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
    /// Nothing passes over the connections that were made before this one.
    silent_before: u32,
    /// How many bytes pass at most in a hundredth of a second, if that is limited.
    slowly: Option<usize>,
}

/// A proxy in front of a port.
pub(super) struct Proxy {
    /// Where it listens.
    pub(super) port: u16,
    state: watch::Sender<State>,
    /// How many connections were made.
    pub(super) made: watch::Sender<u32>,
}

impl Proxy {
    pub(super) async fn to(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap().port();
        let state = State { passing: Passing::Everything, cuts: 0, silent_before: 0, slowly: None };
        let state = watch::Sender::new(state);
        let (seen, made) = (state.subscribe(), watch::Sender::new(0));
        let count = made.clone();
        tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.unwrap();
                let number = *count.borrow();
                count.send_replace(number + 1);
                let Ok(server) = TcpStream::connect(("127.0.0.1", port)).await else { continue };
                tokio::spawn(relay(number, client, server, seen.clone()));
            }
        });
        Self { port: at, state, made }
    }

    pub(super) fn set(&self, passing: Passing) {
        self.state.send_modify(|state| state.passing = passing);
    }

    /// From now on nothing passes over the connections that there are, and everything over new ones.
    pub(super) fn silence_those_there(&self) {
        let made = *self.made.borrow();
        self.state.send_modify(|state| state.silent_before = made);
    }

    /// Lets what etcd says pass slowly, as over a bad way: so many bytes in a hundredth of a second.
    pub(super) fn slow_down(&self, bytes: usize) {
        self.state.send_modify(|state| state.slowly = Some(bytes));
    }

    /// Cuts every connection. What was held back of them is lost.
    pub(super) fn cut(&self) {
        self.state.send_modify(|state| {
            state.passing = Passing::Everything;
            state.cuts += 1;
        });
    }
}

async fn relay(number: u32, client: TcpStream, server: TcpStream, state: watch::Receiver<State>) {
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let cuts = state.borrow().cuts;
    let mut cut = state.clone();
    let speaks = move |state: &State| number >= state.silent_before;
    let goes_up = move |state: &State| speaks(state) && state.passing != Passing::Nothing;
    let comes_down = move |state: &State| speaks(state) && state.passing == Passing::Everything;
    let up = pass(from_client, to_server, state.clone(), cuts, goes_up);
    let down = pass(from_server, to_client, state, cuts, comes_down);
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
    passes: impl Fn(&State) -> bool,
) -> std::io::Result<()> {
    let mut bytes = vec![0; 1 << 16];
    loop {
        let slowly = state.borrow().slowly;
        if slowly.is_some() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let most = slowly.unwrap_or(bytes.len());
        let count = from.read(&mut bytes[..most]).await?;
        if count == 0 {
            return Ok(());
        }
        let mut held = false;
        let state = state.wait_for(|state| {
            let may_pass = passes(state);
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
