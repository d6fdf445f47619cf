# SPDX-License-Identifier: Apache-2.0
"""Shards: what is written, by another reader; the same bytes after a kill; a stream that resumes exactly."""

import io
import json
import signal
import subprocess
import sys
import tarfile
import time
from dataclasses import replace

import numpy as np
import pytest
from rendered_video import INTRINSICS, rendered
from shard_files import CUT, many, video, write
from test_datasets import write_posed_images

from rays_as_pixels_model.geometry import fit_frames, invert
from rays_as_pixels_ros.cli import main as command
from rays_as_pixels_training import cache
from rays_as_pixels_training.data.clips import ClipCut, cut_clip
from rays_as_pixels_training.data.matching import agreement
from rays_as_pixels_training.data.posed import DatasetError, PosedVideo
from rays_as_pixels_training.data.shards import ShardSource
from rays_as_pixels_training.data.windows import cut_windows
from rays_as_pixels_training.data.write_shards import encode_images


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_webdataset_reads_what_is_written(tmp_path):
    wds = pytest.importorskip("webdataset", reason="needs webdataset")
    done = write(tmp_path)
    assert done["clips"] == 10 and [shard["clips"] for shard in done["shards"]] == [2] * 5
    urls = [str(tmp_path / shard["name"]) for shard in done["shards"]]
    samples = list(wds.WebDataset(urls, shardshuffle=False))
    assert len(samples) == 10
    second = samples[1]  # frames 3, 4, 5 of the first video
    assert json.loads(second["json"]) == {"video": "clip 0", "first_frame": 3}
    cameras = np.load(io.BytesIO(second["cameras.npz"]))
    np.testing.assert_array_equal(cameras["poses"], rendered().T_world_camera[3:6])
    np.testing.assert_allclose(cameras["scales"], rendered().scene_scale[3:6])
    frames, k = fit_frames(rendered().frames[3:6], INTRINSICS, 48, 32)
    np.testing.assert_allclose(cameras["intrinsics"], [k.fx, k.fy, k.cx, k.cy])
    from PIL import Image

    for index, frame in enumerate(frames):
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(second[f"{index:03d}.png"]))), frame)


@pytest.mark.parametrize("broken_at", [0, 1, 5, 9])
def test_an_interrupted_run_goes_on_and_writes_the_same_bytes(tmp_path, broken_at):
    write(tmp_path / "whole")
    calls, encode = [], encode_images("png")

    def breaking(clip):
        if len(calls) == broken_at:
            raise KeyboardInterrupt
        calls.append(clip)
        return encode(clip)

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "part", encode=breaking)
    assert sorted(path.name for path in (tmp_path / "part").glob("*.tar")) == [
        f"shard-{number:06d}.tar" for number in range(broken_at // 2)
    ]
    with pytest.raises(DatasetError, match="unfinished: the same command goes on"):
        ShardSource(tmp_path / "part")
    (tmp_path / "part" / ".shard-000003.17.tar").write_bytes(b"left by a process that was killed")
    seen = []
    write(tmp_path / "part", on_clip=seen.append)
    assert contents(tmp_path / "part") == contents(tmp_path / "whole")
    assert seen[-1] == 10 and seen == sorted(seen)
    before = (tmp_path / "part" / "shard-000000.tar").stat().st_mtime_ns
    write(tmp_path / "part", encode=lambda clip: pytest.fail("everything is written already"))
    assert (tmp_path / "part" / "shard-000000.tar").stat().st_mtime_ns == before


@pytest.mark.slow
def test_kill_9_of_the_command_loses_nothing_that_is_written(tmp_path):
    for number in range(3):
        write_posed_images(tmp_path / "data" / f"{number}")
    arguments = ["cache", "--data", str(tmp_path / "data"), "--frames", "3", "--size", "48x32", "--step", "1",
                 "--clips-per-shard", "1", "--option", "metric=true"]  # fmt: skip
    program = [sys.executable, "-m", "rays_as_pixels_ros.cli"]
    process = subprocess.Popen([*program, *arguments, "--out", str(tmp_path / "killed")])
    deadline = time.monotonic() + 120
    while not (tmp_path / "killed" / "shard-000001.tar").exists() and time.monotonic() < deadline:
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    for path in (tmp_path / "killed").glob("shard-*.tar"):
        with tarfile.open(path) as tar:
            assert len(tar.getnames()) == 5
    assert not (tmp_path / "killed" / "shards.json").exists()
    for name in ("killed", "whole"):
        assert command([*arguments, "--out", str(tmp_path / name)]) == 0
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_another_plan_is_refused_and_useless_data_says_so(tmp_path, capsys):
    write(tmp_path / "a")
    with pytest.raises(DatasetError, match="holds shards of another plan: stride is 1 there and 2 now"):
        write(tmp_path / "a", cut=replace(CUT, stride=2))
    moved = [replace(video(), T_world_camera=video().T_world_camera + 1e-6)]
    with pytest.raises(DatasetError, match="another plan: videos is 5 there and 1 now"):
        write(tmp_path / "a", moved)
    with pytest.raises(DatasetError, match="none of the 5 videos has the 13 frames that a clip of 5 frames at"):
        write(tmp_path / "b", cut=replace(CUT, frames=5, stride=3))
    still = replace(video("still", scale=False), T_world_camera=np.repeat(video().T_world_camera[:1], 6, axis=0))
    skipped = []
    done = write(tmp_path / "c", [still, video()], on_skip=skipped.append)
    assert done["clips"] == 2 and len(skipped) == 1 and skipped[0].startswith("still: the scene's scale cannot")
    assert ShardSource(tmp_path / "c").clips == 2
    with pytest.raises(DatasetError, match="no video could be used"):
        write(tmp_path / "d", [still])
    with pytest.raises(ValueError, match="frames, width, height and stride must be at least 1"):
        replace(CUT, stride=0)


def names(clips):
    """Tell the clips of a batch apart by their first pose and unit."""
    return [(pose[0, 0, 3], scale[0]) for pose, scale in zip(clips.poses, clips.scales, strict=True)]


def test_every_epoch_has_every_clip_once_in_an_order_of_its_own(tmp_path):
    write(tmp_path, many(), clips_per_shard=5)
    source = ShardSource(tmp_path, seed=1, mix=2)
    assert (source.clips, source.clip_frames, source.height, source.width) == (24, 3, 32, 48)
    rng = np.random.default_rng(0)
    epochs = [sum((names(source.take(4, rng)[0]) for _ in range(6)), []) for _ in range(2)]
    assert len(set(epochs[0])) == 24 and sorted(epochs[0]) == sorted(epochs[1]) and epochs[0] != epochs[1]
    assert epochs[0] != sum((names(ShardSource(tmp_path, seed=2, mix=2).take(4, rng)[0]) for _ in range(6)), [])
    inside = {pair[1] for pair in epochs[0][:5]}
    assert len(inside) > 3, "clips of one shard are not shuffled with those of others"


@pytest.mark.parametrize("taken", [0, 1, 5, 7, 8, 17])
def test_a_state_goes_on_with_the_same_clips(tmp_path, taken):
    write(tmp_path, many(), clips_per_shard=5)
    source, rng = ShardSource(tmp_path, seed=3, mix=2), np.random.default_rng(0)
    for _ in range(taken):
        source.take(3, rng)
    state = json.loads(json.dumps(source.state()))
    later = ShardSource(tmp_path, seed=99, mix=4)
    later.restore(state)
    for _ in range(10):
        a, b = source.take(3, rng)[0], later.take(3, rng)[0]
        np.testing.assert_array_equal(a.frames, b.frames)
        np.testing.assert_array_equal(a.poses, b.poses)
        np.testing.assert_array_equal(a.scales, b.scales)
    assert source.state() == later.state()
    assert len(json.dumps(state)) < 200


def test_what_another_process_takes_is_skipped_unread(tmp_path, monkeypatch):
    write(tmp_path, many(), clips_per_shard=5)
    source, later, rng = ShardSource(tmp_path, mix=2), ShardSource(tmp_path, mix=2), np.random.default_rng(0)
    taken = [names(source.take(5, rng)[0]) for _ in range(12)]  # two epochs and a half
    read = []
    monkeypatch.setattr(ShardSource, "arrays", lambda self, samples: read.append(samples))
    later.skip(50)
    assert not read
    monkeypatch.undo()
    assert names(later.take(5, rng)[0]) == taken[10] and names(later.take(5, rng)[0]) == taken[11]
    assert source.state() == later.state()


@pytest.mark.parametrize("changed", [{"intrinsics": [replace(INTRINSICS, fx=200.0)] * 6}, {"scene_scale": np.ones(6)}])
def test_shards_of_other_cameras_or_scales_are_not_gone_on_with(tmp_path, changed):
    write(tmp_path, [video()])
    with pytest.raises(DatasetError, match="holds shards of another plan: data is"):
        write(tmp_path, [replace(video(), **changed)])


def test_folders_of_shards_are_one_source(tmp_path):
    write(tmp_path / "a", many(3))
    write(tmp_path / "b", many(2))
    assert ShardSource(tmp_path).clips == 10
    state = ShardSource(tmp_path).state()
    with pytest.raises(ValueError, match="the run's state is of shards .* give the shards that the run began with"):
        ShardSource(tmp_path / "a").restore(state)
    write(tmp_path / "c", many(2), cut=replace(CUT, width=24))
    with pytest.raises(DatasetError, match=r"c/shards\.json: width is 24, but in .*a/shards\.json it is 48"):
        ShardSource(tmp_path)
    (tmp_path / "c" / "shards.json").unlink()
    with pytest.raises(DatasetError, match=r"c: is unfinished: the same cache command goes on"):
        ShardSource(tmp_path)
    assert ShardSource(tmp_path / "a").clips == 6


def test_broken_shards_are_named(tmp_path):
    with pytest.raises(DatasetError, match="holds no shards.json; make shards with rays-as-pixels cache --data PATH"):
        ShardSource(tmp_path)
    write(tmp_path, many(1))
    path = tmp_path / "shard-000000.tar"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DatasetError, match=r"shard-000000\.tar: not readable"):
        ShardSource(tmp_path).take(1, None)
    path.unlink()
    with pytest.raises(DatasetError, match=r"names shard-000000\.tar, which does not exist"):
        ShardSource(tmp_path)


def test_windows_of_shards_have_the_cameras_of_the_video(tmp_path):
    write(tmp_path, [video()], cut=replace(CUT, frames=6, width=96, height=64))
    source, rng = ShardSource(tmp_path), np.random.default_rng(0)
    clips, slots = source.take(1, rng)
    windows = cut_windows(clips, slots, rng, 6, augment=False, references=1)
    found, truth = windows.T_reference_camera[0].numpy(), rendered().T_world_camera
    if np.allclose(found[1, :3, :3], (invert(truth[5]) @ truth[4])[:3, :3], atol=1e-6):
        truth = truth[::-1]  # played backwards
    first = 0 if truth is rendered().T_world_camera else 5
    expected = invert(truth[0]) @ truth
    expected[:, :3, 3] /= rendered().scene_scale[first]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    frames = ((windows.frames[0].numpy() + 1) * 127.5).round().astype(np.uint8)
    from rays_as_pixels_model.geometry import Intrinsics

    k = Intrinsics(*windows.intrinsics[0].tolist(), 96, 64)
    again = PosedVideo("window", np.arange(6.0), found, [k] * 6, lambda i: frames[i])
    judged = agreement(again, pairs=2, apart=2)
    assert judged["matches"] >= 20 and judged["epipolar_px"] < 0.3, judged


def test_frames_of_other_cameras_are_shown_as_the_narrowest_sees_them():
    import cv2

    clip, k = rendered(), INTRINSICS
    narrow = replace(k, fx=1.2 * k.fx, fy=1.2 * k.fy, cx=k.cx + 4)
    shift = np.array([[1.2, 0, k.cx + 3.5 - 1.2 * (k.cx - 0.5)], [0, 1.2, (1 - 1.2) * (k.cy - 0.5)]])
    zoomed = cv2.warpAffine(clip.frames[1], shift, (k.width, k.height), borderMode=cv2.BORDER_REPLICATE)
    mixed = replace(video(), intrinsics=[k, narrow, k], T_world_camera=clip.T_world_camera[:3],
                    load=lambda i: zoomed if i == 1 else clip.frames[i])  # fmt: skip
    cut = cut_clip(mixed, 0, ClipCut(3, k.width, k.height))
    assert (cut.intrinsics.fx, cut.intrinsics.cx) == (narrow.fx, narrow.cx)
    np.testing.assert_array_equal(cut.frames[1], zoomed)
    expected = cv2.warpAffine(clip.frames[0], shift, (k.width, k.height), borderMode=cv2.BORDER_REPLICATE)
    assert np.abs(cut.frames[0].astype(int) - expected).mean() < 0.05  # 0.1 px off gives 1
    again = PosedVideo("cut", np.arange(3.0), cut.T_world_camera, [cut.intrinsics] * 3, lambda i: cut.frames[i])
    judged = agreement(again, pairs=1, apart=2)
    assert judged["matches"] > 50 and judged["epipolar_px"] < 0.3, judged
    other = replace(mixed, intrinsics=[k, replace(narrow, width=100), k])
    with pytest.raises(DatasetError, match="clip: frame 0 is 240x160, others of its clip are 100x160"):
        cut_clip(other, 0, CUT)


def test_a_stopped_command_says_how_to_go_on(tmp_path, monkeypatch, capsys):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(cache, "_run", stop)
    assert command(["cache", "--data", "x", "--out", str(tmp_path)]) == 130
    assert capsys.readouterr().err == "stopped; the same command writes the shards that are missing\n"


def test_the_command_says_what_is_wrong_in_one_line(tmp_path, capsys):
    write_posed_images(tmp_path / "data")
    pool = tmp_path / "pool"
    pool.mkdir()
    (pool / "pool.json").write_text("{}")
    good = ["cache", "--data", str(tmp_path / "data"), "--out", str(tmp_path / "out")]
    for arguments, code, message in [
        ([*good, "--size", "96"], 2, "argument --size: '96' is not WIDTHxHEIGHT, e.g. 96x64"),
        ([*good, "--frames", "1"], 2, "argument --frames: 1 is too small, it must be at least 2"),
        ([*good, "--option", "fps"], 2, "option 'fps' is not NAME=VALUE"),
        ([*good, "--preset", "huge"], 2, "preset"),
        ([*good, "--store", "latents", "--size", "96x64"], 2, "leave out --size"),
        ([*good, "--kind", "tum"], 1, "no dataset here or in the folders below. Looked for tum"),
        ([*good, "--option", "fps=3"], 1, "posed_images has no option fps; it has metric"),
        ([*good], 1, "none of the 1 videos has the 13 frames"),
        (["cache", "--data", str(pool), "--out", "o"], 1, "a pool of clips is trained on as it is: "),
    ]:
        try:
            status = command(arguments)
        except SystemExit as error:
            status = error.code
        err = capsys.readouterr().err.splitlines()
        assert status == code and err[-1].startswith("rays-as-pixels cache: error: ") and message in err[-1], err
    assert command([*good, "--frames", "3", "--size", "48x32"]) == 0
    err = capsys.readouterr().err
    assert "data: cameras agree with pictures to 0.0" in err and "wrote 2 clips in 1 shards" in err
