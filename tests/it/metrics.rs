//! What the binary exports, after calls that move each number: against `docs/metrics.md`, the alert
//! rules and the dashboard, and against bounds on how many series there can be.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use avouch::metrics::agent::AgentMetrics;
use avouch::metrics::sidecar::SidecarMetrics;
use avouch::metrics::{
    Code, HashOutcome, KeyState, Level, Listener, Method, Outcome, Refusal, ReuseCause, Rotation,
    Swept, Verdict,
};
use avouch::pb::v1 as pb;
use avouch::pb::v1::revocation_service_client::RevocationServiceClient;
use avouch::pb::v1::revoke_request::Target;
use avouch::pb::v1::watch_revocations_response::Frame;
use prometheus_client::registry::Registry;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tonic::transport::Channel;

use crate::harness::{bearer, password_login};
use crate::process::{Addresses, Cast, PATIENCE, Process, channel, identity, ops};

/// One metric as it is exported: the name without `_total` and the like.
#[derive(Debug, Default)]
struct Exported {
    kind: String,
    help: String,
    labels: BTreeSet<String>,
    /// By the name of the sample and its labels, as they are written.
    samples: BTreeMap<String, f64>,
}

/// What a scrape answered, by the names that queries use.
#[derive(Debug)]
struct Scrape(BTreeMap<String, Exported>);

impl Scrape {
    fn parse(text: &str) -> Self {
        let mut families: BTreeMap<String, Exported> = BTreeMap::new();
        for line in text.lines() {
            let mut words = line.splitn(4, ' ');
            match (words.next(), words.next(), words.next(), words.next()) {
                (Some("#"), Some("HELP"), Some(name), Some(help)) => {
                    families.entry(name.to_owned()).or_default().help = help.to_owned();
                }
                (Some("#"), Some("TYPE"), Some(name), Some(kind)) => {
                    families.entry(name.to_owned()).or_default().kind = kind.to_owned();
                }
                (Some("#"), ..) => {}
                _ => {
                    let (series, value) = line.rsplit_once(' ').expect("a sample");
                    let name = series.split('{').next().expect("a name");
                    let family = families
                        .range_mut(..=name.to_owned())
                        .rev()
                        .find(|(family, _)| {
                            let end = name.strip_prefix(family.as_str());
                            end.is_some_and(|end| {
                                matches!(
                                    end,
                                    "" | "_total" | "_info" | "_bucket" | "_sum" | "_count"
                                )
                            })
                        })
                        .unwrap_or_else(|| panic!("{name} has no TYPE"))
                        .1;
                    family.labels.extend(labels(series).into_iter().map(|(label, _)| label));
                    let value = value.parse().expect("a number");
                    let before = family.samples.insert(series.to_owned(), value);
                    assert_eq!(before, None, "{series} is there twice");
                }
            }
        }
        // As queries name it.
        let renamed = families.into_iter().map(|(name, family)| match family.kind.as_str() {
            "counter" => (format!("{name}_total"), family),
            "info" => (format!("{name}_info"), family),
            _ => (name, family),
        });
        Self(renamed.collect())
    }

    fn value(&self, series: &str) -> f64 {
        let found = self.0.values().find_map(|family| family.samples.get(series));
        *found.unwrap_or_else(|| panic!("no {series} in {:#?}", self.0.keys()))
    }

    /// Every name that a query may use.
    fn names(&self) -> BTreeSet<String> {
        let mut names = BTreeSet::new();
        for (name, family) in &self.0 {
            if family.kind == "histogram" {
                names.extend(["_bucket", "_sum", "_count"].map(|end| format!("{name}{end}")));
            } else {
                names.insert(name.clone());
            }
        }
        names
    }
}

/// The labels of a series. No value of ours has a quote or a comma in it.
fn labels(series: &str) -> Vec<(String, String)> {
    let Some((_, inside)) = series.split_once('{') else { return Vec::new() };
    let inside = inside.strip_suffix('}').expect("the end of the labels");
    let pair = |pair: &str| {
        let (label, value) = pair.split_once('=').expect("a label");
        (label.to_owned(), value.trim_matches('"').to_owned())
    };
    inside.split(',').map(pair).collect()
}

/// Every label, on which metrics it has these values, and the values.
fn known_labels() -> Vec<(&'static str, &'static str, Vec<&'static str>)> {
    fn words<T: Copy, const N: usize>(
        all: [T; N],
        word: impl Fn(T) -> &'static str,
    ) -> Vec<&'static str> {
        all.into_iter().map(word).collect()
    }
    vec![
        ("method", "avouch_rpc_", words(Method::ALL, Method::as_str)),
        ("code", "avouch_rpc_", words(Code::ALL, Code::as_str)),
        ("outcome", "avouch_password_hashes_total", words(HashOutcome::ALL, HashOutcome::as_str)),
        ("kind", "avouch_refreshes_total", words(Rotation::ALL, Rotation::as_str)),
        ("cause", "avouch_refresh_reuses_total", words(ReuseCause::ALL, ReuseCause::as_str)),
        ("level", "avouch_revocations_total", words(Level::ALL, Level::as_str)),
        ("verdict", "avouch_introspections_total", words(Verdict::ALL, Verdict::as_str)),
        ("state", "avouch_signing_keys", words(KeyState::ALL, KeyState::as_str)),
        ("result", "avouch_sweeps_total", words(Outcome::ALL, Outcome::as_str)),
        ("kind", "avouch_swept_records_total", words(Swept::ALL, Swept::as_str)),
        ("listener", "avouch_connections", words(Listener::ALL, Listener::as_str)),
        ("listener", "avouch_tls_", words(Listener::ALL, Listener::as_str)),
        ("reason", "avouch_connections_refused_total", words(Refusal::ALL, Refusal::as_str)),
        ("version", "avouch_build_info", vec![env!("CARGO_PKG_VERSION")]),
    ]
}

/// The values that a label of a metric may have; none for a label that nobody knows.
fn values(metric: &str, label: &str) -> Option<Vec<&'static str>> {
    let known = known_labels().into_iter();
    known.filter(|(name, on, _)| *name == label && metric.starts_with(on)).map(|it| it.2).next()
}

/// How many series there can be, whatever callers send.
fn bound(scrape: &Scrape) -> usize {
    let each = scrape.0.iter().map(|(name, family)| {
        let labels = family.labels.iter().filter(|label| *label != "le");
        let sets: usize = labels.map(|l| values(name, l).map_or(1, |words| words.len())).product();
        let buckets: BTreeSet<_> =
            family.samples.keys().flat_map(|series| labels_named(series, "le")).collect();
        // A histogram has its sum and its count as well.
        sets * if buckets.is_empty() { 1 } else { buckets.len() + 2 }
    });
    each.sum()
}

fn labels_named(series: &str, label: &str) -> Option<String> {
    labels(series).into_iter().find(|(name, _)| name == label).map(|(_, value)| value)
}

/// The part of `docs/metrics.md` that says what is exported.
fn reference(scrape: &Scrape) -> String {
    let mut text = table(scrape);
    text.push_str("\n| label | of | values |\n|---|---|---|\n");
    for (label, on, words) in known_labels() {
        let on = if on.ends_with('_') || on == "avouch_connections" {
            format!("{on}…")
        } else {
            on.to_owned()
        };
        // Versions come and go.
        let words = if label == "version" { "the version".to_owned() } else { words.join(" ") };
        writeln!(text, "| `{label}` | `{on}` | {words} |").expect("written");
    }
    writeln!(text, "\nThere are never more than {} series.", bound(scrape)).expect("written");
    for (title, other) in [
        ("`avouch sidecar`", registered(|registry| _ = SidecarMetrics::register(registry))),
        ("`avouch node-agent`", registered(|registry| _ = AgentMetrics::register(registry))),
    ] {
        write!(text, "\n## {title}\n\n{}", table(&other)).expect("written");
    }
    text
}

/// What a program exports that registers this.
fn registered(register: impl Fn(&mut Registry)) -> Scrape {
    let mut registry = Registry::default();
    register(&mut registry);
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).expect("text");
    Scrape::parse(text.trim_end_matches("# EOF\n"))
}

fn table(scrape: &Scrape) -> String {
    let mut text = String::from("| metric | type | labels | what |\n|---|---|---|---|\n");
    for (name, family) in &scrape.0 {
        let labels: Vec<_> = family
            .labels
            .iter()
            .filter(|label| *label != "le")
            .map(|label| format!("`{label}`"))
            .collect();
        let (kind, labels, help) = (&family.kind, labels.join(" "), &family.help);
        let help = help.trim_end_matches('.');
        writeln!(text, "| `{name}` | {kind} | {labels} | {help} |").expect("written");
    }
    text
}

fn file(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn read(path: &str) -> String {
    std::fs::read_to_string(file(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Watches and acknowledges; tells when it is synced.
async fn watch(
    addresses: &Addresses,
    token: &str,
    name: &str,
) -> (JoinHandle<()>, oneshot::Receiver<()>) {
    let mut client = RevocationServiceClient::new(channel(addresses).await);
    let request =
        pb::WatchRevocationsRequest { subscriber_id: name.to_owned(), ..Default::default() };
    let stream = client.watch_revocations(bearer(request, token)).await.expect("a stream");
    let (mut stream, token) = (stream.into_inner(), token.to_owned());
    let (synced, ready) = oneshot::channel();
    let task = tokio::spawn(async move {
        let (mut synced, mut watch_id) = (Some(synced), String::new());
        while let Ok(Some(message)) = stream.message().await {
            match message.frame {
                Some(Frame::Start(start)) => watch_id = start.watch_id,
                Some(Frame::Synced(_)) => {
                    if let Some(synced) = synced.take() {
                        _ = synced.send(());
                    }
                }
                Some(Frame::AckRequest(ask)) => {
                    let ack = pb::AckRevocationsRequest {
                        watch_id: watch_id.clone(),
                        applied: ask.through,
                    };
                    client.ack_revocations(bearer(ack, &token)).await.expect("acknowledged");
                }
                _ => {}
            }
        }
    });
    (task, ready)
}

/// Calls a path that may not exist.
async fn call(channel: &Channel, path: &str) -> tonic::Code {
    let mut grpc = tonic::client::Grpc::new(channel.clone());
    grpc.ready().await.expect("ready");
    let codec = tonic_prost::ProstCodec::<(), ()>::default();
    let path = path.parse().expect("a path");
    match grpc.unary(tonic::Request::new(()), path, codec).await {
        Ok(_) => tonic::Code::Ok,
        Err(status) => status.code(),
    }
}

/// A login, a refresh, its retry, a reuse, a wrong password, an introspection, a revocation that two
/// watchers acknowledge, and calls to paths that do not exist.
async fn load(addresses: &Addresses, cast: &Cast) -> Vec<JoinHandle<()>> {
    let mut server = identity(addresses).await;
    let admin = pb::AuthenticateRequest {
        client: Some(cast.admin.clone()),
        audiences: vec!["avouch".to_owned()],
        grant: Some(pb::authenticate_request::Grant::ClientCredentials(
            pb::ClientCredentialsGrant {},
        )),
        ..Default::default()
    };
    let token = server.authenticate(admin).await.expect("a token").into_inner().tokens;
    let token = token.expect("tokens").access_token;
    let mut watchers = Vec::new();
    // Names that would make a series each, were they labels.
    for name in ["one\"} 1", "two\nthree"] {
        let (task, ready) = watch(addresses, &token, name).await;
        timeout(PATIENCE, ready).await.expect("in time").expect("synced");
        watchers.push(task);
    }

    let login = async || {
        let request = password_login(&cast.login, "ada", &cast.password);
        let answer = identity(addresses).await.authenticate(request).await.expect("in");
        answer.into_inner().tokens.expect("tokens")
    };
    let (first, second) = (login().await, login().await);
    let wrong = password_login(&cast.login, "ada", "not the password at all");
    server.authenticate(wrong).await.expect_err("a wrong password");
    let refresh = async |token: &str| {
        let request = pb::RefreshRequest {
            client: Some(cast.login.clone()),
            refresh_token: token.to_owned(),
            ..Default::default()
        };
        let answer = identity(addresses).await.refresh(request).await?;
        Ok::<_, tonic::Status>(answer.into_inner().tokens.expect("tokens").refresh_token)
    };
    let next = refresh(&first.refresh_token).await.expect("refreshed");
    assert_eq!(refresh(&first.refresh_token).await.expect("retried"), next);
    refresh(&next).await.expect("refreshed");
    refresh(&first.refresh_token).await.expect_err("reuse");
    let revoke = pb::RevokeRequest {
        client: Some(cast.admin.clone()),
        target: Some(Target::SessionId(second.session_id.clone())),
        wait: Some(prost_types::Duration { seconds: 30, nanos: 0 }),
        ..Default::default()
    };
    let revoked = timeout(PATIENCE, server.revoke(revoke)).await.expect("in time");
    let waited = revoked.expect("revoked").into_inner().wait_result.expect("a result");
    assert_eq!((waited.watchers_connected, waited.watchers_applied), (2, 2));
    let introspect = pb::IntrospectRequest {
        client: Some(cast.admin.clone()),
        token: second.access_token.clone(),
        ..Default::default()
    };
    let answer = server.introspect(introspect).await.expect("an answer").into_inner();
    assert!(!answer.active);
    let channel = channel(addresses).await;
    for n in 0..20 {
        let path = format!("/avouch.v1.IdentityService/MadeUp{n}");
        assert_eq!(call(&channel, &path).await, tonic::Code::Unimplemented);
    }
    watchers
}

struct Run {
    process: Process,
    addresses: Addresses,
    watchers: Vec<JoinHandle<()>>,
    _home: tempfile::TempDir,
}

async fn run() -> Run {
    let home = tempfile::tempdir().expect("a directory");
    let data = home.path().join("data");
    let mut process = Process::start(&data, &[]);
    let addresses = process.serving().await;
    let watchers = load(&addresses, &Cast::of(&data)).await;
    Run { process, addresses, watchers, _home: home }
}

async fn scrape(addresses: &Addresses) -> Scrape {
    let answer = ops(addresses, "/metrics").await;
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    assert!(head.contains("application/openmetrics-text; version=1.0.0"), "{head}");
    let body = body.strip_suffix("# EOF\n").unwrap_or_else(|| panic!("cut off: {body}"));
    Scrape::parse(body)
}

#[tokio::test]
async fn the_binary_exports_what_is_documented_and_no_series_by_callers() {
    let run = run().await;
    let scrape = scrape(&run.addresses).await;
    for (name, family) in &scrape.0 {
        assert!(!family.samples.is_empty(), "{name} has no sample");
        assert!(!family.help.is_empty() && !family.kind.is_empty(), "{name}: {family:?}");
        assert!(name.starts_with("avouch_") || name.starts_with("process_"), "{name}");
        for (label, value) in family.samples.keys().flat_map(|series| labels(series)) {
            let words = values(name, &label);
            let fine = label == "le" || words.is_some_and(|words| words.contains(&value.as_str()));
            assert!(fine, "{name} has {label}={value:?}");
        }
    }
    let text = read("docs/metrics.md");
    let found = text
        .split_once("<!-- exported -->\n")
        .and_then(|(_, rest)| rest.split_once("<!-- end -->"))
        .map(|(part, _)| part.trim());
    let expected = reference(&scrape);
    if found != Some(expected.trim()) {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("metrics.md");
        std::fs::write(&path, &expected).expect("written");
        panic!("docs/metrics.md is not what is exported; that is in {}", path.display());
    }
    run.process.kill().await;
}

#[tokio::test]
async fn each_number_is_what_happened() {
    let run = run().await;
    let scrape = scrape(&run.addresses).await;
    for (series, value) in [
        ("avouch_rpc_requests_total{method=\"Refresh\",code=\"OK\"}", 3.0),
        ("avouch_rpc_requests_total{method=\"Refresh\",code=\"UNAUTHENTICATED\"}", 1.0),
        ("avouch_rpc_requests_total{method=\"Authenticate\",code=\"OK\"}", 3.0),
        ("avouch_rpc_requests_total{method=\"Authenticate\",code=\"UNAUTHENTICATED\"}", 1.0),
        ("avouch_rpc_requests_total{method=\"other\",code=\"UNIMPLEMENTED\"}", 20.0),
        ("avouch_rpc_latency_seconds_count{method=\"Refresh\",code=\"OK\"}", 3.0),
        ("avouch_rpc_in_flight{method=\"WatchRevocations\"}", 2.0),
        ("avouch_rpc_in_flight{method=\"Refresh\"}", 0.0),
        ("avouch_refreshes_total{kind=\"rotated\"}", 2.0),
        ("avouch_refreshes_total{kind=\"retried\"}", 1.0),
        ("avouch_refresh_reuses_total{cause=\"replay\"}", 1.0),
        ("avouch_revocations_total{level=\"session\"}", 2.0),
        ("avouch_revocations_live", 2.0),
        ("avouch_sessions_opened_total", 2.0),
        ("avouch_introspections_total{verdict=\"revoked\"}", 1.0),
        ("avouch_signing_keys{state=\"active\"}", 1.0),
        ("avouch_watchers", 2.0),
        ("avouch_watcher_lag_revisions", 0.0),
        ("avouch_watchers_cut_total", 0.0),
        ("avouch_revocation_ack_seconds_count", 1.0),
        ("avouch_revocation_ack_timeouts_total", 0.0),
        ("avouch_audit_dropped_events_total", 0.0),
        ("avouch_panics_total", 0.0),
        ("avouch_store_low_space", 0.0),
        ("avouch_tls_certificate_not_after_timestamp_seconds{listener=\"grpc\"}", 0.0),
    ] {
        assert_eq!(scrape.value(series), value, "{series}");
    }
    let hashed = scrape.value("avouch_password_hashes_total{outcome=\"done\"}");
    for (series, at_least) in [
        // Each login hashes once; the clients and the user of the first start hash as well.
        ("avouch_password_hashes_total{outcome=\"done\"}", 3.0),
        ("avouch_password_hash_wait_seconds_count", hashed),
        ("avouch_password_hash_run_seconds_count", hashed),
        ("avouch_store_commits_total", 7.0),
        ("avouch_store_commit_seconds_count", 7.0),
        ("avouch_store_commit_seconds_sum", 0.000_01),
        ("avouch_store_group_changes_sum", 7.0),
        ("avouch_store_sync_seconds_count", 1.0),
        ("avouch_store_disk_bytes", 1.0),
        ("avouch_store_free_bytes", 1.0),
        // Two revocations to two watchers each.
        ("avouch_revocation_propagation_seconds_count", 4.0),
        ("avouch_watcher_frames_total", 8.0),
        ("avouch_feed_revision", 2.0),
        ("avouch_connections{listener=\"grpc\"}", 2.0),
        ("avouch_connections_accepted_total{listener=\"grpc\"}", 3.0),
        ("avouch_sweeps_total{result=\"ok\"}", 0.0),
        ("process_cpu_seconds_total", 0.001),
        ("process_resident_memory_bytes", 1_000_000.0),
        ("process_open_fds", 5.0),
        ("process_max_fds", 5.0),
        ("process_threads", 2.0),
        // Later than 2020.
        ("process_start_time_seconds", 1.577e9),
        ("avouch_feed_as_of_timestamp_seconds", 1.577e9),
    ] {
        let value = scrape.value(series);
        assert!(value >= at_least, "{series} is {value}");
    }
    // Streams that ended are counted, too.
    for watcher in run.watchers {
        watcher.abort();
    }
    let gone = async {
        while self::scrape(&run.addresses).await.value("avouch_watchers") > 0.0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, gone).await.expect("watchers leave");
    run.process.kill().await;
}

#[tokio::test]
async fn sessions_are_counted_when_the_server_starts() {
    let home = tempfile::tempdir().expect("a directory");
    let data = home.path().join("data");
    let mut process = Process::start(&data, &[]);
    let addresses = process.serving().await;
    let cast = Cast::of(&data);
    let login = || password_login(&cast.login, "ada", &cast.password);
    for _ in 0..3 {
        identity(&addresses).await.authenticate(login()).await.expect("in");
    }
    process.terminate();
    assert!(process.end().await.status.success());
    let mut process = Process::start(&data, &[]);
    let addresses = process.serving().await;
    let counted = async {
        loop {
            let count = scrape(&addresses).await.value("avouch_sessions");
            if !count.is_nan() {
                return count;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    assert_eq!(timeout(PATIENCE, counted).await.expect("counted"), 3.0);
    process.kill().await;
}

#[test]
fn every_method_of_the_protos_has_a_name_of_its_own() {
    let mut methods = 0;
    for entry in std::fs::read_dir(file("proto/avouch/v1")).expect("protos") {
        let text = std::fs::read_to_string(entry.expect("an entry").path()).expect("text");
        for line in text.lines().filter_map(|line| line.trim().strip_prefix("rpc ")) {
            let name = line.split('(').next().expect("a name").trim();
            let method = Method::from_path(&format!("/avouch.v1.Any/{name}"));
            assert_eq!(method.as_str(), name);
            methods += 1;
        }
    }
    assert_eq!(methods, Method::ALL.len() - 1, "and nothing but them and `other`");
}

/// The names of metrics in an expression.
fn named(expression: &str) -> BTreeSet<String> {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let words = expression.split(|c| !word(c));
    let ours = words.filter(|w| w.starts_with("avouch_") || w.starts_with("process_"));
    ours.map(str::to_owned).collect()
}

#[tokio::test]
async fn the_alerts_and_the_dashboard_ask_for_what_is_exported() {
    let run = run().await;
    let scrape = scrape(&run.addresses).await;
    run.process.kill().await;
    let mut names = scrape.names();
    names.extend(registered(|registry| _ = SidecarMetrics::register(registry)).names());
    names.extend(registered(|registry| _ = AgentMetrics::register(registry)).names());
    let dashboard: serde_json::Value =
        serde_json::from_str(&read("helm/avouch/files/dashboard.json")).expect("JSON");
    let mut queries = Vec::new();
    for panel in dashboard["panels"].as_array().expect("panels") {
        for target in panel["targets"].as_array().into_iter().flatten() {
            queries.push(target["expr"].as_str().expect("a query").to_owned());
        }
    }
    assert!(queries.len() >= 20, "{} queries", queries.len());
    let alerts = read("helm/avouch/files/alerts.yaml");
    let rules = alerts.lines().filter_map(|line| line.trim().strip_prefix("expr: "));
    let rules: Vec<_> = rules.map(str::to_owned).collect();
    assert_eq!(rules.len(), alerts.matches("- alert: ").count(), "one expression on a line each");
    assert!(rules.len() >= 10, "{} rules", rules.len());
    for query in queries.iter().chain(&rules) {
        let named = named(query);
        assert!(!named.is_empty() || query.contains("up{"), "{query} asks for nothing of ours");
        for name in named {
            assert!(names.contains(&name), "{query}: nothing exports {name}");
        }
        // Words that a label is held against must be words that it can have.
        for (label, word) in matched(query) {
            let known = known_labels().into_iter().filter(|it| it.0 == label);
            let words: Vec<_> = known.flat_map(|it| it.2).collect();
            let fine =
                words.is_empty() && ["job", "namespace", "instance"].contains(&label.as_str());
            let fine = fine || word.split('|').all(|word| words.contains(&word));
            assert!(fine || word.starts_with('$'), "{query}: {label} is never {word}");
        }
    }
}

/// What is of the store and not of one replica: each shows all of it, so their sum is too much.
const SHARED: [&str; 7] = [
    "avouch_feed_revision",
    "avouch_revocations_live",
    "avouch_revocations_total",
    "avouch_sessions",
    "avouch_signing_keys",
    "avouch_store_disk_bytes",
    "avouch_store_free_bytes",
];

/// For each place where `name` stands, the innermost aggregation around it and what follows; empty
/// where there is none.
fn aggregations<'a>(expression: &'a str, name: &str) -> Vec<&'a str> {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let operators = ["sum", "max", "min", "avg", "count", "histogram_quantile"];
    let whole = |text: &str, at: usize, length: usize| {
        !text[..at].ends_with(word) && !text[at + length..].starts_with(word)
    };
    let places = expression.match_indices(name).map(|(at, _)| at);
    let around = |at: usize| {
        let before = &expression[..at];
        let starts = operators.iter().filter_map(|operator| {
            let mut found = before.rmatch_indices(operator).map(|(at, _)| at);
            found.find(|at| whole(before, *at, operator.len()))
        });
        starts.max().map_or("", |start| &before[start..])
    };
    places.filter(|at| whole(expression, *at, name.len())).map(around).collect()
}

#[test]
fn nothing_sums_what_every_replica_shows_of_one_store() {
    let dashboard = read("helm/avouch/files/dashboard.json");
    let alerts = read("helm/avouch/files/alerts.yaml");
    let expressions = dashboard.lines().chain(alerts.lines()).filter(|line| line.contains("expr"));
    let mut seen = 0;
    for line in expressions {
        for how in SHARED.iter().flat_map(|name| aggregations(line, name)) {
            seen += 1;
            let apart = how.contains("instance") && how.contains("by (");
            assert!(!how.starts_with("sum") || apart, "summed over replicas: {line}");
        }
    }
    assert!(seen >= 6, "{seen}");
    for (expression, how) in [
        ("sum by (a) (max by (b) (rate(x_total{", vec!["max by (b) (rate("]),
        (
            "max(y) + sum(rate(x_total[5m])) + x_total",
            vec!["sum(rate(", "sum(rate(x_total[5m])) + "],
        ),
        ("summary(x_total)", vec![""]),
        ("sum(x_total_more)", vec![]),
    ] {
        assert_eq!(aggregations(expression, "x_total"), how, "{expression}");
    }
}

/// The labels and the words that an expression holds them against.
fn matched(expression: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for part in expression.split('{').skip(1) {
        let inside = part.split('}').next().unwrap_or_default();
        for matcher in inside.split(',').filter(|it| !it.trim().is_empty()) {
            let at = matcher.find(['=', '!']).expect("a matcher");
            let word = matcher[at..].trim_start_matches(['=', '!', '~']).trim();
            found.push((matcher[..at].trim().to_owned(), word.trim_matches('"').to_owned()));
        }
    }
    found
}

#[test]
fn the_reader_of_expressions_sees_names_and_words() {
    let query = r#"rate(avouch_a_total{job=~"$job",code!~"OK|NOT_FOUND"}[5m]) / process_x"#;
    let names: Vec<_> = named(query).into_iter().collect();
    assert_eq!(names, ["avouch_a_total", "process_x"]);
    let pair = |label: &str, word: &str| (label.to_owned(), word.to_owned());
    assert_eq!(matched(query), [pair("job", "$job"), pair("code", "OK|NOT_FOUND")]);
}
