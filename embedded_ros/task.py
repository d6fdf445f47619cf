# SPDX-License-Identifier: Apache-2.0
"""Futures, tasks that run plain functions or coroutines, and threads that run tasks."""

import inspect
import queue
import threading

from .unsupported import lacks


@lacks("remove_done_callback")
class Future:
    """A value that comes later. It may be awaited in a callback, or waited for with spin_until_future_complete."""

    def __init__(self, *, executor=None):
        self._condition = threading.Condition()
        self._done = self._cancelled = False
        self._result = self._exception = None
        self._callbacks = []
        self._executor = executor

    def __await__(self):
        while not self._done and not self._cancelled:
            yield self
        return self.result()

    def cancel(self):
        """Cancel unless done."""
        self._finish(cancelled=True)

    def cancelled(self):
        """Whether it was cancelled."""
        return self._cancelled

    def done(self):
        """Whether it has a result or exception, or was cancelled."""
        return self._done or self._cancelled

    def result(self):
        """Return the result (None before it is there), or raise the exception."""
        if self._exception is not None:
            raise self._exception
        return self._result

    def exception(self):
        """Return the exception, if any."""
        return self._exception

    def set_result(self, result):
        """Set the result."""
        self._finish(result=result)

    def set_exception(self, exception):
        """Set the exception."""
        self._finish(exception=exception)

    def _finish(self, result=None, exception=None, cancelled=False):
        with self._condition:
            if self.done():
                return
            self._result, self._exception = result, exception
            self._done, self._cancelled = not cancelled, cancelled
            callbacks, self._callbacks = self._callbacks, []
            self._condition.notify_all()
        for callback in callbacks:
            callback(self)

    def add_done_callback(self, callback):
        """Call `callback(self)` when done; at once if it is."""
        with self._condition:
            if not self.done():
                self._callbacks.append(callback)
                return
        callback(self)

    def wait(self, timeout=None):
        """Wait in the calling thread, which must not be the executor's; returns whether it is done."""
        with self._condition:
            return self._condition.wait_for(self.done, timeout)


@lacks("executing")
class Task(Future):
    """Run `handler(*args)`; a coroutine goes on when what it awaits is done. `resume(task)` queues it again."""

    def __init__(self, handler, args=(), resume=None):
        super().__init__()
        self._handler, self._args, self._resume = handler, args, resume
        self._coroutine = handler if inspect.iscoroutine(handler) else None

    def __call__(self):
        """Run until done or until something is awaited that is not done."""
        if self.done():
            return
        try:
            if self._coroutine is None:
                result = self._handler(*self._args)
                if not inspect.iscoroutine(result):
                    self.set_result(result)
                    return
                self._coroutine = result
            awaited = self._coroutine.send(None)
        except StopIteration as stop:
            self.set_result(stop.value)
        except BaseException as error:  # noqa: B036  KeyboardInterrupt must reach the executor too
            self.set_exception(error)
        else:
            if isinstance(awaited, Future):
                awaited.add_done_callback(lambda _: self._resume(self))
            else:
                self._resume(self)


class Workers:
    """Threads that run tasks.

    Not a ThreadPoolExecutor: when SIGINT interrupts its first submits, the interpreter waits for ever at exit for a
    thread that nobody told to end.
    """

    def __init__(self, limit):
        self._limit, self._threads = limit, []
        self._queue, self._idle = queue.SimpleQueue(), threading.Semaphore(0)

    def submit(self, task):
        """Run `task` in a thread that is idle, or in a new one up to the limit."""
        self._queue.put(task)
        if not self._idle.acquire(blocking=False) and len(self._threads) < self._limit:
            thread = threading.Thread(target=self._work, name=f"rclpy-{len(self._threads)}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def _work(self):
        while (task := self._queue.get()) is not None:
            task()
            del task
            self._idle.release()
        self._queue.put(None)  # for the next thread

    def shutdown(self, wait=True):
        """Let the threads end; waits for the tasks that run."""
        self._queue.put(None)
        for thread in self._threads if wait else ():
            if thread.ident is not None and thread is not threading.current_thread():
                thread.join()
