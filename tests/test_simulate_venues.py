"""Each simulated venue, driven by a raw client: what it sends must rebuild to what its oracle says."""
import asyncio
import json
import ssl

import picows
import pytest
from feedhandler.simulate.server import running
from simulate_client import TestBook, connect, get, hold, loads, quote_line, run, same_lines, trade_line, trust

RATE = 3000
FRAMES = 700


async def collect(simulator, client, frames=FRAMES):
    await client.count(len(client.frames) + frames)
    await hold(simulator, client)
    return [loads(frame) for frame in client.frames]


async def rest_book(simulator, venue, path, symbol, futures):
    """Subscribe, seed from REST, follow the venue's chain rule; returns book, trades, quotes."""
    client = await connect(simulator, venue, tail="?streams=" + "/".join(f"{symbol.lower()}@{name}" for name in ("depth@100ms", "trade", "bookTicker")))
    await client.count(20)
    status, _, body = await get(simulator, venue, f"{path}/depth?symbol={symbol}&limit=1000")
    assert status == 200
    snapshot = json.loads(body)
    frames = await collect(simulator, client)
    book, last, chained = TestBook(), snapshot["lastUpdateId"], False
    book.apply(snapshot["bids"], snapshot["asks"])
    book.step()
    trades, quotes, previous_u = [], [], None
    for frame in frames:
        data = frame["data"]
        assert data["s"] == symbol and frame["stream"].startswith(symbol.lower() + "@")
        if data.get("e") == "trade":
            trades.append(trade_line(data["p"], data["q"], not data["m"]))
        elif data.get("e") == "depthUpdate":
            first, final = int(data["U"]), int(data["u"])
            assert previous_u is None or (int(data["pu"]) if futures else first - 1) == previous_u
            previous_u = final
            if final < last or not futures and final == last:
                continue
            if not chained:
                assert (first <= last <= final or int(data["pu"]) <= last <= final) if futures else first <= last + 1 <= final
            if futures and final == last:
                continue
            chained = True
            book.apply(data["b"], data["a"])
            book.step()
        else:
            quotes.append(quote_line(data["b"], data["B"], data["a"], data["A"]))
    assert chained
    return book, trades, quotes


@pytest.mark.parametrize("venue,path,symbol,futures", [("binance-spot", "/api/v3", "BTCUSDT", False), ("binance-usdm", "/fapi/v1", "ETHUSDT", True),
                                                       ("binance-coinm", "/dapi/v1", "BTCUSD_PERP", True)])
def test_a_book_seeded_from_rest_equals_the_oracle(venue, path, symbol, futures):
    async def main():
        async with running(venues=(venue,), instruments=3, rate=RATE, snapshot_pause_s=0.1) as simulator:
            book, trades, quotes = await rest_book(simulator, venue, path, symbol, futures)
            document = simulator.documents()[venue]
            book.same_as(document["books"][symbol])
            same_lines(trades, document["trades"][symbol])
            same_lines(quotes, document["bbo"][symbol])
            assert len(trades) > 20 and len(quotes) > 100
    run(main())


@pytest.mark.parametrize("served", [1, 2])
def test_a_snapshot_inside_an_event_still_joins_the_chain(served):
    """Every other snapshot has part of the next event in it: U <= L < u must still give the right book."""
    async def main():
        async with running(venues=("binance-spot",), instruments=1, rate=RATE, snapshot_delay_s=0.01) as simulator:
            for _ in range(served - 1):
                await get(simulator, "binance-spot", "/api/v3/depth?symbol=BTCUSDT&limit=100")
            book, _, _ = await rest_book(simulator, "binance-spot", "/api/v3", "BTCUSDT", False)
            book.same_as(simulator.documents()["binance-spot"]["books"]["BTCUSDT"], l1=False)
    run(main())


def test_okx_books_trades_and_quotes_equal_the_oracle():
    async def main():
        async with running(venues=("okx",), instruments=3, rate=RATE) as simulator:
            client = await connect(simulator, "okx", "public")
            symbol = "BTC-USDT-SWAP"
            client.send({"id": "7", "op": "subscribe", "args": [{"channel": name, "instId": symbol} for name in ("books", "trades", "bbo-tbt", "nothing")]})
            frames = await collect(simulator, client)
            book, trades, quotes, last = TestBook(), [], [], None
            acks = [frame for frame in frames if "event" in frame]
            assert [ack["event"] for ack in acks] == ["subscribe"] * 3 + ["error"] and acks[3]["code"] == "60018" and acks[0]["id"] == "7"
            for frame in (frame for frame in frames if "data" in frame):
                row, channel = frame["data"][0], frame["arg"]["channel"]
                if channel == "books":
                    assert int(row["prevSeqId"]) == (-1 if frame["action"] == "snapshot" else last) and row["checksum"] == "0"
                    last = int(row["seqId"])
                    book.apply([level[:2] for level in row["bids"]], [level[:2] for level in row["asks"]])
                    book.step()
                elif channel == "trades":
                    trades.append(trade_line(row["px"], row["sz"], row["side"] == "buy"))
                else:
                    quotes.append(quote_line(*row["bids"][0][:2], *row["asks"][0][:2]))
            document = simulator.documents()["okx"]
            book.same_as(document["books"][symbol])
            same_lines(trades, document["trades"][symbol])
            same_lines(quotes, document["bbo"][symbol])
    run(main())


@pytest.mark.parametrize("depth", [10, 25])
def test_kraken_windows_and_checksums_hold_at_every_message(depth):
    async def main():
        async with running(venues=("kraken",), instruments=2, rate=RATE) as simulator:
            client = await connect(simulator, "kraken")
            for params in ({"channel": "book", "depth": depth}, {"channel": "trade"}, {"channel": "ticker", "event_trigger": "bbo"}):
                client.send({"method": "subscribe", "params": {"symbol": ["BTC/USD", "NO/PE"], **params}, "req_id": 5})
            frames = await collect(simulator, client)
            book, trades, quotes, checked = TestBook(depth), [], [], 0
            assert frames[0]["channel"] == "status" and int(frames[0]["data"][0]["connection_id"]) > 2 ** 63
            refused = [frame for frame in frames if frame.get("success") is False]
            assert [frame["error"] for frame in refused] == ["Currency pair not supported NO/PE"] * 3
            for frame in (frame for frame in frames if frame.get("channel") in ("book", "trade", "ticker")):
                row = frame["data"][0]
                if frame["channel"] == "book":
                    book.apply(*[[(level["price"], level["qty"]) for level in row[side]] for side in ("bids", "asks")])
                    assert book.crc() == int(row["checksum"])
                    checked += 1
                    book.step()
                elif frame["channel"] == "trade":
                    trades += [trade_line(row["price"], row["qty"], row["side"] == "buy") for row in frame["data"]]
                else:
                    quotes.append(quote_line(row["bid"], row["bid_qty"], row["ask"], row["ask_qty"]))
            document = simulator.documents()["kraken"]
            book.same_as(document["books"]["BTC/USD"])
            same_lines(trades, document["trades"]["BTC/USD"])
            same_lines(quotes, document["bbo"]["BTC/USD"])
            assert checked > 200
    run(main())


def test_deribit_books_trades_and_quotes_equal_the_oracle():
    async def main():
        async with running(venues=("deribit",), instruments=5, rate=RATE) as simulator:
            client = await connect(simulator, "deribit")
            symbol = "BTC-PERPETUAL"
            names = [f"book.{symbol}.100ms", f"trades.{symbol}.100ms", f"quote.{symbol}", "book.NOTHING.100ms"]
            client.send({"jsonrpc": "2.0", "id": 3, "method": "public/subscribe", "params": {"channels": names}})
            frames = await collect(simulator, client)
            assert sorted(frames[0]["result"]) == sorted(names[:3])
            book, trades, quotes, last = TestBook(), [], [], None
            for frame in frames[1:]:
                channel, data = frame["params"]["channel"], frame["params"]["data"]
                if channel.startswith("book"):
                    assert data.get("prev_change_id") == last and (data["type"] == "snapshot") == (last is None)
                    last = data["change_id"]
                    book.apply(*[[row[1:] for row in data[side]] for side in ("bids", "asks")])
                    book.step()
                elif channel.startswith("trades"):
                    trades += [trade_line(row["price"], row["amount"], row["direction"] == "buy") for row in data]
                else:
                    quotes.append(quote_line(data["best_bid_price"], data["best_bid_amount"], data["best_ask_price"], data["best_ask_amount"]))
            document = simulator.documents()["deribit"]
            book.same_as(document["books"][symbol])
            same_lines(trades, document["trades"][symbol])
            same_lines(quotes, document["bbo"][symbol])
    run(main())


def test_usdm_acks_a_stream_of_the_other_route_and_stays_silent():
    async def main():
        async with running(venues=("binance-usdm",), instruments=1, rate=500) as simulator:
            client = await connect(simulator, "binance-usdm", "usdm.public")
            client.send({"method": "SUBSCRIBE", "params": ["btcusdt@aggTrade", "btcusdt@nothing"], "id": 9})
            assert await client.text(b'"id":9') == b'{"result":null,"id":9}'
            market = await connect(simulator, "binance-usdm", "usdm.market", "?streams=btcusdt@aggTrade/btcusdt@markPrice@1s")
            await market.text(b'"e":"aggTrade"')
            await market.text(b'"e":"markPriceUpdate"')
            assert len(client.frames) == 1
    run(main())


def test_unsubscribing_ends_a_stream_and_keeps_the_others():
    async def main():
        async with running(venues=("binance-spot",), instruments=2, rate=1000) as simulator:
            client = await connect(simulator, "binance-spot", tail="?streams=btcusdt@depth/ethusdt@depth")
            await client.count(10)
            client.send({"method": "UNSUBSCRIBE", "params": ["btcusdt@depth"], "id": 2})
            await client.text(b'"id":2')
            mark = next(index for index, frame in enumerate(client.frames) if b'"id":2' in frame)
            await client.count(mark + 50)
            assert all(b"ethusdt@depth" in frame for frame in client.frames[mark + 1:])
    run(main())


def test_raw_streams_come_without_the_combined_wrapper():
    async def main():
        async with running(venues=("binance-spot",), instruments=1, rate=500) as simulator:
            url = simulator.endpoints["binance-spot"]["urls"]["spot.json"].replace("/stream", "/ws/btcusdt@depth")
            from simulate_client import Client
            client = Client()
            await picows.ws_connect(lambda: client, url, ssl_context=trust(simulator))
            await client.count(20)
            assert all(json.loads(frame)["e"] == "depthUpdate" for frame in client.frames)
    run(main())


SLOW = [("binance-usdm", "usdm.market", {"method": "SUBSCRIBE", "id": 1, "params": ["btcusdt@markPrice@1s", "btcusdt@kline_1m", "btcusdt@ticker", "btcusdt@miniTicker"]},
         [b"markPriceUpdate", b'"e":"kline"', b"24hrTicker", b"24hrMiniTicker"]),
        ("binance-coinm", "coinm", {"method": "SUBSCRIBE", "id": 1, "params": ["btcusd@indexPrice@1s", "btcusd_perp@markPrice@1s"]},
         [b"indexPriceUpdate", b"markPriceUpdate"]),
        ("okx", "public", {"op": "subscribe", "args": [{"channel": name, "instId": "BTC-USDT-SWAP"} for name in ("tickers", "mark-price", "funding-rate", "open-interest")]
                           + [{"channel": "index-tickers", "instId": "BTC-USDT"}]}, [b"askPx", b"markPx", b"fundingRate", b'"oi"', b"idxPx"]),
        ("okx", "business", {"op": "subscribe", "args": [{"channel": "candle1m", "instId": "BTC-USDT-SWAP"}]}, [b'"data":[["']),
        ("kraken", "spot.v2", {"method": "subscribe", "params": {"channel": "ohlc", "symbol": ["BTC/USD"], "interval": 1}}, [b"interval_begin"]),
        ("kraken", "spot.v2", {"method": "subscribe", "params": {"channel": "instrument"}}, [b'"price_increment":0.1']),
        ("deribit", "v2", {"jsonrpc": "2.0", "id": 1, "method": "public/subscribe", "params": {"channels": ["ticker.BTC-25DEC26-42000-C.100ms",
         "ticker.BTC-PERPETUAL.100ms", "deribit_price_index.btc_usd", "perpetual.BTC-PERPETUAL.100ms"]}}, [b"greeks", b"funding_8h", b"index_name", b'"interest":'])]


@pytest.mark.parametrize("venue,endpoint,request_,needles", SLOW)
def test_slow_channels_speak_once_a_second_in_valid_json(venue, endpoint, request_, needles):
    async def main():
        async with running(venues=(venue,), instruments=5, rate=100) as simulator:
            client = await connect(simulator, venue, endpoint)
            client.send(request_)
            for needle in needles:
                json.loads(await client.text(needle))
    run(main())


def test_instrument_lists_name_every_instrument_with_its_tick():
    async def main():
        venues = ("binance-spot", "binance-usdm", "binance-coinm", "okx", "kraken", "deribit")
        async with running(venues=venues, instruments=6, rate=100) as simulator:
            spot = json.loads((await get(simulator, "binance-spot", "/api/v3/exchangeInfo"))[2])["symbols"]
            assert [row["symbol"] for row in spot][:2] == ["BTCUSDT", "ETHUSDT"]
            assert spot[0]["filters"][0]["tickSize"] == "0.01000000"
            for venue, path in (("binance-usdm", "/fapi/v1/exchangeInfo"), ("binance-coinm", "/dapi/v1/exchangeInfo")):
                assert len(json.loads((await get(simulator, venue, path))[2])["symbols"]) == 6
            swaps = json.loads((await get(simulator, "okx", "/api/v5/public/instruments?instType=SWAP"))[2])["data"]
            spots = json.loads((await get(simulator, "okx", "/api/v5/public/instruments?instType=SPOT"))[2])["data"]
            assert len(swaps) == 4 and len(spots) == 2 and swaps[0]["ctVal"] == "0.01" and spots[0]["ctVal"] == ""
            pairs = json.loads((await get(simulator, "kraken", "/0/public/AssetPairs"))[2])["result"]
            assert pairs["XBTUSD"]["wsname"] == "XBT/USD" and pairs["XBTUSD"]["pair_decimals"] == 1
            coins = json.loads((await get(simulator, "deribit", "/api/v2/public/get_instruments?currency=BTC&expired=false"))[2])["result"]
            assert {row["instrument_name"] for row in coins} == {"BTC-PERPETUAL", "BTC-25DEC26-42000-C"}
    run(main())


def test_the_same_seed_gives_the_same_market_and_another_seed_another():
    async def books(seed):
        async with running(venues=("binance-spot",), instruments=1, seed=seed, rate=1) as simulator:
            return (await get(simulator, "binance-spot", "/api/v3/depth?symbol=BTCUSDT&limit=1000"))[2]
    first, again, other = run(books(1)), run(books(1)), run(books(2))
    assert first == again != other


def test_only_who_knows_the_authority_trusts_the_venue():
    async def main():
        async with running(venues=("okx",)) as simulator:
            url = simulator.endpoints["okx"]["urls"]["public"]
            with pytest.raises(ssl.SSLCertVerificationError):
                await picows.ws_connect(picows.WSListener, url, ssl_context=ssl.create_default_context())
            with pytest.raises(ssl.SSLCertVerificationError):
                await picows.ws_connect(picows.WSListener, url, ssl_context=trust(simulator), server_hostname="www.okx.com")
            client = await connect(simulator, "okx", "public")
            client.send(b"ping")
            assert await client.text(b"pong") == b"pong"
    run(main())


def test_stopping_closes_clients_and_leaves_no_file_task_or_port():
    async def main():
        import os
        async with running(venues=("kraken",), instruments=2) as simulator:
            client = await connect(simulator, "kraken")
            client.send({"method": "subscribe", "params": {"channel": "book", "symbol": ["BTC/USD"]}})
            await client.count(20)
            directory, port = os.path.dirname(simulator.ca_file), simulator.port
        assert (await client.gone())[0] == 1001
        assert not os.path.exists(directory)
        with pytest.raises(OSError):
            await asyncio.open_connection("127.0.0.1", port)
        assert len(asyncio.all_tasks()) <= 2
    run(main())
