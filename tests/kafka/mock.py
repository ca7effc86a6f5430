"""Runs a command beside a Kafka cluster, and checks what it has written there.

    mock.py COMMAND...

The cluster is the one that librdkafka mocks, with its address in ELKLET_KAFKA. The command is the ignored test `forward::kafka` of
`elklet_center`, which has the center pass records on to a topic for each kind of compression. They are checked here with nothing
of the center's: the messages are taken apart by hand, after AgentCenter's grpc.proto.
"""

import os
import subprocess
import sys
import time
from collections import Counter

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaException, Producer, TopicPartition

TOPICS = ["hids_svr", "gzip", "snappy", "zstd"]
# As the test has it.
AGENTS = [f"agent-{number}" for number in range(5)]
RECORDS = 300
TIMESTAMP = 1_700_000_000


def varint(data, at):
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, at


def message(data):
    """The fields of a protobuf message, by number. Here are only numbers and what has a length."""
    fields, at = {}, 0
    while at < len(data):
        key, at = varint(data, at)
        if key & 7 == 0:
            value, at = varint(data, at)
        elif key & 7 == 2:
            length, at = varint(data, at)
            value, at = data[at : at + length], at + length
            assert len(value) == length, "the message ends too early"
        else:
            raise AssertionError(f"wire type {key & 7}")
        fields.setdefault(key >> 3, []).append(value)
    return fields


def partition(key, count):
    """As sarama chooses it: FNV-1a as a signed number, its remainder, and that without its sign."""
    value = 0x811C9DC5
    for byte in key:
        value = (value ^ byte) * 0x01000193 & 0xFFFFFFFF
    signed = value - (1 << 32) if value >> 31 else value
    return abs(signed) % count


def check(record, count, now):
    """Checks a record, and returns which it is."""
    data = message(record.value())
    assert all(len(values) == 1 for values in data.values()), data
    data = {number: values[0] for number, values in data.items()}
    agent = record.key().decode()
    assert agent in AGENTS and data[4] == record.key(), data
    assert record.partition() == partition(record.key(), count), f"{agent} in partition {record.partition()}"
    assert (data[1], data[2]) == (59, TIMESTAMP), data
    assert data[5] == b"10.0.0.1,10.0.0.2" and data[8] == b"2001:db8::1", data
    assert (data[9], data[10], data[11]) == (b"gw1", b"1.7.0.1", b"elkeid-agent"), data
    assert abs(data[12] - now) < 600 and abs(record.timestamp()[1] / 1000 - now) < 600, data
    assert set(data) == {1, 2, 3, 4, 5, 8, 9, 10, 11, 12}, f"what AgentCenter leaves empty is not there: {sorted(data)}"
    body = {}
    for entry in message(data[3])[1]:
        entry = message(entry)
        body[entry[1][0].decode()] = entry[2][0].decode()
    assert set(body) == {"n", "argv"} and body["argv"] == 'ls "-l"\n', body
    return agent, int(body["n"])


def read(brokers, topic):
    """All records of a topic, and how many partitions it has."""
    consumer = Consumer({"bootstrap.servers": brokers, "group.id": "check", "enable.auto.commit": False})
    partitions = consumer.list_topics(topic, timeout=10).topics[topic].partitions
    ends = {at: consumer.get_watermark_offsets(TopicPartition(topic, at), timeout=10)[1] for at in partitions}
    consumer.assign([TopicPartition(topic, at, OFFSET_BEGINNING) for at in partitions])
    records, deadline = [], time.monotonic() + 60
    while len(records) < sum(ends.values()):
        assert time.monotonic() < deadline, f"{len(records)} of {sum(ends.values())} records of {topic}"
        record = consumer.poll(1)
        if record is None:
            continue
        if record.error():
            raise KafkaException(record.error())
        records.append(record)
    consumer.close()
    return records, len(partitions)


def main():
    mock = Producer({"bootstrap.servers": "mocked.invalid:1", "test.mock.num.brokers": 3})
    for topic in TOPICS:
        # Who asks for a topic makes it.
        known = mock.list_topics(topic, timeout=10)
    brokers = ",".join(f"{broker.host}:{broker.port}" for broker in known.brokers.values())
    status = subprocess.run(sys.argv[1:], env={**os.environ, "ELKLET_KAFKA": brokers}, check=False).returncode
    if status:
        sys.exit(status)
    wanted = {(agent, number) for agent in AGENTS for number in range(RECORDS)}
    for topic in TOPICS:
        records, count = read(brokers, topic)
        arrived = Counter(check(record, count, time.time()) for record in records)
        assert set(arrived) == wanted, f"{topic}: {len(wanted - set(arrived))} of {len(wanted)} are missing"
        # The center is killed once.
        assert max(arrived.values()) <= 2, f"{topic}: {arrived.most_common(1)}"
        used = len({record.partition() for record in records})
        print(f"{topic}: {len(wanted)} records in {used} of {count} partitions, {len(records) - len(wanted)} of them twice")


main()
