"""Int8 engines on texts of 8 to 128 tokens, padded batch by batch, against one fixed length.

A tiny BERT from a configuration (needs `transformers`), weights as initialised, chunks of 32 candidates whose lengths
are uniform in 8 … 128. One engine holds one length, 128, and is given every chunk padded to it; one has its length
free, and is given

- `padded`: chunks as a collator that pads to the longest makes them of random candidates, nearly all of about 125;
- `grouped`: chunks of candidates sorted by length, 8 … 128, as `group_by_length` makes them;
- `by 8`: the same, lengths rounded up to multiples of 8, as `pad_to_multiple_of=8` makes them.

Rates are counted in equal work, multiply-adds of the padded chunk in a second: t tokens cost t times the linear layers
and t² times the attention. The ratio is that rate divided by the fixed engine's; bound 0.8. `new` has a refresh before
each pass, counted with it: engines make their kernels for a length when they first meet it, once a version. All take
turns, and each one's fastest round counts; CPU time is counted.

    OMP_NUM_THREADS=1 taskset -c 0 python benchmarks/text_engine.py
    OMP_NUM_THREADS=1 taskset -c 0 python benchmarks/text_engine.py --engine onnxruntime:int8
"""

import argparse
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BertConfig, BertForSequenceClassification

from infer2train.observe.runlog import cpu_name
from infer2train.oracle.engines import build_engine
from infer2train.oracle.fidelity import fidelity
from infer2train.oracle.lowered_engine import LoweredEngine
from infer2train.oracle.quantization.program import Simulation, deviation, specify
from infer2train.oracle.rounds import Contestant, clocks_of, take_turns
from infer2train.oracle.samples import Samples
from infer2train.oracle.snapshot import snapshot

SHORTEST, LONGEST, WORDS, CLASSES, ROWS = 8, 128, 5000, 4, 32

Texts = dict[str, Tensor]


def padded(texts: list[Tensor], longest: int | None = None, multiple: int = 1) -> Texts:
    """A batch of texts, padded to their longest, to the next multiple, or further."""
    lengths = torch.tensor([len(text) for text in texts])
    mask = torch.arange(longest or -(-int(lengths.max()) // multiple) * multiple) < lengths[:, None]
    ids = torch.zeros(mask.shape, dtype=torch.int64).masked_scatter(mask, torch.cat(texts))
    return {"input_ids": ids, "attention_mask": mask.long()}


def candidates(count: int, seed: int) -> list[Tensor]:
    """Random words."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(SHORTEST, LONGEST + 1, (count,), generator=generator).tolist()
    return [torch.randint(1, WORDS, (length,), generator=generator) for length in lengths]


class Given(Samples):
    """Random texts, all padded to one length if there is one."""

    def __init__(self, longest: int | None) -> None:
        self._longest = longest

    def calibration(self, version: int, rows: int) -> Texts:
        return padded(candidates(rows, version), self._longest)

    def probe(self, rows: int) -> tuple[Texts, Tensor]:
        return self.calibration(10**6, rows), torch.zeros(rows, dtype=torch.int64)


def multiply_adds(chunk: Texts, config: Any) -> float:
    """Of a chunk as it is padded."""
    rows, length = chunk["input_ids"].shape
    d, hidden = config.hidden_size, config.intermediate_size
    return float(rows * config.num_hidden_layers * (length * (4 * d * d + 2 * d * hidden) + 2 * length * length * d))


def passes(engine: LoweredEngine, model: nn.Module, chunks: list[Texts], renewed: bool) -> Callable[[], object]:
    """One call of the engine for each chunk; by a program of its own if it is to be renewed."""

    def call() -> None:
        for chunk in chunks:
            engine.outputs(chunk)

    def turn() -> None:
        refresh(engine, model)
        call()

    return turn if renewed else call


def refresh(engine: LoweredEngine, model: nn.Module) -> None:
    """The next version, of the same weights."""
    engine.refresh(engine.calibrated(snapshot(model, (engine.version or 0) + 1)))


def agreement(engine: LoweredEngine, model: nn.Module) -> tuple[float, float]:
    """Greatest deviation from the simulation (steps) over eight lengths; rank correlation of losses with float32."""
    record = engine.calibrated(snapshot(model, (engine.version or 0) + 1))
    engine.refresh(record)
    means = Simulation(engine.graph, specify(engine.graph, engine.weights, record.ranges), engine.clipped)
    steps, scores = 0.0, []
    for length in range(16, LONGEST + 1, 16):
        chunk = padded([text[:length] for text in candidates(ROWS, length)])
        got = engine.outputs(chunk)["logits"].clone()
        steps = max(steps, deviation([got], means(chunk)))
        targets = torch.arange(ROWS) % CLASSES
        pair = [F.cross_entropy(z, targets, reduction="none") for z in (got, engine.reference(chunk)["logits"])]
        scores.append(torch.stack(pair))
    oracle, fresh = torch.stack(scores, 1)
    return steps, fidelity(oracle, fresh).rank_correlation


def main() -> None:
    """Measure, and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", default="openvino:int8")
    parser.add_argument("--chunks", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=6)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    warnings.simplefilter("ignore")
    config = BertConfig(
        vocab_size=WORDS,
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=512,
        max_position_embeddings=LONGEST,
        num_labels=CLASSES,
    )
    model = BertForSequenceClassification(config).eval()
    engines = {}
    for name, longest in (("fixed", LONGEST), ("free", None)):
        engine = build_engine(options.engine, model, samples=Given(longest), rows=ROWS)
        assert isinstance(engine, LoweredEngine)
        refresh(engine, model)
        engines[name] = engine
    texts = candidates(ROWS * options.chunks, 1)
    lots = [texts[start : start + ROWS] for start in range(0, len(texts), ROWS)]
    ordered = sorted(texts, key=len)
    sorted_lots = [ordered[start : start + ROWS] for start in range(0, len(texts), ROWS)]
    cases = {
        "fixed": ("fixed", [padded(lot, LONGEST) for lot in lots], False),
        "padded": ("free", [padded(lot) for lot in lots], False),
        "grouped": ("free", [padded(lot) for lot in sorted_lots], False),
        "padded by 8": ("free", [padded(lot, multiple=8) for lot in lots], False),
        "grouped by 8": ("free", [padded(lot, multiple=8) for lot in sorted_lots], False),
        "fixed, new": ("fixed", [padded(lot, LONGEST) for lot in lots], True),
        "padded, new": ("free", [padded(lot) for lot in lots], True),
        "grouped by 8, new": ("free", [padded(lot, multiple=8) for lot in sorted_lots], True),
    }
    contestants = []
    for name, (which, chunks, renewed) in cases.items():
        call = passes(engines[which], model, chunks, renewed)
        work = sum(multiply_adds(chunk, config) for chunk in chunks)
        contestants.append(Contestant(name=name, call=call, work=work, seconds=0.0, clocks=clocks_of(1)))
    for one in contestants:
        one.call()  # kernels of every length
    take_turns(contestants, rounds=options.rounds)
    print(f"{cpu_name()}; torch {torch.__version__}; {options.engine}; {options.chunks} chunks of {ROWS}")
    base = {renewed: next(one for one in contestants if one.name == f"fixed{', new' * renewed}") for renewed in (0, 1)}
    for one in contestants:
        ratio = one.rate / base[", new" in one.name].rate
        print(
            f"{one.name:18} {ROWS * options.chunks / one.fastest_seconds:7.0f} texts/s "
            f"{one.rate / 1e9:6.1f} G multiply-adds/s  ratio {ratio:.2f}"
        )
    steps, correlation = agreement(engines["free"], model)
    print(f"deviation from the simulation {steps:.2f} steps; rank correlation of losses with fp32 {correlation:.3f}")


if __name__ == "__main__":
    main()
