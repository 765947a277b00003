//! From what an operator says about an etcd to what the engine wants to know.

use crate::config::sections::Etcd;
use crate::config::store_url::StoreUrl;
use crate::store::codec::SCHEMA_VERSION;
use crate::store::etcd::{EtcdLogin, EtcdSettings, EtcdTls};

/// The settings of the engine for the etcd of `url`. The files were looked at before; the engine reads
/// them again whenever it needs them.
pub fn settings(url: &StoreUrl, etcd: &Etcd) -> EtcdSettings {
    let identity = etcd.cert_file.clone().zip(etcd.key_file.clone());
    let tls = |ca_file| EtcdTls { ca_file, identity };
    let login = etcd.username.clone().zip(etcd.password_file.clone());
    EtcdSettings {
        tls: etcd.ca_file.clone().filter(|_| url.tls()).map(tls),
        login: login.map(|(username, password_file)| EtcdLogin { username, password_file }),
        request_timeout: etcd.request_timeout,
        ..EtcdSettings::new(url.endpoints(), url.prefix().to_owned(), SCHEMA_VERSION)
    }
}
