use std::path::Path;
use std::time::Duration;

use super::*;

fn pairs(list: &[(&str, &str)]) -> Vec<(String, String)> {
    list.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect()
}

fn sources(
    dir: &Path,
    toml: &str,
    environment: &[(&str, &str)],
    flags: &[(&str, &str)],
) -> Sources {
    let file = dir.join("avouch.toml");
    std::fs::write(&file, toml).unwrap();
    Sources {
        dev: false,
        file: Some(file),
        environment: pairs(environment),
        flags: flags
            .iter()
            .map(|(key, value)| (format!("--set {key}"), (*key).into(), (*value).into()))
            .collect(),
    }
}

const GOOD: &str = r#"
[issuer]
url = "https://id.example.com"
[store]
path = "/var/lib/avouch"
[keys]
encryption_key_file = "/etc/avouch/key"
"#;

fn texts(sources: &Sources) -> Vec<String> {
    load(sources).unwrap_err().0.iter().map(|problem| problem.text.clone()).collect()
}

#[test]
fn a_flag_goes_over_the_environment_which_goes_over_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let toml = format!(
        "{GOOD}\n[tokens]\naccess_lifetime = \"2m\"\nretry_window = \"1s\"\nsession_idle_lifetime = \"1d\"\n"
    );
    let config = load(&sources(
        dir.path(),
        &toml,
        &[("AVOUCH_TOKENS_ACCESS_LIFETIME", "3m"), ("AVOUCH_TOKENS_RETRY_WINDOW", "3s")],
        &[("tokens.access_lifetime", "4m")],
    ))
    .unwrap();
    assert_eq!(config.tokens.access_lifetime, Duration::from_secs(240));
    assert_eq!(config.tokens.retry_window, Duration::from_secs(3));
    assert_eq!(config.tokens.session_idle_lifetime, Duration::from_secs(86_400));
    assert_eq!(config.tokens.session_absolute_lifetime, Duration::from_secs(30 * 86_400));
}

#[test]
fn all_mistakes_are_reported_at_once_with_where_and_what_was_meant() {
    let dir = tempfile::tempdir().unwrap();
    let toml = "[server]\nlisten = \"nowhere\"\nlisten_public = \"x\"\n[sever]\nlisten = 1\n[tokens]\nacces_lifetime = \"5m\"\n[limits]\nbacklog = [1]\n";
    let errors = load(&sources(
        dir.path(),
        toml,
        &[("AVOUCH_STORE_PATHS", "/x"), ("AVOUCH_SOTRE_PATH", "/x"), ("HOME", "/")],
        &[("log.format", "xml"), ("nonsense", "1")],
    ))
    .unwrap_err()
    .to_string();
    for part in [
        "avouch.toml:2: server.listen must be an IP address and a port",
        "avouch.toml:3: server.listen_public is not known",
        "avouch.toml:4: section [sever] is not known; did you mean [server]?",
        "avouch.toml:7: tokens.acces_lifetime is not known; did you mean tokens.access_lifetime?",
        "avouch.toml:9: limits.backlog must be one string",
        "AVOUCH_STORE_PATHS: store.paths is not known; did you mean store.path?",
        "AVOUCH_SOTRE_PATH: is not known; did you mean AVOUCH_STORE_PATH?",
        "--set log.format: log.format must be one of: human, json",
        "--set nonsense: must be SECTION.KEY=VALUE",
        "issuer.url is missing",
        "store.path is missing",
        "keys.encryption_key_file is missing",
    ] {
        assert!(errors.contains(part), "{part:?} not in\n{errors}");
    }
    assert!(errors.starts_with("the configuration has 12 mistakes:"), "{errors}");
}

#[test]
fn a_file_that_is_no_toml_is_one_mistake_with_its_line() {
    let dir = tempfile::tempdir().unwrap();
    let errors = load(&sources(dir.path(), "[server]\nlisten = \n", &[], &[])).unwrap_err();
    assert!(errors.0[0].origin.ends_with("avouch.toml:2"), "{errors}");
    assert_eq!(errors.0.len(), 1, "{errors}");
    let absent = Sources { file: Some(dir.path().join("absent.toml")), ..Sources::default() };
    let errors = load(&absent).unwrap_err();
    assert!(errors.0[0].text.starts_with("cannot be read"), "{errors}");
    assert_eq!(errors.0.len(), 1, "{errors}");
}

#[test]
fn every_lifetime_out_of_its_bounds_is_reported() {
    let dir = tempfile::tempdir().unwrap();
    let flags = [
        ("tokens.access_lifetime", "30s"),
        ("tokens.session_absolute_lifetime", "401d"),
        ("tokens.session_idle_lifetime", "402d"),
        ("tokens.retry_window", "301s"),
    ];
    let texts = texts(&sources(dir.path(), GOOD, &[], &flags));
    assert_eq!(texts.len(), flags.len(), "{texts:?}");
    for (key, _) in flags {
        assert!(texts.iter().any(|text| text.starts_with(key)), "{key}: {texts:?}");
    }
}

#[test]
fn a_listener_beyond_loopback_needs_tls_or_a_mesh() {
    let dir = tempfile::tempdir().unwrap();
    let load = |flags: &[(&str, &str)]| texts_or_none(&sources(dir.path(), GOOD, &[], flags));
    let refused = load(&[("server.listen", "0.0.0.0:7700")]);
    assert!(refused[0].contains("--plaintext-behind-mesh"), "{refused:?}");
    assert_eq!(load(&[("server.public_listen", "[::]:7701")]).len(), 1);
    assert!(load(&[("server.listen", "[::1]:7700")]).is_empty());
    assert!(load(&[("server.ops_listen", "0.0.0.0:7702")]).is_empty());
    let mesh = ("server.plaintext_mesh", "true");
    assert!(load(&[("server.listen", "0.0.0.0:7700"), mesh]).is_empty());
    let tls = [("tls.cert_file", "c"), ("tls.key_file", "k")];
    assert!(load(&[("server.listen", "0.0.0.0:7700"), tls[0], tls[1]]).is_empty());
}

#[test]
fn events_go_to_a_collector_that_is_named_and_not_in_plaintext_beyond_loopback() {
    let dir = tempfile::tempdir().unwrap();
    let load = |flags: &[(&str, &str)]| texts_or_none(&sources(dir.path(), GOOD, &[], flags));
    let otlp = ("audit.output", "otlp");
    let ca = ("audit.otlp_ca_file", "c");
    let to = |url| ("audit.otlp_endpoint", url);
    for (flags, part) in [
        (vec![otlp], "is missing"),
        (vec![to("http://127.0.0.1:4317")], "audit.otlp_endpoint has no effect"),
        (vec![ca], "audit.otlp_ca_file has no effect"),
        (vec![otlp, to("https://collector:4317")], "name the CA"),
        (vec![otlp, to("http://127.0.0.1:4317"), ca], "audit.otlp_ca_file has no effect"),
        (vec![otlp, to("http://collector:4317")], "beyond loopback and plaintext"),
        (vec![otlp, to("collector:4317")], "must be https://"),
        (vec![otlp, to("http://127.0.0.1:4317/v1/logs")], "must be https://"),
    ] {
        let texts = load(&flags);
        assert!(texts.len() == 1 && texts[0].contains(part), "{flags:?}: {texts:?}");
    }
    for flags in [
        vec![otlp, to("http://localhost:4317")],
        vec![otlp, to("http://[::1]:4317/")],
        vec![otlp, to("https://collector:4317"), ca],
        vec![otlp, to("http://collector:4317"), ("server.plaintext_mesh", "true")],
    ] {
        assert!(load(&flags).is_empty(), "{flags:?}");
    }
}

fn texts_or_none(sources: &Sources) -> Vec<String> {
    load(sources)
        .err()
        .map(|errors| errors.0.into_iter().map(|p| p.text).collect())
        .unwrap_or_default()
}

#[test]
fn dev_needs_nothing_and_serves_this_machine_only() {
    let config = load(&Sources { dev: true, ..Sources::default() }).unwrap();
    assert!(config.server.reflection);
    assert_eq!(config.data_dir(), Path::new("./avouch-data"));
    assert_eq!(config.audit_output(), AuditOutput::File("./avouch-data/audit.jsonl".into()));
    let flags = vec![("--listen".into(), "server.listen".into(), "0.0.0.0:1".into())];
    let refused = texts(&Sources { dev: true, flags, ..Sources::default() });
    assert!(refused[0].contains("--dev serves this machine only"));
}

#[test]
fn what_belongs_together_is_checked_together() {
    let dir = tempfile::tempdir().unwrap();
    for (flags, part) in [
        (vec![("tls.cert_file", "c")], "go together"),
        (vec![("tls.client_ca_file", "c")], "has no effect"),
        (vec![("issuer.url", "http://id.example.com")], "https://"),
        (vec![("issuer.url", "https://id.example.com/")], "no slash"),
        (vec![("issuer.url", "id.example.com")], "must be a URL"),
        (vec![("tokens.access_lifetime", "2h")], "tokens.access_lifetime must be 1 min to 1 h"),
        (vec![("throttle.max_failures", "101")], "1 to 100"),
        (vec![("server.public_listen", "127.0.0.1:7700")], "are both"),
        (vec![("limits.max_watchers", "0")], "must not be 0"),
        (vec![("keys.rotate_every", "1m")], "longer than keys.announce_for"),
    ] {
        let texts = texts(&sources(dir.path(), GOOD, &[], &flags));
        assert!(texts.iter().any(|text| text.contains(part)), "{part}: {texts:?}");
    }
}

#[test]
fn kubernetes_service_variables_are_not_settings() {
    let dir = tempfile::tempdir().unwrap();
    let variables = [
        ("AVOUCH_SERVICE_HOST", "10.0.0.1"),
        ("AVOUCH_SERVICE_PORT_GRPC", "7700"),
        ("AVOUCH_PORT", "tcp://10.0.0.1:7700"),
        ("AVOUCH_SERVER_PORT_7700_TCP_ADDR", "10.0.0.1"),
        ("AVOUCH_SERVER", "http://127.0.0.1:7700"),
    ];
    load(&sources(dir.path(), GOOD, &variables, &[])).unwrap();
}

#[test]
fn grants_name_a_certificate_and_a_right() {
    let dir = tempfile::tempdir().unwrap();
    let tls = "[tls]\ncert_file = \"c\"\nkey_file = \"k\"\nclient_ca_file = \"a\"\nclient_auth = \"required\"\n";
    let good = format!(
        "{GOOD}{tls}[[grant]]\ncertificate_name = \"spiffe://x/y\"\nright = \"watch\"\naudience = \"orders\"\n"
    );
    let config = load(&sources(dir.path(), &good, &[], &[])).unwrap();
    assert_eq!(&*config.grants[0].certificate_name, "spiffe://x/y");
    assert_eq!(config.grants[0].grant.audience.as_deref(), Some("orders"));
    let bad = format!("{GOOD}{tls}[[grant]]\nrigth = \"watch\"\nclient = \"a b\"\n");
    let texts = texts(&sources(dir.path(), &bad, &[], &[]));
    assert_eq!(texts.len(), 4, "{texts:?}");
    assert!(texts.iter().any(|text| text.contains("did you mean right?")));
}

#[test]
fn the_reference_is_a_file_that_means_the_defaults() {
    let text = reference();
    let keys = text.lines().filter(|line| line.starts_with('#') && !line.starts_with("# "));
    let toml: String = text
        .lines()
        .take_while(|line| !line.starts_with("#[[grant]]"))
        .map(|line| {
            let set = line.strip_prefix('#').filter(|rest| !rest.starts_with(' '));
            format!("{}\n", set.unwrap_or(line))
        })
        .filter(|line| !line.contains("= \"\""))
        .collect();
    assert!(keys.count() > 60);
    let dir = tempfile::tempdir().unwrap();
    let flags = [
        ("issuer.url", "https://id.example.com"),
        ("store.path", "/var/lib/avouch"),
        ("keys.encryption_key_file", "/etc/avouch/key"),
    ];
    let from_reference = load(&sources(dir.path(), &toml, &[], &flags)).unwrap();
    assert_eq!(from_reference, load(&sources(dir.path(), "", &[], &flags)).unwrap());
}

/// A configuration that is good once it says where the state is.
const WITHOUT_STORE: [(&str, &str); 2] =
    [("issuer.url", "https://id.example.com"), ("keys.encryption_key_file", "/etc/avouch/key")];

#[test]
fn the_state_is_in_a_directory_or_in_etcd() {
    let dir = tempfile::tempdir().unwrap();
    let texts = |flags: &[(&str, &str)]| {
        texts_or_none(&sources(dir.path(), "", &[], &[&WITHOUT_STORE, flags].concat()))
    };
    let neither = texts(&[]);
    assert_eq!(neither.len(), 1, "{neither:?}");
    assert!(neither[0].contains("store.path is missing") && neither[0].contains("store.url"));
    let url = ("store.url", "etcd://127.0.0.1:2379,[::1]:2379/avouch");
    assert!(texts(&[url]).is_empty());
    let both = texts(&[url, ("store.path", "data")]);
    assert!(both.len() == 1 && both[0].contains("both set"), "{both:?}");
    let bad = texts(&[("store.url", "etcd://root:hunter2@127.0.0.1:2379")]);
    assert!(bad[0].starts_with("store.url must hold no user"), "{bad:?}");
    assert!(!bad.concat().contains("hunter2"));
    let flags = vec![("--store".into(), "store.url".into(), url.1.into())];
    let dev = load(&Sources { dev: true, flags, ..Sources::default() }).unwrap_err().to_string();
    assert!(dev.contains("--dev keeps its state in a directory"), "{dev}");
    let flags = vec![("--set".into(), "server.admin_client_file".into(), "admin.json".into())];
    let dev = load(&Sources { dev: true, flags, ..Sources::default() }).unwrap_err().to_string();
    assert!(dev.contains("--dev makes its own credentials"), "{dev}");
    let idle = texts(&[("store.path", "data"), ("server.files_dir", "files")]);
    assert!(idle.len() == 1 && idle[0].starts_with("server.files_dir has no effect"), "{idle:?}");
}

#[test]
fn what_is_said_about_etcd_fits_together() {
    let dir = tempfile::tempdir().unwrap();
    let (plain, tls, away) = (
        ("store.url", "etcd://127.0.0.1:2379/p"),
        ("store.url", "etcds://etcd-0:2379/p"),
        ("store.url", "etcd://etcd-0:2379,127.0.0.1:2379/p"),
    );
    let (ca, cert, key) = (("etcd.ca_file", "a"), ("etcd.cert_file", "c"), ("etcd.key_file", "k"));
    let (user, password) = (("etcd.username", "avouch"), ("etcd.password_file", "p"));
    let mesh = ("etcd.plaintext_behind_mesh", "true");
    for (flags, part) in [
        (vec![plain, ca], "etcd.ca_file has no effect"),
        (vec![plain, cert, key], "etcd.key_file has no effect"),
        (vec![away], "which is plaintext: write etcds://"),
        (vec![tls], "etcd.ca_file is missing"),
        (vec![tls, ca, mesh], "etcd.plaintext_behind_mesh has no effect"),
        (vec![tls, ca, cert], "etcd.cert_file and etcd.key_file go together"),
        (vec![tls, ca, key], "etcd.cert_file and etcd.key_file go together"),
        (vec![plain, user], "etcd.username and etcd.password_file go together"),
        (vec![plain, password], "etcd.username and etcd.password_file go together"),
        (vec![plain, ("etcd.request_timeout", "99ms")], "at least 100ms"),
        (vec![plain, ("etcd.request_timeout", "10s")], "shorter than limits.request_timeout"),
        (vec![("store.path", "data"), user, password], "[etcd] has no effect: set store.url"),
    ] {
        let texts = texts(&sources(dir.path(), "", &[], &[&WITHOUT_STORE, &flags[..]].concat()));
        assert!(texts.iter().any(|text| text.contains(part)), "{part}: {texts:?}");
    }
    for flags in [
        vec![away, mesh],
        vec![tls, ca],
        vec![tls, ca, cert, key, user, password],
        vec![plain, user, password, ("etcd.request_timeout", "100ms")],
    ] {
        let flags = [&WITHOUT_STORE, &flags[..]].concat();
        assert_eq!(texts_or_none(&sources(dir.path(), "", &[], &flags)), [""; 0]);
    }
}

#[test]
fn the_files_of_etcd_are_looked_at_like_the_others() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let exposed = path("password");
    std::fs::write(&exposed, "hunter2").unwrap();
    std::fs::set_permissions(&exposed, std::fs::Permissions::from_mode(0o644)).unwrap();
    let environment = [
        ("AVOUCH_STORE_URL", "etcds://etcd-0:2379/p"),
        ("AVOUCH_ETCD_CA_FILE", &path("ca.pem")),
        ("AVOUCH_ETCD_CERT_FILE", &path("cert.pem")),
        ("AVOUCH_ETCD_KEY_FILE", &path("key.pem")),
        ("AVOUCH_ETCD_USERNAME", "avouch"),
        ("AVOUCH_ETCD_PASSWORD_FILE", &exposed),
        ("AVOUCH_SERVER_ADMIN_CLIENT_FILE", &path("admin.json")),
    ];
    let config = load(&sources(dir.path(), "", &environment, &WITHOUT_STORE)).unwrap();
    assert!(config.summary().contains("state in etcds://etcd-0:2379/p;"), "{}", config.summary());
    let errors = check_files(&config).unwrap_err().to_string();
    for part in [
        "server.admin_client_file: ",
        "etcd.ca_file: ",
        "etcd.cert_file: ",
        "etcd.key_file: ",
        "etcd.password_file: ",
        "run chmod 600",
    ] {
        assert!(errors.contains(part), "{part}: {errors}");
    }
    assert!(!errors.contains("hunter2"));
}
