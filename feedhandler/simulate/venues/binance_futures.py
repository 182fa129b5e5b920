"""What USD-M and COIN-M share: books chained by pu, market-only trades, mark prices, liquidations."""
from feedhandler.simulate.market import ASK, BID
from feedhandler.simulate.venues.binance import BinanceSide, levels_text, pairs_text
from feedhandler.simulate.venues.side import windows

FUNDING_INTERVAL_MS = 28_800_000
LIQUIDATION_EVERY_S = 5


class BinanceFutures(BinanceSide):
    contiguous = False
    derivative = True
    ping_s = 180
    pong_deadline_s = 600
    messages_per_s = 10
    weight_per_minute = 2400
    depth_weights = ((50, 2), (100, 5), (500, 10), (1000, 20))
    info_weight = 1
    product = 1     # st: 1 USD-M, 2 COIN-M

    def fields(self, instrument):
        return f',"ps":"{instrument.extra["pair"]}","st":{self.product}'

    def depth_text(self, instrument, bids, asks):
        return (f'{{"e":"depthUpdate","E":%d,"T":%d,"s":"{instrument.symbol}"{self.fields(instrument)},"U":%d,"u":%d,"pu":%d,'
                f'"b":[{bids}],"a":[{asks}]}}')

    def chained(self, instrument, parts):
        """Render templates of (E, T, U, u, pu)."""
        start, span = instrument.sequence_start, instrument.span

        def render(index, cycle, now_ms):
            template, first, last, previous = parts[index]
            base = start + cycle * span
            return template % (now_ms, now_ms - 2, base + first, base + last, base + previous)
        return render

    def depth(self, stream, instrument, interval):
        stream.channel = "book"
        parts, previous = [], 0
        for event in instrument.loop:
            body = self.depth_text(instrument, levels_text(instrument, event.levels, BID), levels_text(instrument, event.levels, ASK))
            parts.append((self.wrapped(stream, body), event.first, event.last, previous))
            previous = event.last
        return self.chained(instrument, parts)

    def window(self, stream, instrument, interval):
        stream.channel = "window"
        parts, previous = [], 0
        for event, bids, asks in windows(instrument, stream.depth):
            body = self.depth_text(instrument, pairs_text(instrument, bids), pairs_text(instrument, asks))
            parts.append((self.wrapped(stream, body), event.first, event.last, previous))
            previous = event.last
        return self.chained(instrument, parts)

    def trade_body(self, instrument, price, size, maker):
        return (f'{{"e":"trade","E":%d,"s":"{instrument.symbol}"{self.fields(instrument)},"t":%d,"p":"{price}","q":"{size}",'
                f'"T":%d,"X":"MARKET","m":{maker}}}')

    def book_ticker_body(self, instrument, bid, bid_size, ask, ask_size):
        return (f'{{"e":"bookTicker","u":%d,"s":"{instrument.symbol}"{self.fields(instrument)},"b":"{bid}","B":"{bid_size}",'
                f'"a":"{ask}","A":"{ask_size}","T":%d,"E":%d}}')

    def mark_price(self, stream, instrument, interval):
        def body(position, second, now_ms):
            bid = instrument.touch(position)[0]
            text = instrument.price_text
            return (f'{{"e":"markPriceUpdate","E":{now_ms},"s":"{instrument.symbol}"{self.fields(instrument)},"p":"{text(bid)}000","i":"{text(bid - 2)}91",'
                    f'"P":"{text(bid - 1)}","r":"0.000{second % 90 + 10}","T":{now_ms - now_ms % FUNDING_INTERVAL_MS + FUNDING_INTERVAL_MS}}}')
        return self.slow(stream, body)

    def force_order(self, stream, instrument, interval):
        def body(position, second, now_ms):
            if second % LIQUIDATION_EVERY_S:
                return None
            bid = instrument.price_text(instrument.touch(position)[0])
            return (f'{{"e":"forceOrder","E":{now_ms},"o":{{"s":"{instrument.symbol}"{self.fields(instrument)},"S":"SELL","o":"LIMIT","f":"IOC",'
                    f'"q":"{instrument.size_text(14)}","p":"{bid}","ap":"{bid}","X":"FILLED","l":"{instrument.size_text(14)}",'
                    f'"z":"{instrument.size_text(14)}","T":{now_ms - 3}}}}}')
        return self.slow(stream, body)

    def depth_body(self, instrument, bids, asks, last):
        now_ms = self.simulator.wall_ms()
        return (f'{{"lastUpdateId":{last},"E":{now_ms},"T":{now_ms - 4},"bids":[{pairs_text(instrument, bids)}],'
                f'"asks":[{pairs_text(instrument, asks)}]}}').encode()

    def row(self, instrument):
        return {"symbol": instrument.symbol, "pair": instrument.extra["pair"], "contractType": "PERPETUAL", "deliveryDate": 4_133_404_800_000,
                "onboardDate": 1_569_398_400_000, self.status_key: "TRADING", "baseAsset": instrument.base, "quoteAsset": instrument.quote,
                "marginAsset": instrument.extra["margin"], "pricePrecision": instrument.price_digits, "quantityPrecision": instrument.size_digits,
                "baseAssetPrecision": 8, "quotePrecision": 8, "underlyingType": "COIN", "filters": self.filters(instrument),
                "orderTypes": ["LIMIT", "MARKET"], **self.row_more()}

    status_key = "status"

    def row_more(self):
        return {}

    def adopt(self, symbol, price_digits, size_digits):
        super().adopt(symbol, price_digits, size_digits)
        instrument = self.instruments[symbol]
        instrument.extra.update(pair=symbol.partition("_")[0], margin=instrument.quote if self.product == 1 else instrument.base)
