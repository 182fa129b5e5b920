"""`feedhandler simulate` from outside: its files, its progress, its end; and that it sends fast enough."""
import asyncio
import json
import os
import signal
import subprocess
import sys
import time
import tomllib

import pytest
from click.testing import CliRunner
from feedhandler.cli.simulate import cmd_simulate
from feedhandler.simulate.server import running
from simulate_client import connect, run

COMMAND = [sys.executable, "-c", "from feedhandler.cli.simulate import cmd_simulate; cmd_simulate()"]


def started(*arguments):
    process = subprocess.Popen([*COMMAND, "--json", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return process, json.loads(process.stdout.readline())


def test_interrupted_it_writes_the_oracle_reports_and_exits_0(tmp_path):
    config, oracle = tmp_path / "f.toml", tmp_path / "oracle.json"
    process, first = started("--venue", "binance-spot", "--venue", "okx", "--instruments", "3", "--config-out", str(config), "--oracle-out", str(oracle),
                             "--name", "here", "--workers", "2")
    written = tomllib.loads(config.read_text())
    assert written["instance"] == {"name": "here", "workers": 2}
    assert written["venues"]["binance-spot"]["urls"] == first["endpoints"]["binance-spot"]["urls"]
    assert os.path.exists(written["venues"]["okx"]["ca_file"]) and set(written["venues"]["okx"]["urls"]) == {"public", "business"}
    assert [entry["venue"] for entry in written["subscribe"]] == ["binance-spot", "okx"] and len(written["subscribe"][0]["symbols"]) == 3
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=10)
    assert process.returncode == 0, errors
    assert json.loads(output)["connections_opened"] == 0
    assert [document["books"] for document in json.loads(oracle.read_text()).values()] == [{}, {}]
    assert not os.path.exists(first["ca_file"])


def test_it_ends_after_its_seconds_with_a_line_of_progress():
    begin = time.monotonic()
    done = subprocess.run([*COMMAND, "--seconds", "1.2", "--plain"], capture_output=True, text=True, timeout=20)
    assert done.returncode == 0 and 1.2 <= time.monotonic() - begin < 6
    assert "0 connections" in done.stderr and "ws://127.0.0.1:" in done.stdout


@pytest.mark.parametrize("arguments,text", [(["--venue", "nasdaq"], "use one of binance-coinm"), (["--speed", "fast"], "--speed"), (["--wait-subscriptions", "-1"], "--wait-subscriptions"),
                                            (["--venue", "okx", "--venue", "kraken", "--capture", __file__], "exactly one --venue"),
                                            (["--fault", "drop,symbol"], "FIELD=VALUE"), (["--heavy", "BTCUSDT=0"], "SYMBOL=FACTOR with a factor of 1..1000")])
def test_a_wrong_argument_is_a_usage_error_that_says_what_is_right(arguments, text):
    result = CliRunner().invoke(cmd_simulate, arguments)
    assert result.exit_code == 2 and text in result.output


def test_an_unknown_fault_or_a_file_that_is_no_capture_fails_with_one_sentence():
    result = CliRunner().invoke(cmd_simulate, ["--fault", "explode", "--seconds", "0"])
    assert result.exit_code == 1 and "'explode' is not known" in result.output
    result = CliRunner().invoke(cmd_simulate, ["--venue", "okx", "--capture", __file__])
    assert result.exit_code == 1 and "Not a gzipped file" in result.output


def test_a_rate_is_kept_over_venues_and_connections():
    async def main():
        async with running(venues=("okx", "binance-spot"), instruments=4, rate=5000) as simulator:
            first = await connect(simulator, "okx", "public")
            second = await connect(simulator, "binance-spot", tail="?streams=" + "/".join(f"{symbol.lower()}@depth" for symbol in simulator.sides["binance-spot"].instruments))
            first.send({"op": "subscribe", "args": [{"channel": "books", "instId": symbol} for symbol in simulator.sides["okx"].instruments]})
            await first.count(20)
            sent, begin = simulator.frames_sent, simulator.clock()
            await asyncio.sleep(1)
            assert (simulator.frames_sent - sent) / (simulator.clock() - begin) == pytest.approx(5000, rel=0.1)
            assert len(second.frames) > 1000
    run(main())


def test_with_a_rate_each_who_subscribes_to_twice_as_much_gets_twice_as_much():
    async def main():
        async with running(venues=("okx",), instruments=4, rate_each=500, tls=False) as simulator:
            client = await connect(simulator, "okx", "public")
            for symbols in (list(simulator.sides["okx"].instruments)[:2], list(simulator.sides["okx"].instruments)[2:]):
                before = simulator.market_rate()
                client.send({"op": "subscribe", "args": [{"channel": "books", "instId": symbol} for symbol in symbols]})
                await client.until(lambda: simulator.market_rate() == before + 1000)
                sent, begin = simulator.frames_sent, simulator.clock()
                await asyncio.sleep(0.4)
                assert (simulator.frames_sent - sent) / (simulator.clock() - begin) == pytest.approx(simulator.market_rate(), rel=0.15)
    run(main())


@pytest.mark.parametrize("tls", [False, True])
def test_at_full_speed_it_sends_50000_frames_a_second_and_loses_none(tls):
    """1 s of depth, trades and quotes of 20 instruments; a failure means the sender became the bottleneck."""
    async def main():
        async with running(venues=("binance-usdm",), instruments=20, speed="max", tls=tls) as simulator:
            names = [f"{symbol.lower()}@{name}" for symbol in simulator.sides["binance-usdm"].instruments for name in ("depth@100ms", "trade", "bookTicker")]
            client = await connect(simulator, "binance-usdm", "usdm.public")
            client.send({"method": "SUBSCRIBE", "params": names, "id": 1})
            await client.count(1000)
            sent, begin = simulator.frames_sent, simulator.clock()
            await asyncio.sleep(1)
            rate = (simulator.frames_sent - sent) / (simulator.clock() - begin)
            simulator.held_sending = True
            await client.until(lambda: len(client.frames) == simulator.frames_sent + 1)
            assert rate > 50_000
    run(main())
