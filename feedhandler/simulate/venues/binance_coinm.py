"""The other side of Binance COIN-M: one path, sizes in contracts, index prices by pair."""
from feedhandler.simulate.market import Instrument, base_price, price_digits
from feedhandler.simulate.venues.binance_futures import BinanceFutures
from feedhandler.simulate.venues.side import Stream


class BinanceCoinm(BinanceFutures):
    name = "binance-coinm"
    paths = {"coinm": "/stream"}
    api = "/dapi/v1"
    product = 2
    status_key = "contractStatus"

    def listing(self, count):
        for index in range(count):
            base, price = base_price(index)
            symbol = base + "USD_PERP"
            self.instruments[symbol] = Instrument(self.name, symbol, base, "USD", "perpetual", price_digits(price), 0, price,
                                                  extra={"pair": base + "USD", "margin": base})

    def row_more(self):
        return {"contractSize": 100}

    def make_stream(self, endpoint, wire):
        pair, _, rest = wire.partition("@")
        if rest.startswith("indexPrice") and "_" not in pair:    # the index belongs to the pair, not to the contract
            instrument = self.instruments.get(pair.upper() + "_PERP")
            return self.index_stream(endpoint, wire, instrument) if instrument else None
        return super().make_stream(endpoint, wire)

    def index_stream(self, endpoint, wire, instrument):
        stream = Stream(endpoint, wire, "indexPrice", instrument, family=("indexPrice", instrument.extra["pair"]))

        def body(position, second, now_ms):
            return (f'{{"e":"indexPriceUpdate","E":{now_ms},"i":"{instrument.extra["pair"]}",'
                    f'"p":"{instrument.price_text(instrument.touch(position)[0] - 1)}"}}')
        stream.render = self.slow(stream, body)
        return stream

    def depth_body(self, instrument, bids, asks, last):
        body = super().depth_body(instrument, bids, asks, last)
        return body[:-1] + f',"symbol":"{instrument.symbol}","pair":"{instrument.extra["pair"]}"}}'.encode()


SIDE = BinanceCoinm
