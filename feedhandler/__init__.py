"""feedhandler: crypto market data from venue to strategy, through shared memory.

    feed = feedhandler.attach("demo")
    for record in feed:
        ...
"""

__version__ = "0.1.0"


KINDS = ("TRADE", "QUOTE", "TOUCH", "LEVEL", "MARK", "INDEX", "FUNDING", "OPEN_INTEREST", "LIQUIDATION", "CANDLE", "TICKER", "GREEKS", "STATUS")


def __getattr__(name):
    # Loaded on first use: workers and the command line import this package and need no numpy.
    if name in ("attach", "Feed", "FeedError", *KINDS):
        from feedhandler import reader
        return getattr(reader, name)
    raise AttributeError(f"module 'feedhandler' has no attribute {name!r}")


def get_include():
    """Folder of feedhandler.h and its two readers' headers, for a C compiler's -I."""
    import pathlib
    installed = pathlib.Path(__file__).with_name("include")
    return str(installed if installed.is_dir() else pathlib.Path(__file__).resolve().parent.parent / "cext" / "include")
