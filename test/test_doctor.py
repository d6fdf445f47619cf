# SPDX-License-Identifier: Apache-2.0
"""What the doctor says of a ROS 2 that is only half there; each case is a Python of its own over stand-in packages."""

import os
import subprocess
import sys

import pytest

SAY = "from rays_as_pixels_ros.doctor import _ros\nfor f in _ros(): print(f.what, f.state, f.text)"


def doctor(folder, **environment):
    path = os.pathsep.join([str(folder), *filter(None, sys.path)])
    env = {**os.environ, "PYTHONPATH": path, **environment}
    done = subprocess.run([sys.executable, "-c", SAY], env=env, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    return done.stdout


def package(folder, name, text=""):
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text(text)


def test_a_cv_bridge_that_numpy_2_broke_is_named(tmp_path):
    package(tmp_path, "rclpy")
    package(tmp_path, "rays_as_pixels_interfaces")
    package(tmp_path, "cv_bridge", "raise AttributeError('_ARRAY_API not found')")
    said = doctor(tmp_path, ROS_DISTRO="jazzy", RMW_IMPLEMENTATION="rmw_cyclonedds_cpp")
    assert "cv_bridge note does not import (_ARRAY_API not found); a numpy CvBridge takes its place" in said
    (tmp_path / "cv_bridge" / "__init__.py").write_text("")
    said = doctor(tmp_path, ROS_DISTRO="jazzy", RMW_IMPLEMENTATION="rmw_fastrtps_cpp")
    assert "cv_bridge ok" in said and "middleware note" in said


@pytest.mark.skipif("rclpy" in sys.modules and sys.modules["rclpy"].__spec__.origin, reason="needs no sourced ROS 2")
def test_a_venv_that_does_not_see_ros_is_told_how(tmp_path):
    said = doctor(tmp_path, ROS_DISTRO="jazzy")
    assert "ros note" in said and "--system-site-packages" in said and sys.executable in said
