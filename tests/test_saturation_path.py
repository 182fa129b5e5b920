"""Saturation end to end: a simulated venue holds one connection back, and what the instance says of it and does."""
import time

import pytest

from feedhandler.supervisor import client

from fault_support import Place

NOTICED_S = 10.0    # the watch needs two seconds on its own clock (test_watch.py); this machine may be busy
BASELINE_S = 4.0    # before that a connection is too young to be judged


def parted(text, simulator):
    """Four streams a connection."""
    return text + "\n[venues.okx.limits.public]\nmax_per_conn = 4\nsoft_per_conn = 4\n"


@pytest.fixture(scope="module")
def place():
    with Place(venues=("okx",), instruments=4, rate=800, config=parted) as place:
        place.watcher.until(lambda: all(seen.phase == "LIVE" for seen in place.watcher.seen.values()), "all books")
        yield place


def automatic(text, simulator):
    """Books alone, all on one connection, and what is throttled is rebalanced."""
    return text.replace('channels = ["trade", "quote", "book"]', 'channels = ["book"]') + "\n[load]\nauto_rebalance = true\n"


def ask(place, verb):
    """The supervisor's answer, without the time that a command takes to start."""
    return client.request(place.name, verb)


def look_for(place, seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        place.watcher.look(0.1)


def test_a_throttled_connection_is_stale_in_time_says_why_and_is_live_again(place):
    look_for(place, BASELINE_S)
    assert ask(place, "status")["state"] == "ok"
    seen = next(iter(place.watcher.seen.values()))
    rate = next(row for row in ask(place, "conns")["connections"] if row["messages_per_s"])["messages_per_s"]
    begin = time.monotonic()
    place.fault("throttle", symbol=seen.market.symbol, channel="book", messages_per_s=max(20, rate / 3))
    place.watcher.until(lambda: "STALE" in seen.story, "STALE is in the ring", NOTICED_S)
    print(f"STALE in the ring after {time.monotonic() - begin:.2f} s")
    held = [row for row in ask(place, "conns")["connections"] if row["health"] == "THROTTLED"]
    assert len(held) == 1 and "the venue holds back" in held[0]["reason"] and held[0]["lag_ns"] > 0
    streams = ask(place, "subs")["streams"]
    assert {row["state"] for row in streams if row["connection"] == held[0]["id"]} == {"STALE"}
    assert {row["state"] for row in streams if row["connection"] != held[0]["id"]} == {"LIVE"}
    status = ask(place, "status")
    assert status["state"] == "degraded" and any("STALE: the venue holds back" in reason for reason in status["reasons"])
    place.call(place.simulator.faults.clear)
    until(place, lambda: {row["state"] for row in ask(place, "subs")["streams"]} == {"LIVE"}, "all is LIVE again")
    place.watcher.until(lambda: seen.story[-1] == "LIVE", "LIVE is in the ring")
    assert ask(place, "status")["state"] == "ok"


def until(place, condition, what):
    """Ask the supervisor until it is so, and read on meanwhile."""
    deadline = time.monotonic() + 2 * NOTICED_S
    while not condition():
        assert time.monotonic() < deadline, what
        place.watcher.look(0.05)
        assert not place.watcher.wrong, place.watcher.wrong[:5]


def homes(place):
    """{connection: symbols} as the instance has it now."""
    found = {}
    for row in ask(place, "subs")["streams"]:
        found.setdefault(row["connection"], set()).add(row["symbol"])
    return found


def test_a_stream_fourteen_times_its_neighbours_is_alone_after_the_one_rebalance_that_a_throttle_brings():
    heavy = "BTC-USDT-SWAP"
    with Place(venues=("okx",), instruments=6, rate=500, heavy={heavy: 14}, config=automatic) as place:
        place.watcher.until(lambda: all(seen.phase == "LIVE" for seen in place.watcher.seen.values()), "all books")
        (connection, symbols), = homes(place).items()
        look_for(place, BASELINE_S)
        until(place, lambda: ask(place, "capacity")["learned"] == len(symbols), "every stream is measured")
        assert heavy in symbols and "remedies" in ask(place, "plan")
        place.fault("throttle", venue="okx", messages_per_s=300)     # of about 500
        until(place, lambda: len(homes(place)) == 2, "the connection is split")
        until(place, lambda: {row["state"] for row in ask(place, "subs")["streams"]} == {"LIVE"}, "all is LIVE again")
        after = homes(place)
        assert {heavy} in after.values() and len(after) == 2 and after[connection] == symbols - {heavy}
        assert not place.watcher.wrong, "and no record was lost, doubled or wrong"
