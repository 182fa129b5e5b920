"""Each fault does what it says, to whom it says, as often as it says, and is recorded."""
import asyncio
import json
import time

import picows
import pytest
from feedhandler.simulate import faults, throttle
from feedhandler.simulate.server import running
from simulate_client import TestBook, connect, get, hold, loads, post_fault, run


async def depth_client(simulator, symbol="btcusdt"):
    client = await connect(simulator, "binance-spot", tail=f"?streams={symbol}@depth")
    await client.count(3)
    return client


def chain(frames):
    """(U, u) of each depth frame."""
    return [(data["U"], data["u"]) for data in (json.loads(frame)["data"] for frame in frames)]


def breaks(frames):
    pairs = chain(frames)
    return [number for number in range(1, len(pairs)) if pairs[number][0] != pairs[number - 1][1] + 1]


def test_a_dropped_update_is_missing_once_and_recorded_with_its_sequence():
    async def main():
        async with running(rate=2000, instruments=2) as simulator:
            client, other = await depth_client(simulator), await depth_client(simulator, "ethusdt")
            simulator.faults.add("drop", symbol="BTCUSDT", channel="book", skip=5)
            await client.count(100)
            await other.count(100)
            assert len(breaks(client.frames)) == 1 and not breaks(other.frames)
            record, = simulator.faults.records
            gap = breaks(client.frames)[0]
            assert record["kind"] == "drop" and record["symbol"] == "BTCUSDT"
            assert chain(client.frames)[gap - 1][1] < record["sequence"] == chain(client.frames)[gap][0] - 1
    run(main())


def test_count_and_skip_say_which_deliveries_are_hit():
    async def main():
        async with running(rate=2000, instruments=1) as simulator:
            client = await depth_client(simulator)
            simulator.faults.add("drop", count=3, skip=10)
            await client.count(100)
            positions = [record["position"] for record in simulator.faults.records]
            assert positions == list(range(positions[0], positions[0] + 3)) and len(breaks(client.frames)) == 1
    run(main())


def test_a_duplicate_comes_twice_and_a_reordered_frame_after_the_next():
    async def main():
        async with running(rate=2000, instruments=1) as simulator:
            client = await depth_client(simulator)
            simulator.faults.add("duplicate", channel="book")
            await client.count(60)
            twice = [number for number in range(1, len(client.frames)) if client.frames[number] == client.frames[number - 1]]
            assert len(twice) == 1
            start = len(client.frames)
            simulator.faults.add("reorder", channel="book")
            await client.count(start + 60)
            pairs = chain(client.frames[start:])
            swapped = [number for number in range(1, len(pairs)) if pairs[number][1] < pairs[number - 1][0]]
            assert len(swapped) == 1 and sorted(pairs) == [pair for _, pair in sorted(zip(pairs, pairs))]
            assert [b[0] - a[1] for a, b in zip(sorted(pairs), sorted(pairs)[1:])] == [1] * (len(pairs) - 1)
    run(main())


def test_one_corrupt_digit_breaks_the_checksum_of_kraken():
    async def main():
        async with running(venues=("kraken",), rate=2000, instruments=1) as simulator:
            client = await connect(simulator, "kraken")
            simulator.faults.add("corrupt", channel="book", skip=20)
            client.send({"method": "subscribe", "params": {"channel": "book", "symbol": ["BTC/USD"]}})
            await client.count(60)
            book, bad = TestBook(10), []
            for number, frame in enumerate(loads(frame) for frame in client.frames):
                if frame.get("channel") == "book":
                    row = frame["data"][0]
                    book.apply(*[[(level["price"], level["qty"]) for level in row[side]] for side in ("bids", "asks")])
                    bad += [number] if book.crc() != int(row["checksum"]) else []
            assert bad and simulator.faults.records[0]["kind"] == "corrupt"
    run(main())


@pytest.mark.parametrize("payload", [b'{"b":[["9.10","0.2"]],"a":[]}', b'{"bids":[{"price":78858.8,"qty":0.5}]}', b'{"data":{"x":[1]}}'])
def test_corruption_changes_exactly_one_digit_and_keeps_valid_json(payload):
    changed = faults.corrupted(payload)
    assert len(changed) == len(payload) and sum(a != b for a, b in zip(changed, payload)) == 1
    json.loads(changed)


def test_malformed_and_non_utf8_frames_reach_the_client_as_sent():
    async def main():
        async with running(rate=2000, instruments=1) as simulator:
            client = await depth_client(simulator)
            simulator.faults.add("malformed", skip=3)
            simulator.faults.add("bad_utf8", skip=9)
            start = len(client.frames)
            await client.count(start + 60)
            bad = []
            for frame in client.frames[start:]:
                try:
                    json.loads(frame.decode())
                except ValueError as error:
                    bad.append(type(error))
            assert sorted(kind.__name__ for kind in bad) == ["JSONDecodeError", "UnicodeDecodeError"]
    run(main())


def test_a_fragmented_frame_comes_in_three_parts_around_a_ping():
    async def main():
        async with running(rate=500, instruments=1) as simulator:
            client = await depth_client(simulator)
            simulator.faults.add("fragment")
            await client.until(lambda: client.pings)
            at = client.kinds.index((picows.WSMsgType.PING, True, False))
            await client.until(lambda: len(client.kinds) > at + 2)
            part, middle, end = client.kinds[at - 1], client.kinds[at + 1], client.kinds[at + 2]
            assert part == (picows.WSMsgType.TEXT, False, False)
            assert middle == (picows.WSMsgType.CONTINUATION, False, False) and end == (picows.WSMsgType.CONTINUATION, True, False)
    run(main())


def test_illegal_headers_are_on_the_wire_as_asked():
    fault = faults.Fault("oversize", size=1 << 40)
    assert faults.BYTES["oversize"](b"abc", fault)[:10] == b"\x81\x7f" + (1 << 40).to_bytes(8, "big")
    assert faults.BYTES["masked"](b"abc", fault) == b"\x81\x83\0\0\0\0abc"
    assert faults.BYTES["rsv"](b"abc", fault) == b"\xc1\x03abc"
    assert faults.framed(b"x" * 125)[:2] == b"\x81\x7d" and faults.framed(b"x" * 126)[:4] == b"\x81\x7e\0\x7e"
    assert faults.framed(b"x" * 65_535)[1] == 126 and faults.framed(b"x" * 65_536)[1] == 127


def test_rsv_frames_end_a_strict_client():
    async def main():
        async with running(rate=500, instruments=1) as simulator:
            client = await depth_client(simulator)
            simulator.faults.add("rsv")
            await client.until(lambda: any(rsv for _, _, rsv in client.kinds) or client.closed)
    run(main())


def test_a_stalled_connection_stays_open_and_goes_on_later_without_loss():
    async def main():
        async with running(rate=1000, instruments=1) as simulator:
            client = await depth_client(simulator)
            simulator.faults.add("stall", seconds=0.4)
            await asyncio.sleep(0.05)
            seen = len(client.frames)
            await asyncio.sleep(0.2)
            assert len(client.frames) == seen and not client.closed
            await client.count(seen + 300)
            assert not breaks(client.frames)
    run(main())


def test_a_half_open_connection_answers_nothing_and_is_not_closed():
    async def main():
        async with running(rate=1000, instruments=1) as simulator:
            client = await depth_client(simulator)
            simulator.faults.add("half_open")
            await asyncio.sleep(0.05)
            seen = len(client.frames)
            client.send({"method": "LIST_SUBSCRIPTIONS", "id": 1})
            client.transport.send_ping(b"there?")
            await asyncio.sleep(0.2)
            assert len(client.frames) == seen and not client.closed
    run(main())


def test_disconnects_carry_their_code_and_a_reset_carries_none():
    async def main():
        async with running(rate=100, instruments=2) as simulator:
            first, second = await depth_client(simulator), await depth_client(simulator, "ethusdt")
            simulator.faults.add("disconnect", symbol="BTCUSDT", code=1012)
            assert (await first.gone())[0] == 1012 and not second.closed
            simulator.faults.add("reset")
            assert (await second.gone())[0] == 1006
    run(main())


def test_a_slow_connection_gets_no_more_than_its_bytes():
    async def main():
        async with running(rate=1000, instruments=1) as simulator:
            client = await depth_client(simulator)
            await hold(simulator, client)
            simulator.held_sending = False
            simulator.faults.add("slow", bytes_per_s=20_000, seconds=5)
            before = simulator.bytes_sent
            await asyncio.sleep(0.5)
            assert 0 < simulator.bytes_sent - before <= 31_000
    run(main())


def test_frames_are_split_where_they_end_and_a_broken_one_is_kept_as_it_is():
    whole = [faults.framed(b"x" * size) for size in (0, 125, 126, 65_535, 65_536)]
    assert throttle.split(b"".join(whole)) == whole
    broken = faults.header(1000) + b"short"
    assert throttle.split(b"".join(whole) + broken) == [*whole, broken]


@pytest.mark.parametrize("limit", [{"messages_per_s": 50}, {"bytes_per_s": 50 * 102}])
def test_a_throttle_lets_no_more_than_its_rate_through_and_the_rest_comes_late_in_order(limit):
    held = throttle.Throttle(0.0, until=10.0, **limit)
    out = b""
    for tick in range(1, 100):      # 100 messages a second for a second
        out += held.pass_on(faults.framed(b"%0100d" % tick), tick / 100)
    assert len(out) // 102 == pytest.approx(50, abs=2)
    assert held.late_s(1.0) == pytest.approx(0.5, abs=0.05) and held.size == 99 * 102 - len(out)
    out += held.pass_on(b"", 10.0)
    assert throttle.split(out) == [faults.framed(b"%0100d" % tick) for tick in range(1, 100)] and held.is_over(10.0)


def test_a_throttled_connection_gets_every_update_ever_later_and_the_others_get_theirs_at_once():
    async def main():
        async with running(rate=1000, instruments=2) as simulator:
            client, other = await depth_client(simulator), await depth_client(simulator, "ethusdt")
            simulator.faults.add("throttle", symbol="BTCUSDT", messages_per_s=100)
            connection, = [one for one in simulator.connections if one.throttle]
            seen, fair = len(client.frames), len(other.frames)
            await other.count(fair + 400)
            assert len(client.frames) - seen < 200
            assert age_ms(client.frames[-1]) > 200 > age_ms(other.frames[-1])
            simulator.faults.clear()
            await client.until(lambda: connection.throttle is None)
            await hold(simulator, client)
            assert not breaks(client.frames) and len(client.frames) - seen >= 400
    run(main())


def age_ms(frame):
    return time.time() * 1000 - json.loads(frame)["data"]["E"]


def test_a_connection_throttled_for_too_long_is_closed_as_a_slow_one():
    async def main():
        async with running(rate=1000, instruments=1) as simulator:
            client = await depth_client(simulator)
            simulator.faults.add("throttle", messages_per_s=100, drop_after_s=0.3)
            assert await client.gone() == (1008, b"Slow consumer")
            with pytest.raises(faults.FaultError, match="messages_per_s or bytes_per_s"):
                simulator.faults.add("throttle")
    run(main())


def test_a_venue_with_a_rate_limit_holds_back_the_heavy_connection_only():
    async def main():
        async with running(rate=1100, instruments=2, throttle_above=300, heavy={"BTCUSDT": 10}) as simulator:
            heavy, light = await depth_client(simulator), await depth_client(simulator, "ethusdt")
            seen = len(light.frames)
            await light.count(seen + 80)
            late = {one.identity: one.throttle.late_s(simulator.clock()) for one in simulator.connections}
            assert min(late.values()) < 0.1 < max(late.values()) and len(light.frames) * 10 > len(heavy.frames) > len(light.frames)
    run(main())


def test_refused_connections_are_let_in_again_after_their_time():
    async def main():
        async with running(rate=100) as simulator:
            simulator.faults.add("refuse", venue="binance-spot", seconds=0.3)
            with pytest.raises(picows.WSHandshakeError) as failure:
                await connect(simulator, "binance-spot")
            assert failure.value.response.status == 503
            await asyncio.sleep(0.31)
            await connect(simulator, "binance-spot")
    run(main())


def test_a_closed_port_refuses_at_tcp_and_opens_again_at_the_same_number():
    async def main():
        async with running(rate=100) as simulator:
            alive = await depth_client(simulator)
            await get(simulator, None, "/refuse?seconds=0.3")
            await asyncio.sleep(0.05)
            with pytest.raises(OSError):
                await connect(simulator, "binance-spot")
            await alive.count(len(alive.frames) + 5)
            await asyncio.sleep(0.35)
            await connect(simulator, "binance-spot")
    run(main())


def test_rest_errors_are_answered_with_their_status():
    async def main():
        async with running(rate=100) as simulator:
            simulator.faults.add("rest_error", code=502, seconds=5)
            assert (await get(simulator, "binance-spot", "/api/v3/ping"))[0] == 502
            simulator.faults.clear()
            assert (await get(simulator, "binance-spot", "/api/v3/ping"))[0] == 200
    run(main())


@pytest.mark.parametrize("venue,request_,ack", [
    ("binance-spot", {"method": "SUBSCRIBE", "params": ["btcusdt@depth"], "id": 1}, b'{"result":null,"id":1}'),
    ("okx", {"op": "subscribe", "args": [{"channel": "books", "instId": "BTC-USDT-SWAP"}]}, b'"event":"subscribe"'),
    ("kraken", {"method": "subscribe", "params": {"channel": "book", "symbol": ["BTC/USD"]}}, b'"success":true'),
    ("deribit", {"jsonrpc": "2.0", "id": 1, "method": "public/subscribe", "params": {"channels": ["book.BTC-PERPETUAL.100ms"]}}, b'"result":["book')])
def test_a_stream_can_be_acked_and_silent_or_served_without_its_ack_or_rejected(venue, request_, ack):
    async def main():
        async with running(venues=(venue,), rate=500, instruments=1) as simulator:
            data = b'"bids"' if venue != "binance-spot" else b"depthUpdate"
            simulator.faults.add("silent")
            silent = await connect(simulator, venue)
            silent.send(request_)
            await silent.text(ack)
            await asyncio.sleep(0.1)
            assert not any(data in frame for frame in silent.frames)
            simulator.faults.add("ack_lost")
            lost = await connect(simulator, venue)
            lost.send(request_)
            await lost.text(data)
            assert not any(ack in frame for frame in lost.frames)
            simulator.faults.add("reject")
            rejected = await connect(simulator, venue)
            rejected.send(request_)
            await asyncio.sleep(0.1)
            assert not any(data in frame for frame in rejected.frames) and not any(ack in frame for frame in rejected.frames)
    run(main())


def test_faults_come_by_the_admin_side_and_wrong_ones_are_explained():
    async def main():
        async with running(rate=1000, instruments=1) as simulator:
            client = await depth_client(simulator)
            assert await post_fault(simulator, kind="drop", channel="book") == (200, {"id": 1})
            await client.until(lambda: breaks(client.frames))
            status, answer = await post_fault(simulator, kind="explode")
            assert status == 400 and "drop" in answer["error"]
            status, answer = await post_fault(simulator, kind="drop", instrument="X")
            assert status == 400 and "instrument is not a field" in answer["error"]
            status, answer = await post_fault(simulator, kind="drop", venue="kraken")
            assert status == 400 and "not simulated" in answer["error"]
            document = json.loads((await get(simulator, None, "/faults"))[2])
            assert len(document["records"]) == 1
            assert (await get(simulator, None, "/nothing"))[0] == 404
    run(main())


def test_the_oracle_says_what_a_fault_made_inexact_and_a_new_snapshot_heals():
    async def main():
        async with running(venues=("okx",), rate=1000, instruments=1) as simulator:
            client = await connect(simulator, "okx", "public")
            arg = {"channel": "books", "instId": "BTC-USDT-SWAP"}
            client.send({"op": "subscribe", "args": [arg]})
            await client.count(20)
            simulator.faults.add("drop", channel="book")
            await client.until(lambda: simulator.faults.records)
            document = simulator.documents()["okx"]
            assert document["oracle"]["books"]["BTC-USDT-SWAP"]["exact"] == {"l1": False, "final": False}
            assert document["books"]["BTC-USDT-SWAP"] == {"state": "live", "crossed": 0}
            client.send({"op": "unsubscribe", "args": [arg]})
            client.send({"op": "subscribe", "args": [arg]})
            await client.until(lambda: sum(b'"action":"snapshot"' in frame for frame in client.frames) == 2)
            assert simulator.documents()["okx"]["oracle"]["books"]["BTC-USDT-SWAP"]["exact"]["final"]
    run(main())
