"""The other side of Binance USD-M: two routes; a stream of the other route is acked and stays silent."""
from feedhandler.simulate.market import Instrument, base_price, price_digits
from feedhandler.simulate.venues.binance_futures import BinanceFutures

PUBLIC = ("depth", "bookTicker", "trade")


class BinanceUsdm(BinanceFutures):
    name = "binance-usdm"
    paths = {"usdm.public": "/public/stream", "usdm.market": "/market/stream"}
    api = "/fapi/v1"

    def listing(self, count):
        for index in range(count):
            base, price = base_price(index)
            symbol = base + "USDT"
            self.instruments[symbol] = Instrument(self.name, symbol, base, "USDT", "perpetual", price_digits(price), 3, price,
                                                  extra={"pair": symbol, "margin": "USDT"})

    def routed(self, endpoint, channel):
        return (channel in PUBLIC) == (endpoint == "usdm.public") and channel != "indexPrice"


SIDE = BinanceUsdm
