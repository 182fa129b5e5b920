"""Every mistake of a configuration has its line and a sentence; all are said at once; what is shipped is well."""
import json
import pathlib
import tomllib

import pytest

from feedhandler import config, venues

ROOT = pathlib.Path(__file__).parents[1]
HEAD = "[[subscribe]]\nvenue = \"okx\"\nsymbols = [\"BTC-USDT\"]\nchannels = [\"trade\"]\n"

pytestmark = pytest.mark.skipif(not {"okx", "kraken"} <= set(venues.names()), reason="the venues okx and kraken are not built")


def problems(text):
    with pytest.raises(config.ConfigError) as caught:
        config.parse(text, "x.toml")
    return caught.value.problems


MISTAKES = [
    # text, line, words the sentence must hold
    ("[instance]\nnam = \"a\"", 2, ["instance.nam is not a setting", "did you mean instance.name?"]),
    ("[instanc]\nname = \"a\"", 1, ["instanc is not a setting", "did you mean instance?"]),
    ("[instance]\n\nworkers = 0", 3, ["instance.workers is 0", "1 to 64"]),
    ("[instance]\nworkers = 65", 2, ["instance.workers is 65", "1 to 64"]),
    ("[instance]\nworkers = true", 2, ["instance.workers is true", "1 to 64"]),
    ("[instance]\nworkers = \"2\"", 2, ["instance.workers is \"2\"", "1 to 64"]),
    ("[instance]\nname = \"a b\"", 2, ["instance name 'a b'", "as in main"]),
    ("instance.name = \"../x\"", 1, ["instance name '../x'"]),
    ("[instance]\ncpus = [4095]", 2, ["CPU 4095", "this process may use"]),
    ("[instance]\nspin = true", 2, ["instance.spin is true", "instance.cpus is empty"]),
    ("[instance]\nspin = 1", 2, ["instance.spin is 1", "true or false"]),
    ("[instance]\nframe_size_max = 65535", 2, ["65,536 to 268,435,456"]),
    ("[ring]\nslots = 1000", 2, ["ring.slots is 1000", "a power of two", "the next one is 1024"]),
    ("[ring]\nslots = 512", 2, ["ring.slots is 512"]),
    ("[ring]\nslots = 134217728", 2, ["ring.slots is 134217728", "67,108,864"]),
    ("[books]\nlevels = 9", 2, ["books.levels is 9", "10 to 200,000"]),
    ("[restart]\nwindow_s = \"60\"", 2, ["restart.window_s is \"60\"", "1 to 3,600"]),
    ("[venues.okex]\nrest = \"https://a\"", 1, ["venues.okex is not a venue", "did you mean okx?"]),
    ("[venues.okx.urls]\npubic = \"wss://a\"", 2, ["not an endpoint of okx", "did you mean public?"]),
    ("[venues.okx]\nurls.public = \"ws://example.com\"", 2, ["not encrypted"]),
    ("[venues.okx]\nurls.public = \"http://127.0.0.1\"", 2, ["allowed is a wss:// address"]),
    ("[venues.okx]\nurls.public = \"wss://a:70000\"", 2, ["no address"]),
    ("[venues.okx.urls_b]\npubic = \"wss://a\"", 2, ["not an endpoint of okx", "did you mean public?"]),
    ("[venues.okx]\nurls_b.public = \"ws://example.com\"", 2, ["urls_b.public", "not encrypted"]),
    ("[venues.okx]\nsource = \"localhost\"", 2, ["source is \"localhost\"", "an IP address of this machine"]),
    ("[venues.okx]\nsource = \"0.0.0.0\"", 2, ["an IP address of this machine"]),
    ("[venues.okx]\nsource_b = \"10.0.0.2\"", 2, ["source_b is \"10.0.0.2\"", "give both"]),
    ("[venues.okx]\nsource = \"10.0.0.2\"\nsource_b = \"10.0.0.2\"", 3, ["different ones"]),
    ("[venues.okx]\nrest = \"http://example.com\"", 2, ["not encrypted"]),
    ("[venues.okx]\nca_file = \"/nonexistent\"", 2, ["not a readable file"]),
    ("[venues.okx.limits.public]\nmax_per_con = 1", 2, ["did you mean venues.okx.limits.public.max_per_conn?"]),
    ("[venues.okx.limits.publik]\nmax_open = 1", 1, ["did you mean public?"]),
    ("[venues.okx.limits.public]\nattempts = [\n{ n = 3, per_s = 0.0 }]", 3, ["attempts[0].per_s is 0.0", "0.001 to 86,400"]),
    (HEAD.replace("okx", "okc"), 2, ["subscribe[0].venue", "did you mean okx?"]),
    (HEAD.replace("venue = \"okx\"\n", ""), 1, ["subscribe[0].venue is missing"]),
    (HEAD.replace("[\"BTC-USDT\"]", "[]"), 3, ["subscribe[0].symbols is []"]),
    (HEAD.replace("[\"BTC-USDT\"]", "[\"BTC-USDT\",\n\"BTC-USDT\"]"), 4, ["stands there twice"]),
    (HEAD.replace("[\"trade\"]", "[\"trad\"]"), 4, ["channel 'trad' is not known", "did you mean trade?"]),
    (HEAD.replace("[\"trade\"]", "[\n\"trade\",\n\"book7\"]"), 6, ["okx: no book of 7 levels"]),
    (HEAD + "lines = 3", 5, ["subscribe[0].lines is 3", "1 or 2"]),
    (HEAD + HEAD + "limit = 0", 9, ["subscribe[1].limit is 0"]),
    ("[instance\nname = 1", 1, ["this is not TOML"]),
    ("[instance]\nname = \"a\"\nname = \"b\"", 3, ["this is not TOML"]),
    ("x = \"", 1, ["this is not TOML"]),
]


@pytest.mark.parametrize("text,line,words", MISTAKES)
def test_each_mistake_has_its_line_and_what_to_write_instead(text, line, words):
    found = problems(text)
    assert any(problem.line == line and all(word in problem.text for word in words) for problem in found), found
    assert all(str(problem).startswith(f"x.toml:{problem.line}: ") and "\n" not in str(problem) for problem in found)


NEIGHBOURS = ["[instance]\nworkers = 1", "[instance]\nworkers = 64", "[instance]\nname = \"a-b\"", "[ring]\nslots = 1024", "[ring]\nslots = 67108864",
              "[books]\nlevels = 10", "[restart]\nwindow_s = 60", "[venues.okx]\nurls.public = \"ws://127.0.0.1:1\"",
              "[venues.okx]\nrest = \"http://localhost:8\"", "[venues.okx.limits.public]\nattempts = [{ n = 3, per_s = 0.5 }]", HEAD, HEAD + "lines = 2", ""]


@pytest.mark.parametrize("text", NEIGHBOURS)
def test_the_valid_neighbours_of_those_mistakes_are_taken(text):
    config.parse(text)


def test_all_mistakes_are_said_at_once_in_the_order_of_their_lines():
    text = "[instance]\nworkers = 0\nnam = 1\n[ring]\nslots = 3\n[[subscribe]]\nvenue = \"okc\"\nsymbols = [\"A\"]\nchannels = [\"x\"]\n"
    assert [problem.line for problem in problems(text)] == [2, 3, 5, 7, 9]


def test_a_file_that_is_not_utf8_is_said_with_its_line(tmp_path):
    (tmp_path / "x.toml").write_bytes(b"[instance]\nname = \"\xff\"\n")
    with pytest.raises(config.ConfigError, match="x.toml:2: byte 19 is not UTF-8"):
        config.load(tmp_path / "x.toml")


LOCATED = '''# a comment
a = 1
b.c = [1, # one
  "x,]", { d = 2, e = """
two
lines""" },
]
"q.r" = 'it'
[t]
u = 2026-01-01
[[l]]
m = [ ]
[[l]]
n = { o = [ {p = 1} ] }
[l.k]
z = true
'''


def test_every_key_of_a_toml_text_is_found_on_its_line():
    lines = config.locate(LOCATED)
    expected = {("a",): 2, ("b", "c"): 3, ("b", "c", 0): 3, ("b", "c", 1): 4, ("b", "c", 2): 4, ("b", "c", 2, "d"): 4, ("b", "c", 2, "e"): 4,
                ("q.r",): 8, ("t",): 9, ("t", "u"): 10, ("l", 0): 11, ("l", 0, "m"): 12, ("l", 1): 13, ("l", 1, "n", "o", 0, "p"): 14,
                ("l", 1, "k"): 15, ("l", 1, "k", "z"): 16}
    assert {path: lines[path] for path in expected} == expected

    def paths(value, at=()):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
            yield (*at, key)
            yield from paths(inner, (*at, key))
    assert set(paths(tomllib.loads(LOCATED))) <= set(lines)


@pytest.mark.parametrize("file", sorted((ROOT / "conf").glob("*.toml")), ids=lambda file: file.name)
def test_the_shipped_files_are_well(file):
    assert config.load(file).subscribe


def test_the_example_names_every_setting_with_its_default():
    text = (ROOT / "conf/example.toml").read_text()
    defaults = config.resolved(config.parse(""))
    for table, settings in defaults.items():
        for key, value in settings.items() if isinstance(settings, dict) else ():
            assert f"# {key} = {json.dumps(value)} " in text or f"# {key} = {value} " in text, f"{table}.{key} = {value}"
    for model in (config.VenueTable, config.LimitTable, config.SubscribeTable):
        assert not [key for key in model.model_fields if f"{key} = " not in text and f"{key}." not in text]


def test_resolved_is_a_configuration_again():
    first = config.load(ROOT / "conf/real.toml")
    assert config.Config.model_validate(config.resolved(first)) == first
    assert config.schema()["$defs"]["RingTable"]["properties"]["slots"]["allowed"].startswith("a power of two")
