//! Who is let in: TLS and logins.

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::server::try_open;
use super::*;

/// Asks etcd's JSON gateway.
async fn post(port: u16, path: &str, body: &str) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let request =
        format!("POST /v3/{path} HTTP/1.0\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.contains(" 200 "), "{path}: {answer}");
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_login_it_is_let_in_and_stays_so_when_the_token_is_forgotten() {
    let mut etcd = Etcd::start();
    drop(open(&etcd.settings_at(etcd.port, "/other/")).await);
    for (path, body) in [
        ("auth/user/add", r#"{"name":"root","password":"r"}"#),
        ("auth/role/add", r#"{"name":"root"}"#),
        ("auth/user/grant", r#"{"user":"root","role":"root"}"#),
        ("auth/user/add", r#"{"name":"avouch","password":"s3cret"}"#),
        ("auth/role/add", r#"{"name":"avouch"}"#),
        // From /a/ to /a0: "L2Ev" and "L2Ew".
        (
            "auth/role/grant",
            r#"{"name":"avouch","perm":{"permType":"READWRITE","key":"L2Ev","range_end":"L2Ew"}}"#,
        ),
        ("auth/user/grant", r#"{"user":"avouch","role":"avouch"}"#),
        ("auth/enable", "{}"),
    ] {
        post(etcd.port, path, body).await;
    }
    let files = tempfile::tempdir().unwrap();
    let password_file = files.path().join("password");
    std::fs::write(&password_file, "wrong\n").unwrap();
    let login = EtcdLogin { username: "avouch".to_owned(), password_file: password_file.clone() };
    let settings = etcd.settings_at(etcd.port, "/a/");
    let error = try_open(&settings).await.err().unwrap();
    assert!(matches!(error, OpenError::Unreachable { .. }), "{error}");
    let settings = EtcdSettings { login: Some(login), ..settings };
    let error = try_open(&settings).await.err().unwrap();
    assert!(error.to_string().contains("authentication failed"), "{error}");
    std::fs::write(&password_file, "s3cret\n").unwrap();
    let engine = open(&settings).await;
    engine.commit(count(b"c")).await.unwrap();
    // etcd forgets its tokens; the engine notices by itself.
    etcd.kill();
    etcd.run();
    let (answer, _) = engine.commit(count(b"c")).await.unwrap();
    assert_eq!(answer.downcast_ref::<u64>(), Some(&2));
    assert!(engine.prove_contact().await);
    // Another's records are not for it.
    let elsewhere = EtcdSettings { prefix: "/other/".to_owned(), ..settings };
    let error = try_open(&elsewhere).await.err().unwrap();
    assert!(error.to_string().contains("permission denied"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn over_tls_both_show_who_they_are() {
    let files = tempfile::tempdir().unwrap();
    let path = |name: &str| files.path().join(name);
    let ca_key = KeyPair::generate().unwrap();
    let mut ca = CertificateParams::new([]).unwrap();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca_certificate = ca.self_signed(&ca_key).unwrap();
    let issuer = Issuer::new(ca, ca_key);
    std::fs::write(path("ca.pem"), ca_certificate.pem()).unwrap();
    for name in ["etcd", "avouch"] {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &issuer).unwrap();
        std::fs::write(path(&format!("{name}.pem")), certificate.pem()).unwrap();
        std::fs::write(path(&format!("{name}.key")), key.serialize_pem()).unwrap();
    }
    let text = |name: &str| path(name).display().to_string();
    let etcd = Etcd::start_with(
        "https",
        &[
            "--cert-file",
            &text("etcd.pem"),
            "--key-file",
            &text("etcd.key"),
            "--trusted-ca-file",
            &text("ca.pem"),
            "--client-cert-auth",
        ],
    );
    let identity = Some((path("avouch.pem"), path("avouch.key")));
    let tls = EtcdTls { ca_file: path("ca.pem"), identity };
    let settings = EtcdSettings { tls: Some(tls.clone()), ..etcd.settings() };
    let engine = open(&settings).await;
    engine.commit(count(b"c")).await.unwrap();
    assert!(engine.prove_contact().await);

    let hasty = |tls| EtcdSettings { deadline: Duration::from_secs(1), tls, ..settings.clone() };
    for tls in [Some(EtcdTls { identity: None, ..tls.clone() }), None] {
        let error = try_open(&hasty(tls)).await.err().unwrap();
        assert!(matches!(error, OpenError::Unreachable { .. }), "{error}");
    }
    // Files that are not there yet when it is opened are read when they are.
    let missing = EtcdTls { ca_file: path("later.pem"), ..tls };
    let error = try_open(&hasty(Some(missing.clone()))).await.err().unwrap();
    assert!(error.to_string().contains("later.pem"), "{error}");
    std::fs::copy(path("ca.pem"), path("later.pem")).unwrap();
    open(&EtcdSettings { tls: Some(missing), ..settings }).await;
}
