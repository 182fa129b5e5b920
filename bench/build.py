"""Compile the loops of the benchmarks (bench/*.pyx) beside themselves, against the source tree."""
import contextlib
import io
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent


def build():
    """Build what is missing or older than its source; quick when nothing changed."""
    from Cython.Build import cythonize
    from setuptools import Distribution, Extension
    flags = ["-std=c11", "-O3", "-D_GNU_SOURCE", "-w"]
    includes = [str(ROOT / "cext"), str(ROOT / "cext/include")]
    sources = sorted(map(str, (ROOT / "cext").glob("*.c")))
    headers = sorted(map(str, (ROOT / "cext").rglob("*.h")))
    extensions = [Extension(f"bench.{path.stem}", [str(path)] + sources, include_dirs=includes, extra_compile_args=flags, depends=headers)
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
