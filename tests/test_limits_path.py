"""A cold start of 5,000 streams and a venue-wide loss of all connections, against the documented limits with their punishments."""
import json
import time

from fault_support import VENUES, Place, within_budgets
from feedhandler.simulate import market
from feedhandler.supervisor import client

INSTRUMENTS, EVENTS = 125, 32    # a market of few events is soon made
BINANCE = ["trade", "agg_trade", "quote", "ticker", "candle@1m", "candle@3m", "candle@5m", "candle@15m"]
CHANNELS = {"binance-spot": BINANCE, "binance-usdm": BINANCE, "binance-coinm": BINANCE, "okx": ["trade", "quote", "book", "ticker", "candle@1m", "candle@5m"],
            "kraken": ["trade", "quote", "book", "candle@1m", "candle@5m"], "deribit": ["trade", "quote", "book10", "ticker", "candle@1m"]}
PUNISHED = ("1008", "429", "418", "4009")
WAIT_S = 80.0


def channels(text, simulator):
    """Binance's books cost up to 250 of 4,800 REST weight each: 125 of them would be a test of patience."""
    for venue, names in CHANNELS.items():
        head, _, tail = text.partition(f'venue = "{venue}"')
        text = head + f'venue = "{venue}"' + tail.replace('["trade", "quote", "book"]', json.dumps(names), 1)
    return text + "\n[load]\nstreams_per_worker = 6000\n"


def until_served(place, opened):
    """Every connection is up, opened so many in all, and every stream acknowledged: a quiet one has no data to wait for."""
    deadline = time.monotonic() + WAIT_S
    while True:
        document = client.request(place.name, "status")
        streams, connections = document["streams"], document["connections"]
        if (streams["total"] >= 5000 and streams.get("live", 0) + streams.get("acked", 0) == streams["total"]
                and connections["up"] == connections["planned"] and place.simulator.connections_opened >= opened + connections["planned"]):
            return document
        assert time.monotonic() < deadline, (streams, connections, document["reasons"])
        time.sleep(0.2)


def test_a_cold_start_and_a_mass_reconnect_of_five_thousand_streams_stay_below_80_percent_of_every_limit(monkeypatch):
    monkeypatch.setattr(market, "EVENTS_PER_LOOP", EVENTS)
    monkeypatch.setattr(market, "EVENTS_PER_LOOP_MIN", EVENTS)
    with Place(instruments=INSTRUMENTS, rate=500, config=channels, ready=False) as place:
        until_served(place, 0)
        cold, opened = place.usage(), place.simulator.connections_opened
        for venue in VENUES:
            place.fault("disconnect", venue=venue, count=99)
        document = until_served(place, opened)
        usage = place.usage()
        print(f"{document['streams']['total']} streams on {document['connections']['up']} connections; "
              f"highest use of a limit: {max(cold.values()):.0%} cold, {max(usage.values()):.0%} with the reconnect")
        assert not within_budgets(usage)
        report = place.call(place.simulator.report)
        assert not [close for close in report["closes"] if any(code in close for code in PUNISHED)]
        assert not any(ban["count"] for ban in report["bans"].values())
        assert not [answer for answer in report["rest"] if answer.endswith(("429", "418"))]
