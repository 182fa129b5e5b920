"""Subscriptions changed in a living instance, by the product's own commands, beside streams that must not notice."""
import json
import pathlib
import time

import pytest

import feedhandler
from place import feedhandler as verb
from place import running

WAIT_S = 20.0


@pytest.fixture(scope="module")
def living(tmp_path_factory):
    folder = tmp_path_factory.mktemp("changes")
    with running(folder, "--venue", "okx", "--instruments", "4", "--rate", "400") as (name, config):
        yield folder, name, pathlib.Path(config)


def rows(living, *words):
    folder, name, _ = living
    done = verb(*words, "-n", name, "--json", folder=folder)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def streams(living):
    return {(row["symbol"], row["channel"]): row for row in rows(living, "subs", "list")["streams"]}


def until_live(living, *keys):
    deadline = time.monotonic() + WAIT_S
    while not all(streams(living).get(key, {}).get("state") == "LIVE" for key in keys):
        assert time.monotonic() < deadline, keys
    return streams(living)


class Undisturbed:
    """Within it, what was there before and after lost nothing: no gap, no reconnect, no record of the reader's."""

    def __init__(self, living):
        self.living = living

    def __enter__(self):
        self.feed = feedhandler.attach(self.living[1])
        self.before, self.conns = streams(self.living), rows(self.living, "conns")["connections"]
        return self

    def __exit__(self, kind, *_):
        lost = 0
        while len(batch := self.feed.poll()):
            lost += batch.lost
        self.feed.close()
        if kind is not None:
            return
        after = {row["id"]: row for row in rows(self.living, "conns")["connections"]}
        assert lost == 0
        for conn in self.conns:
            assert after[conn["id"]]["opened_ns"] // 10**9 - conn["opened_ns"] // 10**9 in (-1, 0, 1)
            assert after[conn["id"]]["reconnects"] == conn["reconnects"] == 0
        for key, row in streams(self.living).items():
            if key in self.before:
                assert (row["state"], row["gaps"], row["connection"]) == ("LIVE", 0, self.before[key]["connection"]), key
                assert row["since_ns"] // 10**9 - self.before[key]["since_ns"] // 10**9 in (-1, 0, 1), "never anything but LIVE"
                assert row["messages"] >= self.before[key]["messages"]


def test_streams_are_removed_and_added_and_the_others_do_not_notice(living):
    symbol, other = sorted({key[0] for key in streams(living)})[:2]
    with Undisturbed(living):
        said = rows(living, "subs", "remove", "okx", symbol, "trade", "--dry-run")
        assert not said["applied"] and len(said["removed"]) == 1 and (symbol, "trade") in streams(living)
        said = rows(living, "subs", "remove", "okx", symbol, "trade")
        assert said["applied"] and len(said["removed"]) == 1 and not said["added"] and not said["moved"]
        assert (symbol, "trade") not in streams(living) and (other, "trade") in streams(living)
    with Undisturbed(living):
        said = rows(living, "subs", "add", "okx", symbol, "trade")
        assert len(said["added"]) == 1 and not said["removed"] and not said["moved"]
        until_live(living, (symbol, "trade"))


@pytest.mark.parametrize("words,said", [
    (["okx", "NO-SUCH", "trade"], "okx lists no instrument 'NO-SUCH'"), (["okex", "BTC-USDT", "trade"], "is not a venue"),
    (["okx", "BTC-USDT", "trad"], "give symbols, then channels"), (["okx", "BTC-USDT"], "give symbols, then channels")])
def test_what_cannot_be_added_is_refused_whole_with_the_reason(living, words, said):
    before = set(streams(living))
    done = verb("subs", "add", *words, "-n", living[1], folder=living[0])
    assert done.returncode in (1, 2) and said in done.stderr
    assert set(streams(living)) == before


def test_reload_applies_the_difference_alone_and_a_wrong_file_changes_nothing(living):
    folder, name, config = living
    text, before = config.read_text(), set(streams(living))
    symbol = sorted(key[0] for key in before)[-1]
    changed = folder / "changed.toml"
    with Undisturbed(living):
        changed.write_text(text.replace("[[subscribe]]", "[rng]\nslots = 3\n[[subscribe]]", 1).replace('"okx"', '"okex"'))
        done = verb("reload", "-c", changed, "-n", name, folder=folder)
        assert done.returncode == 2 and "rng is not a setting" in done.stderr and "okex" in done.stderr
        changed.write_text(f"[books]\nlevels = 50\n{text}" if "[books]" not in text else text.replace("[books]", "[books]\nlevels = 50"))
        done = verb("reload", "-c", changed, "-n", name, folder=folder)
        assert done.returncode == 1 and "and would be 50" in done.stderr, done.stderr
        assert set(streams(living)) == before
        changed.write_text(text + f'\n[[subscribe]]\nvenue = "okx"\nsymbols = ["{symbol}"]\nchannels = ["ticker"]\n')
        assert len(rows(living, "reload", "-c", changed, "--dry-run")["added"]) == 1
        assert set(streams(living)) == before
        assert len(rows(living, "reload", "-c", changed)["added"]) == 1
        until_live(living, (symbol, "ticker"))
    with Undisturbed(living):
        said = rows(living, "reload", "-c", config)
        assert len(said["removed"]) == 1 and not said["added"] and set(streams(living)) == before
