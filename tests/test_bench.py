"""The benchmarks run, answer figures, and the documents quote only what they answered."""
import importlib
import math
import os
import pathlib
import re

import pytest

pytest.importorskip("sortedcontainers", reason="pip install .[bench]")
pytest.importorskip("orjson", reason="pip install .[bench]")
pytest.importorskip("websockets", reason="pip install .[bench]")
from bench import common

ROOT = pathlib.Path(__file__).resolve().parent.parent
NAMES = ("decode", "book", "ring", "reader", "receive", "path")


@pytest.mark.parametrize("name", NAMES)
def test_a_benchmark_answers_rows_with_figures_and_leaves_nothing(name):
    before = set(os.listdir("/dev/shm"))
    try:
        rows = importlib.import_module(f"bench.{name}").run(quick=True)
    except common.Unavailable as error:
        pytest.skip(str(error))
    assert rows and all(math.isfinite(row.ours) and row.ours > 0 and row.what and row.unit for row in rows)
    assert any(row.reference for row in rows), "no peer was measured in the same run"
    mine = {entry for entry in set(os.listdir("/dev/shm")) - before if entry.startswith("feedhandler-bench-")}
    assert not mine


def test_a_row_that_misses_its_target_says_so():
    row = common.Row("x", "ns", 10.0, 5.0, "y", 0.5, target="≤5 ns", met=False)
    assert "**no**" in common.table([row])


def test_pairs_are_taken_in_turn():
    calls = []
    first, second, ratios = common.pairs(lambda: calls.append("a") or 2.0, lambda: calls.append("b") or 6.0, 7)
    assert calls == ["a", "b"] * 7 and (first, second, ratios) == (2.0, 6.0, [3.0] * 7)


def test_every_figure_of_the_summary_is_in_the_results():
    results = (ROOT / "bench/results.md").read_text().replace(",", "")
    summary = (ROOT / "bench/README.md").read_text().split("## Result", 1)[1]
    quoted = re.findall(r"`([\d,.]+)`", summary)
    assert quoted and not [number for number in quoted if number.replace(",", "") not in results]
