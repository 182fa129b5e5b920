"""What is shipped: every module and header in the wheel, every source in the sdist, the pins that the build relies on."""
import fnmatch
import os
import pathlib
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile

import pytest

import feedhandler

ROOT = pathlib.Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SETUPTOOLS = PROJECT["tool"]["setuptools"]
LONG = pytest.mark.skipif("FEEDHANDLER_LONG" not in os.environ, reason="builds and installs everything anew, two minutes: set FEEDHANDLER_LONG=1")


def folder_of(package):
    return ROOT / SETUPTOOLS["package-dir"].get(package, package.replace(".", "/"))


def test_every_folder_with_modules_is_a_package_that_is_shipped():
    folders = {path.parent for path in (ROOT / "feedhandler").rglob("*") if path.suffix in (".py", ".pyx", ".pxd")}
    assert folders <= {folder_of(package) for package in SETUPTOOLS["packages"]}


def test_every_file_of_a_shipped_folder_is_covered():
    patterns = [*SETUPTOOLS["package-data"]["*"], "*.py", "*.so", "*.md"]
    for package in SETUPTOOLS["packages"]:
        for path in folder_of(package).iterdir():
            assert path.is_dir() or any(fnmatch.fnmatch(path.name, pattern) for pattern in patterns), path


def test_get_include_has_all_public_headers():
    headers = {path.name for path in (ROOT / "cext/include").glob("*.h")}
    assert {path.name for path in pathlib.Path(feedhandler.get_include()).glob("*.h")} == headers and len(headers) == 3


def test_every_module_that_is_imported_is_a_dependency_and_none_is_idle():
    text = "\n".join(path.read_text() for path in (ROOT / "feedhandler").rglob("*") if path.suffix in (".py", ".pyx"))
    used = set(re.findall(r"^\s*(?:import|from) (\w+)", text, re.M)) - set(sys.stdlib_module_names)
    declared = {re.match(r"[\w-]+", line)[0] for line in PROJECT["project"]["dependencies"]}
    ours = {"feedhandler", "cython", "libc", "cpython", "posix"}
    assert declared <= used and {name for name in used - ours if re.search(rf"^\s*import {name}\b", text, re.M)} <= declared


def test_picows_is_pinned_to_the_minor_it_was_compiled_against():
    """Its class layout is compiled into worker/session: another minor imports silently and misbehaves."""
    pins = [line for line in (*PROJECT["build-system"]["requires"], *PROJECT["project"]["dependencies"]) if line.startswith("picows")]
    assert pins == ["picows>=2.3,<2.4"] * 2
    import importlib.metadata
    assert importlib.metadata.version("picows").startswith("2.3.")


def run(*words, **options):
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, timeout=600, **options)
    assert done.returncode == 0, (words, done.stdout[-2000:], done.stderr[-4000:])
    return done.stdout


@LONG
@pytest.mark.timeout(900)
def test_the_sdist_builds_a_wheel_that_runs_the_demo_without_the_sources(tmp_path):
    """pip, from an sdist made of what is tracked, in a new environment, in another folder."""
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    source = tmp_path / "source"
    run("git", "clone", "-q", ROOT, source)
    run(sys.executable, "-m", "venv", tmp_path / "venv")
    python = tmp_path / "venv/bin/python"
    run(python, "-m", "pip", "-q", "install", *PROJECT["build-system"]["requires"], env=clean)
    run(python, "-c", "from setuptools import build_meta; build_meta.build_sdist('dist')", cwd=source, env=clean)
    sdist, = (source / "dist").glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        shipped = {name.partition("/")[2] for name in archive.getnames()}
    tracked = set(run("git", "ls-files", cwd=source).split())
    assert tracked - shipped <= {".gitignore"}
    run(python, "-m", "pip", "-q", "wheel", "--no-deps", "-w", tmp_path, sdist, env=clean)
    wheel, = tmp_path.glob("*.whl")
    inside = set(zipfile.ZipFile(wheel).namelist())
    wanted = {name for name in tracked if name.startswith("feedhandler/") and not name.endswith(".md")}
    wanted |= {f"feedhandler/include/{path.name}" for path in (ROOT / "cext/include").glob("*.h")}
    wanted |= {f"feedhandler/conf/{path.name}" for path in (ROOT / "conf").glob("*.toml")}
    assert wanted <= inside, wanted - inside
    assert len([name for name in inside if name.endswith(".so")]) == len(list((ROOT / "feedhandler").rglob("*.pyx")))
    run(python, "-m", "pip", "-q", "install", wheel, env=clean)
    out = run(tmp_path / "venv/bin/feedhandler", "demo", "--seconds", "2", cwd=tmp_path, env=clean)
    assert "gaps 0, lost 0" in out
    assert "[[subscribe]]" in run(tmp_path / "venv/bin/feedhandler", "init", "-", cwd=tmp_path, env=clean)
