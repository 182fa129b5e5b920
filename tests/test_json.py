"""The JSON cursor (fh_json): what it accepts, what it answers, and that nothing behind the text ever counts."""
import ctypes
import decimal
import gzip
import itertools
import json
import random
import struct

import pytest
from hypothesis import given, settings, strategies as st

import csupport

SOURCES = ["tests/c/core_probe.c"] + [f"cext/fh_{name}.c" for name in ("json", "decimal", "batch", "book", "crc32")]
OK, MALFORMED, RANGE, DEPTH = 0, -1, -7, -8
OVERFLOW = 64  # FH_OVERFLOW

BOOK_TICKER = (b'{"stream":"ethusdt@bookTicker","data":{"e":"bookTicker","u":5123107838717,"s":"ETHUSDT","b":"2681.62",'
               b'"B":"1.165","a":"2681.63","A":"73.077","T":1723161256310,"E":1723161256311}}')
DEPTH_UPDATE = (b'{"e":"depthUpdate","E":1723161255208,"s":"BTCUSDT","U":50093239189,"u":50093239202,"b":[["61737.63000000",'
                b'"0.00000000"],["61730.17","0.5"]],"a":[],"x":{"deep":[null,true,false,-1.5e3,{"k\\u0041":"\\n"}]}}')
ACK = b'{ "result" : null , "id" : [ 1 , 2 ] }'
MESSAGES = [BOOK_TICKER, DEPTH_UPDATE, ACK]


class Probe:
    """One build of the cursor, reading from memory that ends just behind the padding."""

    def __init__(self, flags):
        self.c = csupport.load("core", SOURCES, flags)
        self.guard = csupport.Guard(1 << 21)
        self.dump = ctypes.create_string_buffer(1 << 23)

    def walk(self, text, padding=b""):
        """(error, tokens) of a walk through the whole text."""
        size = ctypes.c_size_t(len(self.dump))
        error = self.c.probe_walk(ctypes.c_void_p(self.guard.place(text, padding)), ctypes.c_size_t(len(text)), self.dump,
                                  ctypes.byref(size))
        return error, self.dump[:size.value]

    def skip(self, text, padding=b""):
        return self.c.probe_skip(ctypes.c_void_p(self.guard.place(text, padding)), ctypes.c_size_t(len(text)))

    def value(self, call, text, padding=b"", kind=ctypes.c_uint64):
        answer = kind(0)
        error = self.c.probe_value(call.encode(), ctypes.c_void_p(self.guard.place(text, padding)),
                                   ctypes.c_size_t(len(text)), ctypes.byref(answer))
        return (error, answer.value if error == OK else None)

    def span(self, function, text, *name):
        offset, size = ctypes.c_size_t(), ctypes.c_size_t()
        error = getattr(self.c, function)(ctypes.c_void_p(self.guard.place(text)), ctypes.c_size_t(len(text)), *name,
                                          ctypes.byref(offset), ctypes.byref(size))
        return error, text[offset.value:offset.value + size.value]


PROBES = {"sse2": [], "portable": ["-DFH_PORTABLE"]}


@pytest.fixture(scope="module", params=PROBES)
def probe(request):
    made = Probe(PROBES[request.param])
    yield made
    made.guard.close()


@pytest.fixture(scope="module")
def both():
    made = [Probe(flags) for flags in PROBES.values()]
    yield made
    for one in made:
        one.guard.close()


def tokens(dump):
    at = 0
    while at < len(dump):
        size = struct.unpack_from("<I", dump, at + 1)[0]
        yield chr(dump[at]), dump[at + 5:at + 5 + size]
        at += 5 + size


def text_of(raw):
    return json.loads(b'"' + raw + b'"')


def number_of(raw):
    mantissa, digits, flags = struct.unpack("<qhH", raw)
    return decimal.Decimal(mantissa).scaleb(-digits) if not flags else flags


def value_of(stream):
    """The Python value that tokens describe; an object is a list of pairs, behind its letter."""
    letter, raw = next(stream)
    if letter in "Ss":
        return text_of(raw)
    if letter == "D":
        return number_of(raw)
    if letter in "TFN":
        return {"T": True, "F": False, "N": None}[letter]
    members = []
    for letter_next, raw_next in stream:
        if letter_next in "}]":
            break
        rest = itertools.chain([(letter_next, raw_next)], stream)
        members.append((text_of(raw_next), value_of(stream)) if letter_next in "Kk" else value_of(rest))
    return ("object", members) if letter == "{" else members


def expected_number(text):
    number = decimal.Decimal(text)
    return number if abs(number) < 2**63 else OVERFLOW


def expected_of(text):
    return json.loads(text, parse_float=expected_number, parse_int=expected_number,
                      object_pairs_hook=lambda pairs: ("object", pairs))


ACCEPTED = [
    b'{}', b'[]', b'""', b'0', b'-0', b'1', b'-1', b'true', b'false', b'null', b'[[]]', b'[{}]', b'{"":0}', b'{"a":{}}',
    b' [ ] ', b'\t{\r\n}\n', b'[1]', b'[1,2]', b'[ 1 , 2 ]', b'{"a":1}', b'{ "a" : 1 , "b" : 2 }', b'{"a":1,"a":2}',
    b'[0.5]', b'[-0.5]', b'[1e5]', b'[1E5]', b'[1e+5]', b'[1e-5]', b'[1.5e-5]', b'[-1.5E+05]', b'[0e0]', b'[0e+1]', b'[0.0]',
    b'[123456789012345678901234567890]', b'[1e9999]', b'[1e-9999]', b'[-9223372036854775808]', b'[20e1]', b'[0E5]',
    b'["\\"\\\\\\/\\b\\f\\n\\r\\t"]', b'["\\u0041"]', b'["\\uD834\\uDd1e"]', b'["\\uDADA"]', b'["\\u0000"]', b'["\x7f"]',
    b'["a/b"]', b'["' + b'a' * 15 + b'"]', b'["' + b'a' * 16 + b'"]', b'["' + b'a' * 17 + b'"]', b'["' + b'a' * 100 + b'"]',
    '["牛来USDT"]'.encode(), '{"é":"\U0001F600"}'.encode(), b'["]"]', b'["}"]', b'[",:[{"]', b'["\\\\"]', b'["\\\\\\""]',
    b'[null,true,false]', b'[ null ]', b'{"a":null}', b'{"a":[1,{"b":[]}]}', b'[' * 32 + b']' * 32,
    b'{"a":' * 32 + b'1' + b'}' * 32, b'[[1],[2],[3]]', b'[""]', b'["",""]', b'{"a":"b","c":"d"}', b'[0,0]', b'[0 ]', b'[ 0]',
    b'{"0123456789abcde":1}', b'{"0123456789abcdef":1}', b'{"0123456789abcdef0":1}', b'{"k\\"":1}', b'{"\\u0070":1}',
    b'123456789012345', b'1234567890123456', b'12345678901234567', b'1.23456789012345', b'1.234567890123456', b'0.1234567890123456',
]

REJECTED = [
    b'', b' ', b'\n', b'[', b']', b'{', b'}', b'"', b',', b':', b'[1', b'[1,', b'[,', b'[,1]', b'[1,]', b'[1,,2]', b'[1 2]', b'[1]]',
    b'[]]', b'[[]', b'[}', b'{]', b'[1}', b'{"a":1]', b'{"a"}', b'{"a":}', b'{"a" 1}', b'{"a":1,}', b'{,"a":1}', b'{"a":1,,"b":2}',
    b'{a:1}', b"{'a':1}", b"['a']", b'{1:1}', b'{null:1}', b'{"a":1 "b":2}', b'{"a":1:2}', b'{"a"::1}', b'{:1}', b'{"a":1}}',
    b'{}{}', b'{} {}', b'[][]', b'1 2', b'1,', b'""""', b'{}x', b'[]\x00', b'{}\x00', b'\x00', b'[1]x', b'"a"b', b'nullnull', b'1true',
    b'[nul]', b'[nulL]', b'[tru]', b'[trueish]', b'[fals]', b'[True]', b'[None]', b'[NaN]', b'[-NaN]', b'[Infinity]', b'[-Infinity]',
    b'[inf]', b'nul', b't', b'[n]', b'[undefined]', b'[a]', b'[\xff]', b'[+1]', b'[++1]', b'[--1]', b'[-]', b'[- 1]', b'[-a]', b'[.5]',
    b'[-.5]', b'[1.]', b'[1.e5]', b'[0.]', b'[-1.]', b'[1.2.3]', b'[1..2]', b'[1e]', b'[1e+]', b'[1e-]', b'[1E]', b'[1ee5]', b'[1e5e5]',
    b'[1e5.5]', b'[1e 5]', b'[e5]', b'[01]', b'[-01]', b'[00]', b'[-00]', b'[012.5]', b'[0x1]', b'[1_000]', b'[1 000]', b'[1a]', b'[1-2]',
    b'[1+2]', b'[1-]', b'["1" "2"]', b'[1\x002]', b'[\x0b1]', b'[\xa01]', b'\xef\xbb\xbf{}', '[１]'.encode(), b'[1]\x0c', b'[\x0c]',
    b'["a]', b'["a\\"]', b'["\\"]', b'["\\', b'["\\a"]', b'["\\x41"]', b'["\\u"]', b'["\\u00"]', b'["\\u004"]', b'["\\u004g"]', b'["\\U0041"]',
    b'["\\\x00"]', b'["\\u00\\n"]', b'["\x00"]', b'["\n"]', b'["\t"]', b'["\x1f"]', b'["' + b'a' * 20 + b'\x01"]', b'["\\ "]', b"[\"\\'\"]",
    b'{"\x01":1}', b'{"a\n":1}', b'{"\\q":1}', b'{"a":"\x02"}', b'{"' + b'k' * 20 + b'\x02":1}', b'[1,/*c*/2]', b'[1]//c', b'#[]', b'[1;2]',
    b'{"a":1;"b":2}', b'(1)', b'<a>', b'["a",\n4,1,', b'[{}', b'{"a":[}', b'{"a":{]}', b'[{"a":1],2}', b'[1 2 ::,,{}]', b'["', b'{"a', b'{"a":"',
    b'{"a":"b', b'{"a":tru', b'{"a":1', b'{"a":-', b'[1,2', b'["\\u12', b'[""', b'{"":', b'{""', b'[true', b'[false,', b'"\\"',
]


def test_the_tables_are_as_large_as_the_categories_need():
    assert len(ACCEPTED) + len(REJECTED) >= 150 and not set(ACCEPTED) & set(REJECTED)


@pytest.mark.parametrize("padding", [b"", b"]", b"}", b'"', b"1", b'{"a":1}', b",1]"])
def test_json_is_accepted_walked_or_skipped_whatever_lies_behind_it(probe, padding):
    for text in ACCEPTED:
        error, dump = probe.walk(text, padding)
        assert error == OK and probe.skip(text, padding) == OK, text
        stream = tokens(dump)
        value = value_of(stream)
        assert next(stream, None) is None
        assert value == expected_of(text) or b"e-9999" in text, text


@pytest.mark.parametrize("padding", [b"", b"]", b"}", b'"', b"1", b'e":1}', b'"}', b"ll]", b"0041\"]"])
def test_what_is_no_json_is_rejected_walked_or_skipped_whatever_lies_behind_it(probe, padding):
    for text in REJECTED:
        assert probe.walk(text, padding)[0] == MALFORMED, text
        assert probe.skip(text, padding) == MALFORMED, text


def test_a_rejected_value_is_rejected_in_a_skipped_field_too(probe):
    for text in REJECTED:
        inside = b'{"unknown":' + text + b',"p":1}'
        try:
            json.loads(inside, parse_constant=lambda name: 1 / 0)
        except (ValueError, ZeroDivisionError):
            assert probe.skip(inside) == MALFORMED, text


def test_thirty_two_levels_are_the_deepest(probe):
    for opener, closer in ((b"[", b"]"), (b'{"a":', b"}")):
        for depth, error in ((32, OK), (33, DEPTH), (10000, DEPTH)):
            text = opener * depth + b"1" + closer * depth
            assert (probe.walk(text)[0], probe.skip(text)) == (error, error)


@pytest.mark.parametrize("message", MESSAGES, ids=["quote", "depth", "spaced"])
def test_a_message_cut_at_any_byte_is_malformed_though_its_rest_lies_behind(probe, message):
    assert probe.walk(message)[0] == probe.skip(message) == OK
    for size in range(len(message)):
        for padding in (message[size:], b"", message, b"}" * 64, b"]}" * 32, b'"' * 64):
            assert probe.walk(message[:size], padding)[0] == MALFORMED, size
            assert probe.skip(message[:size], padding) == MALFORMED, size


@pytest.mark.parametrize("message", MESSAGES, ids=["quote", "depth", "spaced"])
def test_the_next_frame_behind_a_message_changes_nothing(probe, message):
    plain = probe.walk(message)
    for padding in (message, b"}", b"]", b'"', b"0", b".5", b"e5", b" ", b",", b"\\", bytes(range(64)), bytes(range(192, 256))):
        assert probe.walk(message, padding) == plain


def test_a_bare_number_at_the_end_is_not_continued_from_behind(probe):
    for text, padding in itertools.product((b"12", b"1.5", b"1e2", b"-3", b"0", b"123456789012"), (b"3", b".5", b"e9", b"0", b"E+1", b"-")):
        assert probe.walk(text, padding) == probe.walk(text)
        assert probe.walk(text)[0] == OK


def test_every_flipped_bit_is_seen_by_both_builds_and_by_python_alike(both):
    """A corrupted frame is either no JSON, or other JSON: what Python says of it."""
    for message in MESSAGES:
        for position, bit in itertools.product(range(len(message)), range(7)):
            broken = bytearray(message)
            broken[position] ^= 1 << bit
            answers = {(one.walk(bytes(broken)), one.skip(bytes(broken))) for one in both}
            assert len(answers) == 1
            (walked, _), skipped = answers.pop()
            try:
                json.loads(bytes(broken).decode())
                assert walked == skipped == OK
            except ValueError:
                assert walked == skipped == MALFORMED


numbers = st.one_of(st.integers(-10**18, 10**18), st.decimals(-10**9, 10**9, allow_nan=False, places=8))
values = st.recursive(st.one_of(st.none(), st.booleans(), numbers, st.text(max_size=40)),
                      lambda inner: st.one_of(st.lists(inner, max_size=5), st.dictionaries(st.text(max_size=20), inner, max_size=5)),
                      max_leaves=20)


def dumps(value, space):
    """JSON with numbers as written by decimal, and white space where `space` says."""
    gap = next(space)
    if isinstance(value, dict):
        return "{" + ",".join(gap + json.dumps(k) + gap + ":" + dumps(v, space) for k, v in value.items()) + gap + "}"
    if isinstance(value, list):
        return "[" + ",".join(dumps(v, space) for v in value) + gap + "]"
    if isinstance(value, decimal.Decimal):
        return gap + f"{value:f}" + gap
    return gap + json.dumps(value, ensure_ascii=gap == "") + gap


@given(value=values, gaps=st.lists(st.sampled_from(["", "", "", " ", "\n\t", "\r "]), min_size=1, max_size=7), padding=st.binary(max_size=64))
@settings(max_examples=400, deadline=None)
def test_generated_documents_read_as_python_reads_them(both, value, gaps, padding):
    text = dumps(value, itertools.cycle(gaps)).encode()
    for one in both:
        error, dump = one.walk(text, padding)
        assert error == one.skip(text, padding) == OK
        assert value_of(tokens(dump)) == expected_of(text)


@given(st.lists(st.sampled_from(["{", "}", "[", "]", ",", ":", '"', "\\", "a", "0", "1", ".", "e", "-", "null", "true", '"a"', " "]), max_size=12))
@settings(max_examples=1500, deadline=None)
def test_token_soup_is_accepted_exactly_where_python_accepts_it(both, pieces):
    text = "".join(pieces)
    try:
        json.loads(text)
        expected = OK
    except ValueError:
        expected = MALFORMED
    for one in both:
        assert one.walk(text.encode())[0] == one.skip(text.encode()) == expected, text


def captured(limit_bytes=150_000):
    """Frames of every recording: all of a small one, an even sample of a large one."""
    directory = csupport.captures()
    if directory is None:
        pytest.skip("no recorded frames: set FEEDHANDLER_CAPTURES to their directory")
    for path in sorted(directory.glob("*.tsv.gz")):
        with gzip.open(path, "rt", encoding="utf-8", newline="\n") as lines:
            frames = [line.rstrip("\n").split("\t", 3)[3] for line in itertools.islice(lines, 6000) if "\tin\t" in line]
        step = max(1, sum(map(len, frames)) // limit_bytes)
        yield path.name, [frame.encode() for frame in frames[::step]]


def test_recorded_frames_of_every_venue_read_as_python_reads_them(both):
    count = 0
    for name, frames in captured():
        for frame in frames:
            if len(frame) > 500_000 or frame[:1] not in b"{[":
                continue
            expected = expected_of(frame)
            for one in both:
                error, dump = one.walk(frame, frame)
                assert error == OK, (name, frame[:200])
                assert value_of(tokens(dump)) == expected, (name, frame[:200])
            assert both[0].skip(frame, frame) == OK
            count += 1
    assert count > 1000


def test_keys_in_any_order_give_the_same_members(probe):
    members = [b'"e":"trade"', b'"p":"1.5"', b'"x":{"p":[1]}', b'"m":true', b'"T":17']
    expected = sorted(expected_of(b"{" + b",".join(members) + b"}")[1], key=str)
    for order in itertools.permutations(members):
        error, dump = probe.walk(b"{" + b",".join(order) + b"}")
        assert error == OK and sorted(value_of(tokens(dump))[1], key=str) == expected


NAMES = ["p", "E", "best_bid", "best_bid_size", "best_ask", "sequence", "sequence_num", "instrument_name", "instrument_name_x"]


def test_a_name_equals_its_own_key_and_no_neighbour(probe):
    for name, other in itertools.product(NAMES, NAMES):
        error, value = probe.span("probe_field", json.dumps({other: "yes"}).encode(), name.encode())
        assert (error, value) == ((OK, b"yes") if name == other else (-100, b""))


@pytest.mark.parametrize("key", [b"\\u0070", b"p\\u0000", b"P", b"p ", b" p", b"pp", b"", b"\\p"[:0]])
def test_an_escaped_or_longer_key_is_not_the_name(probe, key):
    assert probe.span("probe_field", b'{"' + key + b'":"no"}', b"p")[0] == -100


def test_a_key_that_comes_twice_is_reported_twice(probe):
    assert [raw for letter, raw in tokens(probe.walk(b'{"b":1,"b":2}')[1]) if letter == "K"] == [b"b", b"b"]


def test_a_raw_value_spans_exactly_its_text(probe):
    for text in (b'{"a":[1,2]}', b"12", b'"x\\n"', b"[ ]", b"null"):
        assert probe.span("probe_raw", b" " + text + b"\n") == (OK, text)


UINTS = [(b"0", 0), (b"1", 1), (b'"42"', 42), (b"1723161256310", 1723161256310), (b"123456789012345", 123456789012345),
         (b"1234567890123456", 1234567890123456), (b"1483653649791156272", 1483653649791156272), (b"-0", 0),
         (b"9223372036854775808", 2**63), (b"18446744073709551615", 2**64 - 1), (b'"18446744073709551615"', 2**64 - 1), (b" 7 ", 7)]
NO_UINTS = [(b"18446744073709551616", RANGE), (b"123.5", RANGE), (b'"123.5"', RANGE), (b"1.0", RANGE), (b"1e3", RANGE), (b"-1", RANGE),
            (b"1" * 27, RANGE), (b"007", MALFORMED), (b'"007"', MALFORMED), (b'""', MALFORMED), (b'" 1"', MALFORMED), (b'"1', MALFORMED),
            (b"1x", MALFORMED), (b"true", MALFORMED), (b"null", MALFORMED), (b"[]", MALFORMED), (b"", MALFORMED), (b'"1\\n"', MALFORMED),
            (b'"\\u0031"', MALFORMED)]


def test_unsigned_integers_are_exact_or_refused(probe):
    for text, value in UINTS:
        assert probe.value("uint", text, b"5") == (OK, value), text
    for text, error in NO_UINTS:
        assert probe.value("uint", text, b"5")[0] == error, text


def test_signed_integers_are_exact_or_refused(probe):
    for value in (0, 1, -1, 2**63 - 1, -2**63, -1234567890123456):
        for text in (b"%d" % value, b'"%d"' % value):
            assert probe.value("int", text, b"5", ctypes.c_int64) == (OK, value)
    for text, error in ((b"9223372036854775808", RANGE), (b"-9223372036854775809", RANGE), (b"-1.5", RANGE), (b"-", MALFORMED), (b"+1", MALFORMED)):
        assert probe.value("int", text, b"5", ctypes.c_int64)[0] == error


def test_epoch_milliseconds_stay_between_1970_and_2199(probe):
    for text, value in ((b"1", 1), (b"1723161256310", 1723161256310), (b'"1597026383085"', 1597026383085), (b"7258118399999", 7258118399999)):
        assert probe.value("time_ms", text) == (OK, value * 10**6)
    for text in (b"0", b"7258118400000", b"9223372036854775807", b"18446744073709551615", b"1723161256310123456", b"-1", b"1.5"):
        assert probe.value("time_ms", text)[0] == RANGE


def test_a_time_of_thirteen_digits_has_no_more_and_no_fewer(probe):
    for text in (b"1723161256310", b'"1723161256310"'):
        for padding in (b"", b"0", b'"', b"}", b".5", b"e3"):
            assert probe.value("time_ms", text, padding) == (OK, 1723161256310 * 10**6)
            for size in range(len(text)):
                error, ns = probe.value("time_ms", text[:size], text[size:] + padding)
                assert error == MALFORMED or (text[:1] != b'"' and ns == int(text[:size]) * 10**6)
    for text, error in ((b"1723161256310.0", RANGE), (b"1723161256310e0", RANGE), (b"1723161256310E0", RANGE), (b'"1723161256310.0"', RANGE), (b'"1723161256310e0"', RANGE),
                        (b"1723161256310x", MALFORMED), (b'"1723161256310x"', MALFORMED), (b'"1723161256310 "', MALFORMED), (b"1723161256310.", MALFORMED),
                        (b"0723161256310", MALFORMED), (b"-1723161256310", RANGE), (b'"1723161256310', MALFORMED), (b'1723161256310"', MALFORMED)):
        assert probe.value("time_ms", text, b"5")[0] == error, text


ISO = [("2026-08-24T22:21:57.110183Z", 1787610117110183000), ("2026-08-24T22:21:57Z", 1787610117 * 10**9), ("1970-01-01T00:00:00Z", 0),
       ("2024-02-29T23:59:59.999999999Z", 1709251199999999999), ("2000-02-29T00:00:00.1Z", 951782400100000000),
       ("2199-12-31T23:59:59Z", 7258118399 * 10**9), ("2023-10-06T17:35:55.440295Z", 1696613755440295000)]
NO_ISO = ["2024-13-45T99:99:99Z", "20x4-01-01T00:00:00Z", "2024-01-01T00:00:00+02:00", "2024-01-01T00:00:00.Z", "2024-01-01T00:00:00.1.2Z",
          "2024-01-01T00:00:00.1e3Z", "2024-01-01T00:00:00.1234567890Z", "2024-01-01T00:00:00", "2024-01-01 00:00:00Z", "2024-00-01T00:00:00Z",
          "2024-01-00T00:00:00Z", "2023-02-29T00:00:00Z", "2100-02-29T00:00:00Z", "2024-04-31T00:00:00Z", "2024-01-32T00:00:00Z",
          "2024-01-01T24:00:00Z", "2024-01-01T00:60:00Z", "2024-01-01T00:00:60Z", "2024-01-01T00:00:00z", "2024/01/01T00:00:00Z",
          "2024-01-01T00:00:00.5ZZ", "2024-01-01T00:00:00.Z5", "2024-01-01T00:00:00Z ", "2024-1-01T00:00:00.0Z", "", "Z", "2024-01-01T00:00:0\\u0030Z"]


def test_iso_times_are_read_to_the_nanosecond(probe):
    for text, ns in ISO:
        assert probe.value("time_iso", json.dumps(text).encode()) == (OK, ns), text


def test_iso_times_agree_with_python_on_every_day(probe):
    import datetime
    epoch = datetime.datetime(1970, 1, 1)
    for day in range(0, 84006, 3):
        when = epoch + datetime.timedelta(days=day, seconds=day % 86400)
        assert probe.value("time_iso", f'"{when.isoformat()}Z"'.encode()) == (OK, (day * 86400 + day % 86400) * 10**9)


def test_iso_times_with_one_wrong_byte_are_refused(probe):
    for text in NO_ISO:
        assert probe.value("time_iso", b'"' + text.encode() + b'"')[0] == MALFORMED, text
    good = ISO[0][0]
    for position, byte in itertools.product(range(len(good)), "x/ :"):
        if good[position] != byte:
            broken = good[:position] + byte + good[position + 1:]
            assert probe.value("time_iso", f'"{broken}"'.encode())[0] == MALFORMED, broken
    for text in ("1969-12-31T23:59:59Z", "2200-01-01T00:00:00Z"):
        assert probe.value("time_iso", f'"{text}"'.encode())[0] == RANGE


def test_words_are_whole_words(probe):
    assert probe.value("bool", b"true", b"x") == (OK, 1) and probe.value("bool", b" false ", b"x") == (OK, 0)
    for text in (b"tru", b"TRUE", b"1", b'"true"', b"null", b"truee"):
        assert probe.value("bool", text, b"e")[0] == MALFORMED
    assert probe.value("null", b"null") == probe.value("absent", b"null") == probe.value("absent", b' ""') == (OK, 1)
    for text in (b"nul", b"0", b'"x"', b"nulll"):
        assert probe.value("null", text, b"l")[0] == probe.value("absent", text, b"l")[0] == MALFORMED


def test_doubles_are_within_one_unit_in_the_last_place(probe):
    import math
    source = random.Random(5)
    texts = ["0", "-0.5", "1e-7", "120.74", "1e22", "1.7976931348623157e308", "5e-324", "123456789012345678901234567890", "0." + "0" * 300 + "1"]
    texts += [repr(source.uniform(-1, 1) * 10 ** source.randint(-30, 30)) for _ in range(2000)]
    for text in texts:
        for form in (text, f'"{text}"'):
            error, value = probe.value("double", form.encode(), b"7", ctypes.c_double)
            assert error == OK and abs(value - float(text)) <= math.ulp(float(text)), text
    assert probe.value("double", b"1e309", b"", ctypes.c_double)[0] == RANGE
    assert probe.value("double", b"1.", b"", ctypes.c_double)[0] == MALFORMED


def test_a_container_that_was_not_walked_to_its_end_is_malformed(probe):
    for text in (b"[", b"[]", b"[1]"):
        assert probe.c.probe_unfinished(ctypes.c_void_p(probe.guard.place(text, b"]")), ctypes.c_size_t(len(text))) == MALFORMED


def test_after_an_error_no_call_succeeds_and_the_first_error_stays(probe):
    for text in (b'{"a":1}', b"[1]", b"null", b'""', b"1", b"true"):
        assert probe.c.probe_after_error(ctypes.c_void_p(probe.guard.place(text, text)), ctypes.c_size_t(len(text))) == 0
