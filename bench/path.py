"""Path: from the socket to the ring on one core, and from the sender's write to a strategy in another process.

Frames a second of one core: the CPU time a frame costs, turned round; client and server have a CPU each. The same bytes go to
ours (session, decode, book, state, ring) and to a handler as it is usually written in Python (websockets, orjson, Decimal,
SortedDict). Messages are made, each with its own ids: quotes, trades, and depth updates of 10 + 10 levels into a book of
1,000 a side. Of ours every event must be in the ring, none twice, and of both the last best prices must agree.
Latency: bench/server.c stamps a trade with its clock, sends it, and is also the strategy that reads it back from the ring.
"""
import json
import os
import random
import statistics
import subprocess

from bench import build, common, reader, wire

COUNT = {"quote": 200_000, "trade": 200_000, "depth": 30_000}
PEER_COUNT = {"quote": 20_000, "trade": 20_000, "depth": 4_000}
PLAIN_RATIO = {"quote": 30, "trade": 30, "depth": 40}
TLS_RATIO = {"quote": 10, "trade": 10, "depth": 25}
LATENCY_RATE, LATENCY_COUNT = 50_000, 30_000     # 0.6 s: below what the kernel allows SCHED_FIFO at a time
BLOCK_P50_US, SPIN_P50_US, P99_TIMES = 30.0, 15.0, 5.0
TIME_MS, BOOK_ID = 1_723_161_256_322, 1_000_000
MIDDLE, SIDE_LEVELS = 6_180_000, 1000


def run(quick=False):
    build.build()
    repeats = 1 if quick else common.REPEATS
    rows = []
    with wire.Wire() as wired:
        for name, made in (("quote", quotes), ("trade", trades), ("depth", depths)):
            count = COUNT[name] // (10 if quick else 1)
            few = min(count, PEER_COUNT[name] // (4 if quick else 1))
            rows += _rate_rows(wired, name, made(count), few, repeats)
        for what, worker_spin, reader_spin in (("worker and strategy asleep in between", "block", "block"),
                                               ("worker asleep, strategy spins", "block", "spin"), ("both spin", "spin", "spin")):
            rows += _latency_rows(wired, what, worker_spin, reader_spin, LATENCY_COUNT // (5 if quick else 1), 1 if quick else common.REPEATS)
    return rows


# -- messages --------------------------------------------------------------------------------------------------------

def quotes(count):
    return [b'{"stream":"btcusdt@bookTicker","data":{"e":"bookTicker","u":%d,"s":"BTCUSDT","b":"61%03d.%02d","B":"1.%03d","a":"61%03d.%02d",'
            b'"A":"73.%03d","T":%d,"E":%d}}' % (n, n % 800, n % 100, n % 1000, n % 800 + 1, n % 100, n * 7 % 1000, TIME_MS, TIME_MS)
            for n in range(1, count + 1)]


def trades(count, first=1):
    return [b'{"stream":"btcusdt@trade","data":{"e":"trade","E":%d,"T":%d,"s":"BTCUSDT","t":%d,"p":"61800.%02d","q":"0.%03d","X":"MARKET",'
            b'"m":%s}}' % (TIME_MS, TIME_MS, n, n % 100, n % 999 + 1, b"true" if n & 2 else b"false") for n in range(first, first + count)]


def depths(count):
    """Changes within 200 ticks of the touch, one in five a deletion; never a crossed book."""
    random_ = random.Random(1)

    def side(sign):
        rows = {}
        while len(rows) < 10:
            distance = min(int(random_.expovariate(0.03)), 199)
            rows[MIDDLE + sign * (1 + distance)] = 0 if distance and random_.random() < 0.2 else random_.randrange(1, 9999)
        return ",".join(f'["{price // 100}.{price % 100:02}","{size // 1000}.{size % 1000:03}"]' for price, size in rows.items())
    return [f'{{"stream":"btcusdt@depth@100ms","data":{{"e":"depthUpdate","E":{TIME_MS},"T":{TIME_MS},"s":"BTCUSDT","U":{BOOK_ID + n},'
            f'"u":{BOOK_ID + n},"pu":{BOOK_ID + n - 1},"b":[{side(-1)}],"a":[{side(1)}]}}}}'.encode() for n in range(1, count + 1)]


def snapshot():
    """The REST snapshot the depth updates continue."""
    def rows(sign):
        return [[f"{(MIDDLE + sign * n) / 100:.2f}", "1.500"] for n in range(1, SIDE_LEVELS + 1)]
    return json.dumps({"lastUpdateId": BOOK_ID, "E": TIME_MS, "T": TIME_MS, "bids": rows(-1), "asks": rows(1)})


# -- frames a second -------------------------------------------------------------------------------------------------

def _rate_rows(wired, name, messages, few, repeats):
    path = wired.messages(name, messages)
    size = sum(map(len, messages)) / len(messages)

    def ours(tls):
        with common.shared_directory() as directory:
            if name == "depth":
                (directory / "snapshot.json").write_text(snapshot())
            said = wired.run("session", path, len(messages), tls, sum(map(len, messages)), directory)
        if said["events"] != len(messages) or said["duplicates"]:
            raise RuntimeError(f"{name}: {said['events']} events and {said['duplicates']} duplicates of {len(messages)} messages")
        if name == "depth" and said["position"] < 10 * len(messages):
            raise RuntimeError(f"the book was not published: the ring stands at {said['position']}")
        return 1e9 / said["cpu_ns_each"]

    def usual():
        with common.shared_directory() as directory:
            if name == "depth":
                (directory / "snapshot.json").write_text(snapshot())
            return 1e9 / wired.run("usual", path, few, False, sum(map(len, messages[:few])), directory)["cpu_ns_each"]
    rows = []
    for tls, targets in ((False, PLAIN_RATIO), (True, TLS_RATIO)):
        rate, reference, ratios = common.pairs(lambda: ours(tls), usual, repeats)
        ratios = [1 / ratio for ratio in ratios]
        ratio = statistics.median(ratios)
        rows.append(common.Row(f"socket to ring, {name} ({size:.0f} B), {'TLS, one record a frame' if tls else 'plain'}", "frames/s", rate,
                               reference, "usual Python, plain", ratio, common.spread(ratios), f"≥{targets[name]}× of cryptofeed 3.0.1",
                               None, f"{1e9 / rate:,.0f} ns a frame"))
    return rows


# -- latency ---------------------------------------------------------------------------------------------------------

def _latency_rows(wired, what, worker_spin, reader_spin, count, repeats):
    seen = [_latency(wired, worker_spin, reader_spin, count) for _ in range(repeats)]

    def median(part, quantile):
        return statistics.median(one[part][quantile] for one in seen)
    p50, p99 = median("total", "p50"), median("total", "p99")
    bound = {("block", "block"): BLOCK_P50_US, ("spin", "spin"): SPIN_P50_US}.get((worker_spin, reader_spin))
    name = f"socket to strategy, TLS, {LATENCY_RATE // 1000}k/s, {what}"
    return [common.Row(f"{name}, p50", "µs", p50, spread=common.spread([one["total"]["p50"] for one in seen]),
                       target=f"≤{bound:.0f} µs" if bound else "", met=p50 <= bound if bound else None,
                       note=f"send to receive p50 {median('receive', 'p50'):.1f} p99 {median('receive', 'p99'):.1f}; receive to strategy p50 "
                            f"{median('reader', 'p50'):.1f} p99 {median('reader', 'p99'):.1f}"),
            common.Row(f"{name}, p99", "µs", p99, p50, "p50", p99 / p50, common.spread([one["total"]["p99"] for one in seen]),
                       f"≤{P99_TIMES:.0f}× p50" if bound else "", p99 <= P99_TIMES * p50 if bound else None)]


def _latency(wired, worker_spin, reader_spin, count):
    """What one paced run says: {"receive": {"p50": µs, "p99": µs}, "reader": …, "total": …}."""
    path = wired.messages("stamped", trades(1, 10 ** 18))
    with common.shared_directory() as directory:
        dir_fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        reader.list_instrument(dir_fd)
        os.close(dir_fd)
        with wired.serving(path, count, True, "paced", LATENCY_RATE, directory, reader_spin) as (server, url):
            command = wire.client_command("session", url, wired.client_cpu, wired.folder / "ca.pem", directory, worker_spin)
            worker = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=build.ROOT, env=wire.environment())
            try:
                line = server.stdout.readline()
                out, errors = worker.communicate(timeout=10)
            finally:
                worker.kill()
                worker.wait()
        if not line:
            raise RuntimeError(f"the server ended early; the worker says: {errors.strip()[-400:]}")
        said = json.loads(line)
        if said["sent"] != said["read"] or json.loads(out)["events"] != count:
            raise RuntimeError(f"{said['sent']} trades were sent, {said['read']} read: {out}")
        return said
