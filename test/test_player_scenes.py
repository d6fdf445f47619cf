# SPDX-License-Identifier: Apache-2.0
"""The procedural camera of camera_player: plain scenes as they always were, varied ones as training draws them."""

from types import SimpleNamespace

import numpy as np
import pytest

from rays_as_pixels_model.geometry import Intrinsics
from rays_as_pixels_model.scenes import TextureBank, random_path, random_scene, render
from rays_as_pixels_ros import parameters
from rays_as_pixels_ros.camera_player_node import open_source
from rays_as_pixels_training.data.procedural import ClipConfig, make_shot

SIZE = {"width": 48, "height": 32}


def video(**changes):
    defaults = {parameter.name: parameter.default for parameter in parameters.CAMERA_PLAYER}
    return open_source(SimpleNamespace(**{**defaults, **SIZE, "frames": 8, "seed": 4, **changes}))


def test_plain_scenes_are_the_same_bit_for_bit():
    scene = random_scene(4, TextureBank.default(split="held_out"))
    camera, poses = Intrinsics.from_fov(70.0, 48, 32), random_path(4, scene, 8, "forward")
    for plain in (video(style="forward"), video(style="forward", scenes="varied", difficulty=0.0)):
        assert plain.frame_intrinsics == [camera] * 8
        np.testing.assert_array_equal(plain.T_world_camera, poses)
        np.testing.assert_array_equal(np.stack(list(plain)), render(scene, poses, camera)[0])


def test_varied_scenes_are_those_of_training():
    """Also the camera, off-centre and of any width: what camera_info says is what filmed."""
    varied = video(scenes="varied")
    config = ClipConfig(frames=8, scenes="varied", **SIZE)
    shot, camera = make_shot(4, TextureBank.default(split="held_out"), config)
    found = varied.intrinsics
    assert (found.fx, found.fy, found.cx, found.cy) == pytest.approx((camera.fx, camera.fy, camera.cx, camera.cy))
    assert abs(found.cx - 24.0) > 0.05 and found.fx != found.fy
    np.testing.assert_array_equal(varied.T_world_camera, shot.T_world_camera)
    np.testing.assert_array_equal(np.stack(list(varied)), shot.render(found)[0])


def test_a_group_alone_leaves_the_rest_plain():
    plain, sensor, motion = video(), video(scenes="sensor"), video(scenes="motion", style="walking")
    np.testing.assert_array_equal(plain.T_world_camera, sensor.T_world_camera)
    assert sensor.intrinsics == motion.intrinsics == plain.intrinsics
    assert not np.array_equal(next(iter(plain)), next(iter(sensor)))
    assert not np.array_equal(plain.T_world_camera, motion.T_world_camera)


@pytest.mark.parametrize("changes, reason", [
    ({"scenes": "fog"}, "scenes must be plain, varied or of geometry, lights, sensor, motion, lens joined by '\\+'"),
    ({"style": "walking"}, "style is 'walking'; it must be one of handheld, forward, orbit, yaw"),
])  # fmt: skip
def test_what_does_not_exist_is_named(changes, reason):
    with pytest.raises(ValueError, match=reason) as error:
        video(**changes)
    assert "\n" not in str(error.value)
