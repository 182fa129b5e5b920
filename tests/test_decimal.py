"""Decimal text to mantissa and digits (fh_decimal): exact, or flagged, never silently rounded."""
import ctypes
import decimal
import random
import struct

import pytest

import csupport
from test_json import PROBES, SOURCES

INEXACT, OVERFLOW, UNDEFINED, INT64_MAX = 32, 64, -2**63, 2**63 - 1
OK, MALFORMED = 0, -1
DIGITS_MAX = 40  # FH_DECIMAL_DIGITS_MAX
WIDE = decimal.Context(prec=2000, Emax=10**6, Emin=-10**6)


class Decimal(ctypes.Structure):
    _fields_ = [("mantissa", ctypes.c_int64), ("digits", ctypes.c_int16), ("flags", ctypes.c_uint16)]


@pytest.fixture(scope="module", params=PROBES)
def c(request):
    library = csupport.load("core", SOURCES, PROBES[request.param])
    library.fh_decimal_rescale.restype = ctypes.c_int64
    library.fh_decimal_format.restype = ctypes.c_size_t
    return library


def parse_all(c, texts, how):
    """[(mantissa, digits, flags, answer)] of texts; how: 0 text alone, 1 bare JSON, 2 quoted JSON."""
    quote = '"' if how == 2 else ""
    blob = "".join(f"{quote}{text}{quote}\n" for text in texts).encode()
    out = ctypes.create_string_buffer(16 * len(texts))
    c.probe_numbers(blob + bytes(64), ctypes.c_size_t(len(blob)), how, out)
    return list(struct.iter_unpack("<qhHi", out.raw))


def parse(c, text):
    answers = {parse_all(c, [text], how)[0] for how in range(3)}
    assert len(answers) == 1, (text, answers)
    return answers.pop()


def expected(text):
    """(mantissa, digits, flags) by the rules of fh_decimal.h, from Python's Decimal."""
    sign, digits, exponent = decimal.Decimal(text).as_tuple()
    magnitude = int("".join(map(str, digits)))
    if magnitude == 0:
        return 0, min(max(-exponent, 0), 18), 0
    places, cut = -exponent, 0
    while magnitude > INT64_MAX:
        magnitude, digit = divmod(magnitude, 10)
        cut |= digit
        places -= 1
    if places > DIGITS_MAX:
        return 0, 18, INEXACT
    if places < 0:
        if cut or magnitude * 10 ** min(-places, 40) > INT64_MAX:
            return UNDEFINED, 0, OVERFLOW
        magnitude, places = magnitude * 10 ** -places, 0
    return (-magnitude if sign else magnitude), places, INEXACT if cut else 0


KNOWN = {
    "0.05100": (5100, 5, 0), "-0": (0, 0, 0), "-0.00": (0, 2, 0), "1.1e-7": (11, 8, 0), "2.2e3": (2200, 0, 0), "1e-05": (1, 5, 0),
    "9.12E-7": (912, 9, 0), "0.00000001": (1, 8, 0), "99999999999.000": (99999999999000, 3, 0), "5.000e3": (5000, 0, 0),
    "9223372036854775807": (INT64_MAX, 0, 0), "9223372036854775808": (UNDEFINED, 0, OVERFLOW), "-9223372036854775807": (-INT64_MAX, 0, 0),
    "-9223372036854775808": (UNDEFINED, 0, OVERFLOW), "922337203685477580.7": (INT64_MAX, 1, 0), "9.223372036854775807": (INT64_MAX, 18, 0),
    "9.223372036854775808": (922337203685477580, 17, INEXACT), "9223372036854775807.000": (INT64_MAX, 0, 0),
    "92233720368547758.0700000": (INT64_MAX, 2, 0), "9223372036854775807.5": (INT64_MAX, 0, INEXACT),
    "1" + "0" * 400: (UNDEFINED, 0, OVERFLOW), "0." + "0" * 400: (0, 18, 0), "1." + "0" * 400: (10**18, 18, 0),
    "0." + "0" * 39 + "1": (1, 40, 0), "0." + "0" * 40 + "1": (0, 18, INEXACT), "0." + "1" * 400: (1111111111111111111, 19, INEXACT),
    "1e999": (UNDEFINED, 0, OVERFLOW), "1e-999": (0, 18, INEXACT), "-1e-999": (0, 18, INEXACT), "0e999": (0, 0, 0), "0e-999": (0, 18, 0),
    "1e18": (10**18, 0, 0), "1e19": (UNDEFINED, 0, OVERFLOW), "100000000000000000000e-5": (10**18, 3, 0), "0.0e5": (0, 0, 0),
    "1e99999999999999999999": (UNDEFINED, 0, OVERFLOW), "1e-99999999999999999999": (0, 18, INEXACT), "123e-2": (123, 2, 0),
    "1234567890123456789012e-10": (1234567890123456789, 7, INEXACT), "12345678.12345678": (1234567812345678, 8, 0),
}
NO_NUMBERS = ["", "-", "+1", ".5", "-.5", "1.", "-1.", "1.e5", "01", "-01", "00", "007", "1e", "1e+", "1E-", "e5", "1.2.3", "1..2", "--1", "1-", "1+1",
              "0x1", "1_0", "NaN", "Infinity", "-Infinity", "inf", " 1", "1 ", "1a", "1ee5", "1e5e5", "1e5.0", "1,5", "١", "1.5f", "a", "1\0", "1e1\0"]


def test_known_texts_become_known_decimals(c):
    for text, (mantissa, digits, flags) in KNOWN.items():
        assert parse(c, text) == (mantissa, digits, flags, OK), text
        if "99999999999999999999" not in text:  # Python's own limit of exponents
            assert expected(text) == (mantissa, digits, flags), f"the oracle itself, {text}"


def test_what_is_no_json_number_is_malformed(c):
    for text in NO_NUMBERS:
        assert [parse_all(c, [text], how)[0][3] for how in range(3) if not (how == 1 and text.strip() != text)] \
            == [MALFORMED] * (2 if text.strip() != text else 3), repr(text)


def shapes(source, count):
    """Number texts of every shape seen in recordings, and of those that break parsers."""
    def run(low, high):
        return "".join(source.choices("0123456789", k=source.randint(low, high)))

    def whole(low, high):
        return run(low, high).lstrip("0") or "0"

    makers = [
        lambda: f"{whole(1, 6)}.{run(1, 8)}", lambda: f"{whole(1, 9)}.{run(1, 12)}", lambda: f"{whole(14, 20)}",
        lambda: f"{whole(1, 20)}.{run(1, 25)}", lambda: f"0.{'0' * source.randint(0, 25)}{run(1, 20)}", lambda: whole(1, 16),
        lambda: f"{whole(1, 3)}.{run(1, 20)}e{source.choice(['', '+', '-'])}{source.randint(0, 30)}",
        lambda: f"{whole(1, 20)}E{source.choice(['', '+', '-'])}{source.randint(0, 45):02d}", lambda: f"{whole(1, 12)}.{'0' * source.randint(1, 30)}",
        lambda: f"99999999999.{'0' * source.randint(1, 9)}", lambda: str(INT64_MAX + source.randint(-12, 12)),
        lambda: f"{INT64_MAX + source.randint(-12, 12):.0f}.{'0' * source.randint(1, 3)}", lambda: f"{whole(1, 1)}.{run(14, 19)}",
        lambda: f"0e{source.choice(['', '-'])}{source.randint(0, 99)}", lambda: repr(source.uniform(0, 1) * 10 ** source.randint(-20, 20)),
    ]
    for index in range(count):
        yield ("-" if source.random() < 0.15 else "") + makers[index % len(makers)]()


def test_a_hundred_thousand_generated_texts_are_exactly_what_decimal_says(c):
    with decimal.localcontext(WIDE):
        texts = list(shapes(random.Random(20), 105_000))
        answers = [(*expected(text), OK) for text in texts]
        for how in range(3):
            wrong = [(text, got, want) for text, got, want in zip(texts, parse_all(c, texts, how), answers) if got != want]
            assert not wrong, (how, len(wrong), wrong[:5])


def test_a_text_with_one_byte_changed_is_a_number_exactly_where_the_grammar_says_so(c):
    import re
    grammar = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
    texts = []
    for text in ("12.50", "-0.001", "1e5", "61737.63000000", "12345678901234567", "1.5E-7"):
        texts += [text[:at] + byte + text[at + size:] for at in range(len(text) + 1) for byte in "0.eE+-, x" for size in (0, 1)]
    for text, got in zip(texts, parse_all(c, texts, 2)):
        assert (got[3] == OK) == bool(grammar.fullmatch(text)), text


def rescaled(c, text, digits):
    mantissa, places, flags, answer = parse(c, text)
    out = ctypes.c_uint16(0)
    value = c.fh_decimal_rescale(ctypes.byref(Decimal(mantissa, places, flags)), digits, ctypes.byref(out))
    return value, out.value


def test_rescaling_keeps_the_value_or_flags_it(c):
    cases = {("1.5", 8): (150000000, 0), ("1.50", 1): (15, 0), ("1.55", 1): (16, INEXACT), ("1.45", 1): (14, INEXACT), ("1.451", 1): (15, INEXACT),
             ("-1.55", 1): (-16, INEXACT), ("-1.45", 1): (-14, INEXACT), ("0.5", 0): (0, INEXACT), ("1.5", 0): (2, INEXACT),
             ("0.04", 1): (0, INEXACT), ("99999999999.000", 8): (UNDEFINED, OVERFLOW), ("-99999999999.5", 8): (UNDEFINED, OVERFLOW),
             ("9.223372036854775807", 18): (INT64_MAX, 0), ("9.3", 18): (UNDEFINED, OVERFLOW), ("0", 18): (0, 0), ("1e-20", 18): (0, INEXACT),
             ("6e-19", 18): (1, INEXACT), ("5e-19", 18): (0, INEXACT), ("1e999", 0): (UNDEFINED, OVERFLOW), ("1e-999", 8): (0, INEXACT),
             ("0." + "4" * 30, 0): (0, INEXACT), ("0.5" + "0" * 30 + "1", 0): (1, INEXACT), ("9223372036854775807.5", 0): (INT64_MAX, INEXACT),
             ("9223372036854775807.5", 1): (UNDEFINED, OVERFLOW)}
    for (text, digits), answer in cases.items():
        assert rescaled(c, text, digits) == answer, (text, digits)


def test_rescaling_of_generated_texts_is_decimal_quantize_half_even(c):
    source = random.Random(21)
    with decimal.localcontext(WIDE):
        for text in shapes(source, 6000):
            digits = source.randint(0, 18)
            value, flags = rescaled(c, text, digits)
            exact = decimal.Decimal(text).scaleb(digits)
            nearest = int(exact.to_integral_value(decimal.ROUND_HALF_EVEN))
            if flags & OVERFLOW:
                assert value == UNDEFINED and abs(exact) > INT64_MAX, (text, digits)
            elif expected(text)[1:] == (digits, INEXACT):  # parsing had to cut it off at just these digits
                assert (value, flags) == (int(exact), INEXACT), (text, digits)
            else:
                assert (value, flags) == (nearest, INEXACT if exact != nearest else 0), (text, digits)


def test_digits_needed_is_the_fewest_that_hold_the_number(c):
    for text, digits in (("0.05100", 3), ("100", 0), ("1.000", 0), ("0.000", 0), ("1e-8", 8), ("-2.50", 1), ("12.3456", 4)):
        mantissa, places, flags, _ = parse(c, text)
        assert c.fh_decimal_digits_needed(ctypes.byref(Decimal(mantissa, places, flags))) == digits


def formatted(c, mantissa, digits):
    buffer = ctypes.create_string_buffer(48)
    size = c.fh_decimal_format(ctypes.c_int64(mantissa), digits, buffer)
    return buffer.raw[:size].decode()


def test_a_formatted_number_is_canonical_and_the_same_number(c):
    known = {(5100, 5): "0.051", (0, 8): "0", (0, 0): "0", (-5, 1): "-0.5", (100, 2): "1", (1, 18): "0.000000000000000001", (120, 0): "120",
             (INT64_MAX, 0): "9223372036854775807", (-INT64_MAX, 18): "-9.223372036854775807", (UNDEFINED, 0): "-9223372036854775808", (1, 40): "0." + "0" * 39 + "1"}
    for (mantissa, digits), text in known.items():
        assert formatted(c, mantissa, digits) == text
    source = random.Random(22)
    for _ in range(5000):
        mantissa, digits = source.randint(-10 ** source.randint(1, 18), 10 ** source.randint(1, 18)), source.randint(0, 18)
        text = formatted(c, mantissa, digits)
        assert decimal.Decimal(text) == decimal.Decimal(mantissa).scaleb(-digits)
        assert "." not in text or text[-1] not in "0."
