//! etcd's own commands, over the JSON gateway that each member has: what the tests do to a cluster, and
//! not what avouch does with it.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::net::Node;
use crate::process::PATIENCE;

/// Where members answer these tests, in plaintext.
pub(crate) const PORT: u16 = 2378;

/// What the tests log in with, where a login is required.
pub(crate) const ROOT_PASSWORD: &str = "all of it";

/// The last login, once one is required. This process has one cluster.
static LOGIN: Mutex<Option<String>> = Mutex::new(None);

fn login() -> MutexGuard<'static, Option<String>> {
    LOGIN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Why a member did not do it.
pub(crate) type Refused = String;

/// Asks a member to do something, within a time; with a login, if one is required.
pub(crate) async fn ask(
    member: usize,
    path: &str,
    what: &Value,
    within: Duration,
) -> Result<Value, Refused> {
    let known = login().clone();
    let answer = say(member, path, what, known.as_deref(), within).await;
    let forgotten = |why: &String| why.contains("auth") || why.contains("user name is empty");
    if known.is_none() || !answer.as_ref().is_err_and(forgotten) {
        return answer;
    }
    let token = log_in(member).await?;
    *login() = Some(token.clone());
    say(member, path, what, Some(&token), within).await
}

async fn log_in(member: usize) -> Result<String, Refused> {
    let what = json!({ "name": "root", "password": ROOT_PASSWORD });
    let answer = say(member, "/v3/auth/authenticate", &what, None, SOON).await?;
    Ok(answer["token"].as_str().unwrap_or_default().to_owned())
}

/// Adds a user with a role of its own, for the keys under a prefix; as long as no login is required.
pub(crate) async fn add_user(name: &str, password: &str, role: &str, prefix: Option<&str>) {
    let mut steps = vec![
        ("user/add", json!({ "name": name, "password": password })),
        ("role/add", json!({ "name": role })),
        ("user/grant", json!({ "user": name, "role": role })),
    ];
    if let Some(prefix) = prefix {
        let keys = json!({
            "permType": "READWRITE",
            "key": STANDARD.encode(prefix),
            "range_end": STANDARD.encode(after(prefix)),
        });
        steps.push(("role/grant", json!({ "name": role, "perm": keys })));
    }
    for (path, what) in steps {
        ask(0, &format!("/v3/auth/{path}"), &what, SOON).await.expect("done");
    }
}

/// Requires a login from now on.
pub(crate) async fn require_login() {
    ask(0, "/v3/auth/enable", &json!({}), SOON).await.expect("enabled");
    let token = timeout(PATIENCE, async {
        loop {
            if let Ok(token) = log_in(0).await {
                return token;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    *login() = Some(token.await.expect("a login"));
}

/// The first key that does not begin so.
fn after(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    end
}

async fn say(
    member: usize,
    path: &str,
    what: &Value,
    token: Option<&str>,
    within: Duration,
) -> Result<Value, Refused> {
    let asked = timeout(within, async {
        let address = (Node::Member(member).address(), PORT);
        let mut stream = TcpStream::connect(address).await?;
        let body = what.to_string();
        let token = token.map_or_else(String::new, |it| format!("authorization: {it}\r\n"));
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: etcd\r\nconnection: close\r\n{token}content-length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes()).await?;
        stream.write_all(body.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok::<_, std::io::Error>(answer)
    });
    let answer = match asked.await {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => return Err(error.to_string()),
        Err(_) => return Err("no answer in time".to_owned()),
    };
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    // A long answer comes in chunks; those that matter here are one.
    let body = match body.split_once("\r\n") {
        Some((_, chunk)) if head.to_lowercase().contains("chunked") => chunk,
        _ => body,
    };
    let begin = body.find('{').unwrap_or(0);
    let end = body.rfind('}').map_or(body.len(), |end| end + 1);
    let value: Value =
        serde_json::from_str(&body[begin..end]).map_err(|error| format!("{error}: {head}"))?;
    match value.get("error").and_then(Value::as_str) {
        Some(error) => Err(error.to_owned()),
        None => Ok(value),
    }
}

const SOON: Duration = Duration::from_secs(3);

/// What a member says of itself.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Status {
    id: u64,
    leader: u64,
    /// The newest revision of its store.
    pub(crate) revision: u64,
}

impl Status {
    /// Whether it leads the others.
    pub(crate) const fn leads(&self) -> bool {
        self.id == self.leader
    }

    /// Whether it knows of a leader.
    pub(crate) const fn is_led(&self) -> bool {
        self.leader != 0
    }
}

fn number(value: &Value) -> u64 {
    value.as_str().and_then(|text| text.parse().ok()).unwrap_or(0)
}

pub(crate) async fn status(member: usize) -> Result<Status, Refused> {
    let value = ask(member, "/v3/maintenance/status", &json!({}), SOON).await?;
    Ok(Status {
        id: number(&value["header"]["member_id"]),
        leader: number(&value["leader"]),
        revision: number(&value["header"]["revision"]),
    })
}

/// A check of everything that a member holds as of a revision; 0 for its newest.
pub(crate) async fn hash(member: usize, revision: u64) -> Result<(u64, u64), Refused> {
    let what = json!({ "revision": revision.to_string() });
    let value = ask(member, "/v3/maintenance/hash", &what, SOON).await?;
    Ok((number(&value["header"]["revision"]), value["hash"].as_u64().unwrap_or(0)))
}

/// Who leads, as far as anybody says.
pub(crate) async fn leader() -> Option<usize> {
    for member in 0..3 {
        if status(member).await.is_ok_and(|status| status.leads()) {
            return Some(member);
        }
    }
    None
}

/// Puts a value beside those of avouch.
pub(crate) async fn put(member: usize, key: &str, value: &[u8]) -> Result<Value, Refused> {
    let what = json!({ "key": STANDARD.encode(key), "value": STANDARD.encode(value) });
    ask(member, "/v3/kv/put", &what, SOON).await
}

/// Removes everything whose key begins so.
pub(crate) async fn delete(member: usize, prefix: &str) -> Result<Value, Refused> {
    let end = STANDARD.encode(after(prefix));
    let what = json!({ "key": STANDARD.encode(prefix), "range_end": end });
    ask(member, "/v3/kv/deleterange", &what, Duration::from_secs(10)).await
}

/// Forgets everything before a revision.
pub(crate) async fn compact(member: usize, revision: u64) -> Result<Value, Refused> {
    let what = json!({ "revision": revision.to_string(), "physical": true });
    ask(member, "/v3/kv/compaction", &what, Duration::from_secs(30)).await
}

/// Gives back what is free in a database. The member does nothing else meanwhile.
pub(crate) async fn defragment(member: usize) -> Result<Value, Refused> {
    ask(member, "/v3/maintenance/defragment", &json!({}), Duration::from_secs(60)).await
}

/// The members that have run out of room.
async fn alarms(member: usize) -> Result<Vec<Value>, Refused> {
    let what = json!({ "action": "GET" });
    let value = ask(member, "/v3/maintenance/alarm", &what, SOON).await?;
    Ok(value["alarms"].as_array().cloned().unwrap_or_default())
}

/// Whether any member has run out of room.
pub(crate) async fn alarmed(member: usize) -> Result<bool, Refused> {
    alarms(member).await.map(|alarms| !alarms.is_empty())
}

/// Says that there is room again.
pub(crate) async fn disarm(member: usize) -> Result<(), Refused> {
    for alarm in alarms(member).await? {
        let mut what = json!({ "action": "DEACTIVATE" });
        for key in ["memberID", "alarm"] {
            what[key] = alarm[key].clone();
        }
        ask(member, "/v3/maintenance/alarm", &what, SOON).await?;
    }
    Ok(())
}
