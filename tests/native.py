"""Compile C for tests: a shared library for ctypes, or a program. Each is built once a run, outside the tree."""
import atexit
import ctypes
import functools
import os
import pathlib
import shutil
import subprocess
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
SOURCES = ("fh_file.c", "fh_ring.c", "fh_state.c", "fh_counters.c")
FLAGS = ("-std=gnu11", "-D_GNU_SOURCE", "-O2", "-g", "-Wall", "-Wextra", "-Werror", f"-I{ROOT / 'cext'}", f"-I{ROOT / 'cext' / 'include'}")


@functools.cache
def build_directory() -> pathlib.Path:
    directory = pathlib.Path(tempfile.mkdtemp(prefix="fh-test-"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return directory


@functools.cache
def compile_c(source: str, *flags: str, compiler: str = "gcc") -> pathlib.Path:
    """Build tests/c/<source> with the ring, state and counters sources. Returns the program's (or library's) path."""
    target = build_directory() / f"{pathlib.Path(source).stem}-{abs(hash((flags, compiler)))}"
    files = [ROOT / "tests" / "c" / source, *(ROOT / "cext" / name for name in SOURCES)]
    done = subprocess.run([compiler, *FLAGS, *flags, *map(str, files), "-o", str(target), "-lpthread"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return target


@functools.cache
def library() -> ctypes.CDLL:
    """The shim; with FEEDHANDLER_SANITIZE=1 under the address and undefined behaviour sanitizers (see test_sanitizers.py)."""
    sanitize = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all") if os.environ.get("FEEDHANDLER_SANITIZE") else ()
    return ctypes.CDLL(str(compile_c("shim.c", "-shared", "-fPIC", *sanitize)), use_errno=True)
