# SPDX-License-Identifier: Apache-2.0
"""What of a goal can be refused before its turn comes, each with a reason that names the value and what is allowed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from . import conversions

# Bytes of memory for a pixel of an image in a goal: decoded, undistorted and stacked; and of a view: with the message
# that is published, its place in the result, and both on the wire.
_BYTES_PER_PIXEL = 3 * 4
_MIB = 2**20


class RefusalError(ValueError):
    """A goal that cannot be served; the text is the reason that the client gets."""


def steps_of(wanted: int, usual: int, p: Any) -> int:
    """Return the steps that a goal means (0: the `usual` ones); p holds the node's parameters.

    Raises:
        RefusalError: more than max_steps.
    """
    if wanted > p.max_steps:
        raise RefusalError(f"{wanted} steps asked for; max_steps is {p.max_steps}")
    return int(wanted) or usual


def check_views_request(request: Any, p: Any) -> None:
    """Check a RenderViews goal against the node's parameters p.

    Raises:
        RefusalError, ConversionError: what is wrong with it.
    """
    if not request.poses:
        raise RefusalError("the goal has no poses")
    if len(request.poses) > p.max_views:
        raise RefusalError(f"{len(request.poses)} poses asked for; max_views is {p.max_views}")
    steps_of(request.steps, p.steps, p)
    for kind, poses in (("poses", request.poses), ("source_poses", request.source_poses)):
        for index, pose in enumerate(poses):
            try:
                conversions.pose_to_matrix(pose.pose)
            except conversions.ConversionError as error:
                raise RefusalError(f"{kind}[{index}]: {error}") from error
            if not pose.header.frame_id:
                raise RefusalError(f"{kind}[{index}]: frame_id is empty")
    if not conversions.is_zero(request.camera_info):
        check_pixels("camera_info", conversions.camera_from_info(request.camera_info)[0], len(request.poses), p)
    if len(request.source_images) != len(request.source_poses):
        raise RefusalError(f"{len(request.source_images)} source_images but {len(request.source_poses)} source_poses")
    check_sources(request.source_images, p)


def check_imagine_request(request: Any, p: Any, window: int) -> None:
    """Check an Imagine goal against the node's parameters p and the frames of the model's window.

    Raises:
        RefusalError, ConversionError: what is wrong with it.
    """
    if request.frames > window:
        raise RefusalError(f"{request.frames} frames asked for; the model makes up to {window}")
    steps_of(request.steps, p.imagine_steps, p)
    if not conversions.is_zero(request.camera_info):
        conversions.camera_from_info(request.camera_info)
    if len(request.source_images) > p.max_source_images:
        raise RefusalError(f"{len(request.source_images)} source_images; max_source_images is {p.max_source_images}")
    check_sources(request.source_images, p)


def check_sources(images: Sequence[Any], p: Any) -> None:
    """Check the images that a goal brings."""
    for index, image in enumerate(images):
        what, first = f"source_images[{index}]", images[0]
        try:
            conversions.check_image(image)
        except conversions.ConversionError as error:
            raise RefusalError(f"{what}: {error}") from error
        check_pixels(what, image, len(images), p)
        if (image.width, image.height) != (first.width, first.height):
            raise RefusalError(
                f"{what} is {image.width}x{image.height}, but source_images[0] is "
                f"{first.width}x{first.height}; all must have one size"
            )


def check_pixels(what: str, sized: Any, count: int, p: Any) -> None:
    """Check the size of an image or a camera, and of `count` of them."""
    pixels = sized.width * sized.height
    if pixels > p.max_image_pixels:
        raise RefusalError(f"{what} is {sized.width}x{sized.height}; max_image_pixels is {p.max_image_pixels}")
    if pixels * count > p.max_total_pixels:
        raise RefusalError(
            f"{what}: {count} images of {sized.width}x{sized.height} are more than max_total_pixels, "
            f"{p.max_total_pixels}"
        )


def image_bytes(source_pixels: int, views: int, width: int, height: int) -> int:
    """Return the bytes that `source_pixels` held at once and `views` views of width x height take outside the model."""
    return _BYTES_PER_PIXEL * (source_pixels + views * width * height)


def check_memory(device: str, predicted: int, available: int, margin: float) -> None:
    """Refuse a goal whose predicted bytes, with the share `margin` added, are more than what is available.

    Raises:
        RefusalError: names both.
    """
    needed = predicted * (1 + margin)
    if needed > available:
        raise RefusalError(
            f"predicted memory does not fit on {device}: {needed / _MIB:.1f} MiB ({predicted / _MIB:.1f} predicted and "
            f"{margin:.0%} for its error) are more than {available / _MIB:.1f} MiB available; send smaller or fewer "
            "images, or raise max_memory_mib where that is the limit"
        )
