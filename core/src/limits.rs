//! Every capacity of the agent, in one place, with the reason for its value.
//!
//! What happens at each limit is said where the limit is used, and tested there.

/// Records that a buffer holds at most. The project's owner fixed this number; it is that of Elkeid's own agent 1.7.
pub const SLOTS: usize = 8192;

/// Slots of the urgent buffer. It carries heartbeats (one a minute and plugin), task answers, error reports and the plugins'
/// high-priority lane, all of them rare; it leaves within milliseconds while there is a stream.
pub const URGENT_SLOTS: usize = 512;

/// Bytes of one record arena unless configured otherwise. Two of them take turns. 2 MiB is 2,300 records of an execve's size:
/// enough that a batch compresses well and its fixed costs vanish, little enough for the 12 MB that the agent may use.
pub const ARENA_BYTES: usize = 2 << 20;

/// The smallest arena that may be configured: room for the longest frame that common plugins send, on hosts where every
/// page counts.
pub const MIN_ARENA_BYTES: usize = 128 << 10;

/// The largest arena that may be configured. A batch is one arena and the urgent one; AgentCenter refuses messages that
/// decode to more than 10 MiB.
pub const MAX_ARENA_BYTES: usize = 8 << 20;

/// Bytes of the urgent arena. A heartbeat takes 2 KiB; a plugin's high-priority record may take [`MAX_RECORD_BYTES`] only if
/// it fits here, else it travels with the rest.
pub const URGENT_ARENA_BYTES: usize = 256 << 10;

/// Bytes of one record at most: a payload of 4 MiB, as much as a server's Kafka takes and Elkeid's JVM probe sends, behind its data
/// type, timestamp and keys. One that is longer than an arena has memory of its own while it is on its way.
pub const MAX_RECORD_BYTES: usize = (4 << 20) + (4 << 10);

/// Milliseconds that a record waits at most for others to travel with. The reference agent sends every 100 ms.
pub const FLUSH_INTERVAL_MS: u64 = 100;

/// Bytes of batches that were sent and are not known to have arrived, unless configured otherwise: some four seconds of
/// 5,000 records/s, compressed.
pub const LEDGER_BYTES: usize = 4 << 20;

/// Milliseconds after a batch was confirmed within which a crash of the server may lose it, unless configured otherwise.
/// AgentCenter hands what it has read to Kafka in the background: killed at 5,000 records/s, it lost 0.2 s of them.
pub const REPLAY_MS: u64 = 1_000;

/// The most that may be configured: at more, doubles would be most of what is sent after an outage.
pub const MAX_REPLAY_MS: u64 = 60_000;

/// Milliseconds that sending waits for a confirmation when the ledger is full.
pub const LEDGER_WAIT_MS: u64 = 200;

/// Milliseconds that a server may work on what it has read before the answer to a later PING counts as a confirmation.
pub const CONFIRM_GRACE_MS: u64 = 2_000;

/// Milliseconds between two PINGs at least. AgentCenter ends a connection whose PINGs come closer than 5 s.
pub const PING_INTERVAL_MS: u64 = 6_000;

/// Milliseconds between two PINGs at most, after a server has found them too frequent again and again.
pub const MAX_PING_INTERVAL_MS: u64 = 600_000;

/// Bytes of a batch's message at most, compressed: [`MAX_ARENA_BYTES`], what precedes them, and what compressing adds to
/// bytes that do not compress.
pub const MAX_BATCH_BYTES: usize = 12 << 20;

/// Kinds of records (by plugin and data type) that a batch counts apart. A host's seven plugins have some fifty data types,
/// of which few come within a tenth of a second.
pub const MANIFEST_ROWS: usize = 32;

/// Names of plugins that are told apart when losses are counted, over the whole life of the agent.
pub const MAX_SOURCES: usize = 256;

/// Bytes that the spool may take on disk unless configured otherwise: a minute and more of 5,000 records/s.
pub const SPOOL_BYTES: u64 = 64 << 20;

/// The smallest spool that may be configured, unless it is none: room for the largest batches.
pub const MIN_SPOOL_BYTES: u64 = 16 << 20;

/// The largest spool that may be configured.
pub const MAX_SPOOL_BYTES: u64 = 64 << 30;

/// Bytes of one of the spool's files, at least; what is dropped when the spool is full is one file. See
/// [`segment_bytes`].
pub const MIN_SEGMENT_BYTES: u64 = 256 << 10;

/// Bytes of one of the spool's files, at most: as much is sent twice after a crash that loses the mark of what is confirmed.
pub const MAX_SEGMENT_BYTES: u64 = 4 << 20;

/// Bytes after which a spool of `limit` bytes begins another file.
#[must_use]
pub const fn segment_bytes(limit: u64) -> u64 {
    match limit / 64 {
        0..MIN_SEGMENT_BYTES => MIN_SEGMENT_BYTES,
        bytes @ MIN_SEGMENT_BYTES..MAX_SEGMENT_BYTES => bytes,
        MAX_SEGMENT_BYTES.. => MAX_SEGMENT_BYTES,
    }
}

/// Milliseconds without a stream after which what waits in memory goes to the spool: a server that is back at once costs no
/// writing.
pub const SPOOL_AFTER_MS: u64 = 1_000;

/// Milliseconds that a record waits for others to travel with while there is no stream: fewer, larger batches, and still
/// less than a second that a crash of the agent costs.
pub const OFFLINE_FLUSH_INTERVAL_MS: u64 = 400;

/// Bytes that are written to the spool at once, unless a single batch is larger.
pub const SPOOL_WRITE_BYTES: usize = 1 << 20;

/// Milliseconds after which an operation on the spool, for which there was no thread, is tried again.
pub const SPOOL_THREAD_RETRY_MS: u64 = 1_000;

/// Milliseconds after which what was written to the spool is made to survive a loss of power.
pub const SPOOL_SYNC_MS: u64 = 5_000;

/// Milliseconds after which a spool that could not be used is tried again.
pub const SPOOL_RETRY_MS: u64 = 10_000;

/// Batches that a stream is given before it has written them: it writes one while another waits, so that it never runs dry. More
/// would only grow old on the way.
pub const STREAM_AHEAD: usize = 2;

/// Batches that may be on their way at once, wherever they are kept: each takes some hundred bytes of memory.
pub const MAX_UNCONFIRMED_BATCHES: usize = 2048;

/// Streams that a server ends in a row over the same batch before that batch is taken for too large and made smaller; a single
/// record is given up then.
pub const REFUSALS: u32 = 2;

/// Bytes of a batch's content from which on its size may be why it alone has ended a stream: other batches are then sent in
/// smaller messages for a while. Servers that end streams over smaller messages than this do so for another reason.
pub const MIN_REFUSED_BYTES: u32 = 256 << 10;

/// Milliseconds of silence before and after a batch that is suspected of ending streams. A server that dies of a record does
/// so when it reads it, a round trip after it was written.
pub const TRIAL_MS: u64 = 1_000;

/// Milliseconds between batches that are sent again after two streams have ended over the same one.
pub const CAREFUL_GAP_MS: u64 = 200;

/// Milliseconds that a stream has to live before it is tried with a suspected batch: what others have is taken first, and the
/// stream counts as stable by then (see [`STABLE_MS`](crate::link::session::STABLE_MS)), so that the agent is soon back.
pub const PROBE_AFTER_MS: u64 = crate::link::session::STABLE_MS + 500;

/// Trials in a row that a single record has to end before it is given up.
pub const POISON_STRIKES: u32 = 3;

/// Batches that are suspected at the same time at most. A server that ends streams over more than these does not die of one.
pub const MAX_SUSPECTS: usize = 64;

/// A batch that has ended a stream alone is cut into about so many parts: few streams have to end, and few trials be waited for.
pub const SUSPECT_PARTS: u32 = 4;

/// Batches close to the size that a server is thought to take that it has to take before twice as much is tried: an hour's at
/// one in a second. Each time that it refuses more again, it is twice as many.
pub const REFUSAL_PATIENCE: u32 = 3_600;

/// Kinds of losses (by cause, plugin and data type) that wait to be reported; the rest is counted together.
pub const LOSS_ROWS: usize = 64;

/// Milliseconds between two reports of the same kind of loss at least.
pub const LOSS_REPORT_INTERVAL_MS: u64 = 10_000;

/// Bytes of one command at most, before and after decompression: the limit of grpc-go's clients, hence of the reference.
pub const MAX_COMMAND_BYTES: usize = 4 << 20;

/// Bytes of a command that is too long and is read past all the same, so that its task can be answered. What announces more is
/// no gRPC message, and ends the stream.
pub const MAX_OVERSIZED_COMMAND_BYTES: usize = 16 << 20;

/// Plugins at most. Elkeid has seven; each costs the agent two descriptors and a process slot.
pub const MAX_PLUGINS: usize = 64;

/// Entries of a configuration that are refused each by itself; of more only the number is told.
pub const MAX_REFUSED_ENTRIES: usize = 128;

/// Plugins at most that are configured or still have to end: a whole configuration's worth of each. What is configured beyond
/// waits until others have ended.
pub const MAX_PLUGINS_KNOWN: usize = 2 * MAX_PLUGINS;

/// Bytes of a plugin's name at most: it is a directory's and a file's name, with suffixes.
pub const MAX_PLUGIN_NAME_BYTES: usize = 64;

/// Bytes of a version string at most.
pub const MAX_VERSION_BYTES: usize = 128;

/// Bytes of a plugin's DETAIL at most: Linux takes no longer environment string than 128 KiB, name included.
pub const MAX_DETAIL_BYTES: usize = 120 << 10;

/// Download addresses of one plugin at most.
pub const MAX_DOWNLOAD_URLS: usize = 16;

/// Bytes of a download and of an executable at most; the reference takes no more.
pub const MAX_DOWNLOAD_BYTES: u64 = 512 << 20;

/// Bytes of all files of an unpacked archive at most: twice a download, which holds executables and rules that are
/// compressed already.
pub const MAX_UNPACKED_BYTES: u64 = 2 * MAX_DOWNLOAD_BYTES;

/// Entries of an archive at most, and files and directories that come of them, those that a path implies included. Elkeid's
/// largest plugin has some hundreds.
pub const MAX_ARCHIVE_ENTRIES: u64 = 10_000;

/// Levels of a path in an archive at most. Elkeid's plugins have five; what walks a plugin's directory need not reckon with
/// more than a path can hold.
pub const MAX_ARCHIVE_DEPTH: usize = 64;

/// Bytes of all downloads, and of what is unpacked from them, that lie on the disk at once before they are in their place:
/// the largest plugin, as a download and unpacked, and another download.
pub const MAX_STAGED_BYTES: u64 = MAX_UNPACKED_BYTES + 2 * MAX_DOWNLOAD_BYTES;

/// Bytes that a download leaves free on a file system of `size` bytes: a twentieth, as ext4 keeps for root, and not more than
/// a host's logs need for a day.
#[must_use]
pub const fn free_bytes_floor(size: u64) -> u64 {
    const MOST: u64 = 64 << 20;
    if size / 20 < MOST { size / 20 } else { MOST }
}

/// Inodes that a download leaves free on a file system that has `all`.
#[must_use]
pub const fn free_inodes_floor(all: u64) -> u64 {
    const MOST: u64 = 1_000;
    if all / 20 < MOST { all / 20 } else { MOST }
}

/// Bytes at most of what an archive says about an entry's name: Linux takes no longer path than 4 KiB.
pub const MAX_ARCHIVE_NAME_BYTES: u64 = 8 << 10;

/// Plugins that are fetched at the same time, each on a thread of its own; others wait. Elkeid has seven.
pub const MAX_DOWNLOADS: usize = 8;

/// Plugins that are verified in their places at the same time, likewise. They do not wait for downloads, and two keep disk and
/// processor busy.
pub const MAX_VERIFICATIONS: usize = 2;

/// Threads at most that do what blocks, beside the pump and the net thread: preparations, and about ten of which there is
/// one each (the spool, an upload, an update, service discovery). The rest is for names whose lookup hangs.
pub const MAX_WORKERS: usize = 32;

/// Bytes of a task at most, as framed for a plugin: Elkeid's Go SDK cannot read a longer one and loses its framing over it.
pub const MAX_TASK_BYTES: usize = 1 << 20;

/// Bytes of tasks that wait for one plugin at most; one more is answered with a failure.
pub const TASK_QUEUE_BYTES: usize = 2 << 20;

/// Tasks that wait for one plugin at most; one more is answered with a failure.
pub const TASK_QUEUE_LEN: usize = 1024;

/// Bytes of the file that has a plugin's standard error, and of the one before it, which is kept beside it.
pub const STDERR_FILE_BYTES: usize = 1 << 20;

/// Bytes of a plugin's standard error that are written to it at once: a crash with all its threads, or the start of a talkative one.
pub const STDERR_BURST_BYTES: usize = 512 << 10;

/// Bytes of it that are written in each further second. A plugin that complains without end costs a flash 1.4 GB a day.
pub const STDERR_BYTES_PER_SECOND: usize = 16 << 10;

/// The same for plugins whose file cannot be written: the log has room for others.
pub const STDERR_LOG_BURST_BYTES: usize = 4 << 10;

/// And in each further second.
pub const STDERR_LOG_BYTES_PER_SECOND: usize = 64;

/// Bytes of a plugin's standard error that are looked at for its last words.
pub const MAX_LAST_WORDS_BYTES: usize = 1 << 10;

/// Characters of these words that are told: there is more to say in [`MAX_REPORT_CHARS`].
pub const MAX_LAST_WORDS_CHARS: usize = 320;

/// Bytes of a task's token that an answer carries back at most.
pub const MAX_TOKEN_BYTES: usize = 1024;

/// Entries of `state_detail` at most; what is wrong with plugins comes first.
pub const MAX_STATE_DETAILS: usize = 32;

/// Characters of one report's text at most: it may quote a peer.
pub const MAX_REPORT_CHARS: usize = 512;

/// Bytes that are read of the text that a peer's gRPC status brings: it goes into the log.
pub const MAX_STATUS_MESSAGE_BYTES: usize = 1024;

/// Reports of the agent's warnings and errors (data type 1010) that one place in its source may make in an interval, and
/// that may wait of it while there is no stream. A handful shows what repeats.
pub const REPORTS_PER_PLACE: usize = 5;

/// Milliseconds of that interval.
pub const REPORT_INTERVAL_MS: u64 = 60_000;

/// Places in the source that are told apart; the agent complains in some eighty, seldom in more than a few.
pub const MAX_REPORT_PLACES: usize = 48;

/// Such reports that wait at most, of all places: 64 texts of [`MAX_REPORT_CHARS`] are 32 KiB.
pub const MAX_REPORTS_WAITING: usize = 64;

/// Addresses of one name that are tried at most. With a quarter of a second between them, all have begun after 2.3 s.
pub const MAX_ADDRESSES: usize = 10;

/// Questions for addresses that are being asked at most, each by a thread: two for each of [`MAX_DOWNLOADS`] downloads, the
/// stream, an upload and service discovery, and as many that a resolver has left without an answer.
pub const MAX_LOOKUPS: usize = 32;

/// Connections that died without their peers' knowledge that are remembered: more than an agent has in the ten minutes in which
/// AgentCenter notices by itself, unless paths die again and again.
pub const MAX_HALF_OPEN: usize = 8;

/// Times that such a peer is tried to be told, one at each attempt to connect: half an hour, when attempts are a minute apart.
pub const MAX_TELLINGS: u32 = 30;

/// Bytes of a proxy's answer at most; one with a few header fields has some hundred.
pub const MAX_PROXY_ANSWER_BYTES: usize = 8 << 10;

/// Bytes of an uploaded file that leave in a second at most, whatever the server asks for: the reference's.
pub const UPLOAD_BYTES_PER_SECOND: u64 = 500 << 10;

/// Seconds that an upload may take; a file that needs more at its rate is refused. The reference's.
pub const UPLOAD_SECONDS: u64 = 600;

/// Bytes of an uploaded file that are in memory at a time.
pub const UPLOAD_PIECE_BYTES: u64 = 64 << 10;

/// Uploads that wait for the one under way; one more is answered with a failure. The reference lets none wait.
pub const MAX_UPLOADS_WAITING: usize = 16;

/// Starts of a new version of the agent before it has held a stream; at one more the previous version is put back. A crash
/// at every start takes a service manager that waits 45 s some four minutes to get there.
pub const MAX_TRIAL_STARTS: u32 = 5;

/// Bytes that one place in the agent's source may write into the log at once: a start of [`MAX_PLUGINS`] plugins is 7 KiB.
pub const LOG_BURST_BYTES: u32 = 32 << 10;

/// Bytes a minute that it may write from then on. The log keeps 11 MiB: a place that a peer floods needs 12 hours to wash
/// out what the others have written.
pub const LOG_BYTES_PER_MINUTE: u32 = 16 << 10;

/// Places in the source that are told apart when the log is bounded; the agent has some hundred and thirty.
pub const MAX_LOG_PLACES: usize = 192;

/// Bytes that one kind of audited act may take at once: uploads, of which there is one at a time, take twenty minutes for it.
pub const AUDIT_BURST_BYTES: u32 = 256 << 10;

/// Bytes a minute of one kind from then on. The audit keeps 11 MiB: acts of one kind need two days to wash out the others.
pub const AUDIT_BYTES_PER_MINUTE: u32 = 4 << 10;

/// Bytes that audited refusals may take at once. They cost a server nothing, so that they get less than acts.
pub const AUDIT_REFUSED_BURST_BYTES: u32 = 64 << 10;

/// Bytes a minute of them from then on: they need five days.
pub const AUDIT_REFUSED_BYTES_PER_MINUTE: u32 = 1536;

/// Characters of one text in the audit at most: Linux takes no longer path.
pub const MAX_AUDIT_CHARS: usize = 4096;
