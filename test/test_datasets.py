# SPDX-License-Identifier: Apache-2.0
"""Datasets of image files: written here by another route than they are read, they give back the cameras they were made
with, and their pictures agree with those cameras to a pixel."""

import json
from dataclasses import replace

import cv2
import numpy as np
import pytest
from rendered_video import (
    INTRINSICS,
    SIZE,
    assert_same_cameras,
    assert_undistorted,
    brown_slopes,
    check_epipolar,
    elsewhere,
    rendered,
    seen_through,
)
from scipy.spatial.transform import Rotation

from rays_as_pixels_model.files import write_png
from rays_as_pixels_training.data import open_dataset
from rays_as_pixels_training.data.matching import agreement

BARREL = (-0.12, 0.03, 0.002, -0.001, 0.0)
PINCUSHION = (0.08, 0.0, 0.0, 0.0, 0.0)


def write_frames(folder, frames, name="{:05d}.png"):
    folder.mkdir(parents=True, exist_ok=True)
    for index, frame in enumerate(frames):
        write_png(folder / name.format(index), frame)


def quaternion(pose):
    return Rotation.from_matrix(pose[:3, :3]).as_quat()  # xyzw


def write_posed_images(folder, first_pixel=(0, 0)):
    clip, k = rendered(), INTRINSICS
    write_frames(folder / "images", clip.frames)
    shift = 0.5 - first_pixel[0]
    frames = [
        {"file": f"images/{i:05d}.png", "fx": k.fx, "fy": k.fy, "cx": k.cx - shift, "cy": k.cy - shift,
         "T_world_camera": pose.tolist(), "time": i / 10}
        for i, pose in enumerate(elsewhere(clip.T_world_camera))
    ]  # fmt: skip
    data = {"width": k.width, "height": k.height, "pixel_centre_of_top_left": list(first_pixel), "frames": frames}
    (folder / "cameras.json").write_text(json.dumps(data))


def write_nerfstudio(folder, frames=None, images="images", factor=1, **changes):
    """Write transforms.json by its definition: OpenGL axes, each column of the rotation turned here by name."""
    clip, k = rendered(), INTRINSICS
    write_frames(folder / images, clip.frames if frames is None else frames)
    listed = []
    for index, pose in enumerate(elsewhere(clip.T_world_camera)):
        right, down, forward, position = pose[:3].T
        matrix = np.vstack([np.stack([right, -down, -forward, position], axis=1), [0, 0, 0, 1]])
        listed.append({"file_path": f"images/{index:05d}.png", "transform_matrix": matrix.tolist()})
    camera = {"w": k.width, "h": k.height, "fl_x": k.fx, "fl_y": k.fy, "cx": k.cx, "cy": k.cy}
    data = {**{key: value * factor for key, value in camera.items()}, "camera_model": "OPENCV", **changes}
    (folder / "transforms.json").write_text(json.dumps({**data, "frames": listed[::-1]}))


def write_re10k(folder, name="clip"):
    clip, k = rendered(), INTRINSICS
    lines = ["https://www.youtube.com/watch?v=none"]
    for index, pose in enumerate(elsewhere(clip.T_world_camera)):
        world_to_camera = np.linalg.inv(pose)[:3].ravel()
        shares = [k.fx / k.width, k.fy / k.height, k.cx / k.width, k.cy / k.height, 0, 0]
        lines.append(" ".join(map(repr, map(float, [*shares, *world_to_camera]))))
        lines[-1] = f"{1_000_000 + 33_333 * index} {lines[-1]}"
        write_frames(folder / name, [clip.frames[index]], f"{1_000_000 + 33_333 * index}.png")
    (folder / f"{name}.txt").write_text("\n".join(lines) + "\n")


def write_tum(folder, frames=None, poses_hz=100.0, depth=True):
    """Write a sequence at 10 Hz whose ground truth is sampled elsewhere, from the same motion made continuous."""
    from scipy.interpolate import CubicSpline

    clip = rendered()
    poses = elsewhere(clip.T_world_camera)
    times = 100.0 + np.arange(len(poses)) / 10
    write_frames(folder / "rgb", clip.frames if frames is None else frames)
    (folder / "depth").mkdir()
    rgb, deep = ["# color images"], ["# depth maps"]
    for index, time in enumerate(times):
        rgb.append(f"{time:.6f} rgb/{index:05d}.png")
        deep.append(f"{time + 0.01:.6f} depth/{index:05d}.png")
        cv2.imwrite(str(folder / "depth" / f"{index:05d}.png"), np.round(clip.depth[index] * 5000).astype(np.uint16))
    position = CubicSpline(times, poses[:, :3, 3])
    turn = Rotation.from_matrix(poses[:, :3, :3]) * Rotation.from_matrix(poses[0, :3, :3]).inv()
    vector = CubicSpline(times, turn.as_rotvec())
    truth = ["# ground truth"]
    for time in np.arange(times[0] - 0.004, times[-1] + 1.5 / poses_hz, 1 / poses_hz):
        rotation = Rotation.from_rotvec(vector(time)) * Rotation.from_matrix(poses[0, :3, :3])
        truth.append(" ".join(f"{value:.9f}" for value in (time, *position(time), *rotation.as_quat())))
    (folder / "rgb.txt").write_text("\n".join(rgb))
    (folder / "groundtruth.txt").write_text("\n".join(truth))
    if depth:
        (folder / "depth.txt").write_text("\n".join(deep))


def stated(k=INTRINSICS):
    """The camera as a user states it: OpenCV's pixels."""
    return ",".join(map(str, k.to_opencv()))


@pytest.mark.parametrize("first_pixel", [(0, 0), (0.5, 0.5)])
def test_posed_images(tmp_path, first_pixel):
    write_posed_images(tmp_path, first_pixel)
    (video,) = open_dataset(tmp_path)
    assert_same_cameras(video)
    np.testing.assert_array_equal(video.load(3), rendered().frames[3])
    np.testing.assert_allclose(video.times, np.arange(6) / 10)


def test_nerfstudio(tmp_path):
    write_nerfstudio(tmp_path)
    (video,) = open_dataset(tmp_path, fps=20)
    assert_same_cameras(video)
    np.testing.assert_array_equal(video.load(3), rendered().frames[3])
    np.testing.assert_allclose(video.times, np.arange(6) / 20)


def test_frames_are_in_the_order_of_their_numbers(tmp_path):
    write_nerfstudio(tmp_path)
    file, data = tmp_path / "transforms.json", json.loads((tmp_path / "transforms.json").read_text())
    for frame in data["frames"]:
        new = f"images/r_{8 + int(frame['file_path'][-9:-4])}.png"  # r_8, r_9, r_10, ...
        (tmp_path / frame["file_path"]).rename(tmp_path / new)
        frame["file_path"] = new
    file.write_text(json.dumps(data))
    assert_same_cameras(open_dataset(tmp_path)[0])


@pytest.mark.parametrize("images, options", [("images_4", {}), ("mine", {"images": "mine"})])
def test_nerfstudio_with_smaller_images_than_stated(tmp_path, images, options):
    write_nerfstudio(tmp_path, images=images, factor=4)
    assert_same_cameras(open_dataset(tmp_path, **options)[0])


def test_nerfstudio_with_a_field_of_view(tmp_path):
    angle = 2 * np.arctan(0.5 * SIZE[0] / INTRINSICS.fx)
    write_nerfstudio(tmp_path, fl_x=None, fl_y=None, cx=None, cy=None, camera_angle_x=angle)
    (video,) = open_dataset(tmp_path)
    assert video.intrinsics[0].fx == pytest.approx(INTRINSICS.fx)
    assert (video.intrinsics[0].cx, video.intrinsics[0].cy) == (SIZE[0] / 2, SIZE[1] / 2)


@pytest.mark.parametrize("coefficients", [BARREL, PINCUSHION])
def test_nerfstudio_undoes_distortion(tmp_path, coefficients):
    k1, k2, p1, p2, _ = coefficients
    bent = seen_through(brown_slopes(coefficients))
    write_nerfstudio(tmp_path, bent, k1=k1, k2=k2, p1=p1, p2=p2)
    (video,) = open_dataset(tmp_path)
    assert_same_cameras(video, intrinsics=None)
    assert_undistorted(video)


def test_re10k(tmp_path):
    write_re10k(tmp_path)
    (video,) = open_dataset(tmp_path)
    assert_same_cameras(video)
    assert video.name == "clip"
    np.testing.assert_allclose(np.diff(video.times), 0.033333, atol=1e-9)


def test_re10k_leaves_out_clips_without_frames_only_when_told(tmp_path):
    write_re10k(tmp_path)
    (tmp_path / "gone.txt").write_text((tmp_path / "clip.txt").read_text())
    with pytest.raises(ValueError, match=r"gone\.txt: no folder gone.*skip_missing"):
        open_dataset(tmp_path)
    assert [video.name for video in open_dataset(tmp_path, skip_missing=True)] == ["clip"]


def test_tum_interpolates_ground_truth_and_reads_the_scale_from_depth(tmp_path):
    write_tum(tmp_path / "mine")
    (video,) = open_dataset(tmp_path / "mine", intrinsics=stated())
    assert_same_cameras(video, tolerance=2e-3)  # linear between samples of a smooth motion
    assert video.metric
    np.testing.assert_allclose(video.scene_scale, rendered().scene_scale, rtol=0.05)


def test_tum_knows_the_cameras_of_the_benchmark(tmp_path):
    write_tum(tmp_path / "rgbd_dataset_freiburg3_x", depth=False)
    (video,) = open_dataset(tmp_path)
    assert video.intrinsics[0].to_opencv() == pytest.approx((535.4, 539.2, 320.1, 247.6))
    assert video.scene_scale is None
    assert video.name == "rgbd_dataset_freiburg3_x"


def test_tum_undoes_the_stated_distortion(tmp_path):
    write_tum(tmp_path / "mine", seen_through(brown_slopes(BARREL)))
    (video,) = open_dataset(tmp_path / "mine", intrinsics=stated(), distortion=",".join(map(str, BARREL)))
    assert_undistorted(video)


def test_tum_leaves_out_images_without_ground_truth_and_splits_at_gaps(tmp_path):
    write_tum(tmp_path / "mine")
    path = tmp_path / "mine" / "groundtruth.txt"
    _, *lines = path.read_text().splitlines()
    path.write_text("\n".join(line for line in lines if not 100.15 < float(line.split()[0]) < 100.25))
    videos = open_dataset(tmp_path / "mine", intrinsics=stated(), max_gap=0.05)
    assert [video.name for video in videos] == ["mine/0", "mine/1"]
    assert [len(video) for video in videos] == [2, 3]
    np.testing.assert_allclose(videos[1].times, [100.3, 100.4, 100.5])
    np.testing.assert_array_equal(videos[1].load(0), rendered().frames[3])


def test_procedural_videos_are_the_clips_of_the_renderer():
    pytest.importorskip("skimage", reason="needs scikit-image")
    videos = open_dataset("procedural", clips=2, seed=3, frames=5, width=120, height=80)
    assert len(videos) == 2 and len(videos[1]) == 5
    np.testing.assert_array_equal(videos[0].load(1), open_dataset("procedural", clips=1, seed=3, frames=5,
                                                                  width=120, height=80)[0].load(1))  # fmt: skip
    assert agreement(videos[0], pairs=2, apart=1)["epipolar_px"] < 1
    with pytest.raises(IndexError):
        videos[2]


def test_a_folder_of_datasets_of_several_kinds_and_names(tmp_path):
    write_posed_images(tmp_path / "a" / "deep")
    write_nerfstudio(tmp_path / "b")
    write_re10k(tmp_path / "c")
    assert [video.name for video in open_dataset(tmp_path)] == ["a/deep", "b", "c/clip"]
    assert [video.name for video in open_dataset(tmp_path, "nerfstudio")] == ["b"]


def test_wrong_cameras_do_not_pass_the_epipolar_check(tmp_path):
    write_posed_images(tmp_path)
    (video,) = open_dataset(tmp_path)
    flipped = video.T_world_camera @ np.diag([1.0, -1, -1, 1])  # OpenGL axes taken for OpenCV's
    longer = [replace(k, fx=1.3 * k.fx, fy=1.3 * k.fy) for k in video.intrinsics]
    late = np.roll(video.T_world_camera, 1, axis=0)
    for wrong in ({"T_world_camera": flipped}, {"intrinsics": longer}, {"T_world_camera": late}):
        with pytest.raises(AssertionError, match="epipolar_px"):
            check_epipolar(replace(video, **wrong))
