"""The other side of OKX v5: two paths, in-band books chained by seqId, text ping, 480 operations an hour.

Checksums are 0, as since 2026-06-23. A book without change for 60 s gets a keepalive with equal ids.
"""
import re

from feedhandler.simulate.limits import Window
from feedhandler.simulate.market import ASK, BID, Instrument, base_price, price_digits
from feedhandler.simulate.venues.side import (Candle, IDENTIFIER, INTERVALS_MS, Reply, Side, Stream, compact, safe_json,
                                              windows)

IDLE_S = 30
KEEPALIVE_S = 60
ARGS_SIZE_MAX = 65_536
CONNECTS_PER_S = 3
OPERATIONS_PER_HOUR = 480
INSTRUMENT_CALLS = 20       # per 2 s, address and instType
BUSINESS = ("candle", "trades-all", "mark-price-candle", "index-candle")
LOGIN = ("books-l2-tbt", "books50-l2-tbt")
ALL_MARKET = ("instruments", "liquidation-orders", "status")    # subscribed by instType, not by instId
FAMILY = re.compile(rb'"arg":\{([^}]*)\}')


class Okx(Side):
    name = "okx"
    paths = {"public": "/ws/v5/public", "business": "/ws/v5/business"}

    def __init__(self, simulator, options):
        super().__init__(simulator, options)
        self.connects = Window(self.meter("connects per s", CONNECTS_PER_S), 1)
        self.operations = self.meter("subscribe operations per h and connection", OPERATIONS_PER_HOUR)
        self.calls = {}
        self.connection_count = 0

    def listing(self, count):
        """Swaps, and every third instrument a spot pair."""
        for index in range(count):
            base, price = base_price(index)
            if index % 3 == 2:
                row = Instrument(self.name, f"{base}-USDT", base, "USDT", "spot", price_digits(price), 4, price)
            else:
                row = Instrument(self.name, f"{base}-USDT-SWAP", base, "USDT", "perpetual", price_digits(price), 0, price)
            self.instruments[row.symbol] = row

    # -- connection ------------------------------------------------------------------------------------------
    def admit(self, now):
        if not self.connects.hit(now) and self.options.enforce:
            return Reply(b'{"msg":"Requests too frequent","code":"50011"}', 429)
        return None

    def connected(self, connection):
        self.connection_count += 1
        connection.state.update(id=f"{self.connection_count:08x}", window=Window(self.operations, 3600), keepalive={})

    def received(self, connection, text):
        if text == b"ping":
            connection.text(b"pong")
            return
        request = safe_json(text)
        if len(text) > ARGS_SIZE_MAX:
            connection.close(1009, "Message too big")
            return
        if not isinstance(request, dict) or not isinstance(request.get("args"), list) or not request["args"]:
            self.error(connection, "60012", f"Invalid request: {text.decode(errors='replace')}")
            return
        number = request.get("id")
        if number is not None and not IDENTIFIER.fullmatch(str(number)):
            self.error(connection, "60012", "Invalid request: id")
        elif request.get("op") not in ("subscribe", "unsubscribe"):
            self.error(connection, "60019", f"Invalid op: {request.get('op')}", number)
        elif not connection.state["window"].hit(connection.now()) and self.options.enforce:
            self.error(connection, "60014", "Requests too frequent", number)
        else:
            for arg in request["args"]:
                (self.subscribe if request["op"] == "subscribe" else self.unsubscribe)(connection, arg, number)

    def error(self, connection, code, message, number=None):
        body = {"event": "error", "code": code, "msg": message, "connId": connection.state["id"]}
        connection.text(compact(body if number is None else {"id": number, **body}))

    def acknowledge(self, connection, event, arg, number):
        body = {"event": event, "arg": arg, "connId": connection.state["id"]}
        connection.text(compact(body if number is None else {"id": number, **body}))

    def subscribe(self, connection, arg, number):
        channel = str(arg.get("channel", "")) if isinstance(arg, dict) else ""
        business = channel.startswith(BUSINESS)
        wire = wire_of(arg) if channel else ""
        if channel in LOGIN:
            self.error(connection, "60011", "Please log in", number)
        elif business != (connection.endpoint == "business"):
            self.error(connection, "60018", f"Wrong URL or {compact(arg).decode()} doesn't exist. Please use the correct URL, channel and parameters.", number)
        elif (stream := self.stream(connection.endpoint, wire)) is None:
            self.error(connection, "60018", f"Wrong URL or {compact(arg).decode()} doesn't exist. Please use the correct URL, channel and parameters.", number)
        else:
            mode = self.simulator.faults.subscribing(stream)
            if mode == "reject":
                self.error(connection, "60013", "Invalid args", number)
                return
            if mode != "ack_lost":
                self.acknowledge(connection, "subscribe", arg, number)
            if mode != "silent":
                connection.attach(stream)

    def unsubscribe(self, connection, arg, number):
        if isinstance(arg, dict):
            connection.detach(wire_of(arg))
            self.acknowledge(connection, "unsubscribe", arg, number)

    def tick(self, connection, now):
        if now - max(connection.received_at, connection.sent_at) > self.options.idle(IDLE_S):
            connection.close(4004, "No data received in 30s")
            return
        for stream in connection.streams.values():
            if stream.channel == "book" and not self.simulator.playing:
                self.keepalive(connection, stream, now)

    def keepalive(self, connection, stream, now):
        last = connection.state["keepalive"]
        position, since = last.get(stream.wire, (None, now))
        if position != stream.instrument.position:
            last[stream.wire] = stream.instrument.position, now
        elif now - since >= self.options.idle(KEEPALIVE_S):
            last[stream.wire] = position, now
            sequence = stream.instrument.sequence(position)
            connection.text(self.book_frame(stream, "update", "", "") % (connection.wall_ms(), sequence, sequence))

    def shutdown_notice(self, connection):
        connection.text(compact({"event": "notice", "code": "64008", "connId": connection.state["id"],
                                 "msg": "The connection will soon be closed for a service upgrade. Please reconnect."}))

    def slow_reader(self, connection):
        connection.close(4005, "Buffer is full, cannot write data")

    # -- streams ---------------------------------------------------------------------------------------------
    def make_stream(self, endpoint, wire):
        channel, _, symbol = wire.partition(":")
        if channel in ALL_MARKET:
            return self.all_market(endpoint, wire, channel, symbol)
        instrument = self.instruments.get(symbol)
        if channel == "index-tickers":
            instrument = self.instruments.get(symbol + "-SWAP") or self.instruments.get(symbol)
        makers = {"books": self.books, "books5": self.books5, "bbo-tbt": self.bbo, "trades": self.trades,
                  "trades-all": self.trades, "tickers": self.tickers, "mark-price": self.mark_price,
                  "index-tickers": self.index, "funding-rate": self.funding, "open-interest": self.open_interest}
        make = self.candles if channel.startswith("candle") and channel[6:] in INTERVALS_MS else makers.get(channel)
        if instrument is None or make is None:
            return None
        stream = Stream(endpoint, wire, channel, instrument, family=(channel, symbol))
        if not self.simulator.playing:
            stream.render = make(stream, instrument)
        return stream

    def head(self, stream):
        channel, _, symbol = stream.wire.partition(":")
        return f'{{"arg":{{"channel":"{channel}","instId":"{symbol}"}}'

    def book_frame(self, stream, action, bids, asks):
        return (f'{self.head(stream)},"action":"{action}","data":[{{"asks":[{asks}],"bids":[{bids}],"ts":"%d",'
                f'"checksum":0,"prevSeqId":%d,"seqId":%d}}]}}').encode()

    def books(self, stream, instrument):
        stream.channel = "book"
        start, span, parts, previous = instrument.sequence_start, instrument.span, [], 0
        for event in instrument.loop:
            sides = [",".join(level_text(instrument, price, size) for at, price, size in event.levels if at == side) for side in (BID, ASK)]
            parts.append((self.book_frame(stream, "update", *sides), previous, event.last))
            previous = event.last

        def render(index, cycle, now_ms):
            template, before, last = parts[index]
            base = start + cycle * span
            return template % (now_ms, base + before, base + last)

        def snapshot(position, now_ms):
            bids, asks = instrument.best_first(position, 400)
            text = self.book_frame(stream, "snapshot", level_texts(instrument, bids), level_texts(instrument, asks))
            return [text % (now_ms, -1, instrument.sequence(position))]
        stream.snapshot = snapshot
        return render

    def books5(self, stream, instrument):
        return self.whole(stream, instrument, 5, "window", always=True)

    def bbo(self, stream, instrument):
        return self.whole(stream, instrument, 1, "quote", always=False)

    def whole(self, stream, instrument, depth, channel, always):
        """Each message is the whole window, the first one right after the ack."""
        stream.channel, stream.depth = channel, depth
        start, span, parts = instrument.sequence_start, instrument.span, []

        def frame(bids, asks):
            return (f'{self.head(stream)},"data":[{{"asks":[{level_texts(instrument, asks)}],"bids":[{level_texts(instrument, bids)}],'
                    f'"ts":"%d","seqId":%d}}]}}').encode()
        for event, bids, asks in windows(instrument, depth):
            parts.append((frame(bids, asks), event.last) if always or event.touch_moved else None)

        def render(index, cycle, now_ms):
            part = parts[index]
            return part and part[0] % (now_ms, start + cycle * span + part[1])

        def snapshot(position, now_ms):
            return [frame(*instrument.best_first(position, depth)) % (now_ms, instrument.sequence(position))]
        stream.snapshot = snapshot
        return render

    def trades(self, stream, instrument):
        stream.channel = "trade"
        start, count, parts = instrument.trade_start, instrument.trades_per_loop, []
        for event in instrument.loop:
            if event.trade is None:
                parts.append(None)
                continue
            price, size, taker = event.trade
            merged = "" if stream.wire.startswith("trades-all") else ',"count":"1"'
            parts.append(((f'{self.head(stream)},"data":[{{"instId":"{instrument.symbol}","tradeId":"%d","px":"{instrument.price_text(price)}",'
                           f'"sz":"{instrument.size_text(size)}","side":"{"buy" if taker == BID else "sell"}","ts":"%d"{merged}}}]}}').encode(),
                          event.trades_before))

        def render(index, cycle, now_ms):
            part = parts[index]
            return part and part[0] % (start + cycle * count + part[1], now_ms)
        return render

    # -- slow channels ---------------------------------------------------------------------------------------
    def slow(self, stream, body):
        stream.slow = True
        head = self.head(stream)

        def render(position, second, now_ms):
            return f'{head},"data":[{body(position, second, now_ms)}]}}'.encode()
        return render

    def tickers(self, stream, instrument):
        def body(position, second, now_ms):
            bid, bid_size, ask, ask_size = instrument.touch(position)
            price, size = instrument.price_text, instrument.size_text
            return (f'{{"instType":"{inst_type(instrument)}","instId":"{instrument.symbol}","last":"{price(bid)}","lastSz":"{size(7)}","askPx":"{price(ask)}",'
                    f'"askSz":"{size(ask_size)}","bidPx":"{price(bid)}","bidSz":"{size(bid_size)}","open24h":"{price(bid - 4)}","high24h":"{price(ask + 9)}",'
                    f'"low24h":"{price(bid - 9)}","sodUtc0":"{price(bid)}","sodUtc8":"{price(bid)}","volCcy24h":"{position}.5","vol24h":"{position}","ts":"{now_ms}"}}')
        return self.slow(stream, body)

    def mark_price(self, stream, instrument):
        return self.slow(stream, lambda position, second, now_ms: (
            f'{{"instType":"{inst_type(instrument)}","instId":"{instrument.symbol}","markPx":"{instrument.price_text(instrument.touch(position)[0])}","ts":"{now_ms}"}}'))

    def index(self, stream, instrument):
        symbol = stream.wire.partition(":")[2]

        def body(position, second, now_ms):
            price = instrument.price_text(instrument.touch(position)[0] - 1)
            return (f'{{"instId":"{symbol}","idxPx":"{price}","high24h":"{price}","low24h":"{price}","open24h":"{price}",'
                    f'"sodUtc0":"{price}","sodUtc8":"{price}","ts":"{now_ms}"}}')
        return self.slow(stream, body)

    def funding(self, stream, instrument):
        def body(position, second, now_ms):
            due = now_ms - now_ms % 28_800_000 + 28_800_000
            return (f'{{"fundingRate":"0.000{second % 90 + 10}","fundingTime":"{due}","instId":"{instrument.symbol}","instType":"SWAP",'
                    f'"method":"current_period","nextFundingRate":"","nextFundingTime":"{due + 28_800_000}","ts":"{now_ms}"}}')
        return self.slow(stream, body)

    def open_interest(self, stream, instrument):
        return self.slow(stream, lambda position, second, now_ms: (
            f'{{"instId":"{instrument.symbol}","instType":"SWAP","oi":"{2_216_113 + second}","oiCcy":"{22161 + second}.13","ts":"{now_ms}"}}'))

    def candles(self, stream, instrument):
        candle, interval_ms = Candle(), INTERVALS_MS[stream.wire.partition(":")[0][6:]]

        def body(position, second, now_ms):
            c, text = candle.move(instrument.touch(position)[0], now_ms, interval_ms), instrument.price_text
            return (f'["{c.start_ms}","{text(c.open)}","{text(c.high)}","{text(c.low)}","{text(c.close)}","{c.count}.5","{c.count}","{c.count}","0"]')
        return self.slow(stream, body)

    def all_market(self, endpoint, wire, channel, kind):
        """Subscribed by instType. Instruments sends changes only, so nothing; liquidations name a swap every 5 s."""
        stream = Stream(endpoint, wire, channel, slow=True, family=(channel, kind))
        swaps = [row for row in self.instruments.values() if row.kind == "perpetual"]

        def render(position, second, now_ms):
            if channel != "liquidation-orders" or kind != "SWAP" or second % 5 or not swaps:
                return None
            row = swaps[second // 5 % len(swaps)]
            return (f'{{"arg":{{"channel":"liquidation-orders","instType":"SWAP"}},"data":[{{"details":[{{"bkLoss":"0","bkPx":"{row.price_text(row.touch(row.position)[0])}",'
                    f'"ccy":"","posSide":"short","side":"buy","sz":"13","ts":"{now_ms}"}}],"instFamily":"{row.base}-USDT","instId":"{row.symbol}",'
                    f'"instType":"SWAP","uly":"{row.base}-USDT"}}]}}').encode()
        stream.render = render
        return stream

    # -- REST ------------------------------------------------------------------------------------------------
    def rest(self, path, query, now):
        if path == "/api/v5/public/time":
            return Reply(compact({"code": "0", "msg": "", "data": [{"ts": str(self.simulator.wall_ms())}]}))
        if path != "/api/v5/public/instruments":
            return Reply(b'{"code":"404","data":[],"msg":"404 Not Found"}', 404)
        kind = query.get("instType", "")
        meter = self.meter("instrument calls per 2 s and instType", INSTRUMENT_CALLS)
        if not self.calls.setdefault(kind, Window(meter, 2)).hit(now) and self.options.enforce:
            return Reply(b'{"msg":"Too Many Requests","code":"50011"}', 429)
        if kind not in ("SPOT", "SWAP", "FUTURES", "OPTION", "MARGIN"):
            return Reply(b'{"code":"51000","data":[],"msg":"Parameter instType error"}', 400)
        rows = [self.row(row) for row in self.instruments.values() if inst_type(row) == kind]
        return Reply(self.recorded(path, query) or compact({"code": "0", "data": rows, "msg": ""}))

    def row(self, instrument):
        swap = instrument.kind == "perpetual"
        family = f"{instrument.base}-{instrument.quote}"
        return {"alias": "", "baseCcy": "" if swap else instrument.base, "category": "1", "ctMult": "1" if swap else "",
                "ctType": "linear" if swap else "", "ctVal": "0.01" if swap else "", "ctValCcy": instrument.base if swap else "", "expTime": "",
                "instFamily": family if swap else "", "instId": instrument.symbol, "instIdCode": 1000 + list(self.instruments).index(instrument.symbol),
                "instType": inst_type(instrument), "lever": "10", "listTime": "1548133413000", "lotSz": instrument.size_text(1),
                "minSz": instrument.size_text(1), "optType": "", "quoteCcy": "" if swap else instrument.quote, "settleCcy": "USDT" if swap else "",
                "state": "live", "stk": "", "tickSz": instrument.price_text(1), "uly": family if swap else ""}

    # -- captures --------------------------------------------------------------------------------------------
    def family(self, payload):
        if b'"event"' in payload[:200] or b'"data"' not in payload:
            return None
        match = FAMILY.search(payload)
        arg = match and safe_json(b"{" + match[1] + b"}")
        return (arg.get("channel"), arg.get("instId") or arg.get("instType", "")) if arg else None

    def adopt(self, symbol, price_digits, size_digits):
        base, _, rest = symbol.partition("-")
        quote, _, kind = rest.partition("-")
        self.instruments[symbol] = Instrument(self.name, symbol, base, quote, "perpetual" if kind == "SWAP" else "future" if kind else "spot",
                                              price_digits, size_digits)


def wire_of(arg):
    return f"{arg.get('channel')}:{arg.get('instId') or arg.get('instType', '')}"


def inst_type(instrument):
    return {"perpetual": "SWAP", "future": "FUTURES", "option": "OPTION"}.get(instrument.kind, "SPOT")


def level_text(instrument, price, size):
    return f'["{instrument.price_text(price)}","{instrument.size_text(size)}","0","{size % 17 + 1 if size else 0}"]'


def level_texts(instrument, pairs):
    return ",".join(level_text(instrument, price, size) for price, size in pairs)


SIDE = Okx
