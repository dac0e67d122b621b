"""Settings of mining: bounds and words that each field says itself, and what tells two of them apart."""

import dataclasses
import json
from typing import Any, Literal, get_args, get_origin

import numpy as np
import pytest

from infer2train.draws.mining import Mining
from infer2train.draws.ramp import Ramp
from infer2train.settings import as_plain, changed, decisive

FIELDS = dataclasses.fields(Mining)
BOUNDED = [field for field in FIELDS if field.metadata.get("at_least") is not None]


@pytest.mark.parametrize("field", BOUNDED, ids=lambda field: field.name)
def test_a_number_below_its_bound_is_refused(field: Any) -> None:
    bound = field.metadata["at_least"]
    with pytest.raises(ValueError, match=f"^{field.name} must be at least {bound}: got {bound - 1}"):
        Mining(**{field.name: bound - 1})
    Mining(**{field.name: bound})


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize("given", [{"gamma": 2.5}, {"update_every": 10 / 4}, {"gamma": "4"}, {"epochs": True}])
def test_a_number_that_must_be_whole_is(given: dict[str, Any]) -> None:
    ((name, value),) = given.items()
    with pytest.raises(ValueError, match=f"^{name} must be a whole number: got {value!r}; round it"):
        Mining(**given)


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"gamma": np.int64(4)}, 4),
        ({"oracle_chunk": np.uint8(16)}, 16),
        ({"prune": np.float64(0.25)}, 0.25),
        ({"trust": np.float32(0.5)}, 0.5),
        ({"distill_weight": np.int64(1)}, 1),
    ],
)
def test_a_number_of_numpy_is_one_of_python(given: dict[str, Any], expected: float) -> None:
    """So files hold it, and another one is a difference."""
    ((name, value),) = given.items()
    settings = Mining(**given)
    assert type(getattr(settings, name)) is type(expected)
    assert json.loads(json.dumps(as_plain(settings)))[name] == expected
    assert as_plain(settings) != as_plain(Mining(**{name: type(value)(2 * value)}))


def test_a_seed_is_below_its_bound() -> None:
    assert Mining(seed=2**63 - 1).seed == 2**63 - 1
    with pytest.raises(ValueError, match=rf"^seed must be in \[0, 2\^63\): got {2**63}; pass a smaller seed$"):
        Mining(seed=2**63)


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize("name", [field.name for field in FIELDS if get_origin(field.type) is Literal])
def test_a_word_that_a_setting_does_not_have_is_refused(name: str) -> None:
    words = get_args(next(field.type for field in FIELDS if field.name == name))
    with pytest.raises(ValueError, match=f"unknown {name} '{words[0]}s': there is .*did you mean '{words[0]}'"):
        Mining(**{name: f"{words[0]}s"})


def test_settings_are_changed_by_name_and_an_unknown_one_names_the_nearest() -> None:
    first = changed(Mining, None, {"gamma": 4})
    assert (first.gamma, changed(Mining, first, {"seed": 3})) == (4, Mining(gamma=4, seed=3))
    for settings in (None, first):
        with pytest.raises(ValueError, match=r"unknown setting 'gama'.*did you mean 'gamma'"):
            changed(Mining, settings, {"gama": 3})


@pytest.mark.parametrize(
    ("given", "ramp"),
    [
        ({}, None),
        ({"ramp_rate": 0.1}, Ramp(rate=0.1)),
        ({"ramp_start": 0.25}, Ramp(start=0.25, stop=1.0)),
        ({"ramp_stop": 0.5}, Ramp(start=0.0, stop=0.5)),
        ({"ramp_start": 0.0, "ramp_stop": 0.0}, Ramp()),
    ],
)
def test_ramps(given: dict[str, float], ramp: Ramp | None) -> None:
    assert Mining(**given).ramp == ramp


def test_a_ramp_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="got both; pass ramp_rate=None"):
        Mining(ramp_rate=0.1, ramp_stop=0.5)
    with pytest.raises(ValueError, match="0 <= start <= stop <= 1"):
        Mining(ramp_start=0.5, ramp_stop=0.2)


@pytest.mark.parametrize("setting", [{"when_late": "skip"}, {"on_oracle_loss": "continue"}])
def test_a_strict_run_never_depends_on_time(setting: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"a strict run never depends .*pass staleness='freshest' too"):
        Mining(**setting)
    Mining(**setting, staleness="freshest")


def own_score(outputs: Any, targets: Any) -> Any:
    return outputs


def test_plain_settings_survive_json_and_a_function_is_its_name() -> None:
    plain = as_plain(Mining(score=own_score, ramp_rate=0.1, seed=(1 << 63) - 1))
    assert plain["score"] == "own_score"
    assert json.loads(json.dumps(plain)) == plain
    assert plain.keys() == {field.name for field in FIELDS}


def test_where_something_is_computed_is_not_what() -> None:
    places = {"pool", "oracle_workers", "oracle_num_workers", "oracle_cores", "queue_depth", "ray_address", "log_every"}
    places |= {"ray_data"}
    places |= {"audit", "irreducible", "window"}  # what is theirs is part of the state
    assert as_plain(Mining()).keys() - decisive(Mining, as_plain(Mining())).keys() == places
