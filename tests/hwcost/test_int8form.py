"""Which int8 kernels are exact here."""

import numpy as np

from hwcost.agent import session, stopwatch
from hwcost.graph import candidates
from hwcost.int8form import choose_int8_form, integer_convolution
from hwcost.ops import INT8, Conv
from hwcost.runtime import Here


def test_the_chosen_int8_form_is_exact_here() -> None:
    form = choose_int8_form(Here(lambda run, seconds: stopwatch(run, 0.0)))
    op = Conv.square(48, 16, 6, 3)
    (candidate,) = candidates(op, INT8, form, np.random.default_rng(5))
    (answer,) = session(candidate.model.SerializeToString()).run(None, candidate.feeds)
    assert np.abs(answer.astype(np.int64) - integer_convolution(candidate, op)).max() <= 1
