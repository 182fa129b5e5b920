"""The other side of Kraken spot v2: in-band books of a fixed depth without sequence, guarded by a CRC32.

A level that falls out of the depth gets no message; one that enters comes with the message that made room.
"""
import datetime
import functools
import re
import zlib

from feedhandler.simulate.limits import Window
from feedhandler.simulate.market import ASK, BID, Instrument, base_price, price_digits
from feedhandler.simulate.venues.side import Candle, Reply, Side, Stream, compact, safe_json, windows

ATTEMPTS, ATTEMPTS_S, BAN_S = 150, 600, 600
IDLE_S = 60
HEARTBEAT_S = 1.0
DEPTHS = (10, 25, 100, 500, 1000)
CHECKSUM_LEVELS = 10
REPEATED_EVERY = 37     # every 37th update names one level twice; the last one counts
TRADE_SNAPSHOT = 50
CONNECTION_ID = 17_843_232_920_108_168_000  # beyond 2^63, as recorded
CHANNEL = re.compile(rb'"channel":"(\w+)"')
SYMBOL = re.compile(rb'"symbol":"([^"]+)"')


@functools.lru_cache(maxsize=4)
def stamp(now_ms):
    """RFC 3339 with microseconds."""
    moment = datetime.datetime.fromtimestamp(now_ms / 1000, datetime.timezone.utc)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{now_ms % 1000:03d}{now_ms * 7919 % 1000:03d}Z".encode()


def checksum(bids, asks):
    """CRC32 over the best ten asks, then bids: price and quantity digits as sent, without point and leading zeros."""
    text = "".join(part.replace(".", "").lstrip("0") for pairs in (asks, bids)
                   for pair in pairs[:CHECKSUM_LEVELS] for part in pair)
    return zlib.crc32(text.encode())


class Kraken(Side):
    name = "kraken"
    paths = {"spot.v2": "/v2"}
    checksum = True

    def __init__(self, simulator, options):
        super().__init__(simulator, options)
        self.attempts = Window(self.meter("connection attempts per 10 min", ATTEMPTS), ATTEMPTS_S)
        self.connection_count = 0

    def listing(self, count):
        for index in range(count):
            base, price = base_price(index)
            digits = 1 if base == "BTC" else price_digits(price)
            self.instruments[base + "/USD"] = Instrument(self.name, base + "/USD", base, "USD", "spot", digits, 8, price)

    # -- connection ------------------------------------------------------------------------------------------
    def admit(self, now):
        if not self.ban.holds(now) and not self.attempts.hit(now) and self.options.enforce:
            self.ban.start(now, self.options.ban(BAN_S))
        if now < self.ban.until:
            return Reply(b"error code: 1015", 429, {"Retry-After": str(self.ban.retry_after(now))})
        return None

    def connected(self, connection):
        self.connection_count += 1
        connection.text(b'{"channel":"status","type":"update","data":[{"version":"2.0.10","system":"online","api_version":"v2",'
                        b'"connection_id":%d}]}' % (CONNECTION_ID + self.connection_count))

    def received(self, connection, text):
        request = safe_json(text)
        method = request.get("method") if isinstance(request, dict) else None
        tail = {"req_id": request["req_id"]} if isinstance(request, dict) and "req_id" in request else {}
        times = {name: stamp(connection.wall_ms()).decode() for name in ("time_in", "time_out")}
        if method == "ping":
            connection.text(compact({"method": "pong", **tail, **times}))
        elif method in ("subscribe", "unsubscribe") and well_formed(request.get("params")):
            self.request(connection, method, request["params"], tail, times)
        else:
            connection.text(compact({"error": "Malformed request", "method": method, **tail, "success": False, **times}))

    def request(self, connection, method, params, tail, times):
        """One ack per symbol, each with its own success."""
        channel = params.get("channel", "")
        for symbol in params.get("symbol") or [""]:
            depth = params.get("depth", 10) if channel == "book" else params.get("interval", 1) if channel == "ohlc" else 0
            wire = f"{channel}:{symbol}:{depth}" + (":trades" if channel == "ticker" and params.get("event_trigger", "trades") == "trades" else "")
            stream = self.stream(connection.endpoint, wire)
            mode = stream and self.simulator.faults.subscribing(stream)
            reason = self.reason(channel, symbol, depth, stream, mode)
            if reason:
                connection.text(compact({"error": reason, "method": method, **tail, "success": False, "symbol": symbol, **times}))
                continue
            if method == "unsubscribe":
                connection.detach(wire)
            if mode != "ack_lost":
                connection.text(compact({"method": method, "result": self.result(channel, symbol, depth, params), "success": True, **times, **tail}))
            if method == "subscribe" and mode != "silent":
                connection.attach(stream, params.get("snapshot", channel != "trade"))

    def reason(self, channel, symbol, depth, stream, mode):
        if channel == "book" and depth not in DEPTHS:
            return "Subscription depth not supported"
        if channel not in ("book", "trade", "ticker", "ohlc", "instrument"):
            return "Channel not supported"
        if stream is None:
            return f"Currency pair not supported {symbol}"
        return "Rejected by the simulator" if mode == "reject" else ""

    def result(self, channel, symbol, depth, params):
        result = {"channel": channel, "snapshot": params.get("snapshot", channel != "trade")}
        if symbol:
            result["symbol"] = symbol
        if channel == "book":
            result["depth"] = depth
        if channel == "ticker":
            result["event_trigger"] = params.get("event_trigger", "trades")
        return result

    def tick(self, connection, now):
        if now - max(connection.received_at, connection.sent_at) > self.options.idle(IDLE_S):
            connection.close(1000, "Idle")
        elif connection.streams and now - connection.sent_at >= HEARTBEAT_S:
            connection.text(b'{"channel":"heartbeat"}')

    def shutdown_notice(self, connection):
        connection.text(b'{"channel":"status","type":"update","data":[{"version":"2.0.10","system":"maintenance","api_version":"v2",'
                        b'"connection_id":%d}]}' % (CONNECTION_ID + self.connection_count))

    # -- streams ---------------------------------------------------------------------------------------------
    def make_stream(self, endpoint, wire):
        channel, symbol, number, trigger = (wire.split(":") + [""])[:4]
        if channel == "instrument":
            stream = Stream(endpoint, wire, channel, slow=True, family=(channel, ""))
            stream.snapshot = lambda position, now_ms: [self.instrument_frame()]
            return stream
        instrument = self.instruments.get(symbol)
        if instrument is None or channel not in ("book", "trade", "ticker", "ohlc"):
            return None
        stream = Stream(endpoint, wire, channel, instrument, depth=int(number) if channel == "book" else 0, family=(channel, symbol))
        if not self.simulator.playing:
            make = {"book": self.book, "trade": self.trade, "ohlc": self.ohlc}.get(channel, self.bbo)
            stream.render = make(stream, instrument)
            if trigger:
                stream.channel = "ticker"
        return stream

    def book(self, stream, instrument):
        parts, before = [], [dict(side) for side in window_of(instrument, 0, stream.depth)]
        for number, (event, bids, asks) in enumerate(windows(instrument, stream.depth)):
            after = [dict(bids), dict(asks)]
            entries = [window_changes(before[side], after[side], event, side) for side in (BID, ASK)]
            if number % REPEATED_EVERY == 0:
                entries = [[(price, size + 1) for price, size in side[:1] if size] + side for side in entries]
            body = self.message(instrument, "update", *entries, (bids, asks)) if any(entries) else None
            parts.append(body)
            before = after

        def render(index, cycle, now_ms):
            part = parts[index]
            return part and part % stamp(now_ms)

        def snapshot(position, now_ms):
            bids, asks = instrument.best_first(position, stream.depth)
            return [self.message(instrument, "snapshot", bids, asks, (bids, asks)) % stamp(now_ms)]
        stream.snapshot = snapshot
        return render

    def message(self, instrument, kind, bids, asks, book):
        texts = [[(instrument.price_text(price), instrument.size_text(size)) for price, size in pairs] for pairs in (bids, asks, *book)]
        sides = [",".join(f'{{"price":{price},"qty":{size}}}' for price, size in pairs) for pairs in texts[:2]]
        return (f'{{"channel":"book","type":"{kind}","data":[{{"symbol":"{instrument.symbol}","bids":[{sides[0]}],"asks":[{sides[1]}],'
                f'"checksum":{checksum(texts[2], texts[3])},"timestamp":"%b"}}]}}').encode()

    def trade_text(self, instrument, trade, number):
        price, size, taker = trade
        return (f'{{"symbol":"{instrument.symbol}","side":"{"buy" if taker == BID else "sell"}","price":{instrument.price_text(price)},'
                f'"qty":{instrument.size_text(size)},"ord_type":"market","trade_id":{number},"timestamp":"%b"}}')

    def trade(self, stream, instrument):
        start, count = instrument.trade_start, instrument.trades_per_loop
        parts = [event.trade and ((f'{{"channel":"trade","type":"update","data":[{self.trade_text(instrument, event.trade, "%d")}]}}').encode(),
                                  event.trades_before) for event in instrument.loop]

        def render(index, cycle, now_ms):
            part = parts[index]
            return part and part[0] % (start + cycle * count + part[1], stamp(now_ms))

        def snapshot(position, now_ms):
            past = [event for event in instrument.loop if event.trade][-TRADE_SNAPSHOT:]
            rows = ",".join(self.trade_text(instrument, event.trade, start - len(past) + number) for number, event in enumerate(past))
            return [f'{{"channel":"trade","type":"snapshot","data":[{rows}]}}'.encode() % ((stamp(now_ms),) * len(past))]
        stream.snapshot = snapshot
        return render

    def ticker_text(self, instrument, touch, kind):
        bid, bid_size, ask, ask_size = touch
        price, size = instrument.price_text, instrument.size_text
        return (f'{{"channel":"ticker","type":"{kind}","data":[{{"symbol":"{instrument.symbol}","bid":{price(bid)},"bid_qty":{size(bid_size)},'
                f'"ask":{price(ask)},"ask_qty":{size(ask_size)},"last":{price(bid)},"volume":4210.42000000,"vwap":{price(bid - 2)},"low":{price(bid - 9)},'
                f'"high":{price(ask + 9)},"change":{price(3)},"change_pct":1.41,"timestamp":"%b"}}]}}').encode()

    def bbo(self, stream, instrument):
        """One message for each change of the touch; with the trigger "trades", only for trades."""
        stream.channel = "quote"
        by_trades = stream.wire.endswith(":trades")
        parts = [self.ticker_text(instrument, event.touch, "update") if (event.trade if by_trades else event.touch_moved) else None
                 for event in instrument.loop]

        def render(index, cycle, now_ms):
            part = parts[index]
            return part and part % stamp(now_ms)
        stream.snapshot = lambda position, now_ms: [self.ticker_text(instrument, instrument.touch(position), "snapshot") % stamp(now_ms)]
        return render

    def ohlc(self, stream, instrument):
        stream.slow = True
        candle = Candle()
        interval = int(stream.wire.split(":")[2] or 1)

        def render(position, second, now_ms):
            c, text = candle.move(instrument.touch(position)[0], now_ms, interval * 60_000), instrument.price_text
            begin = stamp(c.start_ms).decode()
            return (f'{{"channel":"ohlc","type":"update","timestamp":"{stamp(now_ms).decode()}","data":[{{"symbol":"{instrument.symbol}","open":{text(c.open)},'
                    f'"high":{text(c.high)},"low":{text(c.low)},"close":{text(c.close)},"trades":{c.count},"volume":{c.count}.50000000,"vwap":{text(c.close)},'
                    f'"interval_begin":"{begin}","interval":{interval},"timestamp":"{begin}"}}]}}').encode()
        return render

    def instrument_frame(self):
        pairs = [{"symbol": row.symbol, "base": row.base, "quote": row.quote, "status": "online", "qty_precision": row.size_digits,
                  "qty_increment": 10 ** -row.size_digits, "price_precision": row.price_digits, "cost_precision": 5, "marginable": False,
                  "has_index": True, "cost_min": 0.5, "price_increment": 10 ** -row.price_digits, "qty_min": 0.0001}
                 for row in self.instruments.values()]
        return compact({"channel": "instrument", "type": "snapshot", "data": {"assets": [], "pairs": pairs}})

    # -- REST ------------------------------------------------------------------------------------------------
    def rest(self, path, query, now):
        if path == "/0/public/AssetPairs":
            rows = {altname(row): self.row(row) for row in self.instruments.values()}
            return Reply(self.recorded(path, query) or compact({"error": [], "result": rows}))
        if path == "/0/public/Time":
            return Reply(compact({"error": [], "result": {"unixtime": self.simulator.wall_ms() // 1000}}))
        return Reply(b'{"error":["EGeneral:Unknown method"]}', 404)

    def row(self, instrument):
        base = {"BTC": "XBT", "DOGE": "XDG"}.get(instrument.base, instrument.base)
        return {"altname": altname(instrument), "wsname": f"{base}/{instrument.quote}", "aclass_base": "currency", "base": "X" + base,
                "aclass_quote": "currency", "quote": "Z" + instrument.quote, "lot": "unit", "cost_decimals": 5,
                "pair_decimals": instrument.price_digits, "lot_decimals": instrument.size_digits, "lot_multiplier": 1,
                "ordermin": "0.0001", "costmin": "0.5", "tick_size": instrument.price_text(1), "status": "online"}

    # -- captures --------------------------------------------------------------------------------------------
    def family(self, payload):
        channel = CHANNEL.search(payload, 0, 120)
        symbol = SYMBOL.search(payload)
        if payload.startswith(b'{"method"') or not channel or not symbol:
            return None
        return channel[1].decode(), symbol[1].decode()

    def adopt(self, symbol, price_digits, size_digits):
        base, _, quote = symbol.partition("/")
        self.instruments[symbol] = Instrument(self.name, symbol, base, quote, "spot", price_digits, size_digits)


def well_formed(params):
    """A dict whose symbol, if any, is a list of texts and whose depth and interval are numbers."""
    return (isinstance(params, dict) and isinstance(params.get("symbol", []), list) and all(isinstance(name, str) for name in params.get("symbol", []))
            and isinstance(params.get("channel"), str) and all(isinstance(params.get(name, 1), int) for name in ("depth", "interval")))


def altname(instrument):
    return {"BTC": "XBT", "DOGE": "XDG"}.get(instrument.base, instrument.base) + instrument.quote


def window_of(instrument, position, depth):
    return instrument.best_first(position, depth)


def window_changes(before, after, event, side):
    """What a receiver of this depth must be told: deletions of levels really gone, and new or changed levels."""
    gone = {price for at, price, size in event.levels if at == side and size == 0}
    deleted = [(price, 0) for price in before if price not in after and price in gone]
    changed = [(price, size) for price, size in after.items() if before.get(price) != size]
    return deleted + changed


SIDE = Kraken
