# SPDX-License-Identifier: Apache-2.0
"""Who may import whom, read from the syntax trees: the rules that keep the rooms of this repository apart."""

import ast
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = {
    "model": "rays_as_pixels_model",
    "training": "rays_as_pixels_training",
    "rays_as_pixels_ros": "rays_as_pixels_ros",
    "embedded_ros": "embedded_ros",
}
OURS = set(ROOMS.values())
MAY_IMPORT = {
    "model": set(),
    "training": {"rays_as_pixels_model"},
    "rays_as_pixels_ros": {"rays_as_pixels_model"},
    "embedded_ros": set(),
}
# Beside nodes, these of rays_as_pixels_ros may import rclpy and messages (the doctor: to see whether rclpy is broken).
ROS_FILES = {
    "parameters.py", "conversions.py", "bag_messages.py", "entry_points.py", "render_client.py", "rays_as_pixels.py",
    "node_process.py", "doctor.py",
}  # fmt: skip
# The entry points put the embedded rclpy in place where no ROS 2 is sourced; the doctor reports which one it is.
INSTALLERS = {"entry_points.py", "doctor.py", "demo.py"}
# The embedded CvBridge and diagnostic updater stand in for the real ones where those are broken or missing.
EMBEDDED_ROS_FILES = {
    ("install.py", "cv_bridge"), ("cv_bridge.py", "sensor_msgs"), ("diagnostic_updater.py", "diagnostic_msgs"),
}  # fmt: skip
# model/, lower to higher: a file imports only from before it.
MODEL_ORDER = [
    "config", "geometry", "media", "files", "bags", "comparison", "raxels", "pluecker", "layout", "layers",
    "transformer", "wan", "codec", "wan_codec", "engine", "joint", "schedule", "sampler", "memory", "checkpoint_folder",
    "checkpoint", "calibration", "wan_weights", "onnx_engine", "results", "features", "closed_loop", "joint_generation",
    "pipeline", "export",
]  # fmt: skip


def is_ros(root):
    """Say whether a top-level package comes from ROS."""
    known = {
        "rclpy", "cv_bridge", "tf2_ros", "tf2_py", "rcl_interfaces", "launch", "launch_ros", "ament_index_python",
        "diagnostic_updater", "rosbag2_py", "message_filters", "image_transport_py", "rays_as_pixels_interfaces",
    }  # fmt: skip
    return root in known or root.endswith(("_msgs", "_srvs", "_interfaces"))


def sources():
    """List every Python file of the product, the tests and the launch files."""
    for folder in [*ROOMS, "test", "launch", "config", "benchmarks", "docs"]:
        yield from sorted((ROOT / folder).rglob("*.py"))
    yield ROOT / "setup.py"


def imported(path, running=False):
    """Yield (line, module, level) of each import; `from . import a` gives the module `a`, level 1.

    `running` leaves out what is imported for type checkers only.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    if running:
        tree.body = [n for n in tree.body if not (isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING")]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name, 0
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.lineno, node.module, node.level
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield node.lineno, alias.name, node.level


def violations(path, room):
    """List what one file of a room imports and may not."""
    found = []
    for line, module, level in imported(path):
        root = module.partition(".")[0]
        where = f"{path.relative_to(ROOT)}:{line}: imports {module}"
        if level:
            continue
        if root in ("model", "training"):
            found.append(f"{where}, a bare folder name; say rays_as_pixels_{root}")
        if room not in ROOMS:
            continue
        if root == ROOMS[room]:
            found.append(f"{where}; inside a package imports are relative")
        elif root in OURS - MAY_IMPORT[room]:
            if not (room == "rays_as_pixels_ros" and root == "embedded_ros" and path.name in INSTALLERS):
                found.append(f"{where}; {room} may import {MAY_IMPORT[room] or 'none of our other packages'}")
        if is_ros(root):
            nodes = room == "rays_as_pixels_ros" and (path.name.endswith("_node.py") or path.name in ROS_FILES)
            if not nodes and not (room == "embedded_ros" and (path.name, root) in EMBEDDED_ROS_FILES):
                found.append(f"{where}; only nodes, {', '.join(sorted(ROS_FILES))} of rays_as_pixels_ros use ROS")
    return found


@pytest.mark.parametrize("path", list(sources()), ids=lambda path: str(path.relative_to(ROOT)))
def test_import_rules(path):
    assert violations(path, path.relative_to(ROOT).parts[0]) == []


@pytest.mark.parametrize(
    "room, name, text",
    [
        ("model", "a.py", "import rclpy"),
        ("model", "a.py", "def f():\n    from rays_as_pixels_training.loop import x"),
        ("model", "a.py", "from sensor_msgs.msg import Image"),
        ("model", "a.py", "from rays_as_pixels_model.geometry import invert"),
        ("training", "a.py", "import rays_as_pixels_ros.paths"),
        ("rays_as_pixels_ros", "window.py", "import rclpy.node"),
        ("rays_as_pixels_ros", "trajectory_node.py", "import rays_as_pixels_training"),
        ("rays_as_pixels_ros", "trajectory_node.py", "import embedded_ros"),
        ("embedded_ros", "a.py", "from rays_as_pixels_model import geometry"),
        ("embedded_ros", "cv_bridge.py", "import rclpy"),
        ("test", "a.py", "from model import geometry"),
        ("test", "a.py", "import training.loop"),
    ],
)
def test_the_rules_catch(monkeypatch, tmp_path, room, name, text):
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    path = tmp_path / room / name
    path.parent.mkdir()
    path.write_text(text)
    assert len(violations(path, room)) == 1


def test_model_files_import_only_from_below():
    graph = {}
    for path in sorted((ROOT / "model").glob("*.py")):
        if path.stem != "__init__":
            graph[path.stem] = {module.partition(".")[0] for _, module, level in imported(path, True) if level == 1}
    order = list(TopologicalSorter(graph).static_order())  # raises CycleError on a cycle
    assert set(graph) <= set(order)
    for name in set(graph) & set(MODEL_ORDER):
        for below in graph[name] & set(MODEL_ORDER):
            assert MODEL_ORDER.index(below) < MODEL_ORDER.index(name), f"model/{name}.py imports the higher {below}.py"


@pytest.mark.parametrize("path", list(sources()), ids=lambda path: str(path.relative_to(ROOT)))
def test_each_source_states_its_licence(path):
    assert path.read_text(encoding="utf-8").lstrip().startswith("# SPDX-License-Identifier: Apache-2.0")
