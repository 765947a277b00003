//! The sections of the configuration. The comments are the reference that
//! `avouch check-config --reference` prints.

use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use crate::config::section::section;
use crate::config::store_url::StoreUrl;
use crate::config::value::{Bytes, choice};
use crate::domain::client::Lifetimes;
use crate::domain::key::Algorithm;
use crate::domain::throttle::ThrottlePolicy;

const fn loopback(port: u16) -> SocketAddr {
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), port)
}

const fn secs(count: u64) -> Duration {
    Duration::from_secs(count)
}

section! {
    /// `[server]`: where avouch listens and how it stops.
    Server {
        /// Address and port of the gRPC services.
        listen: SocketAddr = loopback(7700),
        /// Address and port of the HTTP listener for the public keys and the issuer's metadata.
        public_listen: SocketAddr = loopback(7701),
        /// Address and port of /metrics, /livez and /readyz: plain HTTP, for the kubelet and Prometheus.
        ops_listen: SocketAddr = loopback(7702),
        /// Whether to listen beyond loopback without TLS, because a mesh encrypts instead.
        plaintext_mesh: bool = false,
        /// Whether to serve gRPC reflection. True with --dev.
        reflection: bool = false,
        /// How long everything is served as before after a signal to stop, while health and readiness
        /// already say that the server goes: until load balancers have heard of it. 5s to 10s in
        /// Kubernetes. A second signal ends it.
        drain_delay: Duration = secs(0),
        /// How long calls may go on after that, before they are cut.
        drain_timeout: Duration = secs(20),
        /// With store.url, a directory for what this replica writes to files: addresses.json; etcd-seen.json,
        /// how far etcd was, by which it notices one that went back; and admin-client.json if it is the one that makes the first admin client.
        files_dir: PathBuf = "avouch-data".into(),
        /// A file with the credentials of the first admin client, JSON with client_id and client_secret, which
        /// the first start registers. Without it that start makes a secret and writes admin-client.json.
        admin_client_file: Option<PathBuf> = None,
    }
}

choice! {
    /// Whether clients show a certificate.
    ClientAuth {
        /// Nobody is asked.
        None = "none",
        /// A client may show one; if it does, it has to be good.
        Optional = "optional",
        /// A client has to show a good one.
        Required = "required",
    }
}

section! {
    /// `[tls]`: certificates of the gRPC and the public listener. Files are read again when they change.
    Tls {
        /// Certificates, PEM, leaf first.
        cert_file: Option<PathBuf> = None,
        /// The leaf's private key, PEM.
        key_file: Option<PathBuf> = None,
        /// The CAs that client certificates must chain to, PEM.
        client_ca_file: Option<PathBuf> = None,
        /// Whether gRPC clients show a certificate: none, optional or required.
        client_auth: ClientAuth = ClientAuth::None,
        /// How often the files are looked at for a change.
        reload_interval: Duration = secs(5),
    }
}

section! {
    /// `[issuer]`: what avouch calls itself in tokens.
    Issuer {
        /// The `iss` of every token: the https URL under which verifiers find the metadata. Required; with --dev the public listener's URL.
        url: Option<String> = None,
        /// The audience that stands for avouch itself, in tokens that clients show to it.
        audience: String = "avouch".into(),
    }
}

section! {
    /// `[store]`: where the state is kept.
    Store {
        /// The data directory, for one server. This or store.url is required; with --dev ./avouch-data.
        path: Option<PathBuf> = None,
        /// An etcd, for any number of servers: etcds://host:2379,host:2379,host:2379/prefix, or etcd:// for
        /// plaintext. The prefix is /avouch where none is named. The section etcd has the credentials.
        url: Option<StoreUrl> = None,
        /// Memory for records that were read from the data directory. What is stored takes more beside it.
        cache_bytes: Bytes = Bytes(64 << 20),
        /// Stop writes when the disk has less room than this.
        min_free_bytes: Bytes = Bytes(256 << 20),
        /// How often expired records are removed.
        sweep_interval: Duration = secs(60),
    }
}

section! {
    /// `[etcd]`: how to talk to the etcd that `store.url` names.
    Etcd {
        /// The CAs that the members' certificates must chain to, PEM. Required with etcds://.
        ca_file: Option<PathBuf> = None,
        /// A client certificate, PEM, leaf first.
        cert_file: Option<PathBuf> = None,
        /// The client certificate's private key, PEM.
        key_file: Option<PathBuf> = None,
        /// The user, where etcd has authentication on.
        username: Option<String> = None,
        /// A file with the user's password.
        password_file: Option<PathBuf> = None,
        /// How long one request to etcd may take, before its outcome is asked for. Shorter than
        /// limits.request_timeout.
        request_timeout: Duration = secs(2),
        /// Whether to speak plaintext beyond loopback, because a mesh encrypts.
        plaintext_behind_mesh: bool = false,
    }
}

section! {
    /// `[keys]`: signing keys.
    Keys {
        /// 32 bytes, base64 or hex, under which private keys rest encrypted. Required; with --dev made at first start.
        encryption_key_file: Option<PathBuf> = None,
        /// 32 bytes likewise, with which backups are sealed instead, so that who restores needs no other key to read them.
        backup_key_file: Option<PathBuf> = None,
        /// How new keys sign: ES256, EdDSA or RS256.
        algorithm: Algorithm = Algorithm::default(),
        /// How long a key is published before it signs, at least: one is announced all the time.
        announce_for: Duration = secs(3_600),
        /// How long a key signs.
        rotate_every: Duration = secs(30 * 86_400),
    }
}

section! {
    /// `[password]`: how passwords are hashed (argon2id) and what a new one must be.
    Password {
        /// Memory of one hash, KiB.
        memory_kib: u32 = 19_456,
        /// Passes over the memory.
        iterations: u32 = 2,
        /// Lanes.
        parallelism: u32 = 1,
        /// The fewest characters of a new password.
        min_length: usize = 15,
        /// The most characters of a new password.
        max_length: usize = 256,
        /// More passwords to refuse, one on a line, besides the built-in list.
        blocklist_file: Option<PathBuf> = None,
        /// A file with the keys of a pepper: passwords are hashed with a key besides their salt, so that
        /// the store alone checks no guess. A line for each key, a version from 1 to 65535, a space and
        /// 32 random bytes in base64 or hexadecimal. The highest version makes new hashes, and each
        /// login with an older one replaces its hash. Keep a key until no hash needs it.
        pepper_file: Option<PathBuf> = None,
        /// Hashes at a time; each takes memory_kib. Not set: one for each core.
        workers: Option<NonZeroU32> = None,
        /// The longest that a login may wait for a hash before it is turned away.
        queue_max_wait: Duration = secs(1),
        /// The most logins that may wait for a hash.
        max_queued: usize = 1024,
    }
}

section! {
    /// `[tokens]`: lifetimes for clients whose registration says nothing else.
    Tokens {
        /// Of an access token: 1m to 1h.
        access_lifetime: Duration = Lifetimes::default().access,
        /// Of a session that is not refreshed.
        session_idle_lifetime: Duration = Lifetimes::default().idle,
        /// Of a session in any case.
        session_absolute_lifetime: Duration = Lifetimes::default().absolute,
        /// How long after a rotation a spent refresh token still gets the same successor: 0 to 300s.
        retry_window: Duration = Lifetimes::default().retry_window,
    }
}

section! {
    /// `[sessions]`: logins.
    Sessions {
        /// Sessions of one subject at a time. One more revokes the oldest. After this is lowered, the
        /// next login of a subject revokes what it has beyond it.
        max_per_subject: NonZeroU32 = const_nonzero(256),
    }
}

const fn const_nonzero(number: u32) -> NonZeroU32 {
    match NonZeroU32::new(number) {
        Some(number) => number,
        None => NonZeroU32::MIN,
    }
}

section! {
    /// `[throttle]`: failed logins, by account and source.
    Throttle {
        /// This many failures in a row cost nothing.
        free_failures: u32 = ThrottlePolicy::default().free_failures,
        /// The wait after the next one; it doubles with each further failure.
        first_delay: Duration = ThrottlePolicy::default().first_delay,
        /// The longest wait.
        max_delay: Duration = ThrottlePolicy::default().max_delay,
        /// After this many failures in a row the source is locked out of the account: 1 to 100.
        max_failures: u32 = ThrottlePolicy::default().max_failures,
        /// For how long. Also how long failures are remembered.
        lockout: Duration = ThrottlePolicy::default().lockout,
    }
}

section! {
    /// `[limits]`: what one peer, and all together, may take.
    Limits {
        /// Connections open at once, on each listener.
        max_connections: usize = 10_000,
        /// Connections open at once from one address; an IPv6 peer counts as its /64.
        max_connections_per_peer: usize = 1_000,
        /// How long a TLS handshake may take.
        handshake_timeout: Duration = secs(5),
        /// How long a connection may take until its first request head or HTTP/2 preface is complete.
        first_bytes_timeout: Duration = secs(5),
        /// How long a request's body may take to arrive.
        request_body_timeout: Duration = secs(10),
        /// How long a call may take until the head of its response. A Revoke that waits may take as much longer.
        request_timeout: Duration = secs(10),
        /// How long output may wait for a peer that takes none of it.
        write_stall_timeout: Duration = secs(30),
        /// After this long, give or take a fifth, a connection is asked to go.
        max_connection_age: Duration = secs(600),
        /// How long a connection that was asked to go may take to finish; a backup on it 6 hours.
        max_connection_age_grace: Duration = secs(30),
        /// Streams open at once on one HTTP/2 connection.
        max_concurrent_streams: u32 = 100,
        /// Streams that a connection may make us reset by its errors.
        max_local_error_reset_streams: usize = 1024,
        /// Streams that a connection may reset before we looked at them.
        max_pending_accept_reset_streams: usize = 20,
        /// Size of a request's headers, decoded.
        max_header_bytes: Bytes = Bytes(16 << 10),
        /// HTTP/2 receive window of a stream.
        stream_window_bytes: Bytes = Bytes(64 << 10),
        /// HTTP/2 receive window of a connection.
        connection_window_bytes: Bytes = Bytes(64 << 10),
        /// Output buffered for one stream.
        send_buffer_bytes: Bytes = Bytes(64 << 10),
        /// After this long without a frame an HTTP/2 PING asks whether the peer is there.
        keepalive_interval: Duration = secs(30),
        /// How long the answer to that PING may take.
        keepalive_timeout: Duration = secs(10),
        /// After this long of silence the kernel probes the peer. Empty: never.
        tcp_keepalive: Option<Duration> = Some(secs(60)),
        /// Send small segments at once.
        tcp_nodelay: bool = true,
        /// Connections that the kernel holds before they are accepted.
        backlog: u32 = 1024,
        /// The largest request message.
        max_request_bytes: Bytes = Bytes(16 << 10),
        /// The largest response message of a call; the frames of a watch have their own limit.
        max_response_bytes: Bytes = Bytes(64 << 10),
        /// Watchers at a time.
        max_watchers: usize = 10_000,
        /// Watchers at a time of one caller.
        max_watchers_per_caller: usize = 1_000,
    }
}

choice! {
    /// How log lines look.
    LogFormat {
        /// For eyes.
        Human = "human",
        /// One JSON object a line.
        Json = "json",
    }
}

section! {
    /// `[log]`: diagnostics, written to stderr.
    Log {
        /// human or json.
        format: LogFormat = LogFormat::Human,
        /// error, warn, info, debug or trace; or a filter such as info,avouch::store=debug.
        level: String = "info".into(),
    }
}

section! {
    /// `[telemetry]`: traces, to an OpenTelemetry collector.
    Telemetry {
        /// Where spans go, by OTLP over gRPC: http://127.0.0.1:4317. Not set: nowhere.
        otlp_endpoint: Option<String> = None,
        /// How many of 100 calls are traced, of those whose caller does not say; 0 to 100.
        sample_percent: u32 = 100,
    }
}

section! {
    /// `[audit]`: one JSON line for each security event.
    Audit {
        /// A file to append to, stdout, or otlp. With --dev audit.jsonl in the data directory.
        output: String = "stdout".into(),
        /// With otlp, the OpenTelemetry collector that takes the events as log records, by OTLP over
        /// gRPC: https://collector:4317. Plaintext http:// on loopback, or where server.plaintext_mesh
        /// says that a mesh encrypts.
        otlp_endpoint: Option<String> = None,
        /// With https, the CA that the collector's certificate must chain to, PEM. Read at the start.
        otlp_ca_file: Option<PathBuf> = None,
        /// Lines that may wait to be written, or for a collector, before more are dropped, and counted.
        max_queued: usize = 8_192,
    }
}
