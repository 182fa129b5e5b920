"""Every limit of the simulated venues is counted, and broken it brings the venue's own punishment."""
import asyncio
import json

import picows
import pytest
from feedhandler.simulate import limits
from feedhandler.simulate.server import running
from simulate_client import connect, get, run


async def refused(simulator, venue, endpoint=None):
    """The HTTP status and headers of a refused WebSocket upgrade."""
    with pytest.raises(picows.WSHandshakeError) as failure:
        await connect(simulator, venue, endpoint)
    response = failure.value.response
    return int(response.status), response.headers


def ping_id(number):
    return {"method": "LIST_SUBSCRIPTIONS", "id": number}


def test_a_rolling_window_counts_the_second_behind_now_not_the_calendar_second():
    window = limits.Window(limits.Meter("m", 5), 1.0)
    assert all(window.hit(0.9 + 0.01 * number) for number in range(5))
    assert not window.hit(1.1)
    assert window.hit(2.2) and window.meter.used_max == 6 and window.meter.violations == 1


def test_credits_refill_at_their_rate_and_a_refused_call_takes_none():
    credits = limits.Credits(limits.Meter("m", 30_000), 10_000)
    assert all(credits.spend(0.0, 3_000) for _ in range(10))
    assert not credits.spend(0.29, 3_000) and credits.spend(0.3, 3_000)


def test_five_messages_in_a_second_are_fine_and_the_sixth_closes_1008():
    async def main():
        async with running(venues=("binance-spot",), rate=1) as simulator:
            client = await connect(simulator, "binance-spot")
            for number in range(5):
                client.send(ping_id(number))
            await client.count(5)
            assert not client.closed
            client.send(ping_id(5))
            assert await client.gone() == (1008, b"Too many requests")
            meter = json.loads((await get(simulator, None, "/usage"))[2])["binance-spot: client messages per s and connection"]
            assert meter["limit"] == 5 and meter["used_max"] == 6 and meter["violations"] == 1 and meter["ratio"] == 1.2
    run(main())


def test_pongs_count_against_the_five_a_second():
    async def main():
        async with running(venues=("binance-spot",), rate=1) as simulator:
            client = await connect(simulator, "binance-spot")
            for _ in range(5):
                client.transport.send_pong(b"")
            client.send(ping_id(1))
            assert (await client.gone())[0] == 1008
    run(main())


def test_who_breaks_the_message_limit_again_and_again_is_banned_and_let_in_later():
    async def main():
        async with running(venues=("binance-spot",), rate=1, time_scale=0.004) as simulator:    # 120 s become 0.48 s
            for _ in range(3):
                client = await connect(simulator, "binance-spot")
                for number in range(6):
                    client.send(ping_id(number))
                await client.gone()
            status, headers = await refused(simulator, "binance-spot")
            assert status == 418 and int(headers["Retry-After"]) >= 1
            assert (await get(simulator, "binance-spot", "/api/v3/ping"))[0] == 418
            assert simulator.report()["bans"]["binance-spot"]["attempts_inside"] == 2
            await asyncio.sleep(max(0, simulator.sides["binance-spot"].ban.until - simulator.clock()))
            await connect(simulator, "binance-spot")
    run(main())


def test_usdm_allows_ten_messages_a_second():
    async def main():
        async with running(venues=("binance-usdm",), rate=1) as simulator:
            client = await connect(simulator, "binance-usdm", "usdm.market")
            for number in range(10):
                client.send(ping_id(number))
            await client.count(10)
            client.send(ping_id(10))
            assert (await client.gone())[0] == 1008
    run(main())


def test_the_1025th_stream_closes_the_connection():
    async def main():
        async with running(venues=("binance-spot",), rate=1) as simulator:
            client = await connect(simulator, "binance-spot")
            client.send({"method": "SUBSCRIBE", "params": [f"s{number}@trade" for number in range(1024)], "id": 1})
            await client.text(b'"id":1')
            client.send({"method": "SUBSCRIBE", "params": ["one@trade"], "id": 2})
            assert (await client.gone())[0] == 1008
    run(main())


def test_connection_attempts_above_300_in_five_minutes_are_refused():
    async def main():
        async with running(venues=("binance-spot",), rate=1, tls=False) as simulator:
            side = simulator.sides["binance-spot"]
            for _ in range(299):
                side.attempts.hit(simulator.clock())
            await connect(simulator, "binance-spot")
            status, headers = await refused(simulator, "binance-spot")
            assert status == 429 and 200 <= int(headers["Retry-After"]) <= 301
    run(main())


def test_rest_weight_brings_429_then_418():
    async def main():
        async with running(venues=("binance-spot",), rate=1, snapshot_delay_s=0) as simulator:
            path = "/api/v3/depth?symbol=BTCUSDT&limit=5000"
            answers = [(await get(simulator, "binance-spot", path)) for _ in range(28)]
            statuses = [answer[0] for answer in answers]
            assert statuses == [200] * 24 + [429] * 3 + [418]       # 24 x 250 = 6,000
            assert answers[23][1]["X-MBX-USED-WEIGHT-1M"] == "6000" and int(answers[24][1]["Retry-After"]) > 50
    run(main())


@pytest.mark.parametrize("venue,path,limit,weight", [("binance-spot", "/api/v3", 100, 5), ("binance-spot", "/api/v3", 101, 25), ("binance-spot", "/api/v3", 1000, 50),
                                                     ("binance-usdm", "/fapi/v1", 1000, 20), ("binance-coinm", "/dapi/v1", 50, 2)])
def test_a_depth_request_costs_what_its_limit_says(venue, path, limit, weight):
    async def main():
        async with running(venues=(venue,), rate=1, snapshot_delay_s=0) as simulator:
            symbol = next(iter(simulator.sides[venue].instruments))
            assert (await get(simulator, venue, f"{path}/depth?symbol={symbol}&limit={limit}"))[1]["X-MBX-USED-WEIGHT-1M"] == str(weight)
            assert (await get(simulator, venue, f"{path}/depth?symbol=NOPE"))[0] == 400
    run(main())


def test_a_pong_must_echo_the_payload_or_the_connection_closes():
    async def main():
        async with running(venues=("binance-spot",), rate=1, ping_every_s=0.3, time_scale=0.01) as simulator:   # pong within 0.6 s
            good, wrong = await connect(simulator, "binance-spot"), await connect(simulator, "binance-spot", auto_pong=False)
            await wrong.until(lambda: wrong.pings)
            wrong.transport.send_pong(b"not the payload")
            assert await wrong.gone() == (1008, b"Pong timeout")
            await good.until(lambda: len(good.pings) >= 3)
            assert not good.closed
    run(main())


def test_okx_refuses_the_fourth_connection_in_a_second():
    async def main():
        async with running(venues=("okx",), rate=1) as simulator:
            for _ in range(3):
                await connect(simulator, "okx", "public")
            assert (await refused(simulator, "okx", "public"))[0] == 429
    run(main())


def test_okx_answers_the_481st_operation_of_an_hour_with_60014():
    async def main():
        async with running(venues=("okx",), rate=1) as simulator:
            client = await connect(simulator, "okx", "public")
            for number in range(240):
                for op in ("subscribe", "unsubscribe"):
                    client.send({"op": op, "args": [{"channel": "trades", "instId": "BTC-USDT-SWAP"}]})
            await client.count(480)
            assert not any(b"60014" in frame for frame in client.frames)
            client.send({"op": "subscribe", "args": [{"channel": "trades", "instId": "BTC-USDT-SWAP"}]})
            await client.text(b'"code":"60014"')
    run(main())


def test_okx_names_what_is_wrong_with_a_request():
    async def main():
        async with running(venues=("okx",), rate=1) as simulator:
            client = await connect(simulator, "okx", "public")
            for message, code in ((b"{", b"60012"), ({"op": "subscribe", "argss": []}, b"60012"), ({"op": "jump", "args": [{}]}, b"60019"),
                                  ({"op": "subscribe", "args": [{"channel": "candle1m", "instId": "BTC-USDT-SWAP"}]}, b"60018"),
                                  ({"op": "subscribe", "args": [{"channel": "books-l2-tbt", "instId": "BTC-USDT-SWAP"}]}, b"60011"),
                                  ({"op": "subscribe", "args": [{"channel": "books", "instId": "NO-PE"}]}, b"60018")):
                start = len(client.frames)
                client.send(message)
                await client.text(b'"code":"' + code, start)
            client.send({"op": "subscribe", "args": [{"channel": "trades", "instId": "X" * 70_000}]})
            assert (await client.gone())[0] == 1009
    run(main())


def test_okx_closes_a_silent_connection_with_4004_and_keeps_one_that_pings():
    async def main():
        async with running(venues=("okx",), rate=1, time_scale=0.02) as simulator:      # 30 s become 0.6 s
            silent, alive = await connect(simulator, "okx", "public"), await connect(simulator, "okx", "public")
            while not silent.closed:
                alive.send(b"ping")
                await asyncio.sleep(0.1)
            assert silent.closed == (4004, b"No data received in 30s") and not alive.closed
    run(main())


def test_okx_sends_a_keepalive_with_equal_ids_for_a_quiet_book():
    async def main():
        async with running(venues=("okx",), rate=100, time_scale=0.02) as simulator:    # after 1.2 s
            client = await connect(simulator, "okx", "public")
            client.send({"op": "subscribe", "args": [{"channel": "books", "instId": "BTC-USDT-SWAP"}]})
            await client.count(5)
            simulator.held_sending = True
            async def ping():
                while True:
                    client.send(b"ping")
                    await asyncio.sleep(0.2)
            task = asyncio.create_task(ping())
            row = json.loads(await client.text(b'"asks":[],"bids":[]'))["data"][0]
            task.cancel()
            last = [json.loads(frame) for frame in client.frames if b'"seqId"' in frame][-2]["data"][0]
            assert row["prevSeqId"] == row["seqId"] == last["seqId"]
    run(main())


def test_kraken_bans_after_150_attempts_in_ten_minutes():
    async def main():
        async with running(venues=("kraken",), rate=1, time_scale=0.001) as simulator:    # the ban of 600 s becomes 0.6 s
            side = simulator.sides["kraken"]
            for _ in range(149):
                side.attempts.hit(simulator.clock())
            await connect(simulator, "kraken")
            assert (await refused(simulator, "kraken"))[0] == 429
            assert simulator.report()["bans"]["kraken"]["count"] == 1
    run(main())


def test_kraken_beats_once_an_idle_second_and_answers_pings():
    async def main():
        async with running(venues=("kraken",), rate=50) as simulator:
            client = await connect(simulator, "kraken")
            client.send({"method": "subscribe", "params": {"channel": "trade", "symbol": ["BTC/USD"]}})
            await client.text(b'"success":true')
            simulator.held_sending = True
            await client.text(b'{"channel":"heartbeat"}')
            client.send({"method": "ping", "req_id": 101})
            assert json.loads(await client.text(b'"pong"'))["req_id"] == 101
    run(main())


def test_deribit_refuses_the_33rd_connection_and_takes_one_when_another_leaves():
    async def main():
        async with running(venues=("deribit",), rate=1, tls=False) as simulator:
            clients = [await connect(simulator, "deribit") for _ in range(32)]
            assert (await refused(simulator, "deribit"))[0] == 429
            assert (await get(simulator, "deribit", "/api/v2/public/get_instruments"))[0] == 429
            clients[0].transport.disconnect()
            while simulator.sides["deribit"].open.open == 32:
                await asyncio.sleep(0.01)
            await connect(simulator, "deribit")
    run(main())


def test_deribit_answers_the_eleventh_quick_subscribe_with_10028():
    async def main():
        async with running(venues=("deribit",), rate=1) as simulator:
            client = await connect(simulator, "deribit")
            for number in range(12):
                client.send({"jsonrpc": "2.0", "id": number, "method": "public/subscribe", "params": {"channels": ["quote.BTC-PERPETUAL"]}})
            error = json.loads(await client.text(b"10028"))
            assert error["id"] >= 10 and error["error"]["message"] == "too_many_requests"
    run(main())


def test_deribit_closes_4000_when_a_test_request_stays_unanswered():
    async def main():
        async with running(venues=("deribit",), rate=1, time_scale=0.05) as simulator:      # 12 s become 0.6 s
            deaf, alive = await connect(simulator, "deribit"), await connect(simulator, "deribit")
            for client in (deaf, alive):
                client.send({"jsonrpc": "2.0", "id": 1, "method": "public/set_heartbeat", "params": {"interval": 10}})
                await client.text(b'"result":"ok"')
            seen = 0
            while not deaf.closed:
                await alive.until(lambda: deaf.closed or len(alive.frames) > seen, 5)
                answers = [frame for frame in alive.frames[seen:] if b"test_request" in frame]
                seen = len(alive.frames)
                for _ in answers:
                    alive.send({"jsonrpc": "2.0", "id": 0, "method": "public/test", "params": {}})
                await asyncio.sleep(0.02)
            assert deaf.closed == (4000, b"heartbeat close") and not alive.closed
    run(main())


def test_deribit_leaves_unknown_channels_out_and_refuses_raw_and_short_heartbeats():
    async def main():
        async with running(venues=("deribit",), rate=1) as simulator:
            client = await connect(simulator, "deribit")
            def call(number, method, params):
                client.send({"jsonrpc": "2.0", "id": number, "method": method, "params": params})
            call(1, "public/subscribe", {"channels": ["book.NOPE.100ms"]})
            assert json.loads(await client.text(b'"id":1,'))["result"] == []
            call(2, "public/subscribe", {"channels": ["book.BTC-PERPETUAL.raw"]})
            assert json.loads(await client.text(b'"id":2,'))["error"]["code"] == 13778
            call(3, "public/set_heartbeat", {"interval": 9})
            assert "error" in json.loads(await client.text(b'"id":3,'))
            call(4, "public/nothing", {})
            assert json.loads(await client.text(b'"id":4,'))["error"]["code"] == -32601
            client.send(b"no json")
            await client.text(b"11050")
    run(main())


@pytest.mark.parametrize("venue,notice", [("binance-spot", b"serverShutdown"), ("okx", b"64008"), ("deribit", b'"maintenance":true'), ("kraken", b"maintenance")])
def test_a_connection_is_announced_its_end_and_then_cut(venue, notice):
    async def main():
        async with running(venues=(venue,), rate=1, lifetime_s=0.6, notice_s=0.3) as simulator:
            client = await connect(simulator, venue)
            await client.text(notice)
            assert not client.closed
            assert (await client.gone())[0] == 1001
    run(main())


@pytest.mark.parametrize("venue,subscribe,punishment", [
    ("okx", {"op": "subscribe", "args": [{"channel": "books", "instId": "BTC-USDT-SWAP"}]}, "4005 Buffer is full, cannot write data"),
    ("deribit", {"jsonrpc": "2.0", "id": 1, "method": "public/subscribe", "params": {"channels": ["book.BTC-PERPETUAL.100ms"]}}, "connection_too_slow")])
def test_a_client_that_does_not_read_is_thrown_out(venue, subscribe, punishment):
    async def main():
        async with running(venues=(venue,), instruments=1, rate=30_000, backlog_max=200_000, tls=False) as simulator:
            client = await connect(simulator, venue)
            client.send(subscribe)
            await client.count(3)
            client.transport.underlying_transport.pause_reading()
            while not any(punishment in text for text in simulator.closes):
                await asyncio.sleep(0.02)
            client.transport.underlying_transport.abort()
    run(main())


def test_limits_are_only_counted_when_they_are_not_enforced():
    async def main():
        async with running(venues=("binance-spot",), rate=1, enforce=False) as simulator:
            client = await connect(simulator, "binance-spot")
            for number in range(20):
                client.send(ping_id(number))
            await client.count(20)
            assert simulator.usage.document()["binance-spot: client messages per s and connection"]["ratio"] == 4.0
    run(main())
