"""The simulated venues, found by their file names."""
import importlib
import pathlib

SHARED = ("side", "binance", "binance_futures")     # parts of several venues, not venues


def names():
    files = sorted(path.stem for path in pathlib.Path(__file__).parent.glob("*.py"))
    return [stem.replace("_", "-") for stem in files if stem not in SHARED and not stem.startswith("__")]


def load(name):
    """The Side class of a venue."""
    return importlib.import_module(f"{__name__}.{name.replace('-', '_')}").SIDE
