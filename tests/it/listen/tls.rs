//! Certificates: ours and the peers'.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use avouch::domain::entropy::SeededEntropy;
use avouch::listen::listener::Listener;
use avouch::listen::tls::{ClientAuth, TlsSettings};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::sleep;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::support::*;

/// A certificate authority.
struct Ca {
    root: CertificateDer<'static>,
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Ca {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let root = params.self_signed(&key).expect("a certificate");
        Self { root: root.der().clone(), pem: root.pem(), issuer: Issuer::new(params, key) }
    }

    fn issue(&self, names: Vec<SanType>) -> (rcgen::Certificate, KeyPair) {
        let mut params = CertificateParams::default();
        params.subject_alt_names = names;
        let key = KeyPair::generate().expect("a key");
        (params.signed_by(&key, &self.issuer).expect("a certificate"), key)
    }

    /// Writes a new certificate for `avouch.test` as Kubernetes does: into a directory of its own,
    /// to which `..data` is turned in one step. Returns the certificate.
    fn mount(&self, directory: &Path, generation: &str) -> CertificateDer<'static> {
        let name = "avouch.test".try_into().expect("ASCII");
        let (certificate, key) = self.issue(vec![SanType::DnsName(name)]);
        let data = directory.join(generation);
        fs::create_dir(&data).expect("a directory");
        fs::write(data.join("tls.crt"), certificate.pem()).expect("written");
        fs::write(data.join("tls.key"), key.serialize_pem()).expect("written");
        fs::write(data.join("ca.crt"), &self.pem).expect("written");
        std::os::unix::fs::symlink(generation, directory.join("..new")).expect("a link");
        fs::rename(directory.join("..new"), directory.join("..data")).expect("turned");
        certificate.der().clone()
    }
}

fn mounted(directory: &TempDir, client_auth: ClientAuth) -> TlsSettings {
    let data = directory.path().join("..data");
    TlsSettings {
        client_ca_file: (client_auth != ClientAuth::None).then(|| data.join("ca.crt")),
        client_auth,
        reload_interval: Duration::from_millis(50),
        ..TlsSettings::new(data.join("tls.crt"), data.join("tls.key"))
    }
}

type Identity = (CertificateDer<'static>, KeyPair);

async fn connect(
    server: &Server,
    ca: &Ca,
    identity: Option<&Identity>,
) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(ca.root.clone()).expect("a root");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots);
    let mut config = match identity {
        Some((certificate, key)) => {
            let key = PrivateKeyDer::try_from(key.serialize_der()).expect("a key");
            builder.with_client_auth_cert(vec![certificate.clone()], key).expect("an identity")
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    let name = "avouch.test".try_into().expect("a name");
    soon(TlsConnector::from(Arc::new(config)).connect(name, server.connect().await)).await
}

/// What the server thinks who we are. In TLS 1.3 a refused certificate shows only here.
async fn seen_as(server: &Server, ca: &Ca, identity: Option<&Identity>) -> Result<String, String> {
    let io = connect(server, ca, identity).await.map_err(|error| error.to_string())?;
    let (requests, connection) =
        soon(h2::client::handshake(io)).await.map_err(|error| error.to_string())?;
    let mut client = Client { requests, connection: tokio::spawn(connection) };
    soon(client.post("/peer", b"")).await
}

fn presented(stream: &TlsStream<TcpStream>) -> CertificateDer<'static> {
    stream.get_ref().1.peer_certificates().expect("a chain")[0].clone().into_owned()
}

#[tokio::test]
async fn a_new_certificate_is_taken_up_and_a_broken_one_is_not() {
    let (ca, directory) = (Ca::new(), tempfile::tempdir().expect("a directory"));
    let first = ca.mount(directory.path(), "..1");
    let server = Server::start(quick(), Some(mounted(&directory, ClientAuth::None)));
    let before = connect(&server, &ca, None).await.expect("TLS");
    assert_eq!(presented(&before), first);
    let mut before = Client::over(before).await;

    let second = ca.mount(directory.path(), "..2");
    server.shows(|seen| seen.certificate_reloads == 1).await;
    assert_eq!(presented(&connect(&server, &ca, None).await.expect("TLS")), second);
    assert_eq!(soon(before.post("/echo", b"kept")).await.as_deref(), Ok("kept"));

    // A key that does not fit, no PEM, and no file: each is counted once, and nothing changes.
    let key = directory.path().join("..2/tls.key");
    let fitting = fs::read(&key).expect("a key");
    let other = KeyPair::generate().expect("a key").serialize_pem();
    for (count, bytes) in [(1, Some(other.as_bytes())), (2, Some(&b"?"[..])), (3, None)] {
        match bytes {
            Some(bytes) => fs::write(&key, bytes).expect("written"),
            None => fs::remove_file(&key).expect("removed"),
        }
        server.shows(|seen| seen.certificate_reload_failures >= count).await;
        assert_eq!(presented(&connect(&server, &ca, None).await.expect("TLS")), second);
    }
    fs::write(&key, fitting).expect("written");
    server.shows(|seen| seen.certificate_reloads == 2).await;
    let seen = server.stats();
    assert!(seen.certificate_not_after.is_some());
    server.shutdown.cancel();
    soon(server.task).await.expect("no panic");
}

#[tokio::test]
async fn the_service_sees_who_the_peer_is() {
    let (ca, directory) = (Ca::new(), tempfile::tempdir().expect("a directory"));
    ca.mount(directory.path(), "..1");
    let server = Server::start(quick(), Some(mounted(&directory, ClientAuth::Optional)));
    let uri = "spiffe://mesh.test/ns/shop/sa/cart".try_into().expect("ASCII");
    let dns = "cart.shop.svc".try_into().expect("ASCII");
    let (certificate, key) = ca.issue(vec![SanType::URI(uri), SanType::DnsName(dns)]);
    let identity = (certificate.der().clone(), key);
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &identity.0);
    let hex: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    let expected = format!(r#"Some("spiffe://mesh.test/ns/shop/sa/cart") ["cart.shop.svc"] {hex}"#);
    assert_eq!(seen_as(&server, &ca, Some(&identity)).await, Ok(expected));
    assert_eq!(seen_as(&server, &ca, None).await.as_deref(), Ok("none"));
}

#[tokio::test]
async fn a_client_without_a_certificate_that_we_trust_is_refused() {
    let (ca, directory) = (Ca::new(), tempfile::tempdir().expect("a directory"));
    ca.mount(directory.path(), "..1");
    for (client_auth, without) in [(ClientAuth::Optional, true), (ClientAuth::Required, false)] {
        let server = Server::start(quick(), Some(mounted(&directory, client_auth)));
        assert_eq!(seen_as(&server, &ca, None).await.is_ok(), without, "{client_auth:?}");
        let (certificate, key) = Ca::new().issue(Vec::new());
        let stranger = (certificate.der().clone(), key);
        assert!(seen_as(&server, &ca, Some(&stranger)).await.is_err(), "{client_auth:?}");
        server.shows(|seen| seen.handshake_failures == 1 + u64::from(!without)).await;
    }
}

#[tokio::test]
async fn a_dribbled_client_hello_is_closed() {
    let (ca, directory) = (Ca::new(), tempfile::tempdir().expect("a directory"));
    ca.mount(directory.path(), "..1");
    let server = Server::start(quick(), Some(mounted(&directory, ClientAuth::None)));
    let mut peer = server.connect().await;
    for byte in [0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3].into_iter().chain([0; 489]) {
        if peer.write_all(&[byte]).await.is_err() {
            break;
        }
        sleep(Duration::from_millis(40)).await;
    }
    closed(&mut peer).await;
    server.shows(|seen| seen.handshake_failures == 1 && seen.active == 0).await;
}

#[tokio::test]
async fn tls_1_1_and_plain_text_are_refused() {
    let (ca, directory) = (Ca::new(), tempfile::tempdir().expect("a directory"));
    ca.mount(directory.path(), "..1");
    let server = Server::start(quick(), Some(mounted(&directory, ClientAuth::None)));
    // A ClientHello of TLS 1.1: one cipher suite, no compression, and the one
    // extension without which it would be refused for another reason.
    let mut hello = vec![0x16, 3, 1, 0, 55, 1, 0, 0, 51, 3, 2];
    hello.extend([7; 32]);
    hello.extend([0, 0, 2, 0xc0, 0x13, 1, 0]);
    hello.extend([0, 8, 0, 13, 0, 4, 0, 2, 4, 3]);
    let mut peer = server.connect().await;
    peer.write_all(&hello).await.expect("sent");
    let mut alert = [0; 7];
    soon(peer.read_exact(&mut alert)).await.expect("an alert");
    const FATAL_PROTOCOL_VERSION: [u8; 2] = [2, 70];
    assert_eq!((alert[0], &alert[5..]), (0x15, &FATAL_PROTOCOL_VERSION[..]));

    let mut plain = server.connect().await;
    plain.write_all(PREFACE).await.expect("sent");
    closed(&mut plain).await;
    server.shows(|seen| seen.handshake_failures == 2 && seen.active == 0).await;
}

#[tokio::test]
async fn wrong_files_are_named_at_start() {
    let (ca, directory) = (Ca::new(), tempfile::tempdir().expect("a directory"));
    ca.mount(directory.path(), "..1");
    let junk = directory.path().join("junk.pem");
    fs::write(&junk, "junk").expect("written");
    let good = mounted(&directory, ClientAuth::None);
    let other_key = directory.path().join("other.key");
    fs::write(&other_key, KeyPair::generate().expect("a key").serialize_pem()).expect("written");
    let missing = directory.path().join("missing.pem");
    for (settings, words) in [
        (TlsSettings::new(&missing, &good.key_file), ["missing.pem", "No such file"]),
        (TlsSettings::new(&junk, &good.key_file), ["certificate file", "junk.pem"]),
        (TlsSettings::new(&good.cert_file, &junk), ["key file", "junk.pem"]),
        (TlsSettings::new(&good.cert_file, &other_key), ["other.key", "KeyMismatch"]),
        (
            TlsSettings { client_auth: ClientAuth::Required, ..good.clone() },
            ["Required", "no client CA file"],
        ),
        (
            TlsSettings { client_ca_file: Some(junk.clone()), ..good.clone() },
            ["junk.pem", "not asked for"],
        ),
        (
            TlsSettings { client_ca_file: Some(junk), client_auth: ClientAuth::Optional, ..good },
            ["client CA file", "junk.pem"],
        ),
    ] {
        let address = "127.0.0.1:0".parse().expect("an address");
        let jitter = Arc::new(SeededEntropy::new(1));
        let error = Listener::bind(address, quick(), Some(settings), jitter)
            .expect_err("refused")
            .to_string();
        for word in words {
            assert!(error.contains(word), "{error:?} should say {word:?}");
        }
    }
}
