"""The other side of Binance spot, JSON: one path, books from REST, contiguous update ids."""
from feedhandler.simulate.market import Instrument, base_price, price_digits
from feedhandler.simulate.venues.binance import BinanceSide


class BinanceSpot(BinanceSide):
    name = "binance-spot"
    paths = {"spot.json": "/stream"}

    def listing(self, count):
        for index in range(count):
            base, price = base_price(index)
            digits = max(2, price_digits(price))
            self.instruments[base + "USDT"] = Instrument(self.name, base + "USDT", base, "USDT", "spot", digits, 5, price,
                                                         8 - digits, 3)

    def row(self, instrument):
        return {"symbol": instrument.symbol, "status": "TRADING", "baseAsset": instrument.base, "baseAssetPrecision": 8,
                "quoteAsset": instrument.quote, "quotePrecision": 8, "quoteAssetPrecision": 8, "orderTypes": ["LIMIT", "MARKET"],
                "icebergAllowed": True, "ocoAllowed": True, "isSpotTradingAllowed": True, "isMarginTradingAllowed": True,
                "filters": self.filters(instrument), "permissions": ["SPOT"]}


SIDE = BinanceSpot
