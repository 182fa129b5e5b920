"""A cold start and a venue-wide loss of all connections, against the documented limits with their punishments."""
from fault_support import VENUES, Place, within_budgets

INSTRUMENTS = 60                 # 300 Binance spot streams and more
SPOT_CHANNELS = '["trade", "agg_trade", "quote", "ticker", "candle@1m", "candle@5m"]'
PUNISHED = ("1008", "429", "418", "4009")


def channels(text, simulator):
    """Spot books cost 250 of 4,800 REST weight each: they would be a test of patience."""
    head, _, tail = text.partition('venue = "binance-spot"')
    return head + 'venue = "binance-spot"' + tail.replace('["trade", "quote", "book"]', SPOT_CHANNELS, 1)


def test_a_cold_start_and_a_mass_reconnect_of_a_thousand_streams_stay_below_80_percent_of_every_limit():
    with Place(instruments=INSTRUMENTS, rate=1500, config=channels) as place:
        streams = place.streams()
        total = len(streams)
        assert sum(key[0] == "binance-spot" for key in streams) >= 300 and total >= 1000
        cold = place.usage()
        for venue in VENUES:
            place.fault("disconnect", venue=venue, count=99)
        place.watcher.until(lambda: len(place.simulator.connections) >= len(VENUES) and place.simulator.connections_opened >= 2 * len(VENUES),
                            "every venue has its connections again", 20.0)
        usage = place.usage()
        print(f"{total} streams; highest use of a limit: {max(cold.values()):.0%} cold, {max(usage.values()):.0%} with the reconnect")
        assert not within_budgets(usage)
        report = place.call(place.simulator.report)
        assert not [close for close in report["closes"] if any(code in close for code in PUNISHED)]
        assert not any(ban["count"] for ban in report["bans"].values())
        assert not [answer for answer in report["rest"] if answer.endswith(("429", "418"))]
