# SPDX-License-Identifier: Apache-2.0
"""Pages that say what the program says: parameters, the lines quoted for troubleshooting, the map of the source."""

import ast
import importlib.util
import re

import pytest

from rays_as_pixels_ros import parameters

_PATHS = r"`((?:docs|config|model|training|rays_as_pixels_ros|embedded_ros|benchmarks)/[\w./]+)`"


@pytest.fixture
def pages(repository):
    """README and docs, by path."""
    return {p: p.read_text() for p in [repository / "README.md", *sorted((repository / "docs").glob("*.md"))]}


def test_the_parameters_page_is_current(repository):
    spec = importlib.util.spec_from_file_location("make_parameters", repository / "docs" / "make_parameters.py")
    maker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(maker)
    assert maker.PAGE.read_text() == maker.page(), "run: python docs/make_parameters.py"
    for table in (parameters.TRAJECTORY, parameters.VIEW_SYNTHESIS, parameters.CAMERA_PLAYER):
        assert all(f"| `{parameter.name}` |" in maker.page() for parameter in table)


def said(repository):
    """Every string of the source, values in f-strings left out."""
    found = []
    for folder in ("rays_as_pixels_ros", "embedded_ros", "model"):
        for path in (repository / folder).glob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.JoinedStr):
                    found.append("".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(node.value)
    return "\n".join(found)


def test_quoted_lines_are_said_by_the_program(repository):
    """The second column of troubleshooting.md quotes: each piece between values stands in the source."""
    text = said(repository)
    rows = [line.split(" | ") for line in (repository / "docs" / "troubleshooting.md").read_text().splitlines()]
    quotes = [quote for row in rows if len(row) == 3 for quote in re.findall(r"`([^`]+)`", row[1])]
    assert len(quotes) > 15
    known = {"map", "result.message"}
    for quote in quotes:
        for piece in filter(None, (piece.strip(" ;,:") for piece in quote.split("…"))):
            assert piece in text or quote in known, f"nothing says {piece!r}"


def test_files_that_pages_name_exist(repository, pages):
    """The map "From a frame to a published pose" and every docs/, config/ and rays_as_pixels_ros/ path."""
    for page, text in pages.items():
        for name in re.findall(_PATHS, text):
            assert "NAME" in name or (repository / name.rstrip("/")).exists(), f"{page.name}: {name}"
