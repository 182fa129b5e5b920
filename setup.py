"""Build the C core as one static library and every .pyx below feedhandler/ as an extension over it."""
import pathlib

from Cython.Build import cythonize
from setuptools import Extension, setup

FLAGS = ["-std=c11", "-O3", "-fvisibility=hidden", "-Wall", "-Wextra", "-D_GNU_SOURCE"]
CYTHON_FLAGS = FLAGS + ["-Wno-unused-parameter", "-Wno-unused-function", "-Wno-cast-function-type",
                        "-Wno-missing-field-initializers", "-Wno-sign-compare"]
HEADERS = sorted(map(str, pathlib.Path("cext").rglob("*.h")))
SOURCES = sorted(map(str, pathlib.Path("cext").glob("*.c")))
INCLUDES = ["cext", "cext/include"]

extensions = [
    Extension(".".join(path.with_suffix("").parts), [str(path)], include_dirs=INCLUDES, extra_compile_args=CYTHON_FLAGS,
              depends=HEADERS + SOURCES)
    for path in sorted(pathlib.Path("feedhandler").rglob("*.pyx"))
]

setup(
    libraries=[("fhcore", {"sources": SOURCES, "include_dirs": INCLUDES, "cflags": FLAGS, "obj_deps": {"": HEADERS}})],
    ext_modules=cythonize(extensions, build_dir="build/cython", language_level=3, compiler_directives={
        "boundscheck": False, "wraparound": False, "cdivision": True, "initializedcheck": False,
        "freethreading_compatible": False}),
)
