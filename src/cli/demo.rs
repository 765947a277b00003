//! `demo`: the whole story in real processes over real sockets: a server, three subscribers, and
//! this process as the client. Every time it prints was measured.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};

use super::args::Global;
use super::connection::{Connection, authentication};
use super::failure::Failure;
use super::files::{
    ADDRESSES, ADMIN_CLIENT, Addresses, ClientCredentials, DEV_PASSWORD, DEV_USER, LOGIN_CLIENT,
};
use super::output::Output;
use crate::config::read_secret_file;
use crate::pb::v1::authenticate_request::Grant;
use crate::pb::v1::revoke_request::Target;
use crate::pb::v1::{
    AuthenticateRequest, ClientAuthentication, IntrospectRequest, PasswordGrant, RefreshRequest,
    RevocationReason, RevokeRequest, TokenSet,
};

const SUBSCRIBERS: usize = 3;
/// Nothing here takes longer unless it is broken.
const PATIENCE: Duration = Duration::from_secs(30);

/// See it work: a server, three subscribers and a client, in processes of their own.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  avouch demo")]
pub(super) struct Demo {
    /// Keep the server's data, its log and its audit log.
    #[arg(long)]
    keep: bool,
}

impl Demo {
    pub(super) async fn run(self, out: &mut Output) -> Result<(), Failure> {
        let dir = Scratch::new(self.keep)?;
        let result = story(&dir.0, out).await;
        if self.keep {
            out.text(&format!("\nKept: {}\n", dir.0.display()))?;
        } else if result.is_err() {
            let log = std::fs::read_to_string(dir.0.join("serve.log")).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            for line in &lines[lines.len().saturating_sub(10)..] {
                super::output::note(&format!("server: {}", super::table::printable(line)));
            }
        }
        result
    }
}

/// A directory that is gone with this.
struct Scratch(PathBuf, bool);

impl Scratch {
    fn new(keep: bool) -> Result<Self, Failure> {
        use std::os::unix::fs::DirBuilderExt as _;
        let mut taken = None;
        for attempt in 0..100 {
            let name = format!("avouch-demo-{}-{attempt}", std::process::id());
            let path = std::env::temp_dir().join(name);
            // Made anew or not at all, so nobody else has put anything in it.
            match std::fs::DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => return Ok(Self(path, keep)),
                Err(error) => taken = Some(Failure::File(path, error)),
            }
        }
        Err(taken.unwrap_or_else(|| Failure::Other("there is no temporary directory".into())))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if !self.1 {
            // What is left in the temporary directory harms nobody.
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }
}

async fn story(dir: &Path, out: &mut Output) -> Result<(), Failure> {
    let began = Instant::now();
    let data = dir.join("data");
    let mut server = start_server(dir, &data)?;
    let addresses = wait_for_addresses(&mut server, &data).await?;
    let url = format!("http://{}", addresses.grpc);
    out.text(&format!(
        "server        ready on {} after {}\n",
        addresses.grpc,
        ms(began.elapsed())
    ))?;

    let (lines, mut heard) = mpsc::channel(64);
    let mut subscribers = Vec::new();
    for number in 0..SUBSCRIBERS {
        subscribers.push(start_subscriber(number, &url, &data.join(ADMIN_CLIENT), &lines)?);
    }
    drop(lines);
    wait_for(&mut heard, |value| value["type"] == "synced").await?;
    out.text(&format!("subscribers   {SUBSCRIBERS} processes watch, each has the whole set\n\n"))?;

    let client = Caller::new(&url, &data).await?;
    let (first, took) = client.log_in().await?;
    let lifetime = first.expires_in_seconds;
    out.text(&format!(
        "login         {DEV_USER} is in after {}; the access token lives {lifetime} s\n",
        ms(took)
    ))?;
    client.expect_active(&first, true).await?;
    out.text("introspect    the access token is good\n")?;
    let (second, took) = client.refresh(&first).await?;
    out.text(&format!(
        "refresh       new tokens after {}; the old refresh token is spent\n",
        ms(took)
    ))?;
    let (again, _) = client.refresh(&first).await?;
    let same = again.refresh_token == second.refresh_token;
    check(same, "a retry did not get the same successor")?;
    out.text(
        "retry         an answer was lost: the same token again, the same successor, no harm\n",
    )?;
    let (third, _) = client.refresh(&second).await?;
    out.text("refresh       once more, with the successor\n\n")?;

    out.text("replay        somebody kept the first refresh token, and uses it now\n")?;
    let at = Instant::now();
    let refused = client.refresh(&first).await.is_err();
    let took = at.elapsed();
    check(refused, "the replayed refresh token was accepted")?;
    out.text(&format!("              refused after {}; the whole session is revoked\n", ms(took)))?;
    let arrivals = wait_for(&mut heard, |value| {
        value["type"] == "revocation" && value["session_id"] == first.session_id
    })
    .await?;
    report(out, at, took, &arrivals)?;
    client.expect_active(&third, false).await?;
    check(client.refresh(&third).await.is_err(), "a token of a dead session was accepted")?;
    out.text("              the thief's tokens and the victim's are worth nothing now\n\n")?;

    let (tokens, _) = client.log_in().await?;
    out.text(&format!("login         {DEV_USER} logs in again\n"))?;
    let at = Instant::now();
    client.revoke(&tokens).await?;
    let took = at.elapsed();
    out.text(&format!("revoke        logout, durable after {}\n", ms(took)))?;
    let arrivals = wait_for(&mut heard, |value| {
        value["type"] == "revocation" && value["session_id"] == tokens.session_id
    })
    .await?;
    report(out, at, took, &arrivals)?;
    client.expect_active(&tokens, false).await?;
    out.text("introspect    the access token is no longer good\n\n")?;
    out.text("Next: avouch serve --dev\n")
}

/// Prints when each subscriber knew, from the begin of the call and from its end. The time includes
/// the way from the subscriber's output to this process.
fn report(
    out: &mut Output,
    at: Instant,
    took: Duration,
    arrivals: &[(usize, Instant)],
) -> Result<(), Failure> {
    for (number, arrived) in arrivals {
        let since_call = arrived.saturating_duration_since(at);
        let since_answer = match since_call.checked_sub(took) {
            Some(after) => format!("{} after the answer", ms(after)),
            None => "before the answer was here".into(),
        };
        let name = number + 1;
        out.text(&format!(
            "              subscriber {name} knew {} after the call began, {since_answer}\n",
            ms(since_call)
        ))?;
    }
    Ok(())
}

fn ms(duration: Duration) -> String {
    format!("{:.1} ms", duration.as_secs_f64() * 1000.0)
}

fn check(good: bool, otherwise: &str) -> Result<(), Failure> {
    if good { Ok(()) } else { Err(Failure::Other(otherwise.into())) }
}

fn this_program() -> Result<Command, Failure> {
    let mut command = Command::new(std::env::current_exe()?);
    // What is set for other servers must not reach these.
    for (name, _) in
        std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("AVOUCH_"))
    {
        command.env_remove(name);
    }
    command.stdin(Stdio::null()).kill_on_drop(true);
    Ok(command)
}

fn start_server(dir: &Path, data: &Path) -> Result<Child, Failure> {
    let path = dir.join("serve.log");
    let log = std::fs::File::create(&path).map_err(|error| Failure::File(path, error))?;
    let any = "127.0.0.1:0";
    let child = this_program()?
        .args(["serve", "--dev", "--listen", any, "--public-listen", any, "--ops-listen", any])
        .arg("--data-dir")
        .arg(data)
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()?;
    Ok(child)
}

async fn wait_for_addresses(server: &mut Child, data: &Path) -> Result<Addresses, Failure> {
    let wait = async {
        while !data.join(ADDRESSES).exists() {
            if let Some(status) = server.try_wait()? {
                return Err(Failure::Other(format!("the server ended at once: {status}")));
            }
            sleep(Duration::from_millis(5)).await;
        }
        Ok(Addresses::read(data)?)
    };
    let late = |_| Failure::Other("the server did not become ready".into());
    timeout(PATIENCE, wait).await.map_err(late)?
}

/// A line of a subscriber: which one, when it came, and what it says.
struct Heard {
    subscriber: usize,
    at: Instant,
    value: Value,
}

fn start_subscriber(
    subscriber: usize,
    url: &str,
    credentials: &Path,
    lines: &mpsc::Sender<Heard>,
) -> Result<Child, Failure> {
    let mut child = this_program()?
        .args(["watch", "--json", "--server", url, "--name", &format!("demo-{subscriber}")])
        .arg("--credentials")
        .arg(credentials)
        .stdout(Stdio::piped())
        .spawn()?;
    let lines = lines.clone();
    if let Some(output) = child.stdout.take() {
        let mut output = BufReader::new(output).lines();
        tokio::spawn(async move {
            while let Ok(Some(line)) = output.next_line().await {
                let at = Instant::now();
                let value = serde_json::from_str(&line).unwrap_or_default();
                if lines.send(Heard { subscriber, at, value }).await.is_err() {
                    return;
                }
            }
        });
    }
    Ok(child)
}

/// Waits until each subscriber has said something that `wanted` recognises.
async fn wait_for(
    heard: &mut mpsc::Receiver<Heard>,
    wanted: impl Fn(&Value) -> bool,
) -> Result<Vec<(usize, Instant)>, Failure> {
    let mut arrivals: Vec<(usize, Instant)> = Vec::new();
    let wait = async {
        while arrivals.len() < SUBSCRIBERS {
            let Some(line) = heard.recv().await else {
                return Err(Failure::Other("the subscribers ended".into()));
            };
            let new = arrivals.iter().all(|(subscriber, _)| *subscriber != line.subscriber);
            if new && wanted(&line.value) {
                arrivals.push((line.subscriber, line.at));
            }
        }
        Ok(())
    };
    let late = |_| Failure::Other("a subscriber did not hear of it".into());
    timeout(PATIENCE, wait).await.map_err(late)??;
    arrivals.sort_by_key(|(subscriber, _)| *subscriber);
    Ok(arrivals)
}

/// The application that logs the user in, and a service that asks about its tokens.
struct Caller {
    connection: Connection,
    /// Has the right to introspect, so that it is told of dead tokens, too.
    service: Connection,
    client: ClientAuthentication,
    password: String,
}

impl Caller {
    async fn new(url: &str, data: &Path) -> Result<Self, Failure> {
        let global = Global {
            server: url.into(),
            credentials: Some(data.join(ADMIN_CLIENT)),
            token: None,
            ca_file: None,
            cert: None,
            key: None,
            json: false,
        };
        let credentials = ClientCredentials::read(&data.join(LOGIN_CLIENT))?;
        Ok(Self {
            connection: Connection::open(&global).await?,
            service: Connection::authenticated(&global).await?,
            client: authentication(&credentials),
            password: read_secret_file(&data.join(DEV_PASSWORD))?.into_exposed(),
        })
    }

    async fn log_in(&self) -> Result<(TokenSet, Duration), Failure> {
        let request = AuthenticateRequest {
            client: Some(self.client.clone()),
            grant: Some(Grant::Password(PasswordGrant {
                username: DEV_USER.into(),
                password: self.password.clone(),
            })),
            ..AuthenticateRequest::default()
        };
        let at = Instant::now();
        let mut api = self.connection.identity();
        let answer = api.authenticate(self.connection.request(request)).await?.into_inner();
        Ok((answer.tokens.unwrap_or_default(), at.elapsed()))
    }

    async fn refresh(&self, tokens: &TokenSet) -> Result<(TokenSet, Duration), Failure> {
        let request = RefreshRequest {
            client: Some(self.client.clone()),
            refresh_token: tokens.refresh_token.clone(),
            ..RefreshRequest::default()
        };
        let at = Instant::now();
        let mut api = self.connection.identity();
        let answer = api.refresh(self.connection.request(request)).await?.into_inner();
        Ok((answer.tokens.unwrap_or_default(), at.elapsed()))
    }

    async fn revoke(&self, tokens: &TokenSet) -> Result<(), Failure> {
        let request = RevokeRequest {
            client: Some(self.client.clone()),
            target: Some(Target::Token(tokens.refresh_token.clone())),
            reason: RevocationReason::Logout.into(),
            ..RevokeRequest::default()
        };
        self.connection.identity().revoke(self.connection.request(request)).await?;
        Ok(())
    }

    async fn expect_active(&self, tokens: &TokenSet, expected: bool) -> Result<(), Failure> {
        let request = IntrospectRequest {
            token: tokens.access_token.clone(),
            ..IntrospectRequest::default()
        };
        let mut api = self.service.identity();
        let answer = api.introspect(self.service.request(request)).await?.into_inner();
        check(answer.active == expected, "an introspection said otherwise than it must")
    }
}
