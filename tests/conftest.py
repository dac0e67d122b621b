"""What every test runs under: checked types, few threads, reproducible Hypothesis, real data only where it is found."""

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

# The images of CUDA machines, on which `make gpu` runs, have no beartype; the extra `test` has it.
if importlib.util.find_spec("beartype") and os.environ.get("INFER2TRAIN_NO_TYPECHECK") != "1":
    import random

    from beartype._check.code import codemain

    # beartype looks at one item of each list, at random: by a generator of its own, since tests watch the global one.
    codemain.getrandbits = random.Random(0).getrandbits

    from checked_calls import leave_what_is_nested

    leave_what_is_nested()

    # Before anything imports infer2train. Off for torch.compile, beside which the hook has open bugs.
    from jaxtyping import install_import_hook

    # The numeric tower of PEP 484: an int may stand where a float is asked for, as mypy has it.
    install_import_hook("infer2train", "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")

import pytest
import torch
from hypothesis import settings

from checked_calls import check_the_first_calls

REPOSITORY = Path(__file__).resolve().parents[1]

# One everywhere: the order of a parallel sum, and so its last bit, depends on it, and the nets of the tests are too
# small to gain from more.
torch.set_num_threads(1)

# The machine's speed and yesterday's failures must not decide whether today's run is green.
settings.register_profile("infer2train", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("infer2train")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--run-slow", action="store_true", help="also run the tests marked slow")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    wants_slow = config.getoption("--run-slow") or bool(config.getoption("markexpr"))
    for item in items:
        if item.get_closest_marker("slow") and not wants_slow:
            item.add_marker(pytest.mark.skip(reason="slow: run it with --run-slow, or only those with -m slow"))
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="gpu: there is no CUDA device"))


def pytest_runtest_setup() -> None:
    check_the_first_calls()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if importlib.util.find_spec("beartype") is None:
        terminalreporter.write_line("note: annotations were not checked: beartype is not installed (extra `test`)")


@pytest.fixture
def unchecked_types() -> Iterator[None]:
    """As users call: nothing looks at annotations."""
    import jaxtyping

    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """One thread for torch's arithmetic: small networks are slower with two, above all beside other work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of real data sets: $INFER2TRAIN_DATA, else ../shared/data; skips where neither is there."""
    named = os.environ.get("INFER2TRAIN_DATA")
    folder = Path(named) if named else REPOSITORY.parent / "shared" / "data"
    if named and not folder.is_dir():
        pytest.fail(f"INFER2TRAIN_DATA must name a folder: got {named}; correct it, or unset it to skip these tests")
    if not folder.is_dir():
        pytest.skip("no real data here: set INFER2TRAIN_DATA to a folder that holds cifar10/")
    return folder
