"""How well suspects are ranked: labels that we made wrong, found again by a run's own record and by cleanlab.

    infer2train train --name flips --method nm-augment-soft --label-noise 0.05 --regime … --data …
    infer2train train --name half-a --holdout N/2 --label-noise 0.05 …                  # the same, a baseline
    infer2train train --name half-b --holdout N/2 --train-on held --label-noise 0.05 …
    python benchmarks/suspects.py runs/flips runs/half-a runs/half-b

Average precision of three rankings of the training images: our suspects, from what the oracle said on the way;
cleanlab's label quality (self-confidence) by the probabilities of the same network at its end, for images that it was
trained on; the same by the two networks of halves, each for the half that it has not seen (out of sample). And, at as
many images as `cleanlab.filter.find_label_issues` names, precision and recall of each. Needs `pip install cleanlab`.
"""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from infer2train.batches import logits_of
from infer2train.checkpoint.checkpoint import load_checkpoint
from infer2train.draws.addresses import Addresses
from infer2train.observe.picks import read_picks
from infer2train.observe.runlog import read_config
from infer2train.sources.views.identity import Identity
from infer2train.studies.inspection.suspects import average_precision, suspects
from infer2train.training.config import RunConfig, from_plain, unmined
from infer2train.training.folder import CHECKPOINTS
from infer2train.training.setup import load_splits, prepare, views_of

BATCH = 256


def run_of(folder: Path) -> RunConfig:
    """Its configuration, without an oracle."""
    return replace(unmined(from_plain(read_config(folder))), device="cpu", compile="none")


def is_wrong(config: RunConfig) -> np.ndarray:
    """Which training labels of a run were made wrong; found by the images, since halves are split by their labels."""
    _, noisy, _ = load_splits(config, progress=False)
    _, right, _ = load_splits(replace(config, label_noise=0.0, holdout=0, train_on="rest"), progress=False)
    label_of = {image.tobytes(): int(label) for image, label in zip(right.images, right.targets, strict=True)}
    return np.array(
        [label_of[image.tobytes()] != label for image, label in zip(noisy.images, noisy.targets, strict=True)]
    )


def probabilities(folder: Path, config: RunConfig) -> tuple[np.ndarray, np.ndarray]:
    """(probabilities [n k], labels [n]) of the network of one run for the training images of another."""
    run = prepare(run_of(folder), progress=False)
    run.loader.close()
    checkpoint = load_checkpoint(folder / CHECKPOINTS)
    assert checkpoint is not None
    run.model.load_state_dict(checkpoint.state["model"])
    run.model.eval()
    _, split, _ = load_splits(config, progress=False)
    views = views_of(split, Identity(), torch.device("cpu"))
    found = []
    with torch.inference_mode():
        for start in range(0, len(views), BATCH):
            ids = np.arange(start, min(start + BATCH, len(views)))
            pixels, _ = views.batch(Addresses(ids, np.zeros_like(ids)))
            found.append(logits_of(run.model(pixels)).float().softmax(1))
    return torch.cat(found).numpy().astype(np.float64), np.asarray(split.targets)


def report(name: str, order: np.ndarray, wrong: np.ndarray, count: int) -> None:
    """Average precision of a ranking, and precision and recall of its first `count`."""
    ranked = wrong[order]
    hits = int(ranked[:count].sum())
    print(
        f"{name:58s} average precision {average_precision(ranked):.3f}; of the first {count}: precision "
        f"{hits / count:.3f}, recall {hits / wrong.sum():.3f}"
    )


def main(main_run: str, half_a: str, half_b: str) -> None:
    """Print one line for each ranking."""
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores

    folder, halves = Path(main_run), (Path(half_a), Path(half_b))
    config = run_of(folder)
    wrong = is_wrong(config)
    mined = from_plain(read_config(folder))
    is_of_views = mined.method.startswith("nm-augment")
    ours = suspects(read_picks(folder), is_of_views).ids
    ours = np.concatenate([ours, np.setdiff1d(np.arange(len(wrong)), ours)])
    inside, labels = probabilities(folder, config)
    parts = [probabilities(one, run_of(other)) for one, other in (halves, halves[::-1])]
    outside, outside_labels = (np.concatenate(part) for part in zip(*parts, strict=True))
    outside_wrong = np.concatenate([is_wrong(run_of(half)) for half in halves[::-1]])
    count = len(find_label_issues(outside_labels, outside, return_indices_ranked_by="self_confidence"))
    print(f"{mined.model}, {len(wrong)} images, {int(wrong.sum())} labels made wrong, {mined.epochs} epochs")
    report(f"suspects ({mined.method}, the oracle's losses)", ours, wrong, count)
    quality = get_label_quality_scores(labels, inside)
    report("cleanlab, the same network, images it was trained on", np.argsort(quality, kind="stable"), wrong, count)
    quality = get_label_quality_scores(outside_labels, outside)
    order = np.argsort(quality, kind="stable")
    report("cleanlab, networks of halves, out of sample", order, outside_wrong, count)


if __name__ == "__main__":
    main(*sys.argv[1:])
