"""The demo's arms are pairs of equal steps, but for the one that is given more; the real runs are `make demo`'s."""

from pathlib import Path

import pytest
from rich.console import Console

pytest.importorskip("jsonargparse", reason="the demo names a command line")
from infer2train.cli.arguments import parse
from infer2train.draws.methods.table import choices_of
from infer2train.observe.runlog import write_config
from infer2train.settings import as_plain
from infer2train.studies.demo import ARMS, LONGER, NEXT, SEEDS, _begun_with, _oracle, planned
from infer2train.training.setup import load_splits


def test_arms_are_paired_and_of_equal_steps(tmp_path: Path) -> None:
    runs = planned("torch:fp32", tmp_path)
    assert len(runs) == len(ARMS) * SEEDS
    lengths = {arm: config.epochs / runs["baseline", seed].epochs for (arm, seed), config in runs.items()}
    assert lengths.pop("baseline-short") < 1
    assert lengths.pop(f"baseline-{LONGER}x") == LONGER
    assert set(lengths.values()) == {1}
    for (_, seed), config in runs.items():
        assert config.seed == seed
        assert (config.data, config.label_noise, config.holdout) == ("digits-half", 0.3, 0), "all have all images"


def test_the_longer_baseline_has_more_steps_than_all_that_trusted_random_trains(tmp_path: Path) -> None:
    runs = planned("torch:fp32", tmp_path)
    _, images, _ = load_splits(runs["baseline", 0], progress=False)

    def steps(num_images: int, epochs: int) -> int:
        return num_images // runs["baseline", 0].batch_size * epochs

    trusted, longer = runs["trusted-random", 0], runs[f"baseline-{LONGER}x", 0]
    halves = 2 * steps(len(images) // 2, trusted.irreducible_epochs)
    assert choices_of(trusted).needs_irreducible
    assert steps(len(images), trusted.epochs) + halves < steps(len(images), longer.epochs)


def test_a_demo_goes_on_with_the_oracle_that_it_began_with(tmp_path: Path) -> None:
    assert _begun_with(tmp_path) is None
    for (arm, seed), run in planned("torch:fp32", tmp_path / "cache").items():
        write_config(tmp_path / f"{arm}-seed{seed}", as_plain(run))
    assert _begun_with(tmp_path) == "torch:fp32"


def test_it_shows_what_it_compares_with_and_a_command_that_there_is() -> None:
    assert _oracle(Console(quiet=True)).partition(":")[0] in ("openvino", "onnxruntime", "torch")
    verb, options = parse(NEXT.split())
    assert (verb, options["methods"]) == ("compare", ["baseline", "trusted-random"])
