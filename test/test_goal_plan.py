# SPDX-License-Identifier: Apache-2.0
"""Goals to arrays: what is decoded, at which size, with which camera."""

from dataclasses import replace
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from geometry_msgs.msg import PoseStamped
from pixel_pipeline import PixelPipeline
from sensor_msgs.msg import CameraInfo, CompressedImage

from rays_as_pixels_interfaces.action import Imagine, RenderViews
from rays_as_pixels_model.geometry import Intrinsics, fit_frames
from rays_as_pixels_ros import conversions as c
from rays_as_pixels_ros.camera_node import CameraFrame
from rays_as_pixels_ros.goal_checks import RefusalError
from rays_as_pixels_ros.goal_plan import GoalPlanner
from rays_as_pixels_ros.window import RecentFrames

FULL = Intrinsics.from_fov(70.0, 960, 720)  # not of the model's shape: a part is cut off
P = SimpleNamespace(
    metres_per_unit=1.0, fixed_frame="map", source_frames=2, buffer_stride=1, steps=2, imagine_steps=2, max_steps=10
)


def photo(width=FULL.width, height=FULL.height):
    """A smooth random picture."""
    noise = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    return cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)


def raw(rgb):
    return c.rgb_to_image(rgb, 10**9, "camera")


def jpeg(rgb):
    data = cv2.imencode(".jpg", rgb[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()
    return CompressedImage(header=c.header(10**9, "camera"), format="jpeg", data=data)


def planner(*images, info=None):
    frames = RecentFrames(8)
    for image in images:
        frames.push(CameraFrame(10**9, "camera", image, info or c.camera_info(FULL, 10**9, "camera")))
    return GoalPlanner(P, frames, PixelPipeline(), lambda *_: np.eye(4), lambda *_: True)


def view(stamp=0, **given):
    pose = PoseStamped(header=c.header(stamp, "camera"))
    pose.pose.orientation.w = 1.0
    return RenderViews.Goal(poses=[pose], **given)


@pytest.mark.parametrize("make", [raw, jpeg])
def test_live_images_are_decoded_at_the_size_that_the_model_takes(make):
    """And still show the same, with the same camera, as the whole picture would when the model fits it."""
    rgb = photo()
    whole, camera = fit_frames(rgb[None], FULL, 96, 64)
    live = planner(make(rgb), make(rgb))
    for plan, count in ((live.views(view()), 2), (live.imagine(Imagine.Goal()), 1)):
        intrinsics = plan.source_intrinsics if hasattr(plan, "source_intrinsics") else plan.intrinsics
        assert plan.frames.shape == (count, 64, 96, 3)
        np.testing.assert_allclose(plan.frames[0], whole[0], atol=6)
        found = [getattr(intrinsics, name) for name in ("fx", "fy", "cx", "cy", "width", "height")]
        assert found == pytest.approx([camera.fx, camera.fy, camera.cx, camera.cy, 96, 64], abs=0.1)
    plan = planner(make(rgb)).views(view())
    assert plan.target_intrinsics == plan.source_intrinsics


def test_live_sources_are_spread_over_what_is_held_where_tf_places_it():
    def plan_of(known, sources=4, stride=1, named=0):
        frames = RecentFrames(10)
        for number in range(10):
            stamp = 10**9 + number
            image = c.rgb_to_image(np.full((64, 96, 3), 10 * number, np.uint8), stamp, "camera")
            camera = c.camera_info(Intrinsics.from_fov(70.0, 96, 64), stamp, "camera")
            frames.push(CameraFrame(stamp, "camera", image, camera))
        p = SimpleNamespace(**{**vars(P), "source_frames": sources, "buffer_stride": stride})

        def lookup(target, target_stamp, source, source_stamp):
            T = np.eye(4)
            T[0, 3] = source_stamp - target_stamp
            return T

        def can_place(names, _, stamp):
            return not names or stamp - 10**9 in known

        planner = GoalPlanner(p, frames, PixelPipeline(), lookup, can_place)
        made = planner.views(view(named))
        return (made.frames[:, 0, 0, 0] // 10).tolist(), made.T_world_source[:, 0, 3].tolist()

    assert plan_of(range(10)) == ([9, 6, 3, 0], [0, -3, -6, -9])
    assert plan_of(range(10), 2) == ([9, 0], [0, -9])
    assert plan_of(range(10), 1) == ([9], [0])
    assert plan_of(range(10), 16)[0] == list(range(9, -1, -1))
    assert plan_of(range(10), 3, 4) == ([9, 5, 1], [0, -4, -8])
    assert plan_of(range(3, 10)) == ([9, 7, 5, 3], [0, -2, -4, -6])  # the oldest came before its transform
    assert plan_of(range(6, 10)) == ([9, 8, 7, 6], [0, -1, -2, -3])  # spread over what is placed
    assert plan_of(()) == ([9], [0])  # without TF the newest alone, in its own frame
    assert plan_of(range(9)) == ([8, 5, 3, 0], [0, -3, -5, -8])  # TF is a window behind: from the newest that it places
    assert plan_of(range(10), named=10**9 + 4) == ([4, 6, 1, 9], [0, 2, -3, 5])  # about the stamp that poses name


def test_the_unit_is_told_by_a_wider_window_where_the_camera_moved_too_little():
    frames, given = RecentFrames(12), []
    for number in range(12):
        stamp = 10**9 + number
        camera = c.camera_info(Intrinsics.from_fov(70.0, 96, 64), stamp, "camera")
        frames.push(CameraFrame(stamp, "camera", c.rgb_to_image(photo(96, 64), stamp, "camera"), camera))

    class Pipeline(PixelPipeline):
        least = 0.0

        def metres_per_unit(self, pictures, intrinsics, T):
            given.append(np.ptp(T[:, 0, 3]))
            if given[-1] < self.least:
                raise ValueError(f"moved {given[-1]:g}")
            return 3.0

    def lookup(target, target_stamp, source, source_stamp):
        T = np.eye(4)
        T[0, 3] = source_stamp - 10**9
        return T

    pipeline = Pipeline()
    p = SimpleNamespace(**{**vars(P), "metres_per_unit": 0.0})
    made = GoalPlanner(p, frames, pipeline, lookup, lambda *_: True)
    assert made.views(view()).metres_per_unit == 3.0 and given == [4.0]
    pipeline.least = 5.0
    assert made.views(view()).metres_per_unit == 3.0 and given == [4.0, 4.0, 8.0]
    pipeline.least = 9.0  # a window of every fourth does not fit into what is held
    with pytest.raises(RefusalError, match="moved 4"):
        made.views(view())


def test_images_that_a_goal_brings_are_fitted_too_and_its_camera_stays_its_own():
    given = view(
        source_images=[raw(photo())], source_poses=view().poses, source_camera_info=c.camera_info(FULL, 0, ""),
        camera_info=c.camera_info(FULL.resized(480, 360), 0, ""),
    )  # fmt: skip
    plan = planner().views(given)
    assert plan.frames.shape == (1, 64, 96, 3) and plan.target_intrinsics.width == 480


def test_memory_is_counted_for_one_whole_image_and_all_fitted_ones():
    """They are decoded one after the other."""
    many = view(source_images=[raw(photo())] * 5, source_poses=view().poses * 5)
    fitted = 96 * 64
    assert planner().source_pixels(many, 2) == 960 * 720 + 5 * fitted
    assert planner(raw(photo())).source_pixels(view(), 2) == 960 * 720 + 2 * fitted
    assert planner().source_pixels(view(), 2) == 2 * fitted


def test_live_sources_are_of_one_camera():
    """After a driver changed its size, or its calibration, what came before is not used."""
    for size, focal in (((480, 360), 1.0), ((960, 720), 1.2)):
        plans = planner(raw(photo()))
        camera = FULL.resized(*size)
        info = c.camera_info(replace(camera, fx=focal * camera.fx), 10**9, "camera")
        plans._frames.push(CameraFrame(10**9 + 1, "camera", raw(photo(*size)), info))
        assert len(plans.views(view()).frames) == 1
        plans._frames.push(CameraFrame(10**9 + 2, "camera", raw(photo(*size)), info))
        assert len(plans.views(view()).frames) == 2


def test_an_empty_camera_without_a_live_one_is_named():
    given = view(source_images=[raw(photo())], source_poses=view().poses, source_camera_info=CameraInfo())
    with pytest.raises(RefusalError, match="source_camera_info is empty"):
        planner().views(given)
