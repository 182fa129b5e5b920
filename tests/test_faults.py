"""Faults of a venue, injected one by one into simulated ones, and what a reader sees of each: never a wrong book.

Every record of every instrument is checked against the market's own book (fault_support.Watcher), also of those that a
test does not touch: a wrong book, a doubled or lost event or a wrong number fails whatever test reads it.
"""
import pytest

from fault_support import VENUES, Place

CHECKED = ("kraken",)            # venues that give something to see a corrupted number by
RESYNC_S = 8.0


@pytest.fixture(scope="module")
def place():
    with Place(instruments=10, rate=1500) as place:
        place.watcher.until(lambda: all(seen.phase == "LIVE" for seen in place.watcher.seen.values()), "all books")
        yield place


@pytest.fixture
def fresh(place):
    """An instrument of a venue that no test has disturbed yet."""
    used = place.__dict__.setdefault("used", set())

    def take(venue):
        seen = next(seen for (name, _), seen in place.watcher.seen.items() if name == venue and seen not in used)
        used.add(seen)
        return seen
    return take


def disturbed(place, seen, kind, **fields):
    """Inject a frame fault into the instrument's book and wait until it was sent."""
    fault = place.fault(kind, venue=seen.market.venue, symbol=seen.market.symbol, channel="book", **fields)
    place.watcher.until(lambda: fault.injected, f"{kind} is injected")
    return fault


@pytest.mark.parametrize("venue", VENUES)
@pytest.mark.parametrize("kind", ["drop", "reorder"])
def test_a_lost_or_late_book_message_is_a_gap_then_a_new_book_and_nobody_else_is_disturbed(place, fresh, venue, kind):
    seen = fresh(venue)
    place.watcher.advance(2)
    before, told, story = place.watcher.counts(but=[seen]), seen.gaps, len(seen.story)
    disturbed(place, seen, kind)
    place.watcher.until(lambda: seen.gaps > told, "the gap is told", RESYNC_S)
    place.watcher.until(lambda: seen.phase == "LIVE", "the book is whole again", RESYNC_S)
    place.watcher.advance(3)
    assert seen.gaps == told + 1
    assert seen.story[story] == "GAP" and "RESET" in seen.story[story:] and seen.story[-1] == "LIVE"
    assert place.watcher.counts(but=[seen]) == before
