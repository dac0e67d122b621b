"""Texts that are padded batch by batch, on engines that are lowered from a graph: a tiny BERT, 8 to 128 tokens."""

import functools
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from conformance.engine import needs
from infer2train.batches import tensors_of
from infer2train.oracle.engines import build_engine
from infer2train.oracle.lowered_engine import Lowered, LoweredEngine
from infer2train.oracle.quantization.graph import GraphError, WeightGraph
from infer2train.oracle.quantization.lifted import state_of
from infer2train.oracle.quantization.program import Program, Simulation, deviation, specify
from infer2train.oracle.quantization.ranges import measure_ranges
from infer2train.oracle.samples import Samples
from infer2train.oracle.simulated_engine import SimulatedEngine
from infer2train.oracle.snapshot import Record, snapshot

pytestmark = pytest.mark.usefixtures("one_thread")

ENGINES = ("simulated:b8", "openvino:int8", "onnxruntime:int8")
STEPS = 2
"""As for images: greatest deviation of a sound program from its simulation."""
ERROR = 0.3
"""Root mean square of what eight bits cost this network, relative to the spread of its outputs."""
ROWS, SHORTEST, LONGEST, WORDS = 8, 8, 128, 50


def texts(lengths: list[int], seed: int = 0, padded_to: int | None = None) -> dict[str, Tensor]:
    generator, longest = torch.Generator().manual_seed(seed), padded_to or max(lengths)
    mask = (torch.arange(longest) < torch.tensor(lengths)[:, None]).long()
    return {"input_ids": torch.randint(1, WORDS, mask.shape, generator=generator) * mask, "attention_mask": mask}


class Texts(Samples):
    def calibration(self, version: int, rows: int) -> Any:
        generator = torch.Generator().manual_seed(version)
        return texts(torch.randint(SHORTEST, LONGEST + 1, (rows,), generator=generator).tolist(), version)

    def probe(self, rows: int) -> Any:
        return texts([LONGEST] * rows), torch.zeros(rows, dtype=torch.int64)


@functools.cache
def bert() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        **{"vocab_size": WORDS, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2},
        **{"intermediate_size": 64, "max_position_embeddings": LONGEST, "num_labels": 3, "initializer_range": 0.2},
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return transformers.BertForSequenceClassification(config).eval()  # type: ignore[no-any-return]


@functools.cache
def ready(spec: str) -> tuple[LoweredEngine, Record]:
    needs(spec)
    engine = build_engine(spec, bert(), samples=Texts(), rows=ROWS)
    assert isinstance(engine, LoweredEngine)
    record = engine.calibrated(snapshot(bert(), 0))
    engine.refresh(record)
    return engine, record


@pytest.mark.parametrize("spec", [*ENGINES[:2], pytest.param(ENGINES[2], marks=pytest.mark.slow)])
def test_integers_mean_what_the_simulation_says_at_every_length(spec: str) -> None:
    engine, record = ready(spec)
    assert engine.takes_any_size
    assert engine.totals()["fp32_versions"] == engine.totals()["recalibrations"] == 0
    means = Simulation(
        engine.graph,
        specify(engine.graph, engine.weights, record.ranges, weight_bits=engine.weight_bits),
        engine.clipped,
    )
    for length in (SHORTEST, 33, 97, LONGEST):
        inputs = texts([length, SHORTEST, *[length // 2] * ROWS], length)
        got, expected = tensors_of(engine.outputs(inputs)), means(inputs)
        assert deviation(got, expected) <= (0 if spec == "simulated:b8" else STEPS)
        real = tensors_of(engine.reference(inputs))[0]
        torch.testing.assert_close(real, bert()(**inputs).logits.detach(), rtol=1e-4, atol=1e-4)
        assert (got[0] - real).square().mean().sqrt() < ERROR * real.std(0).mean(), length
    assert set(engine.precisions().values()) == {"b8" if spec == "simulated:b8" else "int8"}


@pytest.mark.parametrize("spec", ENGINES)
def test_padding_further_changes_no_score_beyond_a_rounding(spec: str) -> None:
    engine, _ = ready(spec)
    lengths = [9, 12, 30, 31]
    padded = texts(lengths, 1, LONGEST)
    cut = {name: tensor[:, : max(lengths)] for name, tensor in padded.items()}
    near, far = (tensors_of(engine.outputs(inputs))[0].clone() for inputs in (cut, padded))
    assert deviation([near], [far]) <= STEPS


@pytest.mark.parametrize("spec", ENGINES[1:])
def test_an_unpickled_engine_takes_any_length_too(spec: str) -> None:
    engine, record = ready(spec)
    other = pickle.loads(pickle.dumps(engine))
    other.refresh(record)
    for length in (17, 64):
        inputs = texts([length] * 3, 2)
        wanted = tensors_of(engine.outputs(inputs))[0].clone()
        assert torch.equal(tensors_of(other.outputs(inputs))[0], wanted)


class WrongWhenShort(SimulatedEngine):
    """A program that is not what it should be, at lengths below that of the probe alone."""

    breaks = False

    def _lower(self, tensors: Any, program: Program | None) -> Lowered:
        lowered = super()._lower(tensors, program)
        if not self.breaks:
            return lowered
        return lambda flat: [t + 100 * (flat[0].shape[1] < LONGEST // 2) for t in lowered(flat)]


def test_a_refresh_is_verified_at_other_lengths_than_the_probes() -> None:
    engine = WrongWhenShort(bert(), samples=Texts(), rows=ROWS)
    engine.breaks = True
    with pytest.warns(RuntimeWarning, match="output quantisation steps from its simulation at version 5"):
        engine.refresh(engine.calibrated(snapshot(bert(), 5)))
    assert engine.totals()["fp32_versions"] == 1
    inputs = texts([9, 10])
    torch.testing.assert_close(
        tensors_of(engine.outputs(inputs))[0], bert()(**inputs).logits.detach(), rtol=1e-4, atol=1e-4
    )


# Graphs


class Flattened(nn.Module):
    """Tokens of all samples in one dimension when the layers read them; the samples first or in the middle."""

    def __init__(self, first: bool) -> None:
        super().__init__()
        self.layer, self.first = nn.Linear(4, 3), first

    def forward(self, x: Tensor) -> Tensor:
        n, length, width = x.shape
        rows = x if self.first else x.transpose(0, 1)
        y = self.layer(rows.reshape(-1, width))
        return y.reshape(n, length, 3).mean(1) if self.first else y.reshape(length, n, 3).mean(0)


@pytest.mark.parametrize("first", [True, False])
def test_ranges_are_of_samples_whose_tokens_were_flattened_at_every_length(first: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    short, longer = (torch.randn(5, length, 4, generator=generator) for length in (3, 7))
    model = Flattened(first).eval()
    graph = WeightGraph(model, short, others=[longer])
    for x in (short, longer):
        measured = measure_ranges(graph, graph.tensors(state_of(model)), x)["layer.weight/input"]
        expected = torch.stack([x.amin((1, 2)).mean(), x.amax((1, 2)).mean()])
        torch.testing.assert_close(measured, expected)


class Deeper(nn.Module):
    """Layers behind layers, a parameter in front of a sum, and tokens of two kinds, one behind the other."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.shift = nn.Parameter(torch.full((6,), 0.5))
        self.grid, self.of_grid = nn.Parameter(torch.linspace(-1, 1, 10).view(5, 2)), nn.Linear(2, 6)

    def forward(self, x: Tensor) -> Tensor:
        n, length, width = x.shape
        rows = self.shift + torch.relu(self.first(x.reshape(-1, width)))
        rows = torch.cat([self.second(rows), rows], 1)[:, :6] + self.of_grid(self.grid).mean(0)
        return self.third(rows).view(n, length, 3).mean(1)


def test_ranges_behind_the_first_layer_are_of_samples_too() -> None:
    torch.manual_seed(0)
    model = Deeper().eval()
    x = torch.randn(6, 7, 4) * torch.rand(6, 7, 1)
    seen: dict[str, Tensor] = {}
    hooks = [
        layer.register_forward_pre_hook(lambda module, given, name=name: seen.update({name: given[0].detach()}))
        for name, layer in model.named_children()
    ]
    model(x)
    for hook in hooks:
        hook.remove()
    graph = WeightGraph(model, x, others=[x[:, :3]])
    measured = measure_ranges(graph, graph.tensors(state_of(model)), x)
    for name in ("first", "second", "third"):
        of_samples = seen[name].view(6, -1)
        expected = torch.stack([of_samples.amin(1).mean(), of_samples.amax(1).mean()])
        torch.testing.assert_close(measured[f"{name}.weight/input"], expected, msg=name)
    expected = torch.tensor([-1.0, 1.0])
    torch.testing.assert_close(measured["of_grid.weight/input"], expected, msg="without samples: its extremes")


class OfOneLength(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.reshape(-1, 5, 4)).mean(1)  # type: ignore[no-any-return]


def test_a_model_that_holds_a_length_is_refused_where_lengths_change() -> None:
    with pytest.raises(
        GraphError, match=r"OfOneLength.forward must compute with the sizes .* cannot take \[n, 10, 4\]"
    ):
        WeightGraph(OfOneLength().eval(), torch.ones(2, 5, 4), others=[torch.ones(2, 10, 4)])


def test_inputs_of_one_size_are_held_to_it() -> None:
    graph = WeightGraph(nn.Linear(4, 3).eval(), torch.ones(2, 5, 4), others=[torch.ones(2, 6, 4)])
    assert graph.canonical(torch.ones(3, 9, 4)).shape == (3, 9, 4)
    with pytest.raises(ValueError, match="must look as those"):
        graph.canonical(torch.ones(3, 9, 5))
