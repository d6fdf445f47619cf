# SPDX-License-Identifier: Apache-2.0
"""Names: validity, expansion of relative and ~ names, remapping rules."""

import re

_TOKEN = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SOURCE = re.compile(r"(?:([^:]*):(?!//))?(?:rostopic://|rosservice://)?(.*)", re.DOTALL)  # of a remapping rule


class InvalidNameException(ValueError):
    """A node, namespace or topic name is not valid."""


def check_node_name(name):
    """Raise InvalidNameException unless `name` can name a node."""
    if not _TOKEN.fullmatch(name):
        raise InvalidNameException(f"Invalid node name: '{name}' (letters, digits and _ only, not starting with digit)")
    return name


def check_namespace(namespace):
    """Return an absolute namespace, '/' for the root."""
    namespace = "/" + namespace.strip("/")
    if namespace != "/" and not all(_TOKEN.fullmatch(part) for part in namespace[1:].split("/")):
        raise InvalidNameException(f"Invalid namespace: '{namespace}'")
    return namespace


def expand(name, node_name, namespace):
    """Return the full name of a topic or service: '/x' stays, '~/x' is private to the node, 'x' is relative."""
    if not name:
        raise InvalidNameException("a topic name must not be empty")
    prefix = "" if namespace == "/" else namespace
    if name == "~" or name.startswith("~/"):
        full = f"{prefix}/{node_name}{name[1:]}"
    elif name.startswith("/"):
        full = name
    else:
        full = f"{prefix}/{name}"
    full = full.replace("{node}", node_name).replace("{ns}", namespace).replace("{namespace}", namespace)
    if not all(_TOKEN.fullmatch(part) for part in full[1:].split("/")):
        raise InvalidNameException(f"Invalid topic name: '{name}' (expands to '{full}')")
    return full


class Remaps:
    """Remapping rules `[node:]from:=to` in the order given; the first that matches counts."""

    def __init__(self, rules=()):
        self._rules = list(rules)

    @staticmethod
    def parse(text):
        """Split '[node:]from:=to' into (node or None, from, to); names must be valid, a namespace absolute."""
        source, found, target = text.partition(":=")
        if not found or not source or not target:
            raise ValueError(f"not a remapping rule: '{text}' (want from:=to)")
        node, source = _SOURCE.fullmatch(source).groups()
        if source in ("__node", "__name"):
            check_node_name(target)
        elif source != "__ns":
            expand(source, "node", "/")
            expand(target, "node", "/")
        elif not target.startswith("/"):
            raise InvalidNameException(f"Invalid namespace: '{target}' (it must start with /)")
        else:
            check_namespace(target)
        return node, source, target

    def with_rules(self, rules):
        """Return rules with `rules` before these."""
        return Remaps(list(rules) + self._rules)

    def special(self, node_name, *names):
        """Return the target of __node, __name or __ns for a node, or None."""
        for node, source, target in self._rules:
            if source in names and node in (None, node_name):
                return target
        return None

    def resolve(self, name, node_name, namespace):
        """Expand `name` and apply the first matching rule."""
        full = expand(name, node_name, namespace)
        for node, source, target in self._rules:
            if source.startswith("__") or node not in (None, node_name):
                continue
            if expand(source, node_name, namespace) == full:
                return expand(target, node_name, namespace)
        return full
