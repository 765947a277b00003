//! HTTP by the byte, so that nothing between a test and a proxy makes a request nicer.

use std::net::SocketAddr;
use std::path::PathBuf;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

use crate::process::PATIENCE;

/// Where somebody listens.
#[derive(Clone, Debug)]
pub(crate) enum Place {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

/// Both halves of a connection.
pub(crate) trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

impl Place {
    pub(crate) async fn connect(&self) -> std::io::Result<Box<dyn Io>> {
        Ok(match self {
            Self::Tcp(address) => Box::new(TcpStream::connect(address).await?),
            Self::Unix(path) => Box::new(UnixStream::connect(path).await?),
        })
    }
}

/// What is asked.
#[derive(Clone, Debug)]
pub(crate) struct Ask {
    pub(crate) method: String,
    pub(crate) target: String,
    pub(crate) headers: Vec<(String, String)>,
}

impl Ask {
    pub(crate) fn get(target: &str) -> Self {
        Self { method: "GET".to_owned(), target: target.to_owned(), headers: Vec::new() }
    }

    pub(crate) fn method(mut self, method: &str) -> Self {
        self.method = method.to_owned();
        self
    }

    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    pub(crate) fn bearer(self, token: &str) -> Self {
        self.header("authorization", &format!("Bearer {token}"))
    }

    fn bytes(&self) -> Vec<u8> {
        let Self { method, target, headers } = self;
        let mut text =
            format!("{method} {target} HTTP/1.1\r\nhost: workload\r\nconnection: close\r\n");
        for (name, value) in headers {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        text.push_str("\r\n");
        text.into_bytes()
    }
}

/// What came back.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(is, _)| is.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }
}

/// Asks over a connection of its own.
pub(crate) async fn ask(place: &Place, ask: &Ask) -> Answer {
    let mut io = place.connect().await.expect("it listens");
    io.write_all(&ask.bytes()).await.expect("sent");
    let mut bytes = Vec::new();
    // Not up to the end of the connection: Envoy keeps one that it does not like for another second.
    let read = timeout(PATIENCE, async {
        while !is_whole(&String::from_utf8_lossy(&bytes)) {
            if io.read_buf(&mut bytes).await? == 0 {
                break;
            }
        }
        // A proxy that refuses early may close before it has read everything, which is a reset here.
        std::io::Result::Ok(())
    });
    let read = read.await.unwrap_or_else(|_| panic!("no answer to {ask:?}"));
    let text = String::from_utf8_lossy(&bytes);
    parse(&text).unwrap_or_else(|| panic!("{ask:?} was answered by {text:?}, {read:?}"))
}

/// Whether an answer that says how long it is has come to its end.
fn is_whole(text: &str) -> bool {
    let Some(answer) = parse(text) else { return false };
    let length = answer.header("content-length").and_then(|length| length.parse().ok());
    length.is_some_and(|length: usize| answer.body.len() >= length)
}

fn parse(text: &str) -> Option<Answer> {
    let (head, body) = text.split_once("\r\n\r\n")?;
    let mut lines = head.split("\r\n");
    let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
    let header = |line: &str| {
        let (name, value) = line.split_once(':')?;
        Some((name.to_owned(), value.trim().to_owned()))
    };
    let headers = lines.map(header).collect::<Option<_>>()?;
    Some(Answer { status, headers, body: body.to_owned() })
}

/// Sends these headers over HTTP/2, in this order and as they are, until somebody had the time to decide:
/// not for as long as the answer is 503, or UNAVAILABLE.
pub(crate) async fn ask_over_http2(place: &Place, headers: &[(&str, &str)]) {
    let decided = timeout(PATIENCE, async { while !is_decided(place, headers).await {} });
    decided.await.unwrap_or_else(|_| panic!("no answer to {headers:?}"));
}

async fn is_decided(place: &Place, headers: &[(&str, &str)]) -> bool {
    const HEADERS: u8 = 1;
    const SETTINGS: u8 = 4;
    const END_OF_STREAM: u8 = 1;
    let mut io = place.connect().await.expect("it listens");
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    bytes.extend(frame(SETTINGS, 0, 0, &[]));
    let mut block = Vec::new();
    for (name, value) in headers {
        // A literal with a new name, not to be remembered (RFC 7541 section 6.2.2).
        block.push(0);
        for text in [name, value] {
            block.push(u8::try_from(text.len()).ok().filter(|it| *it < 127).expect("short"));
            block.extend(text.as_bytes());
        }
    }
    // The end of the headers too.
    bytes.extend(frame(HEADERS, 4 | END_OF_STREAM, 1, &block));
    io.write_all(&bytes).await.expect("sent");
    let mut decided = true;
    loop {
        let mut head = [0; 9];
        // Who has closed has decided.
        if io.read_exact(&mut head).await.is_err() {
            return decided;
        }
        let [a, b, c, kind, flags, ..] = head;
        let mut rest = vec![0; usize::try_from(u32::from_be_bytes([0, a, b, c])).expect("fits")];
        if io.read_exact(&mut rest).await.is_err() {
            return decided;
        }
        match kind {
            SETTINGS if flags == 0 => {
                let _ = io.write_all(&frame(SETTINGS, 1, 0, &[])).await;
            }
            HEADERS => decided &= !says_unavailable(&rest),
            // RST_STREAM and GOAWAY.
            3 | 7 => return decided,
            _ => {}
        }
        if matches!(kind, 0 | HEADERS) && flags & END_OF_STREAM != 0 {
            return decided;
        }
    }
}

/// Whether a header has the value 503 or 14, which is UNAVAILABLE in `grpc-status`; plain, or in the
/// code of RFC 7541 appendix B.
fn says_unavailable(block: &[u8]) -> bool {
    let values: [&[u8]; 4] =
        [b"\x03503", &[0x83, 0x6c, 0x0c, 0xff], b"\x0214", &[0x82, 0x0b, 0x5f]];
    values.iter().any(|value| block.windows(value.len()).any(|window| window == *value))
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
    let mut bytes = vec![length[1], length[2], length[3], kind, flags];
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}
