# SPDX-License-Identifier: Apache-2.0
"""rclpy.executors and rclpy.callback_groups.

An executor waits for the entities of its nodes (timers, subscriptions, services, clients, guard conditions) and runs
their callbacks as tasks. An entity has `callback_group`, `condition` (a DDS condition handle or None), `due_in(now)`
for timers, and `take()`, which returns the work to do or None.
"""

import os
import threading
import time
from collections import deque

from . import wire
from .context import NotInitializedException, get_default_context
from .task import Task, Workers
from .unsupported import lacks

_SLICE = 0.1  # seconds; a signal is not seen during a wait


class TimeoutException(Exception):
    """Nothing to do came up in time."""


class ShutdownException(Exception):
    """The executor was shut down."""


class ExternalShutdownException(Exception):
    """The context was shut down, by rclpy.shutdown() elsewhere or by SIGTERM."""


class ConditionReachedException(Exception):
    """The condition of a spin was reached."""


class CallbackGroup:
    """Base of the groups; counts the callbacks that run."""

    exclusive = False

    def __init__(self):
        self._active = 0
        self._lock = threading.Lock()

    def can_execute(self, entity=None):
        """Whether a callback of this group may start now."""
        return not (self.exclusive and self._active)

    def beginning_execution(self, entity=None):
        """Count a callback in; returns False if it may not start."""
        with self._lock:
            if self.exclusive and self._active:
                return False
            self._active += 1
            return True

    def ending_execution(self, entity=None):
        """Count a callback out."""
        with self._lock:
            self._active -= 1

    def add_entity(self, entity):
        """Nothing to do: entities refer to their group."""

    def has_entity(self, entity):
        """Whether the entity belongs to this group."""
        return entity.callback_group is self


class ReentrantCallbackGroup(CallbackGroup):
    """Callbacks may run at the same time."""


class MutuallyExclusiveCallbackGroup(CallbackGroup):
    """One callback runs at a time."""

    exclusive = True


@lacks("can_execute", "wait_for_ready_callbacks")
class Executor:
    """Base of the executors; also a context manager that shuts down on leaving."""

    def __init__(self, *, context=None):
        self._context = context or get_default_context()
        if self._context.participant is None:
            raise NotInitializedException()
        self.participant = self._context.participant
        self._nodes = []
        self._tasks, self._ready = deque(), deque()
        self._lock = threading.RLock()
        self._is_shutdown = False
        self._guard = wire.Guard(self._context.participant)
        self._waitset = wire.WaitSet(self._context.participant)
        self._context.add_guard(self._guard)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.shutdown()

    @property
    def context(self):
        """The context of this executor."""
        return self._context

    def add_node(self, node):
        """Add a node; returns False if it was there."""
        with self._lock:
            if node in self._nodes:
                return False
            self._nodes.append(node)
        node.executor = self
        self.wake()
        return True

    def remove_node(self, node):
        """Remove a node."""
        with self._lock:
            if node in self._nodes:
                self._nodes.remove(node)
        if node.executor is self:
            node.executor = None
        self.wake()

    def get_nodes(self):
        """Return the nodes."""
        return list(self._nodes)

    def wake(self):
        """End the wait, so that changes are seen."""
        if not self._is_shutdown:
            self._guard.trigger()

    def create_task(self, callback, *args, **kwargs):
        """Run a function or coroutine in this executor; returns its Future."""
        handler = (lambda: callback(*args, **kwargs)) if kwargs else callback
        task = Task(handler, args if not kwargs else (), self._queue)
        self._queue(task)
        return task

    def _queue(self, task):
        self._tasks.append(task)
        self.wake()

    def shutdown(self, timeout_sec=None):
        """Stop spinning and let the nodes go."""
        if self._is_shutdown:
            return True
        self._guard.trigger()
        self._is_shutdown = True
        for node in self.get_nodes():
            if node.executor is self:
                node.executor = None
        with self._lock:
            self._nodes.clear()
        return True

    def spin(self):
        """Run callbacks until the context or the executor is shut down."""
        while self._context.ok() and not self._is_shutdown:
            self.spin_once()

    def spin_once(self, timeout_sec=None):
        """Wait for one callback and run it."""
        raise NotImplementedError("embedded_ros: use SingleThreadedExecutor or MultiThreadedExecutor")

    def spin_until_future_complete(self, future, timeout_sec=None):
        """Run callbacks until `future` is done or `timeout_sec` has passed."""
        future.add_done_callback(lambda _: self.wake())
        end = None if timeout_sec is None or timeout_sec < 0 else time.monotonic() + timeout_sec
        while self._context.ok() and not future.done() and not self._is_shutdown:
            left = None if end is None else end - time.monotonic()
            if left is not None and left <= 0:
                return
            self.spin_once_until_future_complete(future, left)

    def spin_once_until_future_complete(self, future, timeout_sec=None):
        """Wait for one callback and run it, or return when `future` is done."""
        self._spin_once(timeout_sec, future.done)

    def _next_task(self, timeout_sec, stop=None):
        """Wait for the next task to run; its callback group counts it in."""
        end = None if timeout_sec is None or timeout_sec < 0 else time.monotonic() + timeout_sec
        waited = False
        while True:
            if self._is_shutdown:
                raise ShutdownException()
            if not self._context.ok():
                raise ExternalShutdownException()
            if stop is not None and stop():
                raise ConditionReachedException()
            task = self._pick()
            if task is not None:
                return task
            left = _SLICE if end is None else min(_SLICE, end - time.monotonic())
            if left <= 0 and waited:
                raise TimeoutException()
            self._wait(max(0.0, left))
            waited = True

    def _pick(self):
        with self._lock:
            if self._tasks:
                return self._tasks.popleft()
            while self._ready:
                entity = self._ready.popleft()
                group = entity.callback_group
                if entity.destroyed or not group.beginning_execution(entity):
                    continue
                work = entity.take()
                if work is None:
                    group.ending_execution(entity)
                    continue
                task = Task(*work, resume=self._queue)
                task.add_done_callback(lambda _, group=group, entity=entity: self._ended(group, entity))
                return task
        return None

    def _ended(self, group, entity):
        group.ending_execution(entity)
        self.wake()

    def _wait(self, timeout):
        by_handle, due = {}, []
        now = time.monotonic_ns()
        with self._lock:
            entities = [entity for node in self._nodes for entity in node.entities()]
        for entity in entities:
            if entity.destroyed or not entity.callback_group.can_execute(entity):
                continue
            if entity.condition is not None:
                by_handle[entity.condition] = entity
            else:
                left = entity.due_in(now)
                if left is not None and left <= 0:
                    due.append(entity)
                elif left is not None:
                    timeout = min(timeout, left * 1e-9)
        if due or self._tasks:
            timeout = 0.0
        triggered = self._waitset.wait([self._guard.handle, *by_handle], timeout)
        self._guard.clear()
        with self._lock:
            self._ready.extend(due)
            self._ready.extend(by_handle[handle] for handle in triggered if handle in by_handle)


class SingleThreadedExecutor(Executor):
    """Run callbacks in the thread that spins."""

    def spin_once(self, timeout_sec=None):
        """Wait for one callback and run it; what it raises is raised here."""
        self._spin_once(timeout_sec)

    def _spin_once(self, timeout_sec, stop=None):
        try:
            task = self._next_task(timeout_sec, stop)
        except (ShutdownException, TimeoutException, ConditionReachedException):
            return
        task()
        if task.exception() is not None:
            raise task.exception()


class MultiThreadedExecutor(Executor):
    """Run callbacks in a pool of threads."""

    def __init__(self, num_threads=None, *, context=None):
        super().__init__(context=context)
        self._pool = Workers(num_threads or max(2, len(os.sched_getaffinity(0))))
        self._running = []
        self._context.add_workers(self._pool)

    def spin_once(self, timeout_sec=None):
        """Wait for one callback and hand it to a thread; what an earlier one raised is raised here."""
        self._spin_once(timeout_sec)

    def _spin_once(self, timeout_sec, stop=None):
        try:
            task = self._next_task(timeout_sec, stop)
        except (ShutdownException, TimeoutException, ConditionReachedException):
            self._raise_finished()
            return
        self._running.append(task)
        self._pool.submit(task)
        self._raise_finished()

    def _raise_finished(self):
        for task in [task for task in self._running if task.done()]:
            self._running.remove(task)
            task.result()

    def shutdown(self, timeout_sec=None, *, wait_for_threads=True):
        """Stop spinning; waits for the callbacks that run."""
        done = super().shutdown(timeout_sec)
        self._pool.shutdown(wait_for_threads)
        return done
