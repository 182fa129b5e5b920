"""The public headers: clean in both languages, within their length, and their layout hash is the layout's."""
import pathlib
import re
import shutil
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
INCLUDE = ROOT / "cext" / "include"
HEADERS = sorted(INCLUDE.glob("*.h"))
LINE_MAX = 400


def layout_hash(text: str) -> int:
    """FNV-1a over the declarations between the version and the helpers, without comments and spacing."""
    layout = text[text.index("#define FH_CACHE_LINE"):text.index("/* Atomic words")]
    layout = " ".join(re.sub(r"/\*.*?\*/", " ", layout, flags=re.S).split())
    value = 0xcbf29ce484222325
    for byte in layout.encode():
        value = (value ^ byte) * 0x100000001b3 % 2**64
    return value


def test_schema_hash_is_that_of_the_layout():
    text = (INCLUDE / "feedhandler.h").read_text()
    stated = int(re.search(r"#define FH_SCHEMA_HASH (0x[0-9a-f]+)ull", text)[1], 16)
    assert stated == layout_hash(text), f"the layout changed: set FH_SCHEMA_HASH to {layout_hash(text):#018x}ull"


def test_schema_hash_follows_the_layout_and_not_its_comments():
    text = (INCLUDE / "feedhandler.h").read_text()
    assert layout_hash(text.replace("uint64_t commit; ", "uint64_t committed; ")) != layout_hash(text)
    assert layout_hash(text.replace("FH_BOOK_TOP 20", "FH_BOOK_TOP 21")) != layout_hash(text)
    assert layout_hash(text.replace("/* One record, one cache line. */", "/* A record. */")) == layout_hash(text)


@pytest.mark.parametrize("header", HEADERS, ids=lambda path: path.name)
def test_public_header_fits_four_hundred_lines(header):
    assert len(header.read_text().splitlines()) <= LINE_MAX


@pytest.mark.parametrize("language", ["c11", "c++17"])
@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_public_headers_compile_without_a_warning(tmp_path, compiler, language):
    if not shutil.which(compiler):
        pytest.skip(f"{compiler} is not installed")
    source = tmp_path / "strategy.c"
    source.write_text("".join(f'#include "{header.name}"\n' for header in reversed(HEADERS)) + "int main(void) { return 0; }\n")
    command = [compiler, "-x", "c" if language == "c11" else "c++", f"-std={language}", "-O1", "-Wall", "-Wextra",
               "-Wpedantic", "-Wshadow", "-Werror", f"-I{INCLUDE}", "-fsyntax-only", str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
