# SPDX-License-Identifier: Apache-2.0
"""camera_player and render_client as processes: posed images played as a camera, views asked for and written."""

import json
import subprocess
import sys
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from nav_msgs.msg import Odometry
from pixel_pipeline import path, picture
from rclpy.executors import SingleThreadedExecutor
from rclpy.task import Future
from sensor_msgs.msg import CameraInfo, Image
from wire import CAMERA, OPTICAL, START, WORLD, Peer, Process, module_domain, until

from rays_as_pixels_ros import conversions as c
from rays_as_pixels_ros import render_client

pytestmark = pytest.mark.slow
ENTRY = ("-m", "rays_as_pixels_ros.entry_points")
FRAMES = 30


@pytest.fixture(scope="module")
def ros_domain():
    """One domain for all tests here: the processes live as long as the module."""
    with module_domain() as domain:
        yield domain


@pytest.fixture(scope="module")
def peer(ros_domain):
    peer = Peer(camera=False)
    yield peer
    peer.close()


@pytest.fixture(scope="module")
def posed_images(tmp_path_factory):
    """The known path as a posed-images folder."""
    folder = tmp_path_factory.mktemp("posed")
    (folder / "images").mkdir()
    fx, fy, cx, cy = CAMERA.to_opencv()
    frames = []
    for number in range(FRAMES):
        name = f"images/{number:03d}.png"
        cv2.imwrite(str(folder / name), picture(number))
        frames.append(dict(file=name, fx=fx, fy=fy, cx=cx, cy=cy, T_world_camera=path()[number].tolist()))
    cameras = dict(width=72, height=48, pixel_centre_of_top_left=[0, 0], axes="opencv", fps=10.0)
    (folder / "cameras.json").write_text(json.dumps({**cameras, "frames": frames}))
    return folder


def player(folder, source, *more):
    settings = [f"source:={source}", f"frame_id:={OPTICAL}", f"world_frame:={WORLD}", *more]
    parameters = [word for setting in settings for word in ("-p", setting)]
    return Process(folder, "camera_player", *parameters, command=ENTRY)


def test_posed_images_come_out_as_they_are_and_the_player_ends(peer, posed_images, tmp_path):
    images, infos = peer.listen(Image, "image_raw", 50), peer.listen(CameraInfo, "camera_info", 50)
    truths = peer.listen(Odometry, "camera_player/ground_truth", 50)
    with player(tmp_path, posed_images, "rate:=30.0", "at_end:=stop", "wait_for_subscribers:=1") as process:
        assert process.wait() == 0, process.text()
    until(lambda: len(images) == FRAMES and len(infos) == FRAMES and len(truths) == FRAMES, "all messages")
    stamps = [c.stamp_ns(image.header.stamp) for image in images]
    assert stamps == sorted(set(stamps)) == [c.stamp_ns(info.header.stamp) for info in infos]
    for number, (image, info, truth) in enumerate(zip(images, infos, truths, strict=True)):
        np.testing.assert_array_equal(c.image_to_rgb(image), picture(number))
        found, _ = c.camera_from_info(info)
        assert (found.fx, found.cx, found.width) == pytest.approx((CAMERA.fx, CAMERA.cx, 72))
        assert (truth.header.frame_id, truth.child_frame_id) == (WORLD, OPTICAL)
        np.testing.assert_allclose(c.pose_to_matrix(truth.pose.pose), path()[number], atol=1e-9)


@pytest.mark.parametrize("source, scenes, reason", [
    ("/nowhere/at/all.mp4", "plain", "no such file or folder"),
    ("EMPTY", "plain", "no images in this folder"),
    ("procedural", "lens+fog", "scenes must be plain, varied or of geometry, lights, sensor, motion, lens joined by"),
])  # fmt: skip
def test_a_source_that_cannot_be_played_is_one_line(ros_domain, tmp_path, source, scenes, reason):
    process = player(tmp_path, tmp_path if source == "EMPTY" else source, f"scenes:={scenes}")
    assert process.wait() == 1
    assert reason in process.text() and "Traceback" not in process.text()


@pytest.fixture(scope="module")
def running(peer, posed_images, tmp_path_factory):
    """A camera that goes back and forth, and a view_synthesis_node."""
    folder = tmp_path_factory.mktemp("running")
    parameters = ["-p", f"fixed_frame:={WORLD}", "-p", "steps:=3"]
    with (
        Process(folder, "view_synthesis_node", *parameters) as views,
        player(folder, posed_images, "at_end:=bounce", "publish_truth_tf:=true") as camera,
    ):
        views.until_active()
        images = peer.listen(Image, "image_raw", 10)
        until(lambda: len(images) > 8, "images", START)
        yield views
        assert camera.alive()


def client(*arguments):
    command = [sys.executable, *ENTRY, "render_client", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=START)


@pytest.mark.parametrize("frame", ["", WORLD])
def test_orbit_is_written_as_pictures_and_video(running, tmp_path, frame):
    done = client("orbit", "--degrees", 60, "--distance", 1.0, "--views", 3, "--out", tmp_path / "o", "--frame", frame)
    assert done.returncode == 0, done.stderr
    told = json.loads((tmp_path / "o" / "views.json").read_text())
    assert told["views"] == 3 and told["metres_per_unit"] == 2.0 and told["frame"] == (frame or OPTICAL)
    assert (told["width"], told["height"]) == (96, 64) and (tmp_path / "o" / "views.mp4").stat().st_size > 500
    values = [int(cv2.imread(str(tmp_path / "o" / f"view_{number:03d}.png"))[0, 0, 0]) for number in range(3)]
    if not frame:
        # Chords of a circle of 1 m at 30 and 60 degrees, at 2 metres a unit, in hundredths.
        assert values == [0, round(100 * np.sin(np.radians(15))), round(100 * np.sin(np.radians(30)))]
    else:
        assert len(set(values)) > 1


def test_a_tum_file_in_the_world(running, tmp_path):
    (tmp_path / "path.txt").write_text("0 0 0 0 0 0 0 1\n1 5 0 0 0 0 0 1\n")
    done = client("tum", "--tum", tmp_path / "path.txt", "--frame", WORLD, "--out", tmp_path / "t")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "t" / "views.json").read_text())["T_frame_camera"][1][0][3] == 5.0


@pytest.mark.parametrize("ready, timeout, reason", [
    (False, 60, "the views will not come: the action server at 'x' is gone"),
    (True, 0, "the views did not come within 0 s"),
], ids=["gone", "late"])  # fmt: skip
def test_a_result_that_has_come_is_taken_though_its_server_is_gone_or_time_is_up(peer, ready, timeout, reason):
    given = ["dolly", "--out", "views", "--action", "x", "--timeout", str(timeout)]
    executor = SingleThreadedExecutor()
    client = render_client._Client(None, executor, render_client.make_parser().parse_args(given))
    server = SimpleNamespace(server_is_ready=lambda: ready)
    result = Future()
    executor.create_task(result.set_result, "pictures")
    assert client._wait(server, result, "the views") == "pictures"
    with pytest.raises(render_client.ClientError, match=reason):
        client._wait(server, Future(), "the views")
    executor.shutdown()


@pytest.mark.parametrize("arguments, reason", [
    (["orbit", "--views", 0], "0 views asked for"),
    (["tum", "--tum", "/nowhere.txt"], "/nowhere.txt: No such file or directory"),
    (["dolly", "--views", 65], "refused: 65 poses asked for; max_views is 64"),
    (["dolly", "--action", "nobody/render_views", "--timeout", 3], "no action server at 'nobody/render_views'"),
])  # fmt: skip
def test_the_client_says_why_not(running, tmp_path, arguments, reason):
    done = client(*arguments, "--out", tmp_path / "x")
    assert done.returncode == 1
    assert f"render_client: {reason}" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "x").exists()
