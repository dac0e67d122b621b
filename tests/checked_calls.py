"""Which calls are checked against their annotations: of what is not nested in a function, the first ones of each test.

What lies within a function is decorated anew at each of its calls, and a long loop calls ten thousand times: without
either bound a test of loaders takes a quarter to two thirds longer.
"""

from collections.abc import Callable
from typing import Any

import jaxtyping

CHECKED_CALLS = 2000


class FirstCalls(type(jaxtyping.config)):  # type: ignore[misc]  # its type has no public name
    """jaxtyping's configuration, which every call of a checked function asks whether it is to be checked."""

    calls = 0
    is_off = False

    @property
    def jaxtyping_disable(self) -> bool:
        FirstCalls.calls += 1
        return self.is_off or FirstCalls.calls > CHECKED_CALLS

    @jaxtyping_disable.setter
    def jaxtyping_disable(self, value: bool) -> None:
        self.is_off = value


def check_the_first_calls() -> None:
    """From now on, until it is called again."""
    config = jaxtyping.config
    if not isinstance(config, FirstCalls):
        is_off = vars(config).pop("jaxtyping_disable")
        config.__class__ = FirstCalls
        config.jaxtyping_disable = is_off
    FirstCalls.calls = 0


def leave_what_is_nested() -> None:
    """To be called before jaxtyping's import hook meets a module: what that decorates asks for `jaxtyping.jaxtyped`."""
    decorator = jaxtyping.jaxtyped

    def outermost(*, typechecker: Any) -> Callable[[Any], Any]:
        decorate = decorator(typechecker=typechecker)
        return lambda one: one if "<locals>" in one.__qualname__ else decorate(one)

    jaxtyping.jaxtyped = outermost  # type: ignore[assignment]  # it is overloaded; the hook calls it in this one way
