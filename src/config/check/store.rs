//! Where the state is kept, and how whoever keeps it is spoken to.

use std::time::Duration;

use crate::config::sections::Etcd;
use crate::config::store_url::StoreUrl;
use crate::config::{Config, ConfigErrors};

/// The least that a request to etcd may take. A flush of a member's disk is in it, and an election is not.
const LEAST_REQUEST_TIMEOUT: Duration = Duration::from_millis(100);

pub(super) fn check(config: &Config, errors: &mut ConfigErrors) {
    let (store, etcd, server) = (&config.store, &config.etcd, &config.server);
    match (&store.path, &store.url) {
        (None, None) => errors.push("", "store.path is missing: name the data directory; or, for many servers, store.url with an etcd such as etcds://etcd-0:2379,etcd-1:2379,etcd-2:2379/avouch"),
        (Some(_), Some(_)) if config.dev => errors.push("", "--dev keeps its state in a directory: leave out store.url"),
        (Some(_), Some(_)) => errors.push("", "store.path and store.url are both set: one server keeps its state in a directory, many keep it in etcd; leave out one of the two"),
        (Some(_), None) => {
            if server.files_dir != Config::default().server.files_dir {
                errors.push("", "server.files_dir has no effect: those files are in store.path");
            }
        }
        (None, Some(_)) => {}
    }
    match &store.url {
        None if *etcd != Etcd::default() => {
            errors.push("", "[etcd] has no effect: set store.url");
        }
        None => {}
        Some(url) => {
            access(url, etcd, errors);
            if etcd.request_timeout >= config.limits.request_timeout {
                errors.push("", "etcd.request_timeout must be shorter than limits.request_timeout: what came of a request that etcd did not answer has to be found out while the caller waits");
            }
        }
    }
}

/// What must fit together to talk to the etcd of `url`.
pub(in crate::config) fn access(url: &StoreUrl, etcd: &Etcd, errors: &mut ConfigErrors) {
    let of_tls = [
        ("etcd.ca_file", &etcd.ca_file),
        ("etcd.cert_file", &etcd.cert_file),
        ("etcd.key_file", &etcd.key_file),
    ];
    if url.tls() {
        if etcd.ca_file.is_none() {
            errors.push("", "etcd.ca_file is missing: the CAs that the certificates of etcd chain to, as store.url begins with etcds://");
        }
        if etcd.plaintext_behind_mesh {
            errors.push("", "etcd.plaintext_behind_mesh has no effect: store.url begins with etcds://, which is TLS");
        }
    } else {
        for (key, _) in of_tls.iter().filter(|(_, file)| file.is_some()) {
            errors.push("", format!("{key} has no effect: store.url begins with etcd://, which is plaintext; write etcds://"));
        }
        if !url.is_loopback() && !etcd.plaintext_behind_mesh {
            errors.push("", "store.url names other machines and begins with etcd://, which is plaintext: write etcds:// and set etcd.ca_file, or set etcd.plaintext_behind_mesh if a mesh encrypts");
        }
    }
    if etcd.cert_file.is_some() != etcd.key_file.is_some() {
        errors.push("", "etcd.cert_file and etcd.key_file go together: set both or none");
    }
    if etcd.username.is_some() != etcd.password_file.is_some() {
        errors.push("", "etcd.username and etcd.password_file go together: set both or none");
    }
    if etcd.request_timeout < LEAST_REQUEST_TIMEOUT {
        errors.push("", "etcd.request_timeout must be at least 100ms");
    }
}
