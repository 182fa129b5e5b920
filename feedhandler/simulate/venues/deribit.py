"""The other side of Deribit: JSON-RPC, in-band books chained by change_id, credits, application heartbeats.

Acks list what was accepted in another order; an unknown channel is simply missing. Numbers are JSON numbers,
some of them in exponent form. A second subscribe to a channel brings no second snapshot.
"""
import re

from feedhandler.simulate.limits import Credits, Gauge
from feedhandler.simulate.market import ASK, BID, Instrument, base_price, price_digits
from feedhandler.simulate.venues.side import Candle, Reply, Side, Stream, compact, safe_json, windows

CONNECTIONS_MAX = 32
SUBSCRIBE_COST, SUBSCRIBE_POOL = 3_000, 30_000
OTHER_COST, OTHER_POOL = 500, 50_000
REFILL_PER_S = 10_000
HEARTBEAT_REPLY_S = 10.0
HEARTBEAT_MIN_S = 10
IDLE_S = 60.5
RAW_REFUSED = {"code": 13778, "message": "raw_subscriptions_not_available_for_unauthorized"}
TOO_MANY = {"code": 10028, "message": "too_many_requests", "data": None}
CHANNEL = re.compile(rb'"channel":"([^"]+)"')
OPTION_EXPIRY_MS = 1_798_185_600_000    # 2026-12-25 08:00 UTC
INVERSE = ("BTC", "ETH")


def number(mantissa, digits):
    """A JSON number as the venue writes it: no useless zeros, one behind the point at least, large round ones as 2.2e3."""
    if mantissa and digits == 0 and mantissa % 1000 == 0:
        text = f"{mantissa / 10 ** (len(str(mantissa)) - 1)}"
        return f"{text}e{len(str(mantissa)) - 1}"
    whole, part = divmod(mantissa, 10 ** digits)
    fraction = f"{part:0{digits}d}".rstrip("0") if digits else ""
    return f"{whole}.{fraction or '0'}"


class Deribit(Side):
    name = "deribit"
    paths = {"v2": "/ws/api/v2"}
    contiguous = False

    def __init__(self, simulator, options):
        super().__init__(simulator, options)
        self.open = Gauge(self.meter("connections with HTTP", CONNECTIONS_MAX))
        self.subscribe_meter = self.meter("subscribe credits", SUBSCRIBE_POOL)
        self.other_meter = self.meter("other credits", OTHER_POOL)
        self.rest_credits = Credits(self.other_meter, REFILL_PER_S)
        self.subscribe_credits = Credits(self.subscribe_meter, REFILL_PER_S)

    def listing(self, count):
        """Two inverse perpetuals, then linear ones; every fifth is a BTC option."""
        strike = 40_000
        for index in range(count):
            base, price = base_price(index)
            if index % 5 == 4:
                strike += 2_000
                symbol = f"BTC-25DEC26-{strike}-{'C' if strike % 4000 else 'P'}"
                row = Instrument(self.name, symbol, "BTC", "BTC", "option", 4, 1, 0.0725, extra={"tick": 1, "strike": strike})
            elif base in INVERSE:
                row = Instrument(self.name, f"{base}-PERPETUAL", base, "USD", "perpetual", 2, 0, price)
            else:
                row = Instrument(self.name, f"{base}_USDC-PERPETUAL", base, "USDC", "perpetual", price_digits(price), 2, price)
            self.instruments[row.symbol] = row

    # -- connection ------------------------------------------------------------------------------------------
    def admit(self, now):
        if not self.open.room() and self.options.enforce:
            return Reply(b"Too many connections", 429)
        return None

    def connected(self, connection):
        self.open.open += 1
        connection.state.update(interval=0, test_due=None, reply_due=None)

    def left(self, connection):
        self.open.open -= 1

    def received(self, connection, text):
        request = safe_json(text)
        if not isinstance(request, dict):
            connection.text(compact({"jsonrpc": "2.0", "error": {"code": 11050, "data": "invalid json", "message": "bad_request"}, **self.times()}))
            return
        method, params, identity = request.get("method"), request.get("params") or {}, request.get("id")
        subscribing = method == "public/subscribe"
        credits = self.subscribe_credits if subscribing else self.rest_credits
        if not credits.spend(connection.now(), SUBSCRIBE_COST if subscribing else OTHER_COST) and self.options.enforce:
            self.refuse(connection, identity, TOO_MANY)
            return
        handlers = {"public/subscribe": self.subscribe, "public/unsubscribe": self.unsubscribe, "public/test": self.test,
                    "public/set_heartbeat": self.set_heartbeat, "public/disable_heartbeat": self.set_heartbeat,
                    "public/unsubscribe_all": self.unsubscribe}
        handler = handlers.get(str(method))
        if handler is None:
            self.refuse(connection, identity, {"code": -32601, "message": "Method not found"})
        elif not isinstance(params, dict) or not isinstance(params.get("channels", []), list) or not isinstance(params.get("interval", 0), (int, float)):
            self.refuse(connection, identity, {"code": -32602, "message": "Invalid params"})
        else:
            handler(connection, identity, params)

    def times(self):
        micros = self.simulator.wall_ms() * 1000
        return {"usIn": micros, "usOut": micros + 93, "usDiff": 93, "testnet": False}

    def answer(self, connection, identity, result):
        connection.text(compact({"jsonrpc": "2.0", "id": identity, "result": result, **self.times()}))

    def refuse(self, connection, identity, error):
        connection.text(compact({"jsonrpc": "2.0", "id": identity, "error": error, **self.times()}))

    def subscribe(self, connection, identity, params):
        channels = params.get("channels", [])
        if any(str(name).endswith(".raw") for name in channels) and not self.simulator.playing:
            self.refuse(connection, identity, RAW_REFUSED)
            return
        streams = [stream for stream in (self.stream("v2", str(name)) for name in channels) if stream]
        modes = {stream.wire: self.simulator.faults.subscribing(stream) for stream in streams}
        accepted = [stream for stream in streams if modes[stream.wire] != "reject"]
        if "ack_lost" not in modes.values():
            self.answer(connection, identity, [stream.wire for stream in reversed(accepted)])
        for stream in accepted:
            if modes[stream.wire] != "silent" and stream.wire not in connection.streams:
                connection.attach(stream)

    def unsubscribe(self, connection, identity, params):
        gone = [str(name) for name in params.get("channels", list(connection.streams)) if str(name) in connection.streams]
        for name in gone:
            connection.detach(name)
        self.answer(connection, identity, gone)

    def test(self, connection, identity, params):
        connection.state["reply_due"] = None
        self.answer(connection, identity, {"version": "1.2.26"})

    def set_heartbeat(self, connection, identity, params):
        interval = params.get("interval", 0)
        if interval and interval < HEARTBEAT_MIN_S:
            self.refuse(connection, identity, {"code": -32602, "message": "Invalid params", "data": {"param": "interval", "reason": "must be at least 10"}})
            return
        connection.state["interval"] = self.options.idle(interval)
        connection.state["test_due"] = connection.now() + self.options.idle(interval * 1.2) if interval else None
        self.answer(connection, identity, "ok")

    def tick(self, connection, now):
        state = connection.state
        if state["reply_due"] is not None and now >= state["reply_due"]:
            connection.close(4000, "heartbeat close")
        elif state["test_due"] is not None and now >= state["test_due"]:
            state["test_due"] = now + state["interval"] * 1.06
            if state["reply_due"] is None:
                state["reply_due"] = now + self.options.idle(HEARTBEAT_REPLY_S)
            connection.text(b'{"jsonrpc":"2.0","method":"heartbeat","params":{"type":"test_request"}}')
        elif not connection.streams and now - connection.received_at > self.options.idle(IDLE_S):
            connection.abort()

    def shutdown_notice(self, connection):
        connection.text(b'{"jsonrpc":"2.0","method":"subscription","params":{"channel":"platform_state","data":{"maintenance":true}}}')

    def slow_reader(self, connection):
        connection.close(1008, "connection_too_slow")

    # -- streams ---------------------------------------------------------------------------------------------
    def make_stream(self, endpoint, wire):
        channel, _, rest = wire.partition(".")
        symbol, _, speed = rest.partition(".")
        if channel == "deribit_price_index":
            return self.price_index(endpoint, wire, symbol)
        if channel == "platform_state":
            return Stream(endpoint, wire, channel, slow=True, family=(channel, ""))
        instrument = self.instruments.get(symbol)
        allowed = {"book": r"100ms|agg2|raw|none\.(1|10|20)\.100ms", "trades": "100ms|agg2|raw", "ticker": "100ms|agg2|raw",
                   "quote": "", "perpetual": "100ms|agg2|raw"}
        if channel == "chart" and rest.startswith("trades."):
            return self.chart(endpoint, wire)
        if instrument is None or channel not in allowed or not re.fullmatch(allowed[channel], speed):
            return None
        stream = Stream(endpoint, wire, channel, instrument, family=(channel, symbol))
        if not self.simulator.playing:
            make = {"trades": self.trades, "ticker": self.ticker, "quote": self.quote, "perpetual": self.perpetual}.get(channel, self.book)
            stream.render = make(stream, instrument) if not speed.startswith("none") else self.grouped(stream, instrument, int(speed.split(".")[1]))
        return stream

    def frame(self, stream, data):
        return f'{{"jsonrpc":"2.0","method":"subscription","params":{{"channel":"{stream.wire}","data":{data}}}}}'.encode()

    def book(self, stream, instrument):
        start, span, parts, previous = instrument.sequence_start, instrument.span, [], 0
        for event, known in with_known(instrument):
            sides = [",".join(action_text(instrument, price, size, price in known[side]) for at, price, size in event.levels if at == side)
                     for side in (BID, ASK)]
            parts.append((self.frame(stream, f'{{"timestamp":%d,"type":"change","change_id":%d,"instrument_name":"{instrument.symbol}",'
                                             f'"bids":[{sides[0]}],"asks":[{sides[1]}],"prev_change_id":%d}}'), event.last, previous))
            previous = event.last

        def render(index, cycle, now_ms):
            template, last, before = parts[index]
            base = start + cycle * span
            return template % (now_ms, base + last, base + before)

        def snapshot(position, now_ms):
            sides = [",".join(action_text(instrument, price, size, False) for price, size in pairs) for pairs in instrument.best_first(position)]
            return [self.frame(stream, f'{{"timestamp":{now_ms},"type":"snapshot","change_id":{instrument.sequence(position)},'
                                       f'"instrument_name":"{instrument.symbol}","bids":[{sides[0]}],"asks":[{sides[1]}]}}')]
        stream.snapshot = snapshot
        return render

    def grouped(self, stream, instrument, depth):
        stream.channel, stream.depth = "window", depth
        start, span = instrument.sequence_start, instrument.span

        def text(bids, asks):
            sides = [",".join(f"[{number(price, instrument.price_digits)},{number(size, instrument.size_digits)}]" for price, size in pairs)
                     for pairs in (bids, asks)]
            return self.frame(stream, f'{{"timestamp":%d,"change_id":%d,"instrument_name":"{instrument.symbol}","bids":[{sides[0]}],"asks":[{sides[1]}]}}')
        parts = [(text(bids, asks), event.last) for event, bids, asks in windows(instrument, depth)]

        def render(index, cycle, now_ms):
            template, last = parts[index]
            return template % (now_ms, start + cycle * span + last)
        stream.snapshot = lambda position, now_ms: [text(*instrument.best_first(position, depth)) % (now_ms, instrument.sequence(position))]
        return render

    def quote(self, stream, instrument):
        def text(touch):
            bid, bid_size, ask, ask_size = touch
            price, size = instrument.price_digits, instrument.size_digits
            return self.frame(stream, f'{{"timestamp":%d,"instrument_name":"{instrument.symbol}","best_ask_price":{number(ask, price)},'
                                      f'"best_bid_price":{number(bid, price)},"best_ask_amount":{number(ask_size, size)},"best_bid_amount":{number(bid_size, size)}}}')
        parts = [text(event.touch) if event.touch_moved else None for event in instrument.loop]

        def render(index, cycle, now_ms):
            part = parts[index]
            return part and part % now_ms
        stream.snapshot = lambda position, now_ms: [text(instrument.touch(position)) % now_ms]
        return render

    def trades(self, stream, instrument):
        stream.channel = "trade"
        start, count, parts = instrument.trade_start, instrument.trades_per_loop, []
        for event in instrument.loop:
            if event.trade is None:
                parts.append(None)
                continue
            price, size, taker = event.trade
            at = number(price, instrument.price_digits)
            amount = number(size, instrument.size_digits)
            parts.append((self.frame(stream, f'[{{"timestamp":%d,"price":{at},"amount":{amount},"direction":"{"buy" if taker == BID else "sell"}",'
                                             f'"index_price":{at},"instrument_name":"{instrument.symbol}","trade_seq":%d,"mark_price":{at},'
                                             f'"tick_direction":2,"contracts":{amount},"trade_id":"%d"}}]'), event.trades_before))

        def render(index, cycle, now_ms):
            part = parts[index]
            if part is None:
                return None
            identity = start + cycle * count + part[1]
            return part[0] % (now_ms, identity - 1000, identity)
        return render

    # -- slow channels ---------------------------------------------------------------------------------------
    def slow(self, stream, body):
        stream.slow = True
        stream.render = lambda position, second, now_ms: self.frame(stream, body(position, second, now_ms))
        return stream.render

    def ticker(self, stream, instrument):
        option = instrument.kind == "option"

        def body(position, second, now_ms):
            bid, bid_size, ask, ask_size = instrument.touch(position)
            price, size = instrument.price_digits, instrument.size_digits
            greeks = ('"greeks":{"vega":28.41,"theta":-14.2,"rho":9.1,"gamma":1.4e-4,"delta":0.52},"mark_iv":58.1,"bid_iv":57.9,"ask_iv":58.4,'
                      '"underlying_price":61800.5,"underlying_index":"BTC-25DEC26","interest_rate":0.0,') if option else (
                      f'"funding_8h":1.423e-4,"current_funding":0.0,"estimated_delivery_price":{number(bid, price)},')
            return (f'{{"timestamp":{now_ms},"stats":{{"volume":869.0,"price_change":0.4,"low":{number(bid - 5, price)},"high":{number(ask + 5, price)}}},"state":"open",{greeks}'
                    f'"settlement_price":{number(bid, price)},"open_interest":{12_685 + second}.0,"min_price":{number(bid - 9, price)},"max_price":{number(ask + 9, price)},'
                    f'"mark_price":{number(bid, price)},"last_price":{number(bid, price)},"instrument_name":"{instrument.symbol}","index_price":61801.25,'
                    f'"best_bid_price":{number(bid, price)},"best_bid_amount":{number(bid_size, size)},"best_ask_price":{number(ask, price)},"best_ask_amount":{number(ask_size, size)}}}')
        return self.slow(stream, body)

    def perpetual(self, stream, instrument):
        return self.slow(stream, lambda position, second, now_ms: (
            f'{{"interest":{1 + second % 9}.5e-5,"index_price":{number(instrument.touch(position)[0], instrument.price_digits)},"timestamp":{now_ms}}}'))

    def price_index(self, endpoint, wire, name):
        base = name.partition("_")[0].upper()
        instrument = next((row for row in self.instruments.values() if row.base == base and row.kind == "perpetual"), None)
        if instrument is None:
            return None
        stream = Stream(endpoint, wire, "index", instrument, family=("deribit_price_index", name))
        self.slow(stream, lambda position, second, now_ms: (
            f'{{"timestamp":{now_ms},"price":{number(instrument.touch(position)[0], instrument.price_digits)},"index_name":"{name}"}}'))
        return stream

    def chart(self, endpoint, wire):
        match = re.fullmatch(r"chart\.trades\.([^.]+)\.(\d+)", wire)
        instrument = match and self.instruments.get(match[1])
        if not instrument:
            return None
        stream, candle, interval_ms = Stream(endpoint, wire, "candle", instrument, family=("chart", match[1])), Candle(), int(match[2]) * 60_000

        def body(position, second, now_ms):
            c = candle.move(instrument.touch(position)[0], now_ms, interval_ms)
            o, h, low, close = (number(value, instrument.price_digits) for value in (c.open, c.high, c.low, c.close))
            return f'{{"volume":{c.count}.5,"tick":{c.start_ms},"open":{o},"low":{low},"high":{h},"cost":{c.count}.0,"close":{close}}}'
        self.slow(stream, body)
        return stream

    # -- REST ------------------------------------------------------------------------------------------------
    def rest(self, path, query, now):
        """An HTTP request is a connection too, for as long as it takes: here no time at all."""
        if not self.open.room() and self.options.enforce:
            return Reply(b"Too many connections", 429)
        if not self.rest_credits.spend(now, OTHER_COST) and self.options.enforce:
            return Reply(compact({"jsonrpc": "2.0", "error": TOO_MANY, **self.times()}), 429)
        if path.endswith("/public/get_instruments"):
            rows = [self.row(row) for row in self.instruments.values() if query.get("currency", "any") in ("any", settlement(row))
                    and query.get("kind", "any") in ("any", self.row(row)["kind"])]
            return Reply(self.recorded("/api/v2/public/get_instruments", query) or compact({"jsonrpc": "2.0", "result": rows, **self.times()}))
        if path.endswith("/public/test"):
            return Reply(compact({"jsonrpc": "2.0", "result": {"version": "1.2.26"}, **self.times()}))
        return Reply(compact({"jsonrpc": "2.0", "error": {"code": -32601, "message": "Method not found"}}), 404)

    def row(self, instrument):
        option = instrument.kind == "option"
        row = {"tick_size": 10 ** -instrument.price_digits, "taker_commission": 0.0003, "maker_commission": 0.0, "settlement_period": "month" if option else "perpetual",
               "settlement_currency": settlement(instrument), "quote_currency": instrument.quote, "base_currency": instrument.base, "counter_currency": "USD",
               "min_trade_amount": 0.1 if option else 10 ** -instrument.size_digits, "kind": "option" if option else "future", "is_active": True,
               "instrument_name": instrument.symbol, "expiration_timestamp": OPTION_EXPIRY_MS if option else 32_503_708_800_000,
               "creation_timestamp": 1_606_129_458_000, "contract_size": 1.0 if option else 10 ** -instrument.size_digits,
               "price_index": f"{instrument.base.lower()}_{'usdc' if instrument.quote == 'USDC' else 'usd'}",
               "instrument_type": "linear" if instrument.quote == "USDC" else "reversed", "tick_size_steps": [], "state": "open"}
        if option:
            row.update(strike=float(instrument.extra["strike"]), option_type="call" if instrument.symbol.endswith("C") else "put")
        return row

    # -- captures --------------------------------------------------------------------------------------------
    def family(self, payload):
        match = CHANNEL.search(payload)
        if not match or b'"method":"subscription"' not in payload:
            return None
        parts = match[1].decode().split(".")
        return parts[0], parts[1] if len(parts) > 1 else ""

    def adopt(self, symbol, price_digits, size_digits):
        base = symbol.partition("-")[0].partition("_")[0]
        kind = "perpetual" if symbol.endswith("PERPETUAL") else "option" if symbol[-2:] in ("-C", "-P") else "future"
        quote = "USDC" if "_USDC" in symbol else base if kind == "option" else "USD"
        extra = {"strike": symbol.split("-")[2]} if kind == "option" else {}
        self.instruments[symbol] = Instrument(self.name, symbol, base, quote, kind, price_digits, size_digits, extra=extra)


def settlement(instrument):
    return "USDC" if instrument.quote == "USDC" else instrument.base


def with_known(instrument):
    """Each event with the prices known before it, as two sets."""
    known = (set(instrument.initial[BID]), set(instrument.initial[ASK]))
    for event in instrument.loop:
        yield event, known
        for side, price, size in event.levels:
            (known[side].add if size else known[side].discard)(price)


def action_text(instrument, price, size, known):
    action = ("change" if known else "new") if size else "delete"
    return f'["{action}",{number(price, instrument.price_digits)},{number(size, instrument.size_digits)}]'


SIDE = Deribit
