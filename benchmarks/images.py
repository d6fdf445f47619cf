# SPDX-License-Identifier: Apache-2.0
"""What a camera's image costs before it is in a window: decoding, undistortion and resizing, once a frame.

The callback only pairs image and camera_info; this runs in the node's worker thread (`TrajectoryNode._prepare`).
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from rays_as_pixels_model.geometry import Intrinsics, fit_frames

from .speed import in_turns

WIDTH, HEIGHT, RATE = 1920, 1080, 30.0
DISTORTION = (-0.28, 0.07, 0.0002, 0.0001, 0.0)  # plumb_bob, of a common wide lens


def measure_images(width: int, height: int, clock: Callable[[], float], repeats: int) -> dict:
    """Measure 1920x1080 frames; {kind: {seconds_per_frame, share_of_30_hz, shares_memory_with_message}}.

    Args:
        width, height: of the model.
    """
    import embedded_ros

    embedded_ros.install()  # the real rclpy where ROS 2 is sourced
    from sensor_msgs.msg import CompressedImage

    from rays_as_pixels_ros import conversions

    # A picture with the detail of a real one: JPEG's cost depends on it.
    rng = np.random.default_rng(0)
    rgb = cv2.resize(rng.integers(0, 255, (HEIGHT // 8, WIDTH // 8, 3), dtype=np.uint8), (WIDTH, HEIGHT))
    plain = conversions.camera_info(Intrinsics.from_fov(80, WIDTH, HEIGHT), 0, "camera")
    bent = conversions.camera_info(Intrinsics.from_fov(80, WIDTH, HEIGHT), 0, "camera")
    bent.d = list(DISTORTION)
    raw = conversions.rgb_to_image(rgb, 0, "camera")
    jpeg = CompressedImage(format="jpeg", data=cv2.imencode(".jpg", rgb[..., ::-1])[1].tobytes())

    def prepare(image, info) -> Callable[[], None]:
        def call() -> None:
            frame, camera = conversions.pinhole_frame(image, info, (width, height))
            fit_frames(frame[None], camera, width, height)

        return call

    cases = {"rgb8": (raw, plain), "rgb8_distorted": (raw, bent), "jpeg": (jpeg, plain), "jpeg_distorted": (jpeg, bent)}
    best = in_turns({name: prepare(*case) for name, case in cases.items()}, clock, repeats)
    return {
        name: {
            "seconds_per_frame": best[name],
            "share_of_30_hz": best[name] * RATE,
            "shares_memory_with_message": bool(np.shares_memory(conversions.image_to_rgb(case[0]), case[0].data)),
        }
        for name, case in cases.items()
    }
