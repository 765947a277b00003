//! Where a store is, as it is typed: a directory, or the URL of an etcd with what it takes to get in.

use std::path::PathBuf;
use std::time::Duration;

use super::failure::Failure;
use super::offline::Place;
use crate::config::check_access;
use crate::config::sections::Etcd;
use crate::config::store_url::{StoreUrl, StoreUrlError};

/// How long one request may take where nobody waits for its answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// What it takes to get into an etcd.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "etcd")]
pub(super) struct Access {
    /// The CAs that the members' certificates must chain to, PEM. Needed for etcds:// [etcd.ca_file].
    #[arg(long, value_name = "FILE", env = "AVOUCH_ETCD_CA_FILE")]
    etcd_ca_file: Option<PathBuf>,
    /// A client certificate, PEM [etcd.cert_file].
    #[arg(long, value_name = "FILE", env = "AVOUCH_ETCD_CERT_FILE")]
    etcd_cert_file: Option<PathBuf>,
    /// The client certificate's private key, PEM [etcd.key_file].
    #[arg(long, value_name = "FILE", env = "AVOUCH_ETCD_KEY_FILE")]
    etcd_key_file: Option<PathBuf>,
    /// The user [etcd.username].
    #[arg(long, value_name = "NAME", env = "AVOUCH_ETCD_USERNAME")]
    etcd_username: Option<String>,
    /// A file with the user's password, mode 0600 [etcd.password_file].
    #[arg(long, value_name = "FILE", env = "AVOUCH_ETCD_PASSWORD_FILE")]
    etcd_password_file: Option<PathBuf>,
    /// Speak plaintext beyond loopback, because a mesh encrypts [etcd.plaintext_behind_mesh].
    #[arg(long)]
    etcd_plaintext_behind_mesh: bool,
}

impl Access {
    /// The etcd of `url`, if what was typed fits together and the files can be used.
    pub(super) fn to(&self, url: StoreUrl) -> Result<Place, Failure> {
        let etcd = Etcd {
            ca_file: self.etcd_ca_file.clone().filter(|_| url.tls()),
            cert_file: self.etcd_cert_file.clone().filter(|_| url.tls()),
            key_file: self.etcd_key_file.clone().filter(|_| url.tls()),
            username: self.etcd_username.clone(),
            password_file: self.etcd_password_file.clone(),
            request_timeout: PATIENCE,
            // It may be there for the other of two.
            plaintext_behind_mesh: self.etcd_plaintext_behind_mesh && !url.tls(),
        };
        check_access(&url, &etcd)?;
        Ok(Place::Etcd { url, access: Box::new(etcd) })
    }

    /// Where `text` says: an etcd if it has a scheme, a directory otherwise.
    pub(super) fn place(&self, text: &str) -> Result<Place, Failure> {
        if text.contains("://") { self.to(url(text)?) } else { Ok(Place::Directory(text.into())) }
    }
}

fn url(text: &str) -> Result<StoreUrl, Failure> {
    text.parse()
        .map_err(|error: StoreUrlError| Failure::Usage(format!("the URL of a store {error}")))
}
