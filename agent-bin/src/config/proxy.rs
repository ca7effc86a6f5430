//! `[proxy]` and the environment's proxies: how to reach servers through a proxy.

use elklet_core::link::proxy::{BadException, Credentials, Exceptions, Kind};
use serde::Deserialize;

use super::server::Address;
use super::value::BadValue;

/// The file's section about proxies.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Section {
    /// The proxy for everything. An empty text leaves it to the environment, and `none` goes without.
    url: Choice,
    /// Targets that need no proxy. An empty list leaves it to the environment.
    no_proxy: Vec<Exception>,
}

impl Section {
    /// Returns true when its proxy has a user and a password.
    pub(super) fn has_password(&self) -> bool {
        matches!(&self.url, Choice::Proxy(proxy) if proxy.credentials.is_some())
    }
}

/// The environment's proxies, in the variables that curl and Go read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Environment {
    https: Option<Variable>,
    http: Option<Variable>,
    all: Option<Variable>,
    exceptions: Option<Variable>,
}

/// The name and the value of a variable that is set. A value that is not UTF-8 is `None`.
type Variable = (&'static str, Option<String>);

impl Environment {
    pub(super) fn current() -> Self {
        let first = |names: [&'static str; 2]| {
            names.into_iter().find_map(|name| {
                let value = std::env::var_os(name)?.into_string().ok();
                let is_set = value.as_ref().is_none_or(|value| !value.trim().is_empty());
                is_set.then_some((name, value))
            })
        };
        Self {
            https: first(["HTTPS_PROXY", "https_proxy"]),
            http: first(["HTTP_PROXY", "http_proxy"]),
            all: first(["ALL_PROXY", "all_proxy"]),
            exceptions: first(["NO_PROXY", "no_proxy"]),
        }
    }
}

/// The kind of a connection. The environment may name a proxy for each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scheme {
    /// Plain HTTP: service discovery, and downloads from `http://`.
    Http,
    /// TLS: AgentCenter, and downloads from `https://`.
    Https,
}

/// The proxies for all targets.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Proxies {
    https: Option<Proxy>,
    http: Option<Proxy>,
    exceptions: Exceptions,
}

impl Proxies {
    /// Merges the file's section and the environment. The section wins.
    ///
    /// The environment was written for other programs as well, so what is not understood there is skipped with a warning.
    pub(super) fn new(section: &Section, environment: &Environment, warnings: &mut Vec<String>) -> Self {
        let (https, http) = match &section.url {
            Choice::Environment => {
                let all = environment.all.as_ref().and_then(|variable| understood(variable, warnings));
                let mut of = |variable: &Option<Variable>| match variable {
                    Some(variable) => understood(variable, warnings).or_else(|| all.clone()),
                    None => all.clone(),
                };
                (of(&environment.https), of(&environment.http))
            }
            Choice::Nothing => (None, None),
            Choice::Proxy(proxy) => (Some(proxy.clone()), Some(proxy.clone())),
        };
        let mut exceptions = Exceptions::default();
        if !section.no_proxy.is_empty() {
            for Exception(entry) in &section.no_proxy {
                exceptions.add(entry).expect("it was tried when the file was read");
            }
        } else if let Some((name, value)) = &environment.exceptions {
            let Some(value) = value else {
                warnings.push(passed_over(name, "it is not UTF-8"));
                return Self { https, http, exceptions };
            };
            let entries = value.split(|c: char| c.is_whitespace() || [',', ';'].contains(&c));
            for entry in entries.filter(|entry| !entry.is_empty()) {
                if let Err(error) = exceptions.add(entry) {
                    warnings.push(passed_over(name, &error.to_string()));
                }
            }
        }
        Self { https, http, exceptions }
    }

    /// Returns the proxy through which to reach this target, if there is one. An IPv6 address comes without brackets.
    pub(crate) fn for_target(&self, scheme: Scheme, host: &str, port: u16) -> Option<&Proxy> {
        let proxy = match scheme {
            Scheme::Http => self.http.as_ref(),
            Scheme::Https => self.https.as_ref(),
        };
        proxy.filter(|_| !self.exceptions.contains(host, port))
    }
}

/// Parses a variable of the environment. Other programs accept more than host and port there and ignore the rest, so
/// this does too.
fn understood((name, value): &Variable, warnings: &mut Vec<String>) -> Option<Proxy> {
    let parse = |value: &str| {
        let value = value.trim();
        let host = value.rfind('@').map_or_else(|| value.find("://").map_or(0, |at| at + 3), |at| at + 1);
        let end = value[host..].find(['/', '?', '#']).map_or(value.len(), |at| host + at);
        value[..end].parse().map_err(|bad: BadValue| bad.to_string())
    };
    let parsed = match value {
        Some(value) => parse(value),
        None => Err("it is not UTF-8".to_owned()),
    };
    parsed.map_err(|error| warnings.push(passed_over(name, &error))).ok()
}

fn passed_over(name: &str, why: &str) -> String {
    format!("{name} in the environment: {why}; it is passed over")
}

/// One proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Proxy {
    pub(crate) kind: Kind,
    pub(crate) address: Address,
    pub(crate) credentials: Option<Credentials>,
}

impl std::str::FromStr for Proxy {
    type Err = BadValue;

    /// Parses `http://USER:PASSWORD@HOST:PORT` or `socks5://...`. What is between `//` and `@` is optional and percent-encoded.
    fn from_str(url: &str) -> Result<Self, BadValue> {
        let (scheme, rest) = url.split_once("://").unwrap_or(("http", url));
        let (login, address) = rest.rsplit_once('@').map_or((None, rest), |(login, address)| (Some(login), address));
        let address = address.strip_suffix('/').unwrap_or(address);
        // Keep the login out of messages.
        let wrong = |why| BadValue::Proxy { url: format!("{scheme}://{address}"), why };
        let (kind, port) = match &*scheme.to_ascii_lowercase() {
            "http" => (Kind::Http, 80),
            "socks5" | "socks5h" => (Kind::Socks5, 1080),
            _ => return Err(wrong("its kind is unknown")),
        };
        let with_port = || format!("{address}:{port}").parse().ok();
        let address = address.parse().ok().or_else(with_port).ok_or_else(|| wrong("its address is not understood"))?;
        let credentials = login.map(credentials).transpose().map_err(wrong)?;
        Ok(Self { kind, address, credentials })
    }
}

fn credentials(login: &str) -> Result<Credentials, &'static str> {
    let (user, password) = login.split_once(':').unwrap_or((login, ""));
    let decoded = |text| percent_decoded(text).ok_or("its user or password is badly encoded");
    Credentials::new(decoded(user)?, decoded(password)?)
}

fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut parts = text.split('%');
    bytes.extend_from_slice(parts.next()?.as_bytes());
    for part in parts {
        let (digits, rest) = part.split_at_checked(2).filter(|(digits, _)| !digits.starts_with('+'))?;
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        bytes.extend_from_slice(rest.as_bytes());
    }
    String::from_utf8(bytes).ok()
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
enum Choice {
    #[default]
    Environment,
    Nothing,
    Proxy(Proxy),
}

impl TryFrom<String> for Choice {
    type Error = BadValue;

    fn try_from(url: String) -> Result<Self, BadValue> {
        Ok(match &*url {
            "" => Self::Environment,
            "none" => Self::Nothing,
            url => Self::Proxy(url.parse()?),
        })
    }
}

/// An entry that [`Exceptions`] accepts.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(try_from = "String")]
struct Exception(String);

impl TryFrom<String> for Exception {
    type Error = BadException;

    fn try_from(entry: String) -> Result<Self, BadException> {
        Exceptions::default().add(&entry)?;
        Ok(Self(entry))
    }
}

#[cfg(test)]
impl serde::Serialize for Choice {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{self:?}"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::config::file::parse;

    fn section(text: &str) -> Section {
        parse(text).expect("a good section")
    }

    fn variable(value: &str) -> Option<Variable> {
        Some(("A_PROXY", Some(value.to_owned())))
    }

    fn way(proxies: &Proxies, scheme: Scheme, host: &str) -> Option<String> {
        proxies.for_target(scheme, host, 1).map(|proxy| proxy.address.to_string())
    }

    #[test]
    fn proxies_are_written_as_addresses() {
        for (url, kind, address, login) in [
            ("http://10.0.0.1:3128", Kind::Http, "10.0.0.1:3128", None),
            ("proxy.example:8080/", Kind::Http, "proxy.example:8080", None),
            ("http://proxy", Kind::Http, "proxy:80", None),
            ("SOCKS5://[fd00::1]", Kind::Socks5, "[fd00::1]:1080", None),
            ("socks5h://a:9", Kind::Socks5, "a:9", None),
            ("http://joe:s%3a%40cret@a:1", Kind::Http, "a:1", Some(("joe", "s:@cret"))),
            ("socks5://joe@a:1", Kind::Socks5, "a:1", Some(("joe", ""))),
            ("http://joe:p@ss@a:1", Kind::Http, "a:1", Some(("joe", "p@ss"))),
        ] {
            let proxy: Proxy = url.parse().expect(url);
            let login = login.map(|(user, password)| Credentials::new(user.into(), password.into()).expect("short"));
            assert_eq!((proxy.kind, &*proxy.address.to_string(), proxy.credentials), (kind, address, login), "{url}");
        }
        for bad in
            ["", "https://a:1", "ftp://a:1", "http://", "http://a:b", "http://a/b", "http://%zz:x@a:1", "http://%+1@a"]
        {
            let error = bad.parse::<Proxy>().expect_err(bad).to_string();
            assert!(error.contains("is no proxy") && error.contains("expected"), "{error}");
        }
        let error = "http://joe:secret@a:b".parse::<Proxy>().expect_err("no port");
        assert!(!format!("{error:?}").contains("secret"), "{error:?}");
        let error = error.to_string();
        assert!(!error.contains("secret"), "{error}");
    }

    /// The proxies, when there is nothing to warn of.
    fn quiet(section: &Section, environment: &Environment) -> Proxies {
        let mut warnings = Vec::new();
        let proxies = Proxies::new(section, environment, &mut warnings);
        assert!(warnings.is_empty(), "{warnings:?}");
        proxies
    }

    #[test]
    fn the_file_comes_before_the_environment() {
        let environment = Environment {
            https: variable("http://tls:1"),
            http: variable("http://plain:1"),
            all: variable("http://all:1"),
            exceptions: variable("a.example, b.example"),
        };
        let proxies = quiet(&Section::default(), &environment);
        assert_eq!(way(&proxies, Scheme::Https, "x").as_deref(), Some("tls:1"));
        assert_eq!(way(&proxies, Scheme::Http, "x").as_deref(), Some("plain:1"));
        assert_eq!(
            (way(&proxies, Scheme::Https, "a.example"), way(&proxies, Scheme::Http, "c.b.example")),
            (None, None)
        );

        let only_all = Environment { https: None, http: None, ..environment.clone() };
        let proxies = quiet(&Section::default(), &only_all);
        assert_eq!(way(&proxies, Scheme::Https, "x").as_deref(), Some("all:1"));
        assert_eq!(way(&proxies, Scheme::Http, "x").as_deref(), Some("all:1"));

        let file = section("url = \"socks5://mine:2\"\nno_proxy = [\"10.0.0.0/8\"]\n");
        let proxies = quiet(&file, &environment);
        for scheme in [Scheme::Http, Scheme::Https] {
            assert_eq!(way(&proxies, scheme, "a.example").as_deref(), Some("mine:2"));
            assert_eq!(way(&proxies, scheme, "10.1.1.1"), None);
        }
        let proxies = quiet(&section("url = \"none\""), &environment);
        assert_eq!(way(&proxies, Scheme::Https, "x"), None);
    }

    #[test]
    fn what_the_environment_says_for_others_is_told_and_passed_over() {
        let with = |environment: &Environment| {
            let mut warnings = Vec::new();
            let proxies = Proxies::new(&Section::default(), environment, &mut warnings);
            (proxies, warnings)
        };
        for (value, way_to_x) in [
            ("proxy.example:8080/path?query", Some("proxy.example:8080")),
            (" http://joe:a/b@proxy.example/ ", Some("proxy.example:80")),
            ("https://a:1", None),
            ("://", None),
            ("http://b\u{f6}hm:1", None),
        ] {
            let (proxies, warnings) = with(&Environment { https: variable(value), ..Environment::default() });
            assert_eq!(way(&proxies, Scheme::Https, "x").as_deref(), way_to_x, "{value}");
            assert_eq!(warnings.len(), usize::from(way_to_x.is_none()), "{value}: {warnings:?}");
            assert!(warnings.iter().all(|warning| warning.starts_with("A_PROXY in the environment: ")), "{warnings:?}");
        }
        let all = variable("all:1");
        let (proxies, warnings) = with(&Environment { https: variable("ftp://a"), all, ..Environment::default() });
        assert_eq!((way(&proxies, Scheme::Https, "x").as_deref(), warnings.len()), (Some("all:1"), 1));

        let odd = "a.example;192.168.*\t<local> 10.0.0.1-10.0.0.9,,http://b/, c.example:1";
        let environment = Environment { all: variable("all:1"), exceptions: variable(odd), ..Environment::default() };
        let (proxies, warnings) = with(&environment);
        for direct in ["a.example", "192.168.3.4", "intranet", "c.example"] {
            assert_eq!(way(&proxies, Scheme::Http, direct), None, "{direct}");
        }
        assert!(way(&proxies, Scheme::Http, "10.0.0.1").is_some());
        assert_eq!(warnings.len(), 2, "{warnings:?}");
        let nothing = Some(("A_PROXY", None));
        let (_, warnings) = with(&Environment { all: nothing.clone(), exceptions: nothing, ..Environment::default() });
        assert_eq!(warnings, ["A_PROXY in the environment: it is not UTF-8; it is passed over"; 2]);
        // If the file says something, the environment does not matter.
        let file = section("url = \"none\"\nno_proxy = [\"a\"]");
        assert!(quiet(&file, &environment).http.is_none());
    }

    proptest! {
        #[test]
        fn no_url_is_too_odd(url in "(http://|socks5://)?.{0,60}") {
            let _ = url.parse::<Proxy>();
        }
    }
}
