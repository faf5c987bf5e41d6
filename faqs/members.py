"""The members of a federation: the networks that its clients have decided for, and how messages name them.

With the mask `hull` every client exchanges the smallest network that holds all members, and trains the members on its
own data: so each network learns from every client's images, and each coordinate is averaged over all clients. With
`own` a client trains and exchanges its own network's weights only.
"""

import torch

from faqs.config import Mask
from faqs.errors import WireError
from faqs.wire import Header, JsonValue
from hwcost import Architecture, BlockChoice, LookupTable, SearchSpace

Members = list[tuple[Architecture, int]]
"""Architectures, and how many clients have decided for each."""

MOST_MEMBERS = 64
"""In one message; beyond these a client's own network is still in its hull, and trained by that client."""


def hull(architectures: list[Architecture]) -> Architecture:
    """The smallest network that holds the weights of all of them: per block the largest kernel, expansion and bits of
    any, and so a skip, which has none, where all skip."""
    return tuple(
        BlockChoice(
            max(c.kernel for c in choices), max(c.expansion for c in choices), max(c.weight_bits for c in choices)
        )
        for choices in zip(*architectures, strict=True)
    )


def path_of(mask: Mask, decision: Architecture, members: Members) -> Architecture:
    """The weights that a client that has taken this decision exchanges: both ends derive it from the same header."""
    return hull([decision, *(architecture for architecture, _ in members)]) if mask == "hull" else decision


def drawn(members: Members, count: int, generator: torch.Generator) -> list[Architecture]:
    """So many of the members, or all, no one twice: each as likely as its clients are many."""
    clients = torch.tensor([float(clients) for _, clients in members])
    count = min(count, len(members))
    places = torch.multinomial(clients, count, generator=generator).tolist() if count else []
    return [members[place][0] for place in places]


def written_architecture(architecture: Architecture, space: SearchSpace) -> list[JsonValue]:
    """Indices into the choices, one a block."""
    return [space.columns[choice] for choice in architecture]


def read_architecture(indices: JsonValue, table: LookupTable) -> Architecture:
    """The architecture that a header names by indices into the choices; raises `WireError` where it is not legal."""
    blocks, choices = table.legal.shape
    if not isinstance(indices, list) or len(indices) != blocks:
        raise WireError(f"a message names one choice for each of {blocks} blocks, got {indices!r:.80}")
    for block, index in enumerate(indices):
        if type(index) is not int or not 0 <= index < choices or not table.legal[block, index]:
            raise WireError(f"block {block} takes a legal choice by its index below {choices}, got {index!r}")
    return tuple(table.space.choices[index] for index in indices if isinstance(index, int))


def written_members(members: Members, space: SearchSpace) -> list[JsonValue]:
    """A row for each: its clients, then its choices."""
    return [[count, *written_architecture(architecture, space)] for architecture, count in members]


def read_members(header: Header, table: LookupTable) -> Members:
    """The members that a header names; raises `WireError`."""
    rows = header.get("members")
    if not isinstance(rows, list) or not 0 < len(rows) <= MOST_MEMBERS:
        raise WireError(f"a message names 1 to {MOST_MEMBERS} members, got {rows!r:.80}")
    members = []
    for row in rows:
        if not isinstance(row, list) or not row or type(row[0]) is not int or not 0 < row[0] < 1_000_000:
            raise WireError(f"a member is the number of its clients and its choices, got {row!r:.80}")
        members.append((read_architecture(row[1:], table), row[0]))
    return members
