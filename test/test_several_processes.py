# SPDX-License-Identifier: Apache-2.0
"""Several processes under torchrun train the same run as one, and their states are read by any number of processes."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from rays_as_pixels_model.checkpoint import load_checkpoint, save_checkpoint
from rays_as_pixels_model.config import preset
from rays_as_pixels_model.joint import RaysAsPixels
from rays_as_pixels_training.data.procedural import ClipConfig, ClipPool, fill
from rays_as_pixels_training.data.source import PoolSource
from rays_as_pixels_training.fit_codec import fit_codec
from rays_as_pixels_training.state import states
from rays_as_pixels_training.train import main


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_processes_train_as_one_and_their_state_loads_in_one(tmp_path):
    threads = torch.get_num_threads()
    fill(tmp_path / "pool", slots=4, first_seed=0, stride=1, offset=0, textures=None, config=ClipConfig(), limit=4)
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = RaysAsPixels(preset("micro"))
    fit_codec(model, PoolSource(ClipPool(tmp_path / "pool")), windows=16)
    start = save_checkpoint(tmp_path / "start", model, "# card\n")
    shared = ["--pool", str(tmp_path / "pool"), "--workers", "0", "--min-clips", "4", "--init", str(start)]
    shared += ["--batch", "4", "--parts", "2", "--steps", "8", "--warmup", "0", "--optimizer", "adamw", "--log-every"]
    shared += ["1", "--save-every", "4", "--eval-every", "0", "--pictures-every", "0", "--no-tensorboard"]
    shared += ["--precision", "float32", "--device", "cpu", "--mixed", "0.4"]

    def train(out, *more):
        assert main([*shared, "--out", str(tmp_path / out), *more]) == 0

    train("one", "--export", str(tmp_path / "one_ck"))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    command += ["rays_as_pixels_training.train", *shared, "--out", str(tmp_path / "two")]
    command += ["--export", str(tmp_path / "two_ck")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, env={**os.environ, "NCCL_DEBUG": ""})
    assert done.returncode == 0, done.stderr[-4000:]

    def losses(out):
        lines = list(map(json.loads, (tmp_path / out / "log.jsonl").read_text().splitlines()))
        norms.append({k: v for k, v in lines[-1].items() if k.startswith("gradient_")})
        return [line["loss"] for line in lines]

    norms = []

    one, two = losses("one"), losses("two")
    assert len(one) == len(two) == 8 and max(one) > 1.1 * min(one)
    np.testing.assert_allclose(two, one, rtol=1e-4)
    assert norms[0] and norms[1] == pytest.approx(norms[0], rel=1e-2), "Adam alone would not see a scale"
    a, b = (load_checkpoint(tmp_path / f"{n}_ck").state_dict() for n in ("one", "two"))
    for name in a:  # the averaged weights; Adam's first steps turn the rounding of small gradients into signs
        torch.testing.assert_close(b[name], a[name], atol=2e-4, rtol=1e-3, msg=name)
    moved = max((a[n] - v).abs().max().item() for n, v in load_checkpoint(start).state_dict().items())
    assert moved > 1e-3, "the comparison above is of weights that have moved"

    assert not (states(tmp_path / "two")[-1] / "tensors.safetensors").exists(), "written as a distributed checkpoint"
    train("two", "--steps", "10")
    train("one", "--steps", "10")
    one, two = losses("one"), losses("two")
    assert len(one) == len(two) == 10
    np.testing.assert_allclose(two[8:], one[8:], rtol=1e-3)
