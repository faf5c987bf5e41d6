import json
from dataclasses import replace

import numpy as np
import pytest

from hwcost.composition import ROLES, STREAMS, Composition
from hwcost.energy import energy_j
from hwcost.errors import InvalidSpaceError, TableError, UnknownOperatorError
from hwcost.fit import fit_profile
from hwcost.lookup import METRICS, LookupTable, build_table
from hwcost.ops import INT8, activation_bytes, weight_bytes
from hwcost.pricing import CostModel
from hwcost.space import SKIP, Architecture, SearchSpace
from hwcost.testing import plausible_profile
from hwcost.waits import USES, Wait, Waits

SPACE = SearchSpace.for_image((1, 8, 8), 10)
MODEL = CostModel(plausible_profile(SPACE.operators()))


def random_architectures(space: SearchSpace, seed: int, count: int) -> list[Architecture]:
    generator = np.random.default_rng(seed)
    legal = [[choice for choice in space.choices if space.legal(block, choice)] for block in space.blocks]
    return [tuple(options[int(generator.integers(len(options)))] for options in legal) for _ in range(count)]


def composed() -> CostModel:
    """Whose fit has learnt from whole networks what adding up misses."""
    fit = fit_profile(MODEL.profile, names=["linear"])
    factors = (1.5, 1.4, 1.3, 0.5, 1.25, 1.2, 1.1, 0.75)
    composition = Composition(
        networks=8,
        factors=dict(zip(ROLES, factors, strict=True)),
        kernel_s=-1e-7,
        near_bytes=2**30,
        waits=Waits(of=dict.fromkeys(USES, (Wait(bytes=2**20, s_per_byte=0.0), Wait(bytes=2**22, s_per_byte=3e-11)))),
        s_per_byte=dict.fromkeys(STREAMS, 1e-10),
        measured_width=0.05,
        predicted_width=0.2,
    )
    return CostModel(MODEL.profile, replace(fit, composition=composition))


@pytest.fixture(scope="module")
def table() -> LookupTable:
    return build_table(SPACE, MODEL)


@pytest.mark.parametrize("model", [MODEL, composed()], ids=["without networks", "with networks"])
def test_a_members_cost_is_the_cost_of_the_layers_it_executes(model: CostModel) -> None:
    table = build_table(SPACE, model)
    for architecture in random_architectures(SPACE, 0, 30):
        layers, cost = SPACE.layers(architecture), table.cost(architecture)
        assert tuple(cost) == METRICS
        total = model.price_all(layers)
        assert cost["latency_s"] == pytest.approx(total.latency_s)
        assert table.latency_interval(architecture) == pytest.approx((total.low_s, total.high_s))
        assert cost["weight_bytes"] == sum(weight_bytes(*layer) for layer in layers)
        assert cost["activation_bytes"] == sum(activation_bytes(*layer) for layer in layers)
        assert cost["energy_j"] == pytest.approx(sum(energy_j(op, INT8) for op, _ in layers))


def test_every_entry_is_the_sum_of_its_layers_prices_to_the_last_bit(table: LookupTable) -> None:
    for row, column in np.argwhere(table.legal).tolist():
        entry = dict.fromkeys((*METRICS, "low_s", "high_s"), 0.0)
        for op, precision in SPACE.block_layers(SPACE.blocks[row], SPACE.choices[column]):
            price = MODEL.price(op, precision)
            entry["latency_s"] += price.latency_s
            entry["weight_bytes"] += weight_bytes(op, precision)
            entry["activation_bytes"] += activation_bytes(op, precision)
            entry["energy_j"] += energy_j(op, price.runs_as)
            entry["low_s"] += price.part_s[0]
            entry["high_s"] += price.part_s[1]
        found = [array[row, column] for array in (*table.values.values(), *table.bounds.values())]
        assert found == list(entry.values())


def test_skipping_is_free_where_legal_and_marked_where_not(table: LookupTable) -> None:
    skip = SPACE.choices.index(SKIP)
    for block in SPACE.blocks:
        assert table.legal[block.index, skip] == block.residual
    assert table.legal[:, 1:].all()
    assert (table.values["latency_s"][:, 1:] > 0).all()
    illegal = (SKIP,) * len(SPACE.blocks)
    with pytest.raises(InvalidSpaceError, match="cannot be skip"):
        table.cost(illegal)


def test_fewer_bits_save_storage_but_not_time_on_the_same_kernel(table: LookupTable) -> None:
    columns = [SPACE.choices.index(choice) for choice in SPACE.choices if (choice.kernel, choice.expansion) == (3, 6)]
    assert (np.diff(table.values["weight_bytes"][:, columns], axis=1) > 0).all()
    assert (np.diff(table.values["latency_s"][:, columns], axis=1) == 0).all()


def test_cheapest_and_dearest_bound_every_member(table: LookupTable) -> None:
    costs = [table.cost(architecture) for architecture in random_architectures(SPACE, 1, 200)]
    for metric in METRICS:
        assert all(table.cheapest(metric) <= cost[metric] <= table.dearest(metric) for cost in costs)
    with pytest.raises(TableError, match=r"a metric is one of latency_s, .*, got 'flops'"):
        table.cheapest("flops")


def test_json_round_trips_every_float_exactly(table: LookupTable) -> None:
    again = LookupTable.from_json(table.to_json())
    assert (again.space, again.device, again.sources) == (table.space, table.device, table.sources)
    assert (again.fixed, again.fixed_bounds) == (table.fixed, table.fixed_bounds)
    for name, array in (table.values | table.bounds).items():
        np.testing.assert_array_equal((again.values | again.bounds)[name], array)
    assert again.to_json() == table.to_json()


def test_tables_of_other_spaces_are_priced_by_prediction() -> None:
    profile = plausible_profile(SPACE.operators())
    larger = SearchSpace.for_image((3, 32, 32), 10)
    table = build_table(larger, CostModel(profile, fit_profile(profile, names=["linear"])))
    assert table.sources == ("measured", "predicted from measured rows")
    low_s, high_s = table.latency_interval(larger.largest)
    assert low_s < table.cost(larger.largest)["latency_s"] < high_s
    with pytest.raises(UnknownOperatorError, match="run `hwcost fit`"):
        build_table(larger, CostModel(profile))


def test_bad_tables_are_refused(table: LookupTable) -> None:
    document = json.loads(table.to_json())

    def changed(**changes: object) -> str:
        return json.dumps(document | changes)

    values = document["values"]
    first_block_skipped = [[1.0, *row[1:]] for row in values["energy_j"]]
    bad = [
        ("{}", "not a lookup table of version 1: space"),
        ("nonsense", "not a lookup table of version 1: the document"),
        (changed(version=2), "not a lookup table of version 1: version"),
        (changed(extra=1), "not a lookup table of version 1: extra"),
        (changed(values={}), "the values of a lookup table are latency_s"),
        (changed(values=values | {"latency_s": values["latency_s"][1:]}), "latency_s of a lookup table is"),
        (changed(values=values | {"energy_j": [[1.0], [1.0, 2.0]]}), "rows of equal length"),
        (changed(values=values | {"energy_j": first_block_skipped}), "energy_j of a lookup table is 0 where"),
        (changed(fixed=document["fixed"] | {"latency_s": -1.0}), "fixed costs of a lookup table are positive"),
    ]
    for text, message in bad:
        with pytest.raises(TableError, match=message):
            LookupTable.from_json(text)


def test_the_arrays_of_a_table_cannot_be_written(table: LookupTable) -> None:
    for array in (table.values["latency_s"], table.legal):
        with pytest.raises(ValueError, match="read-only"):
            array[0, 0] = 1.0
