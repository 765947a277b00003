use proptest::prelude::*;

use super::*;

/// What a lenient reader makes of a path: each rewriting that proxies, frameworks and file systems do,
/// over and over until nothing changes.
fn lenient(path: &str) -> String {
    let mut path = path.to_owned();
    loop {
        let next = lenient_once(&path);
        if next == path {
            return path;
        }
        path = next;
    }
}

fn lenient_once(path: &str) -> String {
    let mut bytes = Vec::new();
    let raw = path.as_bytes();
    let mut at = 0;
    while at < raw.len() {
        let escape = raw.get(at + 1..at + 3).and_then(|hex| std::str::from_utf8(hex).ok());
        let decoded = escape.filter(|hex| hex.bytes().all(|b| b.is_ascii_hexdigit()));
        let decoded = decoded.and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match (raw[at], decoded) {
            // What stays an escape is spelled in upper case.
            (b'%', Some(byte))
                if !byte.is_ascii() || b" \"<>^`{|}!$&'()*+,:=@[]".contains(&byte) =>
            {
                bytes.extend(format!("%{byte:02X}").bytes());
                at += 3;
            }
            (b'%', Some(byte)) => {
                bytes.push(byte);
                at += 3;
            }
            (b'\\', _) => {
                bytes.push(b'/');
                at += 1;
            }
            (byte, _) => {
                bytes.push(byte);
                at += 1;
            }
        }
    }
    let text = String::from_utf8_lossy(&bytes).into_owned();
    // The query, a fragment, and the parameters of segments go.
    let text = text.split(['?', '#']).next().unwrap_or_default().to_owned();
    let mut out: Vec<&str> = Vec::new();
    let mut segments: Vec<&str> =
        text.split('/').map(|segment| segment.split(';').next().unwrap_or_default()).collect();
    let ends_in_slash = text.ends_with('/');
    segments.retain(|segment| !segment.is_empty());
    for segment in &segments {
        match *segment {
            "." => {}
            dots if dots.bytes().all(|b| b == b'.') => {
                out.pop();
            }
            segment => out.push(segment),
        }
    }
    let slash = if ends_in_slash && !out.is_empty() { "/" } else { "" };
    format!("/{}{slash}", out.join("/"))
}

const STRANGE: [&str; 58] = [
    "//",
    "//a",
    "/a//b",
    "/a/b//",
    "/.",
    "/..",
    "/./a",
    "/../a",
    "/a/.",
    "/a/..",
    "/a/./b",
    "/a/../b",
    "/...",
    "/a/.../b",
    "/%2e",
    "/%2E%2E/a",
    "/a/%2e%2e/b",
    "/.%2e/a",
    "/%2e./a",
    "/a%2fb",
    "/a%2Fb",
    "/a%5cb",
    "/a%5Cb",
    "/a\\b",
    "/..\\a",
    "/a;b",
    "/a;b=c/d",
    "/a/..;/b",
    "/a%3Bb",
    "/a%3bb",
    "/a%00",
    "/a%0Ab",
    "/a%0d%0ab",
    "/a%7F",
    "/a%1F",
    "/%",
    "/%4",
    "/%zz",
    "/%%",
    "/a%2",
    "/%41",
    "/%61dmin",
    "/%7E",
    "/%2D",
    "/caf%c3%a9",
    "/a%25b",
    "/%252e%252e/a",
    "/%252f",
    "/a%3Fb",
    "/a%23b",
    "/a%u002fb",
    "/a/%2e",
    "/a/%2E%2E",
    "/%c0%ae%c0%ae/",
    "/a/;/b",
    "/;",
    "/%5c..%5c",
    "/a%e2%80%8b",
];

#[test]
fn strange_spellings_are_refused() {
    for path in STRANGE {
        assert_eq!(normal_path(path), Err(PathFault::NotNormal), "{path}");
        // So is what stands before a query, and a query does not hide it.
        assert_eq!(normal_path(&format!("{path}?q=1")), Err(PathFault::NotNormal), "{path}");
    }
    for target in [
        "",
        "*",
        "a",
        "a/b",
        "http://host/a",
        "HTTP://host",
        "host:443",
        "?a",
        "\u{e9}",
        "/a b",
        "/a\t",
        "/a\n",
        "/a\0",
        "/\u{e9}",
        "/a#b",
        "/#",
        "/a\u{7f}",
        " /a",
        "/a ",
        "pkg.Service/Method",
    ] {
        assert_eq!(normal_path(target), Err(PathFault::NotAPath), "{target:?}");
        assert_eq!(path_of(target), Err(PathFault::NotAPath), "{target:?}");
    }
    assert_eq!(normal_path(&format!("/{}", "a".repeat(MAX_TARGET_BYTES))), Err(PathFault::TooLong));
}

#[test]
fn plain_paths_are_judged_as_they_stand() {
    for path in [
        "/",
        "/a",
        "/a/",
        "/a/b.c",
        "/.well-known/x",
        "/a..b/c",
        "/pkg.v1.Service/Method",
        "/caf%C3%A9",
        "/a%20b",
        "/~user",
        "/a:b@c",
        "/a!$&'()*+,=b",
        "/%E2%82%AC",
        "/a%5Bb%5D",
    ] {
        assert_eq!(normal_path(path), Ok(path));
        assert_eq!(normal_path(&format!("{path}?a=/../%2e")), Ok(path));
        assert_eq!(lenient(path), path, "the test's own reader agrees");
    }
    let longest = format!("/{}", "a".repeat(MAX_TARGET_BYTES - 1));
    assert_eq!(normal_path(&longest), Ok(&*longest));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    /// Whatever is judged, every lenient reader reads as the same path.
    #[test]
    fn normalising_a_judged_path_changes_nothing(
        target in "(/|\\.|%|2|e|E|f|F|5|c|C|3|b|B|;|\\\\|a|0|\\?|#|~| |\u{e9}|//|%2e|%2F|%C3){0,12}"
    ) {
        let target = format!("/{target}");
        if let Ok(path) = normal_path(&target) {
            prop_assert_eq!(lenient(path), path);
            prop_assert!(target.starts_with(path));
        }
    }

    /// No text makes the reader panic, and no reader leaves a path that is not within its rule.
    #[test]
    fn what_is_beneath_a_rule_stays_beneath_it(tail in "\\PC{0,24}") {
        let routes =
            Routes::new(vec![(Route::beneath("/public").unwrap(), ())]).unwrap();
        let target = format!("/public{tail}");
        if let Ok(Found::Rule(())) = routes.find("GET", &target) {
            let read = lenient(normal_path(&target).unwrap());
            prop_assert!(read == "/public" || read.starts_with("/public/"), "{}", read);
        }
        let _ = routes.find("GET", &tail);
    }
}

fn routes(list: &[(&str, &str, &'static str)]) -> Routes<&'static str> {
    let route = |path: &str, methods: &str| {
        let route = match path.strip_suffix("/*") {
            Some(path) => Route::beneath(if path.is_empty() { "/" } else { path }),
            None => Route::exact(path),
        };
        route.unwrap().with_methods(methods.split_whitespace().map(Box::from))
    };
    let rules = list.iter().map(|(path, methods, name)| (route(path, methods), *name)).collect();
    Routes::new(rules).unwrap()
}

const NO_METHOD: &str = "no rule for the method";

#[test]
fn the_most_specific_path_decides_whatever_the_order() {
    let mut list = vec![
        ("/*", "GET", "all"),
        ("/a/*", "", "a"),
        ("/a/b", "GET", "get b"),
        ("/a/b", "", "b"),
        ("/a/b/*", "", "below b"),
        ("/admin", "POST", "admin"),
        ("/", "", "root"),
    ];
    for _ in 0..list.len() {
        list.rotate_left(1);
        let routes = routes(&list);
        for (method, target, expected) in [
            ("GET", "/", "root"),
            ("POST", "/?x", "root"),
            ("GET", "/x", "all"),
            ("POST", "/x", NO_METHOD),
            ("GET", "/a", "a"),
            ("PUT", "/a/", "a"),
            ("PUT", "/a/c/d", "a"),
            ("GET", "/ab", "all"),
            ("GET", "/A", "all"),
            ("GET", "/a/b?q=/admin", "get b"),
            ("POST", "/a/b", "b"),
            ("POST", "/a/b/", "b"),
            ("POST", "/a/b/c", "below b"),
            ("POST", "/admin", "admin"),
            // A wider rule that takes the method does not open what a narrower one keeps shut.
            ("GET", "/admin", NO_METHOD),
            ("GET", "/admin/", NO_METHOD),
            ("get", "/x", NO_METHOD),
        ] {
            let found = match routes.find(method, target).unwrap() {
                Found::Rule(name) => name,
                Found::NoMethod => NO_METHOD,
                Found::NoRule => "no rule",
            };
            assert_eq!(found, expected, "{method} {target}");
        }
    }
    assert_eq!(routes(&[("/a", "", "a")]).find("GET", "/b"), Ok(Found::NoRule));
    assert_eq!(routes(&[("/a", "", "a")]).find("GET", "/a/b"), Ok(Found::NoRule));
}

#[test]
fn two_rules_for_the_same_are_an_error() {
    let beneath = |path| Route::beneath(path).unwrap();
    let with =
        |route: Route, methods: &[&str]| route.with_methods(methods.iter().map(|m| (*m).into()));
    let rules = vec![
        (beneath("/a"), 0),
        (with(beneath("/a"), &["GET", "PUT"]), 1),
        (with(beneath("/a/"), &["PUT"]), 2),
        (Route::exact("/a").unwrap(), 3),
        (beneath("/a/"), 4),
    ];
    assert_eq!(Routes::new(rules).unwrap_err(), [(1, 2), (0, 4)]);
}

#[test]
fn only_a_rule_that_says_so_takes_paths_as_they_stand() {
    let files = Route::beneath("/files").unwrap().taking_literal_paths();
    let deep = Route::beneath("/files/deep").unwrap();
    let routes = Routes::new(vec![(files, "files"), (deep, "deep")]).unwrap();
    assert_eq!(routes.find("GET", "/files/a%2Fb"), Ok(Found::Rule(&"files")));
    assert_eq!(routes.find("GET", "/files//x"), Ok(Found::Rule(&"files")));
    assert_eq!(routes.find("GET", "/files/deep/x"), Ok(Found::Rule(&"deep")));
    assert_eq!(routes.find("GET", "/files/deep//x"), Err(PathFault::NotNormal));
    assert_eq!(routes.find("GET", "/other//x"), Err(PathFault::NotNormal));
    assert_eq!(routes.find("GET", "//files/x"), Err(PathFault::NotNormal));
    assert_eq!(routes.find("GET", "/filesystem//x"), Err(PathFault::NotNormal));
    assert_eq!(routes.find("GET", "/files/\u{e9}"), Err(PathFault::NotAPath));
}

#[test]
fn methods_are_tokens_and_never_connect() {
    for method in ["GET", "POST", "PROPFIND", "M-SEARCH", "get"] {
        assert!(is_method(method));
    }
    for method in ["", "CONNECT", "GET ", "GE\nT", "G\u{e9}T", "GET,POST", &"A".repeat(33)] {
        assert!(!is_method(method), "{method:?}");
    }
}

#[test]
fn names_read_as_the_rules_were_meant() {
    let get = |route: Route| route.with_methods(["GET".into(), "HEAD".into()]);
    assert_eq!(get(Route::beneath("/a/").unwrap()).name(), "GET,HEAD /a/*");
    assert_eq!(Route::beneath("/").unwrap().name(), "/*");
    assert_eq!(Route::exact("/").unwrap().name(), "/");
}
