"""Annotations are checked in the first calls of each test: in long loops that takes most of the time."""

import jaxtyping

CHECKED_CALLS = 2000


class FirstCalls(type(jaxtyping.config)):  # type: ignore[misc]
    """jaxtyping's configuration, which every call of a checked function asks whether it is to be checked."""

    calls = 0
    is_off = False

    @property
    def jaxtyping_disable(self) -> bool:
        self.calls += 1
        return self.is_off or self.calls > CHECKED_CALLS

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
    config.calls = 0
