"""The desk in an actor: calls that are made again, come twice or in another order change nothing. Needs no Ray."""

import numpy as np
import pytest

from infer2train.machine.cores import available_cores, claimed_core
from infer2train.pool import ray_desk
from infer2train.pool.messages import Cancel, Do, Retire, Warned
from infer2train.pool.ray_desk import RayDesk, Sent


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_desk, "HEAR_SECONDS", 0.0)


def sent(*numbers: int) -> list[Sent]:
    return [Sent(number, Cancel(number), []) for number in numbers]


def taken(desk: RayDesk) -> list[int]:
    return [order.ticket for order in desk.orders(wait=False) if isinstance(order, Cancel)]


def test_orders_are_taken_once_and_in_their_order_however_they_come() -> None:
    desk = RayDesk()
    desk.take(sent(2, 3))
    assert taken(desk) == []
    assert desk.said(0, "").taken == 0
    desk.take(sent(1, 2))
    desk.take(sent(3, 1))
    assert taken(desk) == [1, 2, 3]
    assert desk.said(0, "").taken == 3
    desk.take(sent(3, 4))
    assert taken(desk) == [4]


def test_news_are_said_until_they_are_acknowledged() -> None:
    desk = RayDesk()
    for text in "ab":
        desk.tell(Warned(text))
    first, again = desk.said(0, ""), desk.said(0, "")
    assert first.news == again.news == [(1, Warned("a")), (2, Warned("b"))]
    desk.tell(Warned("c"))
    assert desk.said(2, "").news == [(3, Warned("c"))]
    assert desk.said(3, "").news == []
    assert not desk.said(3, "").is_over
    desk.leave()
    assert desk.said(3, "").is_over


def test_what_an_actor_does_and_where_is_in_its_reply() -> None:
    desk = RayDesk()
    assert desk.said(0, "10.0.0.3").phase == "starting"
    desk.enter("scoring")
    reply = desk.said(0, "10.0.0.3")
    assert (reply.phase, reply.node) == ("scoring", "10.0.0.3")


def test_a_worker_may_write_to_the_arrays_of_an_order() -> None:
    ids, seeds = np.arange(3), np.arange(3)
    for array in (ids, seeds):
        array.flags.writeable = False  # as Ray hands them out
    desk = RayDesk()
    desk.take([Sent(1, Do(1, 0, None, ids, seeds), []), Sent(2, Retire(1), [])])
    do, retire = desk.orders(wait=True)
    assert isinstance(do, Do)
    assert do.ids.flags.writeable
    assert do.seeds.flags.writeable
    assert do.ids.tolist() == [0, 1, 2]
    assert retire == Retire(1)


def test_processes_that_do_not_know_of_each_other_claim_cores_of_their_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: object
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    claims = [claimed_core() for _ in available_cores()]  # a second description of a file is another's to the system
    assert sorted(claims) == [(core,) for core in available_cores()]
    assert claimed_core() == ()
