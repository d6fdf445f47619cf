# SPDX-License-Identifier: Apache-2.0
"""The demo as a user runs it: what it writes, what it says when something fails, and that it leaves no process."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import numpy as np
import pytest
from domains import next_domain

from rays_as_pixels_model.checkpoint import default_checkpoint
from rays_as_pixels_model.files import write_png
from rays_as_pixels_model.geometry import Intrinsics, invert, make_pose, rotation_angle_deg, so3_exp
from rays_as_pixels_ros import cli, demo_figures, demo_processes, demo_source
from rays_as_pixels_ros.demo_recorder_node import Record

MARK = "RAP_TEST_RUN"
FILES = ("summary.json", "trajectory.png", "views.png", "raxels.png", "demo.mp4", "trajectory.txt")
PATIENCE = 540


class Demo:
    """A demo process; its descendants are known by an environment variable that they inherit."""

    def __init__(self, *arguments):
        self.mark = uuid.uuid4().hex
        environment = {**os.environ, MARK: self.mark, "OMP_NUM_THREADS": "1"}
        # Of this worker's range: what the demo takes by itself another worker may take in the same moment.
        given = ["--timeout", PATIENCE, "--domain", next_domain(), *arguments]
        command = [sys.executable, "-m", "rays_as_pixels_ros.cli", "demo", *given]
        self.process = subprocess.Popen(
            [str(part) for part in command], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def finish(self, seconds=PATIENCE + 30):
        try:
            out, err = self.process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        return self.process.returncode, out, err

    def descendants(self):
        """Command lines of the processes that the demo started and that still run."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if f"{MARK}={self.mark}" in (folder / "environ").read_text(errors="replace").split("\0"):
                    found.append((int(folder.name), (folder / "cmdline").read_text().replace("\0", " ")))
            except OSError:
                continue
        return [line for number, line in found if number != self.process.pid]


def structure(value):
    return {key: structure(inner) for key, inner in value.items()} if isinstance(value, dict) else None


SUMMARY = structure(
    {
        "runtime": 0,
        "pose": dict.fromkeys(
            ["frames", "rotation_error_deg_median", "rotation_error_deg_identity",
             "translation_direction_error_deg_median"]
        ),
        "views": dict.fromkeys(["count", "psnr", "psnr_copy_nearest", "psnr_rotation_warp"]),
        "timing": dict.fromkeys(["pose_frames_per_s", "seconds_per_view"]),
    }
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(PATIENCE + 60)
def test_demo_writes_its_report_and_leaves_no_process(tmp_path):
    out = tmp_path / "report"
    out.mkdir()
    (out / "mine.txt").write_text("keep")
    demo = Demo("--seconds", 4, "--out", out)
    status, said, errors = demo.finish()
    assert status == 0, errors
    assert demo.descendants() == []
    for name in FILES:
        assert (out / name).stat().st_size > 100, name
    assert (out / "mine.txt").read_text() == "keep"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report"]
    summary = json.loads((out / "summary.json").read_text())
    assert structure(summary) == SUMMARY
    assert summary["runtime"] in ("embedded", "rclpy")
    assert summary["pose"]["frames"] >= 5 and summary["views"]["count"] in (4, 8, 12)  # 12 if time allows
    numbers = [value for part in ("pose", "views", "timing") for value in summary[part].values()]
    assert np.isfinite(np.array(numbers, dtype=float)).all()
    # The camera really moved, and the trivial ways to get a view are really worse than the truth.
    assert summary["pose"]["rotation_error_deg_identity"] > 1.0
    assert 5.0 < summary["views"]["psnr_copy_nearest"] < 40.0
    assert "PSNR of views" in said and str(out) in said
    for request in range(summary["views"]["count"] // 4):
        assert len(list((out / f"request_{request}").glob("view_*.png"))) == 4


@pytest.mark.slow
@pytest.mark.timeout(PATIENCE + 60)
def test_demo_without_truth_says_so(tmp_path):
    """An image folder with no cameras: figures that need a truth are null, the rest is there."""
    from rays_as_pixels_model.scenes import TextureBank, random_path, random_scene, render

    camera = Intrinsics.from_fov(70.0, 96, 64)
    scene = random_scene(7, TextureBank.default(split="held_out"))
    for index, frame in enumerate(render(scene, random_path(7, scene, 30, style="handheld"), camera)[0]):
        write_png(tmp_path / "images" / f"{index:03d}.png", frame)
    demo = Demo("--input", tmp_path / "images", "--seconds", 3, "--out", tmp_path / "report")
    status, said, errors = demo.finish()
    assert status == 0, errors
    assert demo.descendants() == []
    summary = json.loads((tmp_path / "report" / "summary.json").read_text())
    assert structure(summary) == SUMMARY
    unknown = {key for part in ("pose", "views") for key, value in summary[part].items() if value is None}
    assert unknown == {
        "rotation_error_deg_median", "rotation_error_deg_identity", "translation_direction_error_deg_median",
        "psnr", "psnr_copy_nearest", "psnr_rotation_warp",
    }  # fmt: skip
    assert summary["pose"]["frames"] >= 5 and summary["views"]["count"] in (4, 8, 12)
    assert "No true poses" in said and "No true pictures" in said


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_demo_leaves_nothing(tmp_path, sent):
    demo = Demo("--out", tmp_path / "report")
    end = time.monotonic() + 120
    while sum("entry_points" in line for line in demo.descendants()) < 3:
        assert demo.process.poll() is None and time.monotonic() < end
        time.sleep(0.1)
    demo.process.send_signal(sent)
    status, _, errors = demo.finish(60)
    assert status == 130, errors
    assert "Traceback" not in errors
    assert demo.descendants() == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.timeout(PATIENCE)
def test_failing_node_is_named_with_its_reason(tmp_path):
    """A checkpoint whose weights are cut short passes the demo's first look and fails in the nodes."""
    broken = tmp_path / "checkpoint"
    shutil.copytree(default_checkpoint(), broken)
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    demo = Demo("--checkpoint", broken, "--out", tmp_path / "report")
    status, _, errors = demo.finish()
    assert status == 1
    assert "_node ended with status 1; the end of its log:" in errors and "cannot be configured" in errors
    assert "Traceback" not in errors
    assert demo.descendants() == []
    assert not (tmp_path / "report").exists()


@pytest.mark.parametrize(
    "arguments, reason",
    [
        (["--input", "no/such/place"], "no/such/place: no such file or folder"),
        (["--checkpoint", "no/such/folder"], "no/such/folder does not exist"),
    ],
)
def test_bad_input_is_told_before_anything_starts(tmp_path, arguments, reason):
    demo = Demo(*arguments, "--out", tmp_path / "report")
    status, said, errors = demo.finish(120)
    assert status == 1 and said == ""
    assert len(errors.strip().splitlines()) == 1 and reason in errors
    assert list(tmp_path.iterdir()) == []


def track(count, error_deg=0.0):
    """A camera that turns and walks; the estimate has another frame, another unit and a turn error per frame."""
    turn = np.radians(2.0) * np.arange(count)[:, None] * [0.0, 1.0, 0.0]
    move = np.stack([0.1 * np.arange(count), np.sin(np.arange(count)), np.zeros(count)], axis=1)
    truth = make_pose(so3_exp(turn), move)
    T_map_world = make_pose(so3_exp(np.array([0.3, -0.5, 1.0])), np.array([1.0, 2.0, 3.0]))
    estimate = T_map_world @ truth
    estimate[:, :3, 3] *= 0.37
    estimate[:, :3, :3] = estimate[:, :3, :3] @ so3_exp(np.radians(error_deg) * np.arange(count)[:, None] * [1.0, 0, 0])
    record = Record()
    record.poses = {1000 + 100 * index: pose for index, pose in enumerate(estimate)}
    record.truth = {1000 + 100 * index: pose for index, pose in enumerate(truth)}
    record.pose_times = {stamp: 2.0 + index for index, stamp in enumerate(record.poses)}
    return record


def test_summary_measures_windows_of_poses():
    record = track(20)
    exact = demo_figures.summarise("embedded", demo_figures.make_track(record), [], 5, record.pose_times, [])
    assert exact["pose"]["frames"] == 20
    assert exact["pose"]["rotation_error_deg_median"] < 1e-4
    assert exact["pose"]["translation_direction_error_deg_median"] < 1e-4
    assert exact["pose"]["rotation_error_deg_identity"] == pytest.approx(8.0)
    assert exact["timing"]["pose_frames_per_s"] == pytest.approx(1.0)
    turned = track(20, 0.5)
    off = demo_figures.summarise("embedded", demo_figures.make_track(turned), [], 5, turned.pose_times, [])
    assert off["pose"]["rotation_error_deg_median"] == pytest.approx(2.0, rel=0.1)


def test_summary_without_truth_has_no_errors():
    record = track(10)
    record.truth.clear()
    summary = demo_figures.summarise("embedded", demo_figures.make_track(record), [], 5, record.pose_times, [])
    assert structure(summary) == SUMMARY
    assert summary["pose"]["rotation_error_deg_median"] is None and summary["views"]["psnr"] is None


def test_views_are_compared_with_the_scene_itself():
    """A view that shows what the scene shows there has the best PSNR; copy and warp are what they say."""
    source = demo_source.ProceduralSource(7, 2.0)
    camera = Intrinsics.from_fov(70.0, 192, 128)
    pose = source._shot.T_world_camera[5]
    T_source_view = make_pose(so3_exp(np.array([0.0, 0.12, 0.0])), np.array([0.1, 0.0, 0.0]))
    record = Record()
    record.truth[5] = pose
    record.images[5] = source.render(pose[None], camera, pose)[0], camera
    small = camera.resized(96, 64)
    exact = source.render((pose @ T_source_view)[None], camera, pose)[0]
    shown = exact.reshape(64, 2, 96, 2, 3).mean(axis=(1, 3)).round().astype(np.uint8)
    told = {"T_frame_camera": [T_source_view.tolist()], "metres_per_unit": 1.0}
    views = demo_figures.make_views(record, [(told, [(5, shown, small)])], source)
    moving = track(6)
    summary = demo_figures.summarise("embedded", demo_figures.make_track(moving), views, 5, moving.pose_times, [0.5])
    assert summary["views"]["psnr"] > 45.0
    assert summary["views"]["psnr_copy_nearest"] < summary["views"]["psnr_rotation_warp"] < 40.0
    assert summary["timing"]["seconds_per_view"] == pytest.approx(0.5)


def test_the_truth_of_a_varied_view_has_the_exposure_of_its_source():
    """At the camera's own pose it is the camera's own image, but for what no one can know: noise and motion blur."""
    source = demo_source.ProceduralSource(5, 2.0, "varied")
    shot, camera = source._shot, source._camera.resized(48, 32)
    clean = dataclasses.replace(shot, sensor=dataclasses.replace(shot.sensor, noise=(0.0, 0.0), shutter=0.0))
    exposures = []
    for index in (3, 17):
        pose = shot.T_world_camera[index]
        shown = source.render(pose[None], camera, pose)[0]
        assert np.abs(clean.render(camera, [index])[0][0].astype(int) - shown).max() <= 1
        exposures.append(shown.mean())
        assert source.depth(pose) > 0.3
    other = source.render(shot.T_world_camera[3][None], camera, shot.T_world_camera[17])[0]
    assert other.mean() != exposures[0]  # the sensor drifts


@pytest.mark.parametrize("arguments, reason", [
    (["--scenes", "fog"], "scenes must be plain, varied or of geometry, lights, sensor, motion, lens joined by '+'"),
    (["--difficulty", "2"], "2 is out of range, it must be from 0 to 1"),
    (["--scenes", "varied", "--input", "a.mp4"], "--scenes is for the procedural scene"),
])  # fmt: skip
def test_scenes_that_are_none_are_bad_arguments(capsys, arguments, reason):
    with pytest.raises(SystemExit) as end:
        cli.main(["demo", *arguments])
    said = capsys.readouterr().err
    assert end.value.code == 2 and reason in said and said.count("\n") == 1


def test_requests_stay_within_reach():
    for request in demo_source.requests(0.3, 4, seed=1):
        if request.T_camera_view is not None:
            assert np.linalg.norm(request.T_camera_view[:, :3, 3], axis=1).max() == pytest.approx(0.3)
            assert rotation_angle_deg(request.T_camera_view[:, :3, :3]).max() == pytest.approx(10.0)
    a, b = (demo_source.requests(0.3, 4, seed)[0].T_camera_view for seed in (1, 2))
    assert np.abs(invert(a) @ b - np.eye(4)).max() > 0.01


def test_free_domain_avoids_one_in_use():
    import socket

    domain = demo_processes.free_domain()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("", 7400 + 250 * domain + 10))
        assert not demo_processes.ports_are_free(domain)
        assert demo_processes.free_domain() != domain


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_signals_wait_for_the_end_of_a_block(sent):
    def handler(number, frame):
        raise KeyboardInterrupt

    done = []
    before = signal.signal(sent, handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            with demo_processes.signals_later():
                os.kill(os.getpid(), sent)
                time.sleep(0.05)
                done.append("block")
            done.append("after")
        assert done == ["block"] and signal.getsignal(sent) is handler
    finally:
        signal.signal(sent, before)
