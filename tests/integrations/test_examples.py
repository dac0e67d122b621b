"""Each host's example, before and after: both run, and few lines lie between them."""

import difflib
import runpy
from collections.abc import Iterator
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState, GradientState

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
MOST_LINES = 3

pytestmark = pytest.mark.usefixtures("one_thread", "unchecked_types")


@pytest.fixture(autouse=True)
def fresh_state() -> Iterator[None]:
    """Accelerate keeps its state in the process."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def program(name: str) -> list[str]:
    """What is not blank of it, without its docstring."""
    text = (EXAMPLES / name).read_text("utf-8")
    return [line for line in text.partition('"""\n')[2].splitlines() if line.strip()]


@pytest.mark.parametrize("host", ["accelerate", "fabric", "ignite"])
def test_an_example_is_mined_by_few_lines(host: str, capsys: pytest.CaptureFixture[str]) -> None:
    plain, mined = program(f"{host}_plain.py"), program(f"{host}_mined.py")
    changed = [line for line in difflib.ndiff(plain, mined) if line[0] in "+-"]
    assert 0 < len(changed) <= MOST_LINES
    losses = {}
    for name in (f"{host}_plain.py", f"{host}_mined.py"):
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch ")]
        losses[name] = [float(line.rpartition(" ")[2]) for line in told]
        assert len(told) == 3
        assert losses[name][-1] < losses[name][0]
    assert len({tuple(loss) for loss in losses.values()}) == 2, "mining trains on other views"
