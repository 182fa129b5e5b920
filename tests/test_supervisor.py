"""The supervisor with its real launcher, workers and command line, against simulated venues on loopback."""
import asyncio
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
import tomllib

import pytest

from feedhandler import config, control, instance, venues
from feedhandler.counters import Counters
from feedhandler.supervisor import client, instruments, ledger, rest, shard, tables
from feedhandler.capacity.profile import Window
from feedhandler.venue import Instrument, RestRequest

PRODUCT = pathlib.Path(__file__).parents[1]
NAME = f"test-{os.getpid()}-sv"
WAIT_S = 20.0


def verb(*words, env, **options):
    return subprocess.run([sys.executable, "-m", "feedhandler", *words], capture_output=True, text=True, timeout=60, env=env, **options)


def until(condition, what):
    """Wait for a condition; its value."""
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.005)
    pytest.fail(f"not within {WAIT_S} s: {what}")


# -- pieces ------------------------------------------------------------------------------------------------------------

@pytest.fixture
def table(tmp_path):
    dir_fd = os.open(tmp_path, os.O_RDONLY)
    tables.create(dir_fd, 3, 7)
    yield tables.Instruments(dir_fd)
    os.close(dir_fd)


def test_instruments_keep_their_ids_digits_and_strikes(table):
    master = instruments.Master(table, tables.UNDEFINED)
    assert master.add("okx", 0, Instrument("BTC-USDT", "BTC-USDT", "spot", "0.10", "0.00001000")) == 0
    assert master.add("deribit", 1, Instrument("O", "BTC-USD-1-100.5-C", "option", "0.0005", "0.1", "10", strike="100.5")) == 1
    assert master.add("okx", 0, Instrument("BTC-USDT", "BTC-USDT", "spot", "9", "9")) == 0, "known: the row stays"
    first, second = table.rows()
    assert (first["price_exponent"], first["size_exponent"], first["tick"], first["lot"], first["strike"]) == (-1, -5, 1, 1, tables.UNDEFINED)
    assert (second["price_exponent"], second["tick"], second["strike"], second["multiplier"]) == (-4, 5, 1005000, 10)
    master.exponents_raised(1, -6, -1)
    assert master.control_row(1) == control.InstrumentRow(1, "deribit", "O", -6, -1)
    assert (table.get(1)["price_exponent"], table.get(1)["tick"]) == (-4, 5), "the table keeps what the first record comes in"
    again = instruments.Master(table, tables.UNDEFINED)
    assert again.ids == master.ids and again.control_row(1) == control.InstrumentRow(1, "deribit", "O", -4, -1)


def test_digits_for_derived_prices_are_added_where_they_fit(table):
    master = instruments.Master(table, tables.UNDEFINED)
    master.add("okx", 0, Instrument("A", "A", "perpetual", "0.1", "1"), 8, 2)
    master.add("okx", 0, Instrument("B", "B", "option", "5", "1", strike="90000000"))
    master.add("okx", 0, Instrument("C", "C", "option", "5", "1", strike="90000000"), 8)
    assert [(row["price_exponent"], row["size_exponent"], row["tick"]) for row in table.rows()] == [
        (-8, -2, 10_000_000), (0, 0, 5), (-5, 0, 500_000)], "a million times the strike must fit"


@pytest.mark.parametrize("bad", [dict(tick="1e-19"), dict(tick="x"), dict(kind="bond"), dict(symbol="S" * 48), dict(lot="9999999999999999999")])
def test_an_instrument_that_does_not_fit_its_row_is_refused_and_takes_no_id(table, bad):
    master = instruments.Master(table, tables.UNDEFINED)
    fields = {"symbol": "S", "canonical": "S-X", "kind": "spot", "tick": "1", "lot": "1", **bad}
    with pytest.raises(instruments.InstrumentError, match="the instrument list says"):
        master.add("okx", 0, Instrument(**fields))
    assert master.add("okx", 0, Instrument("S" * 47, "S-X", "spot", "1e-18", "1")) == 0


def test_the_table_ends_at_its_maximum_with_a_sentence(table):
    master = instruments.Master(table, tables.UNDEFINED)
    for number in range(3):
        master.add("okx", 0, Instrument(f"S{number}", "C", "spot", "1", "1"))
    with pytest.raises(instruments.InstrumentError, match="instruments.max = 3; raise it"):
        master.add("okx", 0, Instrument("S3", "C", "spot", "1", "1"))


def test_line_b_goes_to_its_own_host_from_its_own_address(table):
    shards = shard.Shards(config.parse("""
        [venues.okx]
        urls.public = "wss://a.example/ws"
        urls_b.public = "wss://b.example/ws"
        source = "127.0.0.1"
        source_b = "127.0.0.2"
        [[subscribe]]
        venue = "okx"
        symbols = ["BTC-USDT"]
        channels = ["trade"]
        lines = 2"""), "")
    shards.master = instruments.Master(table, tables.UNDEFINED)
    shards.homes["okx"].listed = [Instrument("BTC-USDT", "BTC-USDT", "spot", "0.1", "0.1")]
    shards.replan()
    assert [(plan.url, plan.source) for plan in shards.assign(0).connections] == [("wss://a.example/ws", "127.0.0.1"), ("wss://b.example/ws", "127.0.0.2")]
    assert {row.where for row in shards.headroom() if row.what == "connections"} == {"address okx/public", "address okx/public line B"}


def test_symbols_resolve_by_either_name_and_near_ones_are_offered():
    listed = [Instrument("BTCUSDT", "BTC-USDT", "spot", "1", "1"), Instrument("ETHUSDT", "ETH-USDT", "spot", "1", "1"),
              Instrument("OLD", "OLD-USDT", "spot", "1", "1", listed=False)]
    found, said = instruments.resolve("v", listed, ["BTC-USDT", "btcusdt", "ETHUSDT", "OLD", "BTC-USDC"], 5)
    assert [row.symbol for row in found] == ["BTCUSDT", "ETHUSDT"]
    assert "does not trade" in said[0] and "did you mean BTC-USDT" in said[1]
    found, said = instruments.resolve("v", listed, ["*"], 1)
    assert [row.symbol for row in found] == ["BTCUSDT"] and "takes 1 of 2" in said[0]


def test_budgets_are_shared_by_instances_and_survive_restart_reboot_and_damage(tmp_path):
    path, said, clock = str(tmp_path / "b" / "budgets.json"), [], [10**12]
    one, two = (ledger.Ledger(path, said.append, lambda: clock[0]) for _ in range(2))
    for each in (one, two):
        each.open("connect a", [Window(10, 60)])
    assert [one.take("connect a", 5), two.take("connect a", 5), one.take("connect a", 1)] == [5, 3, 0]
    two.ban("connect a", 90, "418")
    clock[0] += 61 * 10**9
    third = ledger.Ledger(path, said.append, lambda: clock[0])
    third.open("connect a", [Window(10, 60)])
    assert third.take("connect a", 1) == 0 and 28 < third.wait_s("connect a") < 30
    third.boot_id, clock[0] = "another boot", 10**9
    assert third.take("connect a", 1) == 0, "the clock of another boot frees nothing"
    assert not said
    pathlib.Path(path).write_text("{")
    assert third.take("connect a", 99) == 8 and "is damaged" in said[0]


@pytest.mark.parametrize("text,seconds", [("7", 7), ("0.5", 0.5), ("-3", 0), ("Thu, 01 Jan 1970 00:01:40 GMT", 90), ("soon", 5), ("", 5), (None, 5),
                                          ("nan", 5), ("1e99", rest.RETRY_AFTER_MAX_S)])
def test_retry_after_is_a_number_or_a_date_and_nonsense_is_the_default(text, seconds):
    assert rest.retry_after(text, 5, 10.0) == seconds


def test_status_of_an_unknown_instance_says_how_to_start_one():
    with pytest.raises(client.NotRunning, match="feedhandler start -n test-nobody"):
        client.request("test-nobody", "status")


SMALL_SHM = """
mount -t tmpfs -o size=1m tmpfs /dev/shm && exec "$0" -m feedhandler start -c "$1"
"""


def test_a_full_shared_memory_is_refused_before_anything_starts(tmp_path):
    (tmp_path / "a.toml").write_text(f"[instance]\nname = \"{NAME}-full\"\n")
    env = {**os.environ, "PYTHONPATH": str(PRODUCT), "XDG_STATE_HOME": str(tmp_path)}
    if subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
        pytest.skip("unshare -m is not permitted here")
    done = subprocess.run(["unshare", "-m", "sh", "-c", SMALL_SHM, sys.executable, str(tmp_path / "a.toml")], capture_output=True, text=True, env=env)
    if "mount" in done.stderr and "permission" in done.stderr:
        pytest.skip("mounting a tmpfs is not permitted here")
    assert done.returncode == 1
    assert "bytes free, this instance needs" in done.stderr and "lower ring.slots" in done.stderr


# -- the whole ---------------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def running(tmp_path_factory):
    """An instance of two workers over two simulated venues; answers (env, path of the configuration)."""
    if not {"okx", "binance-spot"} <= set(venues.names()):
        pytest.skip("the venues okx and binance-spot are not built")
    folder = tmp_path_factory.mktemp("supervisor")
    env = {**os.environ, "PYTHONPATH": str(PRODUCT), "XDG_STATE_HOME": str(folder)}
    given, path = folder / "given.toml", folder / "a.toml"
    words = "simulate --venue okx --venue binance-spot --instruments 3 --rate 300 --no-limits --config-out".split()
    process = subprocess.Popen([sys.executable, "-m", "feedhandler", *words, str(given), "--directory", str(folder)], env=env,
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until(lambda: given.exists() and given.read_text().count("[[subscribe]]") == 2, "the simulated venues' configuration")
        path.write_text(_config(tomllib.loads(given.read_text())))
        yield env, str(path)
    finally:
        verb("stop", "-n", NAME, env=env)
        process.send_signal(signal.SIGINT)
        process.wait(10)
    assert not os.path.exists(instance.directory(NAME)) and not os.path.exists(instance.lock_path(NAME))


def _config(given):
    """Two workers over the simulator's addresses."""
    text = f"[instance]\nname = \"{NAME}\"\nworkers = 2\n[ring]\nslots = 8192\n[instruments]\nmax = 32\n[restart]\nsilent_ms = 1000\n"
    for name, entry in given["venues"].items():
        text += f"[venues.{name}]\nrest = \"{entry['rest']}\"\nca_file = \"{entry['ca_file']}\"\n"
        text += "".join(f"urls.\"{endpoint}\" = \"{url}\"\n" for endpoint, url in entry["urls"].items())
    for name, symbols in (("okx", given["subscribe"][0]["symbols"]), ("binance-spot", ["*", "NO-SUCH"])):
        text += f"[[subscribe]]\nvenue = \"{name}\"\nsymbols = {json.dumps(symbols)}\nchannels = [\"trade\", \"book\"]\n"
    return text


def status():
    return client.request(NAME, "status")


def all_live():
    document = status()
    return document if document["streams"].get("live") == document["streams"]["total"] == 12 else None


def test_start_returns_ready_with_every_stream_live_and_names_what_is_missing(running):
    env, path = running
    done = verb("start", "-c", path, env=env)
    assert done.returncode == 4, done.stderr
    assert "4 of 4 connections up" in done.stdout and "first data after" in done.stdout
    until(all_live, "trades, whose silence is normal, come too")
    assert "binance-spot lists no instrument 'NO-SUCH'" in done.stderr
    assert {worker["state"] for worker in status()["workers"]} == {"UP"}
    rows = client.request(NAME, "subs")["streams"]
    homes = {}
    for row in rows:
        homes.setdefault((row["venue"], row["instrument"]), set()).add(row["worker"])
    assert len(homes) == 6 and all(len(workers) == 1 for workers in homes.values()) and set.union(*homes.values()) == {0, 1}


def test_a_second_start_loses_and_names_the_winner(running):
    env, path = running
    done = verb("start", "-c", path, env=env)
    assert done.returncode == 1 and f"pid {instance.holder(NAME)}" in done.stderr


def test_status_says_it_in_json_with_its_exit_code(running):
    env, _ = running
    done = verb("status", "-n", NAME, "--json", env=env)
    assert done.returncode == 4 and json.loads(done.stdout)["streams"]["live"] == 12
    assert verb("conns", "-n", NAME, env=env).returncode == verb("subs", "list", "-n", NAME, env=env).returncode == 0
    loaded = "import sys\nfrom feedhandler.cli import main\ntry:\n main(sys.argv[1:])\nexcept SystemExit: pass\n" \
             "print([name for name in ('pydantic', 'aiohttp', 'numpy', 'rich', 'picows') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", loaded, "status", "-n", NAME, "--json"], env=env, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]", "status loads nothing heavy"


def test_the_control_socket_refuses_what_is_no_request_and_goes_on(running):
    for data in (b"\xff\xff\xff\xff", b"\x01\0\0\0\xc1", control.encode(control.Request("dance"))):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(5)
            sock.connect(instance.control_path(NAME))
            sock.sendall(data)
            answer = control.Decoder(control.Answer).feed(sock.recv(65536))[0]
            assert not answer.ok and answer.error
    assert status()["pid"]


def test_a_killed_worker_is_replaced_and_the_other_is_not_touched(running):
    before = status()["workers"]
    os.kill(before[0]["pid"], signal.SIGKILL)
    until(lambda: status()["workers"][0]["restarts"] == 1 and all_live(), "the killed worker's streams are live again")
    after = status()["workers"]
    assert after[0]["pid"] != before[0]["pid"] and after[0]["epoch"] == before[0]["epoch"] + 1
    assert after[1]["pid"] == before[1]["pid"] and after[1]["restarts"] == 0
    assert [worker["pid"] for worker in instance.manifest_read(NAME)["workers"]] == [worker["pid"] for worker in after]


def test_a_hung_worker_is_killed_and_replaced(running):
    before = status()["workers"][1]
    os.kill(before["pid"], signal.SIGSTOP)
    until(lambda: status()["workers"][1]["restarts"] == 1 and all_live(), "the hung worker's streams are live again")
    assert not instance.alive(before["pid"], 1) and status()["workers"][1]["pid"] != before["pid"]


def test_after_the_supervisor_died_status_says_so_and_the_next_start_adopts_the_workers(running):
    env, path = running
    before = {row["worker"]: row["pid"] for row in status()["workers"]}
    pid = instance.holder(NAME)
    os.kill(pid, signal.SIGKILL)
    until(lambda: not instance.locked(NAME), "the lock falls with its holder")
    done = verb("status", "-n", NAME, env=env)
    assert done.returncode == 4 and "2 of 2 workers go on" in done.stdout and "feedhandler start" in done.stdout
    done = verb("start", "-c", path, env=env)
    assert done.returncode == 4 and "adopted 2 living workers" in done.stdout, done.stderr
    document = until(all_live, "every stream of the adopted workers is known to be live")
    assert {row["worker"]: row["pid"] for row in document["workers"]} == before
    assert all(row["adopted"] and row["restarts"] == 0 for row in document["workers"])


def test_a_worker_that_keeps_dying_is_quarantined_and_the_other_goes_on(running):
    other = status()["workers"][0]["pid"]
    for death in range(5):
        row = until(lambda: next((row for row in status()["workers"] if row["worker"] == 1 and row["state"] == "UP" and row["restarts"] == death), None),
                    f"worker 1 after death {death}")
        os.kill(row["pid"], signal.SIGKILL)
    until(lambda: status()["workers"][1]["state"] == "QUARANTINED", "worker 1 is quarantined")
    document = status()
    assert document["state"] == "degraded" and any("worker 1 is QUARANTINED: it died 5 times" in reason for reason in document["reasons"])
    assert document["workers"][0]["pid"] == other and document["workers"][0]["state"] == "UP"


def test_stop_leaves_no_process_and_no_file(running):
    env, _ = running
    pids = [(row["pid"], row["pid_start"]) for row in instance.manifest_read(NAME)["workers"]]
    done = verb("stop", "-n", NAME, env=env)
    assert done.returncode == 0, done.stderr
    assert not os.path.exists(instance.directory(NAME)) and not os.path.exists(instance.lock_path(NAME))
    assert not any(instance.alive(*pid) for pid in pids)
    assert verb("status", "-n", NAME, env=env).returncode == 3


def test_stop_ends_the_workers_of_a_dead_supervisor(running):
    env, path = running
    assert verb("start", "-c", path, env=env).returncode == 4
    os.kill(instance.holder(NAME), signal.SIGKILL)
    until(lambda: not instance.locked(NAME), "the lock falls with its holder")
    done = verb("stop", "-n", NAME, env=env)
    assert done.returncode == 0 and "ended 2 workers" in done.stdout
    assert not os.path.exists(instance.directory(NAME))


def test_a_plan_that_does_not_fit_starts_nothing(running, tmp_path):
    env, path = running
    text = pathlib.Path(path).read_text().replace("[restart]", "[load]\nstreams_per_worker = 5\n[restart]", 1)
    folder = pathlib.Path(path).parent
    (folder / "small.toml").write_text(text)
    done = verb("start", "-c", str(folder / "small.toml"), env=env)
    assert done.returncode == 1 and "do not fit" in done.stderr and "the target is 5" in done.stderr
    assert not os.path.exists(instance.directory(NAME))


# -- REST against a server of our own ------------------------------------------------------------------------------------

def with_rest(tmp_path, answer, use):
    """Run use(client, arrivals) against a loopback server; answer(number) is (status, headers, body) of its number-th request."""
    from aiohttp import web
    arrivals = []

    async def handle(request):
        arrivals.append((time.monotonic(), request.path_qs))
        status, headers, body = answer(len(arrivals))
        return web.Response(status=status, headers=headers, body=body)

    async def main():
        app = web.Application()
        app.router.add_get("/{tail:.*}", handle)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = site._server.sockets[0].getsockname()[1]
        book = ledger.Ledger(str(tmp_path / "budgets.json"), pytest.fail)
        book.open("rest v", [Window(10, 0.5)])
        rest_client = rest.Rest("v", f"http://127.0.0.1:{port}/base", "", book, "rest v", lambda *words, **fields: None)
        try:
            await use(rest_client, arrivals)
        finally:
            await rest_client.close()
            await runner.cleanup()
    asyncio.run(main())


@pytest.mark.parametrize("status", [429, 418, 503])
def test_no_request_leaves_inside_a_ban_and_waiting_ones_go_after_it(tmp_path, status):
    async def use(rest_client, arrivals):
        first = await rest_client.get(RestRequest("/a"))
        assert (first.status, first.retry_s) == (status, 0.4) and "slow down" in first.reason
        assert any("banned_until_ns" in row for row in rest_client.ledger.document())
        replies = await asyncio.gather(*(rest_client.get(RestRequest(f"/{n}")) for n in range(3)))
        assert [reply.body for reply in replies] == [b"ok"] * 3
        assert min(at for at, _ in arrivals[1:]) - arrivals[0][0] >= 0.39
    with_rest(tmp_path, lambda number: (status, {"Retry-After": "0.4"}, b"slow down") if number == 1 else (200, {}, b"ok"), use)


def test_requests_keep_to_80_percent_of_the_weight_and_snapshots_go_first(tmp_path):
    async def use(rest_client, arrivals):
        requests = [rest_client.get(RestRequest(f"/list{n}", 4), rest.LIST) for n in range(3)]
        requests += [rest_client.get(RestRequest(f"/book{n}", 4)) for n in range(3)]
        await asyncio.gather(*requests)
        order = [path for _, path in arrivals]
        assert all("book" in path for path in order[:3]) and order == [f"/base/{kind}{n}" for kind in ("book", "list") for n in range(3)]
        times = [at for at, _ in arrivals]
        assert times[2] - times[0] >= 0.45 and times[4] - times[2] >= 0.45, "8 of 10 in half a second: two requests of weight 4"
    with_rest(tmp_path, lambda number: (200, {}, b"x"), use)


def test_a_list_is_asked_for_until_it_comes(tmp_path):
    said = []

    async def use(rest_client, arrivals):
        assert await rest_client.get_until(RestRequest("/list"), said.append) == b"rows"
    with_rest(tmp_path, lambda number: (500, {}, b"oops") if number < 2 else (200, {}, b"rows"), use)
    assert said == ["HTTP 500 oops"]


def test_an_answer_without_an_end_stops_at_the_maximum(tmp_path, monkeypatch):
    monkeypatch.setattr(rest, "BODY_SIZE_MAX", 1000)

    async def use(rest_client, arrivals):
        assert (await rest_client.get(RestRequest("/fits"))).body == bytes(1000)
        reply = await rest_client.get(RestRequest("/large"))
        assert (reply.status, reply.body) == (0, b"") and "larger than 1000 bytes" in reply.reason
    with_rest(tmp_path, lambda number: (200, {}, bytes(999 + number)), use)


# -- digits ------------------------------------------------------------------------------------------------------------

def test_marks_indices_and_tickers_from_the_start_raise_no_exponent(tmp_path):
    """Every channel of derived prices, live at once: the instruments have started with the digits they need."""
    name, folder = f"{NAME}-digits", tmp_path
    env = {**os.environ, "PYTHONPATH": str(PRODUCT), "XDG_STATE_HOME": str(folder)}
    given, path = folder / "given.toml", folder / "a.toml"
    wanted = {"binance-usdm": ["mark", "ticker", "trade"], "okx": ["mark", "ticker", "trade"], "deribit": ["ticker", "trade"]}
    words = [word for venue in wanted for word in ("--venue", venue)]
    process = subprocess.Popen([sys.executable, "-m", "feedhandler", "simulate", *words, "--instruments", "3", "--rate", "300", "--no-limits",
                                "--config-out", str(given), "--directory", str(folder)], env=env, stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL)
    try:
        until(lambda: given.exists() and given.read_text().count("[[subscribe]]") == 3, "the simulated venues' configuration")
        document = tomllib.loads(given.read_text())
        text = f"[instance]\nname = \"{name}\"\nworkers = 1\n[ring]\nslots = 8192\n[instruments]\nmax = 32\n"
        for venue, entry in document["venues"].items():
            text += f"[venues.{venue}]\nrest = \"{entry['rest']}\"\nca_file = \"{entry['ca_file']}\"\n"
            text += "".join(f"urls.\"{endpoint}\" = \"{url}\"\n" for endpoint, url in entry["urls"].items())
        for rows in document["subscribe"]:
            symbols = [symbol for symbol in rows["symbols"] if rows["venue"] != "okx" or symbol.endswith("-SWAP")] or rows["symbols"]
            text += f"[[subscribe]]\nvenue = \"{rows['venue']}\"\nsymbols = {json.dumps(symbols)}\nchannels = {json.dumps(wanted[rows['venue']])}\n"
        path.write_text(text)
        started = verb("start", "-c", str(path), env=env)
        assert started.returncode in (0, 4), started.stderr

        def live():
            streams = client.request(name, "status")["streams"]
            return streams.get("live") == streams["total"]
        until(live, "every stream to be live")
        counters = Counters(instance.directory(name), 0).values()
        assert counters["events"] > 0 and counters["exponent_raised"] == 0
    finally:
        verb("stop", "-n", name, env=env)
        process.send_signal(signal.SIGINT)
        process.wait(10)
    assert not os.path.exists(instance.directory(name))
