//! Certificates from files, and from changed files without a restart.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use aws_lc_rs::digest::{Context, SHA256};
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{NoServerSessionStorage, VerifierBuilderError, WebPkiClientVerifier};
use rustls::version::{TLS12, TLS13};
use rustls::{RootCertStore, ServerConfig};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::peer::not_after;
use super::settings::Protocol;
use super::stats::ListenStats;
use crate::domain::clock::Timestamp;

/// A certificate file larger than this is not one.
const MAX_FILE: u64 = 1024 * 1024;

/// Whether clients show a certificate.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ClientAuth {
    /// Nobody is asked.
    None,
    /// A client may show one; if it does, it has to be good.
    Optional,
    /// A client has to show a good one.
    Required,
}

/// Where the certificates are.
#[derive(Clone, Debug)]
pub struct TlsSettings {
    /// Our certificates, PEM, leaf first.
    pub cert_file: PathBuf,
    /// The leaf's private key, PEM.
    pub key_file: PathBuf,
    /// The CAs that client certificates must chain to, PEM.
    pub client_ca_file: Option<PathBuf>,
    /// Whether clients show a certificate. Anything but `None` needs `client_ca_file`.
    pub client_auth: ClientAuth,
    /// How often the files are looked at for a change.
    pub reload_interval: Duration,
}

impl TlsSettings {
    /// TLS with these files, clients not asked for a certificate, changes seen within 5 s.
    pub fn new(cert_file: impl Into<PathBuf>, key_file: impl Into<PathBuf>) -> Self {
        Self {
            cert_file: cert_file.into(),
            key_file: key_file.into(),
            client_ca_file: None,
            client_auth: ClientAuth::None,
            reload_interval: Duration::from_secs(5),
        }
    }
}

/// Why the certificates cannot be used. Names the file; never shows what is in it.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A client certificate is wanted, and no CA to check it.
    #[error("client certificates are {0:?}, but no client CA file is set to check them against")]
    CaMissing(ClientAuth),
    /// A CA file that would have no effect: somebody expects a check that does not happen.
    #[error("client CA file {} is set, but client certificates are not asked for", .0.display())]
    CaUnused(PathBuf),
    /// The files cannot be used together.
    #[error("certificate {} and key {} cannot be used: {source}", cert.display(), key.display())]
    Pair {
        /// The certificate file.
        cert: PathBuf,
        /// The key file.
        key: PathBuf,
        /// What rustls says.
        source: rustls::Error,
    },
    /// A file is not PEM, or holds nothing of the kind that is needed.
    #[error("{what} file {}: {source}", path.display())]
    Pem {
        /// Which of the files.
        what: &'static str,
        /// Its path.
        path: PathBuf,
        /// What is wrong.
        source: pem::Error,
    },
    /// A file cannot be read.
    #[error("cannot read {what} file {}: {source}", path.display())]
    Read {
        /// Which of the files.
        what: &'static str,
        /// Its path.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A CA certificate cannot be used.
    #[error("client CA file {}: {source}", path.display())]
    Roots {
        /// Its path.
        path: PathBuf,
        /// What rustls says.
        source: rustls::Error,
    },
    /// The CAs cannot check anything.
    #[error("client CA file {}: {source}", path.display())]
    Verifier {
        /// Its path.
        path: PathBuf,
        /// What rustls says.
        source: VerifierBuilderError,
    },
}

/// What the files hold, read in one go, and a digest of it to see a change by.
struct Files {
    cert: Vec<u8>,
    key: zeroize::Zeroizing<Vec<u8>>,
    client_ca: Option<Vec<u8>>,
}

impl Files {
    fn read(settings: &TlsSettings) -> Result<Self, TlsError> {
        let client_ca = settings.client_ca_file.as_deref();
        Ok(Self {
            cert: read("certificate", &settings.cert_file)?,
            key: read("key", &settings.key_file)?.into(),
            client_ca: client_ca.map(|path| read("client CA", path)).transpose()?,
        })
    }

    fn digest(&self) -> [u8; 32] {
        let mut context = Context::new(&SHA256);
        for part in [&self.cert, &*self.key, self.client_ca.as_deref().unwrap_or_default()] {
            context.update(&(part.len() as u64).to_be_bytes());
            context.update(part);
        }
        let mut digest = [0; 32];
        digest.copy_from_slice(context.finish().as_ref());
        digest
    }
}

fn read(what: &'static str, path: &Path) -> Result<Vec<u8>, TlsError> {
    let whole = || {
        let mut bytes = Vec::new();
        File::open(path)?.take(MAX_FILE + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > MAX_FILE {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, "larger than 1 MiB"));
        }
        Ok(bytes)
    };
    whole().map_err(|source| TlsError::Read { what, path: path.to_owned(), source })
}

fn certificates(
    what: &'static str,
    path: &Path,
    bytes: &[u8],
) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let error = |source| TlsError::Pem { what, path: path.to_owned(), source };
    let certificates =
        CertificateDer::pem_slice_iter(bytes).collect::<Result<Vec<_>, _>>().map_err(error)?;
    if certificates.is_empty() {
        return Err(error(pem::Error::NoItemsFound));
    }
    Ok(certificates)
}

/// The certificates in use, and what they were made from.
pub(super) struct Tls {
    settings: TlsSettings,
    protocol: Protocol,
    current: ArcSwap<ServerConfig>,
    stats: Arc<ListenStats>,
    /// The digest of what was tried last, good or not, so that a broken file is reported once.
    tried: std::sync::Mutex<Option<[u8; 32]>>,
}

impl Tls {
    /// Loads the files, or says which one is wrong and how.
    pub(super) fn load(
        settings: TlsSettings,
        protocol: Protocol,
        stats: Arc<ListenStats>,
    ) -> Result<Self, TlsError> {
        match (&settings.client_ca_file, settings.client_auth) {
            (None, wanted @ (ClientAuth::Optional | ClientAuth::Required)) => {
                return Err(TlsError::CaMissing(wanted));
            }
            (Some(path), ClientAuth::None) => return Err(TlsError::CaUnused(path.clone())),
            _ => {}
        }
        let files = Files::read(&settings)?;
        let (config, ends) = server_config(&settings, protocol, &files)?;
        stats.certificate_not_after_millis.set(ends.as_millis());
        Ok(Self {
            tried: std::sync::Mutex::new(Some(files.digest())),
            settings,
            protocol,
            current: ArcSwap::from_pointee(config),
            stats,
        })
    }

    /// What the next handshake uses.
    pub(super) fn current(&self) -> Arc<ServerConfig> {
        self.current.load_full()
    }

    /// Looks at the files for ever, and takes new ones into use.
    ///
    /// Contents are compared, not times or inodes: it costs three small reads, and sees through
    /// the symlinks that Kubernetes swaps and through tools that keep the time.
    pub(super) async fn follow_files(self: Arc<Self>) {
        let mut ticks =
            tokio::time::interval(self.settings.reload_interval.max(Duration::from_millis(10)));
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let tls = Arc::clone(&self);
            // A file system that hangs must not hold up the connections.
            if tokio::task::spawn_blocking(move || tls.look()).await.is_err() {
                tracing::error!("looking at the TLS files panicked; the certificate stays");
            }
        }
    }

    /// Takes changed files into use. Between two writes of a tool that does not swap whole
    /// directories, certificate and key do not fit: that is an error now and right at a later look.
    fn look(&self) {
        let files = Files::read(&self.settings);
        let digest = files.as_ref().ok().map(Files::digest);
        let mut tried = self.tried.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if *tried == digest {
            return;
        }
        *tried = digest;
        drop(tried);
        match files.and_then(|files| server_config(&self.settings, self.protocol, &files)) {
            Ok((config, ends)) => {
                self.current.store(Arc::new(config));
                self.stats.certificate_not_after_millis.set(ends.as_millis());
                self.stats.certificate_reloads.add();
                tracing::info!(not_after = %ends, "TLS certificate reloaded");
            }
            Err(error) => {
                self.stats.certificate_reload_failures.add();
                tracing::error!(%error, "new TLS files cannot be used; the old ones stay");
            }
        }
    }
}

/// The rustls configuration for these files, and when the leaf ends.
fn server_config(
    settings: &TlsSettings,
    protocol: Protocol,
    files: &Files,
) -> Result<(ServerConfig, Timestamp), TlsError> {
    let pair = |source| TlsError::Pair {
        cert: settings.cert_file.clone(),
        key: settings.key_file.clone(),
        source,
    };
    let chain = certificates("certificate", &settings.cert_file, &files.cert)?;
    let key = PrivateKeyDer::from_pem_slice(&files.key).map_err(|source| TlsError::Pem {
        what: "key",
        path: settings.key_file.clone(),
        source,
    })?;
    let ends = chain
        .first()
        .and_then(|leaf| X509Certificate::from_der(leaf).ok())
        .map_or(Timestamp::MAX, |(_, leaf)| not_after(&leaf));

    let provider = Arc::new(default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&TLS13, &TLS12])
        .map_err(pair)?;
    let builder = match (&settings.client_ca_file, &files.client_ca) {
        (Some(path), Some(bytes)) => {
            let mut roots = RootCertStore::empty();
            for root in certificates("client CA", path, bytes)? {
                roots.add(root).map_err(|source| TlsError::Roots { path: path.clone(), source })?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            let verifier = match settings.client_auth {
                ClientAuth::None | ClientAuth::Optional => verifier.allow_unauthenticated(),
                ClientAuth::Required => verifier,
            };
            let verifier = verifier
                .build()
                .map_err(|source| TlsError::Verifier { path: path.clone(), source })?;
            builder.with_client_cert_verifier(verifier)
        }
        _ => builder.with_no_client_auth(),
    };
    let mut config = builder.with_single_cert(chain, key).map_err(pair)?;
    config.alpn_protocols = match protocol {
        Protocol::Auto => vec![b"h2".to_vec(), b"http/1.1".to_vec()],
        Protocol::Http1 => vec![b"http/1.1".to_vec()],
        Protocol::Http2 => vec![b"h2".to_vec()],
    };
    if settings.client_auth != ClientAuth::None {
        // A resumed session would bring back a client certificate without looking at it again,
        // after its end and after its CA was taken out.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
    }
    Ok((config, ends))
}
