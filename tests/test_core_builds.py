"""The core under address and undefined-behaviour sanitizers, and every build of it against the others."""
import concurrent.futures
import itertools
import shutil
import struct
import subprocess

import pytest

import csupport
from test_book import SHAPES, WRONG_ROWS
from test_decimal import KNOWN, NO_NUMBERS
from test_json import ACCEPTED, ISO, MESSAGES, NO_ISO, REJECTED, SOURCES, captured

STRESS = ["tests/c/core_stress.c", *SOURCES]
BUILDS = {
    "gcc": ("gcc", ["-O3"]), "gcc-portable": ("gcc", ["-O3", "-DFH_PORTABLE"]),
    "clang-sanitized": ("clang", ["-O1", *csupport.SANITIZE]), "clang-sanitized-portable": ("clang", ["-O1", *csupport.SANITIZE, "-DFH_PORTABLE"]),
}


def own_texts():
    yield from itertools.chain(ACCEPTED, REJECTED, MESSAGES)
    yield from (text for text, *_ in itertools.chain(SHAPES, WRONG_ROWS))
    for text in itertools.chain(KNOWN, NO_NUMBERS):
        yield from (text.encode(), b'"%s"' % text.encode(), b'[["%s","%s"]]' % (text.encode(), text.encode()))
    yield from (b'"%s"' % text.encode() for text in itertools.chain((text for text, _ in ISO), NO_ISO))


def digests(path, texts, rounds):
    """What each build prints for these texts. A sanitizer's report fails the run."""
    path.write_bytes(b"".join(struct.pack("<I", len(text)) + text for text in texts))

    def run(item):
        name, (compiler, flags) = item
        program = csupport.build(f"core-stress-{name}", STRESS, flags, compiler, program=True)
        done = subprocess.run([program, path, str(rounds)], capture_output=True, text=True, timeout=100)
        assert done.returncode == 0 and not done.stderr, f"{name}: {done.stderr[-3000:]}"
        return name, done.stdout.strip()

    available = {name: build for name, build in BUILDS.items() if shutil.which(build[0])}
    if len(available) < len(BUILDS):
        pytest.skip("the sanitized builds need clang")
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        return dict(pool.map(run, available.items()))


def test_every_build_answers_alike_and_clean_on_our_own_texts_cut_and_corrupted(tmp_path):
    seen = digests(tmp_path / "texts", list(own_texts()), 6)
    assert len(seen) == 4 and len(set(seen.values())) == 1, seen


def test_every_build_answers_alike_and_clean_on_recorded_frames_cut_and_corrupted(tmp_path):
    texts = [frame for _, frames in captured(60_000) for frame in frames if len(frame) < 20_000]
    seen = digests(tmp_path / "frames", texts, 3)
    assert len(seen) == 4 and len(set(seen.values())) == 1, seen


def test_the_digest_tells_texts_apart(tmp_path):
    assert digests(tmp_path / "one", [b"[1]"], 1) != digests(tmp_path / "two", [b"[2]"], 1)
