"""Compile the loops (bench/*.pyx) beside themselves, and the programs (bench/*.c) into build/bench, against the source tree."""
import contextlib
import io
import pathlib
import shutil
import subprocess
import sys

from bench import common

FLAGS = ["-std=c11", "-O3", "-D_GNU_SOURCE", "-w"]
INCLUDES = ["cext", "cext/include"]
ROOT = pathlib.Path(__file__).resolve().parent.parent


def build():
    """Build what is missing or older than its source; quick when nothing changed."""
    from Cython.Build import cythonize
    from setuptools import Distribution, Extension
    includes = [str(ROOT / path) for path in INCLUDES]
    sources = sorted(map(str, (ROOT / "cext").glob("*.c")))
    headers = sorted(map(str, (ROOT / "cext").rglob("*.h")))
    extensions = [Extension(f"bench.{path.stem}", [str(path)] + sources, include_dirs=includes, extra_compile_args=FLAGS, depends=headers)
                  for path in sorted((ROOT / "bench").glob("*.pyx"))]
    modules = cythonize(extensions, build_dir=str(ROOT / "build/bench"), quiet=True, include_path=[str(ROOT)], language_level=3,
                        compiler_directives={"boundscheck": False, "wraparound": False, "cdivision": True})
    distribution = Distribution({"ext_modules": modules, "script_name": "bench", "packages": ["bench"], "package_dir": {"": str(ROOT)}})
    command = distribution.get_command_obj("build_ext")
    command.inplace = True
    command.build_temp = str(ROOT / "build/bench")
    command.ensure_finalized()
    with contextlib.redirect_stdout(io.StringIO()):
        command.run()
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))


def program(name, *libraries):
    """Path of bench/<name>.c, compiled with the C core when it is missing or older than a source."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        raise common.Unavailable("no C compiler; install gcc")
    target = ROOT / "build/bench" / name
    core = sorted((ROOT / "cext").glob("*.c"))
    sources = [ROOT / "bench" / f"{name}.c", *core]
    newest = max(path.stat().st_mtime for path in [*sources, *(ROOT / "cext").rglob("*.h"), *(ROOT / "bench").glob("*.h")])
    if not target.exists() or target.stat().st_mtime < newest:
        target.parent.mkdir(parents=True, exist_ok=True)
        done = subprocess.run([compiler, *FLAGS, *(f"-I{ROOT / path}" for path in INCLUDES), *map(str, sources), "-o", str(target),
                               *(f"-l{library}" for library in libraries)], capture_output=True, text=True)
        if done.returncode:
            raise common.Unavailable(f"bench/{name}.c does not compile here: {done.stderr.strip()[:300]}")
    return str(target)
