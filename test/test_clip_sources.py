# SPDX-License-Identifier: Apache-2.0
"""Where clips come from: workers that share a pool, scenes that are refused, windows cut in parts, too few clips."""

import json
import os
import re
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from test_shards import many, write

from rays_as_pixels_model.checkpoint import default_checkpoint
from rays_as_pixels_model.config import preset
from rays_as_pixels_model.joint import RaysAsPixels
from rays_as_pixels_model.scenes import NoRoomError
from rays_as_pixels_training import train
from rays_as_pixels_training.config import RunConfig, TrainConfig
from rays_as_pixels_training.data import open_dataset, procedural, windows
from rays_as_pixels_training.data.clips import ClipCut
from rays_as_pixels_training.data.posed import DatasetError
from rays_as_pixels_training.data.procedural import ClipConfig, ClipPool, fill
from rays_as_pixels_training.data.shards import ShardSource
from rays_as_pixels_training.data.source import PoolSource
from rays_as_pixels_training.fit_codec import fit_codec
from rays_as_pixels_training.held_out import held_out_clips
from rays_as_pixels_training.loop import Trainer
from rays_as_pixels_training.state import read_facts
from rays_as_pixels_training.tasks import draw_step
from rays_as_pixels_training.validation import read_held_out

SMALL = ClipConfig(frames=3, height=16, width=24)


@pytest.fixture
def drawn(monkeypatch):
    """Seeds that clips were asked of, in place of rendering them; 3 and 11 have no room for a camera."""
    seeds = []

    def make_clip(seed, bank, config, style=None, device="cpu"):
        seeds.append(seed)
        if seed in (3, 11):
            raise NoRoomError("no free space")
        cells = np.ones((config.frames, config.height // 8, config.width // 8))
        k = procedural.Intrinsics(20, 20, 12, 8, config.width, config.height)
        frames = np.zeros((config.frames, config.height, config.width, 3), np.uint8)
        poses = np.tile(np.eye(4), (config.frames, 1, 1))
        return procedural.Clip(frames, poses, k, np.full(config.frames, seed), cells)

    monkeypatch.setattr(procedural, "make_clip", make_clip)
    return seeds


@pytest.mark.parametrize("slots, workers", [(4, 3), (7, 2), (6, 3), (2, 5)])
def test_workers_never_write_a_slot_or_a_seed_of_another(tmp_path, drawn, monkeypatch, slots, workers):
    ClipPool(tmp_path, SMALL, slots)
    writers, seeds = defaultdict(set), []
    for worker in range(workers):
        drawn.clear()
        write_slot = ClipPool.write
        monkeypatch.setattr(ClipPool, "write", lambda self, slot, clip, w=worker, f=write_slot: (
            writers[slot].add(w), f(self, slot, clip)))  # fmt: skip
        fill(tmp_path, slots=None, first_seed=0, stride=workers, offset=worker, textures=None, limit=5 * slots)
        monkeypatch.setattr(ClipPool, "write", write_slot)
        seeds += drawn
    assert sorted(writers) == list(range(slots)) and all(len(who) == 1 for who in writers.values()), writers
    assert len(set(seeds)) == len(seeds) >= 5 * slots


def test_a_full_pool_is_kept_and_a_missing_slot_is_filled(tmp_path, drawn):
    pool = ClipPool(tmp_path, SMALL, 4)
    for slot in (0, 1):
        pool.write(slot, procedural.make_clip(100 + slot, None, SMALL))
    fill(tmp_path, slots=None, first_seed=0, stride=1, offset=0, textures=None, limit=4)
    # seed 3 has no room: its slot gets the seed of the next round
    assert pool.scales[:, 0].tolist() == [100, 101, 2, 7]


def test_a_pool_that_was_half_copied_is_refused(tmp_path):
    """Else the missing clips would be black, at a camera of zeros."""
    ClipPool(tmp_path, SMALL, 2)
    os.truncate(tmp_path / "poses.bin", 100)
    with pytest.raises(ValueError, match="poses.bin has 100 bytes, but .*pool.json needs 768"):
        ClipPool(tmp_path)
    assert (tmp_path / "poses.bin").stat().st_size == 100
    (tmp_path / "poses.bin").unlink()
    with pytest.raises(ValueError, match="poses.bin has 0 bytes"):
        ClipPool(tmp_path)


def test_only_scenes_without_room_are_passed_over_and_not_for_ever(tmp_path, drawn, monkeypatch, capsys):
    assert held_out_clips(2, SMALL)[1].scene_scale[0] == procedural.HELD_OUT_SEED + 1
    refusal = {"of": NoRoomError("no free space")}

    def refuse(seed, *_, **__):
        drawn.append(seed)
        raise refusal["of"]

    monkeypatch.setattr(procedural, "make_clip", refuse)
    pool = {"slots": 3, "first_seed": 0, "stride": 1, "offset": 0, "textures": None, "config": SMALL}
    ways = (
        (NoRoomError, lambda: fill(tmp_path / "pool", **pool)),
        (NoRoomError, lambda: held_out_clips(1, SMALL)),
        (DatasetError, lambda: open_dataset("procedural", clips=1)[0]),
    )
    for error, way in ways:
        drawn.clear()
        with pytest.raises(error, match="none of 20 plain scenes has free space for a camera"):
            way()
        assert len(set(drawn)) == 20
    refusal["of"] = ValueError("cannot read the texture 'x.png'")
    for _, way in ways:
        drawn.clear()
        with pytest.raises(ValueError, match="x.png"):
            way()
        assert len(drawn) == 1, "another seed would not help"
    assert procedural.main([str(tmp_path / "pool"), "--limit", "1"]) == 1
    error = capsys.readouterr().err
    assert error.strip().endswith("error: cannot read the texture 'x.png'") and "Traceback" not in error


def test_a_pool_is_rendered_for_a_preset_and_goes_on_when_it_was_stopped(tmp_path, drawn, monkeypatch, capsys):
    arguments = [str(tmp_path / "pool"), "--preset", "tiny", "--slots", "2", "--limit"]
    assert procedural.main([*arguments, "1"]) == 0
    config, shape = ClipPool(tmp_path / "pool").config, preset("tiny")
    assert (config.height, config.width) == (shape.height, shape.width) and config.frames >= 2 * shape.frames

    def stop(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(procedural, "make_clip", stop)
        assert procedural.main([*arguments, "2"]) == 130
    assert "stopped; the same command" in capsys.readouterr().err
    assert procedural.main([*arguments, "2"]) == 0 and ClipPool(tmp_path / "pool").ready().tolist() == [0, 1]
    assert drawn == [0, 1]
    with pytest.raises(SystemExit):
        procedural.main([str(tmp_path / "pool"), "--preset", "huge"])
    assert "preset 'huge'" in capsys.readouterr().err


def _cut_into(tmp_path, pool, *scenes) -> list[ClipPool]:
    """Put the clips of a pool into several, as evenly as it goes, said to be of some scenes."""
    parts = []
    for rows, kind in zip(np.array_split(np.arange(pool.slots), len(scenes)), scenes, strict=True):
        part = ClipPool(tmp_path / f"{len(parts)}_{kind}", replace(pool.config, scenes=kind), len(rows))
        for name in ("frames", "poses", "intrinsics", "scales", "inverse_depth", "filled"):
            getattr(part, name)[:] = getattr(pool, name)[rows]
        parts.append(part)
    return parts


@pytest.mark.parametrize("task", ["pose", "views", "joint", "mixed"])
def test_several_pools_give_the_batches_of_one_that_holds_all_their_clips(tmp_path, pool, task):
    shares = {"pose": (1.0, 0, 0), "views": (0, 1.0, 0), "joint": (0, 0, 1.0), "mixed": (1.0, 0, 0)}
    config = TrainConfig(batch=16, tasks=shares[task], mixed=float(task == "mixed"))
    pools = _cut_into(tmp_path, pool, "plain", "varied", "lights")
    assert [p.slots for p in pools] == [2, 2, 2]
    one, several = PoolSource(pool), PoolSource(*pools)
    for step in range(2):
        a, b = (draw_step(source, config, preset("micro"), step)[0] for source in (one, several))
        assert a.task == task and torch.equal(a.t_z, b.t_z)
        for name in vars(a.windows):
            x, y = getattr(a.windows, name), getattr(b.windows, name)
            assert (x is y is None) or torch.equal(x, y), name
    assert several.contents == "2 clips of plain scenes + 2 clips of varied scenes + 2 clips of lights scenes"


def test_several_growing_pools_are_resumed_exactly_and_other_pools_afresh(tmp_path, pool):
    pools, journal = _cut_into(tmp_path, pool, "plain", "varied"), tmp_path / "seen.jsonl"
    for part in pools:
        part.filled[1:] = 0

    def seen(source, steps):
        return [source.take(6, np.random.default_rng(s))[0].poses[:, 0, 0, 3].tolist() for s in steps]

    source = PoolSource(*pools, journal=journal)
    drawn = seen(source, range(90))
    state = source.state()
    pools[1].filled[1] = 1
    drawn += seen(source, range(90, 150))
    assert {len({x for row in rows for x in row}) for rows in (drawn[:90], drawn[110:])} == {2, 3}
    for part in pools:
        part.filled[:] = 1
    again = PoolSource(*pools, journal=journal)
    again.restore(state)
    assert seen(again, range(90, 150)) == drawn[90:]
    other = PoolSource(pool, journal=journal)  # as many slots, but not in the same pools
    other.restore(state)
    other.take(1, np.random.default_rng(0))
    assert other.clips == 6, "what was seen of other pools says nothing about this one"
    pools[0].filled[0] = 0  # as if another pool of this size had been put in its place, with room left
    changed = PoolSource(*pools)
    changed.restore(again.state())
    changed.take(1, np.random.default_rng(0))
    assert changed.ready().tolist() == changed._ready.tolist(), "only clips that are there are drawn"


@pytest.mark.slow
def test_a_run_on_several_pools_is_written_down(tmp_path, pool, capsys):
    pools = _cut_into(tmp_path / "pools", pool, "plain", "varied")
    folders = [str(tmp_path / "pools" / name) for name in ("0_plain", "1_varied")]
    arguments = ["--out", str(tmp_path / "run"), "--min-clips", "6", "--batch", "2", "--steps", "1", "--pool", *folders]
    arguments += ["--init", str(default_checkpoint()), "--precision", "float32", "--no-tensorboard"]
    ways = {
        ("--scenes", "lights"): "0_plain holds clips of plain scenes, .*1_varied holds clips of varied scenes, not of "
        "lights: give --scenes, --difficulty and --ramp of one of them",
        ("--scenes", "varied", "--difficulty", "0.5"): "not of varied@0.5",
        ("--renew",): "renew replaces the clips of one pool, got 2",
        ("--pool", folders[0], str(tmp_path / "none")): "none holds no clips, and several pools take them rendered",
    }
    for more, words in ways.items():
        assert train.main([*arguments, *more]) == 2
        error = capsys.readouterr().err
        assert re.search(words, error) and len(error.splitlines()) == 1, error
    checkpoint = tmp_path / "checkpoint"
    assert train.main([*arguments, "--scenes", "varied", "--workers", "2", "--export", str(checkpoint)]) == 0
    said = capsys.readouterr().err
    contents = PoolSource(*pools).contents
    assert "not used: --workers 2; nothing is rendered into several pools" in said
    assert f"trained on {contents}; evaluations are on held-out varied scenes" in said
    assert read_facts(tmp_path / "run" / "states" / "00000001")["data"] == contents
    assert json.loads((checkpoint / "config.json").read_text())["training"]["data"] == contents
    assert contents in (checkpoint / "README.md").read_text()
    assert train.main(["--config", str(tmp_path / "run" / "config.yaml")]) == 0
    assert "changed settings" not in capsys.readouterr().err, "the file holds the pools too"
    assert train.main([*arguments, "--pool", folders[0], "--min-clips", "3"]) == 0
    assert f"data {contents} -> 3 clips of plain scenes" in " ".join(capsys.readouterr().err.split())


def _fitted(source):
    torch.manual_seed(0)
    model = RaysAsPixels(preset("micro"))
    fit_codec(model, source, windows=12)
    return {**model.codec.state_dict(), **model.normaliser.state_dict()}


def test_a_codec_is_fitted_to_windows_in_parts_as_to_all_at_once(tmp_path, pool, monkeypatch):
    write(tmp_path, many(), cut=ClipCut(5, 96, 64, step=1), suffix="jpg")
    taken = []
    take = ShardSource.take
    monkeypatch.setattr(ShardSource, "take", lambda self, n, rng: taken.append(n) or take(self, n, rng))
    for open_source in (lambda: PoolSource(pool), lambda: ShardSource(tmp_path)):
        monkeypatch.undo()
        whole = _fitted(open_source())
        monkeypatch.setattr(ShardSource, "take", lambda self, n, rng: taken.append(n) or take(self, n, rng))
        monkeypatch.setattr(windows, "_PART_BYTES", 1_500_000)  # four windows
        parts = _fitted(open_source())
        for name, value in whole.items():
            torch.testing.assert_close(parts[name], value, atol=2e-5, rtol=2e-5, msg=name)
    assert taken == [4, 4, 4], "no more clips of the shards are decoded at a time"


def test_the_weights_of_ray_channels_are_measured_in_parts(tmp_path, pool, monkeypatch):
    largest, weights = [], []

    def cut(*arguments):
        found = real(*arguments)
        largest.append(len(found.frames))
        return found

    real = windows.cut
    for part in (64 << 20, 1_500_000):
        monkeypatch.setattr(windows, "_PART_BYTES", part)
        monkeypatch.setattr(windows, "cut", cut)
        largest.clear()
        run = RunConfig(tmp_path / str(part), init=default_checkpoint())
        weights.append(Trainer(TrainConfig(batch=2, steps=1), run, PoolSource(pool)).learner.ray_weights)
    assert max(largest) == 4 and sum(largest) == 256
    for a, b in zip(*weights, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_precision_is_timed_once_in_a_run(tmp_path, pool, monkeypatch):
    said, timings = [], iter([True, False])
    monkeypatch.setattr("rays_as_pixels_training.loop.bf16_pays", lambda device: next(timings))

    def trainer(**changes):
        run = RunConfig(tmp_path / "run", init=default_checkpoint())
        return Trainer(replace(TrainConfig(batch=2, steps=1), **changes), run, PoolSource(pool), say=said.append)

    first = trainer()
    assert first.learner.bf16 and first.config.precision == "bfloat16"
    assert said[-1] == "precision auto: bfloat16, the faster one here; the run keeps it"
    said.clear()
    again = trainer()
    assert again.learner.bf16 and not said, "a second timing would have said float32"
    assert not trainer(precision="float32").learner.bf16 and "precision bfloat16 -> float32" in said[0]


def test_too_few_clips_to_judge_by_are_said_and_none_counts_twice(tmp_path):
    shape = replace(preset("micro"), frames=5)
    write(tmp_path / "six", many(3), cut=ClipCut(5, 96, 64, step=1))
    said = []
    clips = read_held_out(tmp_path / "six", 48, shape, said.append)
    assert len(clips.frames) == 6 == len({(p[0, 0, 3], s[0]) for p, s in zip(clips.poses, clips.scales, strict=True)})
    assert len(said) == 1 and "holds 6 clips" in said[0] and "48" in said[0]
    assert len(read_held_out(tmp_path / "six", 4, shape, said.append).frames) == 4 and len(said) == 1
    write(tmp_path / "two", many(1), cut=ClipCut(5, 96, 64, step=1))
    with pytest.raises(ValueError, match="holds 2 clips; an evaluation takes at least 4"):
        read_held_out(tmp_path / "two", 48, shape)


def test_settings_about_rendering_that_nobody_uses_are_told(tmp_path, monkeypatch, capsys, pool):
    with pytest.raises(ValueError, match="renew .* data shards .* leave out one"):
        RunConfig(Path("out"), data=Path("shards"), renew=True)
    arguments = ["--out", str(tmp_path / "run"), "--data", str(tmp_path / "none")]
    assert train.main([*arguments, "--renew"]) == 2 and "renew" in capsys.readouterr().err
    write(tmp_path / "shards", many(3), cut=ClipCut(5, 96, 64))
    monkeypatch.setattr("rays_as_pixels_training.loop.Trainer", lambda *_: (_ for _ in ()).throw(ValueError("stop")))
    arguments[-1] = str(tmp_path / "shards")
    assert train.main([*arguments, "--workers", "4"]) == 1
    assert "not used: --workers 4; clips are those of --data" in capsys.readouterr().err
    assert train.main([*arguments]) == 1 and "not used" not in capsys.readouterr().err

    folder = str(Path(pool.frames.filename).parent)
    monkeypatch.setattr("rays_as_pixels_training.distributed.join", lambda device: train_processes())
    arguments = ["--out", str(tmp_path / "run"), "--pool", folder, "--min-clips", "6"]
    assert train.main([*arguments, "--renew"]) == 2
    assert "renew needs a process that renders, and 2 train" in capsys.readouterr().err
    assert train.main([*arguments, "--workers", "3"]) == 1
    assert "not used: --workers 3; several processes render nothing" in capsys.readouterr().err


def train_processes():
    from rays_as_pixels_training.distributed import Processes

    class Alike(Processes):
        def add(self, values):
            return [2 * value for value in values]

    return Alike(0, 2)
