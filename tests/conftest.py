"""Options of the test suite."""


def pytest_addoption(parser):
    parser.addoption("--long", action="store_true", help="run the long variants: more kills, more starts, more hours")
