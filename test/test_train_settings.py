# SPDX-License-Identifier: Apache-2.0
"""Settings of training from files and arguments, and what the automatic ones become."""

import json
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest

from rays_as_pixels_training.cli_config import ArgumentProblem, Settings, parse
from rays_as_pixels_training.config import RunConfig, TrainConfig


def test_arguments_override_the_file_and_the_file_the_defaults(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("lr: 0.01\ntasks: [1, 2, 3]\nbatch: 8\ncompile: true\nview-frames: 4\npool: null\n")
    settings = parse(Settings, ["--config", str(file), "--out", "x", "--batch", "16"], "p", "d")
    assert settings.train == TrainConfig(lr=0.01, tasks=(1, 2, 3), batch=16, view_frames=4)
    assert settings.run == RunConfig(Path("x"), compile=True)
    assert parse(Settings, ["--out=x", "--tasks=0.8,0.14,0.06"], "p", "d").train.tasks == (0.8, 0.14, 0.06)


@pytest.mark.parametrize(
    "text, words",
    [
        ("lrr: 1\n", ["run.yaml", "lrr"]),
        ("lr: [1, 2]\n", ["run.yaml", "--lr", "1,2"]),
        ("lr: 7\n", ["run.yaml", "7"]),
        ("- 3\n", ["run.yaml", "list"]),
        ("a: b: c\n", ["run.yaml", "YAML"]),
        ("optimizer: sgd\n", ["run.yaml", "sgd", "muon"]),
    ],
)
def test_a_bad_file_is_told_in_one_line(tmp_path, text, words):
    file = tmp_path / "run.yaml"
    file.write_text(text)
    with pytest.raises(ArgumentProblem) as problem:
        parse(Settings, ["--config", str(file), "--out", "x"], "p", "d")
    assert all(word in str(problem.value) for word in words) and "\n" not in str(problem.value)


def test_every_setting_can_be_given_both_ways_and_is_kept(tmp_path):
    """Each field at a value that is not its default: on the command line, in YAML, and as the run writes it."""
    other = {"optimizer": "adamw", "schedule": "cosine", "attention": "joint", "camera_encoding": "pluecker"}
    other |= {"precision": "float32", "preset": "tiny", "scenes": "varied", "device": "cuda:1", "textures": "photos"}
    other |= {"tasks": [0.5, 0.25, 0.25], "pool": ["a", "b"], "batch": 8, "parts": 4, "lr": 0.25, "decay": 0.5}
    other |= {"data": "d", "eval_data": "e", "renew": False}  # renew is refused beside data and several pools
    values = {}
    for f in (*fields(TrainConfig), *fields(RunConfig)):
        if isinstance(f.default, bool):
            values[f.name] = other.get(f.name, not f.default)
        elif isinstance(f.default, int | float):
            values[f.name] = other.get(f.name, f.default + 1 if isinstance(f.default, int) else f.default / 2 + 0.125)
        else:
            values[f.name] = other.get(f.name, f"some_{f.name}")
        assert values[f.name] != f.default or f.name == "renew", f.name
    words = []
    for name, value in values.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        elif name == "tasks":
            words += ["--tasks", ",".join(map(str, value))]
        else:
            words += [f"--{flag}", *map(str, value if isinstance(value, list) else [value])]
    file = tmp_path / "run.yaml"
    file.write_text(json.dumps(values))  # JSON is YAML
    typed, read = parse(Settings, words, "p", "d"), parse(Settings, ["--config", str(file)], "p", "d")
    assert typed == read
    assert {**typed.train.to_dict(), **typed.run.to_dict()} == {**values, "tasks": (0.5, 0.25, 0.25)}
    assert parse(Settings, ["--out", "x", "--pool", "a", "--renew"], "p", "d").run.renew


def test_automatic_choices_follow_size_and_processes():
    config = TrainConfig(batch=8)
    assert config.settled(10**6).optimizer == "muon" and config.settled(10**6, 2).optimizer == "adamw"
    large = config.settled(10**9, 4)
    assert (large.optimizer, large.lr, large.parts) == ("adamw", 1e-4, 4)
    assert replace(config, lr=0.5).settled(10**9).lr == 0.5
    with pytest.raises(ValueError, match="adamw"):
        replace(config, optimizer="muon").settled(10**6, 2)
    with pytest.raises(ValueError, match="3 processes"):
        config.settled(10**6, 3)


def test_both_schedules_rise_and_end_at_zero():
    for schedule in ("hold", "cosine"):
        config = TrainConfig(lr=0.1, steps=1000, warmup=100, schedule=schedule)
        rates = [config.learning_rate(s) for s in range(1001)]
        assert rates[0] == pytest.approx(0.001) and max(rates) == pytest.approx(0.1) and rates[-1] == pytest.approx(0)
    assert rates[550] == pytest.approx(0.05), "half a cosine is at half its height in the middle"
    assert TrainConfig(lr=0.1, steps=1000, warmup=100).learning_rate(700) == pytest.approx(0.1)


def test_help_lists_every_field_without_torch(capsys):
    words = "import sys; from rays_as_pixels_training.train import main\n"
    words += "try: main(['--help'])\nexcept SystemExit: print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip().endswith("False")
    for cls in (TrainConfig, RunConfig):
        for name in cls.__dataclass_fields__:
            assert "--" + name.replace("_", "-") in done.stdout, name
