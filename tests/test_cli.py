"""The command line as its user meets it: every verb as text and JSON, wrong input answered by one sentence and its exit code."""
import json
import os
import resource
import signal
import ssl
import subprocess
import sys
import time
import tomllib
import urllib.request

import place
import pytest
from click.testing import CliRunner

from feedhandler import instance
from feedhandler.cli import VERBS, main

OK, FAILED, USAGE, NOT_RUNNING, DEGRADED = 0, 1, 2, 3, 4
STATUS_MAX = 2.0  # processor time of `status --json`, as a multiple of an interpreter with click and msgspec: of 75 ms where that is the 150 ms promised


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("cli")


@pytest.fixture(scope="module")
def name(folder):
    """An instance in which one book of binance-spot breaks: a change of BTCUSDT is dropped."""
    with place.running(folder, "--venue", "okx", "--venue", "binance-spot", "--instruments", "2", "--rate", "400",
                       "--fault", "drop,symbol=BTCUSDT,channel=book,skip=100") as (name, _):
        yield name


def verb(folder, *words, **options):
    return place.feedhandler(*words, folder=folder, **options)


def sentence(done):
    """The one line on stderr of a refused command."""
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1 and "Traceback" not in done.stderr and "pydantic" not in done.stderr, done.stderr
    return lines[0]


# -- what needs no instance --------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", VERBS)
def test_every_verb_has_a_help_with_an_example_and_json(name):
    answers = [CliRunner().invoke(main, [name, "--help"])]
    answers += [CliRunner().invoke(main, [name, sub, "--help"]) for sub in {
        "capacity": ["probe"], "config": ["check", "schema", "show"], "subs": ["list", "add", "remove", "move"]}.get(name, ())]
    assert all(answer.exit_code == OK for answer in answers)
    assert f"\n  feedhandler {name}" in answers[-1].output
    assert "--json" in answers[-1].output


@pytest.mark.parametrize("words, code, says", [
    (["statsu"], USAGE, "did you mean 'stats'?; see feedhandler --help"),
    (["stats", "-x"], USAGE, "see feedhandler stats --help"),
    (["stats", "-w", "0"], USAGE, "see feedhandler stats --help"),
    (["stats", "-n", "a/b"], USAGE, "as in main or btc-1"),
    (["status", "-n", "../x"], USAGE, "as in main or btc-1"),
    (["start", "-n", "x" * 41, "-c", "x.toml"], USAGE, "as in main or btc-1"),
    (["tail", "-c", "0"], USAGE, "see feedhandler tail --help"),
    (["tail", "-k", "trades"], USAGE, "use one of trade, quote"),
    (["subs", "lst"], USAGE, "see feedhandler subs --help"),
    (["demo", "--venue", "nasdaq"], USAGE, "see feedhandler demo --help"),
    (["demo", "--instruments", "0"], USAGE, "see feedhandler demo --help"),
    (["simulate", "--port", "70000"], USAGE, "see feedhandler simulate --help"),
    (["simulate", "--venue", "nasdaq"], USAGE, "use one of binance-coinm"),
    (["simulate", "--fault", "explode", "--seconds", "1"], FAILED, "use one of drop"),
    (["verify"], USAGE, "see feedhandler verify --help"),
    (["verify", "frames.tsv.gz"], USAGE, "add --venue NAME"),
    (["verify", "frames.tsv.gz", "--venue", "nasdaq"], USAGE, "use one of binance-coinm"),
    (["verify", "absent.tsv.gz", "--venue", "okx"], FAILED, "give the path of a capture"),
    (["init", "absent/x.toml"], FAILED, "give another path"),
    (["init", "there.toml"], FAILED, "give another path"),
    (["init", "a", "b"], USAGE, "see feedhandler init --help"),
    (["config", "check", "absent.toml"], USAGE, "write one with feedhandler init absent.toml"),
    (["config", "show", "absent.toml"], USAGE, "write one with feedhandler init absent.toml"),
    (["config", "schema", "x"], USAGE, "see feedhandler config schema --help"),
    (["start", "-c", "absent.toml"], USAGE, "write one with feedhandler init"),
    *((words, NOT_RUNNING, "feedhandler start -n no-such") for words in (
        [verb, *more, "-n", "no-such"] for verb, *more in (["status"], ["stop"], ["stats"], ["latency"], ["gaps"], ["errors"],
                                                           ["conns"], ["readers"], ["subs", "list"], ["tail"]))),
], ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "")
def test_wrong_input_gets_one_sentence_that_ends_with_what_to_do(folder, words, code, says):
    (folder / "there.toml").touch()
    for more in ([], ["--json"] if code == NOT_RUNNING else []):
        done = verb(folder, *words, *more, cwd=folder) if words[0] in ("start", "verify") else called(folder, *words, *more)
        assert done.returncode == code, (done.stdout, done.stderr)
        assert says in sentence(done) and done.stdout == ""


def called(folder, *words):
    """The same in this process: a tenth of the time."""
    runner = CliRunner()
    before = os.getcwd()
    os.chdir(folder)
    try:
        result = runner.invoke(main, words, prog_name="feedhandler")
    finally:
        os.chdir(before)
    return subprocess.CompletedProcess(words, result.exit_code, result.stdout, result.stderr)


def test_a_wrong_configuration_is_refused_whole_with_file_and_line_by_check_show_and_start(folder):
    (folder / "wrong.toml").write_text('[ring]\nslots = 1000\n[[subscribe]]\nvenue = "okex"\nsymbols = ["BTC-USDT"]\nchannels = ["trade"]\n')
    for words in (["config", "check", "wrong.toml"], ["config", "show", "wrong.toml"], ["start", "-c", "wrong.toml"]):
        done = verb(folder, *words, cwd=folder)
        assert done.returncode == USAGE and done.stdout == "" and "pydantic" not in done.stderr
        ring, venue, advice = done.stderr.strip().splitlines()
        assert "wrong.toml:2: ring.slots is 1000" in ring and "wrong.toml:4: " in venue and "did you mean okx?" in venue
        assert advice.startswith("2 problems; ")
    done = verb(folder, "config", "check", "wrong.toml", "--json", cwd=folder)
    document = json.loads(done.stdout)
    assert done.returncode == USAGE and document["ok"] is False and [problem["line"] for problem in document["problems"]] == [2, 4]


def test_what_init_writes_is_taken_by_check_and_shown_by_show(folder):
    assert json.loads(verb(folder, "init", "new.toml", "--json", cwd=folder).stdout) == {"file": "new.toml", "result": "written"}
    done = verb(folder, "config", "check", "new.toml", cwd=folder)
    assert done.returncode == OK and "feedhandler start -c new.toml" in done.stdout
    assert json.loads(verb(folder, "config", "show", "new.toml", cwd=folder).stdout)["instance"]["workers"] == 1
    assert json.loads(verb(folder, "config", "schema", "--json").stdout)["properties"]["ring"]


def test_start_without_a_network_names_what_it_could_not_reach_and_leaves_nothing(folder):
    if subprocess.run(["unshare", "-rn", "true"], capture_output=True).returncode:
        pytest.skip("no private network namespace is permitted here (unshare -rn)")
    name = f"test-{os.getpid()}-offline"
    command = ["unshare", "-rn", sys.executable, "-m", "feedhandler", "start", "-c", str(place.PRODUCT / "conf/real.toml"), "-n", name]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=place.environment(folder))
    lines = done.stderr.strip().splitlines()
    assert done.returncode == FAILED and lines[0] == "no venue could be reached:" and "then start again" in lines[-1]
    assert {line.split(":")[0].strip() for line in lines[1:-1]} == {"binance-spot", "binance-usdm", "binance-coinm", "okx", "kraken", "deribit"}
    assert all("https://" in line for line in lines[1:-1])
    assert not os.path.exists(instance.directory(name)) and not os.path.exists(instance.lock_path(name))


# -- with an instance --------------------------------------------------------------------------------------------------

STREAM = "id venue instrument symbol channel depth endpoint wire worker connection line standby state reason since_ns last_ns messages gaps gap_ns gap_reason"
SCHEMA = {
    # verb: (keys of the document, its list, keys of a row)
    "status": ("name state reasons ready uptime_s pid generation created_ns config drained moves workers venues streams connections budgets events", "workers",
               "worker pid cpu state reason epoch restarts adopted heartbeat_ms cpu_percent rss_bytes behind streams connections"),
    "stats": ("name total workers", "workers", None),
    "latency": ("name workers", "workers", "worker decode publish venue loop first_data"),
    "gaps": ("name streams books_unwell sessions workers", "streams", "id venue instrument channel worker connection state gaps gap_ns gap_reason"),
    "errors": ("name errors", "errors", "worker count first_ns last_ns code session text"),
    "subs list": ("name streams", "streams", STREAM),
    "conns": ("name connections bans", "connections", "id venue endpoint worker line session state reason streams streams_live slots opened_ns reconnects "
              "close_code replaced_s banned_s ban_reason health lag_ns queue_bytes messages_per_s first second won_percent behind_us"),
    "readers": ("name readers", "readers", "pid name alive polled_ago_s lag lost"),
}


@pytest.mark.parametrize("words", SCHEMA)
def test_a_verb_reports_as_text_and_as_json_with_its_keys(folder, name, words):
    keys, rows, row = SCHEMA[words]
    done = verb(folder, *words.split(), "-n", name)
    assert done.returncode == OK and done.stdout and not done.stderr
    done = verb(folder, *words.split(), "-n", name, "--json")
    assert done.returncode == OK and done.stdout.count("\n") == 1
    document = json.loads(done.stdout)
    assert set(document) == set(keys.split()) and document["name"] == name
    assert row is None or all(set(one) == set(row.split()) for one in document[rows])


def test_gaps_names_the_stream_how_often_when_and_why(folder, name):
    deadline = time.monotonic() + place.WAIT_S
    rows = []
    while {row["venue"] for row in rows if row["state"] == "LIVE"} != {"binance-spot"}:
        assert time.monotonic() < deadline, rows
        rows = json.loads(verb(folder, "gaps", "-n", name, "--json").stdout)["streams"]
    row, = rows
    assert (row["instrument"], row["channel"], row["gaps"]) == ("BTC-USDT", "book", 1) and row["gap_reason"].startswith("expected ")
    assert 0 <= time.time_ns() - row["gap_ns"] < 60e9 and row["gap_reason"]
    text = verb(folder, "gaps", "-n", name).stdout
    assert "BTC-USDT" in text and row["gap_reason"] in text


def test_subs_list_counts_messages_up_to_now(folder, name):
    def counted():
        return sum(row["messages"] for row in json.loads(verb(folder, "subs", "list", "-n", name, "--json").stdout)["streams"])
    events = json.loads(verb(folder, "stats", "-n", name, "--json").stdout)["total"]["events"]
    first = counted()
    assert first > events * 0.9 and counted() > first
    only = json.loads(verb(folder, "subs", "list", "-n", name, "--json", "--venue", "okx", "--state", "live").stdout)["streams"]
    assert {(row["venue"], row["state"]) for row in only} == {("okx", "LIVE")}


def test_capacity_names_the_budgets_of_workers_addresses_and_connections(folder, name):
    text = verb(folder, "capacity", "-n", name).stdout
    document = json.loads(verb(folder, "capacity", "-n", name, "--json").stdout)
    assert {"budgets", "connections", "next", "permits", "learned", "streams"} <= set(document)
    assert {row["where"].split()[0] for row in document["budgets"]} == {"worker", "address", "connection"}
    for row in document["connections"]:
        assert f"connection {row['id']} {row['venue']}/{row['endpoint']} worker {row['worker']} " in text
    assert "\nworker 0 " in text and "\naddress okx/public " in text and "~" in text and text.count("[") > len(document["connections"])


def test_tail_prints_exact_records_of_what_was_asked_for(folder, name):
    done = verb(folder, "tail", "-n", name, "binance-spot:BTC-USDT", "-k", "quote", "-c", "3", "--json")
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == OK and len(records) == 3 and {record["symbol"] for record in records} == {"BTC-USDT"}
    assert all(isinstance(record["bid_price"], str) and float(record["bid_price"]) < float(record["ask_price"]) for record in records)
    done = verb(folder, "tail", "-n", name, "NO-SUCH")
    assert done.returncode == USAGE and "feedhandler subs list" in sentence(done)


def test_ctrl_c_ends_a_watching_verb_well(folder, name):
    for words in (["stats", "-w", "0.1"], ["tail"]):
        process = subprocess.Popen([sys.executable, "-m", "feedhandler", *words, "-n", name], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                   text=True, env=place.environment(folder))
        assert process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=10)
        assert (process.returncode, errors) == (OK, "")


def test_a_closed_pipe_ends_tail_without_a_word(folder, name):
    done = subprocess.run(f"{sys.executable} -m feedhandler tail -n {name} | head -n 1", shell=True, capture_output=True, text=True,
                          timeout=20, env=place.environment(folder))
    assert done.stdout.count("\n") == 1 and done.stderr == ""


def processor_s(command):
    """That a command takes: waiting for a busy machine is not its own."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert command().returncode == OK
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_status_json_takes_little_longer_than_what_it_cannot_do_without(folder, name):
    took, bare = [], []
    for _ in range(5):
        took.append(processor_s(lambda: verb(folder, "status", "-n", name, "--json")))
        bare.append(processor_s(lambda: subprocess.run([sys.executable, "-c", "import click, msgspec"], env=place.environment(folder))))
    print(f"status --json {min(took) * 1000:.0f} ms of processor time, {min(took) / min(bare):.2f} times an interpreter with click and msgspec")
    assert min(took) <= STATUS_MAX * min(bare)


def cut_connections(config):
    """Have the simulated venue close all connections now."""
    entry = next(iter(tomllib.loads(config.read_text())["venues"].values()))
    fault = urllib.request.Request(entry["rest"].rpartition("/")[0] + "/_sim/fault", json.dumps({"kind": "disconnect", "count": 99}).encode())
    urllib.request.urlopen(fault, timeout=10, context=ssl.create_default_context(cafile=entry["ca_file"])).close()


def test_without_its_supervisor_shared_memory_still_answers_and_the_others_say_how_to_go_on(folder):
    """Own instance: its connections are cut without a notice, and its supervisor dies after the cut was told."""
    with place.running(folder, "--venue", "kraken", "--instruments", "1", "--rate", "50") as (name, config):
        cut_connections(config)
        cut, deadline = [], time.monotonic() + place.WAIT_S
        while not cut:
            assert time.monotonic() < deadline, "no gap names the cut"
            cut = [row for row in json.loads(verb(folder, "gaps", "-n", name, "--json").stdout)["streams"] if row["gaps"]]
        assert all(row["gap_reason"].startswith("connection closed with ") for row in cut), [row["gap_reason"] for row in cut]
        supervisor = instance.holder(name)
        os.kill(supervisor, signal.SIGKILL)
        deadline = time.monotonic() + place.WAIT_S
        while instance.locked(name):
            assert time.monotonic() < deadline
        for words in ("stats", "latency", "gaps", "errors", "readers"):
            assert verb(folder, words, "-n", name, "--json").returncode == OK, words
        assert json.loads(verb(folder, "gaps", "-n", name, "--json").stdout)["streams"] is None
        for words in (["subs", "list"], ["conns"]):
            done = verb(folder, *words, "-n", name)
            assert done.returncode == DEGRADED and "adopt them with feedhandler start" in sentence(done)
        done = verb(folder, "status", "-n", name, "--json")
        assert done.returncode == DEGRADED and json.loads(done.stdout)["pid"] is None
        done = verb(folder, "stop", "-n", name)
        assert done.returncode == OK and "its supervisor was dead; ended 1 workers" in done.stdout
        assert verb(folder, "stop", "-n", name).returncode == NOT_RUNNING
