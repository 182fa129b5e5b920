"""verify: recorded captures through venue, book and ring, against documents an independent builder computed."""
import decimal
import gzip
import json
import os
import pathlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feedhandler.capture import Capture, CaptureError
from feedhandler.digest import Digest, DigestError, canonical
from feedhandler.verify import compare, verify

CAPTURES = pathlib.Path(os.environ.get("FEEDHANDLER_CAPTURES") or pathlib.Path(__file__).parents[2] / "shared" / "captures")
RECORDINGS = {
    "binance_spot_2021": "binance-spot", "binance_us_2021": "binance-spot", "binance_usdm_2021": "binance-usdm",
    "binance_spot_2024.head": "binance-spot", "binance_usdm_2024.head": "binance-usdm",
    "binance_coinm_2024.head": "binance-coinm", "okx_2022.head": "okx", "deribit_2021.head": "deribit",
    "kraken_spot_v2_2026": "kraken", "kraken_spot_v2_derived.head": "kraken",
}
KRAKEN = [
    '{"channel":"status","type":"update","data":[{"system":"online"}]}',
    '{"channel":"book","type":"snapshot","data":[{"symbol":"A/B","bids":[{"price":1.0,"qty":2.0}],"asks":[],'
    '"timestamp":"2026-08-24T22:21:57.110183Z"}]}',
    '{"channel":"book","type":"update","data":[{"symbol":"A/B","bids":[{"price":1.5,"qty":3.0}],"asks":[{"price":2,"qty":1}],'
    '"timestamp":"2026-08-24T22:21:58.110183Z"}]}',
    '{"channel":"trade","type":"update","data":[{"symbol":"A/B","side":"buy","price":1.50,"qty":0.1,"trade_id":7,'
    '"timestamp":"2026-08-24T22:21:58.110183Z"}]}',
]
NOW = 1_787_610_116_724_853_000


def recording(name):
    path = CAPTURES / f"{name}.tsv.gz"
    if not path.exists():
        pytest.skip(f"no recorded captures at {CAPTURES}: set FEEDHANDLER_CAPTURES")
    return path, json.loads((CAPTURES / "expected" / f"{name}.json").read_text())


def write(path, lines, pack=gzip.compress):
    path.write_bytes(pack("".join(line + "\n" for line in lines).encode()))
    return path


def frames(*payloads):
    return [f"{NOW + index}\tws1\tin\t{payload}" for index, payload in enumerate(payloads)]


# -- recordings -----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", RECORDINGS)
def test_a_recording_gives_the_document_an_independent_builder_gave(name):
    path, expected = recording(name)
    document = verify(path, RECORDINGS[name])
    assert compare(document, expected) == []
    accounting = document["accounting"]
    assert [accounting[kind] for kind in ("unknown", "malformed", "unlisted", "empty")] == [0, 0, 0, 0], document["notes"]
    with Capture(path) as capture:
        lines = sum(1 for _ in capture)
    assert sum(accounting.values()) - accounting["records"] - accounting["events_ignored"] == lines


@pytest.mark.parametrize("name, drop", [("binance_spot_2021", "depthUpdate"), ("kraken_spot_v2_2026", '"type":"update"')])
def test_a_recording_with_one_message_taken_out_is_told_apart(name, drop, tmp_path):
    path, expected = recording(name)
    with gzip.open(path, "rt") as file:
        lines = file.read().splitlines()
    dropped = [index for index, line in enumerate(lines) if drop in line and '"channel":"status"' not in line]
    index = dropped[-3]
    document = verify(write(tmp_path / "cut.tsv.gz", lines[:index] + lines[index + 1:]), RECORDINGS[name])
    assert [difference for difference in compare(document, expected) if difference.startswith("books.")]


def test_a_recording_with_one_number_changed_is_told_apart(tmp_path):
    path, expected = recording("kraken_spot_v2_2026")
    with gzip.open(path, "rt") as file:
        lines = file.read().splitlines()
    changed = write(tmp_path / "changed.tsv.gz", [line.replace('"qty":0.01378631', '"qty":0.01378632') for line in lines])
    document = verify(changed, "kraken")
    assert document["books"]["BTC/USD"]["state"] == "gap" and document["books"]["BTC/USD"]["checksum_bad"] == 1
    assert compare(document, expected) == ["books.BTC/USD.state: expected live, got gap"]


# -- the document ---------------------------------------------------------------------------------------------

def test_a_small_capture_gives_a_small_document(tmp_path):
    document = verify(write(tmp_path / "a.tsv.gz", frames(*KRAKEN)), "kraken")
    book = document["books"]["A/B"]
    assert (book["state"], book["snapshots"], book["updates"], book["l1_changes"], book["levels"]) == ("live", 1, 1, 2, [2, 1])
    assert book["bids"] == [["1.5", "3"], ["1", "2"]] and book["asks"] == [["2", "1"]]
    assert "checksum_ok" not in book and document["trades"]["A/B"]["n"] == 1
    assert document["accounting"]["decoded"] == 3 and document["accounting"]["control"] == 1


def test_every_record_of_a_capture_is_accounted_for(tmp_path):
    lines = [f"{NOW}\tws1\tconn\twss://ws.kraken.com/v2", f"{NOW}\tws1\tout\t{{}}",
             f"{NOW}\thttp\trest\thttps://example.org/other {{}}",
             *frames(*KRAKEN, '{"channel":"weather","type":"update","data":[]}', '{"channel":"book"',
                     '{"channel":"trade","type":"snapshot","data":[{"symbol":"A/B"}]}',
                     '{"channel":"book","type":"update","data":[]}')]
    document = verify(write(tmp_path / "a.tsv.gz", lines), "kraken")
    assert document["accounting"] == {
        "decoded": 3, "ignored": 1, "control": 1, "empty": 1, "unlisted": 0, "unknown": 1, "malformed": 1, "out": 1, "conn": 1,
        "rest_snapshot": 0, "rest_instruments": 0, "rest_other": 1, "events_ignored": 1,
        "records": document["accounting"]["records"]}
    assert ["line 8" in document["notes"][0], "line 9" in document["notes"][1]] == [True, True]


def test_a_reconnect_in_the_capture_is_a_gap(tmp_path):
    connected = f"{NOW}\tws1\tconn\twss://ws.kraken.com/v2"
    document = verify(write(tmp_path / "a.tsv.gz", [connected, *frames(*KRAKEN), connected]), "kraken")
    assert document["books"]["A/B"]["state"] == "gap" and document["books"]["A/B"]["gaps"] == 1


def test_verify_leaves_nothing_behind_even_when_it_fails(tmp_path):
    def rings():
        return sorted(path.name for path in pathlib.Path("/dev/shm").glob("feedhandler-verify-*"))
    before = rings()
    verify(write(tmp_path / "a.tsv.gz", frames(*KRAKEN)), "kraken")
    with pytest.raises(CaptureError):
        verify(write(tmp_path / "b.tsv.gz", [*frames(*KRAKEN), "nonsense"]), "kraken")
    with pytest.raises(ValueError, match="venue 'krake' is not known"):
        verify(tmp_path / "a.tsv.gz", "krake")
    assert rings() == before


def test_progress_grows_to_the_size_of_the_file(tmp_path):
    calls = []
    path = write(tmp_path / "a.tsv", frames(*KRAKEN[:2], *KRAKEN[3:] * 5000), pack=bytes)
    verify(path, "kraken", lambda done, total: calls.append((done, total)))
    assert len(calls) >= 3 and calls == sorted(calls) and calls[-1] == (path.stat().st_size,) * 2


def test_compare_names_the_first_difference_of_each_symbol():
    book = {"state": "live", "updates": 3, "bids": [["1", "2"], ["0.5", "1"]]}
    expected = {"books": {"A": book, "B": book, "C": book}, "trades": {}, "bbo": {}, "messages": {"x": 1}}
    document = {"books": {"A": book, "B": {**book, "updates": 4, "bids": [["1", "2"], ["0.4", "1"]]}, "D": book}}
    assert compare(document, expected) == ["books.B.updates: expected 3, got 4", "books.C: expected, but the capture gave none",
                                           "books.D: not expected, but the capture gave one"]
    document = {"books": {**expected["books"], "B": {**book, "bids": [["1", "2"], ["0.4", "1"]]}}}
    assert compare(document, expected) == ["books.B.bids[1]: expected ['0.5', '1'], got ['0.4', '1']"]
    document["books"]["B"]["bids"] = [["1", "2"]]
    assert compare(document, expected) == ["books.B.bids: expected [['1', '2'], ['0.5', '1']], got [['1', '2']]"]


# -- the capture format ---------------------------------------------------------------------------------------

@pytest.mark.parametrize("line, sentence", [
    ("1\tws1\tin", "3 fields where time"),
    ("1\tws1\tin\t{}\tmore", "5 fields where time"),
    ("x1\tws1\tin\t{}", "receive time 'x1' is not a number"),
    ("-1\tws1\tin\t{}", "receive time '-1' is not a number"),
    ("99999999999999999999\tws1\tin\t{}", "is not a number of nanoseconds"),
    ("1\tws1\tboth\t{}", "direction 'both' is not one of in, in64"),
    ("1\tws1\tin64\t***", "payload of an in64 record is not base64"),
    ("", "1 fields where time"),
])
@pytest.mark.parametrize("pack", [gzip.compress, bytes])
def test_a_malformed_line_is_named_by_file_and_line(line, sentence, pack, tmp_path):
    path = write(tmp_path / "a.tsv", ["1\tws1\tin\t{}", line, "2\tws1\tin\t{}"], pack)
    with Capture(path) as capture, pytest.raises(CaptureError) as raised:
        list(capture)
    assert str(raised.value).startswith(f"{path}:2: ") and sentence in str(raised.value)


def test_a_capture_cut_off_anywhere_is_named_or_whole(tmp_path):
    whole = gzip.compress("".join(f"{line}\n" for line in frames(*KRAKEN)).encode())
    for size in range(1, len(whole)):
        path = tmp_path / "a.tsv.gz"
        path.write_bytes(whole[:size])
        with Capture(path) as capture, pytest.raises(CaptureError, match=f"{path.name}:"):
            list(capture)
    path.write_bytes(b"1\tws1\tin\t{}")
    with Capture(path) as capture, pytest.raises(CaptureError, match="no line break: the recording was cut off"):
        list(capture)


def test_a_missing_capture_says_what_to_give(tmp_path):
    with pytest.raises(CaptureError, match="No such file or directory; give the path of a capture"):
        Capture(tmp_path / "none.tsv.gz")


def test_binary_frames_come_out_decoded(tmp_path):
    path = write(tmp_path / "a.tsv", ["5\tws1\tin64\teyJ9", "6\thttp\trest\thttps://x/y?z=1 {\"a\": 1}"], bytes)
    with Capture(path) as capture:
        first, second = capture
    assert (first.payload, first.recv_ns, first.line) == (b'{"}', 5, 1)
    assert second.rest() == ("https://x/y?z=1", b'{"a": 1}')


# -- the digest -----------------------------------------------------------------------------------------------

@given(st.integers(-10**18, 10**18), st.integers(-18, 0))
def test_canonical_text_is_the_decimals_value_without_exponent_or_trailing_zeros(mantissa, exponent):
    text = canonical(mantissa, exponent)
    assert decimal.Decimal(text) == decimal.Decimal(mantissa).scaleb(exponent, decimal.Context(prec=40))
    assert "e" not in text.lower() and not text.endswith(".") and ("." not in text or not text.endswith("0"))


def row(position, kind, flags, words, instrument=0):
    return struct.pack("<QQQIBBHqqqq", position + 1, 0, 0, instrument, kind, flags, 0, *words)


def test_a_missing_or_torn_record_is_no_digest():
    digest = Digest()
    digest.add(0, "A", 0, 0)
    digest.feed(row(0, 1, 1, (5, 6, 7, 1)) + row(1, 1, 1, (5, 6, 8, 2)))
    with pytest.raises(DigestError, match="the commit word is 4, expected 3"):
        digest.feed(row(3, 1, 1, (5, 6, 7, 1)))


def test_a_level_behind_a_gap_without_reset_is_no_digest():
    digest = Digest()
    digest.add(0, "A", 0, 0)
    digest.feed(row(0, 4, 7, (5, 6, 0, 1)) + row(1, 32, 1, (1 | 3 << 32, 0, 0, 0)))
    with pytest.raises(DigestError, match="follows GAP without RESET"):
        digest.feed(row(2, 4, 1, (5, 7, 0, 1)))


def test_a_digest_is_of_values_whatever_exponent_they_came_at():
    documents = []
    for changed in (False, True):
        digest = Digest()
        digest.add(0, "A", -1, 0)
        digest.feed(row(0, 4, 7, (50, 6, 0, 1)) + row(1, 3, 1, (50, 6, -(1 << 63), 0)))
        if changed:
            digest.feed(row(2, 32, 1, (12, -3, -2, 0)) + row(3, 4, 7, (5000, 600, 0, 1)) + row(4, 3, 1, (5000, 600, -(1 << 63), 0)))
        documents.append(digest.document())
    assert documents[0] == documents[1]
    assert documents[0]["books"]["A"]["bids"] == [["5", "6"]] and documents[0]["books"]["A"]["l1_changes"] == 1
