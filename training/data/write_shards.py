# SPDX-License-Identifier: Apache-2.0
"""Write a dataset as WebDataset shards: tar files whose samples are clips, as frames or as a codec's latents.

A folder of shards holds `plan.json` (what it will hold, made first), `shard-000000.tar`, ... and `shards.json` (last).
A shard is written under a temporary name and renamed, so that one that is there is whole; the same command after a kill
writes the missing ones, and the result is the same bytes as without the kill.

A sample KEY of frames: `KEY.000.jpg` (or png), `KEY.001.jpg`, ..., `KEY.json` (where it is from) and `KEY.cameras.npz`
with poses (T, 4, 4), intrinsics (4,) fx fy cx cy and scales (T,). Of latents: `KEY.latents.npz` (see latents.py)
instead of the images.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, astuple
from pathlib import Path

import cv2
import numpy as np

from rays_as_pixels_model.files import replacing, write_text

from .clips import ClipCut, CutClip, cut_clip
from .posed import DatasetError, PosedVideo
from .scale import with_scene_scale

PLAN, DONE = "plan.json", "shards.json"
FORMAT = 1
_QUALITY = 95

Encoder = Callable[[CutClip], dict[str, bytes]]


def encode_images(suffix: str) -> Encoder:
    """Return the encoder of frames as 'jpg' (quality 95) or 'png'."""
    parameters = [cv2.IMWRITE_JPEG_QUALITY, _QUALITY] if suffix == "jpg" else [cv2.IMWRITE_PNG_COMPRESSION, 6]

    def encode(clip: CutClip) -> dict[str, bytes]:
        files = {}
        for index, frame in enumerate(clip.frames):
            good, data = cv2.imencode(f".{suffix}", cv2.cvtColor(frame, cv2.COLOR_RGB2BGR), parameters)
            if not good:
                raise DatasetError(f"a {frame.shape[1]}x{frame.shape[0]} frame cannot be encoded as {suffix}")
            files[f"{index:03d}.{suffix}"] = data.tobytes()
        return files

    return encode


def npz(**arrays: np.ndarray) -> bytes:
    """Arrays as the bytes of an npz file; the same arrays give the same bytes."""
    out = io.BytesIO()
    np.savez(out, **arrays)
    return out.getvalue()


def make_plan(videos: Sequence[PosedVideo], cut: ClipCut, store: dict, clips_per_shard: int) -> dict:
    """Return what a folder of shards will hold.

    Args:
        store: what samples hold: {"store": "frames", "suffix": "jpg"}, or the facts of the latents.
    """
    digest, clips = hashlib.sha256(), 0
    for video in videos:
        clips += len(cut.starts(len(video)))
        digest.update(video.name.encode())
        digest.update(np.ascontiguousarray(video.T_world_camera, dtype=np.float64).tobytes())
        digest.update(np.ascontiguousarray(video.times, dtype=np.float64).tobytes())
        digest.update(np.array([astuple(k) for k in video.intrinsics], dtype=np.float64).tobytes())
        if video.scene_scale is not None:
            digest.update(np.ascontiguousarray(video.scene_scale, dtype=np.float64).tobytes())
    return {
        "format": FORMAT,
        **store,
        **asdict(cut),
        "clips_per_shard": clips_per_shard,
        "videos": len(videos),
        "planned_clips": clips,
        "data": digest.hexdigest(),
    }


def write_shards(
    videos: Sequence[PosedVideo],
    folder: Path,
    plan: dict,
    cut: ClipCut,
    encode: Encoder,
    on_clip: Callable[[int], None] = lambda done: None,
    on_skip: Callable[[str], None] = lambda why: None,
) -> dict:
    """Write the shards that are missing and return the contents of shards.json.

    Args:
        on_clip: called with the number of clips that are done.
        on_skip: called with the reason why a video is left out: its scene's scale cannot be measured.

    Raises:
        DatasetError: the folder holds another plan, the videos are too short, or a video cannot be read.
    """
    if not plan["planned_clips"]:
        raise DatasetError(
            f"none of the {len(videos)} videos has the {(cut.frames - 1) * cut.stride + 1} frames that a clip of "
            f"{cut.frames} frames at stride {cut.stride} takes; take fewer or a smaller stride"
        )
    _check_plan(folder, plan)
    for left in folder.glob(".shard-*.tar"):  # of a run that was killed
        left.unlink()
    clips = [(number, start) for number, video in enumerate(videos) for start in cut.starts(len(video))]
    scaled = _Scaled(videos, on_skip)
    size, listed = plan["clips_per_shard"], []
    for first in range(0, len(clips), size):
        part = clips[first : first + size]
        path = folder / f"shard-{first // size:06d}.tar"
        if not path.is_file():
            _write_shard(path, first, part, scaled, cut, encode, on_clip)
        listed.append({"name": path.name, "clips": _count(path)})
        on_clip(first + len(part))
    done = {**plan, "clips": sum(entry["clips"] for entry in listed), "shards": listed}
    if not done["clips"]:
        raise DatasetError(f"{folder}: no video could be used: of none could the scene's scale be measured")
    write_text(folder / DONE, json.dumps(done, indent=1) + "\n")
    return done


def _check_plan(folder: Path, plan: dict) -> None:
    path = folder / PLAN
    if not path.exists():
        write_text(path, json.dumps(plan, indent=1) + "\n")
        return
    try:
        stored = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path}: not readable: {error}") from error
    different = [key for key in {**plan, **stored} if plan.get(key) != stored.get(key)]
    if different:
        key = different[0]
        raise DatasetError(
            f"{folder} holds shards of another plan: {key} is {stored.get(key)!r} there and {plan.get(key)!r} now; "
            "name another folder, or remove this one"
        )


class _Scaled:
    """Videos with their scale, one at a time; None for those whose scale cannot be measured."""

    def __init__(self, videos: Sequence[PosedVideo], on_skip: Callable[[str], None]) -> None:
        self._videos, self._on_skip = videos, on_skip
        self._number, self._video = -1, None

    def __getitem__(self, number: int) -> PosedVideo | None:
        if number != self._number:
            video = self._videos[number]
            try:
                self._video = with_scene_scale(video)
            except DatasetError as error:
                self._video = None
                self._on_skip(str(error))
            self._number = number
        return self._video


def _write_shard(path: Path, first: int, clips: list, scaled: _Scaled, cut: ClipCut, encode: Encoder, on_clip) -> None:
    with replacing(path) as temporary, tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar:
        for number, (video_number, start) in enumerate(clips, first):
            video = scaled[video_number]
            if video is None:
                continue
            clip = cut_clip(video, start, cut)
            k = clip.intrinsics
            files = encode(clip)
            files["cameras.npz"] = npz(
                poses=clip.T_world_camera, intrinsics=np.array([k.fx, k.fy, k.cx, k.cy]), scales=clip.scene_scale
            )
            files["json"] = json.dumps({"video": video.name, "first_frame": int(start)}).encode()
            for name, data in files.items():
                info = tarfile.TarInfo(f"{number:09d}.{name}")
                info.size, info.mode = len(data), 0o644
                tar.addfile(info, io.BytesIO(data))
            on_clip(number + 1)


def _count(path: Path) -> int:
    with tarfile.open(path) as tar:
        return sum(name.endswith(".cameras.npz") for name in tar.getnames())
