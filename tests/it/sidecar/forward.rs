//! Forward authentication over HTTP, as nginx, Traefik and Caddy ask.

use super::envoy::shop;
use super::rig::{Sidecar, forwarded};

/// As nginx is told to ask.
fn nginx(method: &str, uri: &str, token: Option<&str>) -> Vec<u8> {
    let head = String::from_utf8(forwarded(method, uri, token)).expect("text");
    head.replace("x-forwarded-method", "x-original-method")
        .replace("x-forwarded-uri", "x-original-uri")
        .into_bytes()
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
}

async fn both(sidecar: &Sidecar, method: &str, uri: &str, token: Option<&str>) -> (u16, String) {
    let one = sidecar.ask("/auth/nginx", &nginx(method, uri, token)).await;
    let other = sidecar.ask("/auth/forwarded", &forwarded(method, uri, token)).await;
    let without_date = |head: &str| {
        let lines = head.lines().filter(|line| !line.starts_with("date:"));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!((one.0, without_date(&one.1)), (other.0, without_date(&other.1)));
    one
}

#[tokio::test]
async fn both_dialects_hear_the_same() {
    let (_server, sidecar, _, token) = shop().await;
    let (status, head) = both(&sidecar, "GET", "/orders/7?x=1", Some(&token)).await;
    assert_eq!(status, 200, "{head}");
    assert_eq!(header(&head, "x-avouch-client-id"), Some("app"));
    assert_eq!(header(&head, "x-avouch-scope"), Some("read write"));
    for name in ["subject", "session-id", "token-id", "expires"] {
        assert!(header(&head, &format!("x-avouch-{name}")).is_some(), "{name}: {head}");
    }
    let (status, head) = both(&sidecar, "GET", "/public/x", None).await;
    assert_eq!(status, 200);
    assert!(!head.contains("x-avouch-"), "{head}");
    for (method, uri, token, status, challenge) in [
        ("GET", "/orders", None, 401, Some("bearer")),
        ("GET", "/orders", Some("a.b.c"), 401, Some("bearer error=\"invalid_token\"")),
        ("GET", "/other", Some(token.as_str()), 401, Some("bearer error=\"invalid_token\"")),
        (
            "POST",
            "/orders.v1.Orders/Get",
            Some(token.as_str()),
            403,
            Some("bearer error=\"insufficient_scope\", scope=\"admin\""),
        ),
        ("GET", "/nowhere", Some(token.as_str()), 403, None),
        ("GET", "/public/../orders", None, 403, None),
    ] {
        let (answered, head) = both(&sidecar, method, uri, token).await;
        assert_eq!(answered, status, "{method} {uri}");
        assert_eq!(header(&head, "www-authenticate"), challenge, "{method} {uri}");
        assert_eq!(header(&head, "cache-control"), Some("no-store"));
    }
}

#[tokio::test]
async fn a_client_cannot_say_what_only_the_proxy_may() {
    let (_server, sidecar, _, token) = shop().await;
    let with = |head: &[u8], more: &[u8]| [head, more].concat();
    let good = nginx("GET", "/orders", Some(&token));
    assert_eq!(sidecar.ask("/auth/nginx", &good).await.0, 200);
    let long = format!("cookie: {}\r\n", "c".repeat(30_000));
    assert_eq!(sidecar.ask("/auth/nginx", &with(&good, long.as_bytes())).await.0, 200);
    // The headers of the other dialect are the client's own.
    let other = b"x-forwarded-uri: /public\r\nx-forwarded-method: GET\r\n";
    let wanted = nginx("GET", "/orders", None);
    assert_eq!(sidecar.ask("/auth/nginx", &with(&wanted, other)).await.0, 401);
    let other = b"x-original-uri: /public\r\nx-original-method: GET\r\n";
    let wanted = forwarded("GET", "/orders", None);
    assert_eq!(sidecar.ask("/auth/forwarded", &with(&wanted, other)).await.0, 401);
    for more in [
        // A second value is one too many, and so is none.
        &b"x-original-uri: /public\r\n"[..],
        b"x-original-method: GET\r\n",
        // A proxy that copies our headers over the client's leaves these in place.
        b"x-avouch-subject: root\r\n",
        b"X-Avouch-Made-Up: root\r\n",
        b"x_avouch_subject: root\r\n",
        b"X-AVOUCH_SCOPE: root\r\n",
        b"x-other: \xff\xfe\r\n",
        b"cookie: \x80\r\n",
    ] {
        let (status, _) = sidecar.ask("/auth/nginx", &with(&good, more)).await;
        assert_eq!(status, 403, "{:?}", String::from_utf8_lossy(more));
    }
    let bearer = format!("authorization: Bearer {token}\r\n");
    assert_eq!(sidecar.ask("/auth/nginx", &with(&good, bearer.as_bytes())).await.0, 401);
    for head in [&b""[..], b"x-original-uri: /public\r\n", b"x-original-method: GET\r\n"] {
        assert_eq!(sidecar.ask("/auth/nginx", head).await.0, 403);
    }
    assert_eq!(sidecar.ask("/auth/forwarded", &nginx("GET", "/public", None)).await.0, 403);
    for path in ["/", "/auth", "/auth/other", "/public"] {
        assert_eq!(sidecar.ask(path, &good).await.0, 404, "{path}");
    }
}
