# SPDX-License-Identifier: Apache-2.0
"""rclpy.logging: loggers that print as rcl does, `[INFO] [seconds.nanoseconds] [name]: text`, to standard error."""

import os
import sys
import threading
import time
from enum import IntEnum


class LoggingSeverity(IntEnum):
    """Severities."""

    UNSET = 0
    DEBUG = 10
    INFO = 20
    WARN = 30
    ERROR = 40
    FATAL = 50


_COLOURS = {LoggingSeverity.WARN: "\033[33m", LoggingSeverity.ERROR: "\033[31m", LoggingSeverity.FATAL: "\033[31m"}
_levels = {}
_default_level = [LoggingSeverity.INFO]
_sinks = []
_lock = threading.Lock()


class RcutilsLogger:
    """A named logger."""

    def __init__(self, name=""):
        self.name = name
        self._seen = {}

    def get_child(self, name):
        """Return the logger `self.name.name`."""
        return get_logger(f"{self.name}.{name}" if self.name else name)

    def set_level(self, level):
        """Set the lowest severity that is printed."""
        _levels[self.name] = LoggingSeverity(level)

    def get_effective_level(self):
        """Return the level of this logger, of its nearest ancestor that has one, or the default."""
        name = self.name
        while name:
            if name in _levels:
                return _levels[name]
            name = name.rpartition(".")[0]
        return _default_level[0]

    def is_enabled_for(self, severity):
        """Tell whether a message of this severity is printed."""
        return severity >= self.get_effective_level()

    def log(self, message, severity, *, throttle_duration_sec=None, throttle_time_source_type=None,
            once=False, skip_first=False, name=None):  # fmt: skip
        """Print `message`; `throttle_duration_sec`, `once` and `skip_first` count for each calling line."""
        severity = LoggingSeverity(severity)
        if not self.is_enabled_for(severity):
            return False
        if throttle_duration_sec is not None or once or skip_first:
            frame = sys._getframe(1)
            while frame.f_code.co_filename == __file__:
                frame = frame.f_back
            place = (frame.f_code.co_filename, frame.f_lineno)
            now, last = time.monotonic(), self._seen.get(place)
            if once and last is not None:
                return False
            if throttle_duration_sec is not None and last is not None and now - last < throttle_duration_sec:
                return False
            self._seen[place] = now
            if skip_first and last is None:
                return False
        _emit(name or self.name, severity, str(message))
        return True

    def debug(self, message, **options):
        """Print with severity DEBUG."""
        return self.log(message, LoggingSeverity.DEBUG, **options)

    def info(self, message, **options):
        """Print with severity INFO."""
        return self.log(message, LoggingSeverity.INFO, **options)

    def warning(self, message, **options):
        """Print with severity WARN."""
        return self.log(message, LoggingSeverity.WARN, **options)

    warn = warning

    def error(self, message, **options):
        """Print with severity ERROR."""
        return self.log(message, LoggingSeverity.ERROR, **options)

    def fatal(self, message, **options):
        """Print with severity FATAL."""
        return self.log(message, LoggingSeverity.FATAL, **options)


def _emit(name, severity, text):
    now = time.time_ns()
    line = f"[{severity.name}] [{now // 10**9}.{now % 10**9:09d}] [{name}]: {text}"
    colour = _COLOURS.get(severity)
    if colour and sys.stderr.isatty() and not os.environ.get("NO_COLOR"):
        line = f"{colour}{line}\033[0m"
    with _lock:
        try:
            sys.stderr.write(line + "\n")
            sys.stderr.flush()
        except (ValueError, OSError):
            return  # standard error is closed: nothing left to tell it to
    for sink in list(_sinks):
        sink(name, severity, text, now)


def add_sink(sink):
    """Call `sink(name, severity, text, nanoseconds)` for each message printed (/rosout)."""
    _sinks.append(sink)


def remove_sink(sink):
    """Undo add_sink."""
    if sink in _sinks:
        _sinks.remove(sink)


_loggers = {}


def get_logger(name=""):
    """Return the logger of this name."""
    return _loggers.setdefault(name, RcutilsLogger(name))


def set_logger_level(name, level, **_):
    """Set the level of one logger."""
    get_logger(name).set_level(level)


def get_logger_effective_level(name):
    """Return the level in force for one logger."""
    return get_logger(name).get_effective_level()


def set_default_level(level):
    """Set the level of all loggers without one of their own (--log-level)."""
    _default_level[0] = LoggingSeverity(level)


def get_logging_severity_from_string(text):
    """Return the severity of a name such as 'info'."""
    return LoggingSeverity[text.upper()]
