//! The command line as data. The parser, `--help`, the man pages and the shells' completions (packaging/manual) all come from
//! these tables, so that none of them can say something else than another.

use std::iter;

/// A program by one of the names that this binary is called with.
#[derive(Debug, Clone, Copy)]
pub struct Program {
    /// The name it is called by.
    pub name: &'static str,
    /// What it is, in a few words.
    pub summary: &'static str,
    /// What it does, in sentences. An empty line ends a paragraph.
    pub details: &'static str,
    /// What it can be told to do.
    pub commands: &'static [Command],
    /// Options that may stand before the command.
    pub flags: &'static [Flag],
    /// What it does without a command, if anything.
    pub default: Option<&'static Command>,
    /// The service that its `ctl` drives.
    pub(crate) service: &'static str,
}

/// A command of a program, or of another command.
#[derive(Debug, Clone, Copy)]
pub struct Command {
    /// The word that names it.
    pub name: &'static str,
    /// What it does, in a few words.
    pub summary: &'static str,
    /// What it does, in sentences. An empty line ends a paragraph.
    pub details: &'static str,
    /// What has to follow it, if anything: `HOST:PORT`.
    pub operand: Option<&'static str>,
    /// Commands of its own, of which one has to follow.
    pub commands: &'static [Command],
    /// Its options.
    pub flags: &'static [Flag],
    /// Its exit codes, and what each means.
    pub exits: &'static [(&'static str, &'static str)],
}

/// An option.
#[derive(Debug, Clone, Copy)]
pub struct Flag {
    /// Its name, without the dashes.
    pub name: &'static str,
    /// The kind of value that it takes, if it takes one: `FILE`, `DIR`, `HOST:PORT` and others.
    pub value: Option<&'static str>,
    /// True if it may be repeated.
    pub is_repeated: bool,
    /// What it does.
    pub help: &'static str,
}

/// A table for `--help` and the man page.
#[derive(Debug, Clone, Copy)]
pub struct Topic {
    /// Its heading.
    pub title: &'static str,
    /// A name and what it means, each.
    pub entries: &'static [(&'static str, &'static str)],
}

impl Command {
    const fn new(name: &'static str, summary: &'static str, details: &'static str, flags: &'static [Flag]) -> Self {
        Self { name, summary, details, operand: None, commands: &[], flags, exits: &[] }
    }
}

impl Flag {
    const fn with(name: &'static str, value: &'static str, help: &'static str) -> Self {
        Self { name, value: Some(value), is_repeated: false, help }
    }

    const fn repeated(name: &'static str, value: &'static str, help: &'static str) -> Self {
        Self { name, value: Some(value), is_repeated: true, help }
    }

    const fn plain(name: &'static str, help: &'static str) -> Self {
        Self { name, value: None, is_repeated: false, help }
    }

    /// The option as it is typed: `--server HOST:PORT`.
    #[must_use]
    pub fn usage(&self) -> String {
        let value = self.value.map(|value| format!(" {value}")).unwrap_or_default();
        format!("--{}{value}", self.name)
    }
}

const CONFIG: Flag =
    Flag::with("config", "FILE", "settings as TOML, instead of /etc/elklet/elklet.toml, which need not be there");
const WORKDIR: Flag = Flag::with("workdir", "DIR", "one directory for everything, as Elkeid's own agent has it");
const SERVER: Flag =
    Flag::repeated("server", "HOST:PORT", "an AgentCenter; may be repeated, and the agent tries them in order");
const DISCOVERY: Flag = Flag::repeated(
    "discovery",
    "HOST:PORT",
    "a service discovery host, which the agent asks before it tries any --server; may be repeated",
);
const PUBLIC: Flag = Flag::repeated(
    "public",
    "HOST:PORT",
    "an AgentCenter, which the agent tries after every --server; may be repeated",
);
const CERTS: Flag = Flag::with("certs", "DIR", "where ca.crt, client.crt and client.key are");
const LOG_STDERR: Flag = Flag::plain("log-stderr", "log to standard error too, beside the log file");
const JSON: Flag = Flag::plain("json", "print JSON, for programs");

/// Whoever looks at what the agent would do has its options.
const RUN_FLAGS: &[Flag] = &[CONFIG, WORKDIR, SERVER, DISCOVERY, PUBLIC, CERTS, LOG_STDERR];
/// The options that say where things lie, which every command has that looks at any.
pub const PLACE_FLAGS: &[Flag] = &[CONFIG, WORKDIR];

const RUN: Command = Command {
    exits: &[
        ("0", "after SIGTERM, SIGINT or the server's shutdown task"),
        ("1", "when the system refuses what the agent needs"),
        ("2", "for a wrong option, file or certificate"),
    ],
    ..Command::new(
        "run",
        "run the agent",
        "Connects to AgentCenter, starts the plugins that it names, and passes their records on until a signal or the server ends \
         it. It stays in the foreground and logs to a file.\n\n\
         On SIGHUP it reads settings and certificates again. A mistake in them changes nothing. On SIGTERM and SIGINT it stops the \
         plugins, sends what they have written, and keeps on disk what the server has not taken.\n\n\
         An option takes precedence over the file's key.",
        RUN_FLAGS,
    )
};

const STATUS: Command = Command {
    exits: &[
        ("0", "when the agent is connected (with --metrics: when it answers)"),
        ("1", "when no agent runs"),
        ("2", "for a wrong option or file"),
        ("3", "when the agent runs and is not connected"),
    ],
    ..Command::new(
        "status",
        "ask the running agent how it is",
        "Prints the agent's answer as text, as JSON or as Prometheus metrics. The agent's socket serves the same over HTTP as \
         /status.txt, /status and /metrics.",
        &[CONFIG, WORKDIR, JSON, Flag::plain("metrics", "print metrics in the format of Prometheus")],
    )
};

const DOCTOR: Command = Command {
    exits: &[
        ("0", "when all is well here and a server takes this agent"),
        ("1", "when not"),
        ("2", "for a wrong option"),
    ],
    ..Command::new(
        "doctor",
        "say why the agent does not connect, and what to do",
        "Goes the way to every configured server: file, DNS, TCP, proxy, TLS, ALPN, gRPC, AgentCenter. It names the hop at which the \
         way ends, and says what to do about it. It also names files that others on this host could read or change.",
        &[CONFIG, WORKDIR, SERVER, DISCOVERY, PUBLIC, CERTS, LOG_STDERR, JSON],
    )
};

const CHECK: Command = Command {
    exits: &[("0", "when `run` would start"), ("2", "with a line that says what is wrong, when not")],
    ..Command::new(
        "check",
        "read settings and certificates as `run` would, and start nothing",
        "Prints what is wrong, or that nothing is. It opens no connection: `elklet doctor` does.",
        RUN_FLAGS,
    )
};

const INIT: Command = Command {
    exits: &[
        ("0, 1", "as `elklet doctor`, once the file is written"),
        ("2", "when a file sets something already, or servers or certificates are of no use"),
    ],
    ..Command::new(
        "init",
        "write the settings of a new host, then do what `doctor` does",
        "Writes the settings' file of a host that has none, with these servers and every other key as a comment, and copies the \
         certificates from the directory of --certs to where they belong. It changes nothing that is there.",
        RUN_FLAGS,
    )
};

/// Where the center is, to which [`ENROLL`] goes.
pub(super) const CENTER: &str = "HOST:PORT";

const ENROLL: Command = Command {
    operand: Some(CENTER),
    exits: &[
        ("0, 1", "as `elklet doctor`, once the host is enrolled"),
        ("1", "when the center does not enrol the host, or a file cannot be written"),
        ("2", "for a wrong option, or when the host has certificates or settings already"),
    ],
    ..Command::new(
        "enroll",
        "get this host a certificate of its own from a center, then do what `doctor` does",
        "Makes a key, which never leaves the host, has the center sign it, and writes ca.crt, client.crt, client.key and the \
         settings. `elklet-center token` on the center prints the whole line. The token leaves the host only once the center has \
         proved that its authority has the key of the pin.\n\n\
         The agent renews such a certificate by itself. It changes nothing that is there without --force.",
        &[
            Flag::with("token", "TOKEN", "what lets this host in"),
            Flag::with("ca-pin", "SHA256", "the SHA-256 of the key of the center's authority"),
            Flag::plain("force", "replace certificates that are there; settings that are there stay"),
            CONFIG,
            WORKDIR,
        ],
    )
};

const ADOPT: Command = Command {
    exits: &[
        ("0", "when it is done, or has said what it would do"),
        ("1", "when something cannot be copied"),
        ("2", "when an agent runs, or there is nothing to adopt"),
    ],
    ..Command::new(
        "adopt",
        "go on as an agent that had everything in one directory",
        "Copies what such an agent has kept to where things lie now: id, idc and region, plugins, spool, settings and certificates, \
         as far as they are there and not here. Without --yes it says what it would do.",
        &[
            Flag::with("from", "DIR", "the directory of that agent, instead of /etc/elkeid"),
            Flag::plain("yes", "do it"),
            Flag::plain("undo", "remove what was copied; also only with --yes"),
            CONFIG,
            WORKDIR,
        ],
    )
};

const SPOOL: Command = Command {
    commands: &[
        Command::new("ls", "list the files and what is in them", "", PLACE_FLAGS),
        Command::new("verify", "read all of it, and say what is damaged", "", PLACE_FLAGS),
    ],
    exits: &[
        ("0", "when nothing is damaged, as far as it was read"),
        ("1", "when something is damaged, or there is no work directory"),
        ("2", "for a wrong option or file"),
    ],
    ..Command::new(
        "spool",
        "look at the records that wait on the disk for a server",
        "The agent may run meanwhile. Nothing is changed.",
        PLACE_FLAGS,
    )
};

const CTL: Command = Command {
    commands: CTL_COMMANDS,
    exits: CTL_EXITS,
    ..Command::new("ctl", "what Elkeid's elkeidctl does: set, unset, start, stop and others", CTL_DETAILS, PLACE_FLAGS)
};

/// What [`KEYGEN`] writes and [`SIGN`] reads.
pub(super) const FILE: &str = "FILE";
/// What [`VERIFY`] looks at.
pub(super) const SIGNATURE: &str = "SIGNATURE";

const PLUGIN: Flag = Flag::with("plugin", "NAME", "the plugin's name, or elkeid-agent for a version of the agent");
const PLUGIN_VERSION: Flag = Flag::with("plugin-version", "VERSION", "its version, as the server's entry has it");
const DOWNLOAD: Flag =
    Flag::with("download", "FILE", "what servers offer, if it is an archive with the executable in it");

const KEYGEN: Command = Command {
    operand: Some(FILE),
    exits: &[("0", "when it is done"), ("1", "when the file cannot be written"), ("2", "when it is there already")],
    ..Command::new(
        "keygen",
        "make a key to sign plugins and versions of the agent with",
        "Writes an ed25519 key into FILE, which only its owner can read and no agent needs, and prints the line by which hosts know \
         signatures of this key.",
        &[],
    )
};

const SIGN: Command = Command {
    operand: Some(FILE),
    exits: &[("0", "when it is done"), ("2", "when a file is of no use, or agents would refuse such an entry")],
    ..Command::new(
        "sign",
        "sign a plugin's executable, or a package of the agent",
        "Prints the fields that the entry on the server has to have, besides type, addresses and detail. docs/plugins.md has the format.",
        &[
            Flag::with("key", "FILE", "the key that `elklet keygen` or OpenSSL has made"),
            PLUGIN,
            PLUGIN_VERSION,
            DOWNLOAD,
            Flag::with(
                "detail",
                "TEXT",
                "the only detail that the server may give the plugin; none without this option",
            ),
            Flag::plain("open", "leave the detail to the server"),
            Flag::with(
                "signed",
                "TIME",
                "the time of signing, as in 2026-01-31 or 2026-01-31T12:00:00Z, instead of now",
            ),
        ],
    )
};

const VERIFY: Command = Command {
    operand: Some(SIGNATURE),
    exits: &[("0", "when a host accepts it"), ("1", "when not, with the reason"), ("2", "for a wrong option or file")],
    ..Command::new(
        "verify",
        "check a signature as a host does",
        "SIGNATURE is the entry's field of that name. The keys are those of this host's settings, or those of --public-key. It does \
         not look at what has run on this host before.",
        &[
            PLUGIN,
            PLUGIN_VERSION,
            Flag::with("sha256", "HASH", "the entry's sha256, if it is not that of the executable"),
            Flag::with("detail", "TEXT", "the entry's detail"),
            Flag::with("file", "FILE", "the executable, or the agent's package, to compare it too"),
            DOWNLOAD,
            Flag::repeated("public-key", "KEY", "whose signatures count; may be repeated once"),
            Flag::with("signed-after", "TIME", "refuse what was signed before; for the keys of --public-key"),
            CONFIG,
            WORKDIR,
        ],
    )
};

const HELP: Command = Command::new("help", "the same as --help, also as `elklet help COMMAND`", "", &[]);
const VERSION: Command = Command::new("version", "print the version", "", &[JSON]);

/// `elklet`.
pub const ELKLET: Program = Program {
    name: "elklet",
    summary: "a small agent for the Elkeid host security system",
    details: "elklet holds one mutually authenticated gRPC stream to Elkeid's AgentCenter, runs the plugins that the server names, \
              sends their records up and carries the server's commands out. It keeps what the server has not taken yet, in memory and \
              on disk, through broken connections and restarts.",
    commands: &[RUN, STATUS, DOCTOR, INIT, ENROLL, CHECK, SPOOL, ADOPT, CTL, KEYGEN, SIGN, VERIFY, VERSION, HELP],
    flags: &[],
    default: None,
    service: "elklet",
};

/// `elkeid-agent`: the same in the place of Elkeid's own agent, which is given no command.
pub const ELKEID_AGENT: Program =
    Program { name: "elkeid-agent", default: Some(&RUN), service: "elkeid-agent", ..ELKLET };

/// `elkeidctl`.
pub const ELKEIDCTL: Program = Program {
    name: "elkeidctl",
    summary: "specify this host, and drive the service elkeid-agent",
    details: CTL_DETAILS,
    commands: CTL_COMMANDS,
    flags: PLACE_FLAGS,
    default: None,
    service: ELKEID_AGENT.service,
};

const CTL_DETAILS: &str = "set and unset write specified_env in the work directory: /etc/elkeid for elkeidctl, and that of every command for `elklet \
     ctl`. The agent reads the file at its start and on SIGHUP.\n\n\
     The others hand over to systemd, or to the service's script in /etc/init.d where there is none. service_type says which of \
     them if it is set. The service is elkeid-agent for elkeidctl, and elklet for `elklet ctl`. Where nothing is to be done for a \
     command, it does nothing.";

const CTL_EXITS: &[(&str, &str)] = &[
    ("0", "when it is done"),
    ("2", "for wrong words, or when it cannot be done"),
    ("others", "those of systemctl or of the script, which take over"),
];

const CTL_COMMANDS: &[Command] = &[
    Command::new(
        "set",
        "specify this host",
        "Each value has 1 to 128 characters.",
        &[
            Flag::with("id", "ID", "the agent's id"),
            Flag::with("idc", "IDC", "the data centre, which the heartbeat reports"),
            Flag::with("region", "REGION", "the region, whose servers [regions.NAME] may name"),
            Flag::with(
                "service_type",
                "TYPE",
                "the service manager, systemd or sysvinit, if it is not to be found out",
            ),
            CONFIG,
            WORKDIR,
        ],
    ),
    Command::new(
        "unset",
        "forget what was specified",
        "",
        &[
            Flag::plain("id", "the agent's id"),
            Flag::plain("idc", "the data centre"),
            Flag::plain("region", "the region"),
            Flag::plain("service_type", "the service manager"),
            CONFIG,
            WORKDIR,
        ],
    ),
    Command::new("start", "start the service", "", PLACE_FLAGS),
    Command::new("stop", "stop the service", "", PLACE_FLAGS),
    Command::new("restart", "restart the service", "", PLACE_FLAGS),
    Command::new("status", "ask the service manager about the service", "", PLACE_FLAGS),
    Command::new("enable", "have the service start with the host", "", PLACE_FLAGS),
    Command::new("disable", "have the service not start with the host", "", PLACE_FLAGS),
    Command::new("check", "start an agent that has died, which cron calls where there is no systemd", "", PLACE_FLAGS),
    Command::new("service-reload", "have systemd read its units again", "", PLACE_FLAGS),
    Command::new(
        "cleanup",
        "nothing: Elkeid's own removes control groups that this agent does not make",
        "",
        PLACE_FLAGS,
    ),
];

/// Where things lie: by default, with `--workdir DIR`, and the key of the file that moves each.
pub const PLACES: [[&str; 4]; 5] = [
    ["settings", "/etc/elklet/elklet.toml", "DIR/elklet.toml", "--config FILE"],
    ["certificates", "/etc/elklet/certs", "DIR/certs", "certs"],
    ["state, plugins, spool", "/var/lib/elklet", "DIR", "workdir"],
    ["log, audit", "/var/log/elklet", "DIR/log", "[log] directory"],
    ["status socket", "/run/elklet/elklet.sock", "DIR/elklet.sock", "socket"],
];

/// What the environment says.
pub const ENVIRONMENT: Topic = Topic {
    title: "Environment",
    entries: &[
        (
            "SPECIFIED_AGENT_ID",
            "the agent's id, verbatim. Without it the agent takes the id that elkeidctl has set. Without that it derives one from the \
             hardware, or makes one and keeps it in machine-id",
        ),
        (
            "specified_idc, specified_region",
            "the host's idc and region, which the heartbeat reports. What elkeidctl has set takes precedence over these, and these over \
             the file. A region's servers may stand in [regions.NAME]",
        ),
        ("RUNTIME_MODE=DEBUG", "logs more, as [log] debug does"),
        (
            "HTTPS_PROXY, HTTP_PROXY, ALL_PROXY, NO_PROXY",
            "proxies, in upper or lower case, if [proxy] in the file names none",
        ),
        ("SSL_CERT_FILE", "the authorities for https downloads, beside ca.crt and instead of the system's"),
    ],
};

/// Every command with the words that lead to it, those of other commands after these.
pub fn all(commands: &'static [Command]) -> Vec<(Vec<&'static str>, &'static Command)> {
    let own = commands.iter().flat_map(|command| {
        let below = all(command.commands).into_iter().map(|(words, below)| {
            let words = iter::once(command.name).chain(words).collect();
            (words, below)
        });
        iter::once((vec![command.name], command)).chain(below)
    });
    own.collect()
}
