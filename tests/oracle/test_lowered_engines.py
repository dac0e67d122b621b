"""Engines that are lowered from a graph: against the suite, against their simulation, and broken on purpose."""

import functools
import math
import warnings
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from conformance.engine import ENGINE_ROWS, check_engine, converted, given_samples, needs, trained
from conformance.networks import NETWORKS
from infer2train.batches import call_model, map_tensors, tensors_of
from infer2train.oracle.engines import build_engine
from infer2train.oracle.lowered_engine import CALIBRATION_ROWS, RECALIBRATION_FACTOR, Lowered, LoweredEngine
from infer2train.oracle.quantization.graph import GraphError
from infer2train.oracle.quantization.program import Program, Simulation, deviation, specify
from infer2train.oracle.quantization.ranges import measure_ranges
from infer2train.oracle.samples import GivenSamples
from infer2train.oracle.snapshot import NotFiniteError, Record, snapshot

pytestmark = pytest.mark.usefixtures("one_thread")

INTEGERS = ("openvino:int8", "onnxruntime:int8")
ENGINES = ("simulated:b8", *INTEGERS)
FLOATS = ("openvino:fp32", "openvino:bf16", "onnxruntime:fp32")
STEPS = 2
"""Greatest deviation of a sound program from its simulation, in output quantisation steps."""
PAIRS = [(spec, network) for spec in ENGINES for network in NETWORKS]


def marked(pairs: list[tuple[str, str]], marks: dict[tuple[str, str], Any]) -> list[Any]:
    return [pytest.param(*pair, marks=marks.get(pair, ())) for pair in pairs]


def inputs_of(network: str, rows: int = 13) -> Any:
    return NETWORKS[network][1](rows)


def published(engine: LoweredEngine, network: str, version: int) -> Record:
    return engine.calibrated(snapshot(trained(network, version), version))


def refreshed(spec: str, network: str, scheme: str = "default") -> tuple[LoweredEngine, Record]:
    engine = converted(spec, network, scheme)
    record = published(engine, network, 0)
    engine.refresh(record)
    return engine, record


ready = functools.cache(refreshed)
"""For tests that only ask."""


def simulated(engine: LoweredEngine, record: Record, inputs: Any, **how: Any) -> list[Tensor]:
    """What the weights in use mean with the ranges of a record, by the slow reference."""
    clipped = how.pop("clipped", engine.clipped)
    how = {"weight_bits": None if "bits" in how else engine.weight_bits, **how}
    return Simulation(engine.graph, specify(engine.graph, engine.weights, record.ranges, **how), clipped)(inputs)


def kept(tree: Any) -> list[Tensor]:
    return [tensor.clone() for tensor in tensors_of(tree)]


def same(a: Any, b: Any) -> bool:
    return all(torch.equal(x, y) for x, y in zip(tensors_of(a), tensors_of(b), strict=True))


def some_rows(tree: Any, start: int, stop: int) -> Any:
    return map_tensors(lambda tensor: tensor[start:stop], tree)


# The suite, beside test_engines.py, where every engine goes through it with one network


@pytest.mark.slow
@pytest.mark.parametrize(("spec", "network"), [pair for pair in PAIRS if pair[1] != "vgg"])
def test_conformance(spec: str, network: str) -> None:
    torch.manual_seed(0)
    check_engine(lambda model: converted(spec, network), NETWORKS[network][0](), inputs_of(network))


@pytest.mark.parametrize(
    "spec", ["onnxruntime:fp32", *(pytest.param(spec, marks=pytest.mark.slow) for spec in FLOATS[:2])]
)
def test_conformance_in_floating_point(spec: str) -> None:
    torch.manual_seed(0)
    check_engine(lambda model: converted(spec, "vgg"), NETWORKS["vgg"][0](), inputs_of("vgg"))


# What runs


def test_a_simulation_is_the_same_on_a_device_of_torchs_by_name() -> None:
    ours, record = ready("simulated:b8", "vgg")
    samples, inputs = given_samples("vgg"), inputs_of("vgg")
    named = build_engine("simulated:b8@cpu", trained("vgg"), samples=samples, rows=ENGINE_ROWS)
    named.refresh(record)
    assert named.device == torch.device("cpu")
    assert same(kept(named.outputs(inputs)), kept(ours.outputs(inputs)))


@pytest.mark.gpu
@pytest.mark.parametrize("network", ["vgg", "resnet"])
def test_a_simulation_on_a_gpu_agrees_with_the_one_on_the_cpu(network: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    ours, record = ready("simulated:b8", network)
    samples, inputs = given_samples(network), inputs_of(network)
    theirs = build_engine("simulated:b8@cuda", trained(network), samples=samples, rows=ENGINE_ROWS)
    theirs.refresh(Record(record.version, {name: t.cuda() for name, t in record.tensors.items()}, record.ranges))
    outputs = [tensor.cpu() for tensor in tensors_of(theirs.outputs(inputs))]
    assert deviation(outputs, kept(ours.outputs(inputs))) <= STEPS


@pytest.mark.parametrize(("spec", "network"), [pair for pair in PAIRS if pair[0] in INTEGERS])
def test_every_layer_runs_in_integers(spec: str, network: str) -> None:
    engine, _ = ready(spec, network)
    assert_all_ran_in("int8", engine, network)


FLOAT_PAIRS = [(spec, network) for spec in FLOATS for network in NETWORKS]
SLOW_FLOATS = dict.fromkeys((pair for pair in FLOAT_PAIRS if pair[1] != "vgg"), pytest.mark.slow)


@pytest.mark.parametrize(("spec", "network"), marked(FLOAT_PAIRS, SLOW_FLOATS))
def test_every_layer_runs_in_the_floating_point_asked_for(spec: str, network: str) -> None:
    needs(spec)
    if spec == "openvino:bf16":
        import openvino

        if "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            pytest.skip("this CPU has no bf16")
    engine, _ = ready(spec, network)
    assert_all_ran_in(spec.partition(":")[2], engine, network)


def assert_all_ran_in(precision: str, engine: LoweredEngine, network: str) -> None:
    engine.outputs(inputs_of(network))
    layers = {n for n, module in trained(network).named_modules() if isinstance(module, nn.Conv2d | nn.Linear)}
    named = {layer.name for layer in engine.graph.layers}
    assert layers <= named
    assert engine.precisions() == dict.fromkeys(named, precision)
    assert engine.totals()["fp32_versions"] == 0


@pytest.mark.parametrize(("spec", "network"), PAIRS)
def test_integers_mean_what_the_simulation_says(spec: str, network: str) -> None:
    engine, record = ready(spec, network)
    inputs = inputs_of(network)
    outputs = kept(engine.outputs(inputs))
    expected = simulated(engine, record, inputs)
    assert deviation(outputs, expected) <= (0 if spec == "simulated:b8" else STEPS)
    stale = simulated(engine, published(converted(spec, network), network, 1), inputs)
    assert deviation(stale, expected) > STEPS, "the bound would hold for other ranges too"


@pytest.mark.parametrize("spec", INTEGERS)
@settings(max_examples=6)
@given(version=st.integers(2, 10**6))
def test_integers_mean_what_the_simulation_says_whatever_the_weights(spec: str, version: int) -> None:
    engine, _ = reused(spec)
    record = published(engine, "vgg", version)
    engine.refresh(record)
    inputs = inputs_of("vgg")
    assert deviation(kept(engine.outputs(inputs)), simulated(engine, record, inputs)) <= STEPS
    assert engine.totals()["recalibrations"] == 0


reused = functools.cache(lambda spec: refreshed(spec, "vgg"))


@pytest.mark.parametrize(("network", "clips"), [("resnet", True), ("inplace", False)])
def test_openvino_says_where_it_is_more_exact_than_it_must_be(network: str, clips: bool) -> None:
    engine, record = ready("openvino:int8", network)
    assert engine.may_clip, "convolutions are fused with the additions behind them"
    assert bool(engine.clipped) == clips
    inputs = inputs_of(network)
    outputs = kept(engine.outputs(inputs))
    rounded, clipped = (deviation(outputs, simulated(engine, record, inputs, clipped=c)) for c in ((), engine.may_clip))
    assert (clipped < rounded) == clips


@pytest.mark.parametrize("spec", INTEGERS)
def test_one_scale_for_a_whole_weight_with_a_zero_point_of_its_own(spec: str) -> None:
    engine, record = refreshed(spec, "vgg", "paper")
    inputs = inputs_of("vgg")
    outputs = kept(engine.outputs(inputs))
    as_paper = deviation(outputs, simulated(engine, record, inputs, scheme="paper"))
    assert as_paper <= STEPS
    assert as_paper < deviation(outputs, simulated(engine, record, inputs)) / 2, "as by one scale for each channel"
    assert engine.totals()["fp32_versions"] == 0


def test_fewer_bits_run_on_the_same_integer_units() -> None:
    engine, record = refreshed("openvino:b4", "vgg")
    inputs = inputs_of("vgg")
    outputs = kept(engine.outputs(inputs))
    assert deviation(outputs, simulated(engine, record, inputs, bits=4), 4) <= STEPS
    assert deviation(outputs, simulated(engine, record, inputs, bits=8), 8) > 4 * STEPS
    assert set(engine.precisions().values()) == {"int8"}


@pytest.mark.parametrize(
    ("spec", "network"), [(spec, "vgg") for spec in (*ENGINES, *FLOATS)] + [(spec, "text") for spec in ENGINES]
)
def test_rows_are_the_same_in_batches_of_any_size(spec: str, network: str) -> None:
    engine, _ = ready(spec, network)
    total = 2 * ENGINE_ROWS + 3
    inputs = inputs_of(network, total)
    whole = map_tensors(torch.clone, engine.outputs(inputs))
    for rows in (1, ENGINE_ROWS - 1, ENGINE_ROWS, ENGINE_ROWS + 1, total):
        for start in {0, total - rows}:
            part = kept(engine.outputs(some_rows(inputs, start, start + rows)))
            wanted = kept(some_rows(whole, start, start + rows))
            assert [t.shape for t in part] == [t.shape for t in wanted]
            assert all(torch.allclose(p, w, rtol=1e-5, atol=1e-5) for p, w in zip(part, wanted, strict=True)), rows


class OfSixRows(nn.Module):
    """Whose number of rows is written down in it."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x).view(6, 3)  # type: ignore[no-any-return]


def test_rows_are_the_same_for_a_model_that_takes_one_number_of_them() -> None:
    model, x = OfSixRows(), torch.randn(15, 4, generator=torch.Generator().manual_seed(0))
    engine = build_engine("simulated:b8", model, samples=GivenSamples(x), rows=6)
    engine.refresh(engine.calibrated(snapshot(model, 0)))
    whole = engine.outputs(x).clone()
    assert whole.shape == (15, 3)
    for start, stop in [(0, 1), (4, 10), (8, 15)]:
        assert torch.equal(engine.outputs(x[start:stop]), whole[start:stop])
        torch.testing.assert_close(engine.reference(x[start:stop]), model.linear(x[start:stop]))


# Ranges


@pytest.mark.parametrize("spec", ENGINES)
@pytest.mark.parametrize("network", ["resnet", "text"])
def test_ranges_are_a_function_of_the_snapshot_and_the_samples_of_its_version(spec: str, network: str) -> None:
    used, _ = ready(spec, network)
    weights = dict(snapshot(trained(network), 0).tensors)
    first, again = used.calibrated(Record(3, weights)), converted(spec, network).calibrated(Record(3, weights))
    assert first.version == 3
    assert first.ranges.keys() == {site.name for site in used.graph.sites if site.kind != "weight"}
    assert all(torch.equal(first.ranges[name], again.ranges[name]) for name in first.ranges)
    for other in (Record(4, weights), snapshot(trained(network, 1), 3)):
        assert any(not torch.equal(r, first.ranges[name]) for name, r in used.calibrated(other).ranges.items())


@pytest.mark.parametrize("spec", ENGINES)
def test_ranges_that_a_record_brings_are_used_and_not_measured_again(spec: str) -> None:
    engine, _ = refreshed(spec, "vgg")
    measured = published(engine, "vgg", 1)
    wide = Record(1, measured.tensors, {name: 3 * extremes for name, extremes in measured.ranges.items()})
    asked = given_samples("vgg").asked
    asked.clear()
    assert engine.calibrated(wide) is wide
    engine.refresh(wide)
    assert asked == []
    outputs = kept(engine.outputs(inputs_of("vgg")))
    assert deviation(outputs, simulated(engine, wide, inputs_of("vgg"))) <= STEPS
    assert deviation(outputs, simulated(engine, measured, inputs_of("vgg"))) > STEPS
    incomplete = Record(2, measured.tensors, dict(list(measured.ranges.items())[1:]))
    with pytest.raises(ValueError, match=r"range of every activation: got none of features\.0\.weight/input; publish"):
        engine.refresh(incomplete)
    assert engine.version == 1
    assert same(outputs, engine.outputs(inputs_of("vgg")))


@pytest.mark.parametrize("network", ["resnet", "text"])
@pytest.mark.parametrize("spec", ENGINES)
def test_a_restarted_engine_with_the_same_record_gives_the_same_bits(spec: str, network: str) -> None:
    engine, record = ready(spec, network)
    restarted = converted(spec, network)
    restarted.refresh(published(restarted, network, 1))
    restarted.refresh(record)
    assert same(engine.outputs(inputs_of(network)), restarted.outputs(inputs_of(network)))


@pytest.mark.parametrize("spec", ENGINES)
def test_an_engine_built_again_gives_the_same_bits_and_leaves_model_and_chance_alone(spec: str) -> None:
    engine, record = ready(spec, "vgg")
    model = trained("vgg", 1).train()
    before, random_state = snapshot(model, 0), torch.get_rng_state()
    rebuilt = build_engine(spec, model, samples=given_samples("vgg"), rows=ENGINE_ROWS)
    assert all(torch.equal(before.tensors[name], tensor) for name, tensor in model.state_dict().items())
    assert model.training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), random_state)
    rebuilt.refresh(record)
    assert same(engine.outputs(inputs_of("vgg")), rebuilt.outputs(inputs_of("vgg")))


@pytest.mark.parametrize("spec", ENGINES)
def test_nothing_depends_on_the_trainers_autocast(spec: str) -> None:
    alone, record = ready(spec, "vgg")
    inputs = inputs_of("vgg")
    engine = converted(spec, "vgg")
    weights = snapshot(trained("vgg", 0), 0)
    with torch.autocast("cpu", torch.bfloat16):
        within = engine.calibrated(weights)
        engine.refresh(within)
        outputs, reference = engine.outputs(inputs), engine.reference(inputs)
    assert all(torch.equal(within.ranges[name], extremes) for name, extremes in record.ranges.items())
    assert same(outputs, alone.outputs(inputs))
    assert same(reference, alone.reference(inputs))


# A refresh that goes wrong


class Broken(LoweredEngine):
    """Mixed into an engine: sound until `breaks` is set, and from then on wrong in its own way."""

    breaks = False
    tries = 0
    sound: tuple[Tensor, ...] = ()

    def _lower(self, tensors: Sequence[Tensor], program: Program | None) -> Lowered:
        if self.breaks:
            self.tries += 1
            return self.wrong(tuple(tensors), program)
        self.sound = tuple(tensors)
        return self.right(tensors, program)

    def right(self, tensors: Sequence[Tensor], program: Program | None) -> Lowered:
        return super()._lower(tensors, program and Program(tuple(tensors), program.affines))  # type: ignore[safe-super]

    def wrong(self, tensors: tuple[Tensor, ...], program: Program | None) -> Lowered:
        raise NotImplementedError

    def changed(self, tensors: tuple[Tensor, ...], change: Any) -> tuple[Tensor, ...]:
        """With another first weight of a linear layer."""
        number = self.graph.names.index("hidden.weight")
        return (*tensors[:number], change(tensors[number]), *tensors[number + 1 :])


class StaleWeights(Broken):
    def wrong(self, tensors: tuple[Tensor, ...], program: Program | None) -> Lowered:
        return self.right(self.sound, program)


class MisScales(Broken):
    def wrong(self, tensors: tuple[Tensor, ...], program: Program | None) -> Lowered:
        return self.right(self.changed(tensors, lambda weight: 0.8 * weight), program)


class SwapsChannels(Broken):
    def wrong(self, tensors: tuple[Tensor, ...], program: Program | None) -> Lowered:
        return self.right(self.changed(tensors, lambda weight: weight.roll(1, 0)), program)


class ReturnsNaN(Broken):
    def wrong(self, tensors: tuple[Tensor, ...], program: Program | None) -> Lowered:
        lowered = self.right(tensors, program)
        return lambda flat: [tensor * torch.nan for tensor in lowered(flat)]


class NeedsMoreSamples(Broken):
    def wrong(self, tensors: tuple[Tensor, ...], program: Program | None) -> Lowered:
        return self.right(self.sound if self.tries == 1 else tensors, program)


class KeepsItsFirstProgram(Broken):
    first: Lowered | None = None

    def right(self, tensors: Sequence[Tensor], program: Program | None) -> Lowered:
        self.first = self.first or super().right(tensors, program)
        return self.first


def broken(kind: type[Broken], spec: str) -> Any:
    engine = converted(spec, "vgg")
    engine.__class__ = type(kind.__name__, (kind, type(engine)), {})
    return engine


@pytest.mark.parametrize("spec", ENGINES)
@pytest.mark.parametrize("kind", [StaleWeights, MisScales, SwapsChannels, ReturnsNaN])
def test_a_wrong_program_is_left_aside_and_its_version_scored_in_fp32(kind: type[Broken], spec: str) -> None:
    engine, inputs, asked = broken(kind, spec), inputs_of("vgg"), given_samples("vgg").asked
    engine.refresh(published(engine, "vgg", 0))
    in_integers = engine.precisions()
    record = published(engine, "vgg", 1)
    engine.breaks = True
    asked.clear()
    with pytest.warns(
        RuntimeWarning, match=rf"{spec} deviates by .* at version 1, [\d.]+ are allowed: .* in fp32 by torch"
    ):
        engine.refresh(record)
    assert asked == [(1, CALIBRATION_ROWS * RECALIBRATION_FACTOR)], "tried once more, on more samples"
    assert engine.version == 1
    assert engine.precisions() == {layer.name: "fp32" for layer in engine.graph.layers}
    with torch.no_grad():
        wanted = call_model(trained("vgg", 1).eval(), inputs)
    torch.testing.assert_close(engine.outputs(inputs), wanted, rtol=1e-4, atol=1e-4)
    assert same(engine.outputs(inputs), engine.reference(inputs))
    assert counts(engine) == {"refreshes": 2, "recalibrations": 1, "fp32_versions": 1}
    assert math.isfinite(engine.totals()["deviation_sum"])
    engine.breaks = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        record = published(engine, "vgg", 2)
        engine.refresh(record)
    assert engine.precisions() == in_integers
    assert set(in_integers.values()) <= {"int8", "b8"}
    assert deviation(kept(engine.outputs(inputs)), simulated(engine, record, inputs)) <= STEPS
    assert counts(engine) == {"refreshes": 3, "recalibrations": 1, "fp32_versions": 1}


class Masked(nn.Module):
    """A classifier, some of whose classes are masked."""

    def __init__(self, mask: float) -> None:
        super().__init__()
        self.hidden, self.classifier, self.mask = nn.Linear(4, 8), nn.Linear(8, 6), mask
        self.register_buffer("off", torch.arange(6) >= 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.hidden(x).relu()).masked_fill(self.off, self.mask)


@pytest.mark.parametrize("mask", [-1e9, -math.inf])
def test_a_wrong_program_is_found_beside_masked_logits(mask: float) -> None:
    torch.manual_seed(0)
    engine: Any = build_engine("simulated:b8", Masked(mask), samples=GivenSamples(torch.randn(32, 4)))
    engine.refresh(engine.calibrated(snapshot(Masked(mask), 0)))
    assert counts(engine)["fp32_versions"] == 0
    engine.__class__ = type("Swaps", (SwapsChannels, type(engine)), {"breaks": True})
    with pytest.warns(RuntimeWarning, match="at version 1"):
        engine.refresh(engine.calibrated(snapshot(Masked(mask), 1)))
    assert counts(engine)["fp32_versions"] == 1


def counts(engine: LoweredEngine) -> dict[str, float]:
    return {name: engine.totals()[name] for name in ("refreshes", "recalibrations", "fp32_versions")}


@pytest.mark.parametrize("spec", ENGINES)
def test_a_failure_that_more_samples_mend_is_a_recalibration_and_no_more(spec: str) -> None:
    engine, inputs = broken(NeedsMoreSamples, spec), inputs_of("vgg")
    engine.refresh(published(engine, "vgg", 0))
    in_integers, record = engine.precisions(), published(engine, "vgg", 1)
    engine.breaks = True
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        engine.refresh(record)
    assert counts(engine) == {"refreshes": 2, "recalibrations": 1, "fp32_versions": 0}
    assert engine.precisions() == in_integers
    more = given_samples("vgg").calibration(1, CALIBRATION_ROWS * RECALIBRATION_FACTOR)
    ranges = measure_ranges(engine.graph, engine.weights, more)
    assert deviation(kept(engine.outputs(inputs)), simulated(engine, Record(1, {}, ranges), inputs)) <= STEPS


@pytest.mark.parametrize("spec", [*ENGINES, "onnxruntime:fp32"])
def test_an_engine_that_ignores_new_weights_is_found_out_at_once(spec: str) -> None:
    engine = broken(KeepsItsFirstProgram, spec)
    with pytest.raises(RuntimeError, match=r"must use the weights .* got the same outputs .* please report this"):
        engine.refresh(published(engine, "vgg", 0))
    assert engine.version is None
    with pytest.raises(RuntimeError, match=r"refreshed before it is asked for outputs: got none; call refresh"):
        engine.outputs(inputs_of("vgg"))


def test_a_model_that_says_the_same_with_any_weights_is_no_broken_engine() -> None:
    model = nn.Sequential(nn.Linear(4, 3))
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    engine = build_engine("simulated:b8", model, samples=GivenSamples(x))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    engine.refresh(engine.calibrated(snapshot(model, 0)))
    assert bool((engine.outputs(x) == 0).all())


class Mixing(nn.Module):
    """alpha must be at most 1."""

    def __init__(self, is_trained: bool) -> None:
        super().__init__()
        self.a, self.b, self.classifier = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        if is_trained:
            self.alpha: Tensor = nn.Parameter(torch.tensor(0.95))
        else:
            self.register_buffer("alpha", torch.tensor(0.95))

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.classifier(self.alpha * x + (1 - self.alpha**2).sqrt() * self.b(x))


@pytest.mark.parametrize("is_trained", [False, True])
def test_a_canary_outside_of_what_the_model_can_compute_ends_no_run(is_trained: bool) -> None:
    torch.manual_seed(0)
    model, x = Mixing(is_trained), torch.randn(8, 4)
    engine: Any = build_engine("simulated:b8", model, samples=GivenSamples(x))
    engine.refresh(engine.calibrated(snapshot(model, 0)))
    assert counts(engine)["fp32_versions"] == 0
    assert engine._verifier._has_seen_weights is not is_trained


@pytest.mark.parametrize("spec", ["openvino:int8", "onnxruntime:int8"])
def test_a_layer_whose_weights_are_all_zero_has_its_bias(spec: str) -> None:
    """A head that begins with the classes' shares, say."""
    needs(spec)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)).eval()
    nn.init.zeros_(model[4].weight)
    model[4].bias.data = torch.tensor([0.01, -0.04, 0.05])
    x = 20 * torch.randn(32, 3, 16, 16)
    engine = build_engine(spec, model, samples=GivenSamples(x))
    engine.refresh(engine.calibrated(snapshot(model, 0)))
    assert engine.totals()["fp32_versions"] == 0
    torch.testing.assert_close(engine.outputs(x), model(x).detach(), rtol=1e-3, atol=1e-5)


# What is refused


@pytest.mark.parametrize("spec", ENGINES)
def test_weights_that_training_has_ruined_are_refused_and_the_old_ones_stay(spec: str) -> None:
    engine, _ = refreshed(spec, "vgg")
    outputs = kept(engine.outputs(inputs_of("vgg")))
    good = snapshot(trained("vgg", 1), 1).tensors
    nan = good["hidden.weight"].clone()
    nan[0, 0] = torch.nan
    huge = torch.full_like(good["features.1.weight"], 3e38)
    tiny = torch.zeros_like(good["features.1.running_var"])
    for tensors, message in (
        ({"hidden.weight": nan}, r"NaN or infinity in hidden\.weight; the engine keeps version 0; lower the learning"),
        (
            {"features.1.weight": huge, "features.1.running_var": tiny},
            r"in features\.0\.weight once folded; .* version 0",
        ),
    ):
        with pytest.raises(NotFiniteError, match=message):
            engine.refresh(Record(1, {**good, **tensors}))
        assert engine.version == 0
        assert same(outputs, engine.outputs(inputs_of("vgg")))
    with pytest.raises(NotFiniteError, match=r"NaN or infinity in hidden\.weight"):
        engine.calibrated(Record(1, {**good, "hidden.weight": nan}))


@pytest.mark.parametrize("spec", ENGINES)
def test_finite_weights_whose_activations_are_not_are_refused(spec: str) -> None:
    engine, _ = refreshed(spec, "vgg")
    outputs = kept(engine.outputs(inputs_of("vgg")))
    good = snapshot(trained("vgg", 1), 1).tensors
    exploded = {name: 1e25 * good[name] for name in ("features.0.weight", "features.4.weight")}
    record, message = (
        Record(1, {**good, **exploded}),
        r"activations must be finite: got .* at features\.4\.weight/output",
    )
    for call in (engine.calibrated, engine.refresh):
        with pytest.raises(NotFiniteError, match=message):
            call(record)
    assert engine.version == 0
    assert same(outputs, engine.outputs(inputs_of("vgg")))


@pytest.mark.parametrize("spec", ENGINES)
def test_records_of_another_architecture_are_refused_by_the_names_of_their_tensors(spec: str) -> None:
    engine = converted(spec, "vgg")
    other = nn.Sequential(nn.Linear(3, 2))
    for call in (engine.refresh, engine.calibrated):
        with pytest.raises(ValueError, match=r"features\.0\.weight is missing; .* build a new engine for a new arch"):
            call(snapshot(other, 0))
    wider = dict(snapshot(trained("vgg"), 0).tensors) | {"classifier.weight": torch.zeros(9, 16)}
    with pytest.raises(ValueError, match=r"classifier\.weight has shape \(9, 16\) instead of \(7, 16\)"):
        engine.refresh(Record(0, wider))


@pytest.mark.parametrize("spec", ENGINES)
def test_inputs_of_another_shape_are_refused_by_what_was_got_and_expected(spec: str) -> None:
    engine, _ = ready(spec, "vgg")
    for wrong, got in (
        (torch.zeros(4, 3, 8, 8), r"\[n, 3, 8, 8\] float32"),
        (torch.zeros(4, 3, 16, 16, dtype=torch.uint8), r"\[n, 3, 16, 16\] uint8"),
        ({"images": torch.zeros(4, 3, 16, 16)}, r"images: \[n, 3, 16, 16\] float32"),
    ):
        message = rf"got {got} instead of \[n, 3, 16, 16\] float32; pad .* in collate_fn, or use oracle='torch:fp32'"
        with pytest.raises(ValueError, match=message):
            engine.outputs(wrong)


class OnFeatures(nn.Module):
    def __init__(self, operation: Any) -> None:
        super().__init__()
        self.linear, self._operation = nn.Linear(4, 4), operation

    def forward(self, x: Tensor) -> Tensor:
        return self._operation(self.linear(x))  # type: ignore[no-any-return]


REFUSED = {
    "openvino:int8": ("logcumsumexp", lambda y: torch.logcumsumexp(y, 1), "onnxruntime:int8"),
    "onnxruntime:int8": ("digamma", torch.digamma, "torch:bf16"),
}
"""Engine -> (an operation that it does not have, a function that needs it, an engine that has it)."""
X = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("spec", INTEGERS)
def test_an_operation_that_an_engine_lacks_is_refused_by_its_name_with_an_engine_that_has_it(spec: str) -> None:
    needs(spec)
    operation, function, other = REFUSED[spec]
    message = rf"must (have|know) every operation of the model: got .*{operation}.*; use .*{other}"
    with pytest.raises(ValueError, match=message):
        build_engine(spec, OnFeatures(function), samples=GivenSamples(X))
    needs(other)
    model = OnFeatures(function)
    engine = build_engine(other, model, samples=GivenSamples(X))
    engine.refresh(engine.calibrated(snapshot(model, 0)))
    assert engine.outputs(X).shape == (6, 4)


class OptionalMask(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.classifier = nn.Linear(4, 3)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.classifier(x if mask is None else x * mask)


class InFrequencies(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight, self.classifier = nn.Parameter(torch.ones(4, 5, dtype=torch.cfloat)), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.fft.irfft(torch.fft.rfft(x) * self.weight, n=8).mean(1))


def test_what_one_engine_alone_cannot_run_is_a_value_error() -> None:
    """So that `int8` and `auto` pass on to the next."""
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    needs("openvino:int8")
    samples = GivenSamples({"x": x, "mask": None})
    with pytest.raises(ValueError, match=r"openvino must be given every input as a tensor: got 1 tensors for 2"):
        build_engine("openvino:int8", OptionalMask(), samples=samples)
    needs("onnxruntime:int8")
    assert build_engine("int8", OptionalMask(), samples=samples).name == "onnxruntime:int8"
    with pytest.raises(ValueError, match=r"onnxruntime must be able to run every operation of the model: got "):
        build_engine("onnxruntime:int8", InFrequencies(), samples=GivenSamples(x[:, :, None].expand(8, 4, 8)))


class Querying(nn.Module):
    """A linear layer whose weight is one vector, as in attention with a learned query."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.query, self.classifier = nn.Linear(4, 6), nn.Parameter(torch.randn(6)), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.hidden(x).tanh()
        return self.classifier((nn.functional.linear(y, self.query).softmax(1)[..., None] * y).sum(1))


@pytest.mark.parametrize("spec", ENGINES)
def test_a_weight_without_channels_stays_real(spec: str) -> None:
    needs(spec)
    torch.manual_seed(0)
    model, x = Querying(), torch.randn(8, 5, 4)
    with pytest.warns(RuntimeWarning, match="runs 2 of 3 layers"):
        engine: Any = build_engine(spec, model, samples=GivenSamples(x))
    engine.refresh(engine.calibrated(snapshot(model, 0)))
    assert not any("query" in site.name for site in engine.graph.sites)
    assert counts(engine)["fp32_versions"] == 0
    with torch.no_grad():
        torch.testing.assert_close(engine.outputs(x), model(x), rtol=0.1, atol=0.1)


@pytest.mark.parametrize("spec", ENGINES)
def test_control_flow_that_depends_on_the_data_is_refused(spec: str) -> None:
    needs(spec)
    model = OnFeatures(lambda y: y if y.sum() > 0 else -y)
    with pytest.raises(GraphError, match=r"follow OnFeatures\.forward: got .*; use oracle='torch:fp32'.* control flow"):
        build_engine(spec, model, samples=GivenSamples(X))


@pytest.mark.parametrize("spec", ENGINES)
def test_scripts_are_refused_with_what_runs_them(spec: str) -> None:
    needs(spec)
    part = torch.jit.script(nn.Linear(4, 3))
    for model, name in ((part, "the model"), (nn.Sequential(nn.ReLU(), part), "1")):
        with pytest.raises(GraphError, match=rf"in Python: got TorchScript \({name}\); pass the nn.Module"):
            build_engine(spec, model, samples=GivenSamples(X))


class WithState(nn.Module):
    """Returns what a loop over time needs, batch in the second dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(4, 6, batch_first=True), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        outputs, (state, _) = self.lstm(x)
        return self.head(outputs[:, -1]), state


@pytest.mark.parametrize("spec", ENGINES)
def test_outputs_without_the_samples_in_front_are_refused_by_their_shape(spec: str) -> None:
    needs(spec)
    with pytest.raises(ValueError, match=r"samples in their first dimension: got one of \(1, \d+, 6\) for \d+ samples"):
        build_engine(spec, WithState(), samples=GivenSamples(torch.randn(8, 5, 4)))


def test_a_record_is_looked_at_anew_at_every_refresh() -> None:
    """What calibrating prepared is used once: a mapping that holds other weights by then must not be taken for read."""
    model = nn.Sequential(nn.Linear(4, 3))
    engine = build_engine("simulated:b8", model, samples=GivenSamples(X), rows=3)
    tensors = dict(snapshot(model, 0).tensors)
    engine.refresh(Record(0, tensors))
    before = engine.outputs(X).clone()
    tensors["0.weight"] = tensors["0.weight"] * 2
    engine.refresh(Record(1, tensors))
    assert not torch.equal(engine.outputs(X), before)
