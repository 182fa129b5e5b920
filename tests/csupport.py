"""Compile C sources of cext/ and tests/c/ for a test: as a shared library for ctypes, or as a program."""
import ctypes
import hashlib
import os
import pathlib
import re
import shutil
import subprocess
import tempfile

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
FLAGS = ["-std=c11", "-O2", "-g", "-Wall", "-Wextra", "-D_GNU_SOURCE", f"-I{ROOT / 'cext'}", f"-I{ROOT / 'cext/include'}"]
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]

_built = {}
_directory = tempfile.TemporaryDirectory(prefix="feedhandler-test-c-")


def build(name, sources, flags=(), compiler="gcc", program=False):
    """Path of a shared library (or program) made of sources, each relative to the project. Once per test run.

    Skips the test where the compiler or a sanitizer's runtime is not installed; any other complaint fails it."""
    if not shutil.which(compiler):
        pytest.skip(f"{compiler} is not installed")
    key = (name, tuple(sources), tuple(flags), compiler, program)
    if key not in _built:
        digest = hashlib.sha1(repr(key).encode()).hexdigest()[:8]
        path = pathlib.Path(_directory.name) / f"{name}-{digest}{'' if program else '.so'}"
        command = [compiler, *FLAGS, *flags, *(() if program else ("-shared", "-fPIC")),
                   *(str(ROOT / source) for source in sources), "-o", str(path), "-pthread"]
        done = subprocess.run(command, capture_output=True, text=True)
        if re.search(r"cannot (find|open) .*(clang_rt|lib[atu]b?san)", done.stderr):
            pytest.skip(f"{compiler} has no sanitizer runtime (of clang: package libclang-rt-<version>-dev)")
        if done.returncode != 0 or done.stderr:
            raise RuntimeError(f"{name}: {' '.join(command)} says:\n{done.stderr}")
        _built[key] = path
    return _built[key]


def load(name, sources, flags=(), compiler="gcc"):
    """The same as a ctypes library."""
    return ctypes.CDLL(str(build(name, sources, flags, compiler)))


def captures():
    """Directory of the recorded frames, or None."""
    path = pathlib.Path(os.environ.get("FEEDHANDLER_CAPTURES", ROOT.parent / "shared" / "captures"))
    return path if path.is_dir() else None


class Guard:
    """Memory that ends at an unreadable page. place() puts a text so that just the promised padding lies behind it."""

    PAD = 64
    PAGE = 4096

    def __init__(self, size_max):
        self.size = -(-(size_max + self.PAD) // self.PAGE) * self.PAGE
        libc = ctypes.CDLL(None, use_errno=True)
        libc.mmap.restype = ctypes.c_void_p
        libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
        libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
        self.libc = libc
        self.base = libc.mmap(None, self.size + self.PAGE, 3, 0x22, -1, 0)
        if libc.mprotect(self.base + self.size, self.PAGE, 0) != 0:
            raise OSError(ctypes.get_errno(), "mprotect of the guard page")

    def place(self, text, padding=b""):
        """Address of the text, followed by 64 bytes of padding (repeated; zeros if none), then the guard page."""
        behind = (padding * self.PAD)[:self.PAD] if padding else bytes(self.PAD)
        address = self.base + self.size - self.PAD - len(text)
        ctypes.memmove(address, text + behind, len(text) + self.PAD)
        return address

    def close(self):
        self.libc.munmap(self.base, self.size + self.PAGE)
