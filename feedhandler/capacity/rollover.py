"""Which connection is replaced next, before its venue cuts it for its age. Pure; the clock is passed in.

Of one address never two in the same minute, the earliest deadline first, spread over the time there is: 500 connections
opened within a minute are replaced over many hours of the next day, and from then on they are apart.
"""
SPACING_S = 60.0    # between two of one address
MARGIN = 0.10       # of a lifetime: a connection is replaced so long before the cut; a worker left alone reconnects within it
LEAD_FACTOR = 2.0   # an address with n connections begins n · SPACING_S · this before the first deadline, so that half the minutes are spare
LEAD_MIN, LEAD_MAX = 0.10, 0.70   # … but no sooner and no later than these shares of a lifetime
HASTE = 0.7         # of the pace that would just do


def coming(connections, now_s, last_s):
    """(id, when) of the connection of one address that is replaced next; (None, None): there is none. What happens until then
    can only make it later. connections: (id, opened_s, lifetime_s) that are up; last_s: when the last one was begun, None: never."""
    if not connections:
        return None, None
    ends = sorted((opened_s + lifetime_s * (1 - MARGIN), id, lifetime_s) for id, opened_s, lifetime_s in connections)
    end_s, id, lifetime_s = ends[0]
    begin_s = end_s - min(max(len(ends) * SPACING_S * LEAD_FACTOR, lifetime_s * LEAD_MIN), lifetime_s * LEAD_MAX)
    if last_s is not None:
        pace_s = HASTE * min((end[0] - now_s) / count for count, end in enumerate(ends, 1))   # with which every deadline is kept
        begin_s = max(begin_s, last_s + max(SPACING_S, pace_s))
    return id, begin_s
