"""Every error that faqs raises on purpose: one base, and each child also a builtin type.

A message says the rule, what was got, and what to do; the command line prints it as one line and exits 1.
"""


class FaqsError(Exception):
    """Base of all deliberate errors of this package."""


class ConfigError(FaqsError, ValueError):
    """A configuration whose values are missing, of the wrong kind, or contradict each other."""


class DataError(FaqsError, ValueError):
    """Data that cannot be read, split over the clients, or trained on."""


class BudgetError(FaqsError, ValueError):
    """A budget that no architecture of the space meets; the message names the cheapest reachable cost."""


class WireError(FaqsError, ValueError):
    """A message refused, with its reason: the sender is counted out of this round, and the round goes on."""


class RunError(FaqsError, ValueError):
    """A run folder, or a file of it, that is missing, corrupt, or of another version."""


class ExportError(FaqsError, RuntimeError):
    """A decoded model that could not be written, run, or brought into agreement with the model it came from."""
