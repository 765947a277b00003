//! A way to a server that can be made to swallow what the server says, while TCP goes on.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// Passes connections on.
pub(crate) struct Proxy {
    /// Where to connect.
    pub(crate) address: SocketAddr,
    muted: watch::Sender<bool>,
}

impl Proxy {
    /// To the server at `to`.
    pub(crate) async fn to(to: SocketAddr) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let (muted, silence) = watch::channel(false);
        tokio::spawn(async move {
            while let Ok((peer, _)) = listener.accept().await {
                tokio::spawn(pass_on(peer, to, silence.clone()));
            }
        });
        Self { address, muted }
    }

    /// From now on nothing comes back, though the connection stands; or again it does.
    pub(crate) fn mute(&self, muted: bool) {
        self.muted.send_replace(muted);
    }
}

async fn pass_on(peer: TcpStream, to: SocketAddr, mut muted: watch::Receiver<bool>) {
    let Ok(server) = TcpStream::connect(to).await else { return };
    let (mut from_peer, mut to_peer) = peer.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    tokio::spawn(async move { tokio::io::copy(&mut from_peer, &mut to_server).await });
    let mut bytes = [0; 4096];
    while let Ok(count @ 1..) = from_server.read(&mut bytes).await {
        if muted.wait_for(|muted| !muted).await.is_err()
            || to_peer.write_all(&bytes[..count]).await.is_err()
        {
            return;
        }
    }
}
