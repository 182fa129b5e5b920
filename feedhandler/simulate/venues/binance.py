"""What the three Binance venues share: stream names, control messages, ping, limits, REST weights.

Spot, USD-M and COIN-M differ in paths, fields and numbers; those are in the three files beside this one.
"""
import re
import time

from feedhandler.simulate.limits import Window
from feedhandler.simulate.market import ASK, BID, Instrument
from feedhandler.simulate.venues.side import (Candle, INTERVALS_MS, Reply, Side, Stream, compact, safe_json,
                                              split_symbol, windows)

BAN_AFTER_VIOLATIONS = 3        # "repeated offenders get an IP ban": how many is not published
VIOLATIONS_WINDOW_S = 300
STREAM_NAME = re.compile(r"([^@!]+)@([a-zA-Z]+?)(\d*)(?:_(\w+))?(?:@(\w+))?")
FAMILY = re.compile(rb'"stream":"([^"@]+)@([a-zA-Z]+)')


def levels_text(instrument, levels, side):
    return ",".join(f'["{instrument.price_text(price)}","{instrument.size_text(size)}"]'
                    for at, price, size in levels if at == side)


def names_only(params):
    return isinstance(params, list) and bool(params) and all(isinstance(name, str) for name in params)


def pairs_text(instrument, pairs):
    return ",".join(f'["{instrument.price_text(price)}","{instrument.size_text(size)}"]' for price, size in pairs)


class BinanceSide(Side):
    rest_book = True
    ping_s = 20
    pong_deadline_s = 60
    messages_per_s = 5
    weight_per_minute = 6000
    depth_weights = ((100, 5), (500, 25), (1000, 50), (5000, 250))
    info_weight = 20
    api = "/api/v3"
    derivative = False

    def __init__(self, simulator, options):
        super().__init__(simulator, options)
        self.attempts = Window(self.meter("connection attempts per 5 min", 300), 300)
        self.message_meter = self.meter("client messages per s and connection", self.messages_per_s)
        self.stream_meter = self.meter("streams per connection", 1024)
        self.weight = Window(self.meter("REST weight per min", self.weight_per_minute), 60)
        self.violations = Window(self.meter("message limit broken per 5 min", BAN_AFTER_VIOLATIONS - 1), VIOLATIONS_WINDOW_S)
        self.rest_overruns = 0

    # -- connection ------------------------------------------------------------------------------------------
    def admit(self, now):
        if self.ban.holds(now):
            return Reply(b"banned", 418, {"Retry-After": str(self.ban.retry_after(now))})
        if not self.attempts.hit(now):
            return Reply(b"too many connection attempts", 429, {"Retry-After": str(self.attempts.retry_after(now))})
        return None

    def connected(self, connection):
        now = connection.now()
        state = connection.state
        state["window"] = Window(self.message_meter, 1.0)
        state["combined"] = "/stream" in connection.path
        state["ping_next"] = now + self.options.ping_s(self.ping_s)
        state["pong_due"] = None
        path = connection.path.partition("/ws/")[2]
        names = connection.query.get("streams") or path
        connection.raw = not state["combined"]
        self.subscribe(connection, [name for name in names.split("/") if name])

    def received(self, connection, text):
        if not self.count(connection):
            return
        request = safe_json(text)
        if not isinstance(request, dict):
            connection.text(b'{"code":3,"msg":"Invalid JSON: expected value at line 1 column 1"}')
            return
        number = request.get("id")
        method, params = request.get("method"), request.get("params", [])
        if method in ("SUBSCRIBE", "UNSUBSCRIBE") and not names_only(params):
            connection.text(compact({"code": 2, "msg": "Invalid request: missing field `params`", "id": number}))
        elif method == "SUBSCRIBE":
            self.subscribe(connection, params, number, True)
        elif method == "UNSUBSCRIBE":
            connection.text(compact({"result": None, "id": number}))
            for name in params:
                connection.detach(name)
        elif method == "LIST_SUBSCRIPTIONS":
            connection.text(compact({"result": list(connection.names), "id": number}))
        elif method == "SET_PROPERTY" and isinstance(params, list) and len(params) == 2 and params[0] == "combined":
            connection.raw = not params[1]
            connection.text(compact({"result": None, "id": number}))
        else:
            connection.text(compact({"code": 2, "msg": f"Invalid request: unknown variant `{method}`", "id": number}))

    def subscribe(self, connection, names, number=None, ack=False):
        """Unknown streams and streams of another route are acked like any other, and stay silent."""
        if not self.stream_meter.note(len(connection.names | set(names))):
            connection.close(1008, "Too many streams")
            return
        streams = [self.stream(connection.endpoint, str(name)) for name in names]
        modes = [self.simulator.faults.subscribing(stream) for stream in streams]
        connection.names.update(map(str, names))
        if "reject" in modes:
            connection.text(compact({"code": 2, "msg": "Invalid request: rejected by the simulator", "id": number}))
            return
        if ack and "ack_lost" not in modes:
            connection.text(compact({"result": None, "id": number}))
        for stream, mode in zip(streams, modes):
            if stream is not None and mode != "silent":
                connection.attach(stream)

    def count(self, connection):
        """Charge one client message. Returns False when the connection was closed for it."""
        now = connection.now()
        if connection.state["window"].hit(now) or not self.options.enforce:
            return True
        connection.close(1008, "Too many requests")
        if not self.violations.hit(now):
            self.ban.start(now, self.options.ban(120))
        return False

    def control(self, connection, kind, payload):
        if self.count(connection) and kind == "pong" and payload == connection.state.get("ping_payload"):
            connection.state["pong_due"] = None

    def tick(self, connection, now):
        state = connection.state
        if state["pong_due"] is not None and now >= state["pong_due"]:
            connection.close(1008, "Pong timeout")
        elif now >= state["ping_next"]:
            state["ping_next"] = now + self.options.ping_s(self.ping_s)
            state["ping_payload"] = str(connection.wall_ms()).encode()
            if state["pong_due"] is None:
                state["pong_due"] = now + self.options.pong_deadline_s(self.pong_deadline_s)
            connection.ping(state["ping_payload"])

    def shutdown_notice(self, connection):
        body = b'{"e":"serverShutdown","E":%d}' % connection.wall_ms()
        connection.text(body if connection.raw else b'{"stream":"!serverShutdown","data":%b}' % body)

    # -- streams ---------------------------------------------------------------------------------------------
    def routed(self, endpoint, channel):
        return True

    def make_stream(self, endpoint, wire):
        match = STREAM_NAME.fullmatch(wire)
        if not match:
            return None
        symbol, channel, depth, interval, speed = match.groups()
        instrument = self.instruments.get(symbol.upper()) if symbol == symbol.lower() else None
        makers = {"depth": self.window if depth else self.depth, "trade": self.trade, "aggTrade": self.agg_trade,
                  "bookTicker": self.book_ticker, "kline": self.kline, "ticker": self.ticker,
                  "miniTicker": self.ticker, "markPrice": self.mark_price, "forceOrder": self.force_order,
                  "indexPrice": self.index_price}
        if instrument is None or channel not in makers or not self.routed(endpoint, channel):
            return None
        stream = Stream(endpoint, wire, channel, instrument, depth=int(depth or 0), family=(channel, symbol.upper()))
        stream.prefix_size = len(f'{{"stream":"{wire}","data":')
        if channel == "kline" and interval not in INTERVALS_MS:
            return None
        stream.render = makers[channel](stream, instrument, interval) if not self.simulator.playing else None
        return stream if stream.render or self.simulator.playing else None

    def wrapped(self, stream, body):
        """A template of the combined form; body holds the %d places."""
        return f'{{"stream":"{stream.wire}","data":{body}}}'.encode()

    def fields(self, instrument):
        """Fields every event of the venue carries behind its symbol."""
        return ""

    def depth(self, stream, instrument, interval):
        stream.channel = "book"
        parts = []
        for event in instrument.loop:
            body = (f'{{"e":"depthUpdate","E":%d,"s":"{instrument.symbol}","U":%d,"u":%d,'
                    f'"b":[{levels_text(instrument, event.levels, BID)}],"a":[{levels_text(instrument, event.levels, ASK)}]}}')
            parts.append((self.wrapped(stream, body), event.first, event.last))
        start, span = instrument.sequence_start, instrument.span

        def render(index, cycle, now_ms):
            template, first, last = parts[index]
            base = start + cycle * span
            return template % (now_ms, base + first, base + last)
        return render

    def window(self, stream, instrument, interval):
        stream.channel = "window"
        parts = []
        for event, bids, asks in windows(instrument, stream.depth):
            parts.append((self.wrapped(stream, f'{{"lastUpdateId":%d,"bids":[{pairs_text(instrument, bids)}],'
                                               f'"asks":[{pairs_text(instrument, asks)}]}}'), event.last))
        start, span = instrument.sequence_start, instrument.span

        def render(index, cycle, now_ms):
            template, last = parts[index]
            return template % (start + cycle * span + last)
        return render

    def trade_body(self, instrument, price, size, maker):
        return (f'{{"e":"trade","E":%d,"s":"{instrument.symbol}","t":%d,"p":"{price}","q":"{size}","T":%d,'
                f'"m":{maker},"M":true}}')

    def trade(self, stream, instrument, interval):
        return self.trades(stream, instrument, self.trade_body, 1)

    def agg_trade_body(self, instrument, price, size, maker):
        best = "" if self.derivative else ',"M":true'
        return (f'{{"e":"aggTrade","E":%d,"s":"{instrument.symbol}"{self.fields(instrument)},"a":%d,"p":"{price}","q":"{size}",'
                f'"f":%d,"l":%d,"T":%d,"m":{maker}{best}}}')

    def agg_trade(self, stream, instrument, interval):
        return self.trades(stream, instrument, self.agg_trade_body, 3)

    def trades(self, stream, instrument, body, ids):
        stream.channel = "trade" if ids == 1 else "agg_trade"
        parts = []
        for event in instrument.loop:
            if event.trade is None:
                parts.append(None)
                continue
            price, size, taker = event.trade
            text = body(instrument, instrument.price_text(price), instrument.size_text(size), "true" if taker == ASK else "false")
            parts.append((self.wrapped(stream, text), event.trades_before))
        start, count = instrument.trade_start, instrument.trades_per_loop

        def render(index, cycle, now_ms):
            part = parts[index]
            if part is None:
                return None
            number = start + cycle * count + part[1]
            return part[0] % ((now_ms, number, now_ms - 1) if ids == 1 else (now_ms, number, number, number, now_ms - 1))
        return render

    def book_ticker_body(self, instrument, bid, bid_size, ask, ask_size):
        return f'{{"u":%d,"s":"{instrument.symbol}","b":"{bid}","B":"{bid_size}","a":"{ask}","A":"{ask_size}"}}'

    def book_ticker(self, stream, instrument, interval):
        stream.channel = "quote"
        parts = []
        for event in instrument.loop:
            bid, bid_size, ask, ask_size = event.touch
            body = self.book_ticker_body(instrument, instrument.price_text(bid), instrument.size_text(bid_size),
                                         instrument.price_text(ask), instrument.size_text(ask_size))
            parts.append((self.wrapped(stream, body), event.last) if event.touch_moved else None)
        start, span, timed = instrument.sequence_start, instrument.span, self.derivative

        def render(index, cycle, now_ms):
            part = parts[index]
            if part is None:
                return None
            last = start + cycle * span + part[1]
            return part[0] % ((last, now_ms - 1, now_ms) if timed else last)
        return render

    def slow(self, stream, body):
        """A stream that follows the clock: body(position, second, now_ms) -> JSON text."""
        stream.slow = True

        def render(position, second, now_ms):
            text = body(position, second, now_ms)
            return text and f'{{"stream":"{stream.wire}","data":{text}}}'.encode()
        return render

    def kline(self, stream, instrument, interval):
        candle = Candle()

        def body(position, second, now_ms):
            c = candle.move(instrument.touch(position)[0], now_ms, INTERVALS_MS[interval])
            text = instrument.price_text
            return (f'{{"e":"kline","E":{now_ms},"s":"{instrument.symbol}","k":{{"t":{c.start_ms},"T":{c.start_ms + INTERVALS_MS[interval] - 1},'
                    f'"s":"{instrument.symbol}","i":"{interval}","f":{position},"L":{position + c.count},"o":"{text(c.open)}","c":"{text(c.close)}",'
                    f'"h":"{text(c.high)}","l":"{text(c.low)}","v":"{c.count}.5","n":{c.count},"x":false,"q":"{c.count * 3}.25","V":"{c.count}.0",'
                    f'"Q":"{c.count}.125","B":"0"}}}}')
        return self.slow(stream, body)

    def ticker(self, stream, instrument, interval):
        kind = "24hrTicker" if stream.channel == "ticker" else "24hrMiniTicker"

        def body(position, second, now_ms):
            bid, bid_size, ask, ask_size = instrument.touch(position)
            price, size = instrument.price_text, instrument.size_text
            if kind == "24hrMiniTicker":
                return (f'{{"e":"{kind}","E":{now_ms},"s":"{instrument.symbol}","c":"{price(bid)}","o":"{price(bid - 3)}","h":"{price(ask + 9)}",'
                        f'"l":"{price(bid - 9)}","v":"{position}.5","q":"{position * 2}.5"}}')
            quote = "" if self.derivative else f'"b":"{price(bid)}","B":"{size(bid_size)}","a":"{price(ask)}","A":"{size(ask_size)}",'
            return (f'{{"e":"{kind}","E":{now_ms},"s":"{instrument.symbol}","p":"0.3","P":"0.05","w":"{price(bid)}","c":"{price(bid)}","Q":"1",{quote}'
                    f'"o":"{price(bid - 3)}","h":"{price(ask + 9)}","l":"{price(bid - 9)}","v":"{position}.5","q":"{position * 2}.5",'
                    f'"O":{now_ms - 86_400_000},"C":{now_ms},"F":1,"L":{position},"n":{position}}}')
        return self.slow(stream, body)

    def mark_price(self, stream, instrument, interval):
        return None

    def force_order(self, stream, instrument, interval):
        return None

    def index_price(self, stream, instrument, interval):
        return None

    # -- REST ------------------------------------------------------------------------------------------------
    def rest(self, path, query, now):
        if self.ban.holds(now):
            self.ban.start(now, self.options.ban(120))
            return Reply(compact({"code": -1003, "msg": "Way too much request weight used; IP banned"}), 418,
                         {"Retry-After": str(self.ban.retry_after(now))})
        weight = self.depth_weight(query) if path.endswith("/depth") else self.info_weight
        if not self.weight.hit(now, weight) and self.options.enforce:
            return self.overrun(now)
        used = {"X-MBX-USED-WEIGHT-1M": str(self.weight.used)}
        if path == self.api + "/exchangeInfo":
            return Reply(self.recorded(path, query) or compact(self.exchange_info()), headers=used)
        if path == self.api + "/depth":
            return self.depth_reply(query, used)
        if path == self.api + "/ping":
            return Reply(b"{}", headers=used)
        if path == self.api + "/time":
            return Reply(compact({"serverTime": int(time.time() * 1000)}), headers=used)
        return Reply(b"<html>404 Not found</html>", 404)

    def overrun(self, now):
        """429 first; a client that goes on gets a ban and 418."""
        self.rest_overruns += 1
        if self.rest_overruns > 2:
            self.ban.start(now, self.options.ban(120))
        return Reply(compact({"code": -1003, "msg": "Too many requests; current limit of IP is reached"}), 429,
                     {"Retry-After": str(self.weight.retry_after(now))})

    def depth_weight(self, query):
        limit = int(query["limit"]) if query.get("limit", "").isdigit() else 500
        return next((weight for floor, weight in self.depth_weights if limit <= floor), self.depth_weights[-1][1])

    def depth_reply(self, query, headers):
        symbol = query.get("symbol", "")
        instrument = self.instruments.get(symbol)
        if instrument is None:
            return Reply(compact({"code": -1121, "msg": "Invalid symbol."}), 400, headers)
        limit = min(int(query.get("limit", "500")), self.depth_weights[-1][0])
        return self.simulator.depth_snapshot(self, instrument, limit, headers)

    def depth_body(self, instrument, bids, asks, last):
        return (f'{{"lastUpdateId":{last},"bids":[{pairs_text(instrument, bids)}],'
                f'"asks":[{pairs_text(instrument, asks)}]}}').encode()

    def exchange_info(self):
        return {"timezone": "UTC", "serverTime": int(time.time() * 1000),
                "rateLimits": [{"rateLimitType": "REQUEST_WEIGHT", "interval": "MINUTE", "intervalNum": 1, "limit": self.weight_per_minute}],
                "exchangeFilters": [], "symbols": [self.row(instrument) for instrument in self.instruments.values()]}

    def filters(self, instrument):
        tick, lot = instrument.price_text(1), instrument.size_text(1)
        return [{"filterType": "PRICE_FILTER", "minPrice": tick, "maxPrice": "1000000.00", "tickSize": tick},
                {"filterType": "LOT_SIZE", "minQty": lot, "maxQty": "9000000", "stepSize": lot},
                {"filterType": "MARKET_LOT_SIZE", "minQty": lot, "maxQty": "9000000", "stepSize": lot}]

    # -- captures --------------------------------------------------------------------------------------------
    def family(self, payload):
        match = FAMILY.search(payload, 0, 200)
        return (match[2].decode(), match[1].decode().upper()) if match else None

    def adopt(self, symbol, price_digits, size_digits):
        base, quote = split_symbol(symbol.partition("_")[0])
        kind = "perpetual" if self.derivative else "spot"
        self.instruments[symbol] = Instrument(self.name, symbol, base, quote, kind, price_digits, size_digits)
