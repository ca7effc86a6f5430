//! The machine's hardware: facts that do not change while it runs.

use super::super::root::HostRoot;

/// Most bytes of `/proc/cpuinfo` that are read. The first processor's block is enough, and it has under 3 KiB.
const CPUINFO_LIMIT: u64 = 8 * 1024;

/// Most bytes of a DMI attribute that are read. The kernel returns at most a page.
const DMI_LIMIT: u64 = 4096;

/// The machine's own description. Each string is trimmed, and empty if there is none (no DMI, or no permission).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in crate::host) struct Hardware {
    pub(in crate::host) serial: String,
    pub(in crate::host) id: String,
    pub(in crate::host) model: String,
    pub(in crate::host) vendor: String,
    pub(in crate::host) cpu_name: String,
}

impl Hardware {
    pub(in crate::host) fn read(host: &HostRoot) -> Self {
        let dmi = |name: &str| host.text(&format!("/sys/class/dmi/id/{name}"), DMI_LIMIT).trim().to_owned();
        Self {
            serial: dmi("product_serial"),
            id: dmi("product_uuid"),
            model: dmi("product_name"),
            vendor: dmi("sys_vendor"),
            cpu_name: cpu_name(&host.text("/proc/cpuinfo", CPUINFO_LIMIT)),
        }
    }
}

/// The first processor's name: `model name` (x86), `cpu` (POWER), or the `Processor` that old ARM kernels put first.
/// Newer ARM kernels have none, and gopsutil v3.22.3 is empty for them too.
fn cpu_name(cpuinfo: &str) -> String {
    let mut name = "";
    let mut processors = 0;
    for (key, value) in cpuinfo.lines().filter_map(|line| line.split_once(':')) {
        match key.trim() {
            "processor" if processors > 0 => break,
            "processor" => processors += 1,
            "model name" | "cpu" | "Processor" => name = value.split(':').next().unwrap_or_default().trim(),
            _ => {}
        }
    }
    name.to_owned()
}

#[cfg(test)]
mod tests {
    use super::super::super::root::tests::Tree;
    use super::*;

    #[test]
    fn the_first_processor_names_them_all() {
        let x86 = "processor\t: 0\nvendor_id\t: GenuineIntel\nmodel\t\t: 85\nmodel name\t: Intel(R) Xeon(R) @ 2.5GHz\n\n\
                   processor\t: 1\nmodel name\t: another\n";
        assert_eq!(cpu_name(x86), "Intel(R) Xeon(R) @ 2.5GHz");
        let power = "processor\t: 0\ncpu\t\t: POWER9, altivec supported\nclock\t\t: 2900MHz\n";
        assert_eq!(cpu_name(power), "POWER9, altivec supported");
        let arm = "Processor\t: ARMv7 Processor rev 4 (v7l)\nprocessor\t: 0\nBogoMIPS\t: 38.40\n\nprocessor\t: 1\n";
        assert_eq!(cpu_name(arm), "ARMv7 Processor rev 4 (v7l)");
        let arm64 = "processor\t: 0\nBogoMIPS\t: 400.00\nCPU part\t: 0xd03\n";
        assert_eq!(cpu_name(arm64), "");
        assert_eq!(cpu_name(""), "");
    }

    #[test]
    fn dmi_is_trimmed_and_may_be_missing() {
        let tree = Tree::new(&[
            ("/sys/class/dmi/id/product_serial", " ABC123 \n"),
            ("/sys/class/dmi/id/product_name", "PowerEdge R740\n"),
            ("/sys/class/dmi/id/sys_vendor", "Dell Inc.\n"),
        ]);
        let hardware = Hardware::read(tree.host());
        assert_eq!([&hardware.serial[..], &hardware.id, &hardware.model], ["ABC123", "", "PowerEdge R740"]);
        assert_eq!(hardware.vendor, "Dell Inc.");
        assert_eq!(Hardware::read(Tree::new(&[]).host()), Hardware::default());
    }
}
