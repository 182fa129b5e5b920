"""Connections are replaced before their venue cuts them: never two of an address in a minute, however they were opened."""
import random

import pytest

from feedhandler.capacity import rollover

DAY_S, MINUTE_S, STEP_S = 86_400.0, 60.0, 30.0


def simulated(counts, days, seed, reconnects_a_day=20):
    """Ages at replacement, and starts of replacement by address, of addresses with so many connections, all opened in one minute."""
    chance = random.Random(seed)
    opened = [{id: chance.uniform(0, MINUTE_S) for id in range(count)} for count in counts]
    last, asked, starts, ages = [None] * len(counts), [0.0] * len(counts), [[] for _ in counts], []
    now = 0.0
    while now < days * DAY_S:
        now += STEP_S
        for at, held in enumerate(opened):
            if chance.random() < reconnects_a_day * STEP_S / DAY_S:   # the network's own: born again
                id = chance.choice(list(held))
                ages.append(now - held[id])
                held[id] = now
            if now < asked[at]:
                continue
            id, asked[at] = rollover.coming([(id, born, DAY_S) for id, born in held.items()], now, last[at])
            if now < asked[at]:
                continue
            ages.append(now - held.pop(id))
            held[max(held, default=id) + 1] = now + chance.choice((0.1, 5.0))
            last[at] = now
            asked[at] = now + rollover.SPACING_S
            starts[at].append(now)
    return ages + [now - born for held in opened for born in held.values()], starts


def test_thirty_days_of_500_connections_see_no_cut_and_no_two_replacements_in_a_minute():
    ages, starts = simulated((250, 150, 60, 40), 30, 1)
    assert all(later - sooner >= MINUTE_S for times in starts for sooner, later in zip(times, times[1:]))
    assert len({int(time // MINUTE_S) for time in starts[0]}) == len(starts[0]), "no two in the same minute of the clock either"
    assert max(ages) < 0.95 * DAY_S and sum(ages) / len(ages) > 0.4 * DAY_S, "well before the cut, and not for nothing"
    print(f"{len(ages):,} replacements in 30 simulated days, oldest {max(ages) / 3600:.1f} h, mean {sum(ages) / len(ages) / 3600:.1f} h")


@pytest.mark.parametrize("count", [1, 2, 60, 500])
def test_one_address_that_opened_everything_in_one_minute_is_in_time(count):
    ages, starts = simulated((count,), 2, count, 0)
    assert max(ages) < DAY_S and all(later - sooner >= MINUTE_S for sooner, later in zip(starts[0], starts[0][1:]))


def test_the_earliest_deadline_goes_first_and_nobody_before_its_time():
    young, old = (1, 50_000.0, DAY_S), (2, 0.0, DAY_S)
    id, when = rollover.coming([young, old], 60_000.0, None)
    assert id == 2 and 0.7 * DAY_S < when < 0.9 * DAY_S
    assert rollover.coming([young, old], when, when - 1.0)[1] >= when - 1.0 + MINUTE_S
    assert rollover.coming([], 0.0, None) == (None, None)
