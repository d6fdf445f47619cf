# SPDX-License-Identifier: Apache-2.0
"""Parameters are declared once; config/ repeats their defaults and nothing else; launch arguments are as promised."""

import ast

import pytest
import yaml

from rays_as_pixels_ros import parameters

TABLES = {
    "trajectory_node": parameters.TRAJECTORY,
    "view_synthesis_node": parameters.VIEW_SYNTHESIS,
    "camera_player": parameters.CAMERA_PLAYER,
}


def sections(path):
    return {
        name.removeprefix("/**/"): part["ros__parameters"] for name, part in yaml.safe_load(path.read_text()).items()
    }


def test_the_files_hold_every_parameter_with_its_default(repository):
    found = {}
    for name in ("rays_as_pixels.yaml", "camera_player.yaml"):
        found.update(sections(repository / "config" / name))
    assert found == {node: {p.name: p.default for p in table} for node, table in TABLES.items()}
    for node, given in sections(repository / "config" / "demo.yaml").items():
        assert set(given) <= {p.name for p in TABLES[node]}


@pytest.mark.parametrize("table", TABLES.values(), ids=list(TABLES))
def test_every_parameter_is_described_and_its_default_is_allowed(table):
    assert len({p.name for p in table}) == len(table)
    for parameter in table:
        assert parameter.description.endswith((".", ")")) and parameter.problem(parameter.default) is None
        if isinstance(parameter.default, int | float) and not isinstance(parameter.default, bool):
            assert parameter.low is not None and parameter.problem(parameter.high * 2 + 1), (
                f"{parameter.name} has no end"
            )


def test_launch_arguments_are_the_promised_ones(repository):
    tree = ast.parse((repository / "launch" / "rays_as_pixels.launch.py").read_text())
    table = next(n.value for n in tree.body if isinstance(n, ast.Assign) and n.targets[0].id == "ARGUMENTS")
    assert [ast.literal_eval(key) for key in table.keys] == [
        "namespace", "params_file", "checkpoint", "device", "base_frame", "image", "camera_info", "image_transport",
        "use_sim_time", "rviz", "autostart", "log_level",
    ]  # fmt: skip
