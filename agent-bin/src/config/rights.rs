//! `profile` and `allow` in `[plugins]` and `[plugin.NAME]`: what a plugin may do on the host.
//!
//! This says what an owner wants. `plugin::confine::sandbox` makes it so.

use std::path::PathBuf;

use serde::Deserialize;

use super::value::BadValue;

/// A set of rights with a name.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
#[serde(rename_all = "snake_case")]
pub(super) enum Profile {
    /// Whatever the agent may.
    #[default]
    Trusted,
    /// The profile that [`SHIPPED`] has for this name, else [`Profile::Trusted`].
    ByName,
    /// Reads everything and writes its own directory, without a network.
    Inspector,
    /// Reads and writes its own directory.
    Confined,
}

/// A right that a plugin has besides those of its profile.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) enum Right {
    /// Sockets of every family, in the host's network.
    Network,
    /// To run as the agent's user.
    Root,
    /// This capability (capabilities(7)), by its number.
    Capability(u8),
    /// To write this file, or everything below this directory.
    Write(PathBuf),
}

/// What a plugin that is not trusted may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rights {
    /// It sees its own directory and what programs need to run. It reads everything otherwise.
    pub(crate) is_confined: bool,
    /// What it may do besides.
    pub(crate) allow: Vec<Right>,
}

/// Names of capabilities by their numbers (linux/capability.h), without the prefix.
pub(crate) const CAPABILITIES: [&str; 41] = [
    "chown",
    "dac_override",
    "dac_read_search",
    "fowner",
    "fsetid",
    "kill",
    "setgid",
    "setuid",
    "setpcap",
    "linux_immutable",
    "net_bind_service",
    "net_broadcast",
    "net_admin",
    "net_raw",
    "ipc_lock",
    "ipc_owner",
    "sys_module",
    "sys_rawio",
    "sys_chroot",
    "sys_ptrace",
    "sys_pacct",
    "sys_admin",
    "sys_boot",
    "sys_nice",
    "sys_resource",
    "sys_time",
    "sys_tty_config",
    "mknod",
    "lease",
    "audit_write",
    "audit_control",
    "setfcap",
    "mac_override",
    "mac_admin",
    "syslog",
    "wake_alarm",
    "block_suspend",
    "audit_read",
    "perfmon",
    "bpf",
    "checkpoint_restore",
];

const CAP_NET_ADMIN: u8 = 12;

/// What `by_name` gives the plugins that are known, all of them inspectors. docs/plugins.md has the reasons, and those of the
/// plugins that stay trusted.
const SHIPPED: [(&str, &[Right]); 4] = [
    ("baseline", &[]),
    ("collector", &[]),
    ("journal_watcher", &[]),
    // Before Linux 6.6, the connector's events need this capability.
    ("procwatch", &[Right::Capability(CAP_NET_ADMIN)]),
];

impl Rights {
    /// The rights of the plugin `name`. `None` leaves it all that the agent has.
    pub(super) fn new(name: &str, profile: Profile, allow: &[Right]) -> Option<Self> {
        let (is_confined, shipped) = match profile {
            Profile::Trusted => return None,
            Profile::Inspector => (false, &[][..]),
            Profile::Confined => (true, &[][..]),
            Profile::ByName => (false, SHIPPED.iter().find(|(known, _)| *known == name)?.1),
        };
        Some(Self { is_confined, allow: [shipped, allow].concat() })
    }
}

impl TryFrom<String> for Right {
    type Error = BadValue;

    fn try_from(text: String) -> Result<Self, BadValue> {
        let capability =
            text.strip_prefix("cap_").and_then(|name| CAPABILITIES.iter().position(|known| *known == name));
        match (&*text, capability.map(u8::try_from)) {
            ("network", _) => Ok(Self::Network),
            ("root", _) => Ok(Self::Root),
            (_, Some(Ok(number))) => Ok(Self::Capability(number)),
            (path, _) if path.starts_with('/') && !path.contains('\0') => Ok(Self::Write(text.into())),
            _ => Err(BadValue::Right(text)),
        }
    }
}

#[cfg(test)]
impl serde::Serialize for Right {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{self:?}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::file::parse;
    use crate::config::{PluginSettings, Plugins};

    fn plugins(text: &str) -> Plugins {
        parse(text).expect("valid")
    }

    #[test]
    fn a_plugin_is_trusted_unless_a_profile_says_otherwise() {
        assert_eq!(plugins("").rights("collector", None), None);
        let by_name = plugins("profile = \"by_name\"\nallow = [\"/var/cache/x\"]");
        assert_eq!((by_name.rights("driver", None), by_name.rights("unknown", None)), (None, None));
        let procwatch = by_name.rights("procwatch", None).expect("it has a profile");
        let expected = [Right::Capability(CAP_NET_ADMIN), Right::Write("/var/cache/x".into())];
        assert!(!procwatch.is_confined && procwatch.allow == expected, "{procwatch:?}");
        let own: PluginSettings = parse("profile = \"confined\"\nallow = []").expect("valid");
        assert_eq!(by_name.rights("driver", Some(&own)), Some(Rights { is_confined: true, allow: Vec::new() }));
    }

    #[test]
    fn a_right_has_one_of_four_forms() {
        let rights = plugins("profile = \"inspector\"\nallow = [\"network\", \"root\", \"cap_net_admin\", \"/a\"]");
        let rights = rights.rights("x", None).expect("it has a profile").allow;
        let expected = [Right::Network, Right::Root, Right::Capability(CAP_NET_ADMIN), Right::Write("/a".into())];
        assert_eq!(rights, expected);
        for bad in ["", "cap_", "cap_all", "net_admin", "a/b", "Network"] {
            let error = parse::<Plugins>(&format!("allow = [\"{bad}\"]")).expect_err(bad).1;
            assert!(error.contains("is no right, expected network, root, "), "{error}");
        }
    }
}
