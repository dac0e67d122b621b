"""What an engine says of itself when it is built, and what `int8` makes of it."""

import copy
import functools
import pickle
import warnings
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from conformance.engine import needs
from conformance.networks import GATED
from infer2train.batches import call_model
from infer2train.observe.metrics import window
from infer2train.oracle import openvino_engine
from infer2train.oracle.engines import INT8, build_engine
from infer2train.oracle.fidelity import FidelityMonitor
from infer2train.oracle.lowered_engine import Lowered, LoweredEngine
from infer2train.oracle.quantization.program import Program
from infer2train.oracle.samples import PROBE_VIEWS, Samples
from infer2train.oracle.snapshot import snapshot
from infer2train.oracle.trial import Trial, judged, rank_correlation

pytestmark = pytest.mark.usefixtures("one_thread")

ENGINES = ("simulated:b8", *INT8)


class Rows(Samples):
    """Rows of a tensor, other ones for each version; the probe repeats none of them."""

    def __init__(self, x: Any, y: Tensor | None = None) -> None:
        self._x, self._y = x, y

    def calibration(self, version: int, rows: int) -> Any:
        return self._x[(torch.arange(rows) * 7 + 13 * version) % len(self._x)]

    def probe(self, rows: int) -> Any:
        at = torch.arange(rows) % len(self._x)
        return self._x[at], None if self._y is None else self._y[at]


def built(spec: str, model: nn.Module, x: Tensor) -> LoweredEngine:
    for name in INT8 if spec == "int8" else (spec,):
        needs(name)
    engine = build_engine(spec, model, samples=Rows(x), rows=32)
    assert isinstance(engine, LoweredEngine)
    return engine


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def assert_near(got: Tensor, wanted: Tensor) -> None:
    assert float((got - wanted).square().mean().sqrt()) < 0.1 * float(wanted.std())


# Shares


def normalised() -> nn.Sequential:
    torch.manual_seed(0)
    conv, linear = parametrizations.weight_norm(nn.Conv2d(3, 8, 3)), parametrizations.weight_norm(nn.Linear(288, 10))
    return nn.Sequential(conv, nn.ReLU(), nn.Flatten(), linear)


@pytest.mark.parametrize("spec", ENGINES)
def test_computed_weights_run_in_integers_and_follow_the_training(spec: str) -> None:
    model, x = normalised(), drawn(24, 3, 8, 8)
    engine = built(spec, model, x)
    in_integers = "b8" if spec == "simulated:b8" else "int8"
    assert engine.notes[-1] == f"{spec} runs 2 of 2 layers, 100.0% of the multiply-adds, in {in_integers}"
    for version in (0, 1):
        engine.refresh(engine.calibrated(snapshot(model, version)))
        assert engine.precisions() == {"0": in_integers, "3": in_integers}
        with torch.no_grad():
            wanted = model(x)
        assert_near(engine.outputs(x), wanted)
        with torch.no_grad():
            model[3].parametrizations.weight.original0.mul_(-2)
    assert window(engine.totals(), {})["int8_share"] == 1.0


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.encoder, self.head = kind(6, 16, batch_first=True), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x)[0].mean(1))  # type: ignore[no-any-return]


@pytest.mark.parametrize("spec", ENGINES)
@pytest.mark.parametrize("kind", [nn.LSTM, pytest.param(nn.GRU, marks=pytest.mark.slow)])
def test_what_stays_real_is_listed_counted_and_warned_of_once(spec: str, kind: type[nn.RNNBase]) -> None:
    needs(spec)
    torch.manual_seed(0)
    model, x = Recurrent(kind), drawn(24, 7, 6)
    with pytest.warns(
        RuntimeWarning, match=r"runs 1 of 2 layers, .*% of the multiply-adds, in .*as slow as fp32"
    ) as said:
        engine = built(spec, model, x)
    gates = 4 if kind is nn.LSTM else 3
    share = 80 / (80 + 7 * gates * 16 * (6 + 16))
    assert len([w for w in said if "multiply-adds" in str(w.message)]) == 1
    assert engine.trial is not None
    assert engine.trial.int8_share == pytest.approx(share)
    assert not engine.trial.is_good
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        engine.refresh(engine.calibrated(snapshot(model, 0)))
    assert engine.precisions()["encoder"] == "fp32"
    assert engine.precisions()["head"] in ("int8", "b8")
    assert window(engine.totals(), {})["int8_share"] == pytest.approx(share)


def test_the_share_in_integers() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    graph = built("simulated:b8", model, drawn(16, 4)).graph
    for ran_in in ({"0": "int8", "2": "fp32"}, {"0": "int8", "2": "bf16"}, {"0": "int8"}):
        assert judged(graph, ran_in, True, 1.0) == Trial("int8", 2, 1, 24 / 36, True, 1.0)
    assert Trial("int8", 2, 1, 0.91, True, 1.0).is_good
    assert not Trial("int8", 2, 1, 0.89, True, 1.0).is_good
    assert not Trial("int8", 2, 1, 1.0, False, 1.0).is_good


def test_what_a_trial_found_travels_with_its_engine_and_floating_point_has_none() -> None:
    engine = built("simulated:b8", nn.Sequential(nn.Linear(4, 2)), drawn(16, 4))
    other = pickle.loads(pickle.dumps(engine))
    assert (other.trial, other.notes) == (engine.trial, engine.notes)
    needs("onnxruntime:fp32")
    real = built("onnxruntime:fp32", nn.Sequential(nn.Linear(4, 2)), drawn(16, 4))
    assert (real.trial, real.notes) == (None, ())
    assert "int8_share_sum" not in real.totals()


def test_weights_that_are_not_finite_when_it_is_built_say_nothing() -> None:
    model = nn.Sequential(nn.Linear(4, 2))
    with torch.no_grad():
        model[0].weight[0, 0] = torch.nan
    engine = built("simulated:b8", model, drawn(16, 4))
    assert (engine.trial, engine.notes) == (None, ())
    with torch.no_grad():
        model[0].weight[0, 0] = 1.0
    engine.refresh(engine.calibrated(snapshot(model, 1)))
    assert engine.totals()["int8_share_sum"] == 1.0


@pytest.mark.parametrize("spec", ENGINES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_models_and_inputs_of_any_width_run_in_integers(spec: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10)).to(dtype)
    x = drawn(24, 3, 8, 8).to(dtype)
    engine = built(spec, model, x)
    engine.refresh(engine.calibrated(snapshot(model, 0)))
    with torch.no_grad():
        wanted = copy.deepcopy(model).float().eval()(x.float())
    for outputs in (engine.outputs(x), engine.reference(x)):
        assert outputs.dtype == torch.float32
        assert_near(outputs, wanted)
    assert torch.equal(engine.outputs(x), engine.outputs(x.float()))


# Ranks


def test_ranks_are_those_within_a_samples_views() -> None:
    real = drawn(4 * PROBE_VIEWS, 5)
    assert rank_correlation([real.exp()], [real]) == pytest.approx(1.0)
    assert rank_correlation([-real], [real]) == pytest.approx(-1.0)
    between = torch.arange(4.0).repeat_interleave(PROBE_VIEWS)[:, None] * 100
    assert rank_correlation([-real + between], [real + between]) == pytest.approx(-1.0), "not those of samples"
    assert rank_correlation([real, -real], [real, real]) == pytest.approx(-1.0), "the worst output counts"
    assert abs(rank_correlation([real.flip(1)], [real])) < 0.5


def test_outputs_without_an_order_have_none_to_lose() -> None:
    constant = torch.ones(16, 3)
    assert rank_correlation([drawn(16, 3)], [constant]) == 1.0
    assert rank_correlation([drawn(16, 3)], [constant + 1e-5 * drawn(16, 3)]) == 1.0
    assert rank_correlation([torch.arange(16)], [torch.arange(16).flip(0)]) == 1.0, "classes are no scores"
    half = torch.cat([constant, drawn(16, 1)], 1)
    assert rank_correlation([torch.cat([drawn(16, 3), half[:, 3:]], 1)], [half]) == pytest.approx(1.0)
    assert rank_correlation([torch.full((16, 3), torch.nan)], [drawn(16, 3)]) == 0.0


@pytest.mark.parametrize("mask", [-1e9, -torch.inf])
def test_masked_logits_leave_the_others_their_order(mask: float) -> None:
    real = torch.cat([drawn(16, 3), torch.full((16, 1), mask)], 1)
    assert rank_correlation([-real], [real]) == pytest.approx(-1.0)
    assert rank_correlation([real], [real]) == pytest.approx(1.0)


# SiLU and hardswish


@functools.cache
def digits() -> tuple[Tensor, Tensor]:
    """Real images, and of each 8 views: moved by a pixel or two, dimmed, noisy."""
    from sklearn.datasets import load_digits

    data = load_digits()
    generator = torch.Generator().manual_seed(0)
    images = torch.from_numpy(data.images).float()[:512, None].repeat_interleave(PROBE_VIEWS, 0) / 8 - 1
    x = F.interpolate(images, size=(32, 32), mode="bilinear").expand(-1, 3, -1, -1)
    shifts = torch.randint(-3, 4, (len(x),), generator=generator).tolist()
    x = torch.stack([image.roll(shift, 2) for image, shift in zip(x, shifts, strict=True)])
    dim = 0.5 + torch.rand(len(x), 1, 1, 1, generator=generator)
    noise = 0.2 * torch.randn(x.shape, generator=generator)
    return x * dim + noise, torch.from_numpy(data.target)[:512].repeat_interleave(PROBE_VIEWS)


@functools.cache
def trained(network: str, steps: int = 60) -> nn.Module:
    torch.manual_seed(0)
    model, (x, y) = GATED[network](), digits()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        at = torch.randint(1024, len(x), (32,), generator=generator)
        optimizer.zero_grad()
        F.cross_entropy(model(x[at]), y[at]).backward()
        optimizer.step()
    return model.eval()


def loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs, targets, reduction="none")


@pytest.mark.slow
@pytest.mark.parametrize("network", GATED)
@pytest.mark.parametrize("spec", INT8)
def test_gated_networks_pick_as_float32_would_in_integers(spec: str, network: str) -> None:
    needs(spec)
    samples = Rows(*digits())
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        engine = build_engine(spec, GATED[network](), samples=samples)
        assert isinstance(engine, LoweredEngine)
        monitor = FidelityMonitor(samples, loss, engine.device)
        gains = []
        for version in range(3):
            engine.refresh(engine.calibrated(snapshot(trained(network), version)))
            fresh = monitor.scores(engine.reference(monitor.inputs))
            gains.append(monitor.measure(engine, fresh).captured_gain)
    totals = engine.totals()
    assert totals["fp32_versions"] == 0
    assert window(totals, {})["int8_share"] >= 0.9
    assert sum(gains) / len(gains) >= 0.9


def activated(activation: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 16, 3), activation, nn.Conv2d(16, 8, 3), nn.Flatten(), nn.Linear(128, 10))


@pytest.mark.parametrize(("activation", "is_long"), [(nn.SiLU(), True), (nn.Hardswish(), True), (nn.ReLU(), False)])
def test_a_hard_view_is_not_cut_off_where_tails_are_long(activation: nn.Module, is_long: bool) -> None:
    model, x = activated(activation), drawn(64, 3, 8, 8)
    x[::8] *= 4  # one view in eight is hard
    engine = built("simulated:b8", model, x)
    record = engine.calibrated(snapshot(model, 0))
    engine.refresh(record)
    read = record.ranges["0.weight/input"]
    asked = engine._samples.calibration(0, 64 if is_long else 16)
    extremes = asked.flatten(1).amax(1)
    widest = min(float(extremes.mean() + 3 * extremes.std(correction=0)), float(extremes.max()))
    assert float(read[1]) == pytest.approx(widest if is_long else float(extremes.mean()))
    hard = (engine.outputs(x) - engine.reference(x))[::8].square().mean().sqrt() / engine.reference(x)[::8].std()
    assert (float(hard) < 0.1) == is_long


# The alias


class NeverSound(openvino_engine.OpenVINOEngine):
    """Whose programs say something else than they should."""

    def _lower(self, tensors: Sequence[Tensor], program: Program | None) -> Lowered:
        lowered = super()._lower(tensors, program)
        return lambda flat: [tensor.flip(1) for tensor in lowered(flat)]

    def _ran_in(self, lowered: Lowered) -> dict[str, str]:
        return {layer.name: "int8" for layer in self.graph.layers}


def classifier() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 6))


def test_int8_is_the_fastest_engine_where_that_is_sound() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        engine = built("int8", classifier(), drawn(32, 8))
    assert engine.name == "openvino:int8"
    assert engine.notes[-1] == "openvino:int8 runs 2 of 2 layers, 100.0% of the multiply-adds, in int8"


def test_int8_is_the_other_engine_where_the_fastest_is_not_what_it_should_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino_engine, "OpenVINOEngine", NeverSound)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        engine = built("int8", classifier(), drawn(32, 8))
    assert engine.name == "onnxruntime:int8"
    why = "int8 is onnxruntime:int8 for this model: the program of openvino:int8 is not what it should be"
    assert why in engine.notes


def test_int8_is_the_other_engine_where_the_fastest_cannot_run_the_model() -> None:
    model = nn.Sequential(nn.Linear(4, 4), Cumulative())
    engine = built("int8", model, drawn(24, 4))
    assert engine.name == "onnxruntime:int8"
    assert "int8 is onnxruntime:int8 for this model: openvino:int8 cannot run this model" in engine.notes


class Cumulative(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.logcumsumexp(x, 1)


def test_int8_says_once_what_either_engine_leaves_real() -> None:
    for name in INT8:
        needs(name)
    torch.manual_seed(0)
    with pytest.warns(RuntimeWarning, match="openvino:int8 runs 1 of 2 layers") as said:
        engine = built("int8", Recurrent(nn.GRU), drawn(24, 7, 6))
    assert engine.name == "openvino:int8", "the first of equals"
    assert len([w for w in said if "multiply-adds" in str(w.message)]) == 1
    assert any("onnxruntime:int8 runs 1 of 2 layers" in note for note in engine.notes)


def test_int8_refuses_what_no_engine_can_follow_with_the_reason() -> None:
    class Depends(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) if x.sum() > 0 else x

    with pytest.raises(ValueError, match=r"follow Depends\.forward"):
        built("int8", Depends(4, 4), drawn(24, 4))


# What is warned of


def test_versions_in_fp32_are_warned_of_once_and_then_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino_engine, "OpenVINOEngine", NeverSound)
    model, x = classifier(), drawn(32, 8)
    engine = built("openvino:int8", model, x)
    engine._verifier._has_seen_weights = True
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for version in range(3):
            engine.refresh(engine.calibrated(snapshot(model, version)))
    assert [str(w.message).partition(":")[0] for w in said] == ["openvino"]
    assert "at version 0" in str(said[0].message)
    assert "scored in fp32 by torch" in str(said[0].message)
    assert engine.totals()["fp32_versions"] == 3
    assert window(engine.totals(), {})["int8_share"] == 0.0
    torch.testing.assert_close(engine.outputs(x), call_model(model, x).detach())
