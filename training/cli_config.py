# SPDX-License-Identifier: Apache-2.0
"""From the command line and a YAML file to the configs of a run. Imports nothing heavy, so that --help is quick.

rays-as-pixels train --config run.yaml --lr 0.001     # the file first, arguments override it
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, get_args, get_origin

from .config import RunConfig, TrainConfig

T = TypeVar("T")


@dataclass(frozen=True)
class Settings:
    """One training run."""

    train: TrainConfig
    run: RunConfig


class ArgumentProblem(ValueError):
    """Arguments or a file that cannot be used, in one line."""


def parse(cls: type[T], argv: list[str], prog: str, description: str, overrides: tuple[str, ...] = ()) -> T:
    """Build a dataclass from arguments; `--config FILE` names a YAML file whose keys are the fields' names.

    Args:
        overrides: arguments that stand before all others (a command's own defaults).

    Raises:
        ArgumentProblem: one line that names the value and what would be right.
        SystemExit: --help was asked for.
    """
    argv, file = _take_config(list(argv))
    given: list[str] = []
    if file is not None:
        given = _arguments_of(cls, file)
        try:  # the file alone, so that its problems are told as its own
            _parse(cls, [*overrides, *given, *_required(cls, given)], prog, description)
        except ArgumentProblem as problem:
            raise ArgumentProblem(f"{file}: {problem}") from None
    return _parse(cls, [*overrides, *given, *argv], prog, description)


def fields_of(cls: type) -> dict[str, dataclasses.Field]:
    """Return the fields that are arguments, those of nested dataclasses instead of themselves."""
    hints = {f.name: _dataclass_of(cls, f) for f in dataclasses.fields(cls)}
    out: dict[str, dataclasses.Field] = {}
    for f in dataclasses.fields(cls):
        out |= fields_of(hints[f.name]) if hints[f.name] else {f.name: f}
    return out


def _dataclass_of(cls: type, field: dataclasses.Field) -> type | None:
    kind = getattr(sys.modules[cls.__module__], field.type, None) if isinstance(field.type, str) else field.type
    return kind if dataclasses.is_dataclass(kind) else None


def _take_config(argv: list[str]) -> tuple[list[str], Path | None]:
    for i, word in enumerate(argv):
        if word == "--config":
            if i + 1 == len(argv):
                raise ArgumentProblem("--config needs the name of a YAML file")
            return argv[:i] + argv[i + 2 :], Path(argv[i + 1])
        if word.startswith("--config="):
            return argv[:i] + argv[i + 1 :], Path(word.partition("=")[2])
    return argv, None


def _arguments_of(cls: type, file: Path) -> list[str]:
    """Turn a YAML file into arguments, which are then checked as those of the command line are."""
    import yaml

    try:
        data = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ArgumentProblem(f"--config {file}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ArgumentProblem(f"{file} is no YAML: {' '.join(str(error).split())}") from None
    data = {} if data is None else data
    if not isinstance(data, dict):
        raise ArgumentProblem(f"{file} must hold 'name: value' lines, got a {type(data).__name__}")
    known, words = fields_of(cls), []
    for key, value in data.items():
        name = str(key).replace("-", "_")
        if name not in known:
            raise ArgumentProblem(f"{file}: unknown key {key!r}; `--help` lists the names")
        flag = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            words.append(flag if value else "--no-" + flag[2:])
        elif isinstance(value, list) and known[name].type.endswith("...]"):  # as many as there are
            words += [flag, *map(str, value)]
        elif value is not None:
            text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
            words.append(f"{flag}={text}")
    return words


def _required(cls: type, given: list[str]) -> list[str]:
    """Stand-ins for required arguments that the file leaves to the command line."""
    present = {word.partition("=")[0] for word in given}
    flags = [
        "--" + name.replace("_", "-")
        for name, f in fields_of(cls).items()
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    return [f"{flag}=x" for flag in flags if flag not in present]


def _parse(cls: type[T], argv: list[str], prog: str, description: str) -> T:
    import tyro

    words = io.StringIO()
    try:
        with contextlib.redirect_stderr(words):
            return tyro.cli(
                cls,
                args=argv,
                prog=prog,
                description=description,
                config=(tyro.conf.OmitArgPrefixes,),
                registry=_registry(),
            )
    except SystemExit as end:
        if end.code in (0, None):
            raise
        raise ArgumentProblem(_one_line(words.getvalue())) from None
    except ValueError as error:  # a dataclass refused its values
        raise ArgumentProblem(" ".join(str(error).split())) from None


def _one_line(box: str) -> str:
    """The first part of tyro's box of an error, without the frame."""
    box = re.sub(r"\x1b\[[0-9;]*m", "", box)
    rows = []
    for row in box.splitlines():
        row = row.strip().strip("│").strip()
        if row.startswith("╭") or not row:
            continue
        if row.startswith(("─", "╰")):
            break
        rows.append(row)
    text = " ".join(" ".join(rows).split())
    text = re.sub(r"^Error parsing (--[\w-]+):", r"\1:", text)
    text = re.sub(r"^Missing from [\w -]*: (--[\w-]+).*", r"\1 is missing", text)
    return re.sub(r"^Error parsing [\w.]+: ", "", text) or "bad arguments"


def _registry():
    """Tuples of numbers are written with commas: --tasks 0.8,0.14,0.06."""
    from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

    registry = ConstructorRegistry()

    def numbers(words: list[str]) -> tuple[float, ...]:
        try:
            values = tuple(float(x) for x in words[0].split(","))
        except ValueError:
            raise ValueError(f"takes numbers with commas between, got {words[0]!r}") from None
        if len(values) != 3:
            raise ValueError(f"needs three numbers with commas between, got {words[0]!r}")
        return values

    @registry.primitive_rule
    def _(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec | None:
        if (get_origin(info.type), get_args(info.type)) != (tuple, (float, float, float)):
            return None
        return PrimitiveConstructorSpec(
            nargs=1,
            metavar="A,B,C",
            instance_from_str=numbers,
            is_instance=lambda value: isinstance(value, tuple),
            str_from_instance=lambda value: [",".join(f"{x:g}" for x in value)],
        )

    return registry


def differences(stored: dict, given: dict) -> list[str]:
    """Say which values differ, as 'name old -> new'; names that only one of them has are left out."""
    same = (set(stored) & set(given)) - {"slots", "min_clips"}
    plain = {name: (_plain(stored[name]), _plain(given[name])) for name in given if name in same}
    return [f"{name} {a} -> {b}" for name, (a, b) in plain.items() if a != b]


def _plain(value):
    return ",".join(f"{x:g}" for x in value) if isinstance(value, list | tuple) else value
