//! A disk that is full under a process: what docs/operate.md says of it happens.

use tonic::Code;

use super::{Shelf, with_own_mounts};
use crate::crash::{active, login, refresh};
use crate::process::{Cast, Process, identity};

#[tokio::test]
async fn a_process_on_a_full_disk_answers_but_does_not_start_and_less_reserve_lets_it_revoke() {
    if !with_own_mounts(
        "disk::runbook::a_process_on_a_full_disk_answers_but_does_not_start_and_less_reserve_lets_it_revoke",
    ) {
        return;
    }
    let shelf = Shelf::new(64);
    let data = shelf.path().join("data");
    let filler = shelf.path().join("filler");
    let home = tempfile::tempdir().expect("a directory");
    let take = |leave: u64| {
        let disk = rustix::fs::statvfs(shelf.path()).expect("a file system");
        let size = (disk.f_bavail * disk.f_frsize).saturating_sub(leave);
        let file = std::fs::File::create(&filler).expect("a file");
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, size).expect("room");
    };
    // Its diagnostics are on another disk.
    let start = |name: &str, reserve: &str| {
        let stderr = home.path().join(name);
        Process::start_telling(stderr, "info", &data, &[("store.min_free_bytes", reserve)])
    };
    let mut process = start("first", "32MiB");
    let addresses = process.serving().await;
    let cast = Cast::of(&data);
    let mut api = identity(&addresses).await;
    let tokens = login(&mut api, &cast).await.expect("a login");

    // Low: nothing is written, tokens are answered for.
    take(16 << 20);
    let refused = loop {
        match refresh(&mut api, &cast, &tokens.refresh_token).await {
            // It looks at the disk once a second.
            Ok(_) => tokio::task::yield_now().await,
            Err(status) => break status,
        }
    };
    assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
    assert!(active(&mut api, &cast, &tokens.access_token).await);

    // With less kept free it writes: whoever has to revoke before there is room.
    process.terminate();
    process.end().await;
    let mut process = start("second", "4MiB");
    let mut api = identity(&process.serving().await).await;
    login(&mut api, &cast).await.expect("it writes again");
    process.terminate();
    process.end().await;

    // Full to the last block: who is down stays down, says why, and comes back with the room.
    std::fs::remove_file(&filler).expect("room");
    take(0);
    let end = start("third", "4MiB").outcome().await.expect_err("it does not start");
    assert_eq!(end.status.code(), Some(1), "{end:?}");
    assert!(end.stderr.contains("No space left on device"), "{end:?}");
    std::fs::remove_file(&filler).expect("room");
    let mut process = start("fourth", "4MiB");
    let mut api = identity(&process.serving().await).await;
    refresh(&mut api, &cast, &tokens.refresh_token).await.expect("acknowledged");
    process.kill().await;
}
