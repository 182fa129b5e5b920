"""The verbs that move streams: what they refuse and why, in living instances of one and of two workers; and what a plan with standbys says to workers."""
import json
import os

import crash_support
import pytest
from click.testing import CliRunner

from feedhandler import config
from feedhandler.capacity import moves
from feedhandler.cli import main
from feedhandler.supervisor import instruments, tables
from feedhandler.supervisor.shard import Shards
from feedhandler.venue import Instrument

OK, FAILED, USAGE, NOT_RUNNING = 0, 1, 2, 3


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    sim = crash_support.Simulated(tmp_path_factory.mktemp("moves"), venues=("deribit",), instruments=4, rate=100)
    yield sim
    sim.close()


@pytest.fixture(scope="module")
def two(simulated):
    with crash_support.Instance(simulated, workers=2) as living:
        yield living


def called(*words, name):
    result = CliRunner().invoke(main, [*words, "-n", name], prog_name="feedhandler")
    return result.exit_code, result.stdout, result.stderr


@pytest.mark.parametrize("words, code, says", [
    (["drain", "7"], FAILED, "there is no worker 7; there are 0 to 1"),
    (["drain", "x"], USAGE, "see feedhandler drain --help"),
    (["drain", "0", "--undo"], FAILED, "worker 0 is not drained; drained are: none"),
    (["subs", "move", "deribit", "BTC-PERPETUAL"], USAGE, "either --to-worker N or --to-connection ID"),
    (["subs", "move", "deribit", "BTC-PERPETUAL", "--to-worker", "1", "--to-connection", "1"], USAGE, "either --to-worker N or --to-connection ID"),
    (["subs", "move", "deribit", "BTC-PERPETUAL", "trade", "--to-worker", "1"], USAGE, "with all its streams; leave the channels out"),
    (["subs", "move", "deribit", "BTC-PERPETUAL", "--to-worker", "9"], FAILED, "there is no worker 9"),
    (["subs", "move", "okx", "BTC-USDT", "--to-worker", "1"], FAILED, "nothing is subscribed at okx; see feedhandler subs list"),
    (["subs", "move", "deribit", "BTC-PERPETUALL", "--to-worker", "1"], FAILED, "BTC-PERPETUALL is not subscribed"),
    (["subs", "move", "deribit", "BTC-PERPETUAL", "--to-connection", "99"], FAILED, "there is no connection 99; see feedhandler conns"),
    (["subs", "move", "deribit", "BTC-PERPETUAL", "ticker", "--to-connection", "1"], FAILED, "has no ticker subscribed"),
    (["moves", "--job", "99"], FAILED, "there is no job 99"),
    (["restart", "--rolling", "-c", "x.toml"], USAGE, "apply another one with feedhandler reload"),
])
def test_what_cannot_be_moved_is_refused_with_the_reason(two, words, code, says):
    answer, out, error = called(*words, name=two.name)
    assert (answer, out) == (code, "") and says in error and len(error.strip().splitlines()) == 1, (answer, out, error)


def test_an_instrument_is_where_it_is_told_to_go_already_and_a_connection_of_another_worker_is_named(two):
    rows = [row for row in json.loads(two.verb("subs", "list", "--json").stdout)["streams"] if row["symbol"] == "BTC-PERPETUAL"]
    worker, connection = rows[0]["worker"], rows[0]["connection"]
    assert "nothing to do: all of it is on worker" in called("subs", "move", "deribit", "BTC-PERPETUAL", "--to-worker", str(worker), name=two.name)[2]
    assert "nothing to do: all of it is on conn" in called("subs", "move", "deribit", "BTC-PERPETUAL", "--to-connection", str(connection), name=two.name)[2]
    other = next(row["id"] for row in json.loads(two.verb("conns", "--json").stdout)["connections"] if row["worker"] != worker)
    code, _, error = called("subs", "move", "deribit", "BTC-PERPETUAL", "--to-connection", str(other), name=two.name)
    assert code == FAILED and f"with --to-worker {1 - worker}" in error


def test_a_balanced_instance_has_nothing_to_move_and_says_so_in_json(two):
    code, out, _ = called("rebalance", "--json", name=two.name)
    document = json.loads(out)
    assert code == OK and document["moves"] == [] and document["result"]["state"] == "done" and document["result"]["verb"] == "rebalance"
    code, out, _ = called("rebalance", "--dry-run", "--json", name=two.name)
    assert code == OK and json.loads(out)["job"] is None and json.loads(out)["before"] == json.loads(out)["after"]
    assert "nothing would be moved" in called("plan", "--apply", name=two.name)[1]
    document = json.loads(called("moves", "--json", name=two.name)[1])
    assert [job["verb"] for job in document["jobs"]][:2] == ["rebalance", "rebalance"] and document["in_flight"] == [] and document["waiting"] == 0


def test_one_worker_cannot_be_drained_nor_restarted_without_a_gap(simulated):
    with crash_support.Instance(simulated, workers=1) as one:
        code, _, error = called("drain", "0", name=one.name)
        assert code == FAILED and "no other worker may hold its instruments; set instance.workers higher" in error and "nothing was changed" in error
        code, _, error = called("restart", "--rolling", name=one.name)
        assert code == FAILED and "needs a second worker" in error and "restart without --rolling" in error
        assert one.status()["state"] == "ok" and one.status()["drained"] == []


@pytest.mark.parametrize("words", [["rebalance"], ["drain", "0"], ["moves"], ["restart"], ["restart", "--rolling"], ["subs", "move", "okx", "BTC-USDT", "--to-worker", "0"]])
def test_without_an_instance_the_verbs_say_how_to_start_one(words):
    code, out, error = called(*words, name="no-such")
    assert (code, out) == (NOT_RUNNING, "") and "feedhandler start -n no-such" in error


# -- standbys ----------------------------------------------------------------------------------------------------------

@pytest.fixture
def shards(tmp_path):
    """Shards of two workers with one instrument that has a standby and one that has none."""
    text = ('[instance]\nworkers = 2\n[[subscribe]]\nvenue = "deribit"\nsymbols = ["A"]\nchannels = ["trade", "book"]\nstandby = true\n'
            '[[subscribe]]\nvenue = "deribit"\nsymbols = ["A", "B"]\nchannels = ["trade", "quote"]\n')
    dir_fd = os.open(tmp_path, os.O_RDONLY)
    tables.create(dir_fd, 8, 7)
    found = made(text, tables.Instruments(dir_fd))
    os.close(dir_fd)
    return found


def made(text, table):
    found = Shards(config.parse(text), "")
    found.text = text
    found.master = instruments.Master(table, tables.UNDEFINED)
    found.homes["deribit"].listed = [Instrument(symbol, symbol, "perpetual", "1", "1") for symbol in "AB"]
    return found


def told(shards):
    """{(worker, wire): [(id, role, backed)]} of the assigns."""
    found = {}
    for worker, assign in shards.assigns.items():
        for connection in assign.connections:
            for stream in connection.streams:
                found.setdefault((worker, stream.wire), []).append((stream.id, stream.role, stream.backed))
    return found


def test_an_instrument_has_a_standby_as_a_whole_and_its_owner_knows(shards):
    shards.replan()
    owner = shards.placement.workers[0]
    assert shards.placement.standbys == {0: 1 - owner}
    for wire in ("trades.A.100ms", "book.A.100ms", "quote.A"):
        (ours, role, backed), = told(shards)[owner, wire]
        (theirs, standby, not_backed), = told(shards)[1 - owner, wire]
        assert (role, backed, standby) == ("", True, "standby") and ours != theirs
    assert all(not backed for (_, wire), rows in told(shards).items() if wire.endswith("B") for _, _, backed in rows)


def test_a_standby_that_took_over_keeps_its_streams_ids_and_a_restored_plan_says_the_same(shards):
    shards.replan()
    owner = shards.placement.workers[0]
    before = told(shards)
    mover = shards.mover
    mover.up = {0, 1}
    mover.went_down(0.0, owner)
    assert [action[:3] for action in mover.take() if isinstance(action, moves.TakeOver)] == [(1 - owner, 0, owner)]
    shards.refresh([owner])
    assert not any(wire.endswith("A") or ".A." in wire for worker, wire in told(shards) if worker == owner), "its successor must not publish what another takes over"
    mover.heard_taken_over(0.0, 1 - owner, 0, True, "")
    for action in mover.take():
        if isinstance(action, moves.Promoted):
            shards.promoted(action.pairs)
    shards.refresh([0, 1])
    for wire in ("trades.A.100ms", "book.A.100ms", "quote.A"):
        (id, role, backed), = told(shards)[1 - owner, wire]
        assert (id, role, backed) == (before[1 - owner, wire][0][0], "", False)
    again = made(shards.text, shards.master.table)
    again.homes["deribit"].listed = None
    again.restore(json.loads(json.dumps(shards.saved())), 0.0)
    assert told(again) == told(shards) and again.placement.workers == shards.placement.workers
    assert {(c.id, c.worker, c.line) for c in again.placement.connections} == {(c.id, c.worker, c.line) for c in shards.placement.connections}
    again.replan()
    assert {key[3] for key in again.wants} == {0, 2}, "what was wanted of a venue whose list is not known is wanted still"
    assert any(step.kind == "add" for step in again.mover.queue), "and the standby is placed anew"


def test_one_worker_holds_no_standby_and_the_configuration_says_so(shards):
    with pytest.raises(config.ConfigError, match="a standby lives on a second one: set instance.workers = 2"):
        config.parse(shards.text.replace("workers = 2", "workers = 1"))
    shards.drained = {1}
    shards.replan()
    assert shards.placement.standbys == {} and set(shards.placement.workers.values()) == {0}
