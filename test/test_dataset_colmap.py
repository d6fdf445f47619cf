# SPDX-License-Identifier: Apache-2.0
"""COLMAP models that pycolmap writes, text and binary: cameras, distortion undone, scale from the sparse points."""

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

from rays_as_pixels_model.files import write_png
from rays_as_pixels_training.data import open_dataset
from rays_as_pixels_training.data.posed import DatasetError

pycolmap = pytest.importorskip("pycolmap", reason="needs pycolmap")

K = [INTRINSICS.fx, INTRINSICS.fy, INTRINSICS.cx, INTRINSICS.cy]


def write_model(folder, binary, model="PINHOLE", params=K, frames=None, points=True, names="{:03d}.png"):
    """Write images and a model whose points are pixels of the rendered depth, seen by every image."""
    clip = rendered()
    poses = elsewhere(clip.T_world_camera)
    out = pycolmap.Reconstruction()
    out.add_camera_with_trivial_rig(
        pycolmap.Camera(camera_id=1, model=model, width=SIZE[0], height=SIZE[1], params=params)
    )
    rng = np.random.default_rng(0)
    tracks = []
    if points:
        row, column = rng.integers(0, SIZE[1], 400), rng.integers(0, SIZE[0], 400)
        slopes = (np.stack([column, row], 1) + 0.5 - K[2:]) / K[:2]
        z = clip.depth[0][row, column].astype(float)
        camera = np.concatenate([slopes, np.ones((400, 1))], 1) * z[:, None]
        tracks = camera @ poses[0][:3, :3].T + poses[0][:3, 3]
    for index, (pose, frame) in enumerate(zip(poses, clip.frames if frames is None else frames, strict=True)):
        name = names.format(index)
        write_png(folder / "images" / name, frame)
        seen = [pycolmap.Point2D(xy) for xy in np.stack([column, row], 1) + 0.5] if points else []
        image = pycolmap.Image(name=name, camera_id=1, image_id=index + 1, points2D=seen)
        out.add_image_with_trivial_frame(image, pycolmap.Rigid3d(np.linalg.inv(pose)[:3]))
    for number, xyz in enumerate(tracks):
        track = pycolmap.Track()
        for image in range(1, len(poses) + 1):
            track.add_element(image, number)
        out.add_point3D(xyz, track, np.zeros(3, np.uint8))
    sparse = folder / "sparse" / "0"
    sparse.mkdir(parents=True)
    (out.write_binary if binary else out.write_text)(str(sparse))
    return sparse


@pytest.mark.parametrize("binary", [True, False])
def test_text_and_binary_models(tmp_path, binary):
    write_model(tmp_path / "mine", binary)
    (video,) = open_dataset(tmp_path / "mine")
    assert_same_cameras(video)
    assert video.name == "mine" and not video.metric
    np.testing.assert_allclose(video.scene_scale, rendered().scene_scale, rtol=0.1)
    (same,) = open_dataset(tmp_path / "mine" / "sparse" / "0", images=str(tmp_path / "mine" / "images"))
    np.testing.assert_array_equal(same.T_world_camera, video.T_world_camera)


def fisheye_slopes(coefficients):
    """OpenCV's inverse of its fisheye model."""

    def slopes_of(pixels):
        fx, fy, cx, cy = INTRINSICS.to_opencv()
        matrix = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])
        return cv2.fisheye.undistortPoints(pixels[:, None] - 0.5, matrix, np.array(coefficients))[:, 0]

    return slopes_of


@pytest.mark.parametrize(
    "model, extra, slopes_of",
    [
        ("OPENCV", [-0.1, 0.02, 0.002, -0.001], brown_slopes([-0.1, 0.02, 0.002, -0.001, 0.0])),
        ("FULL_OPENCV", [0.05, 0.01, 0.001, 0.0, 0.0, 0.0, 0.0, 0.0], brown_slopes([0.05, 0.01, 0.001, 0.0, 0.0])),
        ("OPENCV_FISHEYE", [0.26, 0.0, 0.0, 0.0], fisheye_slopes([0.26, 0.0, 0.0, 0.0])),
    ],
)
def test_distortion_is_undone(tmp_path, model, extra, slopes_of):
    write_model(tmp_path, True, model, K + extra, seen_through(slopes_of), points=False)
    (video,) = open_dataset(tmp_path)
    assert_undistorted(video)
    check_epipolar(video)
    assert video.scene_scale is None


def test_folders_of_images_are_videos(tmp_path):
    write_model(tmp_path, True, names="cam{:03d}/a.png")
    with pytest.raises(DatasetError, match="no two images"):
        open_dataset(tmp_path)


def _replace(path, number, old, new):
    lines = path.read_text().splitlines()
    assert old in lines[number - 1], lines[number - 1]
    lines[number - 1] = lines[number - 1].replace(old, new, 1)
    path.write_text("\n".join(lines) + "\n")


def test_inconsistent_text_models_name_the_line(tmp_path):
    sparse = write_model(tmp_path, False, points=False)
    rows = (sparse / "images.txt").read_text().splitlines()
    first = next(number for number, line in enumerate(rows, 1) if not line.startswith("#"))
    good = (sparse / "images.txt").read_text()
    words = rows[first - 1].split()
    for old, new, message in [
        (words[1], "9.0", rf"images\.txt:{first}: quaternion .* must have norm 1"),
        (words[5], "east", rf"images\.txt:{first}: expected the numbers"),
        (f" 1 {words[9]}", f" 7 {words[9]}", rf"images\.txt:{first}: camera 7 is not in cameras\.txt, which has 1"),
        (words[9], "none.png", r"image 'none\.png': names .*none\.png, which does not exist"),
        (f" 1 {words[9]}", "", rf"images\.txt:{first}: expected 'IMAGE_ID"),
    ]:
        _replace(sparse / "images.txt", first, old, new)
        with pytest.raises(DatasetError, match=message):
            open_dataset(tmp_path)
        (sparse / "images.txt").write_text(good)
    cameras = (sparse / "cameras.txt").read_text()
    (sparse / "cameras.txt").write_text(cameras.replace(" 240 160 ", " 240 120 "))
    with pytest.raises(DatasetError, match="the camera is for 240x120 images, but this one is 240x160"):
        open_dataset(tmp_path)
    (sparse / "points3D.txt").unlink()
    with pytest.raises(DatasetError, match=r"points3D\.txt: no such file; a model is cameras, images, points3D"):
        open_dataset(tmp_path)


def test_broken_binary_models_say_so(tmp_path):
    sparse = write_model(tmp_path, True, points=False)
    data = (sparse / "images.bin").read_bytes()
    (sparse / "images.bin").write_bytes(data[: len(data) // 2])
    with pytest.raises(DatasetError, match="not a readable COLMAP model"):
        open_dataset(tmp_path)
