"""What a person sees of a run: a live line in a terminal, one line an epoch anywhere else."""

from collections.abc import Mapping
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn

ACCIDENTS = {
    "skipped_draws": "draws trained on unmined, as their scores were late",
    "oracle_lost_draws": "draws without an oracle",
    "worker_restarts": "restarts of an oracle",
}
"""What must be seen, by its name in a metrics window: counted over the run."""


class RunProgress:
    """Shows steps, losses, lag, what trainer and oracle spend their time on, and what is left.

    Args:
        title: of the run.
        total_steps: of the whole training.
        quiet: show nothing.
        console: where to. Default: standard error, so that results can be piped.
    """

    def __init__(self, title: str, total_steps: int, *, quiet: bool = False, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._quiet = quiet
        columns: tuple[ProgressColumn, ...] = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
        )
        self._progress = Progress(*columns, console=self._console, disable=quiet or not self._console.is_terminal)
        self._gain: float | None = None
        self._accidents = dict.fromkeys(ACCIDENTS, 0)
        self._task = self._progress.add_task(title, total=total_steps, figures="")

    def __enter__(self) -> "RunProgress":
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def step(self, steps: int, figures: Mapping[str, float]) -> None:
        """Show how far the run is."""
        self._gain = figures.get("captured_gain", self._gain)
        for name in ACCIDENTS:
            self._accidents[name] += int(figures.get(name, 0))
        shown = figures if self._gain is None else {**figures, "captured_gain": self._gain}
        self._progress.update(self._task, completed=steps, figures=line(shown, self._accidents))

    def epoch(self, epoch: int, epochs: int, figures: Mapping[str, float | None], error: str = "test error") -> None:
        """Show an epoch's result, where there is no live line; `error` is what that of the evaluation is called."""
        if not self._quiet and not self._console.is_terminal:
            test_error = figures.get("test_error")
            test = "" if test_error is None else f"{error} {test_error:.2%}  "
            self._console.print(
                f"epoch {epoch + 1}/{epochs}  loss {figures['loss']:.3f}  "
                f"train error (as trained) {figures['train_error_mined']:.2%}  "
                f"{test}{figures['seconds']:.1f} s",
                highlight=False,
                soft_wrap=True,
            )

    def say(self, message: str) -> None:
        """Print a line above the live one."""
        if not self._quiet:
            self.warn(message)

    def warn(self, message: str) -> None:
        """Print a line that must be seen: in a quiet run too."""
        self._console.print(message, highlight=False, markup=False, soft_wrap=True)


def line(figures: Mapping[str, float], accidents: Mapping[str, int]) -> str:
    """What the live line says beside the bar, in rich's markup.

    Args:
        figures: a metrics window, with `loss` and `steps_per_second`.
        accidents: counts of the run so far.

    Example:
        >>> line({"steps_per_second": 3.4, "loss": 1.23, "lag": 42, "waiting_share": 0.02, "oracle_busy": 0.61}, {})
        '3.4 steps/s · loss 1.230 · lag 42 · waiting 2 % · oracle 61 % busy'
    """
    parts = [
        f"{figures['steps_per_second']:.1f} steps/s",
        f"loss {figures['loss']:.3f}",
        f"lag {figures['lag']:.0f}",
    ]
    if "oracle_busy" in figures:
        parts.append(f"waiting {100 * figures['waiting_share']:.0f} %")
        parts.append(f"oracle {100 * figures['oracle_busy']:.0f} % busy")
    else:
        parts.append(f"scoring {100 * figures['scoring_share']:.0f} %")
    if "captured_gain" in figures:
        parts.append(f"captured gain {figures['captured_gain']:.2f}")
    told = [f"{count} {ACCIDENTS[name].upper()}" for name, count in accidents.items() if count]
    return " · ".join([*parts, *(f"[bold red]{text}[/bold red]" for text in told)])
