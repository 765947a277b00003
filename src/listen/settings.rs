//! What a listener allows. The defaults are the ones to run with in production.

use std::time::Duration;

/// Which HTTP a listener speaks.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Protocol {
    /// HTTP/1.1 or HTTP/2, by ALPN or by the first bytes.
    Auto,
    /// HTTP/1.1 only.
    Http1,
    /// HTTP/2 only, as gRPC wants it.
    Http2,
}

/// The limits of one listener.
#[derive(Clone, Debug)]
pub struct ListenSettings {
    /// Which HTTP is spoken here.
    pub protocol: Protocol,
    /// Connections open at once. One more is accepted and closed, so that it fails fast instead of
    /// waiting in the backlog.
    pub max_connections: usize,
    /// Connections open at once from one address; an IPv6 peer counts as its /64.
    pub max_connections_per_peer: usize,
    /// How long a TLS handshake may take.
    pub handshake_timeout: Duration,
    /// How long a connection may take, after TLS, until its HTTP/2 preface with SETTINGS, or its
    /// first HTTP/1 head, is complete. In HTTP/1 also the wait between two requests.
    pub first_bytes_timeout: Duration,
    /// How long a request's body may take to arrive, from the end of its head.
    pub request_body_timeout: Duration,
    /// How long output may wait without the peer taking any of it, before the connection is closed.
    pub write_stall_timeout: Duration,
    /// After this long, give or take a fifth, a connection is asked to go (GOAWAY).
    pub max_connection_age: Duration,
    /// How long a connection that was asked to go may take to finish its requests.
    pub max_connection_age_grace: Duration,
    /// How much longer than the grace an answer may take that must be whole to be of use: a backup.
    pub max_kept_open: Duration,
    /// Streams open at once on one HTTP/2 connection.
    pub max_concurrent_streams: u32,
    /// Streams that one connection may make us reset by its errors before it gets a GOAWAY.
    pub max_local_error_reset_streams: usize,
    /// Streams that one connection may reset before we looked at them, before it gets a GOAWAY.
    pub max_pending_accept_reset_streams: usize,
    /// The size of a request's headers, decoded. A bearer token must fit.
    pub max_header_list_size: u32,
    /// The HTTP/2 receive window of a stream.
    pub initial_stream_window_size: u32,
    /// The HTTP/2 receive window of a connection.
    pub initial_connection_window_size: u32,
    /// How much output is buffered for one stream.
    pub max_send_buf_size: usize,
    /// After this long without a frame from the peer, an HTTP/2 PING asks whether it is there.
    pub http2_keepalive_interval: Duration,
    /// How long the answer to that PING may take. It also ends a peer that stops within a frame.
    pub http2_keepalive_timeout: Duration,
    /// Send small segments at once.
    pub tcp_nodelay: bool,
    /// After this long of silence the kernel probes the peer; `None` leaves that off.
    pub tcp_keepalive: Option<Duration>,
    /// Connections that the kernel may hold for us before we accept them.
    pub backlog: u32,
    /// The mode of a Unix socket: who may connect is who may write to it.
    pub socket_mode: u32,
}

impl Default for ListenSettings {
    fn default() -> Self {
        Self {
            protocol: Protocol::Http2,
            max_connections: 10_000,
            max_connections_per_peer: 1_000,
            handshake_timeout: Duration::from_secs(5),
            first_bytes_timeout: Duration::from_secs(5),
            request_body_timeout: Duration::from_secs(10),
            write_stall_timeout: Duration::from_secs(30),
            max_connection_age: Duration::from_secs(600),
            max_connection_age_grace: Duration::from_secs(30),
            max_kept_open: Duration::from_secs(6 * 3_600),
            max_concurrent_streams: 100,
            max_local_error_reset_streams: 1024,
            max_pending_accept_reset_streams: 20,
            max_header_list_size: 16 * 1024,
            initial_stream_window_size: 64 * 1024,
            initial_connection_window_size: 64 * 1024,
            max_send_buf_size: 64 * 1024,
            http2_keepalive_interval: Duration::from_secs(30),
            http2_keepalive_timeout: Duration::from_secs(10),
            tcp_nodelay: true,
            tcp_keepalive: Some(Duration::from_secs(60)),
            backlog: 1024,
            socket_mode: 0o660,
        }
    }
}
