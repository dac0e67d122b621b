"""What a person sees of a run: a live line in a terminal, one line an epoch anywhere else."""

from collections.abc import Mapping
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn


class RunProgress:
    """Shows steps, losses, lag, time spent scoring and what is left.

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
        shown = (
            f"{figures['steps_per_second']:.1f} steps/s · loss {figures['loss']:.3f} · lag {figures['lag']:.0f} · "
            f"scoring {figures['scoring_share']:.0%}"
        )
        self._gain = figures.get("captured_gain", self._gain)
        if self._gain is not None:
            shown += f" · captured gain {self._gain:.2f}"
        self._progress.update(self._task, completed=steps, figures=shown)

    def epoch(self, epoch: int, epochs: int, figures: Mapping[str, float | None]) -> None:
        """Show an epoch's result, where there is no live line."""
        if not self._quiet and not self._console.is_terminal:
            test_error = figures.get("test_error")
            test = "" if test_error is None else f"test error {test_error:.2%}  "
            self._console.print(
                f"epoch {epoch + 1}/{epochs}  loss {figures['loss']:.3f}  "
                f"train error (as trained) {figures['train_error_mined']:.2%}  "
                f"{test}{figures['seconds']:.1f} s",
                highlight=False,
            )

    def say(self, message: str) -> None:
        """Print a line above the live one."""
        if not self._quiet:
            self.warn(message)

    def warn(self, message: str) -> None:
        """Print a line that must be seen: in a quiet run too."""
        self._console.print(message, highlight=False, markup=False, soft_wrap=True)
