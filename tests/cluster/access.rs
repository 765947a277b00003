//! Who may talk to etcd: certificates for everybody, and logins.

use std::io::Write as _;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType};

use crate::gateway;
use crate::net::Node;

/// What replicas log in with.
const USER: &str = "avouch";
const PASSWORD: &str = "swordfish 9";

/// Certificates of the members and of the replicas, by one CA; and a login for the replicas.
#[derive(Debug)]
pub(crate) struct Access(PathBuf);

impl Access {
    /// Makes them all.
    pub(crate) fn new(directory: &Path) -> Self {
        let access = Self(directory.join("access"));
        std::fs::create_dir(&access.0).expect("a directory");
        let ca_key = KeyPair::generate().expect("a key");
        let mut ca = CertificateParams::default();
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = ca.self_signed(&ca_key).expect("a certificate");
        access.write("ca.pem", &certificate.pem());
        let issuer = Issuer::new(ca, ca_key);
        for node in Node::MEMBERS.into_iter().chain(Node::REPLICAS) {
            let key = KeyPair::generate().expect("a key");
            let mut params = CertificateParams::default();
            params.subject_alt_names = vec![SanType::IpAddress(IpAddr::V4(node.address()))];
            let certificate = params.signed_by(&key, &issuer).expect("a certificate");
            access.write(&format!("{}.pem", node.name()), &certificate.pem());
            access.write(&format!("{}.key", node.name()), &key.serialize_pem());
        }
        access.write("password", PASSWORD);
        access
    }

    fn write(&self, name: &str, text: &str) {
        // A replica takes no secret that others can read.
        let mut options = std::fs::OpenOptions::new();
        let file = options.write(true).create_new(true).mode(0o600).open(self.0.join(name));
        file.expect("a file").write_all(text.as_bytes()).expect("written");
    }

    fn at(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }

    /// What a member is told: whoever comes has a certificate, the other members too.
    pub(crate) fn of_member(&self, node: Node) -> Vec<String> {
        let files = ["pem", "key"].map(|end| self.at(&format!("{}.{end}", node.name())));
        let [certificate, key] = files;
        let ca = self.at("ca.pem");
        vec![
            format!("--cert-file={certificate}"),
            format!("--key-file={key}"),
            format!("--trusted-ca-file={ca}"),
            "--client-cert-auth".to_owned(),
            format!("--peer-cert-file={certificate}"),
            format!("--peer-key-file={key}"),
            format!("--peer-trusted-ca-file={ca}"),
            "--peer-client-cert-auth".to_owned(),
            // The quickest that etcd takes.
            "--bcrypt-cost=4".to_owned(),
        ]
    }

    /// What a replica is told.
    pub(crate) fn of_replica(&self, node: Node) -> Vec<String> {
        vec![
            format!("etcd.ca_file={}", self.at("ca.pem")),
            format!("etcd.cert_file={}", self.at(&format!("{}.pem", node.name()))),
            format!("etcd.key_file={}", self.at(&format!("{}.key", node.name()))),
            format!("etcd.username={USER}"),
            format!("etcd.password_file={}", self.at("password")),
        ]
    }

    /// Turns authentication on, as `docs/operate.md` says. The members are led.
    pub(crate) async fn require(&self) {
        gateway::add_user("root", gateway::ROOT_PASSWORD, "root", None).await;
        gateway::add_user(USER, PASSWORD, USER, Some("/avouch/")).await;
        gateway::require_login().await;
    }
}
