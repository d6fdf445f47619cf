# SPDX-License-Identifier: Apache-2.0
"""The rays-as-pixels command as a user meets it: help at once, exit statuses, and results in files."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from rays_as_pixels_model.files import read_trajectory, write_png
from rays_as_pixels_model.media import open_video
from rays_as_pixels_ros import cli
from rays_as_pixels_ros.trajectory_report import align_to, errors_against_truth
from rays_as_pixels_ros.window import overlapping_windows

COMMAND = [sys.executable, "-m", "rays_as_pixels_ros.cli"]


def rays_as_pixels(*arguments, cwd=None):
    """Run the command in a process of its own."""
    return subprocess.run([*COMMAND, *map(str, arguments)], cwd=cwd, capture_output=True, text=True, timeout=200)


def one_error_line(done):
    """The error line of a failed command; fails when there is more than this line."""
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("rays-as-pixels: error: ")
    return lines[0]


def test_help_lists_every_command():
    done = rays_as_pixels("--help")
    assert done.returncode == 0 and done.stderr == ""
    for name, (_, text) in cli.COMMANDS.items():
        assert f"  {name}" in done.stdout and text in done.stdout


@pytest.mark.parametrize("command", [[], *([name] for name in cli.COMMANDS)])
def test_help_imports_nothing_heavy(command):
    """Answering --help takes a moment because the heavy packages wait until the arguments are parsed."""
    code = (
        "import sys\n"
        "from rays_as_pixels_ros.cli import main\n"
        "try:\n    main(sys.argv[1:] + ['--help'])\n"
        "except SystemExit as end:\n    assert not end.code, end.code\n"
        "heavy = {'torch', 'cv2', 'scipy', 'matplotlib', 'skimage', 'rosbags', 'cyclonedds'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "usage" in done.stdout.lower()


@pytest.mark.parametrize(
    "arguments, says",
    [
        ([], "COMMAND"),
        (["fly"], "'fly'"),
        (["estimate"], "PATH"),
        (["estimate", "x", "--fov", "181"], "between 0 and 180"),
        (["estimate", "x", "--fov", "nan"], "between 0 and 180"),
        (["estimate", "x", "--stride", "0"], "at least 1"),
        (["estimate", "x", "--steps", "two"], "'two' is not a whole number"),
        (["estimate", "x", "--device", "gpu"], "'gpu' is not auto, cpu, cuda"),
        (["estimate", "x", "--intrinsics", "1,2,3"], "fx,fy,cx,cy"),
        (["estimate", "x", "--intrinsics=-1,2,3,4"], "positive"),
        (["estimate", "x", "--fov", "60", "--intrinsics", "1,2,3,4"], "not allowed with"),
        (["render", "x", "--motion", "spiral"], "'spiral'"),
        (["render", "x", "--offset", "1,2"], "X,Y,Z"),
        (["node", "coffee_node"], "'coffee_node'"),
        (["doctor", "now"], "now"),
    ],
)
def test_bad_arguments_are_one_line_and_exit_2(arguments, says):
    done = rays_as_pixels(*arguments)
    assert done.returncode == 2 and done.stdout == ""
    assert says in one_error_line(done)


def test_windows_cover_every_frame_and_overlap():
    for count in range(5, 30):
        for hop in range(1, 5):
            windows = list(overlapping_windows(range(count), 5, hop))
            assert {frame for window in windows for frame in window} == set(range(count))
            assert all(len(window) == 5 for window in windows)
            assert all(set(a) & set(b) for a, b in zip(windows, windows[1:], strict=False))
            assert len(windows) == 1 + -(-(count - 5) // hop)
    assert list(overlapping_windows(range(4), 5, 2)) == []


def test_errors_vanish_for_a_similar_trajectory_and_show_a_wrong_one():
    rng = np.random.default_rng(0)
    from rays_as_pixels_model.geometry import make_pose, so3_exp

    truth = make_pose(so3_exp(np.cumsum(rng.normal(0, 0.03, (30, 3)), 0)), np.cumsum(rng.normal(0, 0.1, (30, 3)), 0))
    similar = make_pose(so3_exp(np.array([0.3, 0.2, 0.1])), np.array([1.0, 2.0, 3.0])) @ truth
    similar[:, :3, 3] *= 0.25
    errors = errors_against_truth(similar, truth, span=4)
    assert errors["rotation_error_deg_median"] < 1e-5 and errors["ate_rmse"] < 1e-9
    assert errors["direction_error_deg_median"] < 1e-5
    np.testing.assert_allclose(align_to(similar, truth), truth, atol=1e-9)
    still = errors_against_truth(np.tile(np.eye(4), (30, 1, 1)), truth, span=4)
    assert still["rotation_error_deg_median"] == pytest.approx(still["rotation_of_truth_deg_median"])
    assert still["direction_error_deg_median"] == pytest.approx(90)


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    """A folder of posed images, rendered: 13 frames of a room along a hand-held path."""
    from rays_as_pixels_model.geometry import Intrinsics
    from rays_as_pixels_model.scenes import TextureBank, random_path, random_scene, render

    folder = tmp_path_factory.mktemp("recording")
    scene = random_scene(7, TextureBank.default(split="held_out"))
    poses = random_path(7, scene, 13)
    camera = Intrinsics.from_fov(70, 120, 80)
    frames, _ = render(scene, poses, camera)
    fx, fy, cx, cy = camera.to_opencv()
    listed = []
    for index, (frame, pose) in enumerate(zip(frames, poses, strict=True)):
        write_png(folder / "images" / f"{index:05d}.png", frame)
        listed.append({"file": f"images/{index:05d}.png", "fx": fx, "fy": fy, "cx": cx, "cy": cy,
                       "T_world_camera": pose.tolist()})
    about = {"width": 120, "height": 80, "pixel_centre_of_top_left": [0, 0], "fps": 10, "frames": listed}
    (folder / "cameras.json").write_text(json.dumps(about))
    return folder


def test_windows_of_an_exact_model_make_the_exact_trajectory(tmp_path, monkeypatch, capsys):
    """The command's own share: windows, units, stitching, alignment and files add no error."""
    from pixel_pipeline import PixelPipeline, path, picture

    from rays_as_pixels_model.pipeline import Pipeline

    monkeypatch.setattr(Pipeline, "from_checkpoint", lambda path, device: PixelPipeline())
    listed = []
    for index in range(22):
        write_png(tmp_path / "in" / f"{index}.png", picture(index))
        listed.append({"file": f"{index}.png", "fx": 60, "fy": 60, "cx": 35.5, "cy": 23.5,
                       "T_world_camera": path()[index].tolist()})
    about = {"width": 72, "height": 48, "fps": 10, "frames": listed}
    (tmp_path / "in" / "cameras.json").write_text(json.dumps(about))
    assert cli.main(["estimate", str(tmp_path / "in"), "--out", str(tmp_path / "out")]) == 0
    errors = json.loads((tmp_path / "out" / "summary.json").read_text())["errors"]
    assert errors["ate_rmse"] < 1e-6 and errors["rotation_error_deg_median"] < 1e-4
    assert errors["direction_error_deg_median"] < 1e-4 < errors["rotation_of_truth_deg_median"]
    assert "22 frames in 10 windows" in capsys.readouterr().out


@pytest.mark.slow
def test_presets_are_listed_and_counted(tmp_path, capsys):
    assert cli.main(["presets", "--json", str(tmp_path / "presets.json")]) == 0
    facts = json.loads((tmp_path / "presets.json").read_text())
    assert list(facts) == ["micro", "tiny", "small", "wan-1.3b", "wan-14b"]
    table = capsys.readouterr().out
    for name, fact in facts.items():
        assert list(fact) == ["parameters", "video_tokens", "ray_tokens", "frames", "height", "width"]
        assert name in table and f"{fact['parameters']:,}" in table
    assert facts["micro"]["video_tokens"] == 48 and facts["micro"]["ray_tokens"] == 30
    assert abs(facts["wan-14b"]["parameters"] / 20e9 - 1) < 0.05
    assert facts["wan-14b"]["video_tokens"] == 21 * 30 * 52 and facts["wan-14b"]["ray_tokens"] == 81 * 15 * 26


def test_a_nodes_help_lists_its_parameters():
    done = rays_as_pixels("node", "trajectory_node", "--help")
    assert done.returncode == 0
    assert "window_hop" in done.stdout and "--ros-args" in done.stdout


@pytest.mark.slow
def test_estimate_posed_images(recording, tmp_path):
    done = rays_as_pixels("estimate", recording, "--out", tmp_path, "--device", "cpu")
    assert done.returncode == 0, done.stderr
    seconds, poses = read_trajectory(tmp_path / "trajectory.txt")
    np.testing.assert_allclose(seconds, np.arange(13) / 10, atol=1e-6)
    np.testing.assert_allclose(poses[0], np.eye(4), atol=1e-6)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["frames"] == 13 and summary["intrinsics"] == "cameras.json"
    again = errors_against_truth(poses, open_video(recording).T_world_camera, span=summary["errors"]["span_frames"])
    assert again["ate_rmse"] == pytest.approx(summary["errors"]["ate_rmse"], rel=1e-3)
    errors = summary["errors"]
    assert errors["rotation_error_deg_median"] < errors["rotation_of_truth_deg_median"], "worse than no motion at all"
    picture = cv2.imread(str(tmp_path / "trajectory.png"))
    assert picture.shape[0] > 300 and len(np.unique(picture.reshape(-1, 3), axis=0)) > 50
    assert f"{errors['rotation_error_deg_median']:.2f} deg" in done.stdout


@pytest.mark.slow
def test_estimate_is_the_same_for_the_same_seed_and_uses_stride(recording, tmp_path):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        done = rays_as_pixels("estimate", recording / "images", "--fov", 70, "--stride", 2, "--seed", seed, "--fps", 10,
                              "--out", tmp_path / name)
        assert done.returncode == 0, done.stderr
    first = (tmp_path / "a" / "trajectory.txt").read_text()
    assert first == (tmp_path / "b" / "trajectory.txt").read_text()
    assert first != (tmp_path / "c" / "trajectory.txt").read_text()
    seconds, _ = read_trajectory(tmp_path / "a" / "trajectory.txt")
    np.testing.assert_allclose(seconds, np.arange(0, 13, 2) / 10, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("sources", [1, 2])
def test_render_views(recording, tmp_path, sources):
    done = rays_as_pixels("render", recording, "--views", 3, "--degrees", 10, "--steps", 2, "--sources", sources,
                          "--metres-per-unit", 2, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    assert sorted(os.listdir(tmp_path)) == ["poses.txt", "view_000.png", "view_001.png", "view_002.png", "views.mp4"]
    video = open_video(tmp_path / "views.mp4")
    assert len(list(video)) == 3
    assert cv2.imread(str(tmp_path / "view_002.png")).shape[:2] == video.size[::-1]
    poses = read_trajectory(tmp_path / "poses.txt")[1]
    angle = np.degrees(np.arccos((np.trace(poses[0, :3, :3].T @ poses[2, :3, :3]) - 1) / 2))
    assert angle == pytest.approx(10, abs=1e-3)


@pytest.mark.slow
def test_doctor_names_what_it_found():
    done = rays_as_pixels("doctor")
    assert done.returncode == 0, done.stdout + done.stderr
    for word in ("python", "torch", "checkpoint", "sha256", "usable"):
        assert word in done.stdout


@pytest.mark.slow
def test_ctrl_c_amid_an_import_ends_with_130_too(tmp_path):
    """Python remembers an interrupt that came through `exec`, as one in the making of a dataclass does."""
    (tmp_path / "interrupted.py").write_text("def main(arguments):\n    exec('raise KeyboardInterrupt')\n")
    (tmp_path / "run.py").write_text(
        "import sys\nfrom rays_as_pixels_ros import cli\ncli.COMMANDS['doctor'] = ('interrupted', '')\n"
        "sys.exit(cli.main(['doctor']))\n"
    )
    done = subprocess.run([sys.executable, "-m", "run"], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (130, "")


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux' /proc to see when torch is loaded")
def test_ctrl_c_ends_quietly(recording, tmp_path):
    long = tmp_path / "long"
    long.mkdir()
    for index in range(600):
        shutil.copy(recording / "images" / f"{index % 13:05d}.png", long / f"{index:05d}.png")
    process = subprocess.Popen([*COMMAND, "estimate", str(long), "--hop", "1", "--out", str(tmp_path / "out")],
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while "libtorch" not in Path(f"/proc/{process.pid}/maps").read_text() and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(1)  # past the imports, or among them: both must end quietly
    assert process.poll() is None, process.communicate()
    process.send_signal(signal.SIGINT)
    output = process.communicate(timeout=30)
    assert process.returncode == 130 and output == ("", "")
    assert not (tmp_path / "out").exists()
