"""The arms of a comparison: what `METHOD` or `METHOD@ORACLE` has instead of the settings that all have in common."""

from typing import Any

from infer2train.draws.methods.table import METHODS
from infer2train.draws.selection import PICKS
from infer2train.training.config import RunConfig
from infer2train.training.regimes import regime_defaults


def settings_of_arm(options: dict[str, Any], arm: str) -> dict[str, Any]:
    """Settings of `METHOD`, or of `METHOD@ORACLE`.

    Raises:
        ValueError: nothing stands behind the `@`.
    """
    method, at, oracle = arm.partition("@")
    if at and not oracle:
        raise ValueError(f"METHOD@ORACLE names an oracle: got {arm!r}; write {method}@int8, say, or {method}")
    return own_settings(options, method) | ({"oracle": oracle} if oracle else {})


def own_settings(options: dict[str, Any], method: str) -> dict[str, Any]:
    """What a method has instead of a comparison's common settings: its regime's own, and nothing without effect."""
    epochs = options["epochs"]
    general = regime_defaults(options["regime"], RunConfig.method, epochs=epochs)
    own = {
        name: value
        for name, value in regime_defaults(options["regime"], method, epochs=epochs).items()
        if value != general[name] and options[name] == general[name] and name not in options["given"]
    }
    own["method"] = method
    if not METHODS[method].is_rampable:
        own |= {"ramp_rate": None, "ramp_start": None, "ramp_stop": None}
    if METHODS[method].score is None or METHODS[method].score == "uniform":
        own["score"] = None
    if METHODS[method].pick not in PICKS:
        own["pick"] = None
    return own
