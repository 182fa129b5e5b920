"""The ring, state, counters and feed tests once more, with their C under the address and undefined behaviour sanitizers."""
import os
import subprocess
import sys

import pytest

from tests.csupport import ROOT

TESTS = ("test_ring.py", "test_feed.py", "test_state.py", "test_counters.py")
ELSEWHERE = "torture or killed or full_shared or strategy or take_turns"  # programs of their own, not the library


@pytest.mark.skipif("FEEDHANDLER_SANITIZE" in os.environ, reason="this is the run under the sanitizers")
def test_the_same_tests_hold_under_address_and_undefined_sanitizers():
    runtime = subprocess.run(["gcc", "-print-file-name=libasan.so"], capture_output=True, text=True).stdout.strip()
    if not os.path.isabs(runtime):
        pytest.skip("gcc has no libasan.so (package libgcc-dev)")
    # Leaks are Python's own affair; a preloaded runtime is how a library is checked inside an unchecked program.
    environment = {**os.environ, "FEEDHANDLER_SANITIZE": "1", "LD_PRELOAD": runtime, "ASAN_OPTIONS": "detect_leaks=0"}
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-k", f"not ({ELSEWHERE})",
                           *(str(ROOT / "tests" / name) for name in TESTS)],
                          capture_output=True, text=True, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
