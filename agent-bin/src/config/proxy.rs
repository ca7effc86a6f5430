//! `[proxy]`, and the environment's proxies: the way to servers that are not reached directly.

use elklet_core::proxy::{Credentials, Exceptions, Kind};
use serde::Deserialize;

use super::server::Address;

/// What the file says of proxies.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Section {
    /// The proxy for everything; nothing leaves it to the environment, `none` goes without.
    url: Choice,
    /// Targets that need none; an empty list leaves it to the environment.
    no_proxy: Vec<Exception>,
}

/// What the environment says of proxies, in the variables that curl and Go read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Environment {
    https: Option<Variable>,
    http: Option<Variable>,
    all: Option<Variable>,
    exceptions: Option<Variable>,
}

/// The name and the value of a variable that is set.
type Variable = (&'static str, String);

impl Environment {
    pub(super) fn current() -> Self {
        let first = |names: [&'static str; 2]| {
            names.into_iter().find_map(|name| {
                let value = std::env::var(name).ok().filter(|value| !value.trim().is_empty())?;
                Some((name, value))
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

/// Who asks for a way: the proxies of the environment differ by that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scheme {
    /// Plain HTTP: service discovery, and downloads from `http://`.
    Http,
    /// TLS: AgentCenter, and downloads from `https://`.
    Https,
}

/// The way to every target.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Proxies {
    https: Option<Proxy>,
    http: Option<Proxy>,
    exceptions: Exceptions,
}

impl Proxies {
    /// Puts the file's section and the environment together; the section comes first.
    ///
    /// # Errors
    /// When a variable that counts cannot be understood; the text names it.
    pub(super) fn new(section: &Section, environment: &Environment) -> Result<Self, String> {
        let of = |variable: &Option<Variable>| match variable.as_ref().or(environment.all.as_ref()) {
            Some((name, value)) => value.trim().parse().map(Some).map_err(|error: String| format!("{name}: {error}")),
            None => Ok(None),
        };
        let (https, http) = match &section.url {
            Choice::Environment => (of(&environment.https)?, of(&environment.http)?),
            Choice::Nothing => (None, None),
            Choice::Proxy(proxy) => (Some(proxy.clone()), Some(proxy.clone())),
        };
        let mut exceptions = Exceptions::default();
        if section.no_proxy.is_empty() {
            if let Some((name, value)) = &environment.exceptions {
                for entry in value.split([',', ' ']).filter(|entry| !entry.is_empty()) {
                    exceptions.add(entry).map_err(|error| format!("{name}: {error}"))?;
                }
            }
        } else {
            for Exception(entry) in &section.no_proxy {
                exceptions.add(entry)?;
            }
        }
        Ok(Self { https, http, exceptions })
    }

    /// The proxy through which this target is reached, if it is not directly; an IPv6 address comes without brackets.
    pub(crate) fn for_target(&self, scheme: Scheme, host: &str, port: u16) -> Option<&Proxy> {
        let proxy = match scheme {
            Scheme::Http => self.http.as_ref(),
            Scheme::Https => self.https.as_ref(),
        };
        proxy.filter(|_| !self.exceptions.contains(host, port))
    }
}

/// One proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Proxy {
    pub(crate) kind: Kind,
    pub(crate) address: Address,
    pub(crate) credentials: Option<Credentials>,
}

impl std::str::FromStr for Proxy {
    type Err = String;

    /// `http://USER:PASSWORD@HOST:PORT` or `socks5://...`; what is between `//` and `@` is optional and percent-encoded.
    fn from_str(url: &str) -> Result<Self, String> {
        let (scheme, rest) = url.split_once("://").unwrap_or(("http", url));
        let (login, address) = rest.rsplit_once('@').map_or((None, rest), |(login, address)| (Some(login), address));
        let address = address.strip_suffix('/').unwrap_or(address);
        // The login stays out of messages.
        let wrong = |why: &str| {
            format!(
                "{scheme}://{address} is no proxy: {why}, expected http:// or socks5://, [USER:PASSWORD@], HOST:PORT"
            )
        };
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
    type Error = String;

    fn try_from(url: String) -> Result<Self, String> {
        Ok(match &*url {
            "" => Self::Environment,
            "none" => Self::Nothing,
            url => Self::Proxy(url.parse()?),
        })
    }
}

/// An entry that [`Exceptions`] takes.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(try_from = "String")]
struct Exception(String);

impl TryFrom<String> for Exception {
    type Error = String;

    fn try_from(entry: String) -> Result<Self, String> {
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

    fn section(text: &str) -> Section {
        toml::from_str(text).expect("a good section")
    }

    fn variable(value: &str) -> Option<Variable> {
        Some(("A_PROXY", value.to_owned()))
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
            let error = bad.parse::<Proxy>().expect_err(bad);
            assert!(error.contains("is no proxy") && error.contains("expected"), "{error}");
        }
        let error = "http://joe:secret@a:b".parse::<Proxy>().expect_err("no port");
        assert!(!error.contains("secret"), "{error}");
    }

    #[test]
    fn the_file_comes_before_the_environment() {
        let environment = Environment {
            https: variable("http://tls:1"),
            http: variable("http://plain:1"),
            all: variable("http://all:1"),
            exceptions: variable("a.example, b.example"),
        };
        let proxies = Proxies::new(&Section::default(), &environment).expect("valid");
        assert_eq!(way(&proxies, Scheme::Https, "x").as_deref(), Some("tls:1"));
        assert_eq!(way(&proxies, Scheme::Http, "x").as_deref(), Some("plain:1"));
        assert_eq!(
            (way(&proxies, Scheme::Https, "a.example"), way(&proxies, Scheme::Http, "c.b.example")),
            (None, None)
        );

        let only_all = Environment { https: None, http: None, ..environment.clone() };
        let proxies = Proxies::new(&Section::default(), &only_all).expect("valid");
        assert_eq!(way(&proxies, Scheme::Https, "x").as_deref(), Some("all:1"));
        assert_eq!(way(&proxies, Scheme::Http, "x").as_deref(), Some("all:1"));

        let file = section("url = \"socks5://mine:2\"\nno_proxy = [\"10.0.0.0/8\"]\n");
        let proxies = Proxies::new(&file, &environment).expect("valid");
        for scheme in [Scheme::Http, Scheme::Https] {
            assert_eq!(way(&proxies, scheme, "a.example").as_deref(), Some("mine:2"));
            assert_eq!(way(&proxies, scheme, "10.1.1.1"), None);
        }
        let proxies = Proxies::new(&section("url = \"none\""), &environment).expect("valid");
        assert_eq!(way(&proxies, Scheme::Https, "x"), None);
    }

    #[test]
    fn a_wrong_variable_is_named_only_where_it_counts() {
        let environment = Environment { https: variable("https://a:1"), ..Environment::default() };
        let error = Proxies::new(&Section::default(), &environment).expect_err("unknown kind");
        assert!(error.starts_with("A_PROXY: https://a:1 is no proxy: "), "{error}");
        assert!(Proxies::new(&section("url = \"http://b:1\""), &environment).is_ok());
        let environment = Environment { exceptions: variable("a b:c"), ..Environment::default() };
        let error = Proxies::new(&Section::default(), &environment).expect_err("no port");
        assert!(error.starts_with("A_PROXY: \"b:c\" is no exception"), "{error}");
    }

    proptest! {
        #[test]
        fn no_url_is_too_odd(url in "(http://|socks5://)?.{0,60}") {
            let _ = url.parse::<Proxy>();
        }
    }
}
