"""python -m bench [NAME ...]: every figure beside its reference, measured in one run.

Names: decode, book, ring, reader, receive, path, recovery, plan. Without a name: all, one after the other.
"""
import argparse
import importlib
import json
import pathlib
import sys
import time

from bench import common

HERE = pathlib.Path(__file__).resolve().parent
NAMES = ("decode", "book", "ring", "reader", "receive", "path", "recovery", "plan")


def main():
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one or more of {', '.join(NAMES)}")
    parser.add_argument("--quick", action="store_true", help="fewer repeats: to see that it runs, not for figures")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="also write the rows to FILE")
    options = parser.parse_args()
    for name in options.names:
        if name not in NAMES:
            parser.error(f"no benchmark {name!r}; use one of {', '.join(NAMES)}")
    rows, missing = [], []
    for name in options.names or [name for name in NAMES if (HERE / f"{name}.py").exists()]:
        print(f"{name} …", file=sys.stderr, flush=True)
        begin = time.monotonic()
        try:
            rows += importlib.import_module(f"bench.{name}").run(quick=options.quick)
        except common.Unavailable as error:
            missing.append(f"{name}: not run: {error}")
        print(f"{name}: {time.monotonic() - begin:.0f} s", file=sys.stderr, flush=True)
    command = " ".join(["python -m bench", *options.names, *(["--quick"] if options.quick else [])])
    text = "\n".join([f"{common.machine()}; {time.strftime('%Y-%m-%d')}; `{command}`", "", common.table(rows), *missing, ""])
    print(text)
    if not options.names and not options.quick:
        (HERE / "results.md").write_text(text)
    if options.json:
        options.json.write_text(json.dumps([vars(row) for row in rows], indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
