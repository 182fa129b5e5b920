"""Recorded captures are played byte for byte, in order, and a client that buffers can sync its books."""
import asyncio
import gzip
import json
import os
import pathlib

import pytest
from feedhandler.simulate.player import CaptureError
from feedhandler.simulate.server import running
from simulate_client import TestBook, connect, digest, get, loads, run, trade_line

CAPTURES = pathlib.Path(os.environ.get("FEEDHANDLER_CAPTURES") or pathlib.Path(__file__).parent.parent.parent / "shared" / "captures")


def capture(name):
    path = CAPTURES / f"{name}.tsv.gz"
    if not path.exists():
        pytest.skip(f"{path} is not here: set FEEDHANDLER_CAPTURES to the folder of recordings")
    return path


def recorded(path, direction=b"in"):
    with gzip.open(path) as file:
        rows = [line.rstrip(b"\n").split(b"\t", 3) for line in file]
    return [row[3] for row in rows if row[2] == direction]


def write(path, rows):
    with gzip.open(path, "wb") as file:
        file.writelines(b"\t".join(row) + b"\n" for row in rows)


async def finished(simulator, client):
    await simulator.wait_finished()
    sent = simulator.players[0].frames_sent
    await client.until(lambda: len(client.frames) >= sent)


def test_every_data_frame_of_okx_comes_byte_for_byte_in_order():
    path = capture("okx_2022.head")
    frames = [frame for frame in recorded(path) if b'"event"' not in frame]
    channels = {(json.loads(frame)["arg"]["channel"], json.loads(frame)["arg"]["instId"]) for frame in frames}
    async def main():
        async with running(captures={"okx": path}, speed="max") as simulator:
            client = await connect(simulator, "okx", "public")
            client.send({"op": "subscribe", "args": [{"channel": channel, "instId": symbol} for channel, symbol in sorted(channels)]})
            await finished(simulator, client)
            assert [frame for frame in client.frames if b'"event"' not in frame] == frames
            listed = json.loads((await get(simulator, "okx", "/api/v5/public/instruments?instType=SWAP"))[2])["data"]
            assert len(listed) > 10     # the recorded list, whole
    run(main())


def test_every_data_frame_of_kraken_comes_byte_for_byte_in_order():
    path = capture("kraken_spot_v2_derived.head")
    frames = [frame for frame in recorded(path) if b'"channel":"book"' in frame and not frame.startswith(b'{"method"')]
    symbols = sorted({json.loads(frame)["data"][0]["symbol"] for frame in frames})
    async def main():
        async with running(captures={"kraken": path}, speed="max", wait_subscriptions=str(len(symbols))) as simulator:
            client = await connect(simulator, "kraken")
            client.send({"method": "subscribe", "params": {"channel": "book", "symbol": symbols, "depth": 1000}})
            await finished(simulator, client)
            await client.until(lambda: sum(b'"channel":"book","type"' in frame for frame in client.frames) >= len(frames))
            assert [frame for frame in client.frames if b'"channel":"book","type"' in frame] == frames
    run(main())


def sync(frames, snapshot, futures):
    """The book of one symbol from buffered depth frames and its snapshot, by the venue's rules, as `verify` counts."""
    book, last, before = TestBook(), snapshot["lastUpdateId"], None
    book.apply(snapshot["bids"], snapshot["asks"])
    for frame in frames:
        if int(frame["u"]) < last or not futures and int(frame["u"]) == last:
            continue
        book.apply(frame["b"], frame["a"])
    return book


@pytest.mark.parametrize("name,venue,endpoint,rest", [("binance_spot_2021", "binance-spot", "spot.json", "/api/v3"), ("binance_usdm_2021", "binance-usdm", "usdm.public", "/fapi/v1")])
def test_a_client_that_buffers_syncs_every_recorded_book(name, venue, endpoint, rest):
    path = capture(name)
    expected = json.loads((CAPTURES / "expected" / f"{name}.json").read_text())["books"]
    async def main():
        async with running(captures={venue: path}, speed="max", wait_subscriptions=str(len(expected))) as simulator:
            client = await connect(simulator, venue, endpoint, "?streams=" + "/".join(f"{symbol.lower()}@depth@100ms" for symbol in expected))
            answers = await asyncio.gather(*(get(simulator, venue, f"{rest}/depth?symbol={symbol}&limit=1000") for symbol in expected))
            await finished(simulator, client)
            assert client.frames == [frame for frame in recorded(path) if b"@depth" in frame[:60]]
            rows = [loads(frame)["data"] for frame in client.frames]
            for symbol, (status, _, body) in zip(expected, answers):
                book = sync([row for row in rows if row["s"] == symbol], json.loads(body), venue != "binance-spot")
                assert status == 200 and book.all_sha256() == expected[symbol]["all_sha256"]
    run(main())


def test_frames_before_the_recorded_snapshot_arrive_before_its_answer():
    path = capture("binance_spot_2021")
    async def main():
        async with running(captures={"binance-spot": path}, speed="max", wait_subscriptions="1") as simulator:
            client = await connect(simulator, "binance-spot", tail="?streams=nknusdt@depth@100ms")
            await client.count(1)
            await asyncio.sleep(0.1)
            assert len(client.frames) == 1      # held: the recording needs the snapshot's request here
            status, _, body = await get(simulator, "binance-spot", "/api/v3/depth?symbol=NKNUSDT&limit=1000")
            assert json.loads(body)["lastUpdateId"] == 499869752 and body in recorded(path, b"rest")[1]
            await simulator.wait_finished()
    run(main())


def test_a_capture_without_an_instrument_list_gets_one_with_the_recorded_digits(tmp_path):
    path = tmp_path / "small.tsv.gz"
    frame = b'{"stream":"abcusdt@trade","data":{"e":"trade","E":1,"s":"ABCUSDT","t":1,"p":"2.50","q":"1.000","T":1,"m":true}}'
    depth = b'{"stream":"abcusdt@depth@0ms","data":{"e":"depthUpdate","E":1,"s":"ABCUSDT","U":1,"u":2,"b":[["2.4100","1.250"]],"a":[]}}'
    write(path, [(b"1000", b"ws1", b"in", frame), (b"2000", b"ws1", b"in", depth)])
    async def main():
        async with running(captures={"binance-spot": path}, speed="max") as simulator:
            row = json.loads((await get(simulator, "binance-spot", "/api/v3/exchangeInfo"))[2])["symbols"][0]
            assert (row["symbol"], row["baseAsset"], row["quoteAsset"]) == ("ABCUSDT", "ABC", "USDT")
            assert row["filters"][0]["tickSize"] == "0.01" and row["filters"][1]["stepSize"] == "0.01"
            client = await connect(simulator, "binance-spot", tail="?streams=abcusdt@trade/abcusdt@depth@100ms")
            await finished(simulator, client)
            assert client.frames == [frame, depth]      # another speed of the same stream is served too
    run(main())


def test_the_pace_of_the_recording_is_kept_and_multiplied(tmp_path):
    path = tmp_path / "pace.tsv.gz"
    row = b'{"stream":"abcusdt@trade","data":{"e":"trade","E":%d,"s":"ABCUSDT","t":%d,"p":"2.5","q":"1","T":1,"m":true}}'
    write(path, [(b"%d" % (number * 100_000_000), b"ws1", b"in", row % (number, number)) for number in range(11)])    # 1 s
    async def main(speed):
        async with running(captures={"binance-spot": path}, speed=speed, wait_subscriptions="1") as simulator:
            client = await connect(simulator, "binance-spot", tail="?streams=abcusdt@trade")
            loop = asyncio.get_running_loop()
            await client.count(1)
            started = loop.time()
            await finished(simulator, client)
            return loop.time() - started
    assert 0.9 < run(main(1.0)) < 1.3
    assert 0.15 < run(main(5.0)) < 0.4


def test_closing_at_the_end_and_reporting_what_nobody_wanted(tmp_path):
    path = tmp_path / "end.tsv.gz"
    row = b'{"stream":"%b@trade","data":{"e":"trade","E":1,"s":"X","t":1,"p":"2.5","q":"1","T":1,"m":true}}'
    write(path, [(b"1", b"ws1", b"in", row % name) for name in (b"abcusdt", b"xyzusdt", b"abcusdt")])
    async def main():
        async with running(captures={"binance-spot": path}, speed="max", wait_subscriptions="1", close_at_end=True) as simulator:
            client = await connect(simulator, "binance-spot", tail="?streams=abcusdt@trade")
            assert (await client.gone())[0] == 1001
            report = simulator.report()
            assert report["finished"] and report["captures"][0]["frames_sent"] == 2 and report["captures"][0]["frames_unwanted"] == 1
    run(main())


def test_a_file_that_is_no_capture_is_named_with_its_line(tmp_path):
    path = tmp_path / "bad.tsv.gz"
    write(path, [(b"1", b"ws1", b"in", b"{}"), (b"not a capture",)])
    async def main():
        with pytest.raises(CaptureError, match="line 2"):
            async with running(captures={"okx": path}):
                pass
    run(main())


def test_the_busy_usdm_recording_gives_the_expected_books_at_full_speed():
    path = capture("binance_usdm_2024.head")
    expected = json.loads((CAPTURES / "expected" / "binance_usdm_2024.head.json").read_text())
    async def main():
        async with running(captures={"binance-usdm": path}, speed="max", wait_subscriptions="4", tls=False) as simulator:
            client = await connect(simulator, "binance-usdm", "usdm.public", "?streams=" + "/".join(
                f"{symbol}@{name}" for symbol in ("btcusdt", "ethusdt") for name in ("depth@0ms", "trade")))
            answers = await asyncio.gather(*(get(simulator, "binance-usdm", f"/fapi/v1/depth?symbol={symbol}&limit=1000") for symbol in ("BTCUSDT", "ETHUSDT")))
            await finished(simulator, client)
            depth = [loads(frame)["data"] for frame in client.frames if b"@depth" in frame[:40]]
            trades = [loads(frame)["data"] for frame in client.frames if b"@trade" in frame[:40]]
            for symbol, (_, _, body) in zip(("BTCUSDT", "ETHUSDT"), answers):
                book = sync([row for row in depth if row["s"] == symbol], json.loads(body), True)
                assert book.all_sha256() == expected["books"][symbol]["all_sha256"]
                lines = [trade_line(row["p"], row["q"], not row["m"]) for row in trades if row["s"] == symbol and row["X"] == "MARKET"]
                assert digest(lines)["sha256"] == expected["trades"][symbol]["sha256"]
    run(main())
