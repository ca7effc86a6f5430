//! The agent's id, by the recipe of the reference agent's generation C, so that a host keeps its id when its agent is replaced.
//!
//! The sources, in order: the environment; a name-based UUID of what the cloud and the firmware call this machine;
//! `/etc/machine-id`; `<workdir>/machine-id`, which the agent itself has written before; a random UUID. The reference
//! stops at an empty id if the firmware's product name is missing or a placeholder. Here the next source is tried, so
//! the id is never empty. It equals the reference's wherever that is not empty.

use std::ffi::OsStr;
use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use uuid::Uuid;

use super::root::HostRoot;
use crate::files::{self, read_bounded};

/// The id's file in the work directory.
const STORED: &str = "machine-id";

/// The longest id that the environment may set. A UUID has 36 bytes. The server keeps ids as map keys and database
/// values, for which 256 is ample.
const SPECIFIED_LIMIT: usize = 256;

/// Most bytes of an identity file that are read. A longer file is not what it should be and counts as absent.
const FILE_LIMIT: u64 = 4096;

/// A shorter file is no identity (reference: `agent/agent/id.go`, six bytes before trimming).
const FILE_MINIMUM: usize = 6;

/// The joined identities must be longer than this to tell machines apart (reference: `agent/agent/id.go`).
const SOURCE_MINIMUM: usize = 8;

/// Product UUIDs that firmware vendors have left at their default, so that many machines share them (generation C).
const SHARED_PRODUCT_UUIDS: [&[u8]; 2] =
    [b"03000200-0400-0500-0006-000700080009", b"02000100-0300-0400-0005-000600070008"];

/// Product names that show that nobody filled in the firmware's table (generation C).
const PLACEHOLDER_NAMES: [&[u8]; 4] = [b"--", b"unknown", b"To be filled by O.E.M.", b"OEM not specify"];

/// The agent's id and its source.
#[derive(Debug)]
pub(crate) struct AgentId {
    /// The id. It is never empty.
    pub(crate) id: String,
    /// The source that had it.
    pub(crate) source: IdSource,
    /// Why `<workdir>/machine-id` could not be written. The id is good nevertheless, but a random one will differ at
    /// the next start.
    pub(crate) not_stored: Option<io::Error>,
}

/// The source of an agent's id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum IdSource {
    /// `SPECIFIED_AGENT_ID`, verbatim.
    Environment,
    /// UUIDv5 of the cloud's instance id, the firmware's product UUID and the hardware address of eth0.
    Hardware,
    /// `/etc/machine-id`, which is a UUID.
    EtcMachineId,
    /// UUIDv5 of `/etc/machine-id`, which has the length of a UUID but is none.
    EtcMachineIdHashed,
    /// `<workdir>/machine-id`, stored by an earlier start.
    Stored,
    /// Nothing on the host tells it from others.
    Random,
}

impl fmt::Display for IdSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Environment => "environment",
            Self::Hardware => "hardware",
            Self::EtcMachineId => "/etc/machine-id",
            Self::EtcMachineIdHashed => "/etc/machine-id, hashed",
            Self::Stored => "machine-id of the working directory",
            Self::Random => "random",
        })
    }
}

/// What is wrong with the environment's id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum IdentityError {
    /// Its length in bytes is over the limit.
    TooLong(usize),
    /// It has a control character.
    Control(char),
    /// It is not UTF-8, which the protocol's `string` must be.
    NotUtf8,
}

impl fmt::Display for IdentityError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SPECIFIED_AGENT_ID ")?;
        match self {
            Self::TooLong(len) => write!(f, "has {len} bytes, the limit is {SPECIFIED_LIMIT}"),
            Self::Control(c) => write!(f, "has the control character {c:?}"),
            Self::NotUtf8 => f.write_str("is not UTF-8"),
        }
    }
}

impl std::error::Error for IdentityError {}

/// Finds the agent's id. `specified` is the value of `SPECIFIED_AGENT_ID`, of which an empty one counts as unset.
///
/// Stores the id in `<workdir>/machine-id`, mode 0600, unless it comes from the environment.
///
/// # Errors
/// When `specified` cannot be an id. A host that cannot be read is no error, because the last source is random.
pub(crate) fn agent_id(host: &HostRoot, workdir: &Path, specified: Option<&OsStr>) -> Result<AgentId, IdentityError> {
    let (id, source) = find_id(host, workdir, specified)?;
    let not_stored = match source {
        IdSource::Environment => None,
        _ => store(&workdir.join(STORED), &id).err(),
    };
    Ok(AgentId { id, source, not_stored })
}

/// The same without storing it, for commands that only look.
///
/// # Errors
/// As [`agent_id`].
pub(crate) fn find_id(
    host: &HostRoot,
    workdir: &Path,
    specified: Option<&OsStr>,
) -> Result<(String, IdSource), IdentityError> {
    if let Some(specified) = specified.filter(|value| !value.is_empty()) {
        return Ok((checked_id(specified)?.to_owned(), IdSource::Environment));
    }
    let (uuid, source) = hardware_id(host)
        .map(|uuid| (uuid, IdSource::Hardware))
        .or_else(|| etc_machine_id(host))
        .or_else(|| stored_id(&workdir.join(STORED)).map(|uuid| (uuid, IdSource::Stored)))
        .unwrap_or_else(|| (Uuid::new_v4(), IdSource::Random));
    Ok((uuid.hyphenated().to_string(), source))
}

fn checked_id(value: &OsStr) -> Result<&str, IdentityError> {
    if value.len() > SPECIFIED_LIMIT {
        return Err(IdentityError::TooLong(value.len()));
    }
    let id = value.to_str().ok_or(IdentityError::NotUtf8)?;
    match id.chars().find(|c| c.is_control()) {
        Some(c) => Err(IdentityError::Control(c)),
        None => Ok(id),
    }
}

/// The id from the machine's own identities, if they can be trusted to be unique.
fn hardware_id(host: &HostRoot) -> Option<Uuid> {
    let product_uuid = identity_file(host, "/sys/class/dmi/id/product_uuid").unwrap_or_default();
    let mut name = identity_file(host, "/var/lib/cloud/data/instance-id").unwrap_or_default();
    name.extend_from_slice(&product_uuid);
    name.extend(identity_file(host, "/sys/class/net/eth0/address").unwrap_or_default());
    if name.len() <= SOURCE_MINIMUM || SHARED_PRODUCT_UUIDS.contains(&product_uuid.as_slice()) {
        return None;
    }
    let product_name = identity_file(host, "/sys/class/dmi/id/product_name")?;
    if PLACEHOLDER_NAMES.contains(&product_name.as_slice()) || product_name.eq_ignore_ascii_case(b"t.b.d") {
        return None;
    }
    Some(Uuid::new_v5(&Uuid::NAMESPACE_OID, &name))
}

fn etc_machine_id(host: &HostRoot) -> Option<(Uuid, IdSource)> {
    let content = whole_file(&host.path("/etc/machine-id"))?;
    let text = trimmed(&content);
    match parse(text) {
        Ok(uuid) => Some((uuid, IdSource::EtcMachineId)),
        Err(NotUuid::Digits) => Some((Uuid::new_v5(&Uuid::NAMESPACE_OID, text), IdSource::EtcMachineIdHashed)),
        Err(NotUuid::Shape) => None,
    }
}

fn stored_id(path: &Path) -> Option<Uuid> {
    parse(trimmed(&whole_file(path)?)).ok()
}

/// The trimmed content of a file that identifies the machine, if it is long enough.
fn identity_file(host: &HostRoot, path: &str) -> Option<Vec<u8>> {
    let content = whole_file(&host.path(path)).filter(|content| content.len() >= FILE_MINIMUM)?;
    Some(trimmed(&content).to_vec())
}

/// The content of a file, unless it is too long for what it should be.
fn whole_file(path: &Path) -> Option<Vec<u8>> {
    let content = read_bounded(path, FILE_LIMIT + 1).ok()?;
    (content.len() as u64 <= FILE_LIMIT).then_some(content)
}

/// Trims white space at both ends. As in Go, that is Unicode's white space if the bytes are UTF-8.
fn trimmed(bytes: &[u8]) -> &[u8] {
    match str::from_utf8(bytes) {
        Ok(text) => text.trim().as_bytes(),
        Err(_) => bytes.trim_ascii(),
    }
}

/// Why a text is no UUID.
#[derive(Debug, PartialEq, Eq)]
enum NotUuid {
    /// No form of a UUID has this length, or it has another prefix than `urn:uuid:`.
    Shape,
    /// The length is right, but the content is wrong.
    Digits,
}

/// Parses the forms that google/uuid 1.3 accepts: dashed, bare hexadecimal, `urn:uuid:` and in braces (whatever the two
/// bytes around it are). The difference between the two errors decides about hashing `/etc/machine-id`.
fn parse(text: &[u8]) -> Result<Uuid, NotUuid> {
    let digits = match text.len() {
        32 | 36 => text,
        38 => &text[1..37],
        45 if text[..9].eq_ignore_ascii_case(b"urn:uuid:") => &text[9..],
        _ => return Err(NotUuid::Shape),
    };
    Uuid::try_parse_ascii(digits).map_err(|_| NotUuid::Digits)
}

/// Stores the id so that a reader sees the old file or the new one, never a part. Leaves a file alone that is right
/// already, which spares flash.
fn store(path: &Path, id: &str) -> io::Result<()> {
    let is_private = fs::symlink_metadata(path).is_ok_and(|meta| meta.is_file() && meta.mode() & 0o7777 == 0o600);
    if is_private && read_bounded(path, FILE_LIMIT).is_ok_and(|content| content == id.as_bytes()) {
        return Ok(());
    }
    files::replace(path, id.as_bytes(), 0o600)
}

#[cfg(test)]
mod tests {
    use super::super::root::tests::Tree;
    use super::*;
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::PermissionsExt;

    const INSTANCE: (&str, &str) = ("/var/lib/cloud/data/instance-id", "i-0123456789abcdef0\n");
    const PRODUCT: (&str, &str) = ("/sys/class/dmi/id/product_uuid", "4c4c4544-0042-3510-8054-b4c04f4d3232\n");
    const ETH0: (&str, &str) = ("/sys/class/net/eth0/address", "52:54:00:12:34:56\n");
    const NAME: (&str, &str) = ("/sys/class/dmi/id/product_name", "PowerEdge R740\n");
    const ETC: (&str, &str) = ("/etc/machine-id", "0123456789ABCDEF0123456789abcdef\n");
    const ETC_ID: &str = "01234567-89ab-cdef-0123-456789abcdef";
    const STORED: (&str, &str) = ("/wd/machine-id", "11111111-2222-4333-8444-555555555555");

    fn found(files: &[(&str, &str)]) -> (String, IdSource) {
        let tree = Tree::new(files);
        tree.write("/wd/keep", "");
        let workdir = tree.path().join("wd");
        let id = agent_id(tree.host(), &workdir, None).unwrap();
        assert!(id.not_stored.is_none(), "{:?}", id.not_stored);
        assert_eq!(fs::read_to_string(workdir.join("machine-id")).unwrap(), id.id);
        assert_eq!(fs::metadata(workdir.join("machine-id")).unwrap().permissions().mode() & 0o7777, 0o600);
        assert_eq!(fs::read_dir(&workdir).unwrap().count(), 2, "a temporary file is left");
        (id.id, id.source)
    }

    fn specified(value: &[u8]) -> Result<AgentId, IdentityError> {
        agent_id(Tree::new(&[ETC]).host(), Path::new("/nonexistent"), Some(OsStr::from_bytes(value)))
    }

    #[test]
    fn name_based_uuids_match_other_implementations() {
        // Expected values from Python's uuid.uuid5.
        let dns = Uuid::new_v5(&Uuid::NAMESPACE_DNS, b"www.example.com");
        assert_eq!(dns.to_string(), "2ed6657d-e927-568b-95e1-2665a8aea6a2");
        assert_eq!(Uuid::NAMESPACE_OID.to_string(), "6ba7b812-9dad-11d1-80b4-00c04fd430c8");
        assert_eq!(found(&[INSTANCE, PRODUCT, ETH0, NAME, ETC]).0, "6be098a7-3f4b-5f8a-a069-81fa606ecaeb");
        assert_eq!(found(&[PRODUCT, NAME, ETC]).0, "a4444000-e39a-52d5-9029-0f33ac043374");
    }

    #[test]
    fn the_environment_comes_first_and_writes_nothing() {
        let tree = Tree::new(&[INSTANCE, PRODUCT, NAME, ETC]);
        let id = agent_id(tree.host(), tree.path(), Some(OsStr::new("My Host/7"))).unwrap();
        assert_eq!((id.id.as_str(), id.source), ("My Host/7", IdSource::Environment));
        assert!(!tree.path().join("machine-id").exists());
    }

    #[test]
    fn an_id_from_the_environment_is_checked() {
        assert_eq!(specified(&[b'x'; 256]).unwrap().id.len(), 256);
        assert_eq!(specified(&[b'x'; 257]).unwrap_err(), IdentityError::TooLong(257));
        assert_eq!(specified(b"a\nb").unwrap_err(), IdentityError::Control('\n'));
        assert_eq!(specified("a\u{85}b".as_bytes()).unwrap_err(), IdentityError::Control('\u{85}'));
        assert_eq!(specified(b"a\xff").unwrap_err(), IdentityError::NotUtf8);
        assert_eq!(specified(b"").unwrap().source, IdSource::EtcMachineId);
        let message = specified(&[b'x'; 300]).unwrap_err().to_string();
        assert_eq!(message, "SPECIFIED_AGENT_ID has 300 bytes, the limit is 256");
    }

    #[test]
    fn hardware_identities_are_joined_in_order_and_trimmed() {
        let (id, source) = found(&[INSTANCE, PRODUCT, ETH0, NAME, ETC, STORED]);
        let name = b"i-0123456789abcdef04c4c4544-0042-3510-8054-b4c04f4d323252:54:00:12:34:56";
        assert_eq!((id, source), (Uuid::new_v5(&Uuid::NAMESPACE_OID, name).to_string(), IdSource::Hardware));
        // Five bytes are no identity, whatever they are. Six with the line feed are one.
        let short = ("/var/lib/cloud/data/instance-id", "i-01\n");
        assert_eq!(found(&[short, ETH0, NAME]).0, found(&[ETH0, NAME]).0);
        let enough = ("/var/lib/cloud/data/instance-id", "i-012\n");
        assert_ne!(found(&[enough, ETH0, NAME]).0, found(&[ETH0, NAME]).0);
    }

    #[test]
    fn too_little_hardware_identity_is_none() {
        assert_eq!(found(&[("/sys/class/net/eth0/address", "12345678\n"), NAME, ETC]).1, IdSource::EtcMachineId);
        assert_eq!(found(&[("/sys/class/net/eth0/address", "123456789\n"), NAME, ETC]).1, IdSource::Hardware);
    }

    #[test]
    fn shared_product_uuids_are_passed_over() {
        for shared in SHARED_PRODUCT_UUIDS {
            let shared = ("/sys/class/dmi/id/product_uuid", str::from_utf8(shared).unwrap());
            assert_eq!(found(&[INSTANCE, shared, ETH0, NAME, ETC]), (ETC_ID.into(), IdSource::EtcMachineId));
        }
    }

    #[test]
    fn an_unusable_product_name_leads_on_instead_of_to_an_empty_id() {
        assert_eq!(found(&[PRODUCT, ETH0, ETC]), (ETC_ID.into(), IdSource::EtcMachineId));
        for name in ["KVM\n", "--    ", "unknown\n", "To be filled by O.E.M.\n", "OEM not specify", "T.B.D\n", ""] {
            let name = ("/sys/class/dmi/id/product_name", name);
            assert_eq!(found(&[PRODUCT, ETH0, name, ETC]), (ETC_ID.into(), IdSource::EtcMachineId));
        }
        // Only the last placeholder is compared without case.
        let name = ("/sys/class/dmi/id/product_name", "Unknown\n");
        assert_eq!(found(&[PRODUCT, ETH0, name, ETC]).1, IdSource::Hardware);
    }

    #[test]
    fn a_machine_id_of_the_right_length_is_hashed() {
        let odd = "zzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzz";
        let (id, source) = found(&[("/etc/machine-id", "zzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzz\n"), STORED]);
        assert_eq!(id, Uuid::new_v5(&Uuid::NAMESPACE_OID, odd.as_bytes()).to_string());
        assert_eq!(source, IdSource::EtcMachineIdHashed);
    }

    #[test]
    fn the_stored_id_comes_before_a_random_one() {
        for etc in ["", "uninitialized\n", "0123456789abcdef0123456789abcde\n"] {
            assert_eq!(found(&[("/etc/machine-id", etc), STORED]), (STORED.1.into(), IdSource::Stored));
        }
        let long = "x".repeat(5000);
        assert_eq!(found(&[("/etc/machine-id", &long), STORED]).1, IdSource::Stored);
    }

    #[test]
    fn a_random_id_stays() {
        let tree = Tree::new(&[("/wd/machine-id", "garbled")]);
        let workdir = tree.path().join("wd");
        let first = agent_id(tree.host(), &workdir, None).unwrap();
        let second = agent_id(tree.host(), &workdir, None).unwrap();
        assert_eq!((first.source, second.source), (IdSource::Random, IdSource::Stored));
        assert_eq!(first.id, second.id);
        assert_eq!(Uuid::parse_str(&first.id).unwrap().get_version_num(), 4);
    }

    #[test]
    fn an_id_that_cannot_be_stored_is_still_an_id() {
        let tree = Tree::new(&[ETC]);
        let id = agent_id(tree.host(), &tree.path().join("none"), None).unwrap();
        assert_eq!(id.id, ETC_ID);
        assert_eq!(id.not_stored.unwrap().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn storing_replaces_links_and_leaves_a_right_file_alone() {
        let tree = Tree::new(&[("/elsewhere", "precious"), ("/wd/machine-id.new", "from a crash")]);
        let path = tree.path().join("wd/machine-id");
        std::os::unix::fs::symlink(tree.path().join("elsewhere"), &path).unwrap();
        store(&path, ETC_ID).unwrap();
        assert_eq!(fs::read_to_string(tree.path().join("elsewhere")).unwrap(), "precious");
        let before = fs::metadata(&path).unwrap();
        store(&path, ETC_ID).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().ino(), before.ino());
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        store(&path, ETC_ID).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    }

    #[test]
    fn uuids_parse_in_every_form_of_the_reference() {
        let id = Uuid::parse_str(ETC_ID).unwrap();
        for text in [ETC_ID.to_owned(), ETC_ID.replace('-', ""), format!("{{{ETC_ID}}}"), format!("URN:uuid:{ETC_ID}")]
        {
            assert_eq!(parse(text.as_bytes()), Ok(id), "{text}");
        }
        assert_eq!(parse(b""), Err(NotUuid::Shape));
        assert_eq!(parse(format!("urn:uuix:{ETC_ID}").as_bytes()), Err(NotUuid::Shape));
        assert_eq!(parse(ETC_ID.replace('-', "_").as_bytes()), Err(NotUuid::Digits));
        assert_eq!(parse(&[0xff; 38]), Err(NotUuid::Digits));
    }
}
