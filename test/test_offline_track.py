# SPDX-License-Identifier: Apache-2.0
"""Offline and live: trajectory_node and the offline tracker over the same images give the same poses."""

import time

import numpy as np
import pytest
import rclpy
from pixel_pipeline import load, picture
from rclpy.parameter import Parameter

from rays_as_pixels_model.geometry import Intrinsics
from rays_as_pixels_ros import conversions as c
from rays_as_pixels_ros.camera_node import CameraFrame
from rays_as_pixels_ros.offline_track import DecodedFrame, OfflineTracker
from rays_as_pixels_ros.track import T_REP103_OPTICAL
from rays_as_pixels_ros.trajectory_node import TrajectoryNode

CAMERA = Intrinsics.from_fov(70.0, 72, 48)
COUNT, COVERED = 21, 9  # frames, and the one on which something lay over the lens
SECOND = 10**9


def images():
    """Image messages; the covered one shows nothing."""
    shown = [np.full((48, 72, 3), 9, np.uint8) if i == COVERED else picture(i) for i in range(COUNT)]
    return [c.rgb_to_image(rgb, (i + 1) * SECOND, "camera") for i, rgb in enumerate(shown)]


@pytest.fixture(autouse=True)
def ros(ros_domain):
    rclpy.init()
    yield
    rclpy.try_shutdown()


def live(settings):
    """Poses (4, 4) by stamp that a node publishes, and why it was lost."""
    node = TrajectoryNode("live", load_pipeline=load, parameter_overrides=[
        Parameter(name, value=value) for name, value in {**settings, "base_frame": "", "queue_size": 100}.items()
    ])  # fmt: skip
    poses, reasons, shapes = {}, [], set()
    try:
        node.trigger_configure()
        estimate = node._pipeline.estimate_trajectory
        node._pipeline.estimate_trajectory = lambda x, *a, **k: (shapes.add(x.shape), estimate(x, *a, **k))[1]
        node._pose_publisher.publish = lambda m: poses.update(
            {c.stamp_ns(m.header.stamp): (c.pose_to_matrix(m.pose.pose), np.array(m.pose.covariance).reshape(6, 6))}
        )
        lose = node._health.lose
        node._health.lose = lambda reason: (reasons.append(reason), lose(reason))
        node.trigger_activate()
        for image in images():
            info = c.camera_info(CAMERA, c.stamp_ns(image.header.stamp), "camera")
            node._on_frame(CameraFrame(c.stamp_ns(image.header.stamp), "camera", image, info))
        end = time.monotonic() + 60
        while COUNT * SECOND not in poses and time.monotonic() < end:
            time.sleep(0.02)
    finally:
        node.stop()
        node.destroy_node()
    assert shapes == {(5, 128, 192, 3)}, "larger than the model's, for points are tracked in them"
    return poses, reasons


@pytest.mark.parametrize(
    "settings", [{}, {"refine": False}, {"carry_scale": False}, {"max_scale_step": 1.05}], ids=str
)  # fmt: skip
def test_offline_is_live_with_later_windows_added(settings):
    """The newest frame of each window has been seen by that window alone, so there the two are one and the same."""
    poses, reasons = live(settings)
    tracker = OfflineTracker(load("", "cpu"), 2, samples=8, sample_every=4, **settings)
    frames = []
    for number, image in enumerate(images()):
        info = c.camera_info(CAMERA, c.stamp_ns(image.header.stamp), "camera")
        frames.append(DecodedFrame(number, *c.fitted_frame(image, info, *tracker.pipeline.config.picture_size)))
    placed = tracker.place(frames)
    assert [(frame.stitched.frame + 1) * SECOND for frame in placed] == sorted(poses)
    assert 0 < tracker.tally.lost == len(reasons) and tracker.tally.reason == reasons[-1]
    assert reasons[-1].startswith("an image shows nothing") and tracker.tally.breaks == 1
    last = placed[-1]
    T, covariance = poses[(last.stitched.frame + 1) * SECOND]
    np.testing.assert_allclose(T, T_REP103_OPTICAL @ last.stitched.T_map_camera, atol=1e-9)
    turn = np.kron(np.eye(2), T_REP103_OPTICAL[:3, :3])
    np.testing.assert_allclose(covariance, turn @ last.covariance @ turn.T, rtol=1e-6, atol=1e-12)


def test_windows_with_a_pause_have_samples_of_their_own():
    tracker = OfflineTracker(load("", "cpu"), 2, samples=2, refine=False)
    seen, usual = [], tracker._placer.spreads.of
    tracker._placer.spreads.of = lambda *args: (seen.append(args[-1]), usual(*args))[1]
    frames = [(i, picture(i), (i + 20 * (i > 12)) * SECOND) for i in range(COUNT)]
    fitted = ((i, c.fit_frames(rgb[None], CAMERA, 96, 64)[0][0], at) for i, rgb, at in frames)
    tracker.place(DecodedFrame(i, rgb, CAMERA, 0, at) for i, rgb, at in fitted)
    assert any(seen) and not seen[0]
