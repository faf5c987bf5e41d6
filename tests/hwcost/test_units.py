import pytest

from hwcost.errors import QuantityError
from hwcost.units import format_bytes, format_joules, format_seconds, parse_bytes, parse_joules, parse_seconds


def test_what_is_printed_can_be_read_again() -> None:
    for value in (3e-9, 4.56e-7, 7.8e-5, 0.012, 1.5, 59.0):
        assert parse_seconds(format_seconds(value)) == pytest.approx(value, rel=0.01)
    for value in (5.0, 999.0, 1234.0, 5.6e6, 7.8e9):
        assert parse_bytes(format_bytes(value)) == pytest.approx(value, rel=0.01)
    for value in (3e-9, 4.5e-6, 0.02, 3.0):
        assert parse_joules(format_joules(value)) == pytest.approx(value, rel=0.01)


def test_units_are_si() -> None:
    assert parse_bytes("100kB") == 100_000 and parse_bytes("1KiB") == 1024
    assert parse_seconds("10m") == 600 and parse_seconds(" 1.5e3 us ") == pytest.approx(1.5e-3)
    assert format_seconds(600) == "10.0 min"


@pytest.mark.parametrize("text", ["", "5", "ms", "5 parsecs", "-5ms", "0ms", "1e999s", "5ms 3"])
def test_a_quantity_that_cannot_be_read_says_how_to_write_it(text: str) -> None:
    with pytest.raises(QuantityError, match="write it like 5ms"):
        parse_seconds(text)
