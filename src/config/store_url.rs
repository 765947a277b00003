//! `etcd://host:2379,host:2379/prefix`: which etcd holds the state, and under which keys of it.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

use super::value::Value;

/// The port that etcd serves clients on, where the URL names none.
const DEFAULT_PORT: u16 = 2379;
/// The longest prefix, in bytes. Each key carries it.
const MAX_PREFIX_BYTES: usize = 128;
/// The most members that a URL may name.
const MAX_MEMBERS: usize = 16;
/// The prefix of a URL that names none.
const DEFAULT_PREFIX: &str = "/avouch/";

/// An etcd cluster and a part of its keys. It holds no secret: who has a password has it in a file.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct StoreUrl {
    tls: bool,
    members: Vec<Member>,
    prefix: String,
}

/// Where one member serves clients.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
struct Member {
    /// A name, or an address without brackets.
    host: Host,
    port: u16,
}

#[derive(Clone, Debug, Eq, Hash, PartialEq)]
enum Host {
    Ip(IpAddr),
    Name(String),
}

/// Why a text is no such URL. It never repeats the text, which may hold a password.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum StoreUrlError {
    /// Another scheme, or none.
    #[error(
        "must begin with etcd:// (plaintext) or etcds:// (TLS), as in etcds://etcd-0:2379,etcd-1:2379,etcd-2:2379/avouch"
    )]
    Scheme,
    /// A user or a password.
    #[error("must hold no user and no password: set etcd.username and etcd.password_file")]
    UserInfo,
    /// A query or a fragment.
    #[error("must have no ? and no #: the section [etcd] has the settings")]
    Query,
    /// A host that is none.
    #[error(
        "must name each member as host:port, 10.0.0.1:2379 or [fd00::1]:2379, with a comma between two"
    )]
    Member,
    /// One member twice.
    #[error("must name each member once")]
    Twice,
    /// More members than any cluster has.
    #[error("must name at most 16 members")]
    TooMany,
    /// A prefix that cannot be one.
    #[error(
        "must end with a prefix of parts between single slashes, such as /avouch/prod; letters, digits, - . _ ~ stand as they are, any other visible character as %XX"
    )]
    Prefix,
    /// A long prefix.
    #[error("must have a prefix of at most 128 bytes: each key carries it")]
    LongPrefix,
}

impl StoreUrl {
    /// Whether members are spoken to over TLS.
    pub const fn tls(&self) -> bool {
        self.tls
    }

    /// Where each member serves clients, as `http://…` or `https://…`.
    pub fn endpoints(&self) -> Vec<String> {
        let scheme = if self.tls { "https" } else { "http" };
        self.members.iter().map(|member| format!("{scheme}://{member}")).collect()
    }

    /// What every key begins with: it begins and ends with a slash, so that no store is among the keys of
    /// another whose name begins alike.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Whether every member is this machine.
    pub fn is_loopback(&self) -> bool {
        self.members.iter().all(|member| match &member.host {
            Host::Ip(ip) => ip.is_loopback(),
            Host::Name(name) => name.eq_ignore_ascii_case("localhost"),
        })
    }
}

impl FromStr for StoreUrl {
    type Err = StoreUrlError;

    fn from_str(text: &str) -> Result<Self, StoreUrlError> {
        let (scheme, rest) = text.split_once("://").ok_or(StoreUrlError::Scheme)?;
        let tls = match scheme {
            "etcd" => false,
            "etcds" => true,
            _ => return Err(StoreUrlError::Scheme),
        };
        // Before anything else: behind it, a password could be taken for a host or a prefix.
        if rest.contains('@') {
            return Err(StoreUrlError::UserInfo);
        }
        if rest.contains(['?', '#']) {
            return Err(StoreUrlError::Query);
        }
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let members = authority.split(',').map(member).collect::<Result<Vec<_>, _>>()?;
        if members.len() > MAX_MEMBERS {
            return Err(StoreUrlError::TooMany);
        }
        if members.iter().enumerate().any(|(at, member)| members[..at].contains(member)) {
            return Err(StoreUrlError::Twice);
        }
        Ok(Self { tls, members, prefix: prefix(path)? })
    }
}

/// Reads `host`, `host:port` or `[address]:port`.
fn member(text: &str) -> Result<Member, StoreUrlError> {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (address, port) = rest.split_once(']').ok_or(StoreUrlError::Member)?;
            let ip = address.parse::<Ipv6Addr>().map_err(|_| StoreUrlError::Member)?;
            let port = match port {
                "" => None,
                port => Some(port.strip_prefix(':').ok_or(StoreUrlError::Member)?),
            };
            (Host::Ip(ip.into()), port)
        }
        None => {
            let (host, port) = match text.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (text, None),
            };
            (self::host(host)?, port)
        }
    };
    let port = match port {
        None => DEFAULT_PORT,
        // `parse` would take a sign.
        Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => {
            digits.parse().ok().filter(|port| *port > 0).ok_or(StoreUrlError::Member)?
        }
        Some(_) => return Err(StoreUrlError::Member),
    };
    Ok(Member { host, port })
}

/// Reads an IPv4 address, or a name as RFC 1123 section 2.1 has it, and with `_` as some name services
/// do. What is all digits and dots is no name.
fn host(text: &str) -> Result<Host, StoreUrlError> {
    if let Ok(ip) = text.parse() {
        return Ok(Host::Ip(IpAddr::V4(ip)));
    }
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
    };
    let name = text.strip_suffix('.').unwrap_or(text);
    let number =
        name.rsplit('.').next().is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit()));
    if name.len() <= 253 && !number && name.split('.').all(label) {
        Ok(Host::Name(text.to_ascii_lowercase()))
    } else {
        Err(StoreUrlError::Member)
    }
}

const fn unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

/// The prefix that a path stands for.
fn prefix(path: &str) -> Result<String, StoreUrlError> {
    let path = path.strip_suffix('/').unwrap_or(path);
    let Some(parts) = path.strip_prefix('/') else { return Ok(DEFAULT_PREFIX.to_owned()) };
    let mut prefix = String::from("/");
    for part in parts.split('/') {
        let part = decode(part).ok_or(StoreUrlError::Prefix)?;
        if part.is_empty() || part == "." || part == ".." {
            return Err(StoreUrlError::Prefix);
        }
        prefix.push_str(&part);
        prefix.push('/');
    }
    if prefix.len() > MAX_PREFIX_BYTES {
        return Err(StoreUrlError::LongPrefix);
    }
    Ok(prefix)
}

/// Undoes `%XX`. What needs none must have none, so that one prefix has one spelling; a slash, a space
/// and what cannot be seen are in no prefix, as nobody could type it for `etcdctl`.
fn decode(part: &str) -> Option<String> {
    let mut decoded = String::new();
    let mut bytes = part.bytes();
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let digits = [bytes.next()?, bytes.next()?];
            if !digits.iter().all(u8::is_ascii_hexdigit) {
                return None;
            }
            let code = u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?;
            if unreserved(code) || !code.is_ascii_graphic() || code == b'/' {
                return None;
            }
            decoded.push(char::from(code));
        } else if unreserved(byte) {
            decoded.push(char::from(byte));
        } else {
            return None;
        }
    }
    Some(decoded)
}

impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Ip(IpAddr::V6(ip)) => write!(f, "[{ip}]:{}", self.port),
            Host::Ip(ip) => write!(f, "{ip}:{}", self.port),
            Host::Name(name) => write!(f, "{name}:{}", self.port),
        }
    }
}

impl fmt::Display for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.tls { "etcds://" } else { "etcd://" })?;
        for (at, member) in self.members.iter().enumerate() {
            let comma = if at == 0 { "" } else { "," };
            write!(f, "{comma}{member}")?;
        }
        for byte in self.prefix.trim_end_matches('/').bytes() {
            if unreserved(byte) || byte == b'/' {
                write!(f, "{}", char::from(byte))?;
            } else {
                write!(f, "%{byte:02X}")?;
            }
        }
        Ok(())
    }
}

impl Value for StoreUrl {
    fn read(text: &str) -> Result<Self, String> {
        text.parse().map_err(|error: StoreUrlError| error.to_string())
    }

    fn show(&self) -> String {
        self.to_string()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(text: &str) -> StoreUrl {
        text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    #[test]
    fn a_url_says_which_members_over_what_and_under_which_keys() {
        let url = read("etcds://etcd-0.etcd:2379,10.0.0.1,[fd00::1]:12379/avouch/prod");
        assert!(url.tls() && !url.is_loopback());
        assert_eq!(url.endpoints(), ["etcd-0.etcd:2379", "10.0.0.1:2379", "[fd00::1]:12379"]);
        assert_eq!(url.prefix(), "/avouch/prod/");
        let url = read("etcd://LocalHost");
        assert_eq!(url.endpoints(), ["http://localhost:2379"]);
        assert_eq!((url.prefix(), url.tls()), ("/avouch/", false));
        for path in ["", "/"] {
            assert_eq!(read(&format!("etcd://h{path}")).prefix(), "/avouch/");
        }
        // Two names that begin alike have no key in common.
        assert!(!read("etcd://h/avouch2").prefix().starts_with(read("etcd://h/avouch").prefix()));
        assert_eq!(read("etcd://h/a%3Ab").prefix(), "/a:b/");
    }

    #[test]
    fn loopback_is_every_member_on_this_machine() {
        for (hosts, loopback) in [
            ("127.0.0.1:1,127.8.8.8:2,[::1]:3,localhost:4", true),
            ("127.0.0.1:1,10.0.0.1:2", false),
            ("localhost.example.com", false),
            ("[::]:1", false),
        ] {
            assert_eq!(read(&format!("etcd://{hosts}/p")).is_loopback(), loopback, "{hosts}");
        }
    }

    #[test]
    fn what_is_wrong_is_told_without_the_text() {
        use StoreUrlError::{LongPrefix, Member, Prefix, Query, Scheme, TooMany, Twice, UserInfo};
        let long = format!("etcd://h/{}", "x".repeat(127));
        let many = format!(
            "etcd://{}",
            ["h"; 17]
                .iter()
                .enumerate()
                .map(|(n, h)| format!("{h}{n}"))
                .collect::<Vec<_>>()
                .join(",")
        );
        for (text, error) in [
            ("", Scheme),
            ("127.0.0.1:2379", Scheme),
            ("http://127.0.0.1:2379", Scheme),
            ("ETCD://h", Scheme),
            ("etcd:/h", Scheme),
            ("etcd://root:hunter2@h:2379/p", UserInfo),
            ("etcd://h/p@x", UserInfo),
            ("etcd://h?tls=false", Query),
            ("etcd://h/p#x", Query),
            ("etcd://", Member),
            ("etcd:///p", Member),
            ("etcd://h,,i", Member),
            ("etcd://h,", Member),
            ("etcd://h:0", Member),
            ("etcd://h:", Member),
            ("etcd://h:+1", Member),
            ("etcd://h:65536", Member),
            ("etcd://h:1:2", Member),
            ("etcd://::1", Member),
            ("etcd://[::1", Member),
            ("etcd://[::1]2379", Member),
            ("etcd://[fe80::1%25eth0]:2379", Member),
            ("etcd://[127.0.0.1]:2379", Member),
            ("etcd://10.0.0", Member),
            ("etcd://-h", Member),
            ("etcd://h h", Member),
            ("etcd://h:1,h:1", Twice),
            ("etcd://h,H:2379", Twice),
            (many.as_str(), TooMany),
            ("etcd://h//", Prefix),
            ("etcd://h/a//b", Prefix),
            ("etcd://h/a/../b", Prefix),
            ("etcd://h/.", Prefix),
            ("etcd://h/a b", Prefix),
            ("etcd://h/ä", Prefix),
            ("etcd://h/a%", Prefix),
            ("etcd://h/a%+1", Prefix),
            ("etcd://h/a%61", Prefix),
            ("etcd://h/a%2fb", Prefix),
            ("etcd://h/a%20b", Prefix),
            ("etcd://h/a%00", Prefix),
            ("etcd://h/a%C3%A4", Prefix),
            (long.as_str(), LongPrefix),
        ] {
            assert_eq!(text.parse::<StoreUrl>(), Err(error), "{text}");
            assert!(!error.to_string().contains("hunter2"));
        }
    }

    fn any_member() -> impl Strategy<Value = Member> {
        let host = prop_oneof![
            any::<[u8; 4]>().prop_map(|ip| Host::Ip(IpAddr::from(ip))),
            any::<[u8; 16]>().prop_map(|ip| Host::Ip(IpAddr::from(ip))),
            "[a-z][a-z0-9_]{0,20}(\\.[a-z][a-z0-9-]{0,10}[a-z0-9]){0,3}\\.?".prop_map(Host::Name),
        ];
        (host, 1..=u16::MAX).prop_map(|(host, port)| Member { host, port })
    }

    fn any_url() -> impl Strategy<Value = StoreUrl> {
        let part = "[!-.0-~]{1,20}".prop_filter("a step", |part| part != "." && part != "..");
        let members = proptest::collection::vec(any_member(), 1..5).prop_filter("twice", |all| {
            all.iter().enumerate().all(|(at, member)| !all[..at].contains(member))
        });
        (any::<bool>(), members, proptest::collection::vec(part, 1..5)).prop_map(
            |(tls, members, parts)| StoreUrl {
                tls,
                members,
                prefix: format!("/{}/", parts.join("/")),
            },
        )
    }

    proptest! {
        #[test]
        fn every_url_reads_back_from_what_it_is_shown_as(url in any_url()) {
            prop_assert_eq!(url.to_string().parse(), Ok(url));
        }

        #[test]
        fn no_text_panics_and_what_is_read_shows_as_itself(text in "(etcds?://)?[\\PC]{0,60}") {
            if let Ok(url) = text.parse::<StoreUrl>() {
                prop_assert_eq!(url.to_string().parse(), Ok(url.clone()));
                prop_assert!(url.prefix().starts_with('/') && url.prefix().ends_with('/'));
                prop_assert!(!url.endpoints().is_empty());
            }
        }

        #[test]
        fn every_endpoint_is_a_uri_with_that_host_and_port(url in any_url()) {
            for (endpoint, member) in url.endpoints().iter().zip(&url.members) {
                let uri: http::Uri = endpoint.parse().unwrap();
                prop_assert_eq!(uri.port_u16(), Some(member.port));
            }
        }
    }
}
