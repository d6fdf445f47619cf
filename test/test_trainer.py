# SPDX-License-Identifier: Apache-2.0
"""The trainer: exact resuming after any kill, what it logs and keeps, what it refuses."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import SafetensorError

from rays_as_pixels_model.checkpoint import load_checkpoint, save_checkpoint
from rays_as_pixels_model.config import preset
from rays_as_pixels_model.joint import RaysAsPixels
from rays_as_pixels_model.media import read_image
from rays_as_pixels_training import validation
from rays_as_pixels_training.cli_config import Settings, parse
from rays_as_pixels_training.config import RunConfig, TrainConfig
from rays_as_pixels_training.data.procedural import ClipPool
from rays_as_pixels_training.data.source import PoolSource
from rays_as_pixels_training.distributed import Processes
from rays_as_pixels_training.feed import Drawn, Feed
from rays_as_pixels_training.fit_codec import fit_codec
from rays_as_pixels_training.loop import Trainer
from rays_as_pixels_training.memory import count_memory
from rays_as_pixels_training.optimizer import clip_gradients, modality
from rays_as_pixels_training.state import load_state, read_facts, save_state, states
from rays_as_pixels_training.tasks import draw_step
from rays_as_pixels_training.train import main

QUIET = {"eval_every": 0, "pictures_every": 0, "tensorboard": False}


@pytest.fixture(scope="module")
def start(tmp_path_factory, pool):
    """A checkpoint to start from: fitting the codec to a thousand windows, as a new run does, takes seconds."""
    torch.manual_seed(0)
    model = RaysAsPixels(preset("micro"))
    fit_codec(model, PoolSource(pool), windows=16)
    return save_checkpoint(tmp_path_factory.mktemp("start") / "checkpoint", model, "# card\n")


@pytest.fixture
def trainer(pool, start, tmp_path):
    """Make trainers of one small configuration in one folder."""

    def make(out="run", run=None, **changes):
        config = replace(TrainConfig(batch=4, steps=4, warmup=0, precision="float32"), **changes)
        settings = {**QUIET, "log_every": 1, "init": start, **(run or {})}
        return Trainer(config, RunConfig(tmp_path / out, **settings), PoolSource(pool))

    return make


def log_of(out: Path) -> dict[int, dict]:
    """Lines of the log that hold a loss, by step; the last word where a step was done twice."""
    lines = map(json.loads, (out / "log.jsonl").read_text().splitlines())
    return {line["step"]: line for line in lines if "loss" in line}


def test_the_written_config_is_the_run_again(trainer, tmp_path):
    first = trainer(optimizer="adamw", tasks=(1.0, 0.0, 0.0))
    first.write_config()
    settings = parse(Settings, ["--config", str(tmp_path / "run" / "config.yaml")], "p", "d")
    assert settings == Settings(first.config, first.run_config)
    assert first.config.lr == 2e-3 and first.config.parts == 1, "automatic values are settled"


def test_what_is_trained_on_does_not_judge():
    for inside in ("shards", "shards/drive", "shards/../shards/hall"):
        with pytest.raises(ValueError, match="is part of data shards, which is trained on"):
            RunConfig(Path("out"), data=Path("shards"), eval_data=Path(inside))
    RunConfig(Path("out"), data=Path("shards/drive"), eval_data=Path("shards/hall"))


def test_a_full_disk_leaves_the_older_state_and_one_line(tmp_path, monkeypatch):
    module, facts = {"model": torch.nn.Linear(2, 2)}, {"step": 1}

    def full(*_):
        raise SafetensorError("Error while serializing: No space left on device")

    first = save_state(tmp_path, 1, module, [], facts, Processes())
    tensors = (first / "tensors.safetensors").stat().st_ino
    monkeypatch.setattr("rays_as_pixels_training.state.save_file", full)
    with pytest.raises(OSError, match="cannot be written: .*No space left"):
        save_state(tmp_path, 2, module, [], facts, Processes())
    assert states(tmp_path) == [first]
    assert save_state(tmp_path, 1, module, [], facts, Processes(), keep=0) == first, "it is there already"
    assert (first / "tensors.safetensors").stat().st_ino == tensors


def test_a_damaged_state_is_named_with_the_way_on(tmp_path):
    module = {"model": torch.nn.Linear(2, 2)}
    for step in (1, 2):
        save_state(tmp_path, step, module, [], {"step": step}, Processes())
    first, last = states(tmp_path)
    os.truncate(last / "tensors.safetensors", 60)
    with pytest.raises(ValueError, match="states/00000002 is damaged .* and the run goes on from 00000001"):
        load_state(last, module, [])
    os.truncate(first / "facts.json", 4)
    with pytest.raises(ValueError, match="states/00000001 is damaged .* begin with another --out"):
        read_facts(first)


def test_parts_of_a_batch_depend_on_nothing_but_their_number(pool):
    config = TrainConfig(batch=8, parts=4)
    shape = preset("micro")
    whole = draw_step(PoolSource(pool), config, shape, 5)
    some = draw_step(PoolSource(pool), config, shape, 5, mine=[1, 3])
    assert sorted(whole) == [0, 1, 2, 3] and sorted(some) == [1, 3]
    assert all(torch.equal(some[k].windows.frames, whole[k].windows.frames) for k in some)
    assert not torch.equal(whole[0].windows.frames, whole[1].windows.frames)


def test_a_grown_pool_gives_the_batches_that_it_gave_before(tmp_path, pool):
    """The slots that a killed run had seen are seen again, though more are filled by then."""
    growing = ClipPool(tmp_path / "pool", pool.config, 6)
    growing.filled[:3] = 1
    source = PoolSource(growing, journal=tmp_path / "seen.jsonl")
    drawn, state = [], None
    for step in range(250):
        growing.filled[: 3 + step // 90] = 1
        drawn.append(source.take(4, np.random.default_rng(step))[1].tolist())
        if step == 120:
            state = json.loads(json.dumps(source.state()))
    (tmp_path / "seen.jsonl").open("a").write('{"taken": 300, "se')  # a kill in the middle of a line
    growing.filled[:] = 1
    again = PoolSource(growing, journal=tmp_path / "seen.jsonl")
    again.restore(state)
    assert [again.take(4, np.random.default_rng(step))[1].tolist() for step in range(121, 250)] == drawn[121:]
    assert max(map(max, drawn[:100])) == 2 < max(map(max, drawn[200:])), "the pool did grow meanwhile"


def test_the_feed_keeps_order_hands_on_errors_and_ends():
    def draw(step):
        if step == 7:
            raise OSError("disk gone")
        return Drawn(step, {}, {"at": step}, None)

    for ahead in (0, 3):
        feed = Feed(draw, 2, 100, ahead)
        assert [feed.next().step for _ in range(5)] == [2, 3, 4, 5, 6]
        with pytest.raises(OSError, match="disk gone"):
            feed.next()
        feed.close()
    full = Feed(lambda step: Drawn(step, {}, {}, None), 0, 10**9, 2)
    full.close()
    assert not full._thread.is_alive()


@pytest.mark.slow
def test_prefetching_changes_nothing(trainer, tmp_path):
    for name, ahead in (("a", 0), ("b", 3)):
        trainer(name, {"prefetch": ahead}).run()
    a, b = log_of(tmp_path / "a"), log_of(tmp_path / "b")
    assert [line["loss"] for line in a.values()] == [line["loss"] for line in b.values()]


def test_recomputing_activations_gives_the_same_gradients(trainer):
    plain, again = trainer("a"), trainer("b", {"recompute": True})
    for one in (plain, again):
        parts = draw_step(one.source, one.config, one.learner.model.config, 0)
        losses = one.learner.losses(parts[0], 0)
        (losses.z + losses.r).backward()
    pairs = list(zip(*(one.learner.model.named_parameters() for one in (plain, again)), strict=True))
    assert any(p.grad is not None and p.grad.abs().max() > 0 for (_, p), _ in pairs)
    for (name, p), (_, q) in pairs:
        assert (p.grad is None) == (q.grad is None), name
        if p.grad is not None:
            torch.testing.assert_close(p.grad, q.grad, msg=name)


def test_parts_add_up_to_the_gradient_of_their_mean(trainer):
    """Accumulating two parts is the update by the mean of their losses."""
    one = trainer(parts=2, tasks=(0.0, 1.0, 0.0), optimizer="adamw")
    parts = draw_step(one.source, one.config, one.learner.model.config, 0)
    losses = [one.learner.losses(batch, 0, k) for k, batch in parts.items()]
    mean = sum(x.z + x.r for x in losses) / 2
    (mean / mean.item()).backward()
    wanted = clip_gradients(one.learner.model.transformer, 1e9, list)
    one.learner.model.zero_grad(set_to_none=True)
    update = one.learner.update(parts, 0)
    assert update.loss == pytest.approx(mean.item(), rel=1e-5)
    assert update.norms["total"] == pytest.approx(wanted["total"], rel=1e-4)


def test_gradient_norms_are_told_by_modality_and_clipped(trainer):
    one = trainer()
    transformer = one.learner.model.transformer
    names = [n for n, _ in transformer.named_parameters()]
    assert {modality(n) for n in names} == {"z", "r", "both"}
    assert modality("blocks.1.z.feed_forward.out.weight") == modality("head_video.bias") == "z"
    assert modality("blocks.0.r.modulation") == modality("embed_rays.weight") == "r"
    assert modality("embed_place.bias") == "both"
    for n, p in transformer.named_parameters():
        p.grad = torch.full_like(p, 2.0 if modality(n) == "r" else 1.0)
    count = {kind: sum(p.numel() for n, p in transformer.named_parameters() if modality(n) == kind) for kind in "zr"}
    norms = clip_gradients(transformer, 0.5, list)
    assert norms["z"] == pytest.approx(count["z"] ** 0.5, rel=1e-4)
    assert norms["r"] == pytest.approx(2 * count["r"] ** 0.5, rel=1e-4)
    assert norms["total"] ** 2 == pytest.approx(norms["z"] ** 2 + norms["r"] ** 2 + norms["both"] ** 2)
    assert clip_gradients(transformer, 0.5, list)["total"] == pytest.approx(0.5, rel=1e-3)


@pytest.mark.slow
def test_a_run_evaluates_draws_and_keeps_the_best(trainer, tmp_path):
    run = {"eval_every": 2, "pictures_every": 4, "eval_clips": 4, "save_every": 1, "keep": 1, "tensorboard": True}
    trainer(run=run, lr=1e-4).run()
    out = tmp_path / "run"
    assert [s.name for s in states(out)] == ["00000003", "00000004"]
    evaluations = [x for x in map(json.loads, (out / "log.jsonl").read_text().splitlines()) if "eval/score" in x]
    assert [x["step"] for x in evaluations] == [2, 4]
    best = min(evaluations, key=lambda x: x["eval/score"])
    about = json.loads((out / "best" / "config.json").read_text())["training"]
    assert about["step"] == best["step"] and about["evaluation"]["score"] == best["eval/score"]
    assert load_checkpoint(out / "best").config.preset == "micro"
    sheet = read_image(out / "pictures" / "00000004.png")
    assert sheet.shape[0] == 400 and sheet.std() > 20
    lines = log_of(out)
    tasks = {line["task"] for line in lines.values()}
    for name in ("loss/{}", "gradient_z/{}", "gradient_r/{}", "gradient_total/{}"):
        assert all(name.format(task) in lines[4] for task in tasks)
    events = b"".join(p.read_bytes() for p in (out / "tensorboard").iterdir())
    assert b"eval/score" in events and b"held_out" in events and b"gradient_z/" in events


@pytest.mark.slow
def test_a_best_score_of_another_way_of_scoring_is_measured_anew(trainer, tmp_path, monkeypatch):
    said, out = [], tmp_path / "run"
    one = trainer(run={"eval_every": 1, "eval_clips": 4}, steps=9)
    one.say = said.append

    def step() -> dict:
        """Train one step more; what is known of the best weights."""
        asked = iter([False])
        one.run(stop=lambda: next(asked, True))
        return read_facts(states(out)[-1])["best"]

    first = step()
    assert first["scored"]["view_steps"] == 1 and not said
    monkeypatch.setattr(validation, "_VIEW_STEPS", 2)
    worse = {**first, "score": first["score"] - 1}  # nothing could beat it
    one.best = worse
    second = step()
    assert "best weights, of step 1," in said[0] and "(view_steps 1 -> 2): score" in said[0]
    assert second["scored"]["view_steps"] == 2 and second["score"] > worse["score"]
    anew = float(said[0].split()[-1])
    assert second["score"] == anew if second["step"] == 1 else second["score"] < anew
    one.best = {k: v for k, v in worse.items() if k != "scored"}  # as older versions wrote it
    shutil.rmtree(out / "best")
    assert step()["step"] == 3 and said[1:] == [said[1]] and "not known how): their score counts no more" in said[1]


def test_a_model_of_two_passes_that_is_trained_for_one_says_so(trainer):
    said = []
    one = trainer()
    assert one.learner.model.config.pose_passes == 2
    Trainer(replace(one.config, turned=0.0), replace(one.run_config, out=one.out / "b"), one.source, say=said.append)
    assert said == ["pose steps train the first of the model's 2 passes only: turned is 0"]


def test_processes_that_were_started_differently_are_told_what_differs(monkeypatch):
    words, two = [], Processes(count=2)
    monkeypatch.setattr(Processes, "add", lambda self, values: words.append(values) or [2 * v for v in values])
    two.agree({"lr": 0.2, "batch": 4})
    monkeypatch.setattr(Processes, "add", lambda self, values: [a + b for a, b in zip(values, words[0], strict=True)])
    two.agree({"lr": 0.2, "batch": 4})
    with pytest.raises(ValueError, match=r"^lr differ among the 2 processes \(here 0.1\)"):
        two.agree({"lr": 0.1, "batch": 4})


def test_changed_settings_are_said_and_another_model_is_refused(trainer):
    trainer().run(stop=lambda: True)
    said = []
    one = trainer()
    again = Trainer(replace(one.config, lr=0.5, steps=9), one.run_config, one.source, say=said.append)
    assert again.step == 0 and len(said) == 1 and "lr 0.002 -> 0.5" in said[0] and "steps 4 -> 9" in said[0]
    for change in ({"optimizer": "adamw"}, {"attention": "joint"}, {"camera_encoding": "pluecker"}):
        with pytest.raises(ValueError, match=next(iter(change))):
            trainer(**change)


@pytest.mark.slow
def test_a_kill_between_the_renames_of_the_best_weights_loses_nothing(trainer, tmp_path):
    run = {"eval_every": 1, "eval_clips": 4}
    trainer(run=run, steps=1).run()
    best = tmp_path / "run" / "best"
    os.replace(best, tmp_path / "run" / "best.old")
    trainer(run=run, steps=1)
    load_checkpoint(best)


KILLED = """
import os, signal, sys
from rays_as_pixels_training import records, state
from rays_as_pixels_training.train import main
def die_in_save(tensors, path, saved=[]):
    saved.append(path)
    whole(tensors, path)
    if len(saved) == 3:                      # the states of steps 0 and 2 are whole
        os.truncate(path, os.path.getsize(path) // 2)
        os.kill(os.getpid(), signal.SIGKILL)
def die_in_log(self, line):
    if line["step"] == 7:
        open(self._path, "a").write('{"step": 7, "lo')
        os.kill(os.getpid(), signal.SIGKILL)
    return write(self, line)
whole, write = state.save_file, records.Records.write
if sys.argv[1] == "save":
    state.save_file = die_in_save
else:
    records.Records.write = die_in_log
main(sys.argv[2:])
"""


@pytest.mark.slow
@pytest.mark.timeout(500)
def test_a_run_killed_in_mid_save_and_in_mid_line_gives_the_same_losses(tmp_path, pool, start):
    """kill -9 while a state is half written, then again while a log line is: the same losses to the last bit."""
    arguments = ["--pool", os.path.dirname(pool.frames.filename), "--workers", "0", "--min-clips", "6", "--batch", "2"]
    arguments += ["--steps", "10", "--save-every", "2", "--log-every", "1", "--eval-every", "0", "--pictures-every"]
    arguments += ["0", "--no-tensorboard", "--warmup", "2", "--precision", "float32", "--init", str(start)]
    assert main([*arguments, "--out", str(tmp_path / "a"), "--export", str(tmp_path / "ck")]) == 0
    broken = [*arguments, "--out", str(tmp_path / "b")]
    killed = subprocess.run([sys.executable, "-c", KILLED, "save", *broken], timeout=240)
    assert killed.returncode == -9 and [s.name for s in states(tmp_path / "b")] == ["00000000", "00000002"]
    killed = subprocess.run([sys.executable, "-c", KILLED, "log", *broken], timeout=240)
    assert killed.returncode == -9 and states(tmp_path / "b")[-1].name == "00000006"
    assert main(broken) == 0
    a, b = log_of(tmp_path / "a"), log_of(tmp_path / "b")
    assert list(a) == list(b) == list(range(1, 11))
    told = [[{k: v for k, v in line.items() if k != "seconds"} for line in log.values()] for log in (a, b)]
    assert told[0] == told[1], "also the means over the steps before the kill"
    assert not list((tmp_path / "b" / "states").glob(".*")), "what the kill left is cleaned up"
    assert "textures" in (tmp_path / "ck" / "README.md").read_text().lower()


def test_a_pool_that_is_missing_clips_is_an_error_with_the_way_out(tmp_path, capsys):
    arguments = ["--out", str(tmp_path / "x"), "--workers", "0", "--slots", "4"]
    assert main(arguments) == 1
    err = capsys.readouterr().err
    assert "--workers 1" in err and len([line for line in err.splitlines() if "error" in line]) == 1


def test_a_wrong_folder_of_textures_is_one_line(tmp_path, capsys):
    assert main(["--out", str(tmp_path / "run"), "--textures", str(tmp_path / "none")]) == 2
    words = capsys.readouterr().err.strip()
    assert words.count("\n") == 0 and "none" in words and not (tmp_path / "run").exists()


def test_memory_is_counted_from_the_model():
    shape = preset("micro")
    found = count_memory("micro")
    assert found["parameters"] == sum(p.numel() for p in RaysAsPixels(shape).transformer.parameters())
    kept_by_blocks = found["activations"] - found["recomputed"]
    tokens = sum(n * d for n, d in ((48, shape.transformer.width), (30, shape.transformer.width)))
    assert kept_by_blocks > shape.transformer.depth * 10 * tokens, "a block keeps far more than its input"
    assert found["recomputed"] < 0.6 * found["activations"]
