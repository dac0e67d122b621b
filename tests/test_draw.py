"""What a draw says of itself."""

import numpy as np
import pytest

from infer2train.addresses import Addresses
from infer2train.draw import Draw


@pytest.mark.parametrize(("version", "lag"), [(100, 50), (150, 0), (None, None)])
def test_lag_is_the_step_minus_the_version(version: int | None, lag: int | None) -> None:
    nothing = Addresses(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64))
    draw = Draw(
        draw=301,
        epoch=0,
        step=150,
        version=version,
        addresses=nothing,
        candidates=nothing,
        scores=None,
        chosen=None,
        mined=None,
        log_probabilities=None,
    )
    assert draw.lag == lag
