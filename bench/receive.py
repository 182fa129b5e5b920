"""Receive: CPU ns a message of our session (frames counted, not decoded) beside the least C can do, aiohttp and websockets.

The same server (bench/server.c) blasts the same bytes to each; with TLS one record a frame. Client and server have a CPU each;
CPU time of the client's process is what counts, so a slow sender does not flatter anybody.
"""
import statistics

from bench import build, common, wire

SIZES = (120, 400, 2000)
COUNT = {False: 400_000, True: 150_000}
SLOW_COUNT = 15_000     # of the Python peers, which need a hundred times as long
TLS_400_RATIO_MAX = 1.35


def run(quick=False):
    build.build()
    repeats = 1 if quick else common.REPEATS
    rows = []
    with wire.Wire() as wired, common.shared_directory() as directory:
        for tls in (False, True):
            for size in (400,) if quick else SIZES:
                rows += _size_rows(wired, directory, size, tls, COUNT[tls] // (8 if quick else 1), repeats, quick)
    return rows


def _size_rows(wired, directory, size, tls, count, repeats, quick):
    path = wired.messages(f"{size}", [(b'{"x":"' + b"y" * size)[:size - 2] + b'"}'])
    what = f"receive {size} B, {'TLS, one record a frame' if tls else 'plain'}"

    def cpu(kind, count):
        def once():
            (directory / "worker-0.ring").unlink(missing_ok=True)
            (directory / "worker-0.counters").unlink(missing_ok=True)
            return wired.run(kind, path, count, tls, count * size, directory)["cpu_ns_each"]
        return once
    c, ours, ratios = common.pairs(cpu("c", count), cpu("session-null", count), repeats)
    ratio = statistics.median(ratios)
    bound = TLS_400_RATIO_MAX if tls and size == 400 else None
    rows = [common.Row(what, "ns", ours, c, "C epoll" + (", memory BIO" if tls else ""), ratio, common.spread(ratios),
                       f"≤{bound}× of C" if bound else "", ratio <= bound if bound else None)]
    for kind in ("aiohttp", "websockets") if size == 400 else ():
        try:
            peer = statistics.median(cpu(kind, SLOW_COUNT // (5 if quick else 1))() for _ in range(1 if quick else 3))
        except RuntimeError as error:
            if "ModuleNotFoundError" not in str(error):
                raise
            continue
        rows.append(common.Row(what, "ns", ours, peer, kind, peer / ours))
    return rows
