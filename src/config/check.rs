//! What must fit together. Pure but for the looks at the files that a configuration names.

pub(super) mod store;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::sections::{ClientAuth, Etcd, Throttle, Tokens};
use super::store_url::StoreUrl;
use super::{Config, ConfigErrors, secret_file};
use crate::domain::client::{LifetimeError, Lifetimes};
use crate::domain::throttle::ThrottlePolicy;

impl Tokens {
    /// The lifetimes as the domain knows them.
    pub const fn lifetimes(&self) -> Lifetimes {
        Lifetimes {
            access: self.access_lifetime,
            idle: self.session_idle_lifetime,
            absolute: self.session_absolute_lifetime,
            retry_window: self.retry_window,
        }
    }
}

impl Throttle {
    /// The policy as the domain knows it.
    pub const fn policy(&self) -> ThrottlePolicy {
        ThrottlePolicy {
            free_failures: self.free_failures,
            first_delay: self.first_delay,
            max_delay: self.max_delay,
            max_failures: self.max_failures,
            lockout: self.lockout,
        }
    }
}

/// Reports everything that does not fit together.
pub(super) fn check(config: &Config, errors: &mut ConfigErrors) {
    listeners(config, errors);
    tls(config, errors);
    issuer(config, errors);
    numbers(config, errors);
    telemetry(config, errors);
    store::check(config, errors);
    if config.dev && config.server.admin_client_file.is_some() {
        errors.push("", "--dev makes its own credentials: leave out server.admin_client_file");
    }
    audit(config, errors);
    if !config.dev && config.keys.encryption_key_file.is_none() {
        errors.push("", "keys.encryption_key_file is missing: name a file with 32 random bytes in base64, made by: head -c 32 /dev/urandom | base64");
    }
    for grant in &config.grants {
        if config.tls.client_auth == ClientAuth::None {
            let name = &grant.certificate_name;
            errors.push("", format!("the grant for {name} has no effect: set tls.client_auth"));
        }
    }
}

/// Looks at the files that the configuration names: whether they are there, and whether nobody else
/// can read those that hold secrets. Apart from `load`, so that a file can be checked on a machine
/// that has none of them.
///
/// # Errors
/// Every file that is not as it must be.
pub fn check_files(config: &Config) -> Result<(), ConfigErrors> {
    let mut errors = ConfigErrors::default();
    secret_files(
        &[
            ("server.admin_client_file", &config.server.admin_client_file),
            ("keys.encryption_key_file", &config.keys.encryption_key_file),
            ("keys.backup_key_file", &config.keys.backup_key_file),
            ("password.pepper_file", &config.password.pepper_file),
            ("tls.key_file", &config.tls.key_file),
        ],
        &mut errors,
    );
    files(
        &[
            ("tls.cert_file", &config.tls.cert_file),
            ("tls.client_ca_file", &config.tls.client_ca_file),
            ("audit.otlp_ca_file", &config.audit.otlp_ca_file),
            ("password.blocklist_file", &config.password.blocklist_file),
        ],
        &mut errors,
    );
    etcd_files(&config.etcd, &mut errors);
    if errors.0.is_empty() { Ok(()) } else { Err(errors) }
}

/// Looks at what it takes to get into an etcd, and at the files.
///
/// # Errors
/// Everything that does not fit together, and every file that is not as it must be.
pub fn check_access(url: &StoreUrl, etcd: &Etcd) -> Result<(), ConfigErrors> {
    let mut errors = ConfigErrors::default();
    store::access(url, etcd, &mut errors);
    etcd_files(etcd, &mut errors);
    if errors.0.is_empty() { Ok(()) } else { Err(errors) }
}

fn etcd_files(etcd: &Etcd, errors: &mut ConfigErrors) {
    let secret = [("etcd.key_file", &etcd.key_file), ("etcd.password_file", &etcd.password_file)];
    secret_files(&secret, errors);
    files(&[("etcd.ca_file", &etcd.ca_file), ("etcd.cert_file", &etcd.cert_file)], errors);
}

fn secret_files(named: &[(&str, &Option<PathBuf>)], errors: &mut ConfigErrors) {
    for (key, path) in named {
        if let Some(Err(error)) = path.as_deref().map(secret_file::check) {
            errors.push(*key, error.to_string());
        }
    }
}

fn files(named: &[(&str, &Option<PathBuf>)], errors: &mut ConfigErrors) {
    for (key, path) in named {
        if let Some(path) = path
            && let Err(error) = std::fs::File::open(path)
        {
            errors.push(*key, format!("{} cannot be read: {error}", path.display()));
        }
    }
}

fn telemetry(config: &Config, errors: &mut ConfigErrors) {
    let telemetry = &config.telemetry;
    if telemetry.sample_percent > 100 {
        errors.push("", "telemetry.sample_percent must be 0 to 100");
    }
    if let Some(endpoint) = &telemetry.otlp_endpoint {
        // Spans hold no secret, and a collector stands on the node or behind the mesh.
        if bare_scheme(endpoint).as_deref() != Some("http") {
            errors.push("", "telemetry.otlp_endpoint must be http:// with a host and a port, as in http://127.0.0.1:4317");
        }
    }
}

/// The scheme of a URL that is a host and perhaps a port, and nothing else.
fn bare_scheme(url: &str) -> Option<String> {
    let uri = url.parse::<http::Uri>().ok()?;
    uri.host()?;
    (uri.path() == "/" && uri.query().is_none()).then(|| uri.scheme_str().map(str::to_owned))?
}

fn audit(config: &Config, errors: &mut ConfigErrors) {
    let audit = &config.audit;
    if audit.output != "otlp" {
        for (key, is_set) in [
            ("otlp_endpoint", audit.otlp_endpoint.is_some()),
            ("otlp_ca_file", audit.otlp_ca_file.is_some()),
        ] {
            if is_set {
                errors.push("", format!("audit.{key} has no effect: set audit.output to otlp"));
            }
        }
        return;
    }
    let Some(endpoint) = &audit.otlp_endpoint else {
        errors.push("", "audit.output is otlp and audit.otlp_endpoint is missing: name the collector, as in https://collector:4317");
        return;
    };
    match bare_scheme(endpoint).as_deref() {
        Some("https") if audit.otlp_ca_file.is_none() => {
            errors.push("", "audit.otlp_endpoint is https: name the CA in audit.otlp_ca_file");
        }
        Some("http") if audit.otlp_ca_file.is_some() => {
            errors.push("", "audit.otlp_ca_file has no effect: audit.otlp_endpoint is http");
        }
        Some("https") => {}
        // Who logs in from where is nobody else's business.
        Some("http") if !is_loopback_url(endpoint) && !config.server.plaintext_mesh => {
            errors.push("", format!("audit.otlp_endpoint {endpoint} is beyond loopback and plaintext: use https, or --plaintext-behind-mesh if a mesh encrypts"));
        }
        Some("http") => {}
        _ => errors.push("", "audit.otlp_endpoint must be https:// or http:// with a host and a port, as in https://collector:4317"),
    }
}

fn listeners(config: &Config, errors: &mut ConfigErrors) {
    let server = &config.server;
    let all = [
        ("server.listen", server.listen),
        ("server.public_listen", server.public_listen),
        ("server.ops_listen", server.ops_listen),
    ];
    for (key, address) in all {
        let beyond = !address.ip().is_loopback();
        if beyond && config.dev {
            errors.push(
                "",
                format!("{key} {address} is not loopback: --dev serves this machine only"),
            );
        }
    }
    // The third listener has nothing to hide, and the kubelet asks it in plaintext.
    for (key, address) in &all[..2] {
        if needs_tls(*address)
            && !config.dev
            && config.tls.cert_file.is_none()
            && !server.plaintext_mesh
        {
            errors.push(
                "",
                format!(
                    "{key} {address} is reachable from other machines and there is no TLS: set \
                     tls.cert_file and tls.key_file, or --plaintext-behind-mesh if a mesh encrypts"
                ),
            );
        }
    }
    for (index, (key, address)) in all.iter().enumerate() {
        for (other, taken) in &all[..index] {
            if address == taken && address.port() != 0 {
                errors.push("", format!("{key} and {other} are both {address}"));
            }
        }
    }
}

fn needs_tls(address: SocketAddr) -> bool {
    !address.ip().is_loopback()
}

fn tls(config: &Config, errors: &mut ConfigErrors) {
    let tls = &config.tls;
    if tls.cert_file.is_some() != tls.key_file.is_some() {
        errors.push("", "tls.cert_file and tls.key_file go together: set both or none");
    }
    if tls.client_auth != ClientAuth::None {
        if tls.client_ca_file.is_none() {
            errors.push("", "tls.client_auth needs tls.client_ca_file");
        }
        if tls.cert_file.is_none() {
            errors.push("", "tls.client_auth needs tls.cert_file and tls.key_file");
        }
    } else if tls.client_ca_file.is_some() {
        errors.push(
            "",
            "tls.client_ca_file has no effect: set tls.client_auth to optional or required",
        );
    }
}

fn issuer(config: &Config, errors: &mut ConfigErrors) {
    let Some(url) = &config.issuer.url else {
        if !config.dev {
            errors.push("", "issuer.url is missing: the https URL of the public listener, as verifiers reach it");
        }
        return;
    };
    let plain = config.dev || config.server.plaintext_mesh || is_loopback_url(url);
    let parsed = url.parse::<http::Uri>().ok();
    let scheme = parsed.as_ref().and_then(http::Uri::scheme_str);
    if parsed.as_ref().and_then(http::Uri::host).is_none()
        || !matches!(scheme, Some("https" | "http"))
    {
        errors.push("", "issuer.url must be a URL such as https://id.example.com");
    } else if scheme == Some("http") && !plain {
        errors.push("", "issuer.url must begin with https:// (RFC 8414 section 2)");
    }
    if url.contains(['?', '#']) || url.ends_with('/') {
        errors.push("", "issuer.url must have no query, no fragment and no slash at its end");
    }
}

fn is_loopback_url(url: &str) -> bool {
    let host = url.parse::<http::Uri>().ok().and_then(|uri| uri.host().map(str::to_owned));
    host.is_some_and(|host| {
        let ip = host.trim_matches(['[', ']']).parse::<std::net::IpAddr>();
        host == "localhost" || ip.is_ok_and(|ip| ip.is_loopback())
    })
}

fn numbers(config: &Config, errors: &mut ConfigErrors) {
    for error in config.tokens.lifetimes().mistakes() {
        let key = match error {
            LifetimeError::Access => "access_lifetime",
            LifetimeError::Idle => "session_idle_lifetime",
            LifetimeError::Absolute => "session_absolute_lifetime",
            LifetimeError::RetryWindow => "retry_window",
        };
        errors.push("", format!("tokens.{key} {error}"));
    }
    let throttle = &config.throttle;
    if !(1..=100).contains(&throttle.max_failures) {
        errors.push("", "throttle.max_failures must be 1 to 100 (NIST SP 800-63B-4 section 3.2.2)");
    }
    if throttle.first_delay > throttle.max_delay {
        errors.push("", "throttle.first_delay must not be longer than throttle.max_delay");
    }
    let password = &config.password;
    if password.min_length < 8 {
        errors.push("", "password.min_length must be at least 8");
    }
    if password.max_length < 64 || password.max_length > 1024 {
        errors.push("", "password.max_length must be 64 to 1024");
    }
    if password.min_length >= password.max_length {
        errors.push("", "password.min_length must be less than password.max_length");
    }
    let limits = &config.limits;
    for (key, bytes, least) in [
        ("max_request_bytes", limits.max_request_bytes, 4 << 10),
        ("max_response_bytes", limits.max_response_bytes, 16 << 10),
        ("max_header_bytes", limits.max_header_bytes, 9 << 10),
    ] {
        if bytes.0 < least || bytes.0 > 16 << 20 {
            let (least, key) = (least >> 10, key);
            errors.push("", format!("limits.{key} must be {least}KiB to 16MiB"));
        }
    }
    for (key, bytes) in [
        ("stream_window_bytes", limits.stream_window_bytes),
        ("connection_window_bytes", limits.connection_window_bytes),
        ("send_buffer_bytes", limits.send_buffer_bytes),
    ] {
        if bytes.0 < 16 << 10 || bytes.0 >= 1 << 31 {
            errors.push("", format!("limits.{key} must be 16KiB to 2GiB"));
        }
    }
    for (key, number) in [
        ("max_connections", limits.max_connections),
        ("max_connections_per_peer", limits.max_connections_per_peer),
        ("max_concurrent_streams", limits.max_concurrent_streams as usize),
        ("max_watchers", limits.max_watchers),
        ("max_watchers_per_caller", limits.max_watchers_per_caller),
    ] {
        if number == 0 {
            errors.push("", format!("limits.{key} must not be 0"));
        }
    }
    for (key, duration) in [
        ("server.drain_timeout", config.server.drain_timeout),
        ("store.sweep_interval", config.store.sweep_interval),
        ("tls.reload_interval", config.tls.reload_interval),
        ("keys.announce_for", config.keys.announce_for),
        ("limits.handshake_timeout", limits.handshake_timeout),
        ("limits.first_bytes_timeout", limits.first_bytes_timeout),
        ("limits.request_body_timeout", limits.request_body_timeout),
        ("limits.request_timeout", limits.request_timeout),
        ("limits.write_stall_timeout", limits.write_stall_timeout),
        ("limits.max_connection_age", limits.max_connection_age),
        ("limits.keepalive_interval", limits.keepalive_interval),
        ("limits.keepalive_timeout", limits.keepalive_timeout),
    ] {
        if duration == Duration::ZERO {
            errors.push("", format!("{key} must not be 0"));
        }
    }
    if config.keys.rotate_every <= config.keys.announce_for {
        errors.push("", "keys.rotate_every must be longer than keys.announce_for");
    }
}
