"""Outputs that hold more than a score reads: what is kept of them, and that models are asked for no caches."""

import pickle
from collections import OrderedDict
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from infer2train.oracle.engines import build_engine
from infer2train.oracle.quantization.graph import WeightGraph
from infer2train.oracle.samples import GivenSamples
from infer2train.oracle.snapshot import snapshot

IDS = torch.randint(0, 20, (12, 6), generator=torch.Generator().manual_seed(0))


class Cache:
    """As transformers' DynamicCache: tensors in an object that torch knows nothing of."""

    def __init__(self, keys: Tensor) -> None:
        self.keys = keys


class Output(OrderedDict[str, Any]):
    """As transformers' ModelOutput: a mapping of a type of its own, whose entries are attributes too."""

    @property
    def logits(self) -> Tensor:
        return self["logits"]  # type: ignore[no-any-return]


class Pair(NamedTuple):
    logits: Tensor
    cache: Any


class LanguageModel(nn.Module):
    def __init__(self, make: Any) -> None:
        super().__init__()
        self.embedding, self.head, self._make = nn.Embedding(20, 8), nn.Linear(8, 20), make

    def forward(self, input_ids: Tensor) -> Any:
        x = self.embedding(input_ids)
        return self._make(self.head(x), Cache(x))


KINDS: dict[str, Any] = {
    "a mapping of its own": lambda logits, cache: Output(logits=logits, past_key_values=cache, name="lm"),
    "a dictionary": lambda logits, cache: {"logits": logits, "past": (cache, [cache])},
    "a tuple": lambda logits, cache: (logits, cache, logits.mean()),
    "a named tuple": Pair,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("spec", ["simulated:b8", "openvino:int8", "onnxruntime:int8"])
def test_what_a_score_can_read_is_kept_in_its_place_and_caches_are_not(spec: str, kind: str) -> None:
    if spec != "simulated:b8":
        pytest.importorskip(spec.partition(":")[0])
    torch.manual_seed(0)
    model = LanguageModel(KINDS[kind])
    engine = build_engine(spec, model, samples=GivenSamples({"input_ids": IDS}), rows=6)
    engine.refresh(engine.calibrated(snapshot(model, 0)))
    with torch.no_grad():
        wanted = model(IDS)
    for outputs in (engine.outputs({"input_ids": IDS}), engine.reference({"input_ids": IDS})):
        assert type(outputs) is type(wanted)
        entries, others = ((x.values() if isinstance(x, dict) else x) for x in (outputs, wanted))
        for got, original in zip(entries, others, strict=True):
            if isinstance(original, Tensor):
                assert got.shape == original.shape
                assert float((got - original).square().mean().sqrt()) < 0.1
            else:
                assert got == ("lm" if original == "lm" else None) or got == (None, [None])


class Caching(nn.Module):
    """Whose cache costs an operation that no engine has."""

    def __init__(self, default: bool | None) -> None:
        super().__init__()
        self.linear, self.config = nn.Linear(4, 3), SimpleNamespace(use_cache=True)
        self.default = default

    def forward(self, x: Tensor, use_cache: bool | None = None) -> dict[str, Any]:
        use_cache = self.config.use_cache if use_cache is None else use_cache
        y = self.linear(x)
        return {"logits": y, "cache": torch.digamma(y) if use_cache else None}


class Around(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Caching(None)

    def forward(self, x: Tensor) -> dict[str, Any]:
        return self.inner(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize("model", [Caching(None), Around()])
def test_models_are_asked_for_no_cache_and_asked_as_before_elsewhere(model: nn.Module) -> None:
    x = torch.randn(5, 4)
    graph = WeightGraph(model.eval(), x)
    outputs = graph.run(graph.tensors(model.state_dict()), x)
    assert outputs["cache"] is None
    again = pickle.loads(pickle.dumps(graph))
    assert torch.equal(again.run(again.tensors(model.state_dict()), x)["logits"], outputs["logits"])
    assert isinstance(model(x)["cache"], Tensor)


@pytest.mark.parametrize(
    "kind",
    [
        "GPT2LMHeadModel",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("BertForSequenceClassification", "LlamaForCausalLM")),
    ],
)
@pytest.mark.parametrize("spec", ["simulated:b8", "openvino:int8", "onnxruntime:int8"])
def test_language_models_of_transformers(spec: str, kind: str) -> None:
    transformers = pytest.importorskip("transformers")
    if spec != "simulated:b8":
        pytest.importorskip(spec.partition(":")[0])
    torch.manual_seed(0)
    build = getattr(transformers, kind)
    sizes = {"vocab_size": 20, "num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 32}
    model = build(build.config_class(**sizes, intermediate_size=64, max_position_embeddings=16)).eval()
    inputs = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
    engine = build_engine(spec, model, samples=GivenSamples(inputs))
    engine.refresh(engine.calibrated(snapshot(model, 0)))
    with torch.no_grad():
        wanted = model(**inputs).logits
    outputs = engine.outputs(inputs)
    assert outputs.past_key_values is None if "past_key_values" in outputs else True
    assert float((outputs.logits - wanted).square().mean().sqrt()) < 0.2 * float(wanted.std())
    layers = [name for name, module in model.named_modules() if type(module).__name__ in ("Linear", "Conv1D")]
    assert set(layers) <= engine.precisions().keys()
    assert {engine.precisions()[name] for name in layers} <= {"int8", "b8"}
