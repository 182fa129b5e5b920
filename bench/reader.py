"""Reader: what a record costs a Python strategy, and how other ways from one process to another compare.

Ours: records (trades and quotes in turn) are published 512 or 4,096 at a time and read by a feed attached before, only the
reading is timed: numpy views (one column summed, so that every record is touched), record objects one by one. Peers move the same 64 bytes
a message between two processes; theirs is messages a second, which includes their sender.
"""
import contextlib
import multiprocessing
import os
import pathlib
import statistics
import time

import feedhandler
from bench import build, common

RECORDS = 60_000        # in a ring of 65,536: nothing is lapped
PEER_COUNT = 100_000
PAYLOAD = bytes(64)
NOW = 1_723_161_256_322_000_000
TRADE = (b'{"stream":"btcusdt@trade","data":{"e":"trade","E":1723161256322,"T":1723161256322,"s":"BTCUSDT","t":%d,"p":"61800.%02d",'
         b'"q":"0.006","X":"MARKET","m":false}}')
QUOTE = (b'{"stream":"btcusdt@bookTicker","data":{"e":"bookTicker","u":%d,"s":"BTCUSDT","b":"2681.62","B":"1.165","a":"2681.63",'
         b'"A":"73.%03d","T":1723161256310,"E":1723161256311}}')
BATCH_NS_MAX, OBJECT_NS_MAX = 4.0, 120.0
PYTHON_PEERS = ("kickmsg", "pyzmq", "multiprocessing.Queue")


def run(quick=False):
    build.build()
    repeats = 1 if quick else common.REPEATS
    rows = []
    with instance() as (directory, publisher, venue), feedhandler.attach("bench", directory=directory) as feed:
        source = Source(publisher, venue)
        for size in (512, 4096):
            samples = [_batches(feed, source, size) for _ in range(repeats)]
            ns = statistics.median(samples)
            rows.append(common.Row(f"numpy batch of {size}, a record", "ns", ns, spread=common.spread(samples), target=f"≤{BATCH_NS_MAX:.0f} ns",
                                   met=ns <= BATCH_NS_MAX))
        loop = statistics.median(_empty_loop() for _ in range(repeats))
        for what, read, bound in (("record objects, price of each trade read", _objects_priced, None),
                                  ("record objects (for record in feed)", _objects, OBJECT_NS_MAX)):
            samples = [read(feed, source) for _ in range(repeats)]
            ns = statistics.median(samples)
            rows.append(common.Row(what, "ns", ns, loop, "empty Python loop", ns / loop, common.spread(samples),
                                   f"≤{bound:.0f} ns" if bound else "", ns <= bound if bound else None))
    ours = 1e3 / rows[-1].ours
    for name in PYTHON_PEERS:
        try:
            rate = statistics.median(_peer(name, PEER_COUNT // (5 if quick else 1)) for _ in range(1 if quick else 3))
        except ImportError:
            continue
        rows.append(common.Row("one message to Python", "M/s", ours, rate / 1e6, name, ours * 1e6 / rate))
    return rows


@contextlib.contextmanager
def instance(slot_count=1 << 16):
    """(directory, publisher, venue) of an instance with one instrument, without its processes."""
    from feedhandler import venues
    from feedhandler.worker.publisher import Publisher
    with common.shared_directory() as directory:
        dir_fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        list_instrument(dir_fd)
        publisher = Publisher(dir_fd, 0, slot_count, 64, 1000, 1)
        venue = venues.load("binance-usdm", 64)
        venue.add_instrument(0, "BTCUSDT", -2, -3)
        for channel in ("trade", "quote"):
            publisher.add_stream(venue, 0, channel)
        try:
            yield str(directory), publisher, venue
        finally:
            publisher.close()
            os.close(dir_fd)


def list_instrument(dir_fd):
    """The supervisor's three files, with BTCUSDT of Binance USD-M as instrument 0."""
    from feedhandler.supervisor import tables
    tables.create(dir_fd, 64, 1)
    rows = tables.Instruments(dir_fd)
    rows.put(0, "perpetual", -2, -3, 0, 1, 1, 1, 0, False, 0, tables.UNDEFINED, "binance-usdm", "BTCUSDT", "BTC-USDT-PERP")
    rows.close()


class Source:
    """Publishes trades and quotes in turn, numbered on."""

    def __init__(self, publisher, venue):
        self.publisher, self.venue, self.number = publisher, venue, 0

    def publish(self, count):
        for n in range(self.number + 1, self.number + count + 1):
            self.publisher.feed(self.venue, 0, TRADE % (n, n % 100) if n & 1 else QUOTE % (n, n % 1000), NOW)
        self.number += count
        self.publisher.turn()


def _market(batch):
    """The market's records of a batch: CLOCK and EPOCH records of the ring are none."""
    return int((batch.records["kind"] < 32).sum())


def _batches(feed, source, size):
    """Median ns a record over the polls."""
    feed.poll()
    samples, count = [], 0
    for _ in range(RECORDS // size):
        source.publish(size)
        begin = time.perf_counter_ns()
        batch = feed.poll()
        total = batch.records["price"].sum()
        samples.append((time.perf_counter_ns() - begin) / len(batch))
        assert total and batch.lost == 0
        count += _market(batch)
    assert count == RECORDS // size * size, count
    return statistics.median(samples)


def _objects(feed, source):
    """One by one; the price of none read."""
    feed.poll()
    source.publish(RECORDS)
    count = 0
    begin = time.perf_counter_ns()
    for record in feed:
        count += 1
        if count == RECORDS:
            break
    return (time.perf_counter_ns() - begin) / count


def _objects_priced(feed, source):
    """One by one; kind of all and exact price of each trade read."""
    feed.poll()
    source.publish(RECORDS)
    count = 0
    begin = time.perf_counter_ns()
    for record in feed:
        if record.kind == "trade":
            record.price
        count += 1
        if count == RECORDS:
            break
    return (time.perf_counter_ns() - begin) / count


def _empty_loop():
    begin = time.perf_counter_ns()
    for _ in range(RECORDS):
        pass
    return (time.perf_counter_ns() - begin) / RECORDS


# -- peers ---------------------------------------------------------------------------------------------------------

def _peer(name, count):
    """Messages a second of 64 bytes from one process to this one, from the first to the last received."""
    return {"kickmsg": _kickmsg, "pyzmq": _pyzmq, "multiprocessing.Queue": _queue}[name](count)


def _queue_sender(queue, count):
    for _ in range(count):
        queue.put(PAYLOAD)


def _timed(receive, count):
    receive()
    begin = time.perf_counter_ns()
    for _ in range(count - 1):
        receive()
    return (count - 1) * 1e9 / (time.perf_counter_ns() - begin)


def _queue(count):
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    sender = context.Process(target=_queue_sender, args=(queue, count))
    sender.start()
    rate = _timed(queue.get, count)
    sender.join()
    queue.close()
    return rate


def _pyzmq_sender(address, count):
    import zmq
    with zmq.Context() as context, context.socket(zmq.PUSH) as socket:
        socket.set_hwm(0)
        socket.connect(address)
        for _ in range(count):
            socket.send(PAYLOAD)


def _pyzmq(count):
    import zmq
    with common.shared_directory() as directory, zmq.Context() as context, context.socket(zmq.PULL) as socket:
        address = f"ipc://{directory}/socket"
        socket.set_hwm(0)
        socket.bind(address)
        sender = multiprocessing.get_context("spawn").Process(target=_pyzmq_sender, args=(address, count))
        sender.start()
        rate = _timed(socket.recv, count)
        sender.join()
    return rate


def _kickmsg_sender(prefix, count, ready):
    import kickmsg
    publisher = kickmsg.Node("sender", prefix).advertise_or_join("bench", _kickmsg_config(count))
    ready.wait()
    for _ in range(count):
        publisher.send(PAYLOAD)


def _kickmsg_config(count):
    """A ring with room for every message, so that none is lost."""
    import kickmsg
    room = 1 << (count - 1).bit_length()
    config = kickmsg.Config()
    config.max_subscribers, config.max_payload_size, config.sub_ring_capacity, config.pool_size = 1, 64, room, room + 64
    return config


def _kickmsg(count):
    import kickmsg
    prefix = f"feedhandler-bench-{os.getpid()}"
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    node = kickmsg.Node("receiver", prefix)
    subscriber = node.subscribe_or_create("bench", _kickmsg_config(count))
    sender = context.Process(target=_kickmsg_sender, args=(prefix, count, ready))
    sender.start()
    ready.set()

    def receive():
        while subscriber.try_receive() is None:
            pass
    try:
        rate = _timed(receive, count)
    finally:
        sender.join()
        node.unlink_topic("bench")
        pathlib.Path(f"/dev/shm/{prefix}_registry").unlink(missing_ok=True)
    assert subscriber.lost == 0
    return rate
