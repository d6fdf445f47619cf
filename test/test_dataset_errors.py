# SPDX-License-Identifier: Apache-2.0
"""Datasets that are inconsistent say which file and line or frame, and what would be right (bags and COLMAP: beside
their own tests)."""

import json
import re

import numpy as np
import pytest
from rendered_video import INTRINSICS
from test_datasets import stated, write_frames, write_nerfstudio, write_posed_images, write_re10k, write_tum

from rays_as_pixels_training.data import open_dataset
from rays_as_pixels_training.data.posed import DatasetError
from rays_as_pixels_training.data.registry import parse_options
from rays_as_pixels_training.data.undistort import stated_lens


def fails(path, message, kind="auto", **options):
    with pytest.raises(DatasetError, match=message) as error:
        open_dataset(path, kind, **options)
    assert "\n" not in str(error.value)


def edit_json(path, edit):
    data = json.loads(path.read_text())
    edit(data)
    path.write_text(json.dumps(data))


def edit_line(path, number, edit):
    lines = path.read_text().splitlines()
    lines[number - 1] = " ".join(edit(lines[number - 1].split()))
    path.write_text("\n".join(lines) + "\n")


def test_nothing_there_says_what_was_looked_for(tmp_path):
    write_frames(tmp_path / "images", np.zeros((2, 8, 8, 3), np.uint8))
    (tmp_path / "metadata.yaml").write_text("camera: left\n")  # not that of a bag
    fails(tmp_path, r"no dataset here or in the folders below\. Looked for posed_images: a folder with cameras\.json;")
    fails(tmp_path, r"Looked for tum: a folder with rgb\.txt and groundtruth\.txt$", "tum")
    fails(tmp_path / "none", "none: no such file or folder")
    fails(tmp_path, "kind 'kitti' is not known, use auto or one of posed_images, nerfstudio", "kitti")
    fails(tmp_path, "kind procedural takes the word 'procedural'", "procedural")
    fails("procedural", "clips, frames, width and height must be at least 1 .* got 0", clips=0)


@pytest.mark.parametrize(
    "edit, message",
    [
        (lambda d: d["frames"][3]["T_world_camera"][0].__setitem__(0, 2.0), r"cameras\.json: frame 3: .*rotation"),
        (lambda d: d["frames"][2].update(time=0.0), r"cameras\.json: frame 2: time 0\.0 does not come after"),
        (lambda d: d["frames"][4].update(file="images/none.png"), r"frame 4 names 'images/none\.png', which does not"),
        (lambda d: d["frames"][1].pop("fx"), r"cameras\.json: frame 1 lacks 'fx'"),
        (lambda d: d.update(width=10), r"says 10x160, but 00000\.png is 240x160"),
    ],
)
def test_posed_images(tmp_path, edit, message):
    write_posed_images(tmp_path)
    edit_json(tmp_path / "cameras.json", edit)
    fails(tmp_path, message)


def frame(index, **changes):
    """Edit frame `index` of the list, which write_nerfstudio writes backwards."""
    return lambda data: data["frames"][index].update(**changes)


@pytest.mark.parametrize(
    "edit, message",
    [
        (frame(2, transform_matrix=np.diag([1, 1, -1, 1]).tolist()), r"frame 2: the matrix has no rotation.*det R \+1"),
        (frame(2, transform_matrix=[[1, 0], [0, 1]]), r"transforms\.json: frame 2: the matrix must have shape"),
        (frame(1, file_path="images/none.png"), r"frame 1: names .*images/none\.png, which does not exist"),
        (lambda d: d["frames"][5].pop("transform_matrix"), r"frame 5: lacks 'transform_matrix'"),
        (lambda d: d.update(frames=d["frames"][:1]), r"transforms\.json: needs a list 'frames' of at least 2"),
        (lambda d: d.update(h=99), r"the camera is for 240x99 images, but this one is 240x160; the same size"),
        (lambda d: d.pop("fl_x"), r"no focal length: neither fl_x nor camera_angle_x"),
        (lambda d: d.update(fl_x=-5.0), r"focal lengths must be positive and finite, got fx=-5"),
        (lambda d: d.update(k1="big"), r"expected the numbers 'k1': could not convert string"),
        (lambda d: d.update(k1=[0.1]), r"frame \d: expected the numbers 'k1'"),
        (lambda d: d.update(k4=0.1), r"k4 is 0\.1, but only OPENCV_FISHEYE has one"),
        (lambda d: d.update(fl_x=None, camera_angle_x=0), r"camera_angle_x must be between 0 and pi, got 0"),
        (lambda d: d.update(camera_model="EQUIRECTANGULAR"), r"camera_model 'EQUIRECTANGULAR' is not known, use"),
        (lambda d: d.update(k1=50.0), r"these distortion coefficients leave no pinhole image"),
    ],
)
def test_nerfstudio(tmp_path, edit, message):
    write_nerfstudio(tmp_path)
    edit_json(tmp_path / "transforms.json", edit)
    fails(tmp_path, message)


def test_files_that_are_not_json_and_options_that_are_not_right(tmp_path):
    write_nerfstudio(tmp_path)
    fails(tmp_path, "fps must be positive, got 0", fps=0)
    fails(tmp_path, "nerfstudio has no option speed; it has fps, images", speed=3)
    (tmp_path / "transforms.json").write_text("{")
    fails(tmp_path, r"transforms\.json: not readable as JSON")


def set_word(index, value):
    return lambda words: [*words[:index], value, *words[index + 1 :]]


@pytest.mark.parametrize(
    "edit, message",
    [
        (lambda words: words[:-1], r"clip\.txt:4: expected 19 numbers 'timestamp fx fy cx cy k1 k2 P00 .*', got 18"),
        (set_word(7, "3.0"), r"clip\.txt:4: the matrix has no rotation matrix .*R\^T R must be I"),
        (set_word(3, "centre"), r"clip\.txt:4: expected the numbers .*could not convert string to float: 'centre'"),
        (set_word(2, "nan"), r"clip\.txt:4: fy is not finite"),
        (set_word(0, "5"), r"clip\.txt:4: frame 5 does not exist as .*clip/5\.png"),
        (set_word(0, "1000000"), r"clip\.txt:4: time 1\.000000 does not come after 1\.033333"),
        (set_word(1, "-1"), r"clip\.txt:4: focal lengths must be positive"),
    ],
)
def test_re10k(tmp_path, edit, message):
    write_re10k(tmp_path)
    edit_line(tmp_path / "clip.txt", 4, edit)
    fails(tmp_path, message)


@pytest.mark.parametrize(
    "file, line, edit, message",
    [
        ("groundtruth.txt", 9, set_word(7, "4"), r"groundtruth\.txt:9: quaternion .* must have norm 1"),
        ("groundtruth.txt", 9, lambda w: w[:5], r"groundtruth\.txt:9: expected 8 numbers 'time tx ty tz qx qy qz qw'"),
        ("groundtruth.txt", 9, set_word(0, "1.0"), r"groundtruth\.txt:9: time 1\.000000 does not come after"),
        ("rgb.txt", 3, set_word(1, "rgb/none.png"), r"rgb\.txt:3: names .*none\.png, which does not exist"),
        ("rgb.txt", 3, lambda w: w[:1], r"rgb\.txt:3: expected 'time file', got"),
        ("rgb.txt", 3, set_word(0, "100.0"), r"rgb\.txt:3: time 100\.000000 does not come after 100\.000000"),
        ("depth.txt", 3, set_word(1, "rgb/00001.png"), r"depth\.txt:3: .*is not a depth image of one channel"),
    ],
)
def test_tum(tmp_path, file, line, edit, message):
    write_tum(tmp_path / "mine")
    edit_line(tmp_path / "mine" / file, line, edit)
    fails(tmp_path / "mine", message, intrinsics=stated())


def test_tum_of_another_clock_and_without_a_camera(tmp_path):
    write_tum(tmp_path / "mine")
    fails(tmp_path / "mine", "its camera is not known .* give the options intrinsics=fx,fy,cx,cy")
    fails(tmp_path / "mine", "intrinsics: expected 4 numbers 'fx fy cx cy', got 3", intrinsics="1,2,3")
    path = tmp_path / "mine" / "groundtruth.txt"
    path.write_text("".join(f"9{line}\n" for line in path.read_text().splitlines()[1:]))
    fails(tmp_path / "mine", r"no two images have ground truth within 0\.1 s: images are from 100\.000 to 100\.500, "
          r"ground truth from 999\.996", intrinsics=stated())  # fmt: skip


def test_options_of_the_command_line():
    assert parse_options(["image_topic=/a=b", "max-gap=0.5", "clips=3", "held_out=True"]) == {
        "image_topic": "/a=b", "max_gap": 0.5, "clips": 3, "held_out": True,
    }  # fmt: skip
    for text in ("fps", "=3", "a b=3"):
        with pytest.raises(ValueError, match=re.escape(f"option {text!r} is not NAME=VALUE")):
            parse_options([text])


@pytest.mark.parametrize(
    "kind, option, value, message",
    [
        ("nerfstudio", "fps", "fast", "option fps takes a number, got 'fast'"),
        ("nerfstudio", "fps", True, "option fps takes a number, got True"),
        ("nerfstudio", "images", 4, r"frame \d: names .*4/\d+\.png, which does not exist"),
        ("tum", "intrinsics", 500, "expected 4 numbers 'fx fy cx cy', got 1"),
        ("tum", "depth_factor", 0, "depth_factor must be positive, got 0"),
        ("tum", "depth", "no", "option depth takes true or false, got 'no'"),
        ("procedural", "clips", 1.5, "option clips takes a whole number, got 1.5"),
        ("procedural", "scenes", 3, "scenes must be plain"),
        ("procedural", "textures", "/none", "no jpg or png image below '/none'"),
    ],
)
def test_options_of_another_type_are_one_line(tmp_path, kind, option, value, message):
    if kind != "procedural":
        {"nerfstudio": write_nerfstudio, "tum": write_tum}[kind](tmp_path)
    fails("procedural" if kind == "procedural" else tmp_path, message, **{option: value})


def test_a_stated_lens_without_distortion_leaves_images_alone():
    lens = stated_lens("x", stated(), "", (240, 160))
    assert lens.intrinsics == INTRINSICS
    image = np.random.default_rng(0).integers(0, 255, (160, 240, 3), dtype=np.uint8)
    assert lens(image) is image
