//! Which rule a request falls under: by its method and its path, read one way only.
//!
//! A proxy, a gate and an upstream that read one path three ways let requests through (`/public/../admin`,
//! `/admin%2fx`). So a path is judged only in its normal form: what RFC 3986 section 6.2.2 would change,
//! and what upstreams are known to read differently, is refused. Nothing is ever rewritten.

use std::collections::HashMap;

/// The longest path with its query, in bytes.
pub const MAX_TARGET_BYTES: usize = 8 * 1024;

/// Why a path is not judged.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum PathFault {
    /// It is not `/…`: absolute-form, authority-form (CONNECT), `*`, or nothing at all; or it has a
    /// fragment, or a character that no path has. No rule can let it through.
    #[error("is not the path of a request")]
    NotAPath,
    /// It is not in normal form: someone else may read it as another path.
    #[error("is not in normal form")]
    NotNormal,
    /// It is longer than [`MAX_TARGET_BYTES`].
    #[error("is too long")]
    TooLong,
}

/// The path of a request's target without its query, if it is one that means the same to everybody.
///
/// # Errors
/// See [`PathFault`]. A path that is only [`PathFault::NotNormal`] is there for whoever reads it
/// literally, by [`path_of`].
pub fn normal_path(target: &str) -> Result<&str, PathFault> {
    let path = path_of(target)?;
    let segments = path.split('/').skip(1);
    let last = path.matches('/').count() - 1;
    for (index, segment) in segments.enumerate() {
        let is_empty = segment.is_empty() && index != last;
        // `.`, `..`, and `...`, which some file systems read as one of them.
        let is_dots = !segment.is_empty() && segment.bytes().all(|byte| byte == b'.');
        if is_empty || is_dots || !segment_is_normal(segment.as_bytes()) {
            return Err(PathFault::NotNormal);
        }
    }
    Ok(path)
}

/// The path of a request's target, as it stands, without its query.
///
/// # Errors
/// When it is none or too long; never [`PathFault::NotNormal`].
pub fn path_of(target: &str) -> Result<&str, PathFault> {
    if target.len() > MAX_TARGET_BYTES {
        return Err(PathFault::TooLong);
    }
    if !target.starts_with('/') || !target.bytes().all(|b| b.is_ascii_graphic() && b != b'#') {
        return Err(PathFault::NotAPath);
    }
    Ok(target.split_once('?').map_or(target, |(path, _)| path))
}

/// Of a normal segment every escape is needed, spelled in upper case, and stands for a byte that means
/// nothing in a path: not `/`, `\`, `;`, `%` or a control character, which are read differently once
/// they are decoded, or decoded twice.
fn segment_is_normal(segment: &[u8]) -> bool {
    let mut rest = segment;
    while let Some((&byte, tail)) = rest.split_first() {
        rest = match byte {
            b'%' => {
                let [high, low, tail @ ..] = tail else { return false };
                let (Some(high), Some(low)) = (upper_hex(*high), upper_hex(*low)) else {
                    return false;
                };
                let decoded = high << 4 | low;
                let unreserved =
                    decoded.is_ascii_alphanumeric() || matches!(decoded, b'-' | b'.' | b'_' | b'~');
                let dangerous = decoded.is_ascii_control()
                    || matches!(decoded, b'/' | b'\\' | b';' | b'%' | b'?' | b'#');
                if unreserved || dangerous {
                    return false;
                }
                tail
            }
            b'\\' | b';' => return false,
            _ => tail,
        };
    }
    true
}

const fn upper_hex(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}

/// Whether a text is a method that can be asked about: a token (RFC 9110 section 9.1), and not CONNECT,
/// which has no path.
pub fn is_method(text: &str) -> bool {
    let token_char = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    !text.is_empty() && text.len() <= 32 && text.bytes().all(token_char) && text != "CONNECT"
}

/// Which requests a rule is for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Route {
    /// The path, in normal form and without a slash at its end; empty for `/`.
    path: Box<str>,
    /// Whether everything beneath the path belongs to it.
    beneath: bool,
    /// The methods; none means all.
    methods: Box<[Box<str>]>,
    /// Whether it also takes paths that are not in normal form, read literally.
    literal: bool,
}

impl Route {
    /// This path alone, with or without a slash at its end.
    ///
    /// # Errors
    /// When the path is not in normal form or has a query.
    pub fn exact(path: &str) -> Result<Self, PathFault> {
        Self::new(path, false)
    }

    /// This path and everything beneath it: `/a` is for `/a`, `/a/` and `/a/b`, not for `/ab`.
    ///
    /// # Errors
    /// As for [`Route::exact`].
    pub fn beneath(path: &str) -> Result<Self, PathFault> {
        Self::new(path, true)
    }

    fn new(path: &str, beneath: bool) -> Result<Self, PathFault> {
        if normal_path(path)? != path {
            return Err(PathFault::NotAPath);
        }
        let path = path.strip_suffix('/').unwrap_or(path).into();
        Ok(Self { path, beneath, methods: Box::default(), literal: false })
    }

    /// Only for these methods.
    #[must_use]
    pub fn with_methods(mut self, methods: impl IntoIterator<Item = Box<str>>) -> Self {
        self.methods = methods.into_iter().collect();
        self
    }

    /// Also for paths that are not in normal form, if they begin with this path literally.
    #[must_use]
    pub const fn taking_literal_paths(mut self) -> Self {
        self.literal = true;
        self
    }

    /// How it reads in an error or a log line: `GET /a/*`.
    pub fn name(&self) -> String {
        let methods = self.methods.join(",");
        let space = if methods.is_empty() { "" } else { " " };
        let path = match (&*self.path, self.beneath) {
            ("", false) => "/",
            (path, _) => path,
        };
        format!("{methods}{space}{path}{}", if self.beneath { "/*" } else { "" })
    }

    fn takes(&self, method: &str) -> bool {
        self.methods.is_empty() || self.methods.iter().any(|own| **own == *method)
    }

    fn collides(&self, other: &Self) -> bool {
        let both = (self.methods.is_empty(), other.methods.is_empty());
        match both {
            (true, true) => true,
            (false, false) => self.methods.iter().any(|method| other.methods.contains(method)),
            _ => false,
        }
    }
}

/// What was found for a request.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Found<'a, T> {
    /// A rule.
    Rule(&'a T),
    /// There are rules for the path, and none for the method.
    NoMethod,
    /// There is no rule for the path.
    NoRule,
}

type ByPath<T> = HashMap<Box<str>, Vec<(Route, T)>>;

/// Rules by what they are for. The most specific path decides: a path alone before everything beneath
/// one, a longer path before a shorter one. Only its rules count then: if none of them takes the method,
/// the rules of shorter paths are not asked. A rule that names the method goes before one that names none.
/// The order in which rules were written means nothing.
#[derive(Clone, Debug)]
pub struct Routes<T> {
    exact: ByPath<T>,
    beneath: ByPath<T>,
}

impl<T> Routes<T> {
    /// The rules.
    ///
    /// # Errors
    /// The indices of each two rules that are for the same path and method.
    pub fn new(rules: Vec<(Route, T)>) -> Result<Self, Vec<(usize, usize)>> {
        let mut clashes = Vec::new();
        for (index, (route, _)) in rules.iter().enumerate() {
            for (other_index, (other, _)) in rules[..index].iter().enumerate() {
                let same = route.path == other.path && route.beneath == other.beneath;
                if same && route.collides(other) {
                    clashes.push((other_index, index));
                }
            }
        }
        if !clashes.is_empty() {
            return Err(clashes);
        }
        let mut routes = Self { exact: HashMap::new(), beneath: HashMap::new() };
        for (route, rule) in rules {
            let map = if route.beneath { &mut routes.beneath } else { &mut routes.exact };
            let list = map.entry(route.path.clone()).or_default();
            // Those that name methods come first.
            let at = if route.methods.is_empty() { list.len() } else { 0 };
            list.insert(at, (route, rule));
        }
        Ok(routes)
    }

    /// Every rule.
    pub fn iter(&self) -> impl Iterator<Item = &(Route, T)> {
        self.exact.values().chain(self.beneath.values()).flatten()
    }

    /// The same rules with something else in the place of each; `with` gets the name of its route, too.
    pub fn map<U>(&self, with: impl Fn(String, &T) -> U) -> Routes<U> {
        let map = |rules: &ByPath<T>| {
            let each = |(route, rule): &(Route, T)| (route.clone(), with(route.name(), rule));
            let list = |rules: &Vec<(Route, T)>| rules.iter().map(each).collect();
            rules.iter().map(|(path, rules)| (path.clone(), list(rules))).collect()
        };
        Routes { exact: map(&self.exact), beneath: map(&self.beneath) }
    }

    /// What applies to a request.
    ///
    /// # Errors
    /// When the path is not judged.
    pub fn find(&self, method: &str, target: &str) -> Result<Found<'_, T>, PathFault> {
        match normal_path(target) {
            Ok(path) => Ok(self.find_normal(method, path)),
            Err(PathFault::NotNormal) => match self.find_literal(method, path_of(target)?) {
                Found::NoRule => Err(PathFault::NotNormal),
                found => Ok(found),
            },
            Err(fault) => Err(fault),
        }
    }

    fn find_normal(&self, method: &str, path: &str) -> Found<'_, T> {
        let path = path.strip_suffix('/').unwrap_or(path);
        if let Some(rules) = self.exact.get(path) {
            return choose(rules.iter(), method);
        }
        ancestors(path)
            .find_map(|ancestor| self.beneath.get(ancestor))
            .map_or(Found::NoRule, |rules| choose(rules.iter(), method))
    }

    fn find_literal(&self, method: &str, path: &str) -> Found<'_, T> {
        let rules = ancestors(path).find_map(|ancestor| self.beneath.get(ancestor));
        let literal = rules.into_iter().flatten().filter(|(route, _)| route.literal);
        match choose(literal.clone(), method) {
            Found::NoMethod if literal.count() == 0 => Found::NoRule,
            found => found,
        }
    }
}

/// `/a/b`, `/a`, and the empty path, for `/a/b`.
fn ancestors(path: &str) -> impl Iterator<Item = &str> {
    std::iter::successors(Some(path), |path| path.rfind('/').map(|slash| &path[..slash]))
}

fn choose<'a, T: 'a>(
    mut rules: impl Iterator<Item = &'a (Route, T)>,
    method: &str,
) -> Found<'a, T> {
    rules
        .find(|(route, _)| route.takes(method))
        .map_or(Found::NoMethod, |(_, rule)| Found::Rule(rule))
}

#[cfg(test)]
mod tests;
