//! The capacities that hold for the agent as a whole, or that more than one module needs, each with the reason for its value.
//!
//! What bounds one read or one table of a single module stands at that module's head, and a state machine's times stand
//! with the state machine. They state their reasons there. The code that uses a limit says what happens there, and a test
//! beside that code shows it.

/// Most records in a buffer. The project's owner fixed this number; it is that of Elkeid's own agent 1.7.
pub const SLOTS: usize = 8192;

/// Slots of the urgent buffer. It carries answers to tasks, the agent's own reports, and what plugins write to
/// descriptor 5. All of them are rare, and the buffer leaves within milliseconds while there is a stream.
pub const URGENT_SLOTS: usize = 512;

/// Default size of a record arena in bytes. Two of them take turns. 2 MiB hold 2,300 records of an execve's size:
/// enough that a batch compresses well and its fixed costs vanish, little enough for the 12 MB that the agent may use.
pub const ARENA_BYTES: usize = 2 << 20;

/// The smallest configurable arena, in bytes. It has room for the longest frame that common plugins send, for hosts
/// where every page counts.
pub const MIN_ARENA_BYTES: usize = 128 << 10;

/// The largest configurable arena, in bytes. A batch is one arena and the urgent one, and AgentCenter refuses messages
/// that decode to more than 10 MiB.
pub const MAX_ARENA_BYTES: usize = 8 << 20;

/// Size of the urgent arena in bytes. An answer to a task takes less than 1 KiB. A plugin's high-priority record may have up to
/// [`MAX_RECORD_BYTES`] but uses this arena only if it fits, and else travels with the bulk.
pub const URGENT_ARENA_BYTES: usize = 256 << 10;

/// The longest record, in bytes: a payload of 4 MiB, as much as a server's Kafka takes and Elkeid's JVM probe sends,
/// plus its data type, timestamp and keys. One that is longer than an arena has memory of its own while it is in flight.
pub const MAX_RECORD_BYTES: usize = (4 << 20) + (4 << 10);

/// Longest wait of a record for others to be batched with, in milliseconds. The reference agent sends every 100 ms.
pub const FLUSH_INTERVAL_MS: u64 = 100;

/// Budget of the ledger, in bytes of compressed batches that were sent and are not known to have arrived. It
/// holds some four seconds of 5,000 records/s.
pub const LEDGER_BYTES: usize = 4 << 20;

/// Default for how long after its confirmation a batch is replayed, in milliseconds. A server's crash may lose what it has just
/// taken: AgentCenter hands what it has read to Kafka in the background. Killed at 5,000 records/s, it lost 0.2 s of them.
pub const REPLAY_MS: u64 = 1_000;

/// How long a batch that only the answer to a PING has confirmed is kept in memory for its credit, in milliseconds. A server whose
/// application hangs answers PINGs; what it has not read dies with it. On a quiet host, so much is sent twice when a stream breaks.
pub const UNCREDITED_MS: u64 = 600_000;

/// The longest configurable replay. With more, most of what is sent after an outage would be doubles.
pub const MAX_REPLAY_MS: u64 = 60_000;

/// How long sending waits for a confirmation when the ledger is full, in milliseconds.
pub const LEDGER_WAIT_MS: u64 = 200;

/// How long a server may work on what it has read, in milliseconds. The answer to a PING confirms only what left this
/// long before it.
pub const CONFIRM_GRACE_MS: u64 = 2_000;

/// Shortest time between two PINGs, in milliseconds. AgentCenter ends a connection whose PINGs come closer than 5 s.
pub const PING_INTERVAL_MS: u64 = 6_000;

/// Longest time between two PINGs, in milliseconds, after a server has complained of them again and again.
pub const MAX_PING_INTERVAL_MS: u64 = 600_000;

/// The longest message of a batch, compressed, in bytes: [`MAX_ARENA_BYTES`], what precedes them, and what compressing
/// adds to bytes that do not compress.
pub const MAX_BATCH_BYTES: usize = 12 << 20;

/// Kinds of records (by plugin and data type) that a batch counts separately. A host's seven plugins have some fifty
/// data types, of which few come within a tenth of a second.
pub const MANIFEST_ROWS: usize = 32;

/// Names of plugins that loss reports tell apart over the whole life of the agent.
pub const MAX_SOURCES: usize = 256;

/// Default size of the spool on disk, in bytes: a minute and more of 5,000 records/s.
pub const SPOOL_BYTES: u64 = 64 << 20;

/// The smallest configurable spool, unless there is none. It has room for the largest batches.
pub const MIN_SPOOL_BYTES: u64 = 16 << 20;

/// The largest configurable spool.
pub const MAX_SPOOL_BYTES: u64 = 64 << 30;

/// The smallest segment of the spool, in bytes. A full spool drops one segment. See [`segment_bytes`].
pub const MIN_SEGMENT_BYTES: u64 = 256 << 10;

/// The largest segment of the spool, in bytes. A crash that loses the mark of what is confirmed sends this much twice.
pub const MAX_SEGMENT_BYTES: u64 = 4 << 20;

/// Size at which a spool of `limit` bytes begins another segment, in bytes.
#[must_use]
pub const fn segment_bytes(limit: u64) -> u64 {
    match limit / 64 {
        0..MIN_SEGMENT_BYTES => MIN_SEGMENT_BYTES,
        bytes @ MIN_SEGMENT_BYTES..MAX_SEGMENT_BYTES => bytes,
        MAX_SEGMENT_BYTES.. => MAX_SEGMENT_BYTES,
    }
}

/// How long there has to be no stream before batches in memory go to the spool, in milliseconds. A server that is back
/// at once costs no writing.
pub const SPOOL_AFTER_MS: u64 = 1_000;

/// Longest wait of a record for others while there is no stream, in milliseconds. It makes fewer, larger batches, and a
/// crash of the agent still costs less than a second.
pub const OFFLINE_FLUSH_INTERVAL_MS: u64 = 400;

/// Most bytes that are written to the spool at once, unless a single batch is larger.
pub const SPOOL_WRITE_BYTES: usize = 1 << 20;

/// Time until an operation on the spool is tried again after there was no thread for it, in milliseconds.
pub const SPOOL_THREAD_RETRY_MS: u64 = 1_000;

/// How soon what was written to the spool is synced, so that it survives a power loss, in milliseconds.
pub const SPOOL_SYNC_MS: u64 = 5_000;

/// Time until a spool that failed is tried again, in milliseconds.
pub const SPOOL_RETRY_MS: u64 = 10_000;

/// Most batches that a stream is given before it has written them. It writes one while another waits, so that it never runs dry. More
/// would only grow old on the way.
pub const STREAM_AHEAD: usize = 2;

/// Most batches in flight, wherever they are kept. Each takes some hundred bytes of memory.
pub const MAX_UNCONFIRMED_BATCHES: usize = 2048;

/// Streams in a row that a server has to end over the same batch before the batch counts as too large and is cut. If it
/// is a single record, it is given up.
pub const REFUSALS: u32 = 2;

/// Content from which on a batch's size may be why it alone has ended a stream, in bytes. The agent then sends other
/// batches in smaller messages for a while. A server that ends streams over smaller messages does so for another reason.
pub const MIN_REFUSED_BYTES: u32 = 256 << 10;

/// Silence before and after a batch that is suspected of ending streams, in milliseconds. A server that dies of a
/// record does so when it reads the record, a round trip after it was written.
pub const TRIAL_MS: u64 = 1_000;

/// Time between batches that are sent again after two streams have ended over the same one, in milliseconds.
pub const CAREFUL_GAP_MS: u64 = 200;

/// Age that a stream needs before it is tried with a suspected batch, in milliseconds. By then the server has taken what others
/// have, and the stream counts as stable (see [`STABLE_MS`](crate::link::session::STABLE_MS)), so that the agent is soon back.
pub const PROBE_AFTER_MS: u64 = crate::link::session::STABLE_MS + 500;

/// Trials in a row that a single record has to end before it is given up.
pub const POISON_STRIKES: u32 = 3;

/// Most suspected batches at a time. A server that ends streams over more than these does not die of one batch.
pub const MAX_SUSPECTS: usize = 64;

/// Number of parts, about, into which a batch is cut that has ended a stream alone. With few parts, few streams have to
/// end and few trials have to be waited for.
pub const SUSPECT_PARTS: u32 = 4;

/// Batches close to the size that the server is thought to accept that it has to take before twice that size is tried:
/// an hour's, at one a second. Each time that it refuses more again, the number doubles.
pub const REFUSAL_PATIENCE: u32 = 3_600;

/// Kinds of losses (by cause, plugin and data type) that wait to be reported. The rest is counted together.
pub const LOSS_ROWS: usize = 64;

/// Shortest time between two reports of the same kind of loss, in milliseconds.
pub const LOSS_REPORT_INTERVAL_MS: u64 = 10_000;

/// The longest command, in bytes, before and after decompression: the limit of grpc-go's clients, hence of the reference.
pub const MAX_COMMAND_BYTES: usize = 4 << 20;

/// The longest command that the agent reads past to answer its task, in bytes. A longer one is no gRPC message and ends
/// the stream.
pub const MAX_OVERSIZED_COMMAND_BYTES: usize = 16 << 20;

/// Most plugins. Elkeid has seven. Each costs the agent two descriptors and a process slot.
pub const MAX_PLUGINS: usize = 64;

/// Entries of a configuration that are refused each by itself. Of more, only the number is reported.
pub const MAX_REFUSED_ENTRIES: usize = 128;

/// Most plugins that are configured or still have to end: a whole configuration's worth of each. Further ones wait
/// until others have ended.
pub const MAX_PLUGINS_KNOWN: usize = 2 * MAX_PLUGINS;

/// The longest name of a plugin, in bytes. It is the name of a directory and, with suffixes, of files.
pub const MAX_PLUGIN_NAME_BYTES: usize = 64;

/// The longest version string, in bytes.
pub const MAX_VERSION_BYTES: usize = 128;

/// The longest DETAIL of a plugin, in bytes. Linux accepts no environment string longer than 128 KiB, name included.
pub const MAX_DETAIL_BYTES: usize = 120 << 10;

/// Most download addresses of one plugin.
pub const MAX_DOWNLOAD_URLS: usize = 16;

/// The largest download and the largest executable, in bytes. The reference accepts no more.
pub const MAX_DOWNLOAD_BYTES: u64 = 512 << 20;

/// Most bytes of all files of an unpacked archive: twice a download, which holds executables and rules that are
/// compressed already.
pub const MAX_UNPACKED_BYTES: u64 = 2 * MAX_DOWNLOAD_BYTES;

/// Most entries of an archive, and most files and directories that result from them, including those that a path
/// implies. Elkeid's largest plugin has some hundreds.
pub const MAX_ARCHIVE_ENTRIES: u64 = 10_000;

/// Most levels of a path in an archive. Elkeid's plugins have five. Code that walks a plugin's directory need not
/// expect more than a path can hold.
pub const MAX_ARCHIVE_DEPTH: usize = 64;

/// Most bytes on the disk of all downloads and their unpacked files before they are in place: the largest plugin, as a
/// download and unpacked, and another download.
pub const MAX_STAGED_BYTES: u64 = MAX_UNPACKED_BYTES + 2 * MAX_DOWNLOAD_BYTES;

/// Bytes that a download leaves free on a file system of `size` bytes: a twentieth, as ext4 keeps for root, and no more
/// than a host's logs need for a day.
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

/// The longest name of an archive's entry, in bytes. Linux accepts no path longer than 4 KiB.
pub const MAX_ARCHIVE_NAME_BYTES: u64 = 8 << 10;

/// Most plugins that are downloaded at the same time, each on a thread of its own. Others wait. Elkeid has seven.
pub const MAX_DOWNLOADS: usize = 8;

/// Most plugins that are verified in place at the same time, each on a thread of its own. They do not wait for
/// downloads, and two keep disk and processor busy.
pub const MAX_VERIFICATIONS: usize = 2;

/// Most threads for blocking work, besides the pump and the net thread: preparations, and about ten of which there is
/// one each (the spool, an upload, an update, service discovery). The rest is for plugins' standard error and for chores.
pub const MAX_WORKERS: usize = 32;

/// The longest framed task for a plugin, in bytes. Elkeid's Go SDK cannot read a longer one and loses its framing over it.
pub const MAX_TASK_BYTES: usize = 1 << 20;

/// Most bytes of tasks that wait for one plugin. One more is answered with a failure.
pub const TASK_QUEUE_BYTES: usize = 2 << 20;

/// Most tasks that wait for one plugin. One more is answered with a failure.
pub const TASK_QUEUE_LEN: usize = 1024;

/// Size in bytes at which the file with a plugin's standard error is rotated. One previous file is kept.
pub const STDERR_FILE_BYTES: usize = 1 << 20;

/// Bytes of a plugin's standard error that are written at once: a crash with all its threads, or the start of a talkative plugin.
pub const STDERR_BURST_BYTES: usize = 512 << 10;

/// Bytes of it that are written in each further second. A plugin that complains without end costs a flash 1.4 GB a day.
pub const STDERR_BYTES_PER_SECOND: usize = 16 << 10;

/// The burst for plugins whose file cannot be written. It goes to the log, and leaves room there for others.
pub const STDERR_LOG_BURST_BYTES: usize = 4 << 10;

/// Bytes in each further second for such plugins.
pub const STDERR_LOG_BYTES_PER_SECOND: usize = 64;

/// Bytes at the end of a plugin's standard error in which the agent looks for its last words.
pub const MAX_LAST_WORDS_BYTES: usize = 1 << 10;

/// Most characters of these words in a report. [`MAX_REPORT_CHARS`] has to hold more than them.
pub const MAX_LAST_WORDS_CHARS: usize = 320;

/// The longest token that an answer to a task carries back, in bytes.
pub const MAX_TOKEN_BYTES: usize = 1024;

/// Most entries of `state_detail`. What is wrong with plugins comes first.
pub const MAX_STATE_DETAILS: usize = 32;

/// The longest text of a report, in characters. It may quote a peer.
pub const MAX_REPORT_CHARS: usize = 512;

/// Most bytes that are read of the message of a peer's gRPC status. It goes into the log.
pub const MAX_STATUS_MESSAGE_BYTES: usize = 1024;

/// Reports of the agent's warnings and errors (data type 1010) that one place in its source may make in an interval,
/// and that may wait from it while there is no stream. A handful shows what repeats.
pub const REPORTS_PER_PLACE: usize = 5;

/// Length of that interval in milliseconds.
pub const REPORT_INTERVAL_MS: u64 = 60_000;

/// Places in the source that reports tell apart. The agent has some eighty, and seldom complains in more than a few.
pub const MAX_REPORT_PLACES: usize = 48;

/// Most reports that wait, of all places. 64 texts of [`MAX_REPORT_CHARS`] are 32 KiB.
pub const MAX_REPORTS_WAITING: usize = 64;

/// Most addresses of one name that are tried. With a quarter of a second between them, all have begun after 2.3 s.
pub const MAX_ADDRESSES: usize = 10;

/// Most concurrent questions for addresses, each on a thread of its own: two for each of [`MAX_DOWNLOADS`] downloads,
/// the stream, an upload and service discovery, and ten that a resolver has left without an answer.
pub const MAX_LOOKUPS: usize = 32;

/// Connections that died without their peers' knowledge and that the agent remembers. AgentCenter notices by itself
/// after ten minutes, and an agent has more of them in that time only if paths die again and again.
pub const MAX_HALF_OPEN: usize = 8;

/// Attempts to tell such a peer, one at each attempt to connect and with each heartbeat: half an hour, at one a minute.
pub const MAX_TELLINGS: u32 = 30;

/// The longest answer of a proxy, in bytes. One with a few header fields has some hundred.
pub const MAX_PROXY_ANSWER_BYTES: usize = 8 << 10;

/// Most bytes of an uploaded file that leave in a second, whatever the server asks for. It is the reference's limit.
pub const UPLOAD_BYTES_PER_SECOND: u64 = 500 << 10;

/// Most seconds that an upload may take. A file that needs more at its rate is refused. It is the reference's limit.
pub const UPLOAD_SECONDS: u64 = 600;

/// Bytes of an uploaded file that are in memory at a time.
pub const UPLOAD_PIECE_BYTES: u64 = 64 << 10;

/// Most uploads that wait for the one under way. One more is answered with a failure. The reference lets none wait.
pub const MAX_UPLOADS_WAITING: usize = 16;

/// Starts that a new version of the agent may make before it has held a stream. At one more, it rolls back. A service
/// manager that waits 45 s needs some four minutes to get there if each start crashes.
pub const MAX_TRIAL_STARTS: u32 = 5;

/// Bytes that one place in the agent's source may log at once. A start of [`MAX_PLUGINS`] plugins is 7 KiB.
pub const LOG_BURST_BYTES: u32 = 32 << 10;

/// Bytes a minute that it may log from then on. The log keeps 11 MiB: a place that a peer floods needs 12 hours to wash
/// out what the others have logged.
pub const LOG_BYTES_PER_MINUTE: u32 = 16 << 10;

/// Places in the source that the log's bounds tell apart. The agent has some hundred and thirty.
pub const MAX_LOG_PLACES: usize = 192;

/// Bytes that one kind of audited event may take at once. Uploads, of which there is one at a time, take twenty minutes for it.
pub const AUDIT_BURST_BYTES: u32 = 256 << 10;

/// Bytes a minute of one kind from then on. The audit keeps 11 MiB: events of one kind need two days to wash out the others.
pub const AUDIT_BYTES_PER_MINUTE: u32 = 4 << 10;

/// Bytes that audited refusals may take at once. They cost a server nothing, so they get less than other events.
pub const AUDIT_REFUSED_BURST_BYTES: u32 = 64 << 10;

/// Bytes a minute of refusals from then on. They need five days.
pub const AUDIT_REFUSED_BYTES_PER_MINUTE: u32 = 1536;

/// The longest text in the audit, in characters. Linux accepts no longer path.
pub const MAX_AUDIT_CHARS: usize = 4096;
