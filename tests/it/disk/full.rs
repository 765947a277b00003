//! A disk with no room left: writes are refused, everything else goes on, and when there is room
//! again so do they.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use avouch::app::StoreOptions;
use avouch::domain::clock::ManualClock;
use avouch::store::codec::SCHEMA_VERSION;
use avouch::store::sled::SledSettings;
use tokio::time::{sleep, timeout};
use tonic::Code;
use tonic_types::StatusExt as _;

use super::{Shelf, with_own_mounts};
use crate::harness::{NOW, PASSWORD, Server, http_get, options, password_login, reason};
use crate::process::PATIENCE;

/// Takes all the room but so much.
fn fill(path: &Path, leave: u64) {
    let disk = rustix::fs::statvfs(path).expect("a file system");
    let take = (disk.f_bavail * disk.f_frsize).saturating_sub(leave);
    let mut file =
        File::options().create(true).append(true).open(path.join("filler")).expect("new");
    for _ in 0..take / 4096 {
        if file.write_all(&[1; 4096]).is_err() {
            break;
        }
    }
}

/// Refreshes until it comes to what is wanted; the token that is current then. The server looks at
/// its disk once a second.
async fn until(
    server: &Server,
    app: &avouch::pb::v1::ClientAuthentication,
    mut token: String,
    wanted: impl Fn(&Result<(), tonic::Status>) -> bool,
) -> String {
    let reached = async {
        loop {
            let outcome = server.refresh(app, &token).await.map(|next| token = next.refresh_token);
            if wanted(&outcome) {
                return;
            }
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, reached).await.expect("it comes to that");
    token
}

#[tokio::test]
async fn a_full_disk_refuses_writes_answers_reads_lets_sweeping_go_on_and_recovers() {
    if !with_own_mounts(
        "disk::full::a_full_disk_refuses_writes_answers_reads_lets_sweeping_go_on_and_recovers",
    ) {
        return;
    }
    const MIN_FREE: u64 = 8 << 20;
    let shelf = Shelf::new(32);
    let settings = SledSettings { min_free_bytes: MIN_FREE, ..SledSettings::new(SCHEMA_VERSION) };
    let store = StoreOptions::Sled { path: shelf.path().join("data"), settings };
    let server = Server::with(options(store), Arc::new(ManualClock::new(NOW))).await;
    let app = server.first_party("app").await;
    let operator = server.powerful("operator").await;
    server.add_user("ada").await;
    let first = server.login(&app, "ada").await;
    // What is over by the time the disk is full.
    for _ in 0..20 {
        server.login(&app, "ada").await;
    }
    server.clock.advance(Duration::from_secs(6 * 86_400));
    let mut token = until(&server, &app, first.refresh_token, Result::is_ok).await;
    server.clock.advance(Duration::from_secs(2 * 86_400));

    // First it runs low, then it is full to the last block.
    for leave in [MIN_FREE / 2, 0] {
        fill(shelf.path(), leave);
        token = until(&server, &app, token, Result::is_err).await;
        let refused = server.refresh(&app, &token).await.expect_err("there is no room");
        assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
        assert_eq!(reason(&refused), "STORE_UNAVAILABLE");
        assert!(refused.get_details_retry_info().is_some(), "{refused:?}");
        let login = server.identity().authenticate(password_login(&app, "ada", PASSWORD)).await;
        assert_eq!(reason(&login.expect_err("there is no room")), "STORE_UNAVAILABLE");
        assert!(server.introspect(&operator, &token).await.active, "reads go on");
        let (status, _, _) = http_get(server.ops, "/readyz", "").await;
        assert_eq!(status, 200, "and it stays in service for them");
        if leave > 0 {
            let swept = server.service.sweep().await.expect("sweeping may use what is left");
            assert!(swept.sessions >= 20, "{swept:?}");
        }
    }
    std::fs::remove_file(shelf.path().join("filler")).expect("room");
    token = until(&server, &app, token, Result::is_ok).await;
    server.login(&app, "ada").await;

    let path = shelf.path().join("data");
    let again = server.restart(options(crate::harness::sled(&path))).await;
    again.refresh(&app, &token).await.expect("acknowledged");
    again.stop().await;
}
