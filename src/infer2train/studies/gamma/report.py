"""What `infer2train gamma` found: as an object, as JSON, as a table."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from infer2train.machine.cores import as_text
from infer2train.oracle.measurement import EngineSpeed
from infer2train.oracle.rounds import spread
from infer2train.studies.gamma.busyness import BUSY
from infer2train.studies.gamma.recommendation import UPDATES, Hybrid, Recommendation, gammas
from infer2train.studies.gamma.trainer import StepParts, TrainerSpeed


@dataclass(frozen=True, kw_only=True)
class GammaReport:
    """All that was measured, and what follows."""

    machine: dict[str, Any]
    versions: dict[str, str]
    model: str
    record_bytes: int
    """Of its weights and statistics."""
    data: str
    image_size: int
    batch_size: int
    threads: int
    trained_steps: int
    gamma: int
    train: list[TrainerSpeed]
    parts: StepParts
    engines: list[EngineSpeed]
    failed: dict[str, str]
    """Engines that cannot run the model, and why."""
    views_per_second: float
    rounds: int
    """In which all was timed, in turns; every figure is of its fastest one."""
    is_cpu_time: bool
    """Whether times are of the CPU where that is less than the wall clock's."""
    taken_by_others: float
    """Share of a core that other processes had meanwhile, 0 to 1."""
    recommended: Recommendation
    hybrid: Hybrid | None = None
    """Trainer and oracle side by side, where they were given cores of their own."""

    @property
    def step_seconds(self) -> float:
        """Of the trainer at its best, its views included."""
        return min(speed.step_seconds for speed in self.train) + self.batch_size / self.views_per_second

    @property
    def training_images_per_second(self) -> float:
        """Of the trainer at its best, its views included."""
        return self.batch_size / self.step_seconds

    def end_to_end(self, speed: EngineSpeed) -> dict[int, float]:
        """End-to-end γ of an engine by T."""
        return gammas(
            speed,
            step_seconds=self.step_seconds,
            batch_size=self.batch_size,
            views_per_second=self.views_per_second,
        )

    def as_plain(self) -> dict[str, Any]:
        """JSON types; what scripts read."""
        return {
            "machine": self.machine,
            "versions": self.versions,
            "model": self.model,
            "record_bytes": self.record_bytes,
            "data": self.data,
            "image_size": self.image_size,
            "batch_size": self.batch_size,
            "threads": self.threads,
            "trained_steps": self.trained_steps,
            "rounds": self.rounds,
            "clock": "cpu" if self.is_cpu_time else "wall",
            "taken_by_others": self.taken_by_others,
            "train": [{**vars(speed), "spread": spread(speed.rounds)} for speed in self.train],
            "training_images_per_second": self.training_images_per_second,
            "step_parts_seconds": vars(self.parts),
            "views_per_second": self.views_per_second,
            "engines": [
                {
                    "name": speed.name,
                    "images_per_second": speed.images_per_second,
                    "gamma": speed.images_per_second / self.training_images_per_second,
                    "end_to_end_gamma": {str(t): value for t, value in self.end_to_end(speed).items()},
                    "refresh_seconds": speed.refresh_seconds,
                    "captured_gain": speed.captured_gain,
                    "chunk": speed.chunk,
                    "rounds": speed.rounds,
                    "spread": spread(speed.rounds),
                }
                for speed in self.engines
            ],
            "failed": self.failed,
            "recommended": vars(self.recommended),
            "hybrid": None if self.hybrid is None else {**vars(self.hybrid), "ratio": self.hybrid.ratio},
        }


def print_gamma(report: GammaReport, console: Console) -> None:
    """The table, the verdict and what it means."""
    console.print(_title(report), highlight=False, soft_wrap=True)
    table = Table(box=None, header_style="bold", pad_edge=False)
    ends_at = [f"γ T={t}" for t in UPDATES]
    for heading in ("engine", "images/s", "spread", "γ", *ends_at, "refresh", "gain", "chunk"):
        table.add_column(heading, justify="left" if heading == "engine" else "right", no_wrap=True)
    for speed in report.engines:
        ends = report.end_to_end(speed)
        table.add_row(
            speed.name,
            f"{speed.images_per_second:.0f}",
            f"{spread(speed.rounds):.1f} ×",
            f"{speed.images_per_second / report.training_images_per_second:.1f}",
            *(f"{ends[t]:.1f}" for t in UPDATES),
            f"{speed.refresh_seconds:.3f} s",
            "" if speed.captured_gain is None else f"{speed.captured_gain:.2f}",
            str(speed.chunk),
        )
    console.print(table)
    for line in _remarks(report):
        console.print(line, highlight=False, soft_wrap=True)


def _title(report: GammaReport) -> str:
    trained = f"{report.trained_steps} steps trained"
    return (
        f"{report.model} at {report.image_size} pixels, batch {report.batch_size}, {report.threads} thread(s) of "
        f"{report.machine['cpu']}; {report.data}, {trained}"
    )


def _remarks(report: GammaReport) -> Iterator[str]:
    best = max(report.train, key=lambda speed: speed.images_per_second)
    parts = report.parts
    yield (
        f"figures are of the fastest of {report.rounds} rounds, by {'CPU time' if report.is_cpu_time else 'the wall'}; "
        "the slowest one took as many times as long as the spread says"
    )
    if report.taken_by_others > BUSY:
        yield f"other processes took {report.taken_by_others:.0%} of a core meanwhile" + (
            ", which CPU time leaves out"
            if report.is_cpu_time
            else f": {report.threads} threads wait for each other then, the trainer's most of all, and γ and verdict "
            "are no more than a guess; measure one core with --threads 1, or when the machine is at rest"
        )
    yield (
        f"trainer: {best.images_per_second:.0f} images/s ({best.name}), "
        f"{report.training_images_per_second:.0f} with its loader, spread {spread(best.rounds):.1f} ×; others: "
        + ", ".join(f"{s.name} {s.images_per_second:.0f}" for s in report.train if s is not best)
    )
    whole = parts.forward + parts.input_gradients + parts.weight_gradients
    yield (
        f"a step in fp32: T_FF {parts.forward * 1e3:.0f} ms, T_GI {parts.input_gradients * 1e3:.0f} ms, T_GW "
        f"{parts.weight_gradients * 1e3:.0f} ms, so γ = {whole / parts.forward:.1f} with the trainer's own forward pass"
    )
    yield f"views: {report.views_per_second:.0f}/s"
    for name, reason in report.failed.items():
        yield f"{name} cannot run this model: {reason}"
    found = report.recommended
    meaning = {
        "FITS": f"a second device like this one scores {report.gamma} candidates for each example, and nobody waits",
        "DOES NOT FIT": f"mining at γ = {report.gamma} would take more than twice as long; train longer instead",
    }.get(found.verdict, "the trainer would wait for its oracle and take that many times as long")
    yield f"γ = {report.gamma}: {found.verdict} ({meaning})"
    if found.otherwise:
        yield (
            "the spread straddles this verdict: on a machine as busy as this it may be "
            f"{' or '.join(found.otherwise)}, as in a quarter of the rounds"
        )
    yield (
        f"recommended: --oracle {found.engine} --gamma {found.gamma} --update-every {found.update_every} "
        f"--delay-steps {found.delay_steps}"
    )
    if report.hybrid is not None:
        hybrid = report.hybrid
        yield (
            f"side by side: with the oracle on cores {as_text(hybrid.oracle_cores)} and the trainer on "
            f"{as_text(hybrid.trainer_cores)} a step is predicted to take {hybrid.step_seconds * 1e3:.0f} ms, "
            f"{hybrid.ratio:.3f} × the {hybrid.alone_seconds * 1e3:.0f} ms without an oracle"
        )
