"""The byte ledger adds up, by round and by client, and reads back only what it wrote."""

import json
from dataclasses import replace
from typing import Any

import pytest

from faqs.errors import FaqsError, RunError
from faqs.ledger import Entry, Ledger

ENTRY = Entry(1, 0, "up", "train", 100.5, 120, 130, 700)


def a_ledger() -> Ledger:
    ledger = Ledger()
    ledger.append(Entry(0, 0, "down", "setup", 0.0, 50, 60, 500))
    ledger.append(Entry(0, 1, "down", "setup", 0.0, 50, 60, 510))
    ledger.append(Entry(1, 0, "down", "train", 200.0, 220, 230, 900))
    ledger.append(ENTRY)
    ledger.append(Entry(1, 1, "up", "train", 100.0, 119, 129, 690, refused=True))
    ledger.append(Entry(2, 1, "up", "final", 0.0, 7, 9, 300))
    return ledger


def test_totals_count_setup_final_and_refused_messages_too() -> None:
    assert a_ledger().totals() == {
        "ideal_up": 200.5, "payload_up": 246, "flower_up": 268, "wire_up": 1690, "messages_up": 3, "refused_up": 1,
        "ideal_down": 200.0, "payload_down": 320, "flower_down": 350, "wire_down": 1910, "messages_down": 3,
        "refused_down": 0,
    }  # fmt: skip
    assert set(Ledger().totals().values()) == {0}


def test_rounds_clients_and_kinds_partition_the_totals() -> None:
    ledger = a_ledger()
    assert list(ledger.by_round()) == [0, 1, 2]
    assert list(ledger.by_client()) == [0, 1]
    assert ledger.by_round()[1]["payload_up"] == 239
    assert ledger.by_client()[1]["wire_up"] == 990
    by_kind = [ledger.select(kind=kind).totals() for kind in ("setup", "train", "final")]
    for parts in (ledger.by_round().values(), ledger.by_client().values(), by_kind):
        assert {name: sum(part[name] for part in parts) for name in ledger.totals()} == ledger.totals()
    assert len(ledger.select(kind="train", round=1, client=0)) == 2


def test_the_json_form_gives_the_same_ledger_back() -> None:
    text = json.dumps(a_ledger().to_json())
    back = Ledger.from_json(json.loads(text))
    assert list(back) == list(a_ledger())
    assert json.dumps(back.to_json()) == text


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"payload_bytes": -1}, "payload_bytes is a whole number from 0 up, got -1"),
        ({"wire_bytes": 1.5}, "wire_bytes is a whole number from 0 up, got 1.5"),
        ({"round": True}, "round is a whole number from 0 up, got True"),
        ({"client": "a"}, "client is a whole number from 0 up, got 'a'"),
        ({"ideal_bytes": float("nan")}, "ideal_bytes is a finite number from 0 up, got nan"),
        ({"ideal_bytes": "1"}, "ideal_bytes is a finite number from 0 up, got '1'"),
        ({"direction": "sideways"}, "go up or down and are of kind setup, train, final, got 'sideways' and 'train'"),
        ({"kind": ["x"]}, "got 'up' and ['x']"),
        ({"refused": 1}, "refused is true or false, got 1"),
    ],
)
def test_an_entry_that_no_message_can_have_is_refused(change: dict[str, Any], text: str) -> None:
    with pytest.raises(RunError) as caught:
        replace(ENTRY, **change)
    assert text in str(caught.value)
    assert isinstance(caught.value, FaqsError)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"version": 2}, "this is version 1 of the ledger, got 2; read it with the faqs that wrote it"),
        ({"columns": ["round"]}, "a ledger has rows of the columns round, client, direction"),
        ({"rows": None}, "a ledger has rows of the columns"),
        ({"rows": [[1, 2]]}, "ledger row 0: a row has 9 values, got [1, 2]; restore the file"),
        ({"rows": [[1, 0, "up", "train", 1.0, 1, 1, None, False]]}, "ledger row 0: a ledger's wire_bytes is a whole"),
    ],
)
def test_a_damaged_ledger_is_refused_with_its_row(change: dict[str, Any], text: str) -> None:
    with pytest.raises(RunError) as caught:
        Ledger.from_json(a_ledger().to_json() | change)
    assert text in str(caught.value)


def test_a_ledger_that_is_not_an_object_is_refused() -> None:
    with pytest.raises(RunError, match="got 'list'"):
        Ledger.from_json([1])
