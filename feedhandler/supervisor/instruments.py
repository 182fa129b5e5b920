"""The master table: every instrument of this instance has an id, stable over its life, and one row in `instruments`."""
import decimal
import difflib

from feedhandler import control

DIGITS_MAX = 18   # of an exponent: 10^18 is the largest power of ten a mantissa holds
ROOM_DIGITS = 6   # a value a million times the tick or strike must still fit where digits are added for derived prices
NAMED_MAX = 3     # near names in a did-you-mean
_INT64_MAX = (1 << 63) - 1


class InstrumentError(ValueError):
    """An instrument that cannot be listed or found; the text says which, why, and what there is."""


def digits_of(*texts):
    """Decimal places that hold all these numbers exactly, 0 at least."""
    places = [-decimal.Decimal(text).normalize().as_tuple().exponent for text in texts if text]
    return max([0, *places])


def mantissa(text, digits):
    """text as an integer of 10^-digits, exact."""
    value = decimal.Decimal(text).scaleb(digits)
    if value != value.to_integral_value() or abs(value) > _INT64_MAX:
        raise InstrumentError(f"{text} does not fit {digits} decimal places of a 64-bit integer")
    return int(value)


def roomy(digits, wanted, *texts):
    """digits, or more, up to wanted, while numbers a million times these still fit a mantissa."""
    largest = max([abs(decimal.Decimal(text)) for text in texts if text], default=0)
    while wanted > digits and largest.scaleb(wanted + ROOM_DIGITS) > _INT64_MAX:
        wanted -= 1
    return max(digits, wanted)


class Master:
    """Ids and rows. table is tables.Instruments; what it already holds keeps its id."""

    def __init__(self, table, undefined):
        self.table, self.undefined = table, undefined
        self.rows = {}      # id → dict of tables.Instruments.get()
        self.ids = {}       # (venue, symbol) → id
        for row in table.rows():
            self._know(row)

    def _know(self, row):
        self.rows[row["id"]] = row
        self.ids[row["venue_name"], row["symbol"]] = row["id"]

    def add(self, venue, index, instrument, price_digits_min=0, size_digits_min=0):
        """The id of a venue.Instrument; its row is written the first time it is met, with these digits at least if they fit."""
        known = self.ids.get((venue, instrument.symbol))
        if known is not None:
            return known
        id = len(self.rows)
        if id >= self.table.row_max:
            raise InstrumentError(f"{venue} {instrument.symbol} is one instrument more than instruments.max = {self.table.row_max}; raise it")
        try:
            price_digits = roomy(digits_of(instrument.tick, instrument.strike), price_digits_min, instrument.tick, instrument.strike)
            size_digits = roomy(digits_of(instrument.lot), size_digits_min, instrument.lot)
            multiplier_digits = digits_of(instrument.multiplier)
            if max(price_digits, size_digits, multiplier_digits) > DIGITS_MAX:
                raise InstrumentError(f"more than {DIGITS_MAX} decimal places")
            self.table.put(
                id, instrument.kind, -price_digits, -size_digits, index, mantissa(instrument.tick or "0", price_digits),
                mantissa(instrument.lot or "0", size_digits), mantissa(instrument.multiplier, multiplier_digits), -multiplier_digits,
                instrument.inverse, instrument.expiry_ns, mantissa(instrument.strike, price_digits) if instrument.strike else self.undefined,
                venue, instrument.symbol, instrument.canonical)
        except (ValueError, KeyError, decimal.InvalidOperation) as error:
            raise InstrumentError(f"{venue} {instrument.symbol}: the instrument list says tick {instrument.tick!r}, lot {instrument.lot!r}, "
                                  f"kind {instrument.kind!r}: {error}") from None
        self._know(self.table.get(id))
        return id

    def control_row(self, id):
        """What a worker needs of a row."""
        row = self.rows[id]
        return control.InstrumentRow(id, row["venue_name"], row["symbol"], row["price_exponent"], row["size_exponent"])

    def exponents_raised(self, id, price_exponent, size_exponent):
        """For a worker that begins with an instrument; the table keeps the exponents it was listed with."""
        self.rows[id] = {**self.rows[id], "price_exponent": price_exponent, "size_exponent": size_exponent}


def resolve(venue, listed, symbols, limit):
    """(instruments, problems): what a [[subscribe]] table's symbols name in a venue's list, in order, once each."""
    by_name = {}
    for instrument in listed:
        by_name.setdefault(instrument.canonical, instrument)
    by_name.update((instrument.symbol, instrument) for instrument in listed)
    by_fold = {name.casefold(): instrument for name, instrument in by_name.items()}
    found, problems = {}, []
    for symbol in symbols:
        if symbol == "*":
            open_ = [instrument for instrument in listed if instrument.listed]
            found.update((instrument.symbol, instrument) for instrument in open_[:limit])
            if len(open_) > limit:
                problems.append(f"{venue}: \"*\" takes {limit} of {len(open_)} instruments; raise limit for more")
            continue
        instrument = by_name.get(symbol) or by_fold.get(symbol.casefold())
        if instrument is None:
            problems.append(f"{venue} lists no instrument {symbol!r} among {len(listed):,}{near(symbol, by_name)}")
        elif not instrument.listed:
            problems.append(f"{venue}: {symbol} is listed but does not trade")
        else:
            found[instrument.symbol] = instrument
    return list(found.values()), problems


def near(symbol, names):
    """"; did you mean …?" or "" where no name is like it."""
    found = difflib.get_close_matches(symbol.upper(), list(names), n=NAMED_MAX, cutoff=0.6)
    return f"; did you mean {', '.join(found)}?" if found else ""
