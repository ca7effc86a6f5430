//! The fixed record buffer. Its bytes are the message in which its records will be sent.
//!
//! Records lie one after another in a byte arena, each behind the key and length of `PackagedData.records` (field 1).
//! The arena's used part, followed by an [envelope](crate::record::envelope), therefore *is* a `PackagedData`. Bytes
//! and slots are bounded separately. Appending a record copies its bytes once and allocates nothing.

use heapless::Vec;

use crate::limits::SLOTS;
use crate::record::OwnRecord;
use crate::record::wire::{Writer, bytes_field_len, take_varint, varint_len};

/// `PackagedData.records`.
pub(crate) const RECORDS: u8 = 1;

/// Up to `N` records in an arena `B` that the caller lends.
#[derive(Debug)]
pub struct RecordBuffer<B, const N: usize = SLOTS> {
    arena: B,
    /// Where each record ends; the last is where the arena's used part ends.
    ends: Vec<u32, N>,
    /// Length of the longest body that the arena takes when it is empty.
    longest: usize,
}

impl<B: AsRef<[u8]> + AsMut<[u8]>, const N: usize> RecordBuffer<B, N> {
    /// An empty buffer over `arena`.
    ///
    /// # Panics
    /// When the arena is longer than 4 GiB: boundaries are kept in 32 bits.
    #[must_use]
    pub fn new(arena: B) -> Self {
        let bytes = arena.as_ref().len();
        assert!(u32::try_from(bytes).is_ok(), "an arena has at most 4 GiB");
        let with_length_of = |length| bytes.checked_sub(1 + length).filter(|body| varint_len(*body as u64) <= length);
        let longest = (1..=5).find_map(with_length_of).unwrap_or(0);
        Self { arena, ends: Vec::new(), longest }
    }

    /// Appends a record by its body.
    ///
    /// # Errors
    /// When there is no free slot or not enough free bytes. The buffer is then unchanged.
    pub fn push(&mut self, body: &[u8]) -> Result<(), Full> {
        self.append(body.len(), |out| out.copy_from_slice(body))
    }

    /// Appends a record of the agent's own.
    ///
    /// # Errors
    /// As [`RecordBuffer::push`].
    pub fn push_own<'f, I>(&mut self, record: &OwnRecord<I>) -> Result<(), Full>
    where
        I: Iterator<Item = (&'f str, &'f str)> + Clone,
    {
        self.append(record.encoded_len(), |out| record.write(out))
    }

    fn append(&mut self, length: usize, write: impl FnOnce(&mut [u8])) -> Result<(), Full> {
        if self.ends.is_full() {
            return Err(Full::Slots);
        }
        let start = self.used();
        let end = start + bytes_field_len(length);
        let room = self.arena.as_mut().get_mut(start..end).ok_or(Full::Bytes)?;
        let mut w = Writer::new(room);
        w.bytes_head(RECORDS, length);
        let head = w.written();
        write(&mut room[head..]);
        #[allow(clippy::cast_possible_truncation, reason = "an arena has at most 4 GiB")]
        let end = end as u32;
        self.ends.push(end).map_err(|_| Full::Slots)
    }

    /// Drops all records and frees their slots and bytes.
    pub fn clear(&mut self) {
        self.ends.clear();
    }
}

impl<B: AsRef<[u8]>, const N: usize> RecordBuffer<B, N> {
    /// The records as fields of a `PackagedData`.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.arena.as_ref()[..self.used()]
    }

    /// The bodies of the records, oldest first.
    pub fn records(&self) -> impl Iterator<Item = &[u8]> {
        let mut start = 0;
        self.ends.iter().map(move |&end| {
            let field = &self.arena.as_ref()[start..end as usize];
            start = end as usize;
            let mut body = &field[1..];
            // `append` wrote the length, so reading it back cannot fail. If it did, the body would be empty.
            let _ = take_varint(&mut body);
            body
        })
    }

    /// Number of records, 0 to `N`.
    #[must_use]
    #[inline]
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Returns true when the buffer holds no record.
    #[must_use]
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Size of the arena in bytes.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.arena.as_ref().len()
    }

    /// Returns true when half of the slots or half of the bytes are used: the high-water mark. Sending then leaves room
    /// for what arrives meanwhile.
    #[must_use]
    #[inline]
    pub fn above_high_water(&self) -> bool {
        self.ends.len() >= N / 2 || self.used() >= self.arena.as_ref().len() / 2
    }

    /// Length of the longest body that an empty buffer of this size takes, in bytes.
    #[must_use]
    #[inline]
    pub fn longest_record(&self) -> usize {
        self.longest
    }

    #[inline]
    fn used(&self) -> usize {
        self.ends.last().map_or(0, |&end| end as usize)
    }
}

/// Why a record does not fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Full {
    /// Every slot holds a record.
    Slots,
    /// The arena has fewer free bytes than the record takes.
    Bytes,
}

#[cfg(test)]
mod tests {
    use alloc::string::String;
    use alloc::vec;
    use alloc::vec::Vec;

    use elklet_proto::grpc::PackagedData;
    use proptest::prelude::*;
    use prost::Message;

    use super::*;

    #[derive(Debug, Clone)]
    enum Step {
        Push(usize),
        Own(usize),
        Clear,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![8 => (0..200usize).prop_map(Step::Push), 2 => (0..90usize).prop_map(Step::Own), 1 => Just(Step::Clear)]
    }

    proptest! {
        /// The model is a list of bodies with the two bounds spelt out.
        #[test]
        fn behaves_like_a_list_with_two_bounds(steps in prop::collection::vec(step(), 0..120), arena in 0..3000usize) {
            let mut buffer = RecordBuffer::<_, 24>::new(vec![0xaa; arena]);
            let mut model: Vec<Vec<u8>> = Vec::new();
            for (i, step) in steps.into_iter().enumerate() {
                let free = arena - model.iter().map(|b| bytes_field_len(b.len())).sum::<usize>();
                let expected = |length| {
                    if model.len() == 24 {
                        Err(Full::Slots)
                    } else if bytes_field_len(length) > free {
                        Err(Full::Bytes)
                    } else {
                        Ok(())
                    }
                };
                match step {
                    Step::Push(length) => {
                        let body = vec![u8::try_from(i).expect("few steps"); length];
                        prop_assert_eq!(buffer.push(&body), expected(length));
                        if expected(length).is_ok() { model.push(body); }
                    }
                    Step::Own(length) => {
                        let value = "v".repeat(length);
                        let record = OwnRecord { data_type: 7, timestamp: 9, fields: [("key", &*value)].into_iter() };
                        let mut body = vec![0; record.encoded_len()];
                        record.write(&mut body);
                        prop_assert_eq!(buffer.push_own(&record), expected(body.len()));
                        if expected(body.len()).is_ok() { model.push(body); }
                    }
                    Step::Clear => { buffer.clear(); model.clear(); }
                }
                prop_assert_eq!(buffer.records().map(<[u8]>::to_vec).collect::<Vec<_>>(), model.clone());
                prop_assert_eq!((buffer.len(), buffer.is_empty()), (model.len(), model.is_empty()));
                let used = arena - model.iter().fold(arena, |free, b| free - bytes_field_len(b.len()));
                prop_assert_eq!(buffer.above_high_water(), model.len() >= 12 || used >= arena / 2);
            }
        }
    }

    #[test]
    fn its_bytes_are_a_packaged_data() {
        let mut buffer = RecordBuffer::<_, 8>::new(vec![0; 500]);
        for data_type in [1, 300, -1] {
            buffer.push_own(&OwnRecord { data_type, timestamp: 5, fields: [("a", "b")].into_iter() }).expect("room");
        }
        let read = PackagedData::decode(buffer.bytes()).expect("a message");
        assert_eq!(read.records.iter().map(|r| r.data_type).collect::<Vec<_>>(), [1, 300, -1]);
        assert_eq!(read.agent_id, String::new());
    }

    #[test]
    fn the_longest_record_fits_exactly() {
        for arena in [3, 4, 130, 131, 132, 133, 16_386, 16_390, 100_000] {
            let mut buffer = RecordBuffer::<_, 4>::new(vec![0; arena]);
            buffer.push(&vec![1; buffer.longest_record()]).expect("the longest record fits");
            assert_eq!(buffer.len(), 1);
            buffer.clear();
            assert_eq!(buffer.push(&vec![1; buffer.longest_record() + 1]), Err(Full::Bytes), "{arena}");
        }
    }

    #[test]
    fn slots_run_out_at_8192() {
        let mut buffer: RecordBuffer<_> = RecordBuffer::new(vec![0; 1 << 20]);
        for _ in 0..8192 {
            buffer.push(b"").expect("a slot");
        }
        assert_eq!(buffer.push(b""), Err(Full::Slots));
    }
}
