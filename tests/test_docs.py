"""What the documents say is true: names, paths, numbers and verbs exist, and the strategies in README run on a live instance."""
import ast
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys
import tomllib

import place
import pytest

import feedhandler
from feedhandler import config, venues
from feedhandler.cli import VERBS, common

ROOT = pathlib.Path(__file__).resolve().parent.parent
DOCUMENTS = [ROOT / name for name in ("README.md", "CHANGELOG.md", "cext/README.md", "feedhandler/venues/README.md", "bench/README.md")
             if (ROOT / name).exists()]
README = (ROOT / "README.md").read_text()
CORE = (ROOT / "cext/README.md").read_text()
VENUES = (ROOT / "feedhandler/venues/README.md").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
STRATEGY_LINES_MAX = 10


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.S)


# -- names and paths ---------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_path_a_document_names_is_there(document):
    text = document.read_text()
    names = {name for name in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in name}
    absent = sorted(name for name in names if not (document.parent / name).exists() and name != "bench/README.md")
    quoted = {name for name in re.findall(r"`([\w.]+/[\w./]+)`", text) if not name.startswith("application/")}
    absent += sorted(name for name in quoted if not any((folder / name).exists() for folder in (ROOT, document.parent, ROOT / "feedhandler")))
    assert absent == []


def test_readme_has_a_row_for_every_verb_and_none_else():
    rows = re.findall(r"^\| `feedhandler (\w+)[^`]*` \|", README, re.M)
    assert rows == list(VERBS)
    missing = re.search(r"^- `top`.*?not exist", README, re.M | re.S)[0]
    assert not set(re.findall(r"`(\w+)", missing)) & (set(VERBS) - {"subs"})


def test_readme_names_the_exit_codes_requirements_venues_and_extras_there_are():
    said = {int(code): word for code, word in re.findall(r"(\d) (ok|failed|usage|not running|degraded)", README)}
    assert said == {common.OK: "ok", common.FAILED: "failed", common.USAGE: "usage", common.NOT_RUNNING: "not running", common.DEGRADED: "degraded"}
    assert PROJECT["requires-python"] == ">=" + re.search(r"Python ([\d.]+) or later", README)[1]
    listed = re.search(r"Venues: (.*?)\. Adding", README, re.S)[1].split()
    assert sorted(name.rstrip(",") for name in listed) == list(venues.names())
    assert set(re.findall(r"'\.\[(\w+)\]'", README)) <= set(PROJECT["optional-dependencies"])
    assert PROJECT["license"] in README and PROJECT["version"] == feedhandler.__version__


def test_every_setting_readme_shows_is_taken():
    for text in blocks("toml"):
        assert config.parse(text).subscribe


def test_ci_does_what_readme_says_from_nothing():
    install, test = (re.search(rf"^.*{word}.*$", README, re.M)[0] for word in ("feedhandler demo$", "python -m pytest$"))
    script = (ROOT / ".ci/run").read_text()
    for line in (install, test):
        venv, pip, use = (re.sub(r"\S*bin/", "", part) for part in line.split(" && "))
        assert venv == "python3 -m venv .venv" and "python3 -m venv " in script
        assert pip.removeprefix("pip ") + "\n" in script and use.replace("feedhandler ", 'bin/feedhandler" ') in script


# -- strategies --------------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def instance(tmp_path_factory):
    """(name, environment) of an instance started with README's own words, but for its name and files."""
    folder = tmp_path_factory.mktemp("docs")
    line = re.search(r"^feedhandler simulate (.*) &$", README, re.M)[1]
    words = shlex.split(re.sub(r"--(name|config-out) \S+", "", line))
    with place.running(folder, *words) as (name, _):
        yield name, {**place.environment(folder), "PYTHONUNBUFFERED": "1"}


def strategy(text, name):
    assert text.count('"demo"') == 1
    return text.replace('"demo"', json.dumps(name))


@pytest.mark.parametrize("text", blocks("python"), ids=["records", "batches"])
def test_the_python_strategies_have_ten_lines_and_run(instance, text):
    name, env = instance
    ast.parse(text)
    lines = [line for line in text.splitlines() if line.strip()]
    assert len(lines) <= STRATEGY_LINES_MAX
    process = subprocess.Popen([sys.executable, "-c", strategy(text, name)], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        said = [process.stdout.readline() for _ in range(3)]
    finally:
        process.kill()
        _, errors = process.communicate(timeout=10)
    assert all(line.strip() for line in said), errors
    assert "do not trust" not in "".join(said)


def test_the_c_strategy_compiles_as_readme_says_and_runs(instance, tmp_path):
    name, env = instance
    text, = blocks("c")
    (tmp_path / "strategy.c").write_text(strategy(text, name))
    command = re.search(r"`(cc -I.*? strategy\.c)`", README)[1].replace("python -c", f"{sys.executable} -c")
    done = subprocess.run(f"{command} -Wall -Wextra -Werror -o strategy", shell=True, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    done = subprocess.run(["./strategy"], cwd=tmp_path, capture_output=True, text=True, timeout=20)
    assert done.returncode == 0 and done.stdout.count("trade ") == 10, done


def test_the_c_strategy_says_what_is_missing(tmp_path):
    text, = blocks("c")
    name = f"test-{os.getpid()}-absent"
    (tmp_path / "strategy.c").write_text(strategy(text, name))
    subprocess.run(["cc", f"-I{feedhandler.get_include()}", "strategy.c", "-o", "strategy"], cwd=tmp_path, check=True)
    done = subprocess.run(["./strategy"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and name in done.stderr


# -- numbers -----------------------------------------------------------------------------------------------------------

def defined(header, name):
    return int(re.search(rf"#define {name} (\d+)u?\b", (ROOT / "cext/include" / header).read_text())[1])


def test_cext_readme_states_the_headers_numbers():
    assert defined("feedhandler.h", "FH_CLAIM_BLOCK") == int(re.search(r"p is a multiple of (\d+)", CORE)[1])
    assert f"slot_count - {defined('feedhandler.h', 'FH_CLAIM_BLOCK')} records" in CORE
    assert f"Slots of {defined('feedhandler.h', 'FH_SLOT_SIZE')} bytes" in CORE
    assert {int(n) * 1000 for n in re.findall(r"(\d+) µs", CORE)} == {defined("feedhandler.h", "FH_WAKE_GAP_NS")}
    assert int(re.search(r"older than (\d+) ms", CORE)[1]) * 10**6 == defined("feedhandler_feed.h", "FH_SILENT_NS")
    wait = (ROOT / "cext/include/feedhandler_feed.h").read_text()
    assert "50 ms" in wait and "at most 50 ms" in CORE
    assert f"records of {defined('feedhandler.h', 'FH_SLOT_SIZE')} bytes" in README


def test_cext_readme_counts_the_models_and_their_broken_steps():
    import test_ring_model
    assert f"{test_ring_model.EXECUTIONS:,} random executions" in CORE
    rows = re.findall(r"^\| (\w+):.*?\| yes \| (.*) \|$", CORE, re.M)
    assert {name: row.count(";") + 1 for name, row in rows} == {name: len(mutants) for name, mutants in test_ring_model.MUTANTS.items()}


def test_cext_readme_has_a_row_for_every_file_of_the_core():
    named = set(re.findall(r"\b(fh_\w+)", CORE.split("A strategy includes")[0]))
    files = {path.stem for path in (ROOT / "cext").glob("*.[ch]")}
    assert files <= named, files - named
    assert all(f"include/{path.name}" in CORE for path in (ROOT / "cext/include").glob("*.h"))


def test_venues_readme_explains_every_key_of_the_profiles_and_names_every_venue():
    table = dict(re.findall(r"^\| ([\w()]+) \| ([^|]*)\|", VENUES.split("## The capacity profile")[1].split("## Evidence")[0], re.M))
    evidence = re.findall(r"^\| ([\w-]+) \|", VENUES.split("## Evidence")[1], re.M)
    assert set(venues.names()) <= set(evidence)
    told = {block: set(re.findall(r"\w+", keys)) for block, keys in table.items()}
    unexplained = set()
    for name in venues.names():
        for profile in venues.load(name, 1).profiles.values():
            for key, value in profile.items():
                if key in told["(top)"] or key == "routing":
                    continue
                inside = value.keys() if isinstance(value, dict) else ()
                if key == "rate_model":   # its keys are channels
                    inside = {part for channel in value.values() for part in channel}
                unexplained |= {f"{key}.{part}" for part in inside if part not in told.get(key, ())} if key in told else {key}
    assert unexplained == set()
