"""Run folders as the trainer leaves them, made in milliseconds: plausible curves, timings, galleries, accidents."""

import json
from pathlib import Path

import numpy as np
import yaml

from infer2train.reporting.gallery import GalleryRow, save_gallery

STEPS_PER_EPOCH, LOG_EVERY, UPDATE_EVERY = 200, 20, 100
FINAL_ERRORS = {"baseline": 0.0693, "nm-augment": 0.0612, "nm-augment-soft": 0.0671, "nm-sample": 0.0741}
START = {
    "kind": "start",
    "time": 1_760_000_000.0,
    "versions": {"infer2train": "0.1.0", "torch": "2.13.0+cpu", "python": "3.11.7"},
    "machine": {"cpu": "AMD EPYC 9R14", "cores": 2, "threads": 1, "device": "cpu"},
}


def config(method: str, seed: int, epochs: int) -> dict:
    return {
        "regime": "cifar10-resnet44",
        "method": method,
        "gamma": 10,
        "oracle": "torch:bf16",
        "seed": seed,
        "data": "cifar10",
        "data_note": "CIFAR-10 (JPEG)",
        "model": "resnet44",
        "epochs": epochs,
        "batch_size": 64,
        "lr": 0.1,
        "lr_drops": [81],
        "update_every": UPDATE_EVERY,
        "delay_steps": 0,
        "limit": None,
        "score": None if method == "baseline" else "loss",
    }


def step_rows(method: str, generator: np.random.Generator, epochs: int) -> list[dict]:
    mined = method != "baseline"
    rows = []
    for step in range(LOG_EVERY, epochs * STEPS_PER_EPOCH + 1, LOG_EVERY):
        loss = (1.6 if mined else 1.2) * np.exp(-3 * step / (epochs * STEPS_PER_EPOCH)) + 0.1 * generator.random()
        rows.append(
            {
                "kind": "step", "step": step, "draw": step - 1, "epoch": (step - 1) // STEPS_PER_EPOCH,
                "loss": float(loss), "lr": 0.1, "steps_per_second": 3.4, "version": step - step % UPDATE_EVERY,
                "lag": float((step - 10) % UPDATE_EVERY) if mined else None,
                "scoring_share": 0.31 if mined else None, "nonfinite_scores": 0, "duplicates": 0, "penalty": None,
            }
        )  # fmt: skip
    return rows


def epoch_rows(method: str, seed: int, generator: np.random.Generator, epochs: int) -> list[dict]:
    mined = method != "baseline"
    shared = 0.002 * np.random.default_rng(seed).standard_normal()  # what the seed gives to every method
    rows = []
    for epoch in range(epochs):
        progress = (epoch + 1) / epochs
        noise = 0.012 * generator.standard_normal() * (progress < 0.9)
        test = FINAL_ERRORS[method] + shared + 0.0006 * generator.standard_normal()
        test += (0.08 + noise) * (progress < 0.9) + 0.5 * np.exp(-9 * progress)
        training = 0.1 * (progress < 0.9) + 0.55 * np.exp(-7 * progress) + 0.005 + 0.12 * mined
        training += 0.3 * FINAL_ERRORS[method] if mined else 0.0
        scoring = 31.0 if mined else 0.0
        seconds = {"total": 62.0 + scoring, "scoring": scoring, "views": 4.0 * mined, "training": 50.0}
        seconds |= {"publishing": 0.3 * mined, "evaluation": 5.0, "checkpoint": 0.4}
        rows.append(
            {
                "kind": "epoch", "epoch": epoch, "step": (epoch + 1) * STEPS_PER_EPOCH, "loss": 0.3,
                "train_error_mined": float(training), "train_error_random": float(training * 0.8),
                "test_loss": 0.4, "test_error": float(test), "test_top5_error": None, "seconds": seconds,
            }
        )  # fmt: skip
    return rows


def gallery_rows(generator: np.random.Generator, count: int, size: int = 32, views: int = 10) -> list[GalleryRow]:
    rows = []
    for number in range(count):
        y, x = np.mgrid[:size, :size] / size
        colour, background = generator.integers(60, 255, 3), generator.integers(0, 120, 3)
        pixels = np.empty((views, size, size, 3), np.uint8)
        for view in range(views):
            centre = 0.5 + 0.25 * generator.standard_normal(2)
            disc = ((y - centre[0]) ** 2 + (x - centre[1]) ** 2 < 0.08)[..., None]
            shade = background * (0.5 + 0.5 * y[..., None])
            pixels[view] = np.where(disc, colour * (0.6 + 0.4 * x[..., None]), shade).clip(0, 255)
        scores = generator.gamma(1.5, 0.8, views).astype(np.float32)
        label = ("ship", "frog", "automobile")[number % 3]
        rows.append(GalleryRow(9 * number, 781 * number, 101 * number, label, pixels, scores, int(scores.argmax())))
    return rows


def write_run(folder: Path, method: str, seed: int, *, epochs: int = 18, done: int | None = None) -> Path:
    """A run of `epochs` epochs of which `done` are done, interrupted and resumed on the way."""
    folder.mkdir(parents=True)
    done = epochs if done is None else done
    generator = np.random.default_rng([seed, sum(method.encode())])
    rows = [START, *step_rows(method, generator, epochs)[: done * STEPS_PER_EPOCH // LOG_EVERY]]
    rows += epoch_rows(method, seed, generator, epochs)[:done]
    if done == epochs:
        rows.append({"kind": "event", "event": "finished", "step": done * STEPS_PER_EPOCH, "message": ""})
    write_rows(folder, rows)
    (folder / "config.yaml").write_text(yaml.safe_dump(config(method, seed, epochs), sort_keys=False))
    if method != "baseline":
        save_gallery(folder, gallery_rows(generator, 6))
    return folder


def write_rows(folder: Path, rows: list[dict], *, tail: str = "") -> None:
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + tail)


def write_comparison(folder: Path, methods: list[str], seeds: list[int], **run) -> Path:
    for method in methods:
        for seed in seeds:
            write_run(folder / f"{method}-seed{seed}", method, seed, **run)
    plan = {"methods": methods, "seeds": seeds, "baseline": "baseline"}
    (folder / "comparison.json").write_text(json.dumps(plan))
    return folder
