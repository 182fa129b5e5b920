"""The ring's protocols under a weak-memory model checker, and that the models still are the code's protocols."""
import pathlib
import re
import shutil
import subprocess

import pytest
from tests.csupport import ROOT

MODELS = ROOT / "tests" / "c" / "models.cpp"
EXECUTIONS = 100_000  # the rarest mutant of all is found before 10,000
MUTANTS = {"tip": (1, 2, 3, 4), "span": (1, 4, 5, 6), "restart": (4, 7, 8, 9), "latch": (10, 11, 12, 13),
           "wake": (14, 15, 16, 17, 18)}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    if not shutil.which("g++") or not pathlib.Path("/usr/include/relacy/relacy.hpp").exists():
        pytest.skip("g++ or the header relacy/relacy.hpp (package relacy-dev) is missing")
    target = tmp_path_factory.mktemp("models") / "models"
    done = subprocess.run(["g++", "-std=c++11", "-fpermissive", "-w", "-O1", str(MODELS), "-o", str(target)],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return target


def run(models, model, mutant):
    return subprocess.run([models, model, str(mutant), str(EXECUTIONS)], capture_output=True, text=True)


@pytest.mark.parametrize("model", MUTANTS)
def test_protocol_holds_in_every_execution_tried(models, model):
    done = run(models, model, 0)
    assert done.returncode == 0, done.stdout[:4000]


@pytest.mark.parametrize("model, mutant", [(model, mutant) for model in MUTANTS for mutant in MUTANTS[model]])
def test_broken_protocol_is_found_out(models, model, mutant):
    done = run(models, model, mutant)
    assert done.returncode == 1 and "ASSERT FAILED" in done.stdout


QUOTES = re.findall(r"// = (\w+\.[ch]): (.+)", MODELS.read_text())


def test_models_quote_every_fence_and_ordered_access_of_the_code():
    """A fence, acquire or release in the ring's hot path that no model stands for fails here."""
    assert len(QUOTES) >= 25
    quoted = {text for _, text in QUOTES}
    for name in ("fh_ring.h", "fh_state.c"):
        for line in (ROOT / "cext" / name).read_text().splitlines():
            if re.search(r"fh_fence_|fh_store_release|fh_load_acquire", line) and "as in fh_ring_put" not in line and "owner" not in line:
                assert any(text in line for text in quoted), f"{name}: no model has the step {line.strip()}"


@pytest.mark.parametrize("name, text", QUOTES, ids=[f"{name}-{i}" for i, (name, _) in enumerate(QUOTES)])
def test_each_step_of_a_model_is_a_line_of_the_code(name, text):
    folder = "cext/include" if name.startswith("feedhandler") else "cext"
    assert text in (ROOT / folder / name).read_text(), f"{name} has no longer: {text}"
