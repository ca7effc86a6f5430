//! Finds the token of a task that is too long to accept. It reads past the command in pieces and keeps nothing but the token.
//!
//! A task's token follows its data (`Task` in Elkeid's `grpc.proto`: 3 is `data`, 4 is `token`), so the beginning of a
//! command does not contain it.

use alloc::string::String;
use alloc::vec::Vec;

use crate::limits::MAX_TOKEN_BYTES;

/// `Command.task`.
const TASK: u64 = 2;

/// `Task.token`.
const TOKEN: u64 = 4;

/// Reads the bytes of one command as they come.
#[derive(Debug, Default)]
pub struct TokenFinder {
    step: Step,
    /// The varint that is being read.
    value: u64,
    shift: u32,
    /// True once the task has begun. Its end does not matter, because no field after it has the token's number.
    in_task: bool,
    token: Vec<u8>,
    found: bool,
}

/// What comes next.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// A field's key.
    #[default]
    Key,
    /// A number to ignore.
    Number,
    /// The length of the field of this number.
    Length(u64),
    /// This many bytes to ignore.
    Skip(u64),
    /// This many bytes of the token.
    Token(u64),
    /// The bytes are no command.
    Lost,
}

impl TokenFinder {
    /// Takes the next bytes of the command.
    pub fn take(&mut self, mut bytes: &[u8]) {
        while let [byte, rest @ ..] = bytes {
            match self.step {
                Step::Skip(left) => self.step = take_piece(&mut bytes, left, Step::Skip).1,
                Step::Token(left) => {
                    let (piece, next) = take_piece(&mut bytes, left, Step::Token);
                    let room = MAX_TOKEN_BYTES - self.token.len();
                    self.token.extend_from_slice(&piece[..piece.len().min(room)]);
                    self.found = next == Step::Key;
                    self.step = next;
                }
                Step::Key | Step::Number | Step::Length(_) => {
                    bytes = rest;
                    if let Some(value) = self.varint(*byte) {
                        self.step = self.after(value);
                    }
                }
                Step::Lost => return,
            }
        }
    }

    /// The token, if the bytes so far contain it.
    #[must_use]
    pub fn token(self) -> Option<String> {
        // The token may be cut in the middle of a character.
        self.found.then(|| String::from_utf8_lossy(&self.token).into_owned())
    }

    /// Adds a byte to a varint. Returns the value if this byte is its last.
    fn varint(&mut self, byte: u8) -> Option<u64> {
        if self.shift > 63 {
            self.step = Step::Lost;
            return None;
        }
        self.value |= u64::from(byte & 0x7f) << self.shift;
        self.shift += 7;
        if byte >= 0x80 {
            return None;
        }
        self.shift = 0;
        Some(core::mem::take(&mut self.value))
    }

    /// What follows a varint.
    fn after(&mut self, value: u64) -> Step {
        match (self.step, value & 7) {
            (Step::Length(TASK), _) if !self.in_task => {
                self.in_task = true;
                Step::Key
            }
            (Step::Length(TOKEN), _) if self.in_task => {
                self.token.clear();
                self.found = value == 0;
                if value == 0 { Step::Key } else { Step::Token(value) }
            }
            (Step::Length(_), _) => Step::Skip(value),
            (Step::Number, _) => Step::Key,
            (Step::Key, 0) => Step::Number,
            (Step::Key, 1) => Step::Skip(8),
            (Step::Key, 2) => Step::Length(value >> 3),
            (Step::Key, 5) => Step::Skip(4),
            _ => Step::Lost,
        }
    }
}

/// Takes as many of `left` bytes as there are. The returned step takes the rest.
fn take_piece<'a>(bytes: &mut &'a [u8], left: u64, step: fn(u64) -> Step) -> (&'a [u8], Step) {
    let (piece, rest) = bytes.split_at(usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len()));
    *bytes = rest;
    match left - piece.len() as u64 {
        0 => (piece, Step::Key),
        left => (piece, step(left)),
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use elklet_proto::grpc::{Command, Config, Task};
    use proptest::prelude::*;
    use prost::Message;

    use super::*;

    fn found(bytes: &[u8], pieces: usize) -> Option<String> {
        let mut finder = TokenFinder::default();
        bytes.chunks(pieces).for_each(|piece| finder.take(piece));
        finder.token()
    }

    proptest! {
        #[test]
        fn the_token_of_a_task_is_found_in_any_pieces(
            data_type: i32, object_name in ".{0,40}", data in ".{0,400}", token in ".{1,40}", agent_ctrl: i32, configs in 0..3usize, pieces in 1..50usize,
        ) {
            let task = Some(Task { data_type, object_name, data, token: token.clone() });
            let config = Config { name: "name".into(), download_urls: vec!["url".into()], ..Config::default() };
            let command = Command { agent_ctrl, task, configs: vec![config; configs] };
            prop_assert_eq!(found(&command.encode_to_vec(), pieces), Some(token));
            let without = Command { task: None, ..command };
            prop_assert_eq!(found(&without.encode_to_vec(), pieces), None);
        }

        #[test]
        fn any_bytes_are_read_past(bytes in prop::collection::vec(any::<u8>(), 0..300), pieces in 1..50usize) {
            prop_assert!(found(&bytes, pieces).is_none_or(|token| token.len() <= 3 * MAX_TOKEN_BYTES));
        }
    }

    #[test]
    fn a_token_is_cut_to_its_limit_and_half_a_one_is_none() {
        let task = Some(Task { token: "t".repeat(MAX_TOKEN_BYTES + 1), ..Task::default() });
        let bytes = Command { task, ..Command::default() }.encode_to_vec();
        assert_eq!(found(&bytes, 7), Some("t".repeat(MAX_TOKEN_BYTES)));
        assert_eq!(found(&bytes[..bytes.len() - 1], 7), None);
    }

    #[test]
    fn fields_of_every_kind_may_stand_before_the_token() {
        for other in [&b"\x09\x22\x01x45678"[..], b"\x0d\x22\x01x4", b"\x08\x96\x01", b"\x2a\x00", b"\x2a\x03\x22\x01x"]
        {
            let task = [other, b"\x22\x02ok"].concat();
            let head = [0x12, u8::try_from(task.len()).expect("short")];
            let command = [other, &head, &task].concat();
            for pieces in 1..=command.len() {
                assert_eq!(found(&command, pieces).as_deref(), Some("ok"), "{other:?} in pieces of {pieces}");
            }
        }
    }

    #[test]
    fn a_field_with_the_tokens_number_outside_of_a_task_is_none() {
        assert_eq!(found(b"\x22\x01x", 9), None);
        assert_eq!(found(b"\x22\x01x\x12\x03\x22\x01t", 9).as_deref(), Some("t"));
    }

    #[test]
    fn a_token_may_be_empty_and_one_of_which_nothing_has_come_is_none() {
        assert_eq!(found(b"\x12\x02\x22\x00", 9).as_deref(), Some(""));
        assert_eq!(found(b"\x12\x04\x22\x02", 9), None);
        assert_eq!(found(b"\x12\x06\x22\x00\x22\x02", 9), None, "the last one counts");
    }
}
