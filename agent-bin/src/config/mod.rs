//! The settings from the command line, the file and the environment, checked once.
//!
//! Each section of the file is a struct in a file of its own here, deserialised with its defaults, and a field of
//! [`Settings`]. `elklet.example.toml` has every key; a test checks that.

mod buffer;
mod document;
mod error;
mod file;
mod layout;
mod log;
mod plugins;
mod policy;
mod proxy;
mod rights;
mod server;
mod spool;
mod update;
mod upload;
mod value;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;

use elklet_core::command;
use elklet_core::similar::closest;
use serde::Deserialize;

use self::buffer::Buffer;
pub(crate) use self::error::ConfigError;
pub(crate) use self::layout::{ELKEID, Layout};
use self::layout::{Keys, LogKeys};
pub(crate) use self::log::Log;
pub(crate) use self::plugins::{Confinement, PluginSettings, Plugins};
use self::policy::Policy;
pub(crate) use self::proxy::{Proxies, Proxy, Scheme};
pub(crate) use self::rights::{CAPABILITIES, Right, Rights};
pub(crate) use self::server::{Address, Server, pin};
use self::spool::SpoolSettings;
pub(crate) use self::update::Update;
use self::upload::Upload;
pub(crate) use self::upload::UploadRules;
use crate::signing::Signers;
use crate::specified::{Key, Specified};

/// The default idc and region, which are the reference's.
const DEFAULT_NAME: &str = "default";

/// The command line's flags.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Flags {
    pub(crate) config: Option<PathBuf>,
    /// The command makes that file, so that it need not be there yet.
    pub(crate) makes_config: bool,
    pub(crate) workdir: Option<PathBuf>,
    pub(crate) servers: Vec<String>,
    pub(crate) discovery: Vec<String>,
    pub(crate) public: Vec<String>,
    pub(crate) certs: Option<PathBuf>,
    pub(crate) log_stderr: bool,
}

/// The environment's values, in the reference's variables.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Environment {
    /// `SPECIFIED_AGENT_ID`.
    pub(crate) agent_id: Option<OsString>,
    /// `specified_idc`.
    pub(crate) idc: Option<String>,
    /// `specified_region`.
    pub(crate) region: Option<String>,
    /// `RUNTIME_MODE=DEBUG`.
    pub(crate) debug: bool,
    proxy: proxy::Environment,
}

impl Environment {
    pub(crate) fn current() -> Self {
        let text = |name| std::env::var(name).ok().filter(|value: &String| !value.is_empty());
        Self {
            agent_id: std::env::var_os("SPECIFIED_AGENT_ID"),
            idc: text("specified_idc"),
            region: text("specified_region"),
            debug: text("RUNTIME_MODE").is_some_and(|mode| mode == "DEBUG"),
            proxy: proxy::Environment::current(),
        }
    }
}

/// All settings of the agent.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Settings {
    /// True if there was a file to read.
    #[serde(skip)]
    pub(crate) has_file: bool,
    /// Where things lie, by the flags and the file's keys.
    #[serde(skip)]
    pub(crate) layout: Layout,
    workdir: Option<PathBuf>,
    certs: Option<PathBuf>,
    socket: Option<PathBuf>,
    pub(crate) idc: String,
    pub(crate) region: String,
    /// The servers. [`Settings::load`] chooses those of this host's region.
    pub(crate) server: Server,
    /// The servers of regions that have their own.
    pub(crate) regions: BTreeMap<String, Server>,
    /// What set `certs`, for messages.
    #[serde(skip)]
    certs_named_by: String,
    proxy: proxy::Section,
    pub(crate) buffer: Buffer,
    pub(crate) plugins: Plugins,
    /// The plugins that have a section of their own, by name.
    pub(crate) plugin: BTreeMap<String, PluginSettings>,
    pub(crate) spool: SpoolSettings,
    pub(crate) log: Log,
    /// The proxies of `[proxy]` and the environment.
    #[serde(skip)]
    pub(crate) proxies: Proxies,
    upload: Upload,
    #[serde(rename = "policy")]
    policy_section: Policy,
    /// What servers may have this host do.
    #[serde(skip)]
    pub(crate) policy: command::Policy,
    pub(crate) update: Update,
    /// What was skipped, for the log.
    #[serde(skip)]
    pub(crate) warnings: Vec<String>,
    /// `SPECIFIED_AGENT_ID`, or the one in `specified_env`.
    #[serde(skip)]
    pub(crate) agent_id: Option<OsString>,
    /// True if there are servers for hosts of any region.
    #[serde(skip)]
    any_region: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            has_file: false,
            layout: Layout::default(),
            workdir: None,
            certs: None,
            socket: None,
            idc: DEFAULT_NAME.to_owned(),
            region: DEFAULT_NAME.to_owned(),
            server: Server::default(),
            regions: BTreeMap::new(),
            certs_named_by: "certs".to_owned(),
            proxy: proxy::Section::default(),
            buffer: Buffer::default(),
            plugins: Plugins::default(),
            plugin: BTreeMap::new(),
            spool: SpoolSettings::default(),
            log: Log::default(),
            proxies: Proxies::default(),
            upload: Upload::default(),
            policy_section: Policy::default(),
            policy: command::Policy::default(),
            update: Update::default(),
            warnings: Vec::new(),
            agent_id: None,
            any_region: false,
        }
    }
}

impl Settings {
    /// Merges flags, environment and file, key by key, in this order of precedence.
    ///
    /// # Errors
    /// One line that says what is wrong, where, and what was expected.
    pub(crate) fn load(flags: &Flags, environment: &Environment) -> Result<Self, ConfigError> {
        let mut settings: Self = file::read(flags)?;
        settings.policy = settings.policy_section.to_core().map_err(|(key, bad)| ConfigError::Value {
            path: file::path(flags),
            key,
            bad,
        })?;
        settings.layout = Layout::new(flags, &settings.keys());
        settings.layout.check()?;
        settings.certs_named_by = match (&flags.certs, &settings.certs) {
            (Some(_), _) => "--certs".to_owned(),
            (None, Some(_)) => format!("certs in {}", settings.layout.file.display()),
            (None, None) => "certs (the default, see --certs)".to_owned(),
        };
        settings.log.stderr |= flags.log_stderr;
        settings.log.debug |= environment.debug;
        settings.agent_id.clone_from(&environment.agent_id);
        // The environment still has what the file said when the service was started, so the file wins.
        let specified = Specified::read(&settings.layout.workdir).map_err(ConfigError::Specified)?;
        let said = |key, by_environment: &Option<String>| {
            specified.value(key).map(str::to_owned).or_else(|| by_environment.clone())
        };
        if let Some(idc) = said(Key::Idc, &environment.idc) {
            settings.idc = idc;
        }
        if let Some(region) = said(Key::Region, &environment.region) {
            settings.region = region;
        }
        if settings.agent_id.as_ref().is_none_or(|id| id.is_empty()) {
            settings.agent_id = specified.value(Key::Id).map(OsString::from);
        }
        settings.proxies = Proxies::new(&settings.proxy, &environment.proxy, &mut settings.warnings);
        settings.choose_servers(flags)?;
        Ok(settings)
    }

    /// Loads them again. A file that was read before has to be there still: without it, whatever it forbids would be allowed.
    ///
    /// # Errors
    /// As [`Settings::load`].
    pub(crate) fn load_again(&self, flags: &Flags, environment: &Environment) -> Result<Self, ConfigError> {
        let read = self.has_file.then(|| self.layout.file.clone());
        Self::load(&Flags { config: flags.config.clone().or(read), ..flags.clone() }, environment)
    }

    /// Whose signatures the file asks for, if anybody's. It needs no servers.
    ///
    /// # Errors
    /// One line that says what is wrong with the file.
    pub(crate) fn signers(flags: &Flags) -> Result<Option<Signers>, ConfigError> {
        Ok(file::read(flags)?.plugins.signers())
    }

    /// The settings of an agent that has flags and no file.
    ///
    /// # Errors
    /// What is wrong with the flags.
    pub(crate) fn from_flags(flags: &Flags) -> Result<Self, ConfigError> {
        let mut settings = Self::default();
        settings.choose_servers(flags)?;
        Ok(settings)
    }

    fn keys(&self) -> Keys {
        let log = LogKeys { directory: self.log.directory.clone() };
        Keys { workdir: self.workdir.clone(), certs: self.certs.clone(), socket: self.socket.clone(), log }
    }

    /// Returns true when the file contains a proxy's password.
    pub(crate) fn has_proxy_password(&self) -> bool {
        self.proxy.has_password()
    }

    /// Says what is wrong with the certificates, and what set their directory.
    pub(crate) fn blame_certificates(&self, error: impl fmt::Display) -> String {
        format!("{}: {error}", self.certs_named_by)
    }

    /// Returns the names of `[plugin.NAME]` sections that none of these plugins has, each with the plugin that may be meant.
    pub(crate) fn unknown_sections<'a>(&'a self, plugins: &[&'a str]) -> Vec<(&'a str, Option<&'a str>)> {
        let unknown = self.plugin.keys().map(String::as_str).filter(|name| !plugins.contains(name));
        unknown.map(|name| (name, closest(name, plugins.iter().copied()))).collect()
    }

    /// Returns true when there are servers for hosts of a region.
    pub(crate) fn has_region(&self, region: &str) -> bool {
        self.any_region || self.regions.contains_key(region)
    }

    /// Chooses the servers. A region's own servers win over those of `[server]`, and the flags' over both.
    fn choose_servers(&mut self, flags: &Flags) -> Result<(), ConfigError> {
        if !self.server.is_empty()
            || !flags.discovery.is_empty()
            || !flags.servers.is_empty()
            || !flags.public.is_empty()
        {
            self.any_region = true;
        }
        if let Some(own) = self.regions.get(&self.region) {
            self.server = own.clone();
        }
        for (flag, given, servers) in [
            ("--discovery", &flags.discovery, &mut self.server.discovery),
            ("--server", &flags.servers, &mut self.server.private),
            ("--public", &flags.public, &mut self.server.public),
        ] {
            if !given.is_empty() {
                let parsed = given.iter().map(|address| address.parse()).collect::<Result<_, _>>();
                *servers = parsed.map_err(|bad| ConfigError::Flag(flag, bad))?;
            }
        }
        if self.server.is_empty() {
            let region = (!self.regions.is_empty()).then(|| self.region.clone());
            return Err(region.map_or(ConfigError::NoServer, ConfigError::NoServerInRegion));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;
    use std::path::Path;

    use super::plugins::sandbox::{CPU_PERCENT, DISK_MIB, MEMORY_MIB, PROCESSES};
    use super::value::Within;
    use super::*;

    fn flags(workdir: &Path) -> Flags {
        Flags { workdir: Some(workdir.to_owned()), ..Flags::default() }
    }

    fn load_as(file: &str, region: Option<&str>) -> Result<Settings, ConfigError> {
        let workdir = tempfile::tempdir().expect("a directory");
        fs::write(workdir.path().join("elklet.toml"), file).expect("writable");
        let environment = Environment { region: region.map(str::to_owned), ..Environment::default() };
        Settings::load(&flags(workdir.path()), &environment)
    }

    fn addresses(texts: &[&str]) -> Vec<Address> {
        texts.iter().map(|text| text.parse().expect("an address")).collect()
    }

    #[test]
    fn a_file_that_a_flag_names_is_there_unless_the_command_makes_it() {
        let workdir = tempfile::tempdir().expect("a directory");
        let named = Flags {
            config: Some(workdir.path().join("new.toml")),
            servers: vec!["a:1".to_owned()],
            ..flags(workdir.path())
        };
        assert!(matches!(Settings::load(&named, &Environment::default()), Err(ConfigError::File(_))));
        let made = Flags { makes_config: true, ..named };
        let settings = Settings::load(&made, &Environment::default()).expect("it will be there");
        assert_eq!(settings.layout.file, workdir.path().join("new.toml"));
    }

    #[test]
    fn flags_come_before_the_file() {
        let workdir = tempfile::tempdir().expect("a directory");
        let file = "certs = \"/a\"\n[server]\nprivate = [\"a:1\"]\npublic = [\"b:2\"]\n[buffer]\narena_kib = 256\n";
        fs::write(workdir.path().join("elklet.toml"), file).expect("writable");
        let given = Flags { servers: vec!["c:3".into()], certs: Some("/c".into()), ..flags(workdir.path()) };
        let settings = Settings::load(&given, &Environment::default()).expect("valid");
        assert_eq!(settings.server.private, addresses(&["c:3"]));
        assert_eq!(settings.server.public, addresses(&["b:2"]));
        assert_eq!((settings.layout.certs, settings.buffer.arena_bytes()), (PathBuf::from("/c"), 256 << 10));
    }

    /// The example's text, and the same with every key enabled.
    fn example() -> (&'static str, String) {
        let text = include_str!("../../elklet.example.toml");
        let uncommented: Vec<_> = text
            .lines()
            .map(|line| line.strip_prefix('#').filter(|rest| !rest.starts_with([' ', '#'])).unwrap_or(line))
            .collect();
        (text, uncommented.join("\n"))
    }

    /// Collects the dotted keys of a table and of the tables in it.
    fn keys(of: &serde_json::Value, prefix: &str, into: &mut BTreeSet<String>) {
        let Some(table) = of.as_object() else { return };
        for (key, value) in table {
            let key = format!("{prefix}{key}");
            keys(value, &format!("{key}."), into);
            if !value.is_object() {
                into.insert(key);
            }
        }
    }

    #[test]
    fn the_example_changes_nothing_as_it_is() {
        let (text, _) = example();
        assert_eq!(file::parse(text), Ok(Settings::default()));
    }

    #[test]
    fn the_example_has_every_key_with_its_default() {
        let (_, uncommented) = example();
        let mut settings: Settings = file::parse(&uncommented).expect("it is valid");
        assert_eq!(settings.workdir.take().as_deref(), Some(Path::new(ELKEID)), "it is what Elkeid's agent has");
        let named = [&mut settings.certs, &mut settings.socket, &mut settings.log.directory].map(Option::take);
        let Layout { certs, socket, log, .. } = Layout::new(&Flags::default(), &settings.keys());
        assert_eq!(named, [certs, socket, log].map(Some));
        // What has no value of its own is shown with that of the sandboxes.
        let Plugins { memory_mib, cpu_percent, processes, disk_mib, .. } = &mut settings.plugins;
        let shown = [
            memory_mib.take().map(Within::value),
            cpu_percent.take().map(Within::value),
            processes.take().map(Within::value),
            disk_mib.take().map(Within::value),
        ];
        assert_eq!(shown, [MEMORY_MIB, CPU_PERCENT, PROCESSES, DISK_MIB].map(Some));
        assert_eq!(settings.upload_rules().allow, Settings::default().upload_rules().allow);
        settings.upload = Upload::default();
        // Sections of which there may be several have one example each, with nothing but defaults in it.
        assert_eq!(settings.regions.remove("eu"), Some(Server::default()));
        let collector = settings.plugin.remove("collector");
        let confinement = |own| Confinement { memory_by_rlimit: true, ..settings.plugins.confinement(own, true) };
        assert_eq!(confinement(collector.as_ref()), confinement(None));
        assert_eq!(settings, Settings::default());

        settings.regions.insert("eu".to_owned(), Server::default());
        settings.plugin.insert("collector".to_owned(), PluginSettings::default());
        let mut expected = BTreeSet::new();
        keys(&serde_json::to_value(&settings).expect("it has no odd keys"), "", &mut expected);
        let written: toml::Table = uncommented.parse().expect("it is TOML");
        let mut found = BTreeSet::new();
        keys(&serde_json::to_value(&written).expect("it has no odd keys"), "", &mut found);
        assert_eq!(found, expected);
    }

    #[test]
    fn a_region_has_servers_of_its_own_or_those_of_all() {
        let file = "[server]\nprivate = [\"a:1\"]\n[regions.eu]\npublic = [\"b:2\"]\n";
        let eu = load_as(file, Some("eu")).expect("valid");
        assert_eq!((&eu.server.private[..], &eu.server.public[..]), (&[][..], &addresses(&["b:2"])[..]));
        for region in [None, Some("us")] {
            let other = load_as(file, region).expect("valid");
            assert_eq!(other.server.private, addresses(&["a:1"]));
        }
        let error = load_as("[regions.eu]\npublic = [\"b:2\"]\n", Some("us")).expect_err("no server").to_string();
        assert_eq!(error, "no server for region \"us\": neither [regions.us] nor [server] names one");
        let named = load_as("region = \"eu\"\n[regions.eu]\npublic = [\"b:2\"]\n", None).expect("valid");
        assert_eq!(named.server.public, addresses(&["b:2"]));
    }

    #[test]
    fn what_is_wrong_is_said_in_one_line_with_its_place() {
        for (file, expected) in [
            ("\n\nserver = 3\n", "elklet.toml:3: server: "),
            ("[server]\nprivat = []\n", "elklet.toml:2: server.privat: unknown key `privat`, did you mean `private`?"),
            (
                "[server]\nprivate = [\n\"nowhere\"]\n",
                "elklet.toml:3: server.private: \"nowhere\" is no address, expected",
            ),
            ("[regions.eu]\npublic = [\"b\"]\n", "elklet.toml:2: regions.eu.public: \"b\" is no address"),
            (
                "[server]\nprivate = [\"a:1\"]\n[buffer]\narena_kib = 1\n",
                "elklet.toml:4: buffer.arena_kib: 1 is out of bounds, expected 128 to 8192",
            ),
            ("[log]\nstderr = 1\n", "elklet.toml:2: log.stderr: 1, expected true or false"),
            ("[log]\nstderr = true\nstderr = true\n", "elklet.toml:3: "),
            (
                "[server]\nreconnect_spread_s = 0\n",
                "elklet.toml:2: server.reconnect_spread_s: 0 is out of bounds, expected 1 to 3600",
            ),
            ("[upload]\nallow = [\"var\"]\n", "elklet.toml:2: upload.allow: \"var\" is no absolute path, expected one"),
            ("[lok]\n", "elklet.toml:1: lok: unknown key `lok`, did you mean `log`?"),
            ("[buffer]\nsize = 1\n", "elklet.toml:2: buffer.size: unknown key `size`, expected one of: arena_kib"),
            ("[plugins]\nwhen_full = \"drop-oldest\"\n", "unknown word `drop-oldest`, did you mean `drop_oldest`?"),
            ("[buffer]\narena_kib = \"x\"\n", "elklet.toml:2: buffer.arena_kib: \"x\", expected a whole number"),
            ("[buffer]\narena_kib = 1.5\n", "buffer.arena_kib: 1.5, expected a whole number"),
            ("[server]\nprivate = \"a:1\"\n", "server.private: \"a:1\", expected a list, as in [\"...\"]"),
            ("certs = []\n", "elklet.toml:1: certs: a list, expected a path in quotes"),
            ("log = 3\n", "elklet.toml:1: log: 3, expected a section with keys of its own"),
            ("server = [[\"a:1\"]]\n", "elklet.toml:1: server: a list, expected a section with keys of its own"),
            ("[buffer]\narena_kib = 2026-01-31\n", "elklet.toml:2: buffer.arena_kib: a date, expected a whole number"),
            (
                "[buffer]\narena_kib = 9223372036854775808\n",
                "buffer.arena_kib: 9223372036854775808 has more than 64 bits",
            ),
            ("[plugins]\nwhen_full = {}\n", "elklet.toml:2: plugins.when_full: a section, expected a text in quotes"),
            ("", "no server: name one"),
        ] {
            let error = load_as(file, None).expect_err(file).to_string();
            assert!(error.contains(expected) && !error.contains('\n'), "{expected}\n{error}");
        }
    }
}
