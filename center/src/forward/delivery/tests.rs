use super::*;
use proptest::prelude::*;
use std::collections::BTreeSet;

const LIMITS: Limits = Limits { batch_records: 4, batch_bytes: 100, linger_ms: 200, in_flight: 2, held_bytes: 300 };

fn item(seq: u64, bytes: usize) -> Item<u64> {
    Item { seq, received_ms: 0, bytes, body: seq }
}

fn items(seqs: std::ops::Range<u64>) -> Vec<Item<u64>> {
    seqs.map(|seq| item(seq, 10)).collect()
}

/// Sends of one poll, by their records.
fn sends(delivery: &mut Delivery<u64>, now: Millis) -> Vec<(BatchId, Vec<u64>)> {
    let mut sends = Vec::new();
    while let Some(action) = delivery.poll_action(now) {
        match action {
            Action::Send(id, items) => sends.push((id, items.iter().map(|item| item.body).collect())),
            Action::Keep(position) => delivery.handle_kept(position, true, now),
        }
    }
    sends
}

fn taken() -> Answer {
    Answer::Taken { refused: Vec::new() }
}

#[test]
fn a_batch_leaves_when_it_is_full_or_has_waited() {
    let mut delivery = Delivery::new(LIMITS, 1, 7);
    assert_eq!(delivery.poll_timeout(), None, "an idle output has no timer");
    delivery.handle_records(items(1..7), 7, 0);
    assert_eq!(sends(&mut delivery, 0).iter().map(|send| send.1.len()).collect::<Vec<_>>(), [4]);
    assert_eq!(delivery.poll_timeout(), Some(200));
    assert_eq!(sends(&mut delivery, 200)[0].1, [5, 6]);
    delivery.handle_records(vec![item(7, 90), item(8, 90)], 9, 300);
    assert!(!delivery.has_room() || delivery.filling.len() == 1, "two do not fit into one batch");
}

#[test]
fn the_position_moves_in_order_and_only_over_what_was_answered() {
    let mut delivery = Delivery::new(LIMITS, 1, 7);
    delivery.handle_records(items(1..9), 20, 0);
    let sent = sends(&mut delivery, 0);
    delivery.handle_answer(sent[1].0, taken(), 1);
    assert_eq!(delivery.position(), 1);
    assert_eq!(delivery.handle_answer(sent[0].0, taken(), 2), Tally { sent: 4, bytes: 40, ..Tally::default() });
    assert_eq!(delivery.position(), 20, "what lies behind and is not wanted is passed too");
    assert_eq!(delivery.poll_action(2), Some(Action::Keep(20)));
    assert_eq!(delivery.poll_timeout(), None);
    delivery.handle_kept(20, false, 3);
    assert_eq!(delivery.poll_timeout(), Some(3 + KEEP_INTERVAL_MS), "what could not be written is tried again");
}

#[test]
fn a_failure_pauses_and_one_batch_probes() {
    let mut delivery = Delivery::new(LIMITS, 1, 7);
    delivery.handle_records(items(1..9), 9, 0);
    let sent = sends(&mut delivery, 0);
    for (id, _) in &sent {
        assert!(delivery.handle_answer(*id, Answer::Again { after_ms: Some(5_000) }, 10).again);
    }
    assert!(sends(&mut delivery, 5_009).is_empty());
    assert_eq!(delivery.poll_timeout(), Some(5_010), "the receiver's wish counts when it is longer");
    let probe = sends(&mut delivery, 5_010);
    assert_eq!(probe.len(), 1, "one alone");
    assert_eq!(probe[0].1, [1, 2, 3, 4], "the oldest first");
    delivery.handle_answer(probe[0].0, taken(), 5_011);
    assert!(!delivery.is_failing());
    assert_eq!(sends(&mut delivery, 5_011).len(), 1);
}

#[test]
fn one_bad_record_is_found_and_passed_by() {
    let mut delivery = Delivery::new(LIMITS, 1, 7);
    delivery.handle_records(items(1..9), 9, 0);
    let (mut arrived, mut refused) = (BTreeSet::new(), 0);
    for round in 0.. {
        let sent = sends(&mut delivery, round);
        if sent.is_empty() {
            break;
        }
        for (id, records) in sent {
            if records.contains(&3) {
                refused += delivery.handle_answer(id, Answer::Refused, round).refused;
            } else {
                delivery.handle_answer(id, taken(), round);
                arrived.extend(records);
            }
        }
    }
    assert_eq!((refused, delivery.position()), (1, 9));
    assert_eq!(arrived, BTreeSet::from([1, 2, 4, 5, 6, 7, 8]));
}

/// What a receiver may do with a batch.
#[derive(Clone, Debug)]
enum Mood {
    Takes,
    Away,
    Busy(Vec<bool>),
    Refuses,
    /// It takes the batch, but the answer is lost.
    Breaks,
}

fn mood() -> impl Strategy<Value = Mood> {
    prop_oneof![
        4 => Just(Mood::Takes),
        1 => Just(Mood::Away),
        1 => prop::collection::vec(any::<bool>(), 4).prop_map(Mood::Busy),
        1 => Just(Mood::Refuses),
        1 => Just(Mood::Breaks),
    ]
}

proptest! {
    /// Whatever a receiver does and in whichever order answers come: the position never passes a record that neither arrived nor was
    /// given up, no more is in flight or held than allowed, and in the end all is through.
    #[test]
    fn nothing_is_passed_by_that_did_not_arrive(
        moods in prop::collection::vec((mood(), any::<bool>(), 1..40u64), 1..200),
        sizes in prop::collection::vec(1..120usize, 1..80),
        wanted in prop::collection::vec(any::<bool>(), 80),
    ) {
        let mut delivery = Delivery::new(LIMITS, 1, 99);
        let (mut arrived, mut given_up) = (BTreeSet::new(), 0);
        let (mut read, mut now) = (0usize, 0);
        let mut flying: VecDeque<(BatchId, Arc<[Item<u64>]>)> = VecDeque::new();
        let mut moods = moods.into_iter();
        let end = sizes.len() as u64 + 1;
        let mut rounds = 0;
        while delivery.position() < end {
            rounds += 1;
            prop_assert!(rounds < 5_000, "it comes to an end");
            if delivery.has_room() && read < sizes.len() {
                let seq = read as u64 + 1;
                let some = if wanted[read] { vec![item(seq, sizes[read])] } else { Vec::new() };
                delivery.handle_records(some, seq + 1, now);
                read += 1;
            }
            while let Some(action) = delivery.poll_action(now) {
                match action {
                    Action::Send(id, items) => flying.push_back((id, items)),
                    Action::Keep(position) => {
                        for seq in 1..position {
                            let gone = arrived.contains(&seq) || !wanted[usize::try_from(seq - 1).unwrap()];
                            prop_assert!(gone || given_up > 0, "{} of {}", seq, position);
                        }
                        delivery.handle_kept(position, true, now);
                    }
                }
            }
            prop_assert!(flying.len() <= LIMITS.in_flight);
            let held: usize = delivery.batches.iter().map(|batch| batch.bytes).sum();
            prop_assert!(held + delivery.filling_bytes < LIMITS.held_bytes + 120);
            let (mood, last, step) = moods.next().unwrap_or((Mood::Takes, false, 40));
            now += step;
            let answered = if last { flying.pop_back() } else { flying.pop_front() };
            let Some((id, items)) = answered else {
                now = now.max(delivery.poll_timeout().unwrap_or(now));
                continue;
            };
            let answer = match mood {
                Mood::Takes => taken(),
                Mood::Away => Answer::Again { after_ms: None },
                Mood::Breaks => {
                    arrived.extend(items.iter().map(|item| item.body));
                    Answer::Again { after_ms: None }
                }
                Mood::Refuses => Answer::Refused,
                Mood::Busy(busy) => {
                    let again: Vec<usize> = (0..items.len()).filter(|place| busy[place % 4]).collect();
                    arrived.extend((0..items.len()).filter(|place| !busy[place % 4]).map(|place| items[place].body));
                    Answer::Partly { again, refused: Vec::new(), after_ms: None }
                }
            };
            if answer == taken() {
                arrived.extend(items.iter().map(|item| item.body));
            }
            given_up += delivery.handle_answer(id, answer, now).refused;
        }
        let total = wanted.iter().take(sizes.len()).filter(|&&wanted| wanted).count();
        let lost = total as u64 - arrived.len() as u64;
        prop_assert!(lost <= given_up, "{} neither arrived nor were given up", lost);
    }

    #[test]
    fn pauses_grow_and_have_bounds(seed in any::<u64>(), failures in 1..60usize) {
        let mut delivery = Delivery::new(LIMITS, 1, seed);
        delivery.handle_records(items(1..5), 5, 0);
        let mut now = 0;
        for _ in 0..failures {
            let (id, _) = sends(&mut delivery, now).remove(0);
            delivery.handle_answer(id, Answer::Again { after_ms: None }, now);
            let pause = delivery.poll_timeout().unwrap() - now;
            prop_assert!((FIRST_PAUSE_MS..=LONGEST_PAUSE_MS).contains(&pause));
            now += pause;
        }
    }
}
