"""A named data set does not travel, and the machine's own one stands in its place; all that it cannot be is refused."""

import pickle
from typing import Any

import pytest

from conformance.pool import case
from infer2train.draws.mining import Mining
from infer2train.pool.packing import NamedData, packed_for_cluster, unpacked
from pool import named_images
from pool.process_pools import scoring_task

pytest.importorskip("ray", reason="ray is not installed: pip install 'infer2train[ray]'")


def test_a_named_data_set_is_called_for_once_and_not_sent() -> None:
    task = scoring_task(case("images").task)
    sent, named = packed_for_cluster(task), packed_for_cluster(task, "pool.named_images:images")
    assert len(sent) - len(named) > 0.9 * len(pickle.dumps(task.source.dataset)), "the pixels stay here"
    there = unpacked(named)
    assert there.source is case("images").task.source, "what the function gave"
    assert there.reader.dataset is there.source, "and nothing else anywhere"
    assert unpacked(sent).source is not case("images").task.source


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("pool.named_images:nothing", "AttributeError.*nothing.*put its module and files there"),
        ("pool.no_such_module:images", "ModuleNotFoundError.*put its module and files there"),
        ("pool.named_images:without_files", "FileNotFoundError: no such folder: /data/train; put its module and files"),
        ("pool.named_images:fewer", "gives ImageViews of 5 samples, and the trainer has ImageViews of .* samples"),
    ],
)
def test_a_machine_without_it_says_what_is_missing(name: str, said: str) -> None:
    content = packed_for_cluster(scoring_task(case("images").task), name)
    with pytest.raises(ValueError, match=rf"ray_data must name .*got {name}, which on .*{said}"):
        unpacked(content)


def test_a_stream_has_no_length_and_another_kind_is_another_data_set() -> None:
    assert NamedData.of("a:b", iter(())).length is None
    assert NamedData.of("a:b", []) != NamedData.of("a:b", ())
    assert str(NamedData.of("a:b", named_images.images())).startswith("ImageViews of ")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"pool": "ray", "ray_data": "__import__('os').getcwd()"}, "every machine can import, as package.module:func"),
        ({"pool": "ray", "ray_data": "__main__:data"}, "put the function into a module"),
        ({"pool": "process", "ray_data": "my_data:train"}, "got it with pool='process'; pass pool='ray'"),
    ],
)
def test_only_names_and_only_where_somebody_reads_them(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said.replace("(", r"\(")):
        Mining(**given)
