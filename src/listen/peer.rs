//! Who is at the other end of a connection. Every request carries it, as an
//! `Arc<PeerInfo>` in its extensions.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use aws_lc_rs::digest::{SHA256, digest};
use rustls::pki_types::CertificateDer;
use tokio_util::sync::CancellationToken;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::domain::clock::Timestamp;

/// One connection and the peer that opened it.
#[derive(Debug)]
pub struct PeerInfo {
    /// Counts the connections of one listener, from 1.
    pub connection_id: u64,
    /// Where the peer connects from; an IPv4 peer shows as such on an IPv6 socket too.
    pub address: SocketAddr,
    /// What the peer's certificate says; `None` if it showed none.
    pub certificate: Option<PeerCertificate>,
    /// Cancelled when the connection was asked to go: it is too old, or the server stops. Who
    /// holds a stream open should end it now.
    pub going: CancellationToken,
    /// Cancel it to close the connection at once, with every call on it.
    pub close: CancellationToken,
    /// How many answers keep the connection open past its age.
    pub(super) kept_open: AtomicUsize,
}

impl PeerInfo {
    /// Keeps the connection past its age and the grace, for `max_kept_open` at most, until what is
    /// returned is dropped. For an answer that is of no use unless it is whole; the connection still
    /// takes no more calls once it was asked to go, and a drain still ends it.
    pub fn keep_open(self: &Arc<Self>) -> KeptOpen {
        self.kept_open.fetch_add(1, Ordering::AcqRel);
        KeptOpen(Arc::clone(self))
    }

    pub(super) fn is_kept_open(&self) -> bool {
        self.kept_open.load(Ordering::Acquire) > 0
    }
}

/// Keeps a connection open past its age while it exists.
#[derive(Debug)]
pub struct KeptOpen(Arc<PeerInfo>);

impl Drop for KeptOpen {
    fn drop(&mut self) {
        self.0.kept_open.fetch_sub(1, Ordering::AcqRel);
    }
}

/// A client certificate that chains to a CA we trust, parsed once per connection.
#[derive(Debug)]
pub struct PeerCertificate {
    /// The certificates as sent, DER, leaf first.
    pub chain: Vec<CertificateDer<'static>>,
    /// SHA-256 of the leaf, which is `x5t#S256` in RFC 8705.
    pub sha256: [u8; 32],
    /// The workload's SPIFFE ID. Only if the leaf names exactly one URI: an X.509-SVID with two is
    /// not valid, and picking one would let the other through.
    pub spiffe_id: Option<String>,
    /// The leaf's DNS names.
    pub dns_names: Vec<String>,
    /// When the leaf ends. The connection may outlive it by no more than its age limit.
    pub not_after: Timestamp,
}

/// Why a certificate that passed verification still cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("the client certificate cannot be read: {0}")]
pub struct UnreadableCertificate(&'static str);

impl PeerCertificate {
    /// Reads a chain that was verified, leaf first.
    pub fn parse(chain: Vec<CertificateDer<'static>>) -> Result<Self, UnreadableCertificate> {
        let leaf = chain.first().ok_or(UnreadableCertificate("empty chain"))?;
        let (rest, parsed) =
            X509Certificate::from_der(leaf).map_err(|_| UnreadableCertificate("not X.509"))?;
        if !rest.is_empty() {
            return Err(UnreadableCertificate("bytes after its end"));
        }
        let (mut uris, mut dns_names) = (Vec::new(), Vec::new());
        let names = parsed
            .subject_alternative_name()
            .map_err(|_| UnreadableCertificate("subject alternative names"))?;
        for name in names.iter().flat_map(|extension| &extension.value.general_names) {
            match name {
                GeneralName::URI(uri) => uris.push(*uri),
                GeneralName::DNSName(dns) => dns_names.push((*dns).to_owned()),
                _ => {}
            }
        }
        let spiffe_id = match uris[..] {
            [only] if only.starts_with("spiffe://") => Some(only.to_owned()),
            _ => None,
        };
        let mut sha256 = [0; 32];
        sha256.copy_from_slice(digest(&SHA256, leaf).as_ref());
        let not_after = not_after(&parsed);
        Ok(Self { sha256, spiffe_id, dns_names, not_after, chain })
    }
}

/// When a certificate ends; a date before 1970 counts as 1970.
pub(super) fn not_after(certificate: &X509Certificate<'_>) -> Timestamp {
    let seconds = certificate.validity().not_after.timestamp();
    Timestamp::from_secs(u64::try_from(seconds).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, SanType};

    use super::*;

    fn leaf(names: &[&str]) -> Vec<CertificateDer<'static>> {
        let mut params = CertificateParams::default();
        params.not_after = rcgen::date_time_ymd(2031, 5, 4);
        for name in names {
            let name = match name.strip_prefix("uri:") {
                Some(uri) => SanType::URI(uri.try_into().expect("ASCII")),
                None => SanType::DnsName((*name).try_into().expect("ASCII")),
            };
            params.subject_alt_names.push(name);
        }
        let key = KeyPair::generate().expect("a key");
        vec![params.self_signed(&key).expect("a certificate").der().clone()]
    }

    #[test]
    fn reads_names_and_expiry() {
        let names = ["uri:spiffe://mesh.example/ns/a/sa/b", "a.example", "b.example"];
        let parsed = PeerCertificate::parse(leaf(&names)).expect("readable");
        assert_eq!(parsed.spiffe_id.as_deref(), Some("spiffe://mesh.example/ns/a/sa/b"));
        assert_eq!(parsed.dns_names, ["a.example", "b.example"]);
        assert_eq!(parsed.not_after.to_string(), "2031-05-04T00:00:00.000Z");
    }

    #[test]
    fn two_uris_or_another_scheme_are_no_spiffe_id() {
        for names in [&["uri:spiffe://a/b", "uri:spiffe://a/c"][..], &["uri:https://a/b"], &[]] {
            let parsed = PeerCertificate::parse(leaf(names)).expect("readable");
            assert_eq!(parsed.spiffe_id, None, "{names:?}");
        }
    }

    #[test]
    fn refuses_what_is_no_certificate() {
        assert!(PeerCertificate::parse(Vec::new()).is_err());
        assert!(PeerCertificate::parse(vec![vec![0x30, 0x03, 1, 2, 3].into()]).is_err());
        let mut longer = leaf(&[]).remove(0).to_vec();
        longer.push(0);
        assert!(PeerCertificate::parse(vec![longer.into()]).is_err());
    }
}
