"""feedhandler demo: the whole product in one command, on a terminal and off it; nothing is left behind, however it ends."""
import fcntl
import json
import os
import pathlib
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time

import pytest

import place

COMMAND = [sys.executable, "-m", "feedhandler", "demo"]
WAIT_S = 30.0


def nothing_left(pid, folder):
    """No shared memory, temporary file or process of the demo whose process had this pid."""
    name = f"demo-{pid}"
    assert not [path for path in pathlib.Path("/dev/shm").iterdir() if path.name.startswith(f"feedhandler-{name}")]
    assert list(pathlib.Path(folder).glob("feedhandler-demo-*")) == []
    for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:             # it ended meanwhile
            continue
        assert name.encode() not in words and not any(word.startswith(f"{folder}/".encode()) for word in words), words


class Terminal:
    """A demo on a terminal of its own."""

    def __init__(self, folder, *words, rows=24, columns=80):
        self.folder, self.screen = folder, b""
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        modes = termios.tcgetattr(slave)
        modes[3] |= termios.NOFLSH      # else a Ctrl-C throws away what was shown and not yet read
        termios.tcsetattr(slave, termios.TCSANOW, modes)
        env = {**place.environment(folder), "TMPDIR": str(folder), "TERM": "xterm"}
        self.process = subprocess.Popen([*COMMAND, *words], env=env, stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
                                        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0))
        os.close(slave)

    def until(self, text):
        """Read what it shows until text is there, or, with None, until it ends."""
        deadline = time.monotonic() + WAIT_S
        while text is None or text not in self.screen:
            assert time.monotonic() < deadline, self.screen[-2000:]
            if select.select([self.master], [], [], 0.1)[0]:
                try:
                    self.screen += os.read(self.master, 65536)
                except OSError:     # the last holder of the other end is gone
                    assert text is None, self.screen[-2000:]
                    return

    def interrupt(self, times):
        for _ in range(times):
            os.write(self.master, b"\x03")

    def end(self):
        """Its exit code and the texts it showed, each as lines."""
        self.until(None)
        code = self.process.wait(WAIT_S)
        os.close(self.master)
        nothing_left(self.process.pid, self.folder)
        text = self.screen.decode().replace("\r", "")
        return code, [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", part).split("\n") for part in re.split(r"(?:\x1b\[2K|\x1b\[1A)+", text)]


def test_six_venues_and_two_workers_run_without_a_gap_or_a_loss(tmp_path):
    process = subprocess.Popen([*COMMAND, "--seconds", "3", "--workers", "2", "--json"], env={**place.environment(tmp_path), "TMPDIR": str(tmp_path)},
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    out, error = process.communicate(timeout=60)
    assert (process.returncode, error) == (0, "")
    summary = json.loads(out)
    assert {key: summary[key] for key in ("gaps", "lost", "malformed", "unknown", "instruments", "books_live")} == {
        "gaps": 0, "lost": 0, "malformed": 0, "unknown": 0, "instruments": 24, "books_live": 24}
    assert summary["records"] > 5000 and summary["trades"] > 200 and summary["book_moves"] > 500
    assert [len(summary["latency"][stage]) for stage in ("decode", "publish")] == [2, 2]
    nothing_left(process.pid, tmp_path)


def test_its_table_fits_the_terminal_and_ctrl_c_ends_it_well_however_often(tmp_path):
    terminal = Terminal(tmp_path, "--venue", "okx", "--venue", "kraken", "--venue", "deribit", "--instruments", "7")
    terminal.until(b"more instruments")
    terminal.interrupt(3)
    code, shown = terminal.end()
    assert code == 0
    tables = [lines for lines in shown if any("records/s" in line for line in lines)]
    assert tables and [line for lines in shown for line in lines if len(line) > 80 and "^C" not in line] == [], "but where the terminal echoes"
    for lines in tables:
        title, foot = (next(number for number, line in enumerate(lines) if found in line) for found in ("records/s", "gaps 0  lost 0"))
        assert foot - title < 24 - 1
        assert {line.split()[0] for line in lines[title + 2:foot - 3]} == {"okx", "kraken", "deribit"}, "each venue has its place"
        assert not any("…" in line for line in lines), "nothing is cut"
    assert any("21 of 21 books live" in line for line in shown[-1])


def has_lock(terminal):
    """Whether its instance is about to start."""
    return os.path.exists(f"/dev/shm/feedhandler-demo-{terminal.process.pid}.lock")


@pytest.mark.parametrize("number, moment", [(signal.SIGINT, has_lock), (signal.SIGHUP, has_lock), (signal.SIGTERM, lambda terminal: True)])
def test_a_signal_before_it_runs_leaves_nothing_behind(tmp_path, number, moment):
    terminal = Terminal(tmp_path, "--venue", "okx")
    terminal.until(b"messages a second")
    deadline = time.monotonic() + WAIT_S
    while not moment(terminal):
        assert time.monotonic() < deadline
        time.sleep(0.001)
    os.killpg(terminal.process.pid, number)
    os.killpg(terminal.process.pid, number)
    code, shown = terminal.end()
    assert code == 1 and "feedhandler: stopped before the demo was running; run feedhandler demo again" in shown[-1]


def test_what_does_not_fit_is_told_with_the_options_to_change(tmp_path, request):
    if not request.config.getoption("--long"):
        pytest.skip("lists 1,000 instruments: run with --long")
    done = place.feedhandler("demo", "--seconds", "1", "--venue", "okx", "--venue", "deribit", "--instruments", "500", folder=tmp_path)
    assert done.returncode == 1
    assert "do not fit" in done.stderr and done.stderr.endswith("try more --workers, fewer --instruments or a lower --rate\n")
