"""What a draw says of itself."""

from dataclasses import replace

import pytest

from conformance.method import draw_at, made


@pytest.mark.parametrize(("version", "lag"), [(100, 50), (150, 0), (None, None)])
def test_lag_is_the_step_minus_the_version(version: int | None, lag: int | None) -> None:
    assert replace(draw_at(made("nm-augment"), 1.0), step=150, version=version).lag == lag
