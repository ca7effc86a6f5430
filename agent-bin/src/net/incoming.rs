//! Turns messages into commands, or says what is wrong with a message and whose task it was.

use std::mem;

use elklet_core::command::Command;
use elklet_core::command::oversized::TokenFinder;
use elklet_core::limits::{MAX_COMMAND_BYTES, MAX_OVERSIZED_COMMAND_BYTES};
use elklet_core::link::grpc::{BadMessage, GrpcMessage, MessageReader, PREFIX};

use super::misbehaviour::CenterMisbehaved;
use super::snappy::{self, Pieces};
use super::transfer::content;

/// A message that is no command or is too long.
#[derive(Debug)]
pub(crate) struct BadCommand {
    /// Completes the sentence "the server sent ...".
    pub(crate) what: CenterMisbehaved,
    /// The token of the task in it, if that can be found.
    pub(crate) token: Option<String>,
}

/// Splits the stream of DATA into commands.
#[derive(Debug)]
pub(super) struct Incoming {
    reader: MessageReader,
    encoding: Option<Vec<u8>>,
    /// Searches a too long message for its token.
    search: Search,
}

impl Incoming {
    /// A reader at the start of a stream with this `grpc-encoding`, if any.
    pub(super) fn new(encoding: Option<Vec<u8>>) -> Self {
        Self { reader: MessageReader::new(MAX_COMMAND_BYTES), encoding, search: Search::default() }
    }

    /// Returns the next command and its length in bytes, and moves `input` past it. `None` means that `input` is used up.
    ///
    /// # Errors
    /// When the stream cannot be parsed any further.
    #[expect(clippy::type_complexity, reason = "the parts of one event")]
    pub(super) fn next(
        &mut self,
        input: &mut &[u8],
    ) -> Result<Option<(usize, Result<Command, BadCommand>)>, BadMessage> {
        match self.reader.next(input) {
            Ok(message) => Ok(message.map(|message| (PREFIX + message.bytes.len(), self.decode(message)))),
            Err(bad @ BadMessage::TooLong { length, .. }) if length <= MAX_OVERSIZED_COMMAND_BYTES => {
                let is_compressed = self.reader.skips_compressed();
                let (piece, is_last) = self.reader.skip(input);
                self.search.take(piece, is_compressed);
                let token = is_last.then(|| mem::take(&mut self.search).finder.token());
                Ok(token
                    .map(|token| (PREFIX + length, Err(BadCommand { what: CenterMisbehaved::Message(bad), token }))))
            }
            Err(bad) => Err(bad),
        }
    }

    /// Returns true when the stream may end here.
    pub(super) fn is_between_messages(&self) -> bool {
        self.reader.is_between_messages()
    }

    fn decode(&self, message: GrpcMessage) -> Result<Command, BadCommand> {
        let bad = |what, token| BadCommand { what, token };
        let decoded = |bytes: &[u8]| Command::decode(bytes).map_err(|why| bad(CenterMisbehaved::Command(why), None));
        if let (true, Some(b"snappy")) = (message.compressed, self.encoding.as_deref()) {
            let bytes = snappy::decompress(&message.bytes, MAX_COMMAND_BYTES).map_err(|error| {
                // Read past a message that decompresses to too much, too.
                let mut search = Search::default();
                search.take(&message.bytes, true);
                bad(CenterMisbehaved::Snappy(message.bytes.len(), error), search.finder.token())
            })?;
            return decoded(&bytes);
        }
        let bytes = content(message, self.encoding.as_deref()).map_err(|what| bad(what, None))?;
        decoded(&bytes)
    }
}

/// Searches for the token of a command that is read past.
#[derive(Debug, Default)]
struct Search {
    frames: Pieces,
    finder: TokenFinder,
}

impl Search {
    fn take(&mut self, piece: &[u8], is_compressed: bool) {
        let Self { frames, finder } = self;
        if is_compressed {
            frames.take(piece, |content| finder.take(content));
        } else {
            finder.take(piece);
        }
    }
}

#[cfg(test)]
mod tests {
    use elklet_core::link::grpc::prefix;

    use super::*;

    #[test]
    fn a_message_that_is_compressed_by_something_else_than_snappy_is_passed_over() {
        for (encoding, name) in [(Some(&b"gzip"[..]), "gzip"), (Some(b"identity"), "identity"), (None, "none")] {
            let mut incoming = Incoming::new(encoding.map(<[u8]>::to_vec));
            let stream = [&prefix(true, 3)[..], b"abc", &prefix(false, 0)].concat();
            let mut rest = &stream[..];
            let Ok(Some((length, Err(bad)))) = incoming.next(&mut rest) else { panic!("{name}: it is no command") };
            assert_eq!((length, bad.token), (PREFIX + 3, None));
            assert_eq!(bad.what.to_string(), format!("a message compressed by {name}, expected snappy"));
            // The next one is none the worse for it.
            assert!(matches!(incoming.next(&mut rest), Ok(Some((PREFIX, Ok(Command::Nothing))))), "{name}");
            assert!(rest.is_empty() && incoming.is_between_messages());
        }
    }
}
