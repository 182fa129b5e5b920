"""The plan of the house: who may import whom, how long a function may be, and words that have no place here. Read, not run."""
import ast
import fnmatch
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "feedhandler"
FUNCTION_MAX, SETUP_MAX = 70, 40
MODULES = sorted(path for pattern in ("*.py", "*.pyx", "*.pxd") for path in PACKAGE.rglob(pattern))

# Our modules that a module may import; the first pattern that fits a module's name counts. cli is nobody's.
OURS = {
    "feedhandler": ["reader"],
    "__main__": ["cli"],
    "_cext": [], "instance": [], "control": [], "capture": [], "digest": [],
    "reader": ["_cext", "instance"], "counters": ["_cext"], "venue": ["_cext"],
    "venues": [], "venues.*": ["_cext", "venue", "venues.*"],
    "capacity*": ["capacity*"],
    "config": ["instance", "venue", "venues"],
    "verify": ["venue", "venues", "capture", "digest", "worker.publisher"],
    "probe": ["config", "control", "counters", "venue", "capacity*", "worker.worker", "supervisor.instruments", "supervisor.ledger", "supervisor.rest",
              "supervisor.shard", "supervisor.tables"],
    "simulate*": ["simulate*"],
    "worker*": ["_cext", "control", "counters", "instance", "venue", "venues", "worker*"],
    "supervisor*": ["_cext", "control", "counters", "instance", "config", "venue", "venues", "capacity*", "supervisor*", "worker.launcher",
                    "worker.worker", ""],
    "cli*": ["cli*", "config", "instance", "reader", "counters", "capture", "venues", "verify", "probe", "supervisor.client", "supervisor.daemon",
             "simulate*", "capacity*", ""],
}
# Modules that may import a package of others. One need, one package, and as few doors as possible.
OTHERS = {
    "picows": ["worker.session", "simulate.server"], "aiohttp": ["supervisor.rest", "simulate.server"],
    "click": ["cli*"], "rich": ["cli*"], "psutil": ["worker*", "supervisor*", "cli*"], "pydantic": ["config"], "numpy": ["reader", "cli.demo"],
    "msgspec": ["control", "capture", "supervisor.shard"], "trustme": ["simulate.certificates"], "uvloop": ["worker.worker", "probe", "cli.simulate"],
    "cython": ["*"], "libc": ["*"], "cpython": ["*"], "posix": ["*"],
}
STANDARD = sys.stdlib_module_names


def name_of(path):
    """venues.okx of feedhandler/venues/okx.pyx."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts) or "feedhandler"


def imports(path):
    """Dotted names that a module imports, wherever in it; relative to nothing."""
    text = path.read_text()
    if path.suffix == ".py":
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path}: imports are absolute"
                yield from _from(node.module, [alias.name for alias in node.names])
        return
    text = re.sub(r'"""(?:.|\n)*?"""|#.*', "", text)
    for found in re.finditer(r"^ *from +([\w.]+) +c?import +(?:\(([^)]*)\)|(.*))$", text, re.M):
        yield from _from(found[1], [part.split()[0] for part in (found[2] or found[3]).split(",") if part.strip()])
    for found in re.finditer(r"^ *c?import +([\w., ]+)$", text, re.M):
        yield from (part.split()[0] for part in found[1].split(","))


def _from(module, names):
    """from package import module is an import of that module; any other name is one of the package's own."""
    folder = ROOT / module.replace(".", "/")
    for name in names:
        inside = module.startswith("feedhandler") and any((folder / f"{name}{end}").exists() for end in (".py", ".pyx", ".pxd", "/__init__.py"))
        yield f"{module}.{name}" if inside else module


def fits(name, patterns):
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def refused(name, imported):
    """"" or why the module of that name may not import this."""
    top, _, rest = imported.partition(".")
    if top == "feedhandler":
        allowed = next(allowed for pattern, allowed in OURS.items() if fnmatch.fnmatchcase(name, pattern))
        return "" if rest == name or fits(rest, allowed) else f"{name} imports feedhandler.{rest}; it may import {allowed}"
    if top in STANDARD:
        return ""
    return "" if fits(name, OTHERS.get(top, [])) else f"{name} imports {imported}; that is for {OTHERS.get(top, 'nobody')}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_what_lies_below_it(path):
    said = [refused(name_of(path), imported) for imported in imports(path)]
    assert not any(said), sorted(set(filter(None, said)))


@pytest.mark.parametrize("name, imported", [("reader", "feedhandler.venue"), ("venues.okx", "feedhandler.control"), ("worker.link", "picows.picows"),
                                            ("supervisor.rest", "click"), ("config", "feedhandler.cli"), ("capacity.plan", "numpy"),
                                            ("simulate.market", "feedhandler.venue"), ("cli.tail", "feedhandler.worker.worker")])
def test_the_rules_refuse_what_goes_up_or_round_a_door(name, imported):
    assert refused(name, imported)


def test_imports_are_found_in_every_form(tmp_path):
    (tmp_path / "a.pyx").write_text('"""from x import y"""\nfrom feedhandler._cext cimport *\ncimport cython\n    import numpy as np, os\n'
                                    'from feedhandler.venue import (A,\n    B)\nfrom feedhandler import control, instance  # x\n')
    assert sorted(imports(tmp_path / "a.pyx")) == sorted(["feedhandler._cext", "cython", "numpy", "os", "feedhandler.venue", "feedhandler.venue",
                                                          "feedhandler.control", "feedhandler.instance"])


def test_the_c_core_knows_no_python_and_no_global_state():
    for path in (ROOT / "cext").rglob("*.[ch]"):
        text = re.sub(r"/\*(?:.|\n)*?\*/", "", path.read_text())
        assert "Python.h" not in text, path
        state = re.findall(r"^(?:static )?(?!static inline|typedef|const|extern|_Static|struct|enum|union|return)[a-z_0-9]+ \*?[a-z_0-9]+(?:\[\w*\])*(?: = [^;]*)?;", text, re.M)
        assert not state, (path, state)


# -- sizes -------------------------------------------------------------------------------------------------------------

def python_functions(text):
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node.name, node.end_lineno - node.lineno + 1


def cython_functions(text):
    """From a def to the last line that is indented deeper. Blank and comment lines end nothing."""
    lines = text.splitlines()
    for start, line in enumerate(lines):
        found = re.match(r"( *)(?:async )?(?:def|cpdef|cdef)\b(?! class)[^=]*?(\w+)\(", line)
        if not found or not (re.search(r":\s*(#.*)?$", line) or line.rstrip().endswith((",", "("))):
            continue
        end = start
        for at in range(start + 1, len(lines)):
            depth = len(lines[at]) - len(lines[at].lstrip())
            if lines[at].strip() and depth <= len(found[1]) and not lines[at].lstrip().startswith((")", "#")):
                break
            end = at if lines[at].strip() else end
        yield found[2], end - start + 1


def c_functions(text):
    """From the line of the name to the closing brace in column 0."""
    for found in re.finditer(r"^[A-Za-z_][^\n;{}=]*?(\w+)\([^;{}]*\)\s*\n?\{.*?^\}", text, re.M | re.S):
        yield found[1], found[0].count("\n") + 1


SOURCES = [path for folder in ("feedhandler", "cext", "tests", "bench") for path in sorted((ROOT / folder).rglob("*"))
           if path.suffix in (".py", ".pyx", ".c", ".h", ".cpp")]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_function_fits_on_a_screen(path):
    scan = {".py": python_functions, ".pyx": cython_functions}.get(path.suffix, c_functions)
    assert {name: size for name, size in scan(path.read_text()) if size > FUNCTION_MAX} == {}


def test_the_scanners_see_a_function_that_is_too_long():
    body = "    x = 1\n" * 70
    assert dict(python_functions(f"def a():\n{body}"))["a"] == 71
    assert dict(cython_functions(f"cdef int a(int b,\n        int c) noexcept nogil:\n{body}\n\ndef d():\n    pass\n")) == {"a": 72, "d": 2}
    assert dict(c_functions("static int a(int b)\n{\n" + "    b++;\n" * 70 + "}\n\nint d(void)\n{\n}\n")) == {"a": 73, "d": 3}


def test_setup_keeps_its_length():
    assert len((ROOT / "setup.py").read_text().splitlines()) <= SETUP_MAX


# -- words -------------------------------------------------------------------------------------------------------------

def tracked():
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("this is no git checkout")
    return [ROOT / line for line in done.stdout.splitlines()]


def test_nothing_is_left_undone_and_no_path_of_a_workplace_is_named():
    words = re.compile("|".join(["TO" + "DO", "FIX" + "ME", "X" + "XX\\b", "HA" + "CK" + "\\b", "/wo" + "rk/", "/tm" + "p/wt", r"\bag" + r"ents?\b(?!-)"]))
    found = [f"{path.relative_to(ROOT)}: {line.strip()}" for path in tracked() if path.is_file() and path.name != "LICENSE"
             for line in path.read_text().splitlines() if words.search(line)]
    assert found == []
