//! The story that everything else is a detail of: login, refresh, introspect, watch, revoke.

use avouch::pb::v1 as pb;
use avouch::pb::v1::watch_revocations_response::Frame;

use crate::harness::{Server, bearer};

#[tokio::test]
async fn a_user_logs_in_refreshes_and_is_revoked_and_the_watcher_hears_it() {
    let server = Server::start().await;
    let app = server.first_party("app").await;
    let operator = server.powerful("operator").await;
    server.add_user("ada").await;

    let first = server.login(&app, "ada").await;
    assert!(server.introspect(&operator, &first.access_token).await.active);
    let second = server.refresh(&app, &first.refresh_token).await.expect("it is current");
    assert_eq!(second.session_id, first.session_id);

    let token = server.own_token(&operator).await;
    let request = bearer(pb::WatchRevocationsRequest::default(), &token);
    let mut watch =
        server.revocations().watch_revocations(request).await.expect("a stream").into_inner();
    loop {
        let frame = watch.message().await.expect("a frame").expect("more").frame;
        if let Some(Frame::Synced(_)) = frame {
            break;
        }
    }
    let target = pb::revoke_request::Target::SessionId(first.session_id.clone());
    let revoked = server.revoke(&operator, target).await.expect("it is revoked");
    for token in [&first.access_token, &second.access_token, &second.refresh_token] {
        assert!(!server.introspect(&operator, token).await.active);
    }
    let batch = loop {
        let frame = watch.message().await.expect("a frame").expect("more").frame;
        if let Some(Frame::Batch(batch)) = frame {
            break batch;
        }
    };
    assert_eq!(batch.revocations, vec![revoked.revoked.expect("an event")]);
    assert_eq!(batch.through, revoked.cursor);
    server.refresh(&app, &second.refresh_token).await.expect_err("it is revoked");
    drop(watch);
    server.stop().await;
}
