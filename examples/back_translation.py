"""Back-translation whose sources an oracle makes, while the forward model trains.

    python examples/back_translation.py                                 # seconds; BLEU near 0
    python examples/back_translation.py --arms none inline hybrid --seeds 0 1 2 --stage 50 --reverse-steps 500 \\
        --steps 2000 --held-out 300 --folder runs/translation
    ... --steps 99999 --seconds 600 --folder runs/translation-timed

English to German (Sennrich et al. 2016): a reverse model, in inference mode, draws English sources for German sentences
that nobody has translated, and the forward model trains on these pairs beside the real ones. The reverse model trains
itself in stages of its own, and `infer2train.generate()` takes its weights after each.

The text is real but narrow: dates, times, amounts of money and measures as the translators of the Unicode CLDR have
written them in both languages, which the package `babel` ships. A few hundred pairs are known, some thousand German
sentences besides. Arms: `none` trains on real pairs alone, `inline` makes the sources in the trainer's own time,
`hybrid` on other cores. At equal steps `inline` and `hybrid` are the same run, bit for bit; at equal `--seconds` they
are not. BLEU is sacrebleu's, of greedy translations of pairs that were held out.
"""

import argparse
import datetime
import json
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import sacrebleu
import torch
from babel import Locale, dates, numbers, units
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import infer2train

ARMS = ("none", "inline", "hybrid")
PAD, BEGIN, END, UNKNOWN = range(4)
LENGTH, BATCH = 24, 32
PIECES = re.compile(r" ?[^\W\d]+| ?\d|.", re.DOTALL)
UNITS = ("length-kilometer", "length-meter", "mass-kilogram", "volume-liter", "duration-hour", "duration-minute")
UNITS += ("speed-kilometer-per-hour", "temperature-celsius", "area-square-meter", "digital-megabyte", "length-mile")


# The text


def sentence(choose: random.Random) -> tuple[str, str]:
    """One thing, as CLDR says it in English and in German."""
    amount = choose.choice([choose.randrange(1, 20), choose.randrange(20, 5000), choose.randrange(1, 1000) / 10])
    when = datetime.datetime(1950, 1, 1) + datetime.timedelta(minutes=choose.randrange(60 * 24 * 365 * 100))
    currency = choose.choice(sorted(Locale("en").currencies)[:200])
    unit, style = choose.choice(UNITS), choose.choice(["full", "long", "medium"])
    ways: list[Callable[[str], str]] = [
        lambda locale: dates.format_date(when, style, locale=locale),
        lambda locale: dates.format_datetime(when, "long" if style == "full" else style, locale=locale),
        lambda locale: numbers.format_currency(amount, currency, locale=locale, format_type="name"),
        lambda locale: units.format_unit(amount, unit, locale=locale),
    ]
    way = choose.choice(ways)
    english, german = (way(locale).replace("\u202f", " ").replace("\xa0", " ") for locale in ("en", "de"))
    return english, german


def sentences(count: int) -> list[tuple[str, str]]:
    """Different ones, short enough."""
    choose, found = random.Random(0), dict[str, str]()
    while len(found) < count:
        english, german = sentence(choose)
        if max(len(PIECES.findall(text)) for text in (english, german)) <= LENGTH - 2:
            found[german] = english
    return [(english, german) for german, english in found.items()]


class Vocabulary:
    """Words, digits and signs that stand in given texts."""

    def __init__(self, texts: list[str]) -> None:
        self._pieces = ["", "", "", "?", *sorted({piece for text in texts for piece in PIECES.findall(text)})]
        self._numbers = {piece: number for number, piece in enumerate(self._pieces) if piece}

    def __len__(self) -> int:
        return len(self._pieces)

    def tokens(self, texts: list[str]) -> Tensor:
        """One row a text: begin, its pieces, end, and nothing behind."""
        rows = [[BEGIN, *(self._numbers.get(piece, UNKNOWN) for piece in PIECES.findall(text)), END] for text in texts]
        return torch.tensor([row + [PAD] * (LENGTH - len(row)) for row in rows])

    def text(self, tokens: Tensor) -> str:
        """What stands before the end."""
        row = tokens.tolist()
        return "".join(self._pieces[token] for token in row[: row.index(END) if END in row else None])


# The models


class Translator(nn.Module):
    """Logits of each next target token, from a source and the target before."""

    def __init__(self, source: int, target: int, width: int) -> None:
        super().__init__()
        self.source, self.target = nn.Embedding(source, width), nn.Embedding(target, width)
        self.place = nn.Parameter(0.02 * torch.randn(LENGTH, width))
        self.transformer = nn.Transformer(width, 4, 2, 2, 4 * width, 0.1, batch_first=True, norm_first=True)
        self.transformer.encoder.enable_nested_tensor = False  # it would cut outputs to the longest of a batch
        self.register_buffer("later", torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(1), persistent=False)
        self.head = nn.Linear(width, target)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        length, unread = target.shape[1], source == PAD
        found = self.transformer(
            self.source(source) + self.place[: source.shape[1]],
            self.target(target) + self.place[:length],
            tgt_mask=self.later[:length, :length],
            src_key_padding_mask=unread,
            memory_key_padding_mask=unread,
        )
        return self.head(found)


def loss_of(model: nn.Module, source: Tensor, target: Tensor) -> Tensor:
    """Mean cross entropy of the target's tokens."""
    logits = model(source, target[:, :-1])
    return F.cross_entropy(logits.flatten(0, 1), target[:, 1:].flatten(), ignore_index=PAD)


def written(model: Any, source: Tensor, choose: Callable[[Tensor, int], Tensor]) -> Tensor:
    """Targets, token by token, until all have ended."""
    target = torch.full((len(source), LENGTH), PAD)
    target[:, 0] = BEGIN
    is_open = torch.ones(len(source), dtype=torch.bool)
    for place in range(1, LENGTH):
        token = choose(model(source, target[:, :place])[:, -1], place)
        target[:, place] = torch.where(is_open, token, PAD)
        is_open &= token != END
        if not is_open.any():
            break
    return target


def back_translated(model: Any, inputs: tuple[Tensor, Tensor], seeds: Any) -> Tensor:
    """English sources of German sentences, drawn by the numbers that each one's seed gives."""
    german, _ = inputs
    chances = torch.stack([torch.rand(LENGTH, generator=torch.Generator().manual_seed(int(seed))) for seed in seeds])

    def drawn(logits: Tensor, place: int) -> Tensor:
        reached = logits.double().softmax(1).cumsum(1) < chances[:, place : place + 1]
        return reached.sum(1).clamp(max=logits.shape[1] - 1)

    return written(model, german, drawn)


def of_german(batch: Any) -> tuple[Any, Any]:
    """What the reverse model takes: (German, an English beginning); handed out beside what it makes: the German."""
    return batch, batch[0]


def endless(made: infer2train.MadeLoader) -> Iterator[tuple[Tensor, Tensor]]:
    """Its batches, epoch after epoch."""
    while True:
        yield from made


def bleu(model: nn.Module, english: Tensor, german: list[str], words: Vocabulary) -> float:
    """Of greedy translations."""
    model.eval()
    with torch.no_grad():
        found = torch.cat([written(model, part, lambda logits, _: logits.argmax(1)) for part in english.split(128)])
    model.train()
    return sacrebleu.corpus_bleu([words.text(row[1:]) for row in found], [german]).score


# The training


def trained(arm: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """One run: its BLEU, steps and seconds, without those of looking."""
    torch.manual_seed(seed)
    text = sentences(options.pairs + options.monolingual + options.held_out)
    known, rest = text[: options.pairs], text[options.pairs : options.pairs + options.monolingual]
    held_out = text[options.pairs + options.monolingual :]
    english, german = Vocabulary([e for e, _ in known]), Vocabulary([g for _, g in known + rest])
    pairs = english.tokens([e for e, _ in known]), german.tokens([g for _, g in known])
    forward = Translator(len(english), len(german), options.width)
    reverse = Translator(len(german), len(english), options.width)
    optimizers = [torch.optim.AdamW(model.parameters(), lr=1e-3) for model in (forward, reverse)]
    made, numbers_drawn = None, np.random.default_rng(seed)

    def step(model: nn.Module, optimizer: torch.optim.Optimizer, *batches: tuple[Tensor, Tensor]) -> None:
        sum(loss_of(model, *batch) for batch in batches).backward()
        optimizer.step()
        optimizer.zero_grad()

    def real() -> tuple[Tensor, Tensor]:
        at = torch.from_numpy(numbers_drawn.integers(len(known), size=BATCH))
        return pairs[0][at], pairs[1][at]

    def look() -> float:
        return bleu(forward, english.tokens([e for e, _ in held_out]), [g for _, g in held_out], german)

    started = perf_counter()
    if arm != "none":
        for _ in range(options.reverse_steps):
            step(reverse, optimizers[1], real()[::-1])
        lone = german.tokens([g for _, g in rest])
        beginnings = pairs[0][torch.arange(len(lone)) % len(known)]  # what calibration sees of English
        made = infer2train.generate(
            DataLoader(TensorDataset(lone, beginnings), batch_size=BATCH, shuffle=True, drop_last=True),
            reverse,
            optimizers,  # a step is one of the forward model, and the stage of the reverse one behind it, if there is
            sample=back_translated,
            split=of_german,
            oracle=options.oracle,
            update_every=options.stage,
            delay_steps=options.stage,
            pool="process" if arm == "hybrid" else "inline",
            seed=seed,
        )
    batches = None if made is None else endless(made)
    done, looked, curve = 0, 0.0, dict[str, float]()
    while done < options.steps and (options.seconds is None or perf_counter() - started - looked < options.seconds):
        step(forward, optimizers[0], real(), *([next(batches)] if batches else []))
        done += 1
        if made is not None and done % options.stage == 0:
            for _ in range(options.stage // 2):
                step(reverse, optimizers[1], real()[::-1])
        if options.look_every and done % options.look_every == 0:
            looking = perf_counter()
            curve[str(done)] = look()
            looked += perf_counter() - looking
    seconds = perf_counter() - started - looked
    if made is not None:
        made.close()
    return {"arm": arm, "seed": seed, "bleu": look(), "steps": done, "seconds": seconds, "curve": curve}


def main() -> None:
    """Train the arms and print what became of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", nargs="+", default=["none", "inline"], choices=ARMS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--steps", type=int, default=6, help="of the forward model, at most")
    parser.add_argument("--seconds", type=float, help="of a training, at most")
    parser.add_argument("--stage", type=int, default=4, help="steps of the forward model between two of the reverse")
    parser.add_argument("--reverse-steps", type=int, default=4, help="of the reverse model before all")
    parser.add_argument("--look-every", type=int, help="steps between BLEU scores of the curve that --folder keeps")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--oracle", default="torch:fp32")
    parser.add_argument("--pairs", type=int, default=400)
    parser.add_argument("--monolingual", type=int, default=2000)
    parser.add_argument("--held-out", type=int, default=100)
    parser.add_argument("--folder", type=Path, help="where results are kept; a run that is there is not made again")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for seed in options.seeds:
        for arm in options.arms:
            kept = options.folder / f"{arm}-{seed}.json" if options.folder else None
            told = json.loads(kept.read_text()) if kept and kept.exists() else trained(arm, seed, options)
            if kept:
                kept.parent.mkdir(parents=True, exist_ok=True)
                kept.write_text(json.dumps(told))
            print(f"{arm} seed {seed}: BLEU {told['bleu']:.2f} after {told['steps']} steps, {told['seconds']:.1f} s")


if __name__ == "__main__":
    main()
