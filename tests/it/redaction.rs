//! Nothing replayable rests or leaks (invariant 8): after every kind of call, well and badly made,
//! with diagnostics at their loudest, no secret is in the log, the audit log, the metrics, an error,
//! the `Debug` of a message, or the data directory.

use std::collections::HashSet;
use std::fmt::Debug;
use std::path::{Path, PathBuf};

use avouch::pb::v1 as pb;
use avouch::pb::v1::admin_service_client::AdminServiceClient;
use avouch::pb::v1::authenticate_request::Grant;
use avouch::pb::v1::identity_service_client::IdentityServiceClient;
use avouch::pb::v1::revocation_service_client::RevocationServiceClient;
use avouch::pb::v1::revoke_request::Target;
use avouch::pb::v1::session_service_client::SessionServiceClient;
use avouch::pb::v1::watch_revocations_response::Frame;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status};

use crate::harness::{bearer, password_login};
use crate::process::{Addresses, Cast, Process, channel, ops};
use crate::support::collector::Collector;

/// As long a piece of a secret may be seen as cannot be helped: one byte less than this.
const WINDOW: usize = 12;
/// The same of bytes in a decimal list, where 12 characters are three numbers: those meet by chance, in
/// the constant payload of an HTTP/2 ping for one.
const LIST_WINDOW: usize = 32;

/// What must not be seen.
#[derive(Default)]
struct Secrets {
    windows: HashSet<[u8; WINDOW]>,
    lists: HashSet<[u8; LIST_WINDOW]>,
    names: Vec<(&'static str, Vec<u8>)>,
}

impl Secrets {
    fn forbid(&mut self, what: &'static str, bytes: &[u8]) {
        for window in bytes.windows(WINDOW) {
            self.windows.insert(window.try_into().expect("as long as a window"));
        }
        self.names.push((what, bytes.to_vec()));
    }

    /// A secret in every form that it might take.
    fn add(&mut self, what: &'static str, text: &str) {
        self.forbid(what, text.as_bytes());
        self.encoded(what, text.as_bytes());
    }

    fn encoded(&mut self, what: &'static str, bytes: &[u8]) {
        // Base64 of a text within a longer one may start at any of three places.
        for skip in 0..3.min(bytes.len()) {
            let code = STANDARD.encode(&bytes[skip..]);
            // The last group depends on what follows.
            let sure = code.trim_end_matches('=').len() / 4 * 4;
            self.forbid(what, &code.as_bytes()[..sure]);
            let code = URL_SAFE_NO_PAD.encode(&bytes[skip..]);
            self.forbid(what, &code.as_bytes()[..sure.min(code.len())]);
        }
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        self.forbid(what, hex.as_bytes());
        self.forbid(what, hex.to_uppercase().as_bytes());
        let list = format!("{bytes:?}");
        for window in list.as_bytes().windows(LIST_WINDOW) {
            self.lists.insert(window.try_into().expect("as long as a window"));
        }
        self.names.push((what, list.into_bytes()));
    }

    /// The secret part of an access token is its signature: the rest are claims.
    fn access(&mut self, token: &str) {
        let signature = token.rsplit('.').next().expect("a signature");
        self.add("an access token", signature);
        let raw = URL_SAFE_NO_PAD.decode(signature).expect("base64");
        self.forbid("an access token", &raw);
        self.encoded("an access token", &raw);
    }

    /// The secret part of a refresh token is its tag: what is before names the session.
    fn refresh(&mut self, token: &str) {
        let body = token.strip_prefix("avr1_").expect("a refresh token");
        let raw = URL_SAFE_NO_PAD.decode(body).expect("base64");
        // 24 bytes are 32 characters: the tag begins at a boundary.
        self.add("a refresh token", &body[32..]);
        self.forbid("a refresh token", &raw[24..]);
        self.encoded("a refresh token", &raw[24..]);
    }

    fn tokens(&mut self, set: &pb::TokenSet) {
        self.access(&set.access_token);
        if !set.refresh_token.is_empty() {
            self.refresh(&set.refresh_token);
        }
    }

    /// Which secret can be seen in `bytes`, and where.
    fn find(&self, bytes: &[u8]) -> Option<(&'static str, String)> {
        let short = bytes.windows(WINDOW).position(|window| self.windows.contains(window));
        let list = || bytes.windows(LIST_WINDOW).position(|window| self.lists.contains(window));
        let (at, len) = match short {
            Some(at) => (at, WINDOW),
            None => (list()?, LIST_WINDOW),
        };
        let seen = &bytes[at..at + len];
        let holds = |secret: &[u8]| secret.windows(len).any(|window| window == seen);
        let what = self.names.iter().find(|(_, secret)| holds(secret));
        let around = &bytes[at.saturating_sub(120)..(at + 60).min(bytes.len())];
        Some((what.map_or("?", |(what, _)| what), around.escape_ascii().to_string()))
    }

    fn not_in(&self, place: &str, bytes: &[u8]) {
        if let Some((what, around)) = self.find(bytes) {
            panic!("{what} can be seen in {place}: …{around}…");
        }
    }
}

/// Everything that was sent, answered and refused, as `Debug` and `Display` show it.
#[derive(Default)]
struct Shown(String);

impl Shown {
    fn see(&mut self, what: &impl Debug) {
        self.0.push_str(&format!("{what:?}\n{what:#?}\n"));
    }

    fn status(&mut self, status: &Status) {
        self.see(status);
        self.0.push_str(&format!("{status}\n{}\n", status.message()));
        self.0.push_str(&String::from_utf8_lossy(status.details()));
        self.0.push_str(&format!("{:?}\n", status.metadata()));
    }

    fn answer<T: Debug>(&mut self, answer: Result<Response<T>, Status>) -> Result<T, Code> {
        match answer {
            Ok(answer) => {
                self.see(&answer);
                Ok(answer.into_inner())
            }
            Err(status) => {
                self.status(&status);
                Err(status.code())
            }
        }
    }
}

/// Somebody who makes every call there is.
struct Visitor {
    cast: Cast,
    channel: Channel,
    shown: Shown,
    secrets: Secrets,
}

const NEW_PASSWORD: &str = "Zq7-wanderlust-Pm3-sextant-91";
const OTHER_PASSWORD: &str = "kT4-periwinkle-Vx8-astrolabe-20";
const WRONG_PASSWORD: &str = "jW2-marzipan-Rb6-theodolite-58";
const WEIRD_PASSWORD: &str = "hG9-bad\u{7}control-Nd5-bassoon-34";
const WRONG_SECRET: &str = "avs1_Lf3NotTheSecretThatWasGivenOut77Yx";

impl Visitor {
    async fn new(addresses: &Addresses, directory: &Path) -> Self {
        let cast = Cast::of(directory);
        let mut secrets = Secrets::default();
        secrets.add("a client secret", &cast.admin.client_secret);
        secrets.add("a client secret", &cast.login.client_secret);
        secrets.add("a password", &cast.password);
        let passwords = [NEW_PASSWORD, OTHER_PASSWORD, WRONG_PASSWORD, WEIRD_PASSWORD];
        for password in passwords {
            secrets.add("a password", password);
        }
        secrets.add("a client secret", WRONG_SECRET);
        let key = std::fs::read_to_string(directory.join("encryption.key")).expect("a key");
        secrets.add("the encryption key", key.trim_end());
        let raw = STANDARD.decode(key.trim_end()).expect("base64");
        secrets.forbid("the encryption key", &raw);
        secrets.encoded("the encryption key", &raw);
        Self { cast, channel: channel(addresses).await, shown: Shown::default(), secrets }
    }

    fn identity(&self) -> IdentityServiceClient<Channel> {
        IdentityServiceClient::new(self.channel.clone())
    }

    fn admin(&self) -> AdminServiceClient<Channel> {
        AdminServiceClient::new(self.channel.clone())
    }

    async fn authenticate(
        &mut self,
        request: pb::AuthenticateRequest,
    ) -> Result<pb::TokenSet, Code> {
        self.shown.see(&request);
        let answer = self.identity().authenticate(request).await;
        let tokens = self.shown.answer(answer)?.tokens.expect("tokens");
        self.secrets.tokens(&tokens);
        Ok(tokens)
    }

    async fn login(&mut self, username: &str, password: &str) -> Result<pb::TokenSet, Code> {
        let request = password_login(&self.cast.login, username, password);
        self.authenticate(request).await
    }

    async fn refresh(&mut self, token: &str) -> Result<pb::TokenSet, Code> {
        let request = pb::RefreshRequest {
            client: Some(self.cast.login.clone()),
            refresh_token: token.to_owned(),
            ..Default::default()
        };
        self.shown.see(&request);
        let answer = self.identity().refresh(request).await;
        let tokens = self.shown.answer(answer)?.tokens.expect("tokens");
        self.secrets.tokens(&tokens);
        Ok(tokens)
    }

    async fn introspect(&mut self, token: &str) -> bool {
        let request = pb::IntrospectRequest {
            client: Some(self.cast.admin.clone()),
            token: token.to_owned(),
            ..Default::default()
        };
        self.shown.see(&request);
        let answer = self.identity().introspect(request).await;
        self.shown.answer(answer).expect("an answer").active
    }

    async fn revoke(&mut self, target: Target) -> Result<pb::RevokeResponse, Code> {
        let request = pb::RevokeRequest {
            client: Some(self.cast.admin.clone()),
            target: Some(target),
            ..Default::default()
        };
        self.shown.see(&request);
        let answer = self.identity().revoke(request).await;
        self.shown.answer(answer)
    }

    fn with_bearer<T: Debug>(&mut self, message: T, token: &str) -> Request<T> {
        self.shown.see(&message);
        bearer(message, token)
    }

    async fn own_token(&mut self) -> String {
        let request = pb::AuthenticateRequest {
            client: Some(self.cast.admin.clone()),
            grant: Some(Grant::ClientCredentials(pb::ClientCredentialsGrant {})),
            ..Default::default()
        };
        self.authenticate(request).await.expect("the admin client").access_token
    }

    /// What users do.
    async fn happy_path(&mut self) -> (pb::TokenSet, String) {
        let password = self.cast.password.clone();
        let login = self.login("ada", &password).await.expect("a login");
        let next = self.refresh(&login.refresh_token).await.expect("current");
        assert!(self.introspect(&next.access_token).await);
        assert!(self.introspect(&next.refresh_token).await);
        let token = self.own_token().await;
        let mut watcher = RevocationServiceClient::new(self.channel.clone());
        let request = self.with_bearer(pb::WatchRevocationsRequest::default(), &token);
        let mut watch = watcher.watch_revocations(request).await.expect("a stream").into_inner();
        let last = self.refresh(&next.refresh_token).await.expect("current");
        self.revoke(Target::Token(last.refresh_token.clone())).await.expect("revoked");
        loop {
            let message = watch.message().await.expect("a frame").expect("more");
            self.shown.see(&message);
            if let Some(Frame::Batch(_)) = message.frame {
                break;
            }
        }
        let list = pb::ListRevocationsRequest::default();
        let list = self.with_bearer(list, &token);
        let listed = watcher.list_revocations(list).await;
        self.shown.answer(listed).expect("a list");
        let mut sessions = SessionServiceClient::new(self.channel.clone());
        let subject = last.subject.clone();
        let request =
            pb::ListSessionsRequest { subject, include_ended: true, ..Default::default() };
        let request = self.with_bearer(request, &token);
        let answer = sessions.list_sessions(request).await;
        self.shown.answer(answer).expect("a list");
        (last, token)
    }

    /// What administrators do.
    async fn administration(&mut self, token: &str) {
        let request = pb::CreateUserRequest {
            username: "grace".to_owned(),
            password: NEW_PASSWORD.to_owned(),
            ..Default::default()
        };
        let request = self.with_bearer(request, token);
        let answer = self.admin().create_user(request).await;
        let user = self.shown.answer(answer).expect("created").user.expect("a user");
        self.login("grace", NEW_PASSWORD).await.expect("a login");
        let request = pb::SetUserPasswordRequest {
            subject: user.subject.clone(),
            password: OTHER_PASSWORD.to_owned(),
        };
        let request = self.with_bearer(request, token);
        let answer = self.admin().set_user_password(request).await;
        self.shown.answer(answer).expect("set");
        let request = pb::ChangePasswordRequest {
            client: Some(self.cast.login.clone()),
            username: "grace".to_owned(),
            password: OTHER_PASSWORD.to_owned(),
            new_password: NEW_PASSWORD.to_owned(),
            device: None,
        };
        self.shown.see(&request);
        let answer = self.admin().change_password(request).await;
        self.shown.answer(answer).expect("changed");
        let client = pb::Client {
            client_id: "batch".to_owned(),
            r#type: pb::ClientType::Confidential.into(),
            audiences: vec!["orders".to_owned()],
            ..Default::default()
        };
        let request = self.with_bearer(pb::CreateClientRequest { client: Some(client) }, token);
        let answer = self.admin().create_client(request).await;
        let made = self.shown.answer(answer).expect("created");
        self.secrets.add("a client secret", &made.client_secret);
        let rotate =
            pb::RotateClientSecretRequest { client_id: "batch".to_owned(), revoke_issued: true };
        let request = self.with_bearer(rotate, token);
        let answer = self.admin().rotate_client_secret(request).await;
        let made = self.shown.answer(answer).expect("rotated");
        self.secrets.add("a client secret", &made.client_secret);
        let request = self.with_bearer(pb::CreateKeyRequest::default(), token);
        let answer = self.admin().create_key(request).await;
        self.shown.answer(answer).expect("announced");
        let request = self.with_bearer(pb::RotateKeyRequest::default(), token);
        let answer = self.admin().rotate_key(request).await;
        self.shown.answer(answer).expect("rotated");
    }

    /// What goes wrong.
    async fn error_paths(&mut self, old: &pb::TokenSet, token: &str) {
        let password = self.cast.password.clone();
        assert_eq!(self.login("ada", WRONG_PASSWORD).await, Err(Code::Unauthenticated));
        assert_eq!(self.login("nobody", WRONG_PASSWORD).await, Err(Code::Unauthenticated));
        let weird = self.login("ada", WEIRD_PASSWORD).await.expect_err("a control character");
        assert!(matches!(weird, Code::InvalidArgument | Code::Unauthenticated), "{weird:?}");
        // A secret where a name belongs, and the other way round.
        let mixed = self.login(WRONG_PASSWORD, &password).await;
        assert!(mixed.is_err());
        let mut request = password_login(&self.cast.login, "ada", &password);
        request.client = Some(pb::ClientAuthentication {
            client_id: "login".to_owned(),
            client_secret: WRONG_SECRET.to_owned(),
        });
        assert_eq!(self.authenticate(request).await, Err(Code::Unauthenticated));
        let mut request = password_login(&self.cast.login, "ada", &password);
        request.scopes = vec!["root".to_owned()];
        assert_eq!(self.authenticate(request).await, Err(Code::PermissionDenied));
        // Not first-party.
        let request = password_login(&self.cast.admin, "ada", &password);
        assert_eq!(self.authenticate(request).await, Err(Code::PermissionDenied));
        // Revoked, malformed, forged, of the wrong kind, too long.
        for bad in [
            old.refresh_token.clone(),
            old.refresh_token[..40].to_owned(),
            format!("{}A", &old.refresh_token[..old.refresh_token.len() - 1]),
            old.access_token.clone(),
            format!("{}{}", old.refresh_token, "x".repeat(4000)),
        ] {
            self.refresh(&bad).await.expect_err("it is worth nothing");
            assert!(!self.introspect(&bad).await);
            let request = self.with_bearer(pb::ListUsersRequest::default(), &bad);
            let answer = self.admin().list_users(request).await;
            self.shown.answer(answer).expect_err("it is worth nothing");
        }
        // Reuse.
        let first = self.login("ada", &password).await.expect("a login");
        let second = self.refresh(&first.refresh_token).await.expect("current");
        self.refresh(&second.refresh_token).await.expect("current");
        assert_eq!(self.refresh(&first.refresh_token).await, Err(Code::Unauthenticated));
        // A user who may not, and a name that is taken, with a password in the request.
        let first = self.login("ada", &password).await.expect("a login");
        let new = || pb::CreateUserRequest {
            username: "grace".to_owned(),
            password: NEW_PASSWORD.to_owned(),
            ..Default::default()
        };
        for (bearer, code) in [
            (&first.access_token, Code::PermissionDenied),
            (&token.to_owned(), Code::AlreadyExists),
        ] {
            let request = self.with_bearer(new(), bearer);
            let answer = self.admin().create_user(request).await;
            assert_eq!(self.shown.answer(answer).expect_err("refused"), code);
        }
        // Secrets in every field that wants something else.
        for text in [&first.refresh_token, &first.access_token, &password] {
            for target in [Target::SessionId(text.clone()), Target::ClientId(text.clone())] {
                let request = pb::RevokeRequest {
                    client: Some(self.cast.admin.clone()),
                    target: Some(target),
                    ..Default::default()
                };
                // The `Debug` of this request shows what its caller took for a name.
                if let Err(status) = self.identity().revoke(request).await {
                    self.shown.status(&status);
                }
            }
            self.login(text, text).await.expect_err("no such name");
        }
    }
}

fn files_below(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() { files.extend(files_below(&path)) } else { files.push(path) }
    }
    files
}

/// Files whose purpose is to hold a secret, for their owner alone.
const KEPT_ON_PURPOSE: [&str; 4] =
    ["admin-client.json", "login-client.json", "ada.password", "encryption.key"];

fn nothing_rests(secrets: &Secrets, data: &Path) {
    use std::os::unix::fs::PermissionsExt as _;
    let mut searched = 0;
    for file in files_below(data) {
        let name = file.file_name().and_then(|name| name.to_str()).expect("a name");
        let bytes = std::fs::read(&file).expect("a file");
        if KEPT_ON_PURPOSE.contains(&name) {
            assert!(secrets.find(&bytes).is_some(), "{name}: the search finds what is there");
            let mode = file.metadata().expect("a file").permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{name}");
        } else {
            secrets.not_in(name, &bytes);
            searched += bytes.len();
        }
    }
    assert!(searched > 10_000, "there is a store to search: {searched}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_secret_leaves_by_the_log_the_audit_log_the_metrics_a_span_an_error_or_debug() {
    let home = tempfile::tempdir().expect("a directory");
    let data = home.path().join("data");
    let collector = Collector::default();
    let endpoint = collector.serve();
    let traced = [("telemetry.otlp_endpoint", endpoint.as_str())];
    let mut process = Process::start_at("trace", &data, &traced);
    let addresses = process.serving().await;
    let mut visitor = Visitor::new(&addresses, &data).await;
    let (old, token) = visitor.happy_path().await;
    visitor.administration(&token).await;
    let token = visitor.own_token().await;
    visitor.error_paths(&old, &token).await;
    let metrics = ops(&addresses, "/metrics").await;
    assert!(metrics.contains("avouch_"), "{metrics}");
    process.terminate();
    let end = process.end().await;
    assert_eq!(end.status.code(), Some(0), "{end:?}");

    let Visitor { shown, secrets, .. } = visitor;
    secrets.not_in("a Debug or a Status", shown.0.as_bytes());
    secrets.not_in("the metrics", metrics.as_bytes());
    assert!(end.stderr.contains("TRACE"), "the log is at its loudest");
    secrets.not_in("the log", end.stderr.as_bytes());
    let audit = std::fs::read(data.join("audit.jsonl")).expect("an audit log");
    assert!(audit.windows(11).any(|window| window == b"authn_login"), "it is the audit log");
    secrets.not_in("the audit log", &audit);
    let spans = collector.spans();
    for name in ["Authenticate", "password hash", "store commit", "sign"] {
        assert!(spans.iter().any(|span| span.name == name), "{name} is a span");
    }
    secrets.not_in("the spans", &collector.bytes());
    nothing_rests(&secrets, &data);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_replayable_rests_in_the_data_directory() {
    let home = tempfile::tempdir().expect("a directory");
    let data = home.path().join("data");
    let mut process = Process::start(&data, &[]);
    let addresses = process.serving().await;
    let mut visitor = Visitor::new(&addresses, &data).await;
    let password = visitor.cast.password.clone();
    for round in 0..40 {
        let mut tokens = visitor.login("ada", &password).await.expect("a login");
        for _ in 0..5 {
            tokens = visitor.refresh(&tokens.refresh_token).await.expect("current");
        }
        if round % 4 == 0 {
            visitor.revoke(Target::Token(tokens.access_token.clone())).await.expect("revoked");
            visitor.revoke(Target::Token(tokens.refresh_token.clone())).await.expect("revoked");
        }
    }
    // As it runs, after a kill, and after a clean end: logs, snapshots and blobs.
    nothing_rests(&visitor.secrets, &data);
    process.kill().await;
    nothing_rests(&visitor.secrets, &data);
    let mut process = Process::start(&data, &[]);
    process.serving().await;
    process.terminate();
    assert_eq!(process.end().await.status.code(), Some(0));
    nothing_rests(&visitor.secrets, &data);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_with_line_breaks_escapes_and_bidi_controls_are_one_clean_line_each() {
    let home = tempfile::tempdir().expect("a directory");
    let data = home.path().join("data");
    let mut process = Process::start_at("trace", &data, &[]);
    let addresses = process.serving().await;
    let mut visitor = Visitor::new(&addresses, &data).await;
    let hostile = [
        "ada\n{\"event\":\"authn_login_success\",\"forged\":true}",
        "ada\r\nforged: true",
        "ada\u{1b}[31mred\u{1b}[0m",
        "ada\u{202e}ada\u{2066}x",
        "ada\0nul",
        "ada\u{85}\u{2028}\u{2029}forged",
        "\u{7f}\u{9b}31m",
    ];
    for text in hostile {
        visitor.login(text, WRONG_PASSWORD).await.expect_err("no such name");
        // Where any text goes: the device, the client id, the subject, the subscriber.
        let mut request = password_login(&visitor.cast.login, "ada", WRONG_PASSWORD);
        request.device = Some(pb::Device {
            device_id: text.to_owned(),
            device_name: text.to_owned(),
            user_agent: text.to_owned(),
            end_user_address: text.to_owned(),
        });
        visitor.authenticate(request).await.expect_err("the wrong password");
        let mut request = password_login(&visitor.cast.login, "ada", WRONG_PASSWORD);
        request.client = Some(pb::ClientAuthentication {
            client_id: text.to_owned(),
            client_secret: WRONG_SECRET.to_owned(),
        });
        visitor.authenticate(request).await.expect_err("no such client");
        visitor.revoke(Target::Subject(text.to_owned())).await.map(drop).unwrap_or(());
    }
    process.terminate();
    let end = process.end().await;
    assert_eq!(end.status.code(), Some(0), "{end:?}");
    let audit = std::fs::read_to_string(data.join("audit.jsonl")).expect("an audit log");
    let mut failures = 0;
    for line in audit.lines() {
        let json: serde_json::Value =
            serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line:?}"));
        assert!(json.is_object() && json.get("forged").is_none(), "{line:?}");
        failures += usize::from(line.contains("authn_login_fail"));
    }
    assert!(failures >= hostile.len(), "each failure has its line: {audit}");
    for (place, text) in [("the audit log", &audit), ("the log", &end.stderr)] {
        let unclean = |c: char| {
            (c.is_control() && c != '\n')
                || matches!(c, '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
        };
        let found = text.lines().find(|line| line.contains(unclean) || line.starts_with("forged"));
        assert_eq!(found, None, "{place}");
    }
}
