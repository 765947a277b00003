//! The socket to a member: calls that are made at once leave in one system call.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tonic::transport::{Channel, Endpoint};
use tower::ServiceExt as _;

/// A socket that is written to in one piece. To one that takes several h2 hands every message above 256
/// bytes at once, in a system call of its own; to this one those up to 1 KiB together, as many as are
/// ready. Transactions are about that large.
struct Socket(TcpStream);

/// A connection that is made when it is first used, in the way that tonic makes them.
pub(super) fn connect_lazy(endpoint: &Endpoint, timeout: Duration) -> Channel {
    let mut http = HttpConnector::new();
    // The scheme may be https: what that asks for comes above the socket.
    http.enforce_http(false);
    http.set_nodelay(true);
    http.set_connect_timeout(Some(timeout));
    let connector = http.map_response(|stream| TokioIo::new(Socket(stream.into_inner())));
    endpoint.connect_with_connector_lazy(connector)
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What h2 goes by. It is false unless somebody says otherwise.
    #[tokio::test]
    async fn calls_that_are_made_at_once_may_leave_at_once() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        assert!(stream.is_write_vectored());
        assert!(!Socket(stream).is_write_vectored());
    }
}
