//! Everything that is counted since the agent's start, by cause: heartbeats, `elklet status` and the metrics show all of it,
//! under the same names.

use bytes::Bytes;
use elklet_core::agent::Agent;
use elklet_core::delivery::losses::Cause;
use elklet_core::record::frame::Tally;

use super::plugins::Plugins;
use crate::logging;
use crate::logging::reports;
use crate::status::Count;
use crate::sys::blocking;

const fn count(name: &'static str, value: u64, help: &'static str) -> Count {
    Count { name, help, value }
}

/// The agent's, those of all plugins included.
pub(super) fn of_agent(agent: &Agent<Bytes>, plugins: &Plugins, log: &logging::State) -> Vec<Count> {
    let (own, link, delivered, losses) =
        (agent.counters(), agent.link_counters(), agent.delivery_counters(), agent.losses());
    let frames = plugins.tally();
    let mut counts = vec![
        count("records", frames.records, "records that plugins have sent"),
        count("records_confirmed", delivered.confirmed, "records that the server is known to have taken"),
        count("records_sent_again", delivered.again, "records that a broken stream left unconfirmed"),
        count(
            "records_replayed",
            delivered.replayed,
            "records sent again because a server may have lost what it had taken",
        ),
        count("records_let_go", delivered.let_go, "records that could not be kept until they were confirmed"),
        count("records_spooled", delivered.spooled, "records that were written to the spool"),
        count("spool_errors", delivered.spool_errors, "operations on the spool's files that failed"),
        count("records_lost", losses.sum(), "records that were lost for any reason"),
        count("lost_spool_full", losses.total(Cause::SpoolFull), "records dropped because the spool was full"),
        count("lost_memory_full", losses.total(Cause::MemoryFull), "records dropped for want of a spool"),
        count("lost_unconfirmed", losses.total(Cause::Unconfirmed), "records let go on a stream that then broke"),
        count("lost_spool_damaged", losses.total(Cause::SpoolDamaged), "records whose files are damaged or gone"),
        count("lost_refused", losses.total(Cause::Refused), "records that the server refuses for their size"),
        count(
            "lost_poison",
            losses.total(Cause::Poison),
            "records over each of which the server ended stream after stream",
        ),
        count("own_records_lost", losses.total(Cause::OwnNoRoom), "records of the agent itself that found no room"),
        count("streams", link.streams, "streams to the server that were opened"),
        count("connect_failures", link.connect_failures, "attempts that did not reach a server"),
        count("tls_failures", link.tls_failures, "attempts that failed at TLS"),
        count("protocol_errors", link.protocol_errors, "streams that ended because the server broke the protocol"),
        count("bad_commands", own.bad_commands, "messages of the server that were no commands"),
        count("refused_tasks", own.refused_tasks, "tasks that were answered with a failure"),
        count("reports_suppressed", reports::suppressed(), "warnings and errors that were logged and not reported"),
        count("plugin_deaths", plugins.deaths(), "processes of plugins that ended without being asked to"),
        count("plugin_quota_kills", plugins.quota_kills(), "of these, those killed for what their directories held"),
        count("starts_refused", blocking::refused(), "threads and processes that could not be started"),
        stderr_left_out(plugins.stderr_left_out()),
        count("log_lines_lost", log.lines_lost, "lines of the log that could not be written"),
        count("log_lines_left_out", log.lines_left_out, "lines of the log beyond what one place may write"),
        count("stderr_lines_lost", log.stderr_lines_lost, "lines that standard error did not take"),
        count("audit_lines_lost", log.audit_lost, "events that could not be written into the audit"),
        count("audit_lines_left_out", log.audit_left_out, "events beyond what one kind may write into the audit"),
    ];
    counts.extend(of_frames(&frames));
    counts
}

/// What a plugin, or all of them, said beyond what is written.
pub(super) fn stderr_left_out(bytes: u64) -> Count {
    count("stderr_bytes_left_out", bytes, "bytes of plugins' standard error that were not written")
}

/// What a plugin's sandbox has refused.
pub(super) fn calls_refused(calls: u64) -> Count {
    count("calls_refused", calls, "system calls that the plugin's sandbox has refused")
}

/// What is wrong with the frames of a plugin, or of all.
pub(super) fn of_frames(tally: &Tally) -> [Count; 8] {
    [
        count("frames_too_long", tally.too_long, "frames of plugins longer than the limit"),
        count("frames_invalid", tally.invalid, "frames of plugins that were no records"),
        count("frames_truncated", tally.truncated, "frames of plugins that ended early"),
        count("records_refused_type", tally.reserved_type, "records of plugins of a type that only the agent sends"),
        count(
            "records_refused_payload",
            tally.no_fields,
            "records of plugins without the fields that the server needs",
        ),
        count("frame_bytes_skipped", tally.skipped_bytes, "bytes of all these frames"),
        count("records_without_payload", tally.without_payload, "records of plugins without payload"),
        count("records_without_timestamp", tally.without_timestamp, "records of plugins without timestamp"),
    ]
}
