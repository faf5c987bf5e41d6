"""Running the programs that set emulation up."""

import subprocess
from collections.abc import Mapping, Sequence

from hwcost.errors import MeasurementError


def run(
    command: Sequence[str],
    environment: Mapping[str, str] | None = None,
    *,
    if_missing: str = "install it",
    if_failed: str = "see whether it runs by hand",
) -> None:
    """Run one to its end; raises `MeasurementError` with its last words and with what to do about it."""
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    except OSError as error:
        raise MeasurementError(
            f"{command[0]} is needed to set emulation up, got {error.strerror}: {if_missing}"
        ) from None
    if done.returncode != 0:
        words = " ".join((done.stderr or done.stdout).split())[-400:]
        raise MeasurementError(
            f"emulation is set up step by step, `{' '.join(command)[:200]}` failed: {words}: {if_failed}"
        )
