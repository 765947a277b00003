//! The end of a run: everything is healed and nobody calls any more. What is there now is held against
//! what was answered.

use std::sync::Arc;
use std::time::Duration;

use avouch::client::watch::SharedView;
use avouch::domain::clock::{Clock as _, SystemClock, Timestamp};
use avouch::domain::ids::{SessionId, TokenId};
use avouch::domain::view::{Digest, SESSION_BUCKET_SECS, TOKEN_BUCKET_SECS, View, bucket_end};
use avouch::pb::v1 as pb;
use avouch::pb::v1::revocation_service_client::RevocationServiceClient;
use tokio::time::{Instant, sleep};

use crate::calls::{Caller, Shared, shown};
use crate::cast::{bearer, with};
use crate::dice::Dice;
use crate::follow::Checking;
use crate::history::{Answer, End, Seen};
use crate::process::PATIENCE;

/// How many calls of the finale are under way at once.
const AT_ONCE: usize = 16;

/// Looks at everything. What is wrong is for the checker to find.
pub(crate) async fn look(
    shared: &Arc<Shared>,
    views: &[SharedView],
    verifiers: &[Arc<Checking>],
    dice: &Dice,
) -> End {
    let caller = Caller::new("finale", shared);
    let head = head(&caller, dice).await;
    sessions(&caller, verifiers, head).await;
    // What was found dead by its refresh token is revoked by now, if it was not before.
    let head = head_again(&caller, dice).await.max(head);
    until_all_are_at(shared, head).await;
    let token = bearer(caller.channel(0), &shared.cast.watcher).await;
    let mut end = End { head, ..End::default() };
    // A call that nobody waits for any more may still come to its end: then they agree a little later.
    let began = Instant::now();
    loop {
        end.lists.clear();
        let mut own = Vec::new();
        end.at = shared.recorder.now();
        for replica in 0..shared.replicas {
            let listed = list(&caller, replica, &token).await;
            own.push(view_of(&listed));
            let as_shown = |it: &pb::Revocation| shown(&shared.recorder, it);
            end.lists.push(listed.iter().map(as_shown).collect());
        }
        let after = SystemClock::default().now().after(Duration::from_secs(5));
        let first = own[0].digest(after);
        end.whole = views.iter().map(|view| same(view.load().digest(after), first)).collect();
        let equal = own.iter().all(|view| same(view.digest(after), first));
        if (equal && end.whole.iter().all(|whole| *whole)) || began.elapsed() > PATIENCE / 3 {
            return end;
        }
        sleep(Duration::from_millis(500)).await;
    }
}

fn same(one: Digest, other: Digest) -> bool {
    one == other
}

/// A revocation of now: whoever has seen it has seen everything before.
async fn head(caller: &Caller, dice: &Dice) -> u64 {
    let app = caller.shared.cast.patient.clone();
    let began = Instant::now();
    while began.elapsed() < PATIENCE {
        let replica = caller.any(dice);
        if let Some(tokens) = caller.login(replica, 0, &app).await
            && let Answer::Revoked { cursor, .. } = caller.revoke_session(replica, &tokens).await
        {
            return cursor;
        }
    }
    panic!("nothing can be revoked, though nothing fails any more");
}

async fn head_again(caller: &Caller, dice: &Dice) -> u64 {
    head(caller, dice).await
}

/// Asks about the newest tokens of every session, at all replicas and verifiers, and then presents
/// its refresh token.
async fn sessions(caller: &Caller, verifiers: &[Arc<Checking>], head: u64) {
    let shared = Arc::clone(&caller.shared);
    // Of the sessions of a long run, those that were opened last, and as many of the others.
    let mut all = shared.pool.latest();
    all.sort_by_key(|(tokens, _)| std::cmp::Reverse(tokens.session));
    let every = (all.len() / 2_000).max(1);
    let chosen = all.into_iter().enumerate().filter(|(n, _)| *n < 2_000 || n % every == 0);
    let limit = Arc::new(tokio::sync::Semaphore::new(AT_ONCE));
    let mut tasks = tokio::task::JoinSet::new();
    for (number, (tokens, app)) in chosen {
        let (caller, shared) = (caller.clone(), Arc::clone(&shared));
        let verifiers = verifiers.to_vec();
        let permit = Arc::clone(&limit).acquire_owned().await.expect("not closed");
        tasks.spawn(async move {
            let _permit = permit;
            let (session, access) = (tokens.session, tokens.access.as_str());
            for (number, verifier) in verifiers.iter().enumerate() {
                verifier.judge(number, &shared, session, access).await;
            }
            for replica in 0..shared.replicas {
                caller.introspect(replica, session, access, Some(head)).await;
            }
            for attempt in 0..5 {
                let replica = (number + attempt) % shared.replicas;
                let (answer, _) = caller.refresh(replica, session, &tokens.refresh, &app).await;
                if answer != Answer::Unknown {
                    break;
                }
            }
        });
    }
    tasks.join_all().await;
}

/// Waits until all watchers have heard of `head`; not for ever.
async fn until_all_are_at(shared: &Shared, head: u64) {
    let began = Instant::now();
    loop {
        let behind = shared.recorder.look(|history| {
            let mut behind = false;
            for seen in &history.watched {
                let last = seen.iter().rev().find_map(|(_, seen)| match seen {
                    Seen::Synced(at) | Seen::Heartbeat(at) | Seen::Batch { through: at, .. } => {
                        Some(*at)
                    }
                    Seen::Connected { .. } | Seen::Reset | Seen::Lost(_) => None,
                });
                behind |= last.is_none_or(|last| last < head);
            }
            behind
        });
        if !behind || began.elapsed() > PATIENCE / 2 {
            return;
        }
        sleep(Duration::from_millis(100)).await;
    }
}

/// All live revocations, as a replica lists them.
async fn list(caller: &Caller, replica: usize, token: &str) -> Vec<pb::Revocation> {
    let mut service = RevocationServiceClient::new(caller.channel(replica));
    let mut all = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = pb::ListRevocationsRequest { page_size: 1000, page_token };
        let request = with(request, token);
        let page = service.list_revocations(request).await.expect("a list").into_inner();
        all.extend(page.revocations);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return all;
        }
    }
}

/// The set that a list stands for.
fn view_of(list: &[pb::Revocation]) -> View {
    use pb::revocation::Target;
    let view = View::default();
    for it in list {
        let Some(at) = &it.expire_time else { continue };
        let ends = Timestamp::from_millis(
            u64::try_from(at.seconds * 1000 + i64::from(at.nanos) / 1_000_000).expect("a date"),
        );
        match &it.target {
            Some(Target::Token(token)) => {
                let id: TokenId = token.token_id.parse().expect("an id");
                view.insert_token(bucket_end(ends, TOKEN_BUCKET_SECS), id.key64());
            }
            Some(Target::Session(session)) => {
                let id: SessionId = session.session_id.parse().expect("an id");
                view.insert_session(bucket_end(ends, SESSION_BUCKET_SECS), id.key64());
            }
            _ => {}
        }
    }
    view
}
