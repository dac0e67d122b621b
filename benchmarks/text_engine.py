"""Int8 engines on texts of 8 to 128 tokens, padded batch by batch, against one fixed length.

A tiny BERT from a configuration (needs `transformers`), weights as initialised, chunks of 32 candidates whose lengths
are uniform in 8 … 128. One engine holds one length, 128, and is given every chunk padded to it; one has its length
free, and is given

- `padded`: chunks as a collator that pads to the longest makes them of random candidates, nearly all of about 125;
- `grouped`: chunks of candidates sorted by length, 8 … 128, as `group_by_length` makes them;
- `by 8`: the same, lengths rounded up to multiples of 8, as `pad_to_multiple_of=8` makes them.

Each chunk takes its turn, and its fastest round counts; CPU time is counted. `texts` is the texts in a second, divided
by those of the fixed engine; bound 0.8. `work` is the same in multiply-adds of the padded chunks: t tokens cost t times
the linear layers and t² times the attention.

An engine makes its kernels for a length when it first meets it, once a version; `new` says what that costs. Each pass
there has a refresh before it, which is far more often than anybody would, and is counted with it.

    OMP_NUM_THREADS=1 taskset -c 0 python benchmarks/text_engine.py
    OMP_NUM_THREADS=1 taskset -c 0 python benchmarks/text_engine.py --engine onnxruntime:int8
"""

import argparse
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
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
from infer2train.oracle.rounds import LEAST_ROUNDS, Contestant, clocks_of, take_turns
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


@dataclass
class Case:
    """An engine and the chunks that it is given."""

    engine: LoweredEngine
    chunks: list[Texts]

    def chunk_by_chunk(self, work: Callable[[Texts], float]) -> list[Contestant]:
        """A contestant for each chunk, whose kernels are there."""
        once = {"seconds": 0.0, "clocks": clocks_of(1)}
        calls = [partial(self.engine.outputs, chunk) for chunk in self.chunks]
        for call in calls:
            call()
        return [
            Contestant(name="chunk", call=call, work=work(chunk), **once)
            for call, chunk in zip(calls, self.chunks, strict=True)
        ]

    def renewed(self, model: nn.Module, work: Callable[[Texts], float]) -> list[Contestant]:
        """One contestant, whose call refreshes the engine first."""

        def call() -> None:
            refresh(self.engine, model)
            for chunk in self.chunks:
                self.engine.outputs(chunk)

        total = sum(work(chunk) for chunk in self.chunks)
        return [Contestant(name="pass", call=call, work=total, seconds=0.0, clocks=clocks_of(1))]


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


def bert() -> nn.Module:
    """Tiny, as initialised."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=WORDS,
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=512,
        max_position_embeddings=LONGEST,
        num_labels=CLASSES,
    )
    return BertForSequenceClassification(config).eval()


def built(spec: str, model: nn.Module, longest: int | None) -> LoweredEngine:
    """An engine for one length, or for all."""
    engine = build_engine(spec, model, samples=Given(longest), rows=ROWS)
    assert isinstance(engine, LoweredEngine)
    refresh(engine, model)
    return engine


def cases_of(fixed: LoweredEngine, free: LoweredEngine, count: int) -> dict[str, Case]:
    """The same texts, in other chunks."""
    texts = candidates(ROWS * count, 1)
    as_they_come, sorted_ = (
        [some[start : start + ROWS] for start in range(0, len(some), ROWS)] for some in (texts, sorted(texts, key=len))
    )
    return {
        "fixed": Case(fixed, [padded(lot, LONGEST) for lot in as_they_come]),
        "padded": Case(free, [padded(lot) for lot in as_they_come]),
        "grouped": Case(free, [padded(lot) for lot in sorted_]),
        "padded by 8": Case(free, [padded(lot, multiple=8) for lot in as_they_come]),
        "grouped by 8": Case(free, [padded(lot, multiple=8) for lot in sorted_]),
    }


def report(times: dict[str, list[Contestant]], texts: int) -> None:
    """Print each case relative to the first."""
    seconds = {name: sum(one.fastest_seconds for one in ones) for name, ones in times.items()}
    rates = {name: sum(one.work for one in ones) / seconds[name] for name, ones in times.items()}
    base = next(iter(times))
    for name in times:
        print(
            f"{name:18} {texts / seconds[name]:6.0f} texts/s ({seconds[base] / seconds[name]:.2f})  "
            f"{rates[name] / 1e9:6.1f} G multiply-adds/s ({rates[name] / rates[base]:.2f})"
        )


def main() -> None:
    """Measure, and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", default="openvino:int8")
    parser.add_argument("--chunks", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=8)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    model = bert()
    work = partial(multiply_adds, config=model.config)
    fixed, free = (built(options.engine, model, longest) for longest in (LONGEST, None))
    cases = cases_of(fixed, free, options.chunks)
    warm = {name: case.chunk_by_chunk(work) for name, case in cases.items()}
    take_turns([one for ones in warm.values() for one in ones], rounds=options.rounds)
    print(f"{cpu_name()}; torch {torch.__version__}; {options.engine}; {options.chunks} chunks of {ROWS}")
    report(warm, ROWS * options.chunks)
    new = {f"{name}, new": case.renewed(model, work) for name, case in cases.items()}
    take_turns([one for ones in new.values() for one in ones], rounds=LEAST_ROUNDS)
    report(new, ROWS * options.chunks)
    steps, correlation = agreement(free, model)
    print(f"deviation from the simulation {steps:.2f} steps; rank correlation of losses with fp32 {correlation:.3f}")


if __name__ == "__main__":
    main()
