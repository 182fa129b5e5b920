"""capacity's screen: readable with hundreds of connections, what is full first on top, times in units a person uses."""
import pytest

from feedhandler.cli import headroom


def row(where, what, used, limit, learned=False, reached_s=None):
    return {"where": where, "what": what, "used": used, "limit": limit, "learned": learned, "reached_s": reached_s}


def shown(capsys, rows, connections=(), every=False):
    headroom.show(rows, connections, every)
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("seconds, text", [(0.2, "1 s"), (45, "45 s"), (59.6, "1 min"), (90, "1 min"), (720, "12 min"), (3600, "1 h"), (12_000, "3 h 20 min"),
                                           (86_400 * 5 + 4 * 3600 + 5, "5 d 4 h"), (86_400 * 364, "364 d"), (86_400 * 400, "over a year")])
def test_a_forecast_is_told_in_the_units_of_a_person(seconds, text):
    assert headroom.span(seconds) == text


def test_a_bar_is_never_longer_than_its_frame_and_needs_a_limit():
    assert headroom.bar(0, 10) == "[....................] 0%" and headroom.bar(5, 10) == "[##########..........] 50%"
    assert headroom.bar(30, 10) == "[####################] 300%" and headroom.bar(3, None) == ""


def test_what_is_reached_first_stands_on_top_then_what_is_fullest_then_what_has_no_limit():
    rows = [row("connection 1", "a", 5, None), row("connection 2", "b", 10, 100), row("connection 3", "c", 90, 100), row("connection 4", "d", 20, 100, True, 7200.0),
            row("connection 5", "e", 100, 100, True, 0.0), row("connection 6", "f", 50, 100, True, 90 * 86_400.0)]
    assert [found["what"] for found in headroom.worst_first(rows)] == list("edcfba")


def test_three_hundred_connections_show_the_worst_and_say_how_many_more_there_are(capsys):
    rows = [row(f"connection {id}", what, id, 400, what == "messages/s") for id in range(300) for what in ("streams", "messages/s")]
    rows += [row("connection 7", "characters", 3, None)] + [row(f"worker {id}", "cpu", 0.1 * id, 0.6, True) for id in range(2)]
    connections = [{"id": id, "venue": "okx", "endpoint": "public", "worker": id % 2} for id in range(300)]
    lines = shown(capsys, rows, connections)
    assert len(lines) == 3 + 1 + headroom.LINES_SHOWN + 3
    assert lines[1].startswith("worker 1") and "~0.1" in lines[1] and lines[5].startswith("connection 299 okx/public worker 1") and " 101 " in lines[5]
    assert lines[-2] == "and 580 more of connections, none fuller nor full sooner; --all shows them"
    every = shown(capsys, rows, connections, every=True)
    assert len(every) == 3 + 1 + 601 + 2 and not any("--all" in line for line in every) and any("characters" in line for line in every)


def test_a_growing_budget_says_when_it_is_full(capsys):
    rows = [row("worker 0", "cpu", 0.3, 0.6, True, 12_000.0), row("address okx/public", "connections", 24, 24, False, None), row("worker 1", "cpu", 0.7, 0.6, True, 0.0)]
    lines = shown(capsys, rows)
    assert lines[1].endswith("full") and lines[2].endswith("[##########..........] 50%   3 h 20 min") and "24     24     0  [####################] 100%" in lines[5]
    headroom.forecast(rows[0])
    headroom.forecast(rows[2])
    headroom.forecast(None)
    assert capsys.readouterr().out == "at the present growth worker 0 reaches its cpu in 3 h 20 min\nworker 1 is at its limit of cpu\n"
