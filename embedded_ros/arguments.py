# SPDX-License-Identifier: Apache-2.0
"""The ROS part of a command line: --ros-args -r from:=to -p name:=value --params-file FILE --log-level LEVEL."""

import re

import yaml

from .logging import get_logging_severity_from_string, set_default_level, set_logger_level
from .names import Remaps


class RCLError(RuntimeError):
    """A call that rcl would refuse."""


class RCLInvalidROSArgsError(RCLError):
    """ROS arguments that cannot be read."""


class UnknownROSArgsError(RuntimeError):
    """ROS arguments that nobody knows."""


class _Loader(yaml.SafeLoader):
    """YAML as rcl reads it: 1e-3 is a number."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+0123456789.")
)


class RosArguments:
    """Parsed ROS arguments: `remaps`, parameter layers in the order given, and the arguments that are not ROS's."""

    def __init__(self, argv=()):
        self.layers = []  # (pattern of full node names, {name: value})
        self.rest = []
        try:
            self.remaps = Remaps(self._read(argv))
        except (ValueError, OSError, yaml.YAMLError) as error:
            raise RCLInvalidROSArgsError(f"Failed to parse ROS arguments: {error}") from error

    def _read(self, argv):
        """Take the arguments in; returns the remapping rules."""
        rules, ros = [], False
        arguments = iter(argv or ())
        for argument in arguments:
            if argument == "--ros-args":
                ros = True
            elif ros and argument == "--":
                ros = False
            elif not ros:
                self.rest.append(argument)
            elif argument in ("-r", "--remap"):
                rules.append(Remaps.parse(_next(arguments, argument)))
            elif argument in ("-p", "--param"):
                self._add_parameter(_next(arguments, argument))
            elif argument == "--params-file":
                self._add_file(_next(arguments, argument))
            elif argument == "--log-level":
                _set_level(_next(arguments, argument))
            elif argument in ("-e", "--enclave"):
                raise NotImplementedError("embedded_ros: security enclaves (--enclave) are not supported")
            elif re.fullmatch(r"--(enable|disable)-(rosout|stdout|external-lib)-logs", argument):
                continue
            else:
                raise UnknownROSArgsError(f"Found unknown ROS arguments: {argument}")
        return rules

    def _add_parameter(self, text):
        name, found, value = text.partition(":=")
        if not found:
            raise ValueError(f"not a parameter assignment: '{text}' (want name:=value)")
        node, separator, rest = name.partition(":")
        pattern = "/**" if not separator else f"/**/{node.lstrip('/')}"
        self.layers.append((pattern, {rest if separator else name: yaml.load(value, _Loader)}))

    def _add_file(self, path):
        with open(path, encoding="utf-8") as file:
            tree = yaml.load(file, _Loader)
        if not isinstance(tree, dict):
            raise ValueError(f"{path}: expected a mapping of node names to ros__parameters")
        found = list(_node_entries(tree, ""))
        if not found:
            raise ValueError(f"{path}: no ros__parameters in it")
        self.layers.extend(found)

    def parameters(self, full_node_name):
        """Return {name: value} for a node; later layers win."""
        values = {}
        for pattern, parameters in self.layers:
            if _matches(pattern, full_node_name):
                values.update(parameters)
        return values


def _next(arguments, option):
    try:
        return next(arguments)
    except StopIteration:
        raise ValueError(f"{option} needs a value") from None


def _node_entries(tree, prefix):
    for key, value in tree.items():
        if not isinstance(value, dict):
            raise ValueError(f"parameter file: '{prefix}/{key}' holds no ros__parameters")
        path = f"{prefix}/{str(key).strip('/')}"
        if "ros__parameters" in value:
            if not isinstance(value["ros__parameters"] or {}, dict):
                raise ValueError(f"parameter file: ros__parameters of '{path}' is no mapping of names to values")
            yield path, dict(_flatten(value["ros__parameters"] or {}, ""))
        nested = {name: item for name, item in value.items() if name != "ros__parameters"}
        if nested:
            yield from _node_entries(nested, path)


def _flatten(tree, prefix):
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _matches(pattern, name):
    """Match '/ns/node' against a pattern in which ** stands for any number of names and * for one."""
    if pattern == "/**":
        return True
    parts = re.findall(r"/\*\*|\*|[^*/]+|/", pattern)
    expression = "".join({"/**": "(/[^/]+)*", "*": "[^/]+"}.get(part, re.escape(part)) for part in parts)
    return re.fullmatch(expression, name) is not None


def _set_level(text):
    logger, found, level = text.partition(":=")
    try:
        if found:
            set_logger_level(logger, get_logging_severity_from_string(level))
        else:
            set_default_level(get_logging_severity_from_string(logger))
    except KeyError:
        raise ValueError(f"unknown log level: '{text}' (debug, info, warn, error or fatal)") from None
