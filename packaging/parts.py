"""What `sbom` and `provenance` both ask: which compiler, which crates, which bytes."""

import hashlib
import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ROOT / "target/dist-tools"


def output(*command):
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


def rust_version():
    """What `rustc -vV` says, by its own keys, and where it lies."""
    rust = dict(line.split(": ", 1) for line in output("rustc", "-vV").splitlines() if ": " in line)
    rust["sysroot"] = Path(output("rustc", "--print", "sysroot"))
    return rust


def checksums(rust):
    """The checksums of crates, by name and version: those of the workspace, and those of the standard library."""
    found = {}
    for lock in (ROOT / "Cargo.lock", rust["sysroot"] / "lib/rustlib/src/rust/library/Cargo.lock"):
        pattern = r'^name = "(.*)"\nversion = "(.*)"\nsource = .*\nchecksum = "(.*)"$'
        for name, version, checksum in re.findall(pattern, lock.read_text(), re.M):
            found[name, version] = checksum
    return found


def identity(unit):
    """The name and the version of a unit's package."""
    name, version = unit["pkg_id"].rsplit("#", 1)[1].split("@")
    return name, version


def sha256(file):
    return hashlib.sha256(file.read_bytes()).hexdigest()
