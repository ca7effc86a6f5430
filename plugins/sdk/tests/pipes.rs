//! A client and its tasks over real pipes.

use elklet_plugin::{BATCH_BYTES, Client, FLUSH_INTERVAL, Payload, Record, SendError, Task, Tasks};
use prost::Message;
use rustix::pipe::{PipeFlags, pipe, pipe_with};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::sync::mpsc;
use std::task::Poll;
use std::thread;
use std::time::{Duration, Instant};

/// Long enough for a loaded machine; no test that succeeds waits for it.
const DEADLINE: Duration = Duration::from_secs(20);

fn connected() -> (Client, File) {
    let (reader, writer) = pipe().expect("a pipe");
    (Client::from_pipes(writer, None).expect("a client"), reader.into())
}

fn next_record(pipe: &mut impl Read) -> Option<Record> {
    let mut prefix = [0; 4];
    pipe.read_exact(&mut prefix).ok()?;
    let mut body = vec![0; u32::from_le_bytes(prefix) as usize];
    pipe.read_exact(&mut body).expect("a whole frame");
    Some(Record::decode(body.as_slice()).expect("a record"))
}

fn is_empty(pipe: impl AsFd) -> bool {
    rustix::io::ioctl_fionread(pipe).expect("a pipe") == 0
}

fn record(data_type: i32, timestamp: i64, name: &str, value: &str) -> Record {
    let fields = [(name.into(), value.into())].into();
    Record { data_type, timestamp, data: Some(Payload { fields }) }
}

#[test]
fn a_record_arrives_within_the_flush_interval_and_not_at_once() {
    let (client, mut agent) = connected();
    let sent = Instant::now();
    client.send_at(59, 1_700_000_000, &[("exe", "/bin/true")]).unwrap();
    assert!(is_empty(&agent) || sent.elapsed() >= FLUSH_INTERVAL);
    assert_eq!(next_record(&mut agent), Some(record(59, 1_700_000_000, "exe", "/bin/true")));
    assert!(sent.elapsed() >= FLUSH_INTERVAL);
}

#[test]
fn every_way_of_sending_keeps_the_order() {
    let (client, mut agent) = connected();
    let made = record(2, 7, "n", "made");
    client.send_at(1, 7, &[("n", "first")]).unwrap();
    client.send_record(&made).unwrap();
    client.send_record(&Record { data_type: 3, timestamp: 7, data: None }).unwrap();
    client.answer(&Task { token: "abc".into(), ..Task::default() }, Err("no")).unwrap();
    client.flush().unwrap();
    assert!(!is_empty(&agent));

    assert_eq!(next_record(&mut agent), Some(record(1, 7, "n", "first")));
    assert_eq!(next_record(&mut agent), Some(made));
    assert_eq!(next_record(&mut agent).unwrap().data, Some(Payload::default()));
    let answer = next_record(&mut agent).unwrap();
    assert_eq!(answer.data_type, elklet_plugin::TASK_RESULT);
    assert!(answer.timestamp > 1_700_000_000);
    let fields = answer.data.unwrap().fields;
    assert_eq!(
        fields,
        [("token", "abc"), ("status", "failed"), ("msg", "no")].map(|(k, v)| (k.into(), v.into())).into()
    );
}

#[test]
fn the_last_client_to_go_writes_what_is_buffered() {
    let (client, mut agent) = connected();
    let other = client.clone();
    client.send_at(1, 1, &[("n", "1")]).unwrap();
    drop(client);
    other.send_at(1, 2, &[("n", "2")]).unwrap();
    drop(other);
    assert_eq!(next_record(&mut agent), Some(record(1, 1, "n", "1")));
    assert_eq!(next_record(&mut agent), Some(record(1, 2, "n", "2")));
    assert_eq!(next_record(&mut agent), None);
}

#[test]
fn high_priority_overtakes_through_its_own_pipe() {
    let (_ordinary_reader, ordinary) = pipe().unwrap();
    let (urgent_reader, urgent) = pipe().unwrap();
    let client = Client::from_pipes(ordinary, Some(urgent)).unwrap();
    client.send_at(1, 1, &[("n", "ordinary")]).unwrap();
    client.high_priority().send_at(2, 2, &[("n", "urgent")]).unwrap();
    assert!(!is_empty(&urgent_reader));
    assert_eq!(next_record(&mut File::from(urgent_reader)), Some(record(2, 2, "n", "urgent")));
}

#[test]
fn high_priority_without_a_pipe_takes_what_is_buffered_with_it() {
    let (client, mut agent) = connected();
    client.send_at(1, 1, &[("n", "ordinary")]).unwrap();
    client.high_priority().send_at(2, 2, &[("n", "urgent")]).unwrap();
    assert!(!is_empty(&agent));
    assert_eq!(next_record(&mut agent), Some(record(1, 1, "n", "ordinary")));
    assert_eq!(next_record(&mut agent), Some(record(2, 2, "n", "urgent")));
}

#[test]
fn many_threads_and_a_slow_reader_lose_nothing() {
    const THREADS: i64 = 4;
    const RECORDS: i64 = 5_000;
    let (client, mut agent) = connected();
    let senders: Vec<_> = (0..THREADS)
        .map(|thread| {
            let client = client.clone();
            thread::spawn(move || {
                for number in 1..=RECORDS {
                    client.send_at(1, thread * RECORDS + number, &[("padding", &"x".repeat(50))]).unwrap();
                }
            })
        })
        .collect();
    drop(client);
    let mut seen: Vec<i64> = std::iter::from_fn(|| next_record(&mut agent)).map(|record| record.timestamp).collect();
    senders.into_iter().for_each(|sender| sender.join().unwrap());
    for thread in 0..THREADS {
        let own = seen.iter().filter(|number| (**number - 1) / RECORDS == thread);
        assert!(own.is_sorted(), "a thread's records keep their order");
    }
    seen.sort_unstable();
    assert!(seen.into_iter().eq(1..=THREADS * RECORDS));
}

#[test]
fn a_pipe_that_does_not_block_is_waited_for() {
    let (reader, writer) = pipe_with(PipeFlags::NONBLOCK).unwrap();
    let client = Client::from_pipes(writer, None).unwrap();
    let value = "x".repeat(BATCH_BYTES);
    let sender = thread::spawn(move || (1..=8).try_for_each(|number| client.send_at(1, number, &[("v", &value)])));
    let flags = rustix::fs::fcntl_getfl(&reader).unwrap();
    rustix::fs::fcntl_setfl(&reader, flags - rustix::fs::OFlags::NONBLOCK).unwrap();
    let mut agent = File::from(reader);
    let seen: Vec<i64> = std::iter::from_fn(|| next_record(&mut agent)).map(|record| record.timestamp).collect();
    sender.join().unwrap().unwrap();
    assert_eq!(seen, [1, 2, 3, 4, 5, 6, 7, 8]);
}

#[test]
fn records_longer_than_a_batch_arrive_and_too_long_ones_are_refused() {
    let (client, mut agent) = connected();
    let reader =
        thread::spawn(move || std::iter::from_fn(|| next_record(&mut agent)).map(|r| r.timestamp).collect::<Vec<_>>());
    client.send_at(1, 1, &[]).unwrap();
    client.send_at(1, 2, &[("v", &"x".repeat(10 * BATCH_BYTES))]).unwrap();
    let refused = client.send_at(1, 3, &[("v", &"x".repeat(elklet_plugin::MAX_RECORD_BYTES))]);
    assert!(matches!(refused, Err(SendError::TooLong { .. })));
    client.send_at(1, 4, &[]).unwrap();
    drop(client);
    assert_eq!(reader.join().unwrap(), [1, 2, 4]);
}

#[test]
fn an_agent_that_has_gone_is_named_and_the_loss_counted() {
    let (client, agent) = connected();
    drop(agent);
    client.send_at(1, 1, &[]).unwrap();
    client.send_at(1, 2, &[]).unwrap();
    let error = client.flush().unwrap_err();
    assert_eq!(error.to_string(), "the agent has gone, 2 records were not written");
    assert!(matches!(client.send_at(1, 3, &[]), Err(SendError::AgentGone { unwritten: 2 })));
}

#[test]
fn a_failed_flush_in_the_background_is_told_to_the_next_sender() {
    let (client, agent) = connected();
    drop(agent);
    let started = Instant::now();
    while client.send_at(1, 1, &[]).is_ok() {
        assert!(started.elapsed() < DEADLINE);
        thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn tasks_arrive_in_pieces_and_end_with_the_pipe() {
    let (mut agent, mut tasks) = task_pipe();
    assert_eq!(tasks.try_receive().unwrap(), Poll::Pending);
    let task = Task { data_type: 1, object_name: "p".into(), data: "x".repeat(9000), token: "t".into() };
    let body = task.encode_to_vec();
    let prefix = u32::try_from(body.len()).unwrap().to_le_bytes();
    agent.write_all(&prefix).unwrap();
    agent.write_all(&body[..5000]).unwrap();
    assert_eq!(tasks.try_receive().unwrap(), Poll::Pending);
    agent.write_all(&body[5000..]).unwrap();
    assert_eq!(tasks.try_receive().unwrap(), Poll::Ready(Some(task)));
    drop(agent);
    assert_eq!(tasks.try_receive().unwrap(), Poll::Ready(None));
    assert_eq!(tasks.receive().unwrap(), None);
}

#[test]
fn receiving_wakes_up_when_the_agent_closes_the_pipe() {
    let (agent, mut tasks) = task_pipe();
    let (done, ended) = mpsc::channel();
    thread::spawn(move || done.send(tasks.receive()));
    drop(agent);
    assert_eq!(ended.recv_timeout(DEADLINE).expect("an end").unwrap(), None);
}

fn task_pipe() -> (File, Tasks) {
    let (reader, writer) = pipe().expect("a pipe");
    (writer.into(), Tasks::from_pipe(reader))
}
