# SPDX-License-Identifier: Apache-2.0
"""Bad input gets one clear line that names what is wrong, and nothing half done: media, trajectories, checkpoints."""

import json
import os
import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from rays_as_pixels_model.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from rays_as_pixels_model.config import preset
from rays_as_pixels_model.files import read_trajectory, write_png, write_text, write_video
from rays_as_pixels_model.joint import RaysAsPixels
from rays_as_pixels_model.media import MediaError, open_video, read_image
from rays_as_pixels_model.pipeline import Pipeline

GREY = np.full((48, 64, 3), 90, np.uint8)


def one_line(caught, *says):
    """The message of a caught error: one line that contains all of `says`."""
    message = str(caught.value)
    assert "\n" not in message and len(message) < 400
    for text in says:
        assert str(text) in message
    return message


# Media


def test_no_such_path(tmp_path):
    with pytest.raises(MediaError) as caught:
        open_video(tmp_path / "nothing.mp4")
    one_line(caught, tmp_path / "nothing.mp4", "no such file or folder")


def test_no_such_webcam():
    with pytest.raises(MediaError) as caught:
        open_video("97")
    one_line(caught, "webcam 97")


@pytest.mark.parametrize("content", [b"", b"not a video at all", None])
def test_unreadable_video(tmp_path, content, capfd):
    path = tmp_path / "broken.mp4"
    if content is None:
        write_video(tmp_path / "whole.mp4", [GREY] * 5, fps=10)
        content = (tmp_path / "whole.mp4").read_bytes()[:400]
    path.write_bytes(content)
    with pytest.raises(MediaError) as caught:
        open_video(path)
    one_line(caught, path)
    assert capfd.readouterr().err == "", "OpenCV and libav must not write lines of their own"


def test_empty_folder_and_folder_without_images(tmp_path):
    for _ in range(2):
        with pytest.raises(MediaError) as caught:
            open_video(tmp_path)
        one_line(caught, tmp_path, "no images")
        (tmp_path / "notes.txt").write_text("nothing to see")


def test_mixed_sizes_name_both_files_and_sizes(tmp_path):
    for name, height in (("a.png", 48), ("b.png", 48), ("c.png", 32)):
        write_png(tmp_path / name, GREY[:height])
    with pytest.raises(MediaError) as caught:
        open_video(tmp_path)
    one_line(caught, "a.png is 64x48", "c.png is 64x32")


def test_a_file_that_only_calls_itself_an_image(tmp_path):
    write_png(tmp_path / "a.png", GREY)
    (tmp_path / "b.png").write_text("not an image")
    with pytest.raises(MediaError) as caught:
        open_video(tmp_path)
    one_line(caught, "b.png", "not a readable image")
    with pytest.raises(MediaError) as caught:
        read_image(tmp_path / "missing.png")
    one_line(caught, "missing.png", "no such file")


def posed(folder, change=lambda data: None):
    """Write two posed images; `change` spoils the data of cameras.json."""
    frames = []
    for index in range(2):
        write_png(folder / f"{index}.png", GREY)
        frames.append({"file": f"{index}.png", "fx": 60, "fy": 60, "cx": 31.5, "cy": 23.5, "time": index / 10,
                       "T_world_camera": np.eye(4).tolist()})
    data = {"width": 64, "height": 48, "pixel_centre_of_top_left": [0, 0], "fps": 10, "frames": frames}
    change(data)
    write_text(folder / "cameras.json", json.dumps(data))
    return folder


def spoil(key, value):
    return lambda data: data["frames"][1].__setitem__(key, value)


@pytest.mark.parametrize(
    "change, says",
    [
        (spoil("T_world_camera", np.diag([1, 1, 1.2, 1]).tolist()), ["frame 1", "rotation matrix"]),
        (spoil("T_world_camera", np.diag([1, 1, -1, 1]).tolist()), ["frame 1", "rotation matrix"]),
        (spoil("T_world_camera", [[1, 0], [0, 1]]), ["frame 1", "(2, 2)"]),
        (spoil("T_world_camera", [[1, 0], [0]]), ["frame 1"]),
        (spoil("T_world_camera", np.full((4, 4), np.nan).tolist()), ["frame 1", "not finite"]),
        (spoil("file", "missing.png"), ["frame 1", "missing.png", "does not exist"]),
        (spoil("file", "../outside.png"), ["frame 1", "outside the folder"]),
        (spoil("fx", -3), ["frame 1", "-3"]),
        (spoil("fx", "wide"), ["frame 1", "wide"]),
        (spoil("time", 0.0), ["frame 1", "does not come after"]),
        (spoil("time", None), ["frame 1"]),
        (lambda data: data["frames"][1].pop("cy"), ["frame 1", "'cy'"]),
        (lambda data: data["frames"][1].pop("time"), ["frame 1", "'time'"]),
        (lambda data: data.update(frames=[]), ["no list of frames"]),
        (lambda data: data.update(width=99), ["99x48", "64x48"]),
        (lambda data: data.update(pose="world to camera"), ["world to camera"]),
        (lambda data: data.update(axes="opengl"), ["opengl"]),
        (lambda data: data.update(pixel_centre_of_top_left=[1, 1]), ["[1, 1]"]),
        (lambda data: data.update(fps=-2), ["-2"]),
        (lambda data: data.update(fps="fast"), ["fast"]),
    ],
)
def test_inconsistent_cameras(tmp_path, change, says):
    with pytest.raises(MediaError) as caught:
        open_video(posed(tmp_path, change))
    one_line(caught, tmp_path / "cameras.json", *says)


def test_the_unspoilt_cameras_are_fine(tmp_path):
    assert open_video(posed(tmp_path)).frame_count == 2


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", '{"frames": 3}'])
def test_cameras_that_are_no_json_object_with_frames(tmp_path, text):
    posed(tmp_path)
    (tmp_path / "cameras.json").write_text(text)
    with pytest.raises(MediaError) as caught:
        open_video(tmp_path)
    one_line(caught, "cameras.json")


@pytest.mark.parametrize(
    "line, says",
    [("1 2 3", "expected 8"), ("0 0 0 0 0 0 0 2", "norm"), ("0 nan 0 0 0 0 0 1", "finite"), ("a b c d e f g h", "'a'")],
)
def test_bad_trajectory_lines_are_named(tmp_path, line, says):
    path = tmp_path / "a.txt"
    path.write_text(f"# time tx ty tz qx qy qz qw\n0 0 0 0 0 0 0 1\n{line}\n")
    with pytest.raises(MediaError) as caught:
        read_trajectory(path)
    one_line(caught, f"{path}:3", says)


def test_trajectory_without_poses_and_missing(tmp_path):
    (tmp_path / "a.txt").write_text("# nothing\n")
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe\x00\x81")
    for name, says in (("a.txt", "holds no poses"), ("b.txt", "not a text file"), ("c.txt", "No such file")):
        with pytest.raises(MediaError) as caught:
            read_trajectory(tmp_path / name)
        one_line(caught, name, says)


def test_output_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(MediaError) as caught:
        write_png(tmp_path / "file" / "a.png", GREY)
    one_line(caught, "a.png", "cannot be written")
    with pytest.raises(MediaError, match="at least one frame"):
        write_video(tmp_path / "a.mp4", [], fps=10)
    with pytest.raises(MediaError, match="uint8"):
        write_png(tmp_path / "a.png", GREY.astype(np.float32))
    assert os.listdir(tmp_path) == ["file"]


# Checkpoints


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A micro checkpoint with random weights."""
    torch.manual_seed(0)
    return save_checkpoint(tmp_path_factory.mktemp("checkpoint") / "whole", RaysAsPixels(preset("micro")), "# test\n")


@pytest.fixture
def checkpoint(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "checkpoint")


def test_the_whole_checkpoint_loads(checkpoint):
    assert load_checkpoint(checkpoint).config.preset == "micro"


def truncate(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def pickled(folder):
    (folder / "model.safetensors").write_bytes(pickle.dumps({"a": 1}))


def torch_saved(folder):
    torch.save({"a": torch.zeros(3)}, folder / "model.safetensors")


def other_shape(folder):
    state = load_file(folder / "model.safetensors")
    name = max(state, key=lambda key: state[key].numel())
    state[name] = state[name].flatten()[:-1].clone()
    save_file(state, folder / "model.safetensors")


def not_finite(folder):
    state = load_file(folder / "model.safetensors")
    name = max(state, key=lambda key: state[key].numel())
    state[name].view(-1)[0] = float("nan")
    save_file(state, folder / "model.safetensors")


def one_tensor_less(folder):
    state = load_file(folder / "model.safetensors")
    state.pop(sorted(state)[0])
    save_file(state, folder / "model.safetensors")


def edit_config(**changes):
    def spoil_config(folder):
        data = json.loads((folder / "config.json").read_text())
        data.update(changes)
        (folder / "config.json").write_text(json.dumps(data))

    return spoil_config


SPOILS = {
    "missing folder": (shutil.rmtree, "does not exist"),
    "no config": (lambda folder: (folder / "config.json").unlink(), "config.json"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors"),
    "config cut off": (lambda folder: (folder / "config.json").write_text('{"format": 1'), "config.json"),
    "config is a list": (lambda folder: (folder / "config.json").write_text("[]"), "config.json"),
    "future format": (edit_config(format=99), "99"),
    "no model in config": (edit_config(model={"preset": "micro"}), "config.json"),
    "unknown field": (edit_config(model={**preset("micro").to_dict(), "wings": 2}), "wings"),
    "truncated": (truncate, "truncated"),
    "empty weights": (lambda folder: (folder / "model.safetensors").write_bytes(b""), "model.safetensors"),
    "text as weights": (lambda folder: (folder / "model.safetensors").write_text("hello " * 99), "safetensors"),
    "pickle": (pickled, "pickle"),
    "torch.save": (torch_saved, "pickle"),
    "other shape": (other_shape, "does not fit"),
    "tensor missing": (one_tensor_less, "missing"),
    "not finite": (not_finite, "not finite"),
}


@pytest.mark.parametrize("name", SPOILS)
def test_spoilt_checkpoints(checkpoint, name):
    spoil_checkpoint, says = SPOILS[name]
    spoil_checkpoint(checkpoint)
    with pytest.raises(CheckpointError) as caught:
        Pipeline.from_checkpoint(checkpoint, device="cpu")
    one_line(caught, "checkpoint", says)


def test_a_checkpoint_of_another_preset_is_refused(checkpoint):
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(checkpoint, preset="tiny")
    one_line(caught, "'micro'", "'tiny'")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a host without a GPU")
def test_a_gpu_that_is_not_there(checkpoint):
    with pytest.raises(ValueError, match="cuda") as caught:
        Pipeline.from_checkpoint(checkpoint, device="cuda")
    one_line(caught)


def test_the_pipeline_refuses_other_numbers_of_frames(checkpoint):
    pipeline = Pipeline.from_checkpoint(checkpoint, device="cpu")
    for frames in (np.stack([GREY] * 4), np.stack([GREY] * 6), np.zeros((0, 48, 64, 3), np.uint8)):
        with pytest.raises(ValueError) as caught:
            pipeline.estimate_trajectory(frames, None)
        one_line(caught, "5")
    with pytest.raises(ValueError):
        pipeline.estimate_trajectory(np.stack([GREY] * 5).astype(np.float32), None)


# The command


def estimate(*arguments):
    command = [sys.executable, "-m", "rays_as_pixels_ros.cli", "estimate", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["missing", "empty", "mixed", "short", "broken video", "cameras", "checkpoint", "hop"])
def test_the_command_fails_with_one_line_and_writes_nothing(tmp_path, checkpoint, kind):
    source, out = tmp_path / "source", tmp_path / "out"
    arguments = ["--out", out, "--device", "cpu", "--fov", 60, "--checkpoint", checkpoint]
    if kind != "missing":
        source.mkdir()
    for index in range({"mixed": 6, "short": 3, "checkpoint": 6, "hop": 6}.get(kind, 0)):
        write_png(source / f"{index}.png", GREY)
    says = {"missing": "no such file", "empty": "no images", "short": "needs 5", "hop": "at most 4"}.get(kind, "")
    if kind == "mixed":
        write_png(source / "6.png", GREY[:20])
        says = "differ in size"
    elif kind == "broken video":
        source = tmp_path / "broken.mp4"
        source.write_bytes(b"\0" * 1000)
        says = "broken.mp4"
    elif kind == "cameras":
        posed(source, spoil("fx", 0))
        says = "focal"
    elif kind == "checkpoint":
        truncate(checkpoint)
        says = "truncated"
    elif kind == "hop":
        arguments += ["--hop", 5]
    done = estimate(source, *arguments)
    lines = done.stderr.strip().splitlines()
    assert done.returncode == 1, done.stderr
    assert len(lines) == 1 and lines[0].startswith("rays-as-pixels: error: ") and says in lines[0], done.stderr
    assert done.stdout == "" and not out.exists()
