"""The Python reader over a real ring: typed records, batches, last values, loss, waiting."""
import decimal
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import numpy
import pytest

import feedhandler
from feedhandler import venues
from feedhandler.reader import FULL_DTYPE
import market_place

D = decimal.Decimal
NOW = 1_700_000_000_000_000_000
TRADE = (b'{"stream":"btcusdt@trade","data":{"e":"trade","E":1700000000001,"s":"BTCUSDT","t":%d,"p":"%s","q":"%s",'
         b'"T":1700000000000,"m":%s,"M":true}}')
QUOTE = b'{"stream":"btcusdt@bookTicker","data":{"u":%d,"s":"BTCUSDT","b":"%s","B":"%s","a":"%s","A":"%s"}}'


def trade(number, price=b"25.10", size=b"0.5", maker=b"true"):
    return TRADE % (number, price, size, maker)


@pytest.fixture
def spot():
    """(directory, publisher, venue): one worker, BTCUSDT as instrument 3 of binance-spot at exponents -2 and -3."""
    with market_place.place() as (directory, instruments, (publisher,)):
        instruments.put(3, "binance-spot", "BTCUSDT", "BTC-USDT", -2, -3)
        venue = venues.load("binance-spot", market_place.ROW_MAX)
        venue.add_instrument(3, "BTCUSDT", -2, -3)
        for channel in ("trade", "quote"):
            publisher.add_stream(venue, 3, channel)
        yield directory, publisher, venue


def attach(directory, **options):
    return feedhandler.attach("test", directory=directory, **options)


def send(publisher, venue, *frames, ts_recv_ns=NOW):
    for frame in frames:
        assert publisher.feed(venue, 0, frame, ts_recv_ns) >= 0, frame
    publisher.turn()


def market_records(feed, timeout=0.2):
    return [record for record in feed.records(timeout=timeout) if record.instrument is not None]


def test_records_come_typed_exact_and_in_order(spot):
    directory, publisher, venue = spot
    with attach(directory) as feed:
        send(publisher, venue, trade(1), QUOTE % (7, b"25.09", b"1.5", b"25.11", b"2"), trade(2, b"25.11", b"0.25", b"false"))
        first, quote, second = market_records(feed)
    assert (first.kind, first.price, first.size, first.side, first.trade_id) == ("trade", D("25.10"), D("0.500"), "ask", 1)
    assert (quote.bid_price, quote.bid_size, quote.ask_price, quote.ask_size) == (D("25.09"), D("1.5"), D("25.11"), D("2"))
    assert (second.side, second.price, second.trade_id) == ("bid", D("25.11"), 2)
    assert first.ts_recv_ns == NOW and first.ts_event_ns == 1_700_000_000_000_000_000
    assert first.position < quote.position < second.position


def test_a_batch_is_a_view_with_scales_for_columns(spot):
    directory, publisher, venue = spot
    with attach(directory) as feed:
        send(publisher, venue, *(trade(n, b"%d.25" % n) for n in range(1, 6)))
        batch = feed.poll(timeout=1)
        trades = batch.records[batch.kind == 1]
        assert not batch.records.flags.owndata and not batch.records.flags.writeable
        assert (trades["price"] * feed.price_scale[trades["instrument"]]).tolist() == [1.25, 2.25, 3.25, 4.25, 5.25]
        assert batch.lost == 0 and batch.valid() and batch.records.dtype == FULL_DTYPE
        with pytest.raises(AttributeError, match="no field 'prices'"):
            batch.prices
        assert len(feed.poll()) == 0


def test_continuations_belong_to_their_record(spot):
    directory, publisher, venue = spot
    publisher.add_stream(venue, 3, "candle")
    kline = (b'{"stream":"btcusdt@kline_1m","data":{"e":"kline","E":1700000000001,"s":"BTCUSDT","k":{"t":1699999980000,"T":1700000039999,'
             b'"s":"BTCUSDT","i":"1m","f":1,"L":9,"o":"25.01","c":"25.04","h":"25.05","l":"25.00","v":"12.5","n":9,"x":false,"q":"313.25",'
             b'"V":"6","Q":"150.2","B":"0"}}}')
    with attach(directory) as feed:
        send(publisher, venue, kline, trade(1))
        candle, last = market_records(feed)
    assert (candle.open, candle.high, candle.low, candle.close) == (D("25.01"), D("25.05"), D("25.00"), D("25.04"))
    assert (candle.volume, candle.start_ns, candle.count, candle.interval_s) == (D("12.5"), 1_699_999_980_000_000_000, 9, 60)
    assert candle.quote_volume == 313.25 and candle.closed is False
    assert last.kind == "trade"


def test_last_values_are_there_for_a_late_reader(spot):
    directory, publisher, venue = spot
    send(publisher, venue, trade(1), QUOTE % (7, b"25.09", b"1.5", b"25.11", b"2"))
    with attach(directory) as feed:
        btc = feed.instrument("binance-spot", "BTC-USDT")
        quote = feed.quote(btc)
        assert (quote.bid_price, quote.ask_size, quote.trade_price) == (D("25.09"), D("2"), D("25.10"))
        assert market_records(feed, timeout=0.05) == []
        assert feed.book(btc) is None and feed.quote(5) is None


def test_an_exponent_that_changes_keeps_every_price_exact(spot):
    directory, publisher, venue = spot
    with attach(directory) as iterating, attach(directory) as batching:
        send(publisher, venue, trade(1, b"25.10"), trade(2, b"25.1234"), trade(3, b"25.10"))
        prices = [record.price for record in market_records(iterating) if record.kind == "trade"]
        assert prices == [D("25.10"), D("25.1234"), D("25.10")]
        scaled = []
        while len(batch := batching.poll(timeout=0.05)):
            rows = batch.records[batch.kind == 1]
            scaled += (rows["price"] * batching.price_scale[rows["instrument"]]).tolist()
        assert scaled == pytest.approx([25.10, 25.1234, 25.10])


@pytest.mark.parametrize("batches", [False, True])
def test_a_lapped_reader_is_told_exactly_how_many_records_it_lost(spot, batches):
    directory, publisher, venue = spot
    with attach(directory) as feed:
        begin = publisher.position
        for n in range(9000):
            assert publisher.feed(venue, 0, trade(n + 1), NOW) == 1
        publisher.turn()
        received = 0
        if batches:
            while len(batch := feed.poll()) or batch.lost:
                received += len(batch)
        else:
            received = len(list(feed.records(timeout=0.05)))
        assert received > 2000 and feed.lost > 0
        assert received + feed.lost == publisher.position - begin


def test_a_lapped_reader_knows_the_exponents_of_what_is_left(spot):
    directory, publisher, venue = spot
    with attach(directory) as feed:
        for n in range(6000):
            publisher.feed(venue, 0, trade(n + 1), NOW)
        publisher.feed(venue, 0, trade(7000, b"25.1234"), NOW)
        publisher.turn()
        prices = {record.price for record in market_records(feed) if record.kind == "trade"}
    assert prices == {D("25.10"), D("25.1234")}


def test_rebase_goes_on_from_the_last_values(spot):
    directory, publisher, venue = spot
    with attach(directory) as feed:
        send(publisher, venue, *(trade(n) for n in range(1, 101)))
        assert feed.lag >= 100
        assert feed.rebase() >= 100 and feed.lag == 0
        assert feed.quote(3).trade_id == 100
        send(publisher, venue, trade(101))
        assert [record.trade_id for record in market_records(feed)] == [101]


@pytest.mark.parametrize("spin", [False, True])
def test_a_waiting_reader_is_woken(spot, spin):
    directory, publisher, venue = spot
    with attach(directory, spin=spin) as feed:
        timer = threading.Timer(0.1, send, (publisher, venue, trade(1)))
        timer.start()
        record = next(record for record in feed.records(timeout=10) if record.kind == "trade")
        timer.join()
    assert record.trade_id == 1


def test_several_rings_are_merged_and_each_keeps_its_order():
    with market_place.place(workers=3) as (directory, instruments, publishers):
        venue = venues.load("binance-spot", market_place.ROW_MAX)
        for n, publisher in enumerate(publishers):
            instruments.put(n, "binance-spot", f"S{n}USDT", f"S{n}-USDT", -2, -3, owner=n)
            venue.add_instrument(n, f"S{n}USDT", -2, -3)
            publisher.add_stream(venue, n, "trade")
        with attach(directory) as feed:
            for number in range(1, 200):
                for n, publisher in enumerate(publishers):
                    publisher.feed(venue, 0, trade(number).replace(b"BTCUSDT", b"S%dUSDT" % n), NOW)
            for publisher in publishers:
                publisher.turn()
            seen = {n: [] for n in range(3)}
            for record in market_records(feed):
                assert record.ring == record.instrument
                seen[record.instrument].append(record.trade_id)
        assert all(ids == list(range(1, 200)) for ids in seen.values())


def test_wrong_names_say_what_is_near(spot):
    directory, _, _ = spot
    with attach(directory) as feed:
        with pytest.raises(LookupError, match="near: BTC-USDT"):
            feed.instrument("binance-spot", "BTC-USD")
        with pytest.raises(LookupError, match="did you mean 'binance-spot'"):
            feed.instrument("binance-spt", "BTC-USDT")
        with pytest.raises(LookupError, match="no instrument with id 64"):
            feed.quote(64)
        feed.close()
        with pytest.raises(feedhandler.FeedError, match="closed"):
            feed.poll()


def test_attach_says_what_is_missing():
    with pytest.raises(feedhandler.FeedError, match="instance 'nobody'.*is it running"):
        feedhandler.attach("nobody")
    with pytest.raises(ValueError, match="instance name '../etc' is not usable"):
        feedhandler.attach("../etc")


def test_readers_shows_who_is_attached(spot):
    from feedhandler.reader import readers
    directory, publisher, venue = spot
    with attach(directory, reader_name="strategy-7") as feed:
        send(publisher, venue, trade(1), trade(2))
        market_records(feed, timeout=0.05)
        send(publisher, venue, trade(3))
        (shown,) = readers("test", directory=directory)
        assert shown["name"] == "strategy-7" and shown["pid"] == os.getpid() and shown["alive"]
        assert shown["lag"] >= 1 and shown["lost"] == 0
    assert readers("test", directory=directory) == []


def test_ctrl_c_ends_a_blocked_reader(spot):
    directory, _, _ = spot
    program = textwrap.dedent(f"""
        import feedhandler
        feed = feedhandler.attach("test", directory={directory!r})
        try:
            print("ready", flush=True)
            for record in feed:
                pass
        except KeyboardInterrupt:
            print("interrupted", flush=True)
    """)
    child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "ready\n"
    child.send_signal(signal.SIGINT)
    assert child.communicate(timeout=10)[0] == "interrupted\n" and child.returncode == 0


def test_the_reader_imports_neither_asyncio_nor_picows():
    program = "import sys, feedhandler.reader; print(sorted({'asyncio', 'picows', 'uvloop', 'click', 'pydantic', 'aiohttp'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_views_outlive_the_feed(spot):
    directory, publisher, venue = spot
    feed = attach(directory)
    send(publisher, venue, trade(1, b"31.25"))
    rows = feed.poll(timeout=1).records
    feed.close()
    del feed
    assert rows["price"][rows["kind"] == 1].tolist() == [3125]


def test_a_silent_worker_is_said_by_the_reader_itself(spot):
    directory, publisher, _ = spot
    publisher.turn()
    with attach(directory) as feed:
        begin = time.monotonic()
        record = next(r for r in feed.records(timeout=10) if r.kind == "status" and r.code == "WORKER_SILENT")
        assert time.monotonic() - begin < 5 and record.ring == 0
        publisher.turn()
        assert next(r for r in feed.records(timeout=10) if r.kind == "status" and r.code == "LIVE").ring == 0


def test_a_writer_that_died_after_changing_an_exponent_is_followed_exactly():
    with market_place.place(workers=0) as (directory, instruments, _):
        instruments.put(3, "binance-spot", "BTCUSDT", "BTC-USDT", -2, -3)
        program = textwrap.dedent(f"""
            import os, sys
            from feedhandler import venues
            from feedhandler.worker.publisher import Publisher
            publisher = Publisher(os.open({directory!r}, os.O_RDONLY), 0, 4096, {market_place.ROW_MAX}, 100)
            venue = venues.load("binance-spot", {market_place.ROW_MAX})
            venue.add_instrument(3, "BTCUSDT", -2, -3)
            publisher.add_stream(venue, 3, "trade")
            publisher.turn()
            print("created", flush=True)
            sys.stdin.readline()
            publisher.feed(venue, 0, {trade(1)!r}, {NOW})
            publisher.turn()
            publisher.feed(venue, 0, {trade(2, b"25.1234")!r}, {NOW})
            os._exit(9)     # died with the change committed, neither rows nor head written
        """)
        child = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert child.stdout.readline() == "created\n"
        with attach(directory) as feed:
            child.communicate("go\n", timeout=20)
            successor, venue = market_place.resume(directory, 0), venues.load("binance-spot", market_place.ROW_MAX)
            try:
                venue.add_instrument(3, "BTCUSDT", -2, -3)     # what the plan still says
                successor.add_stream(venue, 3, "trade")
                send(successor, venue, trade(3, b"25.30"))
                prices = [record.price for record in market_records(feed) if record.kind == "trade"]
                assert prices == [D("25.10"), D("25.1234"), D("25.30")]
                assert feed.quote(3).trade_price == D("25.30")
            finally:
                successor.close()


def test_asyncio_gets_batches_without_blocking_its_loop(spot):
    import asyncio
    from feedhandler import aio
    directory, publisher, venue = spot

    async def main(feed):
        turns = 0

        async def count():
            nonlocal turns
            while True:
                await asyncio.sleep(0.005)
                turns += 1
        counting = asyncio.create_task(count())
        asyncio.get_running_loop().call_later(0.2, send, publisher, venue, trade(1))
        async for batch in aio.batches(feed):
            if 1 in batch.kind:
                counting.cancel()
                return turns, batch.trade_id[batch.kind == 1].tolist()

    with attach(directory) as feed:
        turns, trade_ids = asyncio.run(main(feed))
    assert trade_ids == [1] and turns >= 4
