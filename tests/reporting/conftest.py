"""One finished run and one finished comparison for all tests of the report. Nobody writes into them: copy first."""

from pathlib import Path

import pytest
from run_folders import FINAL_ERRORS, write_comparison, write_run


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory) -> Path:
    """A finished run of nm-augment."""
    return write_run(tmp_path_factory.mktemp("runs") / "first", "nm-augment", 0)


@pytest.fixture(scope="session")
def comparison_folder(tmp_path_factory) -> Path:
    """A finished comparison of four methods on three seeds."""
    return write_comparison(tmp_path_factory.mktemp("runs") / "cifar", list(FINAL_ERRORS), [0, 1, 2])
