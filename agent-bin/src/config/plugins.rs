//! `[plugins]` and `[plugin.NAME]`: whose signature plugins need, and their limits.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error, SeqAccess, Visitor};

use super::rights::{Profile, Right, Rights};
use super::value::Within;
use crate::signing::{PublicKey, SignedAfter, Signers};

/// Settings for every plugin.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Plugins {
    public_key: Keys,
    signed_after: SignedAfter,
    allow_downgrade: bool,
    /// These four are as the profile says, if they are not set.
    pub(super) memory_mib: Option<MemoryMib>,
    pub(super) cpu_percent: Option<CpuPercent>,
    pub(super) processes: Option<Processes>,
    pub(super) disk_mib: Option<DiskMib>,
    open_files: OpenFiles,
    no_new_privs: bool,
    end_with_agent: bool,
    when_full: WhenFull,
    profile: Profile,
    allow: Vec<Right>,
}

/// Settings for one plugin. Each overrides the same key of [`Plugins`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(deny_unknown_fields, default)]
pub(crate) struct PluginSettings {
    memory_mib: Option<MemoryMib>,
    cpu_percent: Option<CpuPercent>,
    processes: Option<Processes>,
    open_files: Option<OpenFiles>,
    disk_mib: Option<DiskMib>,
    no_new_privs: Option<bool>,
    end_with_agent: Option<bool>,
    when_full: Option<WhenFull>,
    profile: Option<Profile>,
    allow: Option<Vec<Right>>,
}

/// What happens to a plugin's records when there is no server and no room for them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(rename_all = "snake_case")]
enum WhenFull {
    /// Drop the oldest records of all plugins, and count them.
    #[default]
    DropOldest,
    /// Do not read from the plugin until there is room.
    Wait,
}

/// 0 means no limit, for a plugin in a sandbox too. That is not the same as to say nothing.
pub(super) type MemoryMib = Within<0, { 1 << 20 }>;
pub(super) type CpuPercent = Within<0, 100_000>;
pub(super) type Processes = Within<0, { 1 << 20 }>;
pub(super) type DiskMib = Within<0, { 1 << 20 }>;
type OpenFiles = Within<0, { 1 << 20 }>;

/// What a plugin in a sandbox may have unless somebody says otherwise. A trusted plugin may have whatever it likes, as in Elkeid.
///
/// Elkeid's service leaves half of this memory, and a tenth of one processor, to its agent and all plugins together. The known plugins
/// have some ten MiB in their directories, and the agent keeps two of each one's standard error there.
pub(super) mod sandbox {
    pub(in crate::config) const MEMORY_MIB: u32 = 512;
    pub(in crate::config) const CPU_PERCENT: u32 = 100;
    pub(in crate::config) const PROCESSES: u32 = 256;
    pub(in crate::config) const DISK_MIB: u32 = 256;
}

/// A public key, or a list of at most two. Empty texts stand for none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Keys {
    first: Option<PublicKey>,
    /// Only if there is a first.
    second: Option<PublicKey>,
}

impl Keys {
    fn add<E: Error>(&mut self, text: &str) -> Result<(), E> {
        if text.is_empty() {
            return Ok(());
        }
        let place = if self.first.is_none() { &mut self.first } else { &mut self.second };
        if place.is_some() {
            return Err(E::custom("more than two keys, expected a key or a list of at most two"));
        }
        *place = Some(text.parse().map_err(E::custom)?);
        Ok(())
    }
}

impl<'de> Deserialize<'de> for Keys {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OneOrTwo;

        impl<'de> Visitor<'de> for OneOrTwo {
            type Value = Keys;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a key or a list of at most two")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Keys, E> {
                let mut keys = Keys::default();
                keys.add(text).map(|()| keys)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Keys, A::Error> {
                let mut keys = Keys::default();
                while let Some(text) = list.next_element::<String>()? {
                    keys.add(&text)?;
                }
                Ok(keys)
            }
        }

        deserializer.deserialize_any(OneOrTwo)
    }
}

#[cfg(test)]
impl serde::Serialize for Keys {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.first.map(|key| key.to_string()).unwrap_or_default())
    }
}

impl Default for Plugins {
    fn default() -> Self {
        Self {
            public_key: Keys::default(),
            signed_after: SignedAfter::default(),
            allow_downgrade: false,
            memory_mib: None,
            cpu_percent: None,
            processes: None,
            disk_mib: None,
            open_files: OpenFiles::new(0),
            no_new_privs: true,
            end_with_agent: true,
            when_full: WhenFull::default(),
            profile: Profile::default(),
            allow: Vec::new(),
        }
    }
}

/// The limits of one plugin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Confinement {
    /// Bytes of memory.
    pub(crate) memory: Option<u64>,
    /// True if a resource limit may take the place of a control group. It counts memory that a process has asked for and never used,
    /// which an owner's limit allows for, and that of [`sandbox`] does not.
    pub(crate) memory_by_rlimit: bool,
    /// Hundredths of one processor.
    pub(crate) cpu_percent: Option<u64>,
    /// Processes and threads.
    pub(crate) processes: Option<u64>,
    /// Open files of each process.
    pub(crate) open_files: Option<u64>,
    /// True if no program that it starts may have more rights than it has itself.
    pub(crate) no_new_privs: bool,
    /// True if it is killed when the agent ends without stopping it.
    pub(crate) end_with_agent: bool,
}

impl Plugins {
    /// Whose signature plugins need, if anybody's.
    pub(crate) fn signers(&self) -> Option<Signers> {
        let Keys { first, second } = self.public_key;
        first.map(|first| Signers { first, second, signed_after: self.signed_after })
    }

    /// Returns true when a signed plugin may be an earlier version than one that has run.
    pub(crate) fn allow_downgrade(&self) -> bool {
        self.allow_downgrade
    }

    /// Returns true when the oldest records may be dropped for those of a plugin with the section `own`, if any.
    pub(crate) fn may_drop(&self, own: Option<&PluginSettings>) -> bool {
        own.and_then(|own| own.when_full).unwrap_or(self.when_full) == WhenFull::DropOldest
    }

    /// The rights of the plugin `name` with the section `own`, if any. `None` leaves it all that the agent has.
    pub(crate) fn rights(&self, name: &str, own: Option<&PluginSettings>) -> Option<Rights> {
        let profile = own.and_then(|own| own.profile).unwrap_or(self.profile);
        let allow = own.and_then(|own| own.allow.as_ref()).unwrap_or(&self.allow);
        Rights::new(name, profile, allow)
    }

    /// What the directory of the plugin `name` with the section `own`, if any, may hold on the disk, if that is bounded.
    pub(crate) fn disk_bytes(&self, name: &str, own: Option<&PluginSettings>) -> Option<u64> {
        let set = own.and_then(|own| own.disk_mib).or(self.disk_mib).map(Within::value);
        limit(set, self.rights(name, own).is_some(), sandbox::DISK_MIB).map(|mib| mib << 20)
    }

    /// Returns true when a plugin with the section `own`, if any, may be in a sandbox. Its name decides, if the profile is `by_name`.
    pub(crate) fn may_have_sandbox(&self, own: Option<&PluginSettings>) -> bool {
        own.and_then(|own| own.profile).unwrap_or(self.profile) != Profile::Trusted
    }

    /// The limits of a plugin with the section `own`, if any, in a sandbox or not, but for that of its directory.
    pub(crate) fn confinement(&self, own: Option<&PluginSettings>, in_sandbox: bool) -> Confinement {
        let none = PluginSettings::default();
        let own = own.unwrap_or(&none);
        let memory = own.memory_mib.or(self.memory_mib).map(Within::value);
        let cpu_percent = own.cpu_percent.or(self.cpu_percent).map(Within::value);
        let processes = own.processes.or(self.processes).map(Within::value);
        let open_files = own.open_files.unwrap_or(self.open_files).value();
        Confinement {
            memory: limit(memory, in_sandbox, sandbox::MEMORY_MIB).map(|mib| mib << 20),
            memory_by_rlimit: memory.is_some(),
            cpu_percent: limit(cpu_percent, in_sandbox, sandbox::CPU_PERCENT),
            processes: limit(processes, in_sandbox, sandbox::PROCESSES),
            open_files: limit(Some(open_files), in_sandbox, 0),
            no_new_privs: own.no_new_privs.unwrap_or(self.no_new_privs),
            end_with_agent: own.end_with_agent.unwrap_or(self.end_with_agent),
        }
    }
}

/// The limit that was set, or else that of a plugin in a sandbox.
fn limit(set: Option<u32>, in_sandbox: bool, sandbox: u32) -> Option<u64> {
    let limit = set.or(in_sandbox.then_some(sandbox))?;
    (limit != 0).then_some(limit.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::file::parse;

    #[test]
    fn a_plugins_own_section_comes_before_that_of_all() {
        let all: Plugins = parse("memory_mib = 100\ncpu_percent = 50\nno_new_privs = false").expect("valid");
        let own: PluginSettings = parse("memory_mib = 200\ncpu_percent = 0\nend_with_agent = false").expect("valid");
        let Confinement { memory, cpu_percent, processes, no_new_privs, end_with_agent, .. } =
            all.confinement(Some(&own), false);
        assert_eq!((memory, cpu_percent, processes), (Some(200 << 20), None, None));
        assert!(!no_new_privs && !end_with_agent);
        assert_eq!(all.confinement(None, false).memory, Some(100 << 20));
        let own: PluginSettings = parse("when_full = \"wait\"").expect("valid");
        assert!(all.may_drop(None) && !all.may_drop(Some(&own)));
    }

    #[test]
    fn a_directory_has_the_quota_of_its_profile_unless_one_is_set() {
        let own = |text: &str| parse::<PluginSettings>(text).expect("valid");
        let all = |text: &str| parse::<Plugins>(text).expect("valid");
        let confined = own("profile = 'confined'");
        assert_eq!(all("").disk_bytes("x", None), None);
        assert_eq!(all("").disk_bytes("x", Some(&confined)), Some(256 << 20));
        assert_eq!(all("profile = 'inspector'").disk_bytes("x", None), Some(256 << 20));
        let by_name = all("profile = 'by_name'");
        assert_eq!([by_name.disk_bytes("collector", None), by_name.disk_bytes("x", None)], [Some(256 << 20), None]);
        // 0 is not the same as nothing, and a plugin's own section comes first.
        assert_eq!(all("disk_mib = 0").disk_bytes("x", Some(&confined)), None);
        assert_eq!(all("disk_mib = 7").disk_bytes("x", Some(&confined)), Some(7 << 20));
        assert_eq!(all("disk_mib = 7").disk_bytes("x", None), Some(7 << 20));
        assert_eq!(all("disk_mib = 7").disk_bytes("x", Some(&own("disk_mib = 0"))), None);
        assert_eq!(all("disk_mib = 0").disk_bytes("x", Some(&own("disk_mib = 1048576"))), Some(1 << 40));
        let error = parse::<Plugins>("disk_mib = -1").expect_err("no quota").1;
        assert!(error.contains("-1 is out of bounds, expected 0 to 1048576"), "{error}");
    }

    #[test]
    fn a_sandbox_has_limits_without_being_told_any() {
        let all: Plugins = parse("profile = \"by_name\"\nprocesses = 30").expect("valid");
        let trusted: PluginSettings = parse("profile = \"trusted\"").expect("valid");
        assert!(all.may_have_sandbox(None) && !all.may_have_sandbox(Some(&trusted)));
        let Confinement { memory, memory_by_rlimit, cpu_percent, processes, open_files, .. } =
            all.confinement(None, true);
        assert_eq!((memory, cpu_percent, processes, open_files), (Some(512 << 20), Some(100), Some(30), None));
        assert!(!memory_by_rlimit, "the owner has not asked for it");
        let own: PluginSettings = parse("memory_mib = 1000").expect("valid");
        let Confinement { memory, memory_by_rlimit, .. } = all.confinement(Some(&own), true);
        assert!(memory == Some(1000 << 20) && memory_by_rlimit);
        // 0 is not the same as nothing.
        let own: PluginSettings = parse("memory_mib = 0\nprocesses = 0").expect("valid");
        let Confinement { memory, cpu_percent, processes, .. } = all.confinement(Some(&own), true);
        assert_eq!((memory, cpu_percent, processes), (None, Some(100), None));
    }

    #[test]
    fn one_key_or_two_may_sign() {
        let [one, two] =
            ["11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=", "PUAXw+hDiVqStwqnTRt+vJyYLM8uxJaMwM1V8Sr0Zgw="];
        let signers = |value: &str| -> Result<Option<(String, Option<String>)>, String> {
            let plugins = parse::<Plugins>(&format!("public_key = {value}"));
            let signers = plugins.map_err(|(_, why)| why)?.signers();
            Ok(signers.map(|signers| (signers.first.to_string(), signers.second.map(|key| key.to_string()))))
        };
        assert_eq!((signers("''"), signers("[]"), signers("['']")), (Ok(None), Ok(None), Ok(None)));
        for alone in [format!("'{one}'"), format!("['{one}']"), format!("['', '{one}']"), format!("['{one}', '']")] {
            assert_eq!(signers(&alone), Ok(Some((one.into(), None))), "{alone}");
        }
        assert_eq!(signers(&format!("['{one}', '{two}']")), Ok(Some((one.into(), Some(two.into())))));
        for (wrong, why) in [
            ("'AAAA'".to_owned(), "\"AAAA\" is not the Base64 of an ed25519 key's 32 bytes"),
            (format!("['{one}', 'AAAA']"), "\"AAAA\" is not the Base64 of an ed25519 key's 32 bytes"),
            (format!("['{one}', '{two}', '{one}']"), "more than two"),
            ("7".to_owned(), "expected a key or a list of at most two"),
            ("[7]".to_owned(), "expected a text in quotes"),
        ] {
            let error = signers(&wrong).expect_err(&wrong);
            assert!(error.contains(why), "{wrong}: {error}");
        }
    }

    #[test]
    fn signed_after_is_a_date_or_a_moment() {
        let after = |text: &str| text.parse::<SignedAfter>().map(|SignedAfter(seconds)| seconds);
        let sound = [
            ("", 0),
            ("1970-01-02", 86_400),
            ("2026-01-31", 1_769_817_600),
            ("2026-01-31T00:00:01Z", 1_769_817_601),
            ("2026-01-31T00:00:01.9Z", 1_769_817_601),
        ];
        for (text, seconds) in sound {
            assert_eq!(after(text), Ok(seconds), "{text}");
        }
        for wrong in
            ["2026", "2026-02-30", "2026-13-01", "tomorrow", "2026-01-31T00:00:01", "2026-01-31T00:00:01+02:00", "ä"]
        {
            let error = after(wrong).expect_err(wrong).to_string();
            assert!(error.contains("expected a date as in 2026-01-31"), "{error}");
        }
        let error = parse::<Plugins>("signed_after = 'soon'").expect_err("no date").1;
        assert!(error.contains("\"soon\" is no time"), "{error}");
    }
}
