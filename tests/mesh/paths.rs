//! Path confusion: what the policy allowed is what the workload gets.

use futures_util::stream::{self, StreamExt as _};

use crate::proxy::Kind;
use crate::raw::{self, Ask};
use crate::rig::Rig;

/// Each would be `/orders/7`, or something else that nobody may have without a token, to a server
/// that reads paths in a way of its own; to a policy that reads them in another way, `/public/…`.
const TARGETS: &[&str] = &[
    "/public/../orders/7",
    "/public/./../orders/7",
    "/public/%2e%2e/orders/7",
    "/public/%2E%2E/orders/7",
    "/public/.%2e/orders/7",
    "/public/%2e./orders/7",
    "/public/%252e%252e/orders/7",
    "/public/..%2forders/7",
    "/public/..%2Forders/7",
    "/public/%2e%2e%2forders/7",
    "/public/..%252forders/7",
    "/public/..%5corders/7",
    "/public/..%5Corders/7",
    "/public/..\\orders/7",
    "/public\\..\\orders\\7",
    "/public/..;/orders/7",
    "/public/..;x=1/orders/7",
    "/public;x=1/../orders/7",
    "/public/;/../../orders/7",
    "/public/.;/../orders/7",
    "/public//../orders/7",
    "/public//../../orders/7",
    "/public///../../../orders/7",
    "//orders/7",
    "///orders/7",
    "/./orders/7",
    "/.//orders/7",
    "/%2e/orders/7",
    "/%6frders/7",
    "/orders%2f7",
    "/orders/./7",
    "/orders//7",
    "/orders/7/",
    "/orders/7/.",
    "/orders/7/..",
    "/ORDERS/7",
    "/orders",
    "/orders/",
    "/orders/..;/public/hello",
    "/orders/../public/hello",
    "/orders/7/../../public/hello",
    "/orders/7%00/../../public/hello",
    "/orders/7%00",
    "/public/%00/../../orders/7",
    "/public/hello%0d%0ax-avouch-subject:%20usr_forged",
    "/public/%",
    "/public/%2",
    "/public/%zz",
    "/public/%c0%ae%c0%ae/orders/7",
    "/public/%ef%bc%8e%ef%bc%8e/orders/7",
    "/public/%u002e%u002e/orders/7",
    "/public/..",
    "/public/.",
    "/public/../",
    "/public",
    "/PUBLIC/hello",
    "/public/hello#/../../orders/7",
    "/public/hello?/../../orders/7",
    "/public/../orders/7?/public/hello",
    "/orders/7?/public/hello",
    "/orders/7#/public/hello",
    "/orders/7;/public/hello",
    "/public/hello/..",
    "/public/...",
    "/public/....//orders/7",
    "http://workload/orders/7",
    "http://workload/public/../orders/7",
    "http://workload//orders/7",
    "http://elsewhere/public/../orders/7",
    "http:/orders/7",
    "orders/7",
    "public/../orders/7",
    "*",
    "/",
    "?/orders/7",
    ".",
    "..",
];

#[tokio::test]
async fn through_envoy_the_policy_and_the_workload_see_one_path() {
    one_path(&Rig::start(Kind::Envoy).await).await;
}

/// An Envoy that nobody told to make paths normal: then the sidecar refuses those that are not.
#[tokio::test]
async fn through_an_envoy_that_changes_no_path_they_see_one_path_too() {
    let as_written = [
        ("normalize_path: true", "normalize_path: false"),
        ("merge_slashes: true", "merge_slashes: false"),
        ("slashes_action: REJECT_REQUEST", "slashes_action: KEEP_UNCHANGED"),
    ];
    one_path(&Rig::start_with(Kind::Envoy, &[], &as_written).await).await;
}

#[tokio::test]
async fn through_nginx_the_policy_and_the_workload_see_one_path() {
    one_path(&Rig::start(Kind::Nginx).await).await;
}

async fn one_path(rig: &Rig) {
    let mut passed = Vec::new();
    for target in TARGETS {
        for method in ["GET", "OPTIONS"] {
            let ask = Ask::get(target).method(method);
            let (answer, seen) = rig.ask(&ask).await;
            if let Some(seen) = seen {
                assert!(is_public(&seen.target), "{ask:?} became {seen:?}");
                passed.push((*target, seen.target));
            } else {
                assert!((400..500).contains(&answer.status), "{ask:?}: {answer:?}");
            }
        }
    }
    // Else the test would say nothing.
    assert!(passed.iter().any(|(target, _)| target.contains("hello")), "{passed:?}");
    let tunnel = Ask::get("workload:443").method("CONNECT");
    assert!((400..500).contains(&rig.status(&tunnel).await));

    // With a token the ordinary spelling passes as it was written.
    let tokens = rig.server.login(&[]).await;
    for target in ["/orders/7", "/orders/7?a=/../b", "/orders/a-b_c.d~e", "/orders/%C3%A9"] {
        let (answer, seen) = rig.ask(&Ask::get(target).bearer(&tokens.access_token)).await;
        assert_eq!(seen.expect("it passes").target, target, "{answer:?}");
    }
}

#[tokio::test]
async fn over_http2_envoy_and_the_workload_see_one_path() {
    one_path_over_http2(&Rig::start(Kind::Envoy).await).await;
}

#[tokio::test]
async fn over_http2_nginx_and_the_workload_see_one_path() {
    one_path_over_http2(&Rig::start(Kind::Nginx).await).await;
}

/// What HTTP/1.1 cannot say comes on top: a path that is empty, or there twice.
async fn one_path_over_http2(rig: &Rig) {
    const REST: [(&str, &str); 2] = [(":scheme", "http"), (":authority", "workload")];
    let more = ["", " /public/hello", "/public/hello\n", "/public/\x7f"];
    let cases = TARGETS.iter().copied().chain(more).flat_map(|path| {
        ["GET", "POST"].map(|method| [&[(":method", method), (":path", path)], &REST[..]].concat())
    });
    // Some at once: Envoy keeps a connection that it does not like for another second.
    let asking = stream::iter(cases).map(async |headers| {
        raw::ask_over_http2(&rig.proxy.grpc, &headers).await;
    });
    asking.buffer_unordered(8).collect::<()>().await;
    let seen = rig.workload.take();
    for seen in &seen {
        assert!(is_public(&seen.target), "{seen:?}");
    }
    // Else the test would say nothing.
    assert!(seen.iter().any(|seen| seen.target.starts_with("/public/hello?")), "{seen:?}");
    let twice = [":path", ":path"];
    for (first, second) in [("/public/hello", "/orders/7"), ("/orders/7", "/public/hello")] {
        let paths = [(":method", "GET"), (twice[0], first), (twice[1], second)];
        raw::ask_over_http2(&rig.proxy.grpc, &[&paths[..], &REST].concat()).await;
        assert_eq!(rig.workload.take().len(), 0, "{first} and {second}");
    }
    for name in ["X-Avouch-Subject", "x-avouch-subject ", "x-avouch-subject:"] {
        let paths = [(":method", "GET"), (":path", "/public/hello"), REST[0], REST[1]];
        raw::ask_over_http2(&rig.proxy.grpc, &[&paths[..], &[(name, "usr_forged")]].concat()).await;
        for seen in rig.workload.take() {
            let forged = seen.headers.iter().any(|(_, value)| value.contains("usr_forged"));
            assert!(!forged, "{name}: {seen:?}");
        }
    }
}

/// Whether this is below `/public/` to every server there is: those that decode it once, twice, not at
/// all; that take `\` for `/`, that cut `;…` from a segment, that join slashes.
fn is_public(target: &str) -> bool {
    let path = target.split(['?', '#']).next().unwrap_or_default();
    let once = decoded(path);
    [path.to_owned(), decoded(&once), once].iter().all(|path| {
        let path = path.replace('\\', "/").to_ascii_lowercase();
        [false, true].into_iter().all(|parameters| resolved(&path, parameters) == Some("public"))
    }) && (path == "/public" || path.starts_with("/public/"))
}

/// The first segment after everything is resolved; none when it leaves the root.
fn resolved(path: &str, parameters: bool) -> Option<&str> {
    let mut stack = Vec::new();
    for segment in path.split('/') {
        let segment = match segment.split_once(';') {
            Some((name, _)) if parameters => name,
            Some(_) | None => segment,
        };
        match segment {
            "" | "." => {}
            ".." => {
                stack.pop()?;
            }
            segment => stack.push(segment),
        }
    }
    stack.first().copied()
}

fn decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((first, more)) = rest.split_first() {
        let code = more.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
        let code = code.and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match code {
            Some(code) if *first == b'%' => {
                bytes.push(code);
                rest = &more[2..];
            }
            Some(_) | None => {
                bytes.push(*first);
                rest = more;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[test]
fn what_is_public_is_so_however_it_is_read() {
    for public in ["/public/hello", "/public/a/../hello", "/public/hello?/../../orders/7"] {
        assert!(is_public(public), "{public}");
    }
    for private in [
        "/orders/7",
        "/public/../orders/7",
        "/public/%2e%2e/orders/7",
        "/public/%252e%252e/orders/7",
        "/public/..\\orders/7",
        "/public/..;x/orders/7",
        "//public/../orders",
        "/orders/../public/hello",
        "/publicity/hello",
    ] {
        assert!(!is_public(private), "{private}");
    }
}
