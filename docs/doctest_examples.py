"""Shows a docstring's `Example:` as code: Griffe knows that section as `Examples:` and takes ours for prose."""

import re
from typing import Any

import griffe

HEADING = re.compile(r"^(\s*)Example:$", re.MULTILINE)


class DoctestExamples(griffe.Extension):
    """Renames the section before docstrings are parsed; the source stays as it is."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = HEADING.sub(r"\1Examples:", obj.docstring.value)
