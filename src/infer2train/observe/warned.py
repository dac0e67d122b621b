"""What a person at a command line reads of a warning: its sentence, not the line of our code that it came from."""

import os
import warnings
from pathlib import Path

OURS = str(Path(__file__).parents[1]) + os.sep
TOLD = (RuntimeWarning, UserWarning)


class OneLine:
    """In the place of `warnings.formatwarning`: a warning of ours is one line, once; those of others are as they were.

    Example:
        >>> format = OneLine()
        >>> format("the views are all the same", RuntimeWarning, OURS + "training/loop.py", 173)
        'infer2train: warning: the views are all the same\\n'
        >>> format("the views are all the same", RuntimeWarning, OURS + "training/loop.py", 173)
        ''
    """

    def __init__(self) -> None:
        self._others, self._told = warnings.formatwarning, set[str]()

    def __call__(
        self, message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
    ) -> str:
        text = " ".join(str(message).split())
        if not (filename.startswith(OURS) and issubclass(category, TOLD)):
            return self._others(message, category, filename, lineno, line)
        if text in self._told:
            return ""
        self._told.add(text)
        return f"infer2train: warning: {text}\n"
