# SPDX-License-Identifier: Apache-2.0
"""Installing: pip, pip -e and colcon (with and without --symlink-install), each from a copy of the checkout.

Builds take the build tools and dependencies of the environment that runs the tests; nothing is fetched.
"""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

NODES = {"trajectory_node", "view_synthesis_node", "camera_player", "render_client", "rays_as_pixels"}
EXECUTABLES = NODES | {"rays-as-pixels"}
FOLDERS = ("benchmarks", "embedded_ros", "model", "rays_as_pixels_ros", "training")

# Run by the Python under test, far from the checkout: what is installed, and from where.
PROBE = """
import json, pathlib, sys
import embedded_ros, rays_as_pixels_benchmarks, rays_as_pixels_model, rays_as_pixels_ros, rays_as_pixels_training
from embedded_ros.definitions import own_texts
from rays_as_pixels_model.geometry import Intrinsics
packages = [rays_as_pixels_benchmarks, embedded_ros, rays_as_pixels_model, rays_as_pixels_ros, rays_as_pixels_training]
import rays_as_pixels_model.scenes, rays_as_pixels_training.data
print(json.dumps({
    "folders": [str(pathlib.Path(p.__file__).resolve().parent) for p in packages],
    "interfaces": sorted(f"{kind}/{name}" for kind, name, _ in own_texts()),
    "weights": sorted(str(p.name) for p in (pathlib.Path(rays_as_pixels_model.__file__).parent / "weights").rglob("*")),
    "fov": Intrinsics.from_fov(60, 96, 64).horizontal_fov_deg(),
}))
"""


def run(command, cwd, **environment):
    """Run a command to its end; a failure shows its output."""
    env = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INDEX": "1", **environment}
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, f"{command} failed:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture
def copy(repository, tmp_path):
    """A copy of what git would keep of this checkout (committed, changed or new files), without any build output."""
    listed = run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], repository)
    target = tmp_path / "source"
    for name in filter(None, listed.split("\0")):
        if (repository / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(repository / name, target / name)
    return target


@pytest.fixture
def fresh(tmp_path):
    """A new virtual environment's Python that sees this one's dependencies, but not our packages."""
    run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")], tmp_path)
    python = tmp_path / "venv" / "bin" / "python"
    site = Path(run([str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], tmp_path).strip())
    # A .pth line adds the folder, but does not run the .pth files in it: an editable install there stays unseen.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def probe(python, cwd, **environment):
    return json.loads(run([str(python), "-c", PROBE], cwd, **environment))


def check_probe(found, repository):
    expected = {f"{p.parent.name}/{p.stem}" for p in (repository / "rays_as_pixels_interfaces").glob("*/*.*")
                if p.suffix in (".action", ".srv", ".msg")}
    assert len(expected) >= 3
    assert set(found["interfaces"]) == expected
    shipped = [p.name for p in (repository / "model" / "weights").rglob("*") if p.is_file() and p.name[0] != "."]
    assert set(shipped) <= set(found["weights"])
    assert found["fov"] == pytest.approx(60)


@pytest.mark.slow
def test_pip_install(copy, fresh, repository, tmp_path):
    pip = [sys.executable, "-m", "pip", "--python", str(fresh), "install", "-q", "--no-deps", "--no-build-isolation"]
    run([*pip, "."], copy)
    share = tmp_path / "venv" / "share" / "rays_as_pixels_ros"
    assert (share / "package.xml").is_file()
    for folder in ("launch", "config"):
        wanted = {p.name for p in (copy / folder).iterdir() if p.is_file()} if (copy / folder).is_dir() else set()
        assert {p.name for p in (share / folder).glob("*") if p.is_file()} == wanted  # pip compiles launch files
    assert (tmp_path / "venv/share/ament_index/resource_index/packages/rays_as_pixels_ros").is_file()
    assert EXECUTABLES <= {p.name for p in (tmp_path / "venv" / "bin").iterdir()}
    shutil.rmtree(copy)  # nothing may point back
    found = probe(fresh, tmp_path)
    check_probe(found, repository)
    assert all(folder.startswith(str(tmp_path / "venv")) for folder in found["folders"])
    assert "estimate" in run([str(tmp_path / "venv/bin/rays-as-pixels"), "--help"], tmp_path)


@pytest.mark.slow
def test_pip_install_editable(copy, fresh, repository, tmp_path):
    pip = [sys.executable, "-m", "pip", "--python", str(fresh), "install", "-q", "--no-deps", "--no-build-isolation"]
    run([*pip, "-e", "."], copy)
    found = probe(fresh, tmp_path)
    check_probe(found, repository)
    assert found["folders"] == [str(copy / name) for name in FOLDERS]
    assert "estimate" in run([str(tmp_path / "venv/bin/rays-as-pixels"), "--help"], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("symlinks", [False, True], ids=["plain", "symlink"])
@pytest.mark.parametrize("layout", ["isolated", "merged"])
def test_colcon_build(copy, repository, tmp_path, symlinks, layout):
    if importlib.util.find_spec("colcon_ros") is None:
        pytest.skip("needs colcon: pip install colcon-common-extensions")
    workspace = tmp_path / "workspace"
    workspace.mkdir()
    flags = (["--symlink-install"] if symlinks else []) + (["--merge-install"] if layout == "merged" else [])
    command = [sys.executable, "-m", "colcon", "--log-base", str(workspace / "log"), "build", *flags]
    # Without a sourced ROS 2 there is no ament_cmake for the interfaces: this builds the package at the root.
    command += ["--base-paths", str(copy), "--build-base", str(workspace / "build")]
    run([*command, "--install-base", str(workspace / "install")], copy, COLCON_HOME=str(tmp_path))
    prefix = workspace / "install" if layout == "merged" else workspace / "install" / "rays_as_pixels_ros"

    share = prefix / "share" / "rays_as_pixels_ros"
    assert ElementTree.parse(share / "package.xml").getroot().find("name").text == "rays_as_pixels_ros"
    assert (prefix / "share/ament_index/resource_index/packages/rays_as_pixels_ros").is_file()
    assert not (prefix / "share" / "rays_as_pixels_interfaces").exists(), "belongs to the real interfaces package"
    for folder in ("launch", "config"):
        for file in (copy / folder).glob("*"):
            assert (share / folder / file.name).read_bytes() == file.read_bytes()
    dangling = [str(p) for p in prefix.rglob("*") if p.is_symlink() and not p.exists()]
    assert dangling == []
    executables = prefix / "lib" / "rays_as_pixels_ros"
    assert EXECUTABLES <= {p.name for p in executables.iterdir()}, "ros2 run looks there"

    # What a sourced workspace puts on PYTHONPATH; -S and a list of our own keep the checkout's editable install out.
    script = f'source {workspace}/install/setup.bash; exec "$@"'
    runner = f"import sys; sys.path.append({sysconfig.get_path('purelib')!r}); exec({PROBE!r})"
    found = json.loads(run(["bash", "-c", script, "-", sys.executable, "-S", "-c", runner], tmp_path))
    check_probe(found, repository)
    root = copy if symlinks else prefix
    assert all(folder.startswith(str(root)) for folder in found["folders"])


@pytest.mark.slow
def test_colcon_test_runs_pytest(copy, tmp_path):
    """Without pytest in extras_require colcon runs unittest, which finds 0 tests and says nothing."""
    if importlib.util.find_spec("colcon_ros") is None:
        pytest.skip("needs colcon: pip install colcon-common-extensions")
    shutil.rmtree(copy / "test")
    (copy / "test").mkdir()
    (copy / "test" / "test_one.py").write_text("def test_one():\n    assert True is not False\n")
    colcon = [sys.executable, "-m", "colcon", "--log-base", str(tmp_path / "log")]
    folders = ["--base-paths", str(copy), "--build-base", str(tmp_path / "build")]
    folders += ["--install-base", str(tmp_path / "install")]
    run([*colcon, "build", *folders], copy, COLCON_HOME=str(tmp_path))
    run([*colcon, "test", *folders], copy, COLCON_HOME=str(tmp_path))
    result = ElementTree.parse(tmp_path / "build" / "rays_as_pixels_ros" / "pytest.xml").getroot()
    assert [case.get("name") for case in result.iter("testcase")] == ["test_one"]


def test_package_xml_and_setup_agree(repository):
    package = ElementTree.parse(repository / "package.xml").getroot()
    setup = (repository / "setup.py").read_text()
    assert package.get("format") == "3"
    assert f'version="{package.find("version").text}"' in setup
    assert package.find("maintainer").get("email") in setup
    mail = package.find("maintainer").get("email")
    assert re.fullmatch(r"[-.\w]+@[-\w]+(\.[-\w]+)+", mail), "colcon takes the package for plain Python otherwise"
    assert package.find("license").text == "Apache-2.0"
    assert package.find("export/build_type").text == "ament_python"


def test_every_requirement_is_pinned(repository):
    pinned = {re.split(r"[=;]", line)[0].lower() for line in (repository / "constraints.txt").read_text().splitlines()
              if line and not line.startswith("#")}
    setup = (repository / "setup.py").read_text()
    needed = setup[setup.index("PEERS ="):setup.index("def mapped")]
    needed += setup[setup.index("install_requires"):setup.index('"gpu"')]
    required = re.findall(r'"([a-z][\w.-]*)(?:==[\d.]+)?"', needed)
    assert {"torch", "numpy", "pytest", "diffusers"} <= set(required)
    assert set(required) - {"test", "eval", "train", "wan"} <= pinned
    assert "torch==2.13.0" in (repository / "constraints.txt").read_text()


def test_the_tree_is_clean_of_build_output(repository):
    done = subprocess.run(["git", "ls-files", "build", "install", "log", "*.egg-info", ".venv", "out"], cwd=repository,
                          capture_output=True, text=True, check=True)
    assert done.stdout == ""
