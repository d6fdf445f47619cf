# SPDX-License-Identifier: Apache-2.0
"""A checked goal to arrays: which images are its sources, and every pose in one frame.

That frame is the optical frame of the newest source image at its stamp, or the frame of the first source pose when the
goal brings its own images. TF is asked through two functions, so that nothing here knows who keeps it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from rays_as_pixels_model.geometry import Intrinsics, fit_frames

from . import conversions
from .goal_checks import RefusalError, steps_of
from .window import RecentFrames

_WIDER = (1, 2, 4)  # windows that tell the unit: times buffer_stride


@dataclass(frozen=True)
class ViewsPlan:
    """S sources, V views; poses (S or V, 4, 4) in one world; stamp in ns.

    frames: (S, h, w, 3) uint8, at the model's size, as source_intrinsics, which the views have where the goal has none.
    """

    frames: np.ndarray
    T_world_source: np.ndarray
    source_intrinsics: Intrinsics
    T_world_target: np.ndarray
    target_intrinsics: Intrinsics
    metres_per_unit: float
    steps: int
    seed: int
    stamp: int


@dataclass(frozen=True)
class ImaginePlan:
    """stamp (ns) and frame of the first source, at which the video starts.

    frames: (S, h, w, 3) uint8, at the model's size, as intrinsics.
    """

    frames: np.ndarray
    intrinsics: Intrinsics
    stamp: int
    frame_id: str
    steps: int
    seed: int


def _same_camera(frame: Any, other: Any) -> bool:
    """Whether two live images have one frame, size and camera_info."""
    sizes = [getattr(f.image, side, None) for f in (frame, other) for side in ("width", "height")]
    if frame.frame_id != other.frame_id or sizes[:2] != sizes[2:]:
        return False
    a, b = frame.info, other.info
    return (a.width, a.height, a.roi, list(a.k), list(a.d)) == (b.width, b.height, b.roi, list(b.k), list(b.d))


class GoalPlanner:
    """Make plans from goals, the live images and TF. Every method raises RefusalError with the reason."""

    def __init__(
        self,
        p: Any,
        frames: RecentFrames,
        pipeline: Any,
        lookup: Callable[[str, int, str, int], np.ndarray],
        can_place: Callable[[set[str], str, int], bool],
    ):
        """
        Args:
            p: the node's parameters.
            frames: the live images, each with stamp, frame_id, image, info and decode().
            pipeline: the model.
            lookup: (target, its stamp, source, its stamp) to T_target_source (4, 4); may raise RefusalError.
            can_place: (frames, optical frame, stamp): whether TF knows all of them at that time.
        """
        self._p, self._frames, self._pipeline = p, frames, pipeline
        self._lookup, self._can_place = lookup, can_place

    def views(self, request: Any) -> ViewsPlan:
        """Plan a RenderViews goal."""
        if request.source_images:
            frames, T_world_source, intrinsics, stamp, world = self._given_sources(request)
            metres = self._p.metres_per_unit or self._estimated_unit(frames, intrinsics, T_world_source)
        else:
            live = self._live_sources(request)
            stamp, world = live[0].stamp, live[0].frame_id
            frames, intrinsics = self._decode(live)
            T_world_source = np.stack([self._moved(world, stamp, frame.stamp) for frame in live])
            metres = self._p.metres_per_unit or self._live_unit(live[0])
        T_world_target = np.stack([self._in_world(pose, world, stamp) for pose in request.poses])
        target = intrinsics
        if not conversions.is_zero(request.camera_info):
            target, _ = conversions.camera_from_info(request.camera_info)
        steps = steps_of(request.steps, self._p.steps, self._p)
        return ViewsPlan(
            frames, T_world_source, intrinsics, T_world_target, target, metres, steps, int(request.seed), stamp
        )  # fmt: skip

    def imagine(self, request: Any) -> ImaginePlan:
        """Plan an Imagine goal."""
        info, images = request.camera_info, request.source_images
        live = [] if images else self._frames.newest(1)
        if not images and not live:
            raise RefusalError("no source frame yet")
        if live and conversions.is_zero(info):
            frames, intrinsics = self._decode(live)
        else:
            frames, intrinsics = self._decode_given(images or [frame.image for frame in live], "camera_info", info)
        start = (images[0] if images else live[0].image).header
        steps = steps_of(request.steps, self._p.imagine_steps, self._p)
        return ImaginePlan(
            frames, intrinsics, conversions.stamp_ns(start.stamp), start.frame_id, steps, int(request.seed)
        )  # fmt: skip

    def source_pixels(self, request: Any, live: int) -> int:
        """Count the pixels held at once of a goal's images (its own, or `live` ones): one whole, all of them fitted."""
        config, images = self._pipeline.config, request.source_images
        sized = images or [conversions.camera_from_info(f.info, f.rectified)[0] for f in self._frames.newest(1)]
        largest = max((one.width * one.height for one in sized), default=0)
        return largest + (len(images) or live) * config.width * config.height

    # Sources

    def _live_sources(self, request: Any) -> list[Any]:
        """Choose the live images, reference first: the newest, or the one whose stamp the poses name.

        The others are spread over what is held, of what TF can place: they tell depth where they stand apart.
        """
        held = self._frames.all()
        if not held:
            raise RefusalError("no source frame yet")
        optical = held[0].frame_id
        stamps = {conversions.stamp_ns(pose.header.stamp) for pose in request.poses if pose.header.frame_id == optical}
        stamps.discard(0)
        if len(stamps) > 1:
            raise RefusalError(
                f"poses in the camera's own frame '{optical}' have {len(stamps)} different stamps; use one"
            )
        if stamps:
            stamp = stamps.pop()
            while held and held[0].stamp != stamp:
                held = held[1:]
            if not held:
                raise RefusalError(
                    f"no image with stamp {stamp * 1e-9:.6f} is held any more (or yet); use a zero stamp for the newest"
                )
        else:
            held = self._from_newest_placed(held, {pose.header.frame_id.lstrip("/") for pose in request.poses})
        first = held[0]
        around = sorted(self._frames.all(), key=lambda frame: abs(frame.stamp - first.stamp))
        world = {self._p.fixed_frame}
        if not self._can_place(world, optical, first.stamp):
            return [first]
        # A camera that changed, or another one on the same topic, was not where this one's frame was.
        alike = [frame for frame in around if frame is not first and _same_camera(frame, first)]
        others = [frame for frame in alike if self._can_place(world, optical, frame.stamp)]
        choice = [first, *others[self._p.buffer_stride - 1 :: self._p.buffer_stride]]
        spread = np.linspace(0, len(choice) - 1, min(len(choice), self._p.source_frames)).round().astype(int)
        return [choice[index] for index in spread]

    def _from_newest_placed(self, held: list[Any], frames: set[str]) -> list[Any]:
        """Drop the newest images that TF cannot place yet: a trajectory comes a window later than its images.

        Images are held newest first. Where TF places none of them all are kept, and the look-up says what is missing.
        """
        optical = held[0].frame_id
        alone = self._p.metres_per_unit and self._p.source_frames == 1
        wanted = frames - {optical} | (set() if alone else {self._p.fixed_frame})
        for index, frame in enumerate(held):
            if self._can_place(wanted, optical, frame.stamp):
                return held[index:]
        return held

    def _given_sources(self, request: Any):
        """Decode the goal's own source images and bring their poses into the frame of the first one."""
        frames, intrinsics = self._decode_given(
            request.source_images, "source_camera_info", request.source_camera_info
        )
        first = request.source_poses[0].header
        world, stamp = first.frame_id.lstrip("/"), conversions.stamp_ns(first.stamp)
        T_world_source = np.stack([self._in_world(pose, world, stamp) for pose in request.source_poses])
        return frames, T_world_source, intrinsics, stamp, world

    def _decode_given(self, images: list[Any], field: str, info: Any) -> tuple[np.ndarray, Intrinsics]:
        """Decode images to (N, H, W, 3) and their camera: the goal's, or the live one where it left its own empty."""
        rectified = False
        if conversions.is_zero(info):
            newest = self._frames.newest(1)
            if not newest:
                raise RefusalError(f"{field} is empty and there is no live camera to take it from")
            info, rectified = newest[0].info, newest[0].rectified
        return self._fitted(conversions.pinhole_frame(image, info, self._size, rectified) for image in images)

    @property
    def _size(self) -> tuple[int, int]:
        return self._pipeline.config.width, self._pipeline.config.height

    def _decode(self, frames: list[Any]) -> tuple[np.ndarray, Intrinsics]:
        """Decode live frames to (N, h, w, 3) and the camera of the first."""
        return self._fitted(frame.decode(self._size) for frame in frames)

    def _fitted(self, decoded: Iterable[tuple[np.ndarray, Intrinsics]]) -> tuple[np.ndarray, Intrinsics]:
        """Fit images to the model's size, each as it is decoded; raises RefusalError if they differ in theirs."""
        made, sizes = [], set()
        for rgb, camera in decoded:
            sizes.add(rgb.shape)
            made.append(fit_frames(rgb[None], camera, *self._size))
        if len(sizes) > 1:  # those of a goal were checked as it came
            raise RefusalError("the live images changed their size; wait until the buffer holds one size")
        return np.concatenate([frame for frame, _ in made]), made[0][1]

    # Poses

    def _in_world(self, pose: Any, world: str, stamp: int) -> np.ndarray:
        """Return a goal pose in frame `world` as that frame was at `stamp` (ns)."""
        matrix = conversions.pose_to_matrix(pose.pose)
        frame, own_stamp = pose.header.frame_id.lstrip("/"), conversions.stamp_ns(pose.header.stamp)
        if frame == world and own_stamp in (0, stamp):
            return matrix
        if own_stamp in (0, stamp) or frame == self._p.fixed_frame:
            return self._lookup(world, stamp, frame, stamp) @ matrix
        return self._lookup(world, stamp, frame, own_stamp) @ matrix

    def _moved(self, frame: str, stamp: int, other_stamp: int) -> np.ndarray:
        """Return the pose of a moving frame at other_stamp, seen from itself at stamp."""
        return np.eye(4) if stamp == other_stamp else self._lookup(frame, stamp, frame, other_stamp)

    # Metres for a unit of the model

    def _live_unit(self, reference: Any) -> float:
        """Estimate metres per unit at the reference image from the live camera's motion in fixed_frame.

        Where a window does not tell it, as when the camera moved too little, its images are taken farther apart.
        """
        count = self._pipeline.config.frames
        held = [frame for frame in self._frames.all() if frame.frame_id == reference.frame_id]
        older = [frame for frame in held if frame.stamp <= reference.stamp]
        newer = [frame for frame in held[::-1] if frame.stamp >= reference.stamp]
        stride = self._p.buffer_stride
        # The unit is that of the first frame, so the reference goes first, whichever way time runs.
        windows = []
        for step in (stride * times for times in _WIDER):
            windows += [side[::step][:count] for side in (older, newer) if len(side[::step]) >= count][:1]
        if not windows:
            raise RefusalError(
                f"metres_per_unit is 0 (to be estimated), but only {len(held)} images are held; {count} that are "
                f"{stride} apart are needed: wait, or set metres_per_unit"
            )
        refused = None
        for window in windows:
            frames, intrinsics = self._decode(window)
            poses = [self._lookup(self._p.fixed_frame, f.stamp, f.frame_id, f.stamp) for f in window]
            try:
                return self._estimated_unit(frames, intrinsics, np.stack(poses))
            except RefusalError as error:
                refused = refused or error  # what is wrong with the window that was asked for
        raise refused

    def _estimated_unit(self, frames: np.ndarray, intrinsics: Intrinsics, T_world_camera: np.ndarray) -> float:
        """Return metres per unit of a window (T, H, W, 3) with poses (T, 4, 4); the first is the reference."""
        count = self._pipeline.config.frames
        if len(frames) < count:
            raise RefusalError(
                f"metres_per_unit is 0 (to be estimated), but {len(frames)} source images are too few for that; "
                f"{count} are needed: send more, or set metres_per_unit"
            )
        try:
            return float(self._pipeline.metres_per_unit(frames[:count], intrinsics, T_world_camera[:count]))
        except ValueError as error:
            raise RefusalError(f"metres_per_unit cannot be estimated: {error}") from error

