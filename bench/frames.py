"""Frames to decode: from recordings where they are, else hand-made ones of the same shapes."""
import gzip
import os
import pathlib

ROOT = pathlib.Path(__file__).resolve().parent.parent
CLASS_MAX = 3000  # messages of one class


def captures():
    """The folder of recordings, or None."""
    folder = pathlib.Path(os.environ.get("FEEDHANDLER_CAPTURES", ROOT.parent / "shared" / "captures"))
    return folder if folder.is_dir() else None


def recorded(name, marker, count=CLASS_MAX):
    """Up to count text frames of a recording that contain marker (bytes)."""
    found = []
    with gzip.open(captures() / f"{name}.tsv.gz", "rb") as lines:
        for line in lines:
            _, _, direction, payload = line.rstrip(b"\n").split(b"\t", 3)
            if direction == b"in" and marker in payload:
                found.append(payload)
                if len(found) == count:
                    break
    return found


def prepared(venue, messages):
    """A venue with every symbol of the messages listed at the exponents they need, and the messages it decodes."""
    import re
    symbols = sorted({s for m in messages for s in re.findall(rb'"(?:s|instId|instrument_name|symbol)":"([^"]+)"', m)})
    for index, symbol in enumerate(symbols):
        venue.add_instrument(index, symbol.decode(), -9, -9)
    return [m for m in messages if venue.inspect(m)["status"] > 0]
