"""On a CUDA device: recorded steps are the unrecorded ones, ask the device for nothing, and go on after a resume."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from infer2train.compare import train_in_threads
from infer2train.oracle.snapshot import snapshot
from infer2train.oracle.torch_engine import TorchEngine
from infer2train.scores import SCORES
from infer2train.training import loop
from infer2train.training.config import RunConfig, from_plain
from infer2train.training.device_steps import DeviceSteps
from infer2train.training.device_tables import EpochTables
from infer2train.training.graphs import captured
from infer2train.training.interrupt import Interrupt
from infer2train.training.loop import train
from infer2train.training.regimes import regime_defaults
from infer2train.training.setup import Run, prepare, resolved
from infer2train.training.step import EpochSums
from infer2train.training.streams import own_stream
from infer2train.training.ways import images_on_device, way_of
from infer2train.views.crops import PadCropFlip

pytestmark = pytest.mark.gpu

CUDA = torch.device("cuda")
TINY = {
    "epochs": 2,
    "batch_size": 8,
    "limit": 80,  # 10 steps an epoch
    "gamma": 3,
    "threads": 1,
    "train_error_samples": 0,
    "evaluate_every": 2,
    "update_every": 4,
    "log_every": 1,
    "checkpoint_every": 7,
    "lr": 0.01,
    "device": "cuda",
}
CASES: dict[str, dict[str, Any]] = {
    "baseline": {"method": "baseline"},
    "batch-augment": {"method": "batch-augment", "mine_every": 2},
    "max": {"method": "nm-augment"},
    "max-int8": {"method": "nm-augment", "oracle": "simulated:b8@cuda"},
    "max-cropped-bf16": {"method": "nm-augment", "view": "pad-crop-flip", "oracle": "torch:bf16", "precision": "bf16"},
    "max-resized": {"method": "nm-augment", "view": "random-resized-crop-flip"},
    "max-delayed": {"method": "nm-augment", "delay_steps": 3, "mine_every": 2},
    "max-ramped": {"method": "nm-augment", "ramp_rate": 0.5},
    "proportional": {"method": "nm-augment-soft"},
    "quantile": {"method": "nm-augment", "pick": "quantile", "score": "margin"},
    "uniform": {"method": "nm-augment", "pick": "uniform"},
    "self-distill": {"method": "self-distill", "distill_weight": 0.1, "mine_every": 2},
}
CLOSE = {"rtol": 1e-3, "atol": 1e-4}
"""What a few steps make of sums in another order."""
CLOSE_BF16 = {"rtol": 5e-2, "atol": 5e-3}


@pytest.fixture(autouse=True)
def _exact() -> Iterator[None]:
    """Convolutions that give the same bits each time, in float32 proper."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.deterministic, cudnn.allow_tf32, matmul.allow_tf32
    cudnn.deterministic, cudnn.allow_tf32, matmul.allow_tf32 = True, False, False
    yield
    cudnn.deterministic, cudnn.allow_tf32, matmul.allow_tf32 = before


def config(name: str, **changes: Any) -> RunConfig:
    settings = {**TINY, **CASES[name], **changes}
    return from_plain({**regime_defaults("digits", str(settings["method"])), **settings})


def run_of(name: str, **changes: Any) -> Run:
    return prepare(resolved(config(name, **changes)), progress=False)


def steps_of(run: Run, *, is_recorded: bool) -> DeviceSteps:
    return DeviceSteps(run, images_on_device(run), EpochSums(), Interrupt(), is_recorded=is_recorded)


def weights(folder: Path) -> dict[str, Tensor]:
    """Weights and momentum of the last checkpoint."""
    tensors = load_file(max((folder / "checkpoints").glob("step-*")) / "tensors.safetensors")
    return {name: tensor for name, tensor in tensors.items() if "'model'" in name or "'optimizer'" in name}


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: dict[str, float]) -> None:
    assert found.keys() == expected.keys()
    assert len(expected) > 0
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, **tolerance, msg=lambda text, name=name: f"{name}: {text}")


def test_auto_is_graphs_where_they_are_possible_and_says_where_they_are_not() -> None:
    assert way_of(run_of("max")) == ("graph", None)
    assert way_of(run_of("max", oracle="simulated:b8@cuda")) == ("graph", None)
    assert way_of(run_of("max", oracle="torch:bf16@cuda")) == ("graph", None)
    way, note = way_of(run_of("max", method="nm-sample"))
    assert way == "loop"
    assert note is not None
    assert "samples are picked by class" in note
    way, note = way_of(run_of("max", num_workers=1))
    assert way == "loop"
    assert note is not None
    assert "num_workers is not 0" in note


@pytest.mark.parametrize("name", CASES)
def test_recorded_steps_are_the_unrecorded_ones(name: str, tmp_path: Path) -> None:
    for step in ("eager", "graph"):
        train(config(name, step=step), tmp_path / step, quiet=True, report=False)
    tolerance = CLOSE_BF16 if "bf16" in name else CLOSE
    assert_close(weights(tmp_path / "graph"), weights(tmp_path / "eager"), tolerance)


@pytest.mark.parametrize("name", ["max", "proportional", "quantile", "uniform"])
def test_the_first_draws_are_picked_as_by_the_loop(name: str) -> None:
    """Version 0 is the same weights whoever scores; a later pick may turn on the last bit of a loss."""
    picked: dict[str, list[list[tuple[int, int]]]] = {}
    for way in ("loop", "eager", "graph"):
        run = run_of(name, step=way)
        with own_stream(CUDA):
            steps: Iterator[Any] = loop._steps(run, way, EpochSums(), Interrupt())()  # type: ignore[arg-type]
            picked[way] = []
            for _ in range(4):
                next(steps)
                assert run.loader.last is not None
                picked[way].append(list(run.loader.last.addresses))
    assert picked["eager"] == picked["loop"]
    assert picked["graph"] == picked["loop"]


def test_recording_changes_nothing() -> None:
    run = run_of("max")
    with own_stream(CUDA):
        steps = steps_of(run, is_recorded=False)
        next(steps.epoch())
        work = steps._training
        before = [tensor.clone() for tensor in work.changed()]
        random = torch.cuda.get_rng_state()
        replay = captured(lambda: work(is_whole=False, is_distilled=False), work.changed())
        assert all(torch.equal(*pair) for pair in zip(work.changed(), before, strict=True))
        assert torch.equal(torch.cuda.get_rng_state(), random)
        assert [group["lr"] for group in run.optimizer.param_groups] == [0.01, 0.01]
        replay()
        torch.cuda.synchronize()
        changed = [not torch.equal(*pair) for pair in zip(work.changed(), before, strict=True)]
    assert sum(changed) > len(changed) / 2, "a replay is a step"


@pytest.mark.parametrize("name", ["baseline", "max", "self-distill"])
def test_a_step_asks_the_device_for_nothing(name: str) -> None:
    """Between recording and the first log point nothing waits: torch would raise."""
    run = run_of(name, log_every=1000, checkpoint_every=1000, update_every=1000, mine_every=1)
    with own_stream(CUDA):
        steps = steps_of(run, is_recorded=True).epoch()
        for _ in range(2):
            assert next(steps)[0] is None
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(5):
                assert next(steps)[0] is None
            with pytest.raises(RuntimeError, match="synchroniz"):
                run.optimizer.param_groups[0]["params"][0].sum().item()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        results = [result for result, _ in steps]
    assert results[-1] is not None
    assert torch.isfinite(torch.tensor(results[-1].loss))


def test_a_refresh_changes_what_the_recorded_work_scores() -> None:
    """The draws of steps 4 to 7 are scored by the weights after step 4, not by those at the recording."""
    run = run_of("max", lr=0.05)
    engines = [TorchEngine(run.model) for _ in range(2)]
    engines[0].refresh(snapshot(run.model, 0))
    with own_stream(CUDA):
        for _, _ in steps_of(run, is_recorded=True).epoch():
            draw = run.loader.last
            assert draw is not None
            assert draw.scores is not None
            if draw.step == 4:
                engines[1].refresh(run.loader.pool.records[4])
            if draw.step in (4, 6):
                pixels, targets = run.training_images.batch(draw.candidates)
                old, new = (SCORES["loss"](engine.outputs(pixels), targets) for engine in engines)
                torch.testing.assert_close(draw.scores, new, rtol=1e-4, atol=1e-4)
                assert (draw.scores - old).abs().max() > 1e-3
                assert draw.version == 4


@pytest.mark.parametrize("name", ["baseline", "max", "max-delayed", "self-distill"])
@pytest.mark.parametrize(("before", "after"), [("graph", "graph"), ("loop", "graph"), ("graph", "loop")])
def test_a_broken_off_run_goes_on(
    name: str, before: str, after: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its last checkpoint is of step 7, in the middle of an epoch and of an update of the oracle."""
    train(config(name, step="graph"), tmp_path / "whole", quiet=True, report=False)
    save, broken = loop.save_checkpoint, tmp_path / "broken"

    def save_and_stop(folder: Path, step: int, state: Any) -> Path:
        path = save(folder, step, state)
        if step == 7:
            raise KeyboardInterrupt
        return path

    with monkeypatch.context() as patched:
        patched.setattr(loop, "save_checkpoint", save_and_stop)
        with pytest.raises(KeyboardInterrupt):
            train(config(name, step=before), broken, quiet=True, report=False)
    train(config(name, step=after), broken, quiet=True, report=False, resume=True)
    assert_close(weights(broken), weights(tmp_path / "whole"), CLOSE)


def test_seeds_side_by_side_are_the_seeds_in_turn(tmp_path: Path) -> None:
    configs = {f"{name}-{seed}": config(name, seed=seed) for name in ("baseline", "max") for seed in range(3)}
    train_in_threads(configs, tmp_path / "side by side", 3, quiet=True)
    for name, run in configs.items():
        train(run, tmp_path / "in turn" / name, quiet=True, report=False)
        assert_close(weights(tmp_path / "side by side" / name), weights(tmp_path / "in turn" / name), CLOSE)


def test_an_epoch_is_drawn_on_the_device_as_on_the_host() -> None:
    run = run_of("max", device="cpu", step="eager")
    images, targets = images_on_device(run), run.training_images.targets
    loader = run.loader
    first = next(loader.elsewhere())
    tables = [
        EpochTables(loader.plan, images.to(where), targets.to(where), PadCropFlip(), num_draws=10, batch_size=8)
        for where in ("cpu", "cuda")
    ]
    for table in tables:
        table.fill(3, 30, first.share, loader.batches)
    on_host, on_device = (table._drawn for table in tables)
    assert on_host.keys() == on_device.keys()
    assert len(on_host) == 7
    for name, values in on_host.items():
        assert torch.equal(values, on_device[name].cpu()), name
