"""Venues by name. One file a venue: the lists come from the folder, nothing is registered anywhere."""
import functools
import importlib
import pathlib


@functools.cache
def names():
    """Names of all venues in this folder, sorted: "binance-spot", …  A file whose name begins with _ is shared by venues, none itself."""
    files = {path.name.partition(".")[0] for path in pathlib.Path(__file__).parent.iterdir()
             if path.suffix in (".pyx", ".so") and not path.name.startswith("_")}
    return tuple(sorted(name.replace("_", "-") for name in files))


def load(name, row_max=1024):
    """A Venue with room for row_max instruments. ValueError names the venues there are."""
    if name not in names():
        raise ValueError(f"venue {name!r} is not known; there are {', '.join(names()) or 'none'}")
    module = importlib.import_module(f"{__name__}.{name.replace('-', '_')}")
    return module.VENUE(row_max)
