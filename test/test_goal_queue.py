# SPDX-License-Identifier: Apache-2.0
"""One goal runs, some wait in their order, the rest are refused."""

import threading

import pytest

from rays_as_pixels_ros.goal_queue import GoalQueue, QueueFullError


def test_one_runs_the_rest_wait_in_order():
    queue = GoalQueue(2)
    assert queue.offer("a") and not queue.offer("b") and not queue.offer("c") and len(queue) == 3
    with pytest.raises(QueueFullError, match="3 goals are already running or waiting; queue_size is 2"):
        queue.offer("d")
    assert queue.finished() == "b" and not queue.offer("d")
    assert [queue.finished(), queue.finished(), queue.finished()] == ["c", "d", None] and len(queue) == 0
    assert queue.offer("e")


def test_nothing_waits_where_the_size_is_0():
    queue = GoalQueue(0)
    assert queue.offer("a")
    with pytest.raises(QueueFullError):
        queue.offer("b")


def test_waiting_ones_are_withdrawn_and_the_running_one_is_not():
    queue = GoalQueue(3)
    for item in "abcd":
        queue.offer(item)
    assert queue.withdraw(lambda item: item in "ac") == ["c"]
    assert queue.withdraw() == ["b", "d"] and len(queue) == 1
    assert not queue.wait_idle(0.01)
    threading.Timer(0.05, queue.finished).start()
    assert queue.wait_idle(10.0)
