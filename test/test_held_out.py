# SPDX-License-Identifier: Apache-2.0
"""The evaluation: perfect and absent knowledge get the figures they should, and the shipped model beats guessing."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from rays_as_pixels_model.comparison import psnr
from rays_as_pixels_model.geometry import GeometryError, Intrinsics, invert, rotation_angle_deg
from rays_as_pixels_model.pipeline import Pipeline
from rays_as_pixels_training import evaluate
from rays_as_pixels_training.data.posed import DatasetError, PosedVideo
from rays_as_pixels_training.data.procedural import ClipConfig
from rays_as_pixels_training.eval_pose import (
    clip_trajectories,
    default_steps,
    find_cameras,
    pose_report,
    window_raxels,
)
from rays_as_pixels_training.eval_views import closed_loop, render_cases, view_report
from rays_as_pixels_training.eval_windows import video_windows, whole_clips
from rays_as_pixels_training.held_out import clip_length, held_out_clips, held_out_windows
from rays_as_pixels_training.perceptual import Weights

FREE = ("rays_as_pixels", "identity", "constant_velocity")


@pytest.fixture(scope="module")
def pipe():
    return Pipeline.from_checkpoint(device="cpu")


@pytest.fixture(scope="module")
def windows(pipe):
    return held_out_windows(4, pipe.config.frames, (pipe.config.width, pipe.config.height))


def decoder(windows, raxels):
    """An `estimate_batch` that decodes raxels of windows (n, T, h, w, 3), told apart by their first frames."""
    firsts = torch.from_numpy(np.stack([w.frames[0] for w in windows])).float() * (2 / 255) - 1

    def estimate_batch(self, video, *_, **__):
        return raxels[[int((firsts - given[0]).abs().flatten(1).mean(1).argmin()) for given in video]]

    return estimate_batch


@pytest.fixture
def knows_the_cameras(pipe, windows, monkeypatch):
    """A model that decodes the true raxels whatever it is shown: in one pass, as it does not see frames turned back."""
    monkeypatch.setattr(pipe, "config", replace(pipe.config, pose_passes=1))
    T = torch.from_numpy(np.stack([w.T_first_camera() for w in windows]))
    truth = window_raxels(pipe, T, [w.intrinsics for w in windows])
    monkeypatch.setattr(Pipeline, "estimate_batch", decoder(windows, truth))


def test_held_out_windows_are_every_second_frame_of_the_held_out_clips(pipe, windows):
    size = {"height": pipe.config.height, "width": pipe.config.width}
    clips = held_out_clips(4, ClipConfig(frames=clip_length(pipe.config.frames), **size))
    index = 4 + 2 * np.arange(pipe.config.frames)
    for window, clip in zip(windows, clips, strict=True):
        np.testing.assert_array_equal(window.frames, clip.frames[index])
        np.testing.assert_array_equal(window.T_world_camera, clip.T_world_camera[index])
        assert window.unit == pytest.approx(clip.scene_scale[4]) and window.intrinsics == clip.intrinsics
        np.testing.assert_array_equal(window.views["one_source"].sources, clip.frames[[4]])
        np.testing.assert_array_equal(window.views["one_source"].target, clip.frames[10])
        np.testing.assert_array_equal(window.views["two_sources"].sources, clip.frames[[4, 12]])
        np.testing.assert_array_equal(window.views["two_sources"].target, clip.frames[8])


def test_full_resolution_frames_show_the_same_views(windows):
    large = windows[0].full()
    height, width = windows[0].frames.shape[1:3]
    assert large.shape[1:3] == (4 * height, 4 * width)
    small = large.reshape(len(large), height, 4, width, 4, 3).mean((2, 4)).astype(np.uint8)
    same = [psnr(a, b) for a, b in zip(small, windows[0].frames, strict=True)]
    other = psnr(small[0], windows[0].frames[-1])
    assert min(same) > 22 and min(same) > other + 4


def test_a_model_that_knows_the_cameras_has_no_error(pipe, windows, knows_the_cameras):
    found = find_cameras(pipe, windows, FREE, steps=(2,))
    for window, row in zip(windows, found["rays_as_pixels"].T_first_camera, strict=True):
        usual = pipe.estimate_trajectory(window.full(), window.full_intrinsics)
        np.testing.assert_allclose(row, usual.T_reference_camera, atol=1e-3)
    report = pose_report(found, windows)
    for method, most in (("rays_as_pixels", 0.3), ("rays_as_pixels_unknown_focal", 1.0)):  # as points can be tracked
        assert report[method]["rotation_error_deg_median"] < most and report[method]["failed"] == 0
    for method in ("rays_as_pixels_model_alone", "rays_as_pixels_2_steps"):
        errors = report[method]
        assert errors["rotation_error_deg_median"] < 0.01 and errors["AUC@5"] > 98 and errors["failed"] == 0
        assert errors["translation_direction_error_deg_median"] < 0.1
        assert errors["ATE_se3"] < 1e-3 and errors["RPE_translation"] < 1e-3
    still = report["identity"]
    assert still["rotation_error_deg_median"] > 1 and still["translation_direction_error_deg_median"] == 90
    assert still["ATE_sim3"] > 0.01


def test_raxels_of_no_camera_are_counted_as_failed_and_stand_still(pipe, windows, monkeypatch):
    T = torch.from_numpy(np.stack([w.T_first_camera() for w in windows]))
    raxels = window_raxels(pipe, T, [w.intrinsics for w in windows])
    raxels[1] = 0
    monkeypatch.setattr(Pipeline, "estimate_batch", decoder(windows, raxels))
    found = find_cameras(pipe, windows, ("rays_as_pixels",), steps=())
    for method in ("rays_as_pixels_model_alone", "rays_as_pixels_unknown_focal", "rays_as_pixels"):
        assert found[method].failed.tolist() == [False, True, False, False], method
        still = np.tile(np.eye(4), (pipe.config.frames, 1, 1))
        np.testing.assert_array_equal(found[method].T_first_camera[1], still)
    with pytest.raises(GeometryError):
        pipe.estimate_trajectory(windows[1].frames, windows[1].intrinsics)


def test_the_default_rows_are_what_the_pipeline_does_by_default(pipe, windows):
    found = find_cameras(pipe, windows[:1], ("rays_as_pixels",), steps=(1, 2))
    usual = default_steps(Pipeline.estimate_trajectory)
    assert found["rays_as_pixels_model_alone"] is found[f"rays_as_pixels_{usual}_steps"]
    alone = pipe.estimate_trajectory(windows[0].frames, windows[0].intrinsics, refine=False).T_reference_camera
    # 1e-3, since frames that the pipeline turns back are rounded
    np.testing.assert_allclose(found["rays_as_pixels_model_alone"].T_first_camera[0], alone, atol=1e-3)
    assert np.abs(found["rays_as_pixels"].T_first_camera[0] - alone).max() > 0.01
    unknown = pipe.estimate_trajectory(windows[0].full(), None).T_reference_camera
    np.testing.assert_array_equal(found["rays_as_pixels_unknown_focal"].T_first_camera[0], unknown)
    cases = render_cases(pipe, windows[:1], ("rays_as_pixels",), steps=(1,))
    case = windows[0].views["two_sources"]
    views = pipe.render_views(case.sources, case.T_world_source, windows[0].intrinsics, case.T_world_target[None],
                              metres_per_unit=float(case.units[0]))  # fmt: skip
    assert psnr(cases["two_sources"]["rays_as_pixels"][0], views.frames[0]) > 45


def test_views_of_the_baselines_and_cameras_found_in_the_videos(pipe, windows, knows_the_cameras):
    cases = render_cases(pipe, windows, ("copy_nearest", "rotation_warp", "plane_warp", "plane_sweep"), steps=())
    report = view_report(pipe, windows, cases, Weights())
    order = ("copy_nearest", "rotation_warp", "plane_warp", "plane_sweep")
    found = [report[method]["psnr"] for method in order]
    assert found == sorted(found) and found[3] > found[2] + 0.5  # two sources tell more than the scene's depth
    np.testing.assert_array_equal(cases["one_source"]["plane_warp"], cases["one_source"]["plane_sweep"])
    assert report["truth"]["R_err"] < 1e-3 and report["truth"]["T_err"] < 1e-3
    rows = report["copy_nearest"]
    counts = [rows[c]["views"] for c in ("one_source", "two_sources")]
    pooled = np.average([rows[c]["psnr"] for c in ("one_source", "two_sources")], weights=counts)
    assert rows["psnr"] == pytest.approx(pooled) and rows["views"] == sum(counts)


def test_the_closed_loop_of_a_perfect_renderer_has_no_error(pipe, windows, monkeypatch):
    """Whatever the estimate is, a renderer that gives the true frames leads to the same estimate again."""
    frames = np.stack([w.frames for w in windows])
    import rays_as_pixels_training.eval_views as module

    monkeypatch.setattr(module, "render_videos", lambda *_, **__: frames)
    loop = closed_loop(pipe, windows, Weights())
    assert loop["R_err"] < 1e-6 and loop["T_err"] < 1e-6 and loop["psnr"] == 99 and loop["ssim"] == pytest.approx(1)
    monkeypatch.setattr(module, "render_videos", lambda *_, **__: frames[::-1].copy())
    assert closed_loop(pipe, windows, Weights())["R_err"] > 0.01


@pytest.mark.slow
def test_opencv_and_colmap_find_the_cameras_of_rendered_clips(pipe, windows):
    pytest.importorskip("pycolmap", reason="needs pycolmap: pip install pycolmap")
    windows = windows[:3]
    found = find_cameras(pipe, windows, ("opencv_vo", "colmap"), colmap_windows=1)
    report = pose_report(found, windows)
    assert report["opencv_vo"]["rotation_error_deg_median"] < 0.5 and report["opencv_vo"]["ATE_sim3"] < 0.005
    assert report["opencv_vo"]["translation_direction_error_deg_median"] < 10 and report["opencv_vo"]["failed"] == 0
    assert report["colmap"]["windows"] == 1 and report["colmap"]["rotation_error_deg_median"] < 0.5
    assert np.isnan(report["colmap"]["ATE_se3"])


def test_opencv_says_when_there_is_nothing_to_see(windows):
    from rays_as_pixels_training.baselines_opencv import MotionNotFound, window_trajectory

    blank = np.full((3, 64, 96, 3), 90, np.uint8)
    with pytest.raises(MotionNotFound):
        window_trajectory(blank, windows[0].intrinsics)


@pytest.fixture
def posed_folder(tmp_path, pipe):
    """A posed-images folder of 13 rendered frames at twice the model's size."""
    import cv2

    config = ClipConfig(frames=13, height=2 * pipe.config.height, width=2 * pipe.config.width)
    clip = held_out_clips(1, config)[0]
    (tmp_path / "clip" / "images").mkdir(parents=True)
    fx, fy, cx, cy = clip.intrinsics.to_opencv()
    frames = []
    for number, (frame, T) in enumerate(zip(clip.frames, clip.T_world_camera, strict=True)):
        name = f"images/{number:03d}.png"
        cv2.imwrite(str(tmp_path / "clip" / name), frame[..., ::-1])
        frames.append({"file": name, "fx": fx, "fy": fy, "cx": cx, "cy": cy, "T_world_camera": T.tolist()})
    about = {"width": config.width, "height": config.height, "fps": 10, "frames": frames}
    (tmp_path / "clip" / "cameras.json").write_text(json.dumps(about))
    return tmp_path / "clip", clip


def test_windows_of_a_video_meet_end_to_end_and_chain_to_its_path(pipe, posed_folder):
    folder, clip = posed_folder
    args = evaluate.make_parser().parse_args(["--suite", str(folder)])
    windows = evaluate.make_windows(args, pipe)
    assert [w.start for w in windows] == [1, 5] and whole_clips(windows) == {"clip": [0, 1]}
    assert 0.7 < windows[0].unit / clip.scene_scale[1] < 1.5
    before = invert(clip.T_world_camera[0]) @ clip.T_world_camera[1]
    np.testing.assert_allclose(windows[0].T_before[:3, :3], before[:3, :3], atol=1e-6)
    found = find_cameras(pipe, windows, ("identity",), steps=())
    estimate, truth = clip_trajectories(found, windows)["clip"]["identity"]
    poses = clip.T_world_camera[1:10]
    np.testing.assert_allclose(truth, invert(poses[0]) @ poses, atol=1e-6)
    assert rotation_angle_deg(estimate[-1, :3, :3]) == 0
    few = evaluate.make_windows(evaluate.make_parser().parse_args(["--suite", str(folder), "--windows", "1"]), pipe)
    assert len(few) == 1 and whole_clips(few) == {}


def test_clips_of_one_name_stay_apart_and_windows_is_an_upper_limit(pipe, posed_folder, tmp_path):
    folder, _ = posed_folder
    others = [tmp_path / name / folder.name for name in "ab"]
    for other in others:
        shutil.copytree(folder, other)
    arguments = ["--suite", *map(str, others)]
    windows = evaluate.make_windows(evaluate.make_parser().parse_args(arguments), pipe)
    assert whole_clips(windows) == {f"{others[0]}: clip": [0, 1], f"{others[1]}: clip": [2, 3]}
    few = evaluate.make_windows(evaluate.make_parser().parse_args([*arguments, "--windows", "1"]), pipe)
    assert len(few) == 1, "fewer windows than videos"


def test_frames_of_several_cameras_are_judged_as_one(pipe):
    """A pattern on a wall, zoomed into in the middle of a window: the window shows it with one camera throughout."""
    frames, (width, height) = pipe.config.frames, (pipe.config.width, pipe.config.height)
    wide = Intrinsics(80.0, 80.0, width / 2, height / 2, width, height)
    cameras = [wide, replace(wide, fx=100.0, fy=100.0), *[wide] * (frames - 1)]
    u, v = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    looks = [128 + 100 * np.sin(8 * (u - k.cx) / k.fx) * np.cos(8 * (v - k.cy) / k.fy) for k in cameras]
    pictures = [np.repeat(look[..., None], 3, 2).astype(np.uint8) for look in looks]
    poses = np.tile(np.eye(4), (frames + 1, 1, 1))
    times, scale = np.arange(frames + 1.0), np.ones(frames + 1)
    video = PosedVideo("zoom", times, poses, cameras, pictures.__getitem__, scene_scale=scale)
    (window,) = video_windows([video], 1, frames, (width, height))
    assert window.intrinsics.fx == pytest.approx(100) == window.full_intrinsics.fx
    assert min(psnr(window.frames[0], frame) for frame in window.frames[1:]) > 30
    assert min(psnr(window.full()[0], frame) for frame in window.full()[1:]) > 30
    assert psnr(pictures[0], pictures[1]) < 25


def test_a_video_that_cannot_be_judged_is_left_out_with_its_reason(pipe):
    """One that is too short, as a gap in a bag's poses leaves it, and one that stands still, of unknown scale."""
    frames, size, said = pipe.config.frames, (pipe.config.width, pipe.config.height), []
    grey = np.full((size[1], size[0], 3), 128, np.uint8)

    def video(name, count, scale):
        times, poses = np.arange(float(count)), np.tile(np.eye(4), (count, 1, 1))
        cameras = [Intrinsics.from_fov(60, *size)] * count
        return PosedVideo(name, times, poses, cameras, lambda i: grey, scene_scale=np.ones(count) if scale else None)

    good, short, still = video("good", frames + 1, True), video("short", frames, True), video("still", 9, False)
    assert [w.clip for w in video_windows([still, short, good], 9, frames, size, say=said.append)] == ["good"]
    assert said[0].startswith(f"left out short: a window of {frames} frames") and said[1].startswith("left out still:")
    for videos, why in (([short], "long enough"), ([still], "scale")):
        with pytest.raises(DatasetError, match=why):
            video_windows(videos, 9, frames, size)


@pytest.mark.slow
def test_the_command_judges_a_strangers_images_the_same_each_time(posed_folder, tmp_path):
    folder, _ = posed_folder

    def run(name, *more):
        command = ["--suite", str(folder), "--steps", "1", "2", "--colmap-windows", "1", "--json", str(tmp_path / name)]
        assert evaluate.main([*command, *more]) == 0
        return (tmp_path / name).read_text()

    text = run("a.json", "--plots", str(tmp_path / "plots"))
    report = json.loads(text)
    assert report["windows"] == 2 and set(report["views"]) >= {"rays_as_pixels", "copy_nearest", "rotation_warp"}
    assert set(report["pose"]) >= {"rays_as_pixels", "identity", "constant_velocity", "opencv_vo", "colmap"}
    assert set(report["pose"]["opencv_vo"]) >= {"RRA@5", "RTA@15", "AUC@30", "mRRA@30", "rotation_error_deg_median"}
    assert report["clips"]["clip"]["trajectory"]["opencv_vo"]["ATE_sim3"] >= 0 and report["closed_loop"]["R_err"] > 0
    plots = {"pose_accuracy.png", "steps.png", "views_one_source.png", "views_two_sources.png", "trajectories.png"}
    assert {p.name for p in (tmp_path / "plots").iterdir()} == plots
    assert run("b.json") == text


@pytest.mark.parametrize(
    "arguments, status, says",
    [
        (["--windows", "0"], 2, "--windows: 0 is too small, it must be at least 1"),
        (["--suite", "procedural", "x"], 2, "takes 'procedural' or paths, got both: procedural x"),
        (["--stride", "2"], 2, "are for --suite PATH"),
        (["--methods", "magic"], 2, "invalid choice: 'magic'"),
        (["--fid", "none.pt"], 2, "--fid: none.pt: no such file"),
        (["--suite", "nowhere"], 1, "nowhere: no such file or folder"),
    ],
)
def test_bad_arguments_end_with_one_line(arguments, status, says, capsys):
    try:
        code = evaluate.main(arguments)
    except SystemExit as stop:
        code = stop.code
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert code == status and error.startswith("rays-as-pixels eval: error: ") and says in error


def test_help_loads_nothing_heavy():
    code = "import sys; from rays_as_pixels_training import evaluate; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=dict(os.environ), check=True
    )
    assert done.stdout.strip() == "False"


@pytest.mark.slow
def test_the_shipped_model_beats_guessing(pipe):
    """Looser than the figures of docs/training_log.md, which 200 windows give; a broken checkpoint fails by far."""
    windows = held_out_windows(60, pipe.config.frames, (pipe.config.width, pipe.config.height))
    pose = pose_report(find_cameras(pipe, windows, FREE, steps=(2,)), windows)
    cases = render_cases(pipe, windows[:20], steps=(1,))
    refined, alone = pose["rays_as_pixels"], pose["rays_as_pixels_model_alone"]
    for error in ("rotation_error_deg_median", "translation_direction_error_deg_median"):
        assert refined[error] < 0.5 * alone[error]
    assert refined["rotation_error_deg_median"] < pose["refined_from_rest"]["rotation_error_deg_median"]
    for method in ("rays_as_pixels_model_alone", "rays_as_pixels_2_steps"):
        model, identity = pose[method], pose["identity"]
        assert model["rotation_error_deg_median"] < 0.6 * identity["rotation_error_deg_median"]
        assert model["translation_direction_error_deg_median"] < 45
    for table in cases.values():
        quality = {m: np.mean([psnr(a, b) for a, b in zip(v, table["truth"], strict=True)]) for m, v in table.items()}
        assert quality["rays_as_pixels_1_steps"] > quality["copy_nearest"] + 1
