//! Wrappers around a connection's bytes: one notices that the peer has said enough to be taken
//! seriously, one that it does not take what we write.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

use super::after;
use super::stats::ListenStats;

const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Reads through, and raises a flag once the HTTP/2 preface and the first frame after it (it has
/// to be SETTINGS), or an HTTP/1 head, have arrived whole.
#[derive(Debug)]
pub(super) struct FirstBytes<T> {
    inner: T,
    state: First,
    seen: Arc<AtomicBool>,
}

#[derive(Debug)]
enum First {
    /// Within the preface, or an HTTP/1 head that begins like it.
    Preface {
        matched: usize,
    },
    /// Within the nine bytes of the first frame's header; the first three are its length.
    FrameHeader {
        read: usize,
        length: usize,
    },
    FramePayload {
        left: usize,
    },
    /// Within an HTTP/1 head, which ends with an empty line.
    Head {
        line_is_empty: bool,
    },
    Done,
}

impl First {
    fn next(self, byte: u8) -> Self {
        match self {
            Self::Preface { matched } if byte == PREFACE[matched] => {
                if matched + 1 == PREFACE.len() {
                    Self::FrameHeader { read: 0, length: 0 }
                } else {
                    Self::Preface { matched: matched + 1 }
                }
            }
            Self::Preface { .. } => Self::Head { line_is_empty: byte == b'\n' },
            Self::FrameHeader { read, length } => {
                let length = if read < 3 { length << 8 | usize::from(byte) } else { length };
                match (read, length) {
                    (8, 0) => Self::Done,
                    (8, left) => Self::FramePayload { left },
                    _ => Self::FrameHeader { read: read + 1, length },
                }
            }
            Self::FramePayload { left: 1 } => Self::Done,
            Self::FramePayload { left } => Self::FramePayload { left: left - 1 },
            Self::Head { line_is_empty: true } if byte == b'\n' => Self::Done,
            Self::Head { line_is_empty } => match byte {
                b'\n' => Self::Head { line_is_empty: true },
                b'\r' => Self::Head { line_is_empty },
                _ => Self::Head { line_is_empty: false },
            },
            Self::Done => Self::Done,
        }
    }
}

impl<T> FirstBytes<T> {
    /// The wrapper, and the flag that it raises.
    pub(super) fn new(inner: T) -> (Self, Arc<AtomicBool>) {
        let seen = Arc::new(AtomicBool::new(false));
        (Self { inner, state: First::Preface { matched: 0 }, seen: Arc::clone(&seen) }, seen)
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for FirstBytes<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.inner).poll_read(cx, buf))?;
        if !matches!(self.state, First::Done) {
            let mut state = std::mem::replace(&mut self.state, First::Done);
            for &byte in &buf.filled()[before..] {
                state = state.next(byte);
                if matches!(state, First::Done) {
                    self.seen.store(true, Ordering::Release);
                    break;
                }
            }
            self.state = state;
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for FirstBytes<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }

    /// No: to a writer of that kind h2 hands every message above 256 bytes at once, in a system call of its
    /// own. To one of this kind it hands those up to 1 KiB together, as many as are ready.
    fn is_write_vectored(&self) -> bool {
        false
    }
}

/// Writes through, and fails once the peer's socket has taken nothing for too long. It sits below
/// TLS, where a byte taken is a byte that left.
#[derive(Debug)]
pub(super) struct StallGuard<T> {
    inner: T,
    timeout: Duration,
    waiting: Option<Pin<Box<Sleep>>>,
    stats: Arc<ListenStats>,
}

impl<T> StallGuard<T> {
    pub(super) fn new(inner: T, timeout: Duration, stats: Arc<ListenStats>) -> Self {
        Self { inner, timeout, waiting: None, stats }
    }

    /// Turns a write that has been pending for too long into an error.
    fn guard<R>(
        &mut self,
        cx: &mut Context<'_>,
        outcome: Poll<io::Result<R>>,
    ) -> Poll<io::Result<R>> {
        if outcome.is_ready() {
            self.waiting = None;
            return outcome;
        }
        let timeout = self.timeout;
        let waiting =
            self.waiting.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(after(timeout))));
        ready!(waiting.as_mut().poll(cx));
        self.waiting = None;
        self.stats.stalled.add();
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the peer takes no output")))
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for StallGuard<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for StallGuard<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.inner).poll_write(cx, buf);
        self.guard(cx, outcome)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.inner).poll_write_vectored(cx, bufs);
        self.guard(cx, outcome)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::time::Instant;

    use super::*;

    fn done_after(bytes: &[u8]) -> Option<usize> {
        let mut state = First::Preface { matched: 0 };
        for (at, &byte) in bytes.iter().enumerate() {
            state = state.next(byte);
            if matches!(state, First::Done) {
                return Some(at + 1);
            }
        }
        None
    }

    #[test]
    fn knows_when_the_first_bytes_are_whole() {
        let mut http2 = PREFACE.to_vec();
        assert_eq!(done_after(&http2), None);
        http2.extend([0, 0, 6, 4, 0, 0, 0, 0, 0]);
        assert_eq!(done_after(&http2), None);
        http2.extend([0, 3, 0, 0, 0, 100]);
        assert_eq!(done_after(&http2), Some(24 + 9 + 6));
        let mut empty_settings = PREFACE.to_vec();
        empty_settings.extend([0, 0, 0, 4, 0, 0, 0, 0, 0, 0xff]);
        assert_eq!(done_after(&empty_settings), Some(24 + 9));
        assert_eq!(done_after(b"GET / HTTP/1.1\r\nhost: a\r\n"), None);
        assert_eq!(done_after(b"GET / HTTP/1.1\r\nhost: a\r\n\r\nbody"), Some(27));
        assert_eq!(done_after(b"PRIX / HTTP/1.1\r\n\r\n"), Some(19));
    }

    /// What h2 goes by: see `is_write_vectored`.
    #[test]
    fn answers_that_are_ready_at_once_may_leave_at_once() {
        let (stream, _) = FirstBytes::new(tokio::io::duplex(8).0);
        assert!(!stream.is_write_vectored());
    }

    #[tokio::test(start_paused = true)]
    async fn a_write_that_nobody_takes_fails_and_one_byte_taken_starts_anew() {
        let (ours, mut theirs) = tokio::io::duplex(8);
        let stats = Arc::new(ListenStats::default());
        let mut guarded = StallGuard::new(ours, Duration::from_secs(30), Arc::clone(&stats));
        let writer = tokio::spawn(async move {
            let start = Instant::now();
            let error = guarded.write_all(&[0; 64]).await.expect_err("nobody reads on");
            (error.kind(), start.elapsed())
        });
        tokio::time::sleep(Duration::from_secs(20)).await;
        theirs.read_exact(&mut [0; 8]).await.expect("the first bytes");
        let (kind, after) = writer.await.expect("no panic");
        assert_eq!(kind, io::ErrorKind::TimedOut);
        assert!(after >= Duration::from_secs(50) && after < Duration::from_secs(51), "{after:?}");
        assert_eq!(stats.snapshot().stalled, 1);
    }
}
