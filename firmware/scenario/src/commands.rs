//! What a server asks for, and what the core makes of it.

use core::fmt::{self, Write};

use elklet_core::command::{AgentTask, Command, PluginName};
use elklet_core::dispatch::{Action, Dispatch, PluginAction};
use elklet_core::limits::MAX_COMMAND_BYTES;
use elklet_core::link::grpc::MessageReader;
use elklet_core::record::frame::task_frame;
use elklet_core::time::Millis;

use crate::crc::Crc32c;

/// What the server sends: gRPC messages one after another, uncompressed. The host's test has them in readable form, and writes this
/// file.
pub const COMMANDS: &[u8] = include_bytes!("commands.bin");

/// Bytes that arrive at once; no message begins or ends where they do.
const ARRIVE: usize = 100;

/// Milliseconds between two commands.
const BETWEEN_COMMANDS_MS: u64 = 1_000;

/// Milliseconds that the preparation of a plugin takes.
const PREPARATION_MS: u64 = 350;

/// Gives the core a server's commands and carries out what it asks for, on a clock that this scenario moves.
///
/// # Errors
/// When `out` cannot be written to, or refuses a line; when the server's bytes make no sense, which a test rules out.
pub fn obey(out: &mut impl Write) -> fmt::Result {
    let mut reader = MessageReader::new(MAX_COMMAND_BYTES);
    let mut shell = Shell { dispatch: Dispatch::new("1.7.0.24".into()), now: Millis(0) };
    for mut piece in COMMANDS.chunks(ARRIVE) {
        while let Some(message) = reader.next(&mut piece).map_err(|_| fmt::Error)? {
            let now = shell.now;
            writeln!(out, "{:>5} ms: a command of {} bytes", now.0, message.bytes.len())?;
            let command = Command::decode(&message.bytes).map_err(|_| fmt::Error)?;
            shell.dispatch.handle_command(command, now);
            shell.carry_out(out)?;
            shell.now = shell.now + BETWEEN_COMMANDS_MS;
        }
    }
    let rest = if shell.dispatch.is_quiet() { "no plugin runs any more" } else { "plugins still run" };
    writeln!(out, "{:>5} ms: {rest}", shell.now.0)
}

/// What carries out the core's decisions: here, by saying that it is done.
struct Shell {
    dispatch: Dispatch,
    now: Millis,
}

impl Shell {
    fn carry_out(&mut self, out: &mut impl Write) -> fmt::Result {
        while let Some(action) = self.dispatch.poll_action() {
            write!(out, "{:>5} ms:   ", self.now.0)?;
            match action {
                Action::Plugin(action) => self.carry_out_plugin(out, action)?,
                Action::Task(AgentTask::Shutdown { .. }) => {
                    writeln!(out, "end")?;
                    self.dispatch.handle_shutdown(self.now);
                }
                Action::Answer(failure) => writeln!(out, "report on task {}: {}", failure.token, failure.message)?,
                Action::Refuse(what) => writeln!(out, "refuse: {what}")?,
                Action::Complain(what) => writeln!(out, "complain: {what}")?,
                // The server of this scenario asks for nothing that would come to one of the others.
                _ => return Err(fmt::Error),
            }
        }
        Ok(())
    }

    fn carry_out_plugin(&mut self, out: &mut impl Write, action: PluginAction) -> fmt::Result {
        match action {
            PluginAction::Prepare(preparation, config) => {
                let url = config.urls.first().map_or("the disk", |url| url);
                writeln!(out, "prepare {} {} from {url}", config.name, config.version)?;
                writeln!(out, "             whose executable has the SHA-256 {}", config.executable_sha256)?;
                self.now = self.now + PREPARATION_MS;
                self.dispatch.handle_prepared(&config.name, preparation, self.now);
            }
            PluginAction::Spawn(_, config) => writeln!(out, "start {} {}", config.name, config.version)?,
            PluginAction::ForwardTask(name, task) => {
                let frame = task_frame(&task).map_err(|_| fmt::Error)?;
                let mut crc = Crc32c::new();
                crc.update(&frame);
                let (type_, bytes, crc) = (task.data_type, frame.len(), crc.value());
                writeln!(out, "forward task {type_} to {name}: a frame of {bytes} bytes, CRC-32C {crc:08x}")?;
                self.die(out, &name)?;
            }
            PluginAction::Stop(name) => {
                writeln!(out, "stop {name}")?;
                self.dispatch.handle_exited(&name, "has ended", "", self.now);
            }
            PluginAction::Keep(plugins) => writeln!(out, "keep a list of {} plugins", plugins.len())?,
            // No plugin of this scenario is deleted, replaced or killed.
            PluginAction::Forget(_) | PluginAction::Remove(_) | PluginAction::Kill(_) => return Err(fmt::Error),
        }
        Ok(())
    }

    /// The plugin dies over its task, and nothing else happens until the core wants to be asked again.
    fn die(&mut self, out: &mut impl Write, name: &PluginName) -> fmt::Result {
        self.dispatch.handle_exited(name, "was killed by signal 9", "", self.now);
        if let Some(due) = self.dispatch.poll_timeout() {
            writeln!(out, "{:>5} ms:   {name} dies; sleep for {} ms", self.now.0, due.since(self.now))?;
            self.now = due;
            self.dispatch.handle_timeout(due);
        }
        Ok(())
    }
}
