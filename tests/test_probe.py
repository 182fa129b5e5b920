"""capacity probe: verdicts of made-up steps, and whole probes of simulated venues that throttle, drop, refuse or do neither."""
import contextlib
import json
import os
import pathlib
import re
import signal
import subprocess
import sys

import place
import pytest
from click.testing import CliRunner
from hypothesis import given, settings, strategies as st

from feedhandler import config, probe
from feedhandler.capacity import ramp
from feedhandler.cli import main
from feedhandler.supervisor import ledger

USAGE = 2


def step(**fields):
    return ramp.judge(ramp.Step(**{"streams": 10, "seconds": 5.0, "due_per_s": 1000.0, "messages_per_s": 1000.0, "lag_p50_ms": 0.0,
                                   "lag_p99_ms": 5.0, "lag_rise_ms_per_s": 0.0} | fields))


# -- verdicts ----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("fields, verdict, says", [
    ({}, ramp.FINE, ""),
    ({"lag_p50_ms": None, "lag_p99_ms": None, "lag_rise_ms_per_s": None}, ramp.FINE, ""),
    ({"lag_p50_ms": -30.0, "lag_rise_ms_per_s": -40.0}, ramp.FINE, ""),
    ({"lag_rise_ms_per_s": 15.0}, ramp.FINE, ""),
    ({"lag_rise_ms_per_s": 25.0, "seconds": 5.0}, ramp.THROTTLED, "lag grew by 25 ms a second"),
    ({"lag_rise_ms_per_s": 60.0, "seconds": 1.0}, ramp.FINE, ""),          # 30 ms in half a second: one late timer
    ({"lag_p50_ms": 300.0}, ramp.THROTTLED, "lag stood 300 ms above"),
    ({"messages_per_s": 600.0}, ramp.FINE, "quieter"),
    ({"messages_per_s": 600.0, "gaps": 3}, ramp.THROTTLED, "600 of about 1,000 messages/s came, with 3 gaps"),
    ({"gaps": 3}, ramp.FINE, ""),
    ({"messages_per_s": 0.0}, ramp.FINE, "the streams are silent"),
    ({"messages_per_s": 600.0, "due_per_s": None, "gaps": 3}, ramp.FINE, ""),
    ({"lag_rise_ms_per_s": 500.0, "queue_bytes": 1 << 20}, ramp.BEHIND, "this machine is too slow"),
    ({"complaint": "429 too many"}, ramp.THROTTLED, "the venue said: 429 too many"),
    ({"closed": "1008 Slow consumer", "complaint": "x", "queue_bytes": 1 << 20}, ramp.DROPPED, "closed the connection with 1008 Slow consumer"),
])
def test_a_step_is_judged_by_its_lag_against_its_own_baseline_its_queue_and_what_the_venue_did(fields, verdict, says):
    judged = step(**fields)
    assert judged.verdict == verdict and says in judged.reason and bool(judged.reason) == bool(says)


@settings(max_examples=100, deadline=None)
@given(st.floats(-1e6, 1e6), st.lists(st.floats(0, 30), min_size=20, max_size=60))
def test_a_constant_clock_offset_and_noise_are_no_lag(offset, noise):
    lags = ramp.Lags()
    for _ in range(2):
        for index, late in enumerate(noise):
            lags.add(1, index * 5 / len(noise), offset + late)
        p50, p99, grows = lags.step()
    assert abs(p50) < 1e-6 and p99 <= 30 and step(lag_p50_ms=p50, lag_rise_ms_per_s=grows, seconds=5.0).verdict == ramp.FINE


@pytest.mark.parametrize("grows", [25.0, 200.0, 1000.0])
def test_a_connection_that_falls_behind_is_seen_through_noise_and_an_offset_of_its_clock(grows):
    lags = ramp.Lags()
    for index in range(500):
        lags.add(4, index / 100, -77.0 + index % 7 + grows * index / 100)
    assert lags.step()[2] == pytest.approx(grows, rel=0.05)


def test_each_kind_of_record_has_its_own_baseline_also_one_met_later():
    lags = ramp.Lags()
    for index in range(20):
        lags.add("trade", index / 10, 5.0)
    assert lags.step()[:2] == (0.0, 0.0)
    for index in range(20):
        lags.add("trade", index / 10, 5.0)
        lags.add("book", index / 10, 105.0)
    assert lags.step() == (0.0, 0.0, 0.0)
    assert lags.step() == (None, None, None)


def test_what_is_due_is_each_streams_own_rate_and_its_channels_mean_for_one_never_seen():
    rates = {1: ("trade", 10.0), 2: ("trade", 30.0), 3: ("book", 5.0)}
    assert ramp.due([(1, "trade"), (3, "book")], rates) == 15.0
    assert ramp.due([(1, "trade"), (9, "trade")], rates) == 30.0
    assert ramp.due([(1, "trade"), (9, "quote")], rates) is None and ramp.due([(1, "trade")], {}) is None


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 5000), st.integers(1, 100))
def test_steps_rise_to_the_most_there_is(most, steps):
    found = ramp.sizes(most, steps)
    assert len(found) <= steps and found == sorted(set(found)) and (found[-1:] == [most] if most else found == [])


def test_a_real_venue_is_left_at_the_first_sign_and_a_simulated_one_when_it_drops_us():
    throttled, complained = step(lag_rise_ms_per_s=500.0), step(complaint="429")
    assert ramp.goes_on(step(), True) and not ramp.goes_on(throttled, True)
    assert ramp.goes_on(throttled, False) and not ramp.goes_on(complained, False)
    assert not ramp.goes_on(step(closed="1008"), False) and not ramp.goes_on(step(queue_bytes=1 << 20), False)


def test_the_summary_says_what_was_carried_where_lag_grew_and_where_it_was_dropped():
    steps = [step(messages_per_s=4200.0, due_per_s=4200.0), step(messages_per_s=4100.0, due_per_s=6000.0, lag_rise_ms_per_s=320.0),
             step(due_per_s=8000.0, closed="1008 Slow consumer")]
    found = ramp.summary(steps)
    assert found["text"] == ("the connection carried 4,200 messages/s; at about 6,000 it was throttled and brought 4,100: lag grew by 320 ms a second; "
                             "at about 8,000 the venue closed the connection with 1008 Slow consumer")
    assert (found["verdict"], ramp.advised(found, 20_000)) == (ramp.DROPPED, 4100)
    assert ramp.advised(ramp.summary(steps[:1]), 20_000) is None and ramp.advised(ramp.summary(steps[:1]), 1000) == 4200
    for nothing in ([], [step(messages_per_s=0.0)]):
        assert (ramp.summary(nothing)["verdict"], ramp.summary(nothing)["text"], ramp.advised(ramp.summary(nothing), 1)) == ("", "nothing was measured", None)
    assert ramp.advised(ramp.summary([step(queue_bytes=1 << 20)]), 20_000) is None


# -- whole probes --------------------------------------------------------------------------------------------------------

def leftovers():
    return [name for name in os.listdir("/dev/shm") if name.startswith("feedhandler-probe-")]


@contextlib.contextmanager
def nothing_is_left():
    before = leftovers()
    yield
    assert set(leftovers()) <= set(before)


def probed(folder, path, *words):
    with nothing_is_left():
        done = place.feedhandler("capacity", "probe", "-c", path, "--step-seconds", "1", "--json", *words, folder=folder)
    assert done.returncode == 0 and done.stderr == "", (done.stdout, done.stderr)
    return json.loads(done.stdout)


def test_a_connection_that_is_throttled_is_told_from_the_rate_on_and_then_dropped_with_its_code(tmp_path):
    """700 messages a second pass; every stream has 50."""
    with place.simulated(tmp_path, "--venue", "binance-spot", "--instruments", "16", "--rate-each", "50", "--throttle-above", "700",
                         "--throttle-drop", "0.7") as (_, path):
        document = probed(tmp_path, path, "--venue", "binance-spot", "--steps", "3")
    verdicts = [row["verdict"] for row in document["steps"]]
    assert verdicts[0] == "fine" and verdicts[-1] == "dropped" and set(verdicts[1:-1]) <= {"fine", "throttled"}, document
    assert document["verdict"] == "dropped" and "1008 Slow consumer" in document["steps"][-1]["closed"]
    held = [row for row in document["steps"] if row["verdict"] == "throttled"]
    assert all(row["due_per_s"] > 700 and row["lag_p99_ms"] > 50 for row in held), document
    assert 300 < document["carried_per_s"] < 850 and document["advised_per_s"] <= document["carried_per_s"]
    written = path.read_text() + "\n" + document["config"]
    assert config.parse(written).venues["binance-spot"].limits["spot.json"].messages_per_s == document["advised_per_s"]


def test_a_venue_without_a_rate_limit_is_fine_to_the_last_step_books_included(tmp_path):
    with place.simulated(tmp_path, "--venue", "okx", "--instruments", "4", "--rate-each", "40") as (_, path):
        document = probed(tmp_path, path, "--venue", "okx", "--steps", "2", "--channels", "trade,quote,book")
    assert [row["verdict"] for row in document["steps"]] == ["fine", "fine"], document
    assert document["verdict"] == "fine" and document["advised_per_s"] is None and "no limit was met with 12 streams" in document["text"]
    first, second = document["steps"]
    assert (first["streams"], second["streams"]) == (6, 12) and second["messages_per_s"] > 1.5 * first["messages_per_s"]
    assert second["due_per_s"] == pytest.approx(second["messages_per_s"], rel=0.5) and second["bytes_per_s"] > 100 * second["messages_per_s"]
    budgets = json.loads((pathlib.Path(tmp_path) / "feedhandler" / "budgets.json").read_text())["budgets"]
    connect = next(saved for key, saved in budgets.items() if key.startswith("connect okx"))
    assert sum(amount for _, amount in connect["parts"][0]) == 1, "one attempt, known to every instance"


def test_a_real_venue_is_left_at_the_first_step_that_is_throttled(tmp_path, monkeypatch):
    """The simulated one, taken for a real one: it would drop the connection a second later."""
    monkeypatch.setattr(probe, "is_real", lambda home: True)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    with place.simulated(tmp_path, "--venue", "binance-spot", "--instruments", "8", "--rate-each", "50", "--throttle-above", "300") as (_, path), nothing_is_left():
        options = probe.Options("binance-spot", ("trade", "quote"), 3, 1.0)
        document = probe.run(config.load(path), str(tmp_path), options, lambda *_: None, lambda step: None)
    verdicts = [row["verdict"] for row in document["steps"]]
    assert verdicts[-1] == "throttled" and set(verdicts[:-1]) <= {"fine"} and document["verdict"] == "throttled", document
    assert document["steps"][-1]["streams"] < document["streams_max"] == 16 and document["held_to_per_s"] < 450


def test_interrupted_it_ends_at_once_says_what_it_has_and_leaves_nothing(tmp_path):
    with place.simulated(tmp_path, "--venue", "binance-spot", "--instruments", "4", "--rate-each", "50", "--plain") as (_, path), nothing_is_left():
        process = subprocess.Popen([sys.executable, "-m", "feedhandler", "capacity", "probe", "--venue", "binance-spot", "-c", str(path), "--steps", "2",
                                    "--step-seconds", "1"], env=place.environment(tmp_path) | {"PYTHONUNBUFFERED": "1"}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        seen = [process.stdout.readline(), process.stdout.readline()]     # the head, and the first step
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=10)
    assert "fine" in seen[1] and process.returncode == 1 and errors == "", (seen, output, errors)
    assert "interrupted" in output and "the connection carried" in output


# -- what it refuses -----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("words", [[], ["--yes-probe-real-venue"], ["--i-accept-being-banned"]])
def test_a_real_venue_is_not_touched_without_both_flags(monkeypatch, words):
    monkeypatch.setattr(probe, "run", lambda *_: pytest.fail("nothing may be sent"))
    done = CliRunner().invoke(main, ["capacity", "probe", "--venue", "okx", *words], prog_name="feedhandler")
    assert done.exit_code == USAGE and "real venue (https://www.okx.com" in done.stderr and "nothing was sent" in done.stderr
    assert "--yes-probe-real-venue and --i-accept-being-banned" in done.stderr


def test_with_both_flags_it_says_beforehand_what_it_will_do_and_how_long(monkeypatch):
    monkeypatch.setattr(probe, "run", lambda *_: {"interrupted": False})
    done = CliRunner().invoke(main, ["capacity", "probe", "--venue", "okx", "--json", "--yes-probe-real-venue", "--i-accept-being-banned"], prog_name="feedhandler")
    assert done.exit_code == 0 and "8 steps of 10 s" in done.stderr and "about 2 min" in done.stderr and "80 %" in done.stderr


def test_one_address_beyond_this_machine_makes_a_venue_real():
    urls = "[venues.kraken]\nurls.\"spot.v2\" = \"{}\"\nrest = \"{}\"\n"
    for first, second, real in (("ws://127.0.0.1:1/x", "http://[::1]:2", False), ("wss://localhost:1/x", "https://127.0.0.9", False),
                                ("wss://ws.kraken.com/v2", "http://127.0.0.1:1", True), ("ws://127.0.0.1:1/x", "https://api.kraken.com", True)):
        assert probe.is_real(probe.home_of(config.parse(urls.format(first, second)), "/", "kraken")) is real


@pytest.mark.parametrize("words, says", [
    (["--venue", "nasdaq"], "use one of binance-coinm"), (["--venue", "okx", "--channels", "trades"], "use one of trade"),
    (["--venue", "okx", "--channels", ","], "give one or more"), (["--venue", "okx", "--endpoint", "private"], "use one of public"),
    (["--venue", "okx", "--steps", "0"], "see feedhandler capacity probe --help"), ([], "see feedhandler capacity probe --help")])
def test_a_wrong_argument_is_one_sentence_that_says_what_is_right(words, says):
    done = CliRunner().invoke(main, ["capacity", "probe", *words], prog_name="feedhandler")
    assert done.exit_code == USAGE and says in done.stderr and len(done.stderr.strip().splitlines()) == 1


def test_a_venue_that_refuses_bans_or_is_not_there_fails_with_one_sentence_and_leaves_nothing(tmp_path):
    def said(path):
        with nothing_is_left():
            done = place.feedhandler("capacity", "probe", "--venue", "binance-spot", "-c", path, folder=tmp_path)
        assert done.returncode == 1 and len(done.stderr.strip().splitlines()) == 1 and "Traceback" not in done.stderr, done.stderr
        return done.stderr
    with place.simulated(tmp_path, "--venue", "binance-spot", "--instruments", "2", "--fault", "refuse,seconds=60", "--plain") as (_, path):
        assert "no connection: 503" in said(path)
        budgets = ledger.Ledger(str(tmp_path / "feedhandler" / "budgets.json"), pytest.fail)
        home = probe.home_of(config.load(path), str(tmp_path), "binance-spot")
        budgets.open(home.connect_key("spot.json"), home.attempt_windows("spot.json"))
        budgets.ban(home.connect_key("spot.json"), 600, "418 of another instance")
        assert re.search("has no connection attempt left for (59.|600) s", said(path))
    assert "its instrument list cannot be read" in said(path)
