"""What a search starts from: data read, profiles priced, every budget shown to be reachable.

It loads no torch and writes nothing, so that what is wrong with the input is said at once and leaves nothing behind.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from faqs.config import SearchConfig
from faqs.data import client_data, load_dataset
from faqs.preference import check_feasible
from hwcost import Int8Form, LookupTable, build_table, load_cost_model


@dataclass(frozen=True)
class Device:
    """What a run remembers of a profile: whether its device is this machine, and how to export for it."""

    device: str
    digest: str
    fingerprint: str
    int8_form: Int8Form
    sources: tuple[str, ...]
    noise_floor: float


@dataclass(frozen=True)
class Prepared:
    """What a search starts from: a table per client, and what is to be remembered of each profile."""

    tables: tuple[LookupTable, ...]
    devices: Mapping[str, Device]


def prepare(config: SearchConfig) -> Prepared:
    """Read data and profiles, price the search space, and make sure that every client's budgets can be met.

    Raises `DataError`, `ConfigError`, `BudgetError` or hwcost's errors, before anything is written.
    """
    paths = [config.client_config(client).profile or "" for client in range(config.clients)]
    dataset = load_dataset(config.data)
    client_data(dataset, 0, config.clients, config.alpha, config.seed, config.held_out_share)  # the split exists
    space = config.search_space(dataset.image_shape, dataset.classes)
    tables: dict[str, LookupTable] = {}
    devices: dict[str, Device] = {}
    for path in dict.fromkeys(paths):
        model = load_cost_model(Path(path))
        profile = model.profile
        tables[path] = build_table(space, model)
        devices[path] = Device(
            profile.device,
            profile.digest,
            profile.machine.fingerprint,
            profile.int8_form,
            tables[path].sources,
            profile.noise_floor,
        )
    for client, path in enumerate(paths):
        check_feasible(tables[path], config.client_config(client).preference, str(client))
    return Prepared(tuple(tables[path] for path in paths), devices)
