//! The socket under a listener and the streams that it accepts, of either kind.

use std::fs::Metadata;
use std::io::{self, IoSlice};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll};

use socket2::{Domain, SockAddr, SockRef, Socket as RawSocket, TcpKeepalive, Type};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

use super::settings::ListenSettings;
use crate::domain::address::Address;

/// Peers on a Unix socket have no address: all of them count as one that is this machine.
const THIS_MACHINE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// A bound socket.
pub(super) enum Socket {
    Tcp(TcpListener),
    Unix { socket: UnixListener, _file: SocketFile },
}

/// The file of a Unix socket, removed with the listener unless another process has taken the place.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl SocketFile {
    fn is(&self, file: &Metadata) -> bool {
        (file.dev(), file.ino()) == (self.device, self.inode)
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if std::fs::symlink_metadata(&self.path).is_ok_and(|file| self.is(&file)) {
            // Whoever starts next removes it, if this fails.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

impl Socket {
    /// Binds, and says where: the port is never 0.
    pub(super) fn bind(
        address: &Address,
        settings: &ListenSettings,
    ) -> io::Result<(Self, Address)> {
        let backlog = i32::try_from(settings.backlog).unwrap_or(i32::MAX);
        match address {
            Address::Tcp(address) => {
                let socket = RawSocket::new(Domain::for_address(*address), Type::STREAM, None)?;
                // A restart must not wait for the old process's connections to leave TIME_WAIT. On
                // Linux it does not let two processes listen at once.
                socket.set_reuse_address(true)?;
                socket.set_nonblocking(true)?;
                socket.bind(&(*address).into())?;
                socket.listen(backlog)?;
                let socket = TcpListener::from_std(socket.into())?;
                let local = socket.local_addr()?;
                Ok((Self::Tcp(socket), Address::Tcp(local)))
            }
            Address::Unix(path) => {
                make_room(path)?;
                let socket = RawSocket::new(Domain::UNIX, Type::STREAM, None)?;
                socket.set_nonblocking(true)?;
                socket.bind(&SockAddr::unix(path)?)?;
                let file = std::fs::symlink_metadata(path)?;
                let file = SocketFile { path: path.clone(), device: file.dev(), inode: file.ino() };
                // Before it listens, so that nobody connects whom the mode shuts out.
                let mode = std::fs::Permissions::from_mode(settings.socket_mode);
                std::fs::set_permissions(path, mode)?;
                socket.listen(backlog)?;
                let socket = UnixListener::from_std(socket.into())?;
                Ok((Self::Unix { socket, _file: file }, address.clone()))
            }
        }
    }

    pub(super) async fn accept(&self) -> io::Result<(Stream, SocketAddr)> {
        match self {
            Self::Tcp(socket) => {
                let (stream, address) = socket.accept().await?;
                let address = SocketAddr::new(address.ip().to_canonical(), address.port());
                Ok((Stream::Tcp(stream), address))
            }
            Self::Unix { socket, .. } => {
                let (stream, _) = socket.accept().await?;
                Ok((Stream::Unix(stream), THIS_MACHINE))
            }
        }
    }
}

/// Removes the file that a process left which is gone. One that still listens keeps its place, and so
/// does what is no socket.
fn make_room(path: &Path) -> io::Result<()> {
    match std::fs::symlink_metadata(path) {
        Ok(file) if !file.file_type().is_socket() => Err(io::ErrorKind::AlreadyExists.into()),
        Ok(_) => match std::os::unix::net::UnixStream::connect(path) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                std::fs::remove_file(path)
            }
            Ok(_) | Err(_) => Err(io::ErrorKind::AddrInUse.into()),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// An accepted connection.
#[derive(Debug)]
pub(super) enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Stream {
    pub(super) fn prepare(&self, settings: &ListenSettings) -> io::Result<()> {
        let Self::Tcp(stream) = self else { return Ok(()) };
        stream.set_nodelay(settings.tcp_nodelay)?;
        if let Some(time) = settings.tcp_keepalive {
            let probes =
                TcpKeepalive::new().with_time(time).with_interval(time / 4).with_retries(3);
            SockRef::from(stream).set_tcp_keepalive(&probes)?;
        }
        Ok(())
    }
}

macro_rules! either {
    ($stream:expr, $inner:ident => $call:expr) => {
        match $stream.get_mut() {
            Stream::Tcp(stream) => {
                let $inner = Pin::new(stream);
                $call
            }
            Stream::Unix(stream) => {
                let $inner = Pin::new(stream);
                $call
            }
        }
    };
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        either!(self, stream => stream.poll_read(cx, buf))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        either!(self, stream => stream.poll_write(cx, buf))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, stream => stream.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, stream => stream.poll_shutdown(cx))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        either!(self, stream => stream.poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Tcp(stream) => stream.is_write_vectored(),
            Self::Unix(stream) => stream.is_write_vectored(),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    fn bind(path: &Path) -> io::Result<Socket> {
        let settings = ListenSettings { socket_mode: 0o620, ..ListenSettings::default() };
        Socket::bind(&Address::Unix(path.into()), &settings).map(|(socket, _)| socket)
    }

    #[tokio::test]
    async fn a_unix_socket_is_for_whom_its_mode_says_and_goes_with_the_listener() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sock");
        let socket = bind(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o620);
        let connect = tokio::spawn(UnixStream::connect(path.clone()));
        let (mut accepted, address) = socket.accept().await.unwrap();
        assert!(address.ip().is_loopback());
        let mut peer = connect.await.unwrap().unwrap();
        peer.write_all(b"hello").await.unwrap();
        let mut text = [0; 5];
        accepted.read_exact(&mut text).await.unwrap();
        assert_eq!(&text, b"hello");
        drop(socket);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn only_a_socket_that_nobody_listens_on_makes_room() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sock");
        // As a process that was killed leaves it.
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let first = bind(&path).unwrap();
        let taken = bind(&path).err().map(|error| error.kind());
        assert_eq!(taken, Some(io::ErrorKind::AddrInUse));
        // Another process has taken the place: its file stays when the first one ends.
        std::fs::remove_file(&path).unwrap();
        let second = bind(&path).unwrap();
        drop(first);
        assert!(path.exists());
        drop(second);
        std::fs::write(&path, "precious").unwrap();
        let kind = bind(&path).err().map(|error| error.kind());
        assert_eq!(kind, Some(io::ErrorKind::AlreadyExists));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
        let nowhere = bind(&dir.path().join("no/a.sock")).err().map(|error| error.kind());
        assert_eq!(nowhere, Some(io::ErrorKind::NotFound));
    }
}
