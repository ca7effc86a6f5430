//! Finds out which distribution and kernel the host runs.
//!
//! The server chooses plugin packages by exactly `platform_family` and `arch`, so these strings are part of the protocol.
//! They follow the library that the reference agent uses, gopsutil v3.22.3 (`host.PlatformInformation`): the order of the
//! files in `/etc`, what it takes from each, and its families, even where another name would be better.
//! `/usr/bin/lsb_release` is not run, because it prints neither name nor version when it is called as the library calls it.

use rustix::system::uname;

use super::root::HostRoot;

/// Most bytes of a release file that are read. The longest seen, os-release files with their URLs, have under 1 KiB.
const FILE_LIMIT: u64 = 16 * 1024;

/// The kernel's own account of itself, uname(2).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Kernel {
    /// `uname -r`.
    pub(crate) release: String,
    /// `uname -m`: `x86_64`, `aarch64`, …
    pub(crate) machine: String,
}

impl Kernel {
    /// The running kernel.
    pub(crate) fn current() -> Self {
        let uname = uname();
        Self {
            release: uname.release().to_string_lossy().into_owned(),
            machine: uname.machine().to_string_lossy().into_owned(),
        }
    }
}

/// The host's Linux distribution. A string is empty if the host does not say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Distribution {
    /// The distribution's name in lower case, such as `ubuntu`, `centos` or `opensuse-leap`.
    pub(crate) platform: String,
    /// The family that shares its packages, such as `debian` or `rhel`. It is empty if gopsutil does not know the distribution.
    pub(crate) family: &'static str,
    /// Its version.
    pub(crate) version: String,
}

impl Distribution {
    /// Finds the distribution by the files in `/etc`. The first that exists decides.
    pub(crate) fn detect(host: &HostRoot) -> Self {
        let (platform, version) = platform_and_version(host);
        Self { family: family(&platform), platform, version }
    }
}

fn platform_and_version(host: &HostRoot) -> (String, String) {
    let has = |path| host.exists(path);
    let text = |path| host.text(path, FILE_LIMIT);
    let lsb = Lsb::parse(&text("/etc/lsb-release"));
    if has("/etc/oracle-release") {
        ("oracle".into(), redhat_version(&text("/etc/oracle-release")))
    } else if has("/etc/enterprise-release") {
        ("oracle".into(), redhat_version(&text("/etc/enterprise-release")))
    } else if has("/etc/slackware-version") {
        ("slackware".into(), joined(&text("/etc/slackware-version")).replacen("slackware ", "", 1))
    } else if has("/etc/debian_version") {
        match lsb.id.as_str() {
            "Ubuntu" => ("ubuntu".into(), lsb.release),
            "LinuxMint" => ("linuxmint".into(), lsb.release),
            _ => {
                let platform = if has("/usr/bin/raspi-config") { "raspbian" } else { "debian" };
                (platform.into(), first_line(&text("/etc/debian_version")))
            }
        }
    } else if has("/etc/redhat-release") {
        redhat(&text("/etc/redhat-release"))
    } else if has("/etc/system-release") {
        redhat(&text("/etc/system-release"))
    } else if has("/etc/gentoo-release") {
        ("gentoo".into(), redhat_version(&text("/etc/gentoo-release")))
    } else if has("/etc/SuSE-release") {
        suse(&text("/etc/SuSE-release"))
    } else if has("/etc/arch-release") {
        ("arch".into(), lsb.release)
    } else if has("/etc/alpine-release") {
        ("alpine".into(), first_line(&text("/etc/alpine-release")))
    } else if has("/etc/os-release") {
        os_release(&text("/etc/os-release"))
    } else {
        lsb.platform_and_version()
    }
}

/// gopsutil's families.
fn family(platform: &str) -> &'static str {
    match platform {
        "debian" | "ubuntu" | "linuxmint" | "raspbian" => "debian",
        "fedora" => "fedora",
        "oracle"
        | "centos"
        | "redhat"
        | "scientific"
        | "enterpriseenterprise"
        | "amazon"
        | "xenserver"
        | "cloudlinux"
        | "ibm_powerkvm"
        | "rocky"
        | "almalinux" => "rhel",
        "suse"
        | "opensuse"
        | "opensuse-leap"
        | "opensuse-tumbleweed"
        | "opensuse-tumbleweed-kubic"
        | "sles"
        | "sled"
        | "caasp" => "suse",
        "gentoo" => "gentoo",
        "slackware" => "slackware",
        "arch" => "arch",
        "exherbo" => "exherbo",
        "alpine" => "alpine",
        "coreos" => "coreos",
        "solus" => "solus",
        _ => "",
    }
}

/// The content of `/etc/lsb-release`, with any quotes.
#[derive(Debug, Default)]
struct Lsb {
    id: String,
    release: String,
}

impl Lsb {
    fn parse(text: &str) -> Self {
        let mut lsb = Self::default();
        for (key, value) in assignments(text) {
            match key {
                "DISTRIB_ID" => lsb.id = value.to_owned(),
                "DISTRIB_RELEASE" => lsb.release = value.to_owned(),
                _ => {}
            }
        }
        lsb
    }

    fn platform_and_version(self) -> (String, String) {
        let platform = match self.id.as_str() {
            "" => return Default::default(),
            "ScientificSL" => "scientific".to_owned(),
            // They include RedHat, Amazon and XenServer, which gopsutil lists to the same effect.
            id => id.to_lowercase(),
        };
        (platform, self.release)
    }
}

/// `ID` and `VERSION`, or `VERSION_ID` if there is no `VERSION`, as on rolling distributions. gopsutil v3.22.3 has
/// nothing in that case, and its later versions have this.
fn os_release(text: &str) -> (String, String) {
    let (mut platform, mut version, mut version_id) = ("", "", "");
    for (key, value) in assignments(text) {
        match key {
            "ID" => platform = unquoted(value),
            "VERSION" => version = unquoted(value),
            "VERSION_ID" => version_id = unquoted(value),
            _ => {}
        }
    }
    (platform.to_owned(), if version.is_empty() { version_id } else { version }.to_owned())
}

/// `red hat …`, or the first word: `CentOS Linux release 7.9.2009 (Core)` is `centos`.
fn redhat(text: &str) -> (String, String) {
    let line = joined(text);
    let platform = if line.contains("red hat") { "redhat" } else { line.split(' ').next().unwrap_or_default() };
    (platform.to_owned(), redhat_version(text))
}

fn redhat_version(text: &str) -> String {
    let line = joined(text);
    if line.contains("rawhide") {
        return "rawhide".to_owned();
    }
    line.match_indices("release ")
        .map(|(at, found)| digits_and_dots(&line[at + found.len()..]))
        .find(|version| version.starts_with(|c: char| c.is_ascii_digit()))
        .unwrap_or_default()
        .to_owned()
}

fn suse(text: &str) -> (String, String) {
    let platform = if joined(text).contains("opensuse") { "opensuse" } else { "suse" };
    let mut version = String::new();
    for line in text.lines() {
        if let Some(found) = value_after(line, "VERSION = ") {
            version = found.to_owned();
        } else if let Some(found) = value_after(line, "PATCHLEVEL = ") {
            version.push('.');
            version.push_str(found.split('.').next().unwrap_or_default());
        }
    }
    (platform.to_owned(), version)
}

/// The digits and dots after `key` in `line`, if there are any.
fn value_after<'a>(line: &'a str, key: &str) -> Option<&'a str> {
    let (_, rest) = line.split_once(key)?;
    Some(digits_and_dots(rest)).filter(|value| !value.is_empty())
}

fn digits_and_dots(text: &str) -> &str {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    &text[..end]
}

/// All lines in one, in lower case.
fn joined(text: &str) -> String {
    text.split('\n').collect::<String>().to_lowercase()
}

fn first_line(text: &str) -> String {
    text.split('\n').next().unwrap_or_default().to_owned()
}

/// The lines of the form `key=value`. As in gopsutil, a second `=` ends the value.
fn assignments(text: &str) -> impl Iterator<Item = (&str, &str)> {
    text.lines().filter_map(|line| {
        let mut parts = line.split('=');
        Some((parts.next()?, parts.next()?))
    })
}

/// Removes double quotes if there is one at each end.
fn unquoted(value: &str) -> &str {
    value.strip_prefix('"').and_then(|value| value.strip_suffix('"')).unwrap_or(value)
}

#[cfg(test)]
mod tests {
    use super::super::root::tests::Tree;
    use super::*;

    fn detect(files: &[(&str, &str)]) -> (String, &'static str, String) {
        let found = Distribution::detect(Tree::new(files).host());
        (found.platform, found.family, found.version)
    }

    #[track_caller]
    fn check(files: &[(&str, &str)], platform: &str, family: &str, version: &str) {
        let found = detect(files);
        assert_eq!((found.0.as_str(), found.1, found.2.as_str()), (platform, family, version));
    }

    #[test]
    fn debian_and_its_derivatives() {
        let os = ("/etc/os-release", "PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nVERSION_ID=\"12\"\nID=debian\n");
        let version = ("/etc/debian_version", "12.7\n");
        check(&[version, os], "debian", "debian", "12.7");
        check(&[version, os, ("/usr/bin/raspi-config", "")], "raspbian", "debian", "12.7");
        check(&[("/etc/debian_version", "trixie/sid\n")], "debian", "debian", "trixie/sid");
        check(&[("/etc/debian_version", "")], "debian", "debian", "");
    }

    #[test]
    fn ubuntu_and_mint_by_lsb_release() {
        let version = ("/etc/debian_version", "bookworm/sid\n");
        let lsb = "DISTRIB_ID=Ubuntu\nDISTRIB_RELEASE=22.04\nDISTRIB_CODENAME=jammy\n";
        check(&[version, ("/etc/lsb-release", lsb)], "ubuntu", "debian", "22.04");
        let lsb = "DISTRIB_ID=LinuxMint\nDISTRIB_RELEASE=21.3\n";
        check(&[version, ("/etc/lsb-release", lsb)], "linuxmint", "debian", "21.3");
        let lsb = "DISTRIB_ID=Pop\nDISTRIB_RELEASE=22.04\n";
        check(&[version, ("/etc/lsb-release", lsb)], "debian", "debian", "bookworm/sid");
    }

    #[test]
    fn red_hat_and_its_rebuilds() {
        let redhat =
            |line| [("/etc/redhat-release", line), ("/etc/system-release", "wrong 1"), ("/etc/os-release", "")];
        check(&redhat("CentOS Linux release 7.9.2009 (Core)\n"), "centos", "rhel", "7.9.2009");
        check(&redhat("Rocky Linux release 9.2 (Blue Onyx)\n"), "rocky", "rhel", "9.2");
        check(&redhat("AlmaLinux release 8.10 (Cerulean Leopard)\n"), "almalinux", "rhel", "8.10");
        check(&redhat("Red Hat Enterprise Linux release 8.6 (Ootpa)\n"), "redhat", "rhel", "8.6");
        check(&redhat("CentOS Stream release 9\n"), "centos", "rhel", "9");
        check(&redhat("Fedora release 38 (Thirty Eight)\n"), "fedora", "fedora", "38");
        check(&redhat("Fedora release 42 (Rawhide)\n"), "fedora", "fedora", "rawhide");
        check(&redhat("Kylin Linux release release V10 (Sword)\n"), "kylin", "", "");
        check(&redhat(""), "", "", "");
    }

    #[test]
    fn oracle_comes_before_the_red_hat_it_claims_to_be() {
        let redhat = ("/etc/redhat-release", "Red Hat Enterprise Linux release 8.8 (Ootpa)\n");
        check(&[redhat, ("/etc/oracle-release", "Oracle Linux Server release 8.8\n")], "oracle", "rhel", "8.8");
        let enterprise = "Enterprise Linux Enterprise Linux Server release 5.8 (Carthage)\n";
        check(&[redhat, ("/etc/enterprise-release", enterprise)], "oracle", "rhel", "5.8");
    }

    #[test]
    fn amazon_by_system_release() {
        let os = ("/etc/os-release", "NAME=\"Amazon Linux\"\nVERSION=\"2023\"\nID=\"amzn\"\n");
        check(
            &[os, ("/etc/system-release", "Amazon Linux release 2023.4 (Amazon Linux)\n")],
            "amazon",
            "rhel",
            "2023.4",
        );
        check(&[("/etc/system-release", "Amazon Linux AMI release 2018.03\n")], "amazon", "rhel", "2018.03");
    }

    #[test]
    fn suse_by_its_own_file_or_os_release() {
        let old = "openSUSE 13.2 (x86_64)\nVERSION = 13.2\nCODENAME = Harlequin\n";
        check(&[("/etc/SuSE-release", old)], "opensuse", "suse", "13.2");
        let sles = "SUSE Linux Enterprise Server 12 (x86_64)\nVERSION = 12\nPATCHLEVEL = 5\n";
        check(&[("/etc/SuSE-release", sles)], "suse", "suse", "12.5");
        let leap = "NAME=\"openSUSE Leap\"\nVERSION=\"15.5\"\nID=\"opensuse-leap\"\nVERSION_ID=\"15.5\"\n";
        check(&[("/etc/os-release", leap)], "opensuse-leap", "suse", "15.5");
        let tumbleweed = "NAME=\"openSUSE Tumbleweed\"\nID=\"opensuse-tumbleweed\"\nVERSION_ID=\"20240101\"\n";
        check(&[("/etc/os-release", tumbleweed)], "opensuse-tumbleweed", "suse", "20240101");
        check(
            &[("/etc/os-release", "VERSION=\"15-SP4\"\nVERSION_ID=\"15.4\"\nID=\"sles\"\n")],
            "sles",
            "suse",
            "15-SP4",
        );
    }

    #[test]
    fn the_small_ones() {
        let os = ("/etc/os-release", "NAME=\"Alpine Linux\"\nID=alpine\nVERSION_ID=3.19.1\n");
        check(&[os, ("/etc/alpine-release", "3.19.1\n")], "alpine", "alpine", "3.19.1");
        let lsb = ("/etc/lsb-release", "DISTRIB_ID=Arch\nDISTRIB_RELEASE=rolling\n");
        check(&[("/etc/arch-release", ""), lsb], "arch", "arch", "rolling");
        check(&[("/etc/arch-release", "")], "arch", "arch", "");
        check(&[("/etc/gentoo-release", "Gentoo Base System release 2.14\n")], "gentoo", "gentoo", "2.14");
        check(&[("/etc/slackware-version", "Slackware 15.0\n")], "slackware", "slackware", "15.0");
    }

    #[test]
    fn os_release_names_the_unknown_ones() {
        check(&[("/etc/os-release", "ID=void\nPRETTY_NAME=\"Void Linux\"\n")], "void", "", "");
        check(&[("/etc/os-release", "ID=\"nixos\"\nVERSION=\"23.11 (Tapir)\"\n")], "nixos", "", "23.11 (Tapir)");
        check(&[("/etc/os-release", "no assignment\n=\nID\n\"\n")], "", "", "");
    }

    #[test]
    fn lsb_release_is_the_last_resort() {
        let lsb = |id| detect(&[("/etc/lsb-release", &format!("DISTRIB_ID={id}\nDISTRIB_RELEASE=6.5\n"))]);
        assert_eq!(lsb("XenServer"), ("xenserver".into(), "rhel", "6.5".into()));
        assert_eq!(lsb("ScientificSL"), ("scientific".into(), "rhel", "6.5".into()));
        assert_eq!(lsb("Chimera"), ("chimera".into(), "", "6.5".into()));
        assert_eq!(lsb(""), (String::new(), "", String::new()));
        check(&[], "", "", "");
    }

    #[test]
    fn a_quote_alone_is_kept() {
        assert_eq!(unquoted("\""), "\"");
        assert_eq!(unquoted("\"\""), "");
        assert_eq!(unquoted("\"a"), "\"a");
    }

    #[test]
    fn the_running_kernel_has_a_name() {
        let kernel = Kernel::current();
        assert!(!kernel.release.is_empty() && !kernel.machine.is_empty());
    }
}
