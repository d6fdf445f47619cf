# SPDX-License-Identifier: Apache-2.0
"""Reading and writing pictures, videos and posed images: there and back; sizes, rates and cameras as the files say."""

import json
import os
import subprocess

import cv2
import numpy as np
import pytest
from PIL import Image

from rays_as_pixels_model.files import read_trajectory, replacing, write_png, write_text, write_trajectory, write_video
from rays_as_pixels_model.geometry import make_pose, so3_exp
from rays_as_pixels_model.media import MediaError, open_video, read_image


def pictures(count, height=48, width=64):
    """Smooth frames (count, height, width, 3) that differ, so that compression keeps them and order can be checked."""
    y, x = np.mgrid[0:height, 0:width]
    frames = [np.stack([x * 3, y * 4, np.full_like(x, 20 * i)], axis=-1) for i in range(count)]
    return np.clip(np.stack(frames), 0, 255).astype(np.uint8)


def posed_folder(folder, count=6, **changes):
    """Write a posed-images folder as the clips are laid out; `changes` replace top-level fields of cameras.json."""
    frames = []
    for index, image in enumerate(pictures(count)):
        write_png(folder / "images" / f"{index:05d}.png", image)
        pose = np.eye(4)
        pose[:3, :3] = so3_exp(np.array([0.0, 0.02 * index, 0.0]))
        pose[:3, 3] = [0.1 * index, 0.0, 0.0]
        camera = {"fx": 60.0, "fy": 61.0, "cx": 31.5, "cy": 23.5, "T_world_camera": pose.tolist(), "time": index / 10}
        frames.append({"file": f"images/{index:05d}.png", **camera})
    data = {"width": 64, "height": 48, "pixel_centre_of_top_left": [0, 0], "pose": "camera to world"}
    write_text(folder / "cameras.json", json.dumps({**data, "frames": frames, **changes}))
    return folder


def test_png_there_and_back(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (31, 45, 3), dtype=np.uint8)
    write_png(tmp_path / "new" / "folder" / "a.png", image)
    np.testing.assert_array_equal(read_image(tmp_path / "new" / "folder" / "a.png"), image)
    assert os.listdir(tmp_path / "new" / "folder") == ["a.png"]


@pytest.mark.parametrize("height, width", [(48, 64), (47, 63)])
def test_video_plays_with_its_frames_rate_and_order(tmp_path, height, width):
    frames = pictures(9, height, width)
    assert write_video(tmp_path / "a.mp4", iter(frames), fps=12.5) == 9
    video = open_video(tmp_path / "a.mp4")
    assert video.size == (width + width % 2, height + height % 2)
    assert video.fps == pytest.approx(12.5)
    assert video.intrinsics is None and video.T_world_camera is None
    for _ in range(2):  # every iteration starts anew
        back = np.stack(list(video))[:, :height, :width]
        assert back.shape == frames.shape
        assert np.abs(back.astype(int) - frames).mean() < 4
    assert (tmp_path / "a.mp4").read_bytes().find(b"avc1") > 0, "H.264, which browsers play"


def test_image_folder_is_sorted_and_reads_its_rate(tmp_path):
    frames = pictures(4)
    for name, frame in zip(["c.png", "a.png", "d.jpg", "b.png"], frames[[2, 0, 3, 1]], strict=True):
        cv2.imwrite(str(tmp_path / name), frame[..., ::-1])
    (tmp_path / "notes.txt").write_text("not a picture")
    (tmp_path / "._a.png").write_bytes(b"what a file manager keeps")
    video = open_video(tmp_path, fps=7)
    assert (video.frame_count, video.size, video.fps, video.time(2)) == (4, (64, 48), 7, pytest.approx(2 / 7))
    np.testing.assert_array_equal(np.stack(list(video))[:3], frames[:3])


def test_one_image_is_a_video_of_one_frame(tmp_path):
    write_png(tmp_path / "a.png", pictures(1)[0])
    assert len(list(open_video(tmp_path / "a.png"))) == 1


def test_pictures_are_turned_as_their_exif_data_says(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pictures(1)[0]).save(tmp_path / "a.jpg", exif=exif)
    video = open_video(tmp_path)
    assert video.size == (48, 64)
    assert next(iter(video)).shape == (64, 48, 3)


def test_a_phone_video_is_upright(tmp_path):
    """The container says that the picture lies on its side; size and pixels are those of the upright one."""
    imageio_ffmpeg = pytest.importorskip("imageio_ffmpeg", reason="needs imageio-ffmpeg")
    write_video(tmp_path / "a.mp4", pictures(3), fps=10)
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", "-display_rotation", "90"]
    subprocess.run([*command, "-i", tmp_path / "a.mp4", "-c", "copy", tmp_path / "b.mp4"], check=True)
    video = open_video(tmp_path / "b.mp4")
    assert video.size == (48, 64)
    lying, upright = next(iter(open_video(tmp_path / "a.mp4"))), next(iter(video))
    np.testing.assert_array_equal(np.rot90(lying, 1), upright)


def test_pictures_that_lie_are_refused(tmp_path):
    """A JPEG that was cut short would be grey below, and a picture of any size would fill the memory."""
    Image.fromarray(np.kron(pictures(1)[0], np.ones((4, 4, 1), np.uint8))).save(tmp_path / "a.jpg", exif=Image.Exif())
    whole = (tmp_path / "a.jpg").read_bytes()
    assert read_image(tmp_path / "a.jpg").shape == (192, 256, 3)
    (tmp_path / "a.jpg").write_bytes(whole + b"a film as phones put it behind, \xff\xda in it")
    assert read_image(tmp_path / "a.jpg").shape == (192, 256, 3)
    size = (len(whole) + 2).to_bytes(2, "big")
    preview = b"\xff\xd8\xff\xff\xe5" + size + whole  # in a segment of its own, with an end of image
    (tmp_path / "a.jpg").write_bytes(preview + whole[2:])
    assert read_image(tmp_path / "a.jpg").shape == (192, 256, 3)
    for cut in (whole[: len(whole) // 2], preview + whole[2 : len(whole) // 2], whole[:10]):
        (tmp_path / "a.jpg").write_bytes(cut)
        with pytest.raises(MediaError, match=r"a\.jpg: not a readable image: the file was cut short"):
            read_image(tmp_path / "a.jpg")
    Image.new("1", (20_000, 9_000)).save(tmp_path / "large.png")
    with pytest.raises(MediaError, match=r"large\.png: too large: images may have up to 178 million pixels"):
        open_video(tmp_path / "large.png")


@pytest.mark.parametrize("name", ["drive.mcap", "drive.db3", "drive/metadata.yaml"])
def test_a_bag_is_sent_to_the_bag_command(tmp_path, name):
    write_text(tmp_path / name, "rosbag2_bagfile_information:\n  version: 8\n")
    with pytest.raises(MediaError, match="is a bag; `rays-as-pixels bag` reads those"):
        open_video(tmp_path / name.partition("/")[0])


def test_images_beside_a_metadata_yaml_of_something_else_are_images(tmp_path):
    write_text(tmp_path / "metadata.yaml", "camera: left\nrate: 30\n")
    write_png(tmp_path / "0.png", pictures(1)[0])
    assert open_video(tmp_path).frame_count == 1


def test_grey_and_16_bit_pictures_become_rgb(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), np.full((48, 64), 130 * 256, np.uint16))
    assert np.abs(read_image(tmp_path / "a.png").astype(int) - 130).max() <= 1


def test_posed_images_bring_cameras_with_the_half_pixel(tmp_path):
    video = open_video(posed_folder(tmp_path))
    assert (video.frame_count, video.size, video.fps) == (6, (64, 48), pytest.approx(10))
    assert (video.intrinsics.cx, video.intrinsics.cy) == (32.0, 24.0)
    assert video.intrinsics.to_opencv() == (60.0, 61.0, 31.5, 23.5)
    np.testing.assert_allclose(video.T_world_camera[3, :3, 3], [0.3, 0, 0])
    np.testing.assert_array_equal(np.stack(list(video)), pictures(6))


def test_pixel_centre_at_half_is_taken_as_it_is(tmp_path):
    assert open_video(posed_folder(tmp_path, pixel_centre_of_top_left=[0.5, 0.5])).intrinsics.cx == 31.5


def test_the_shared_clips_open(shared_data):
    for folder in sorted((shared_data / "clips").iterdir()):
        video = open_video(folder)
        data = json.loads((folder / "cameras.json").read_text())
        assert video.frame_count == len(data["frames"]) == len(video.T_world_camera)
        assert video.fps == data["fps"]
        assert next(iter(video)).shape == (data["height"], data["width"], 3)


def test_an_interrupted_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(KeyboardInterrupt), replacing(path) as temporary:
        temporary.write_text("half of the n")
        raise KeyboardInterrupt
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a.txt"]


def test_a_frame_of_another_size_stops_the_video_and_leaves_nothing(tmp_path):
    with pytest.raises(MediaError, match="frame 2"):
        write_video(tmp_path / "a.mp4", [*pictures(2), pictures(1, 30, 30)[0]], fps=10)
    assert os.listdir(tmp_path) == []


def test_trajectory_there_and_back(tmp_path):
    rng = np.random.default_rng(1)
    poses = make_pose(so3_exp(rng.normal(0, 1.5, (40, 3))), rng.normal(0, 3, (40, 3)))
    times = 1305031240.631058 + np.arange(40) / 30
    write_trajectory(tmp_path / "a.txt", times, poses, comment="made here")
    assert (tmp_path / "a.txt").read_text().startswith("# made here\n# time tx ty tz qx qy qz qw\n1305031240.631")
    back_times, back = read_trajectory(tmp_path / "a.txt")
    np.testing.assert_allclose(back_times, times, atol=1e-6)
    np.testing.assert_allclose(back, poses, atol=1e-7)
