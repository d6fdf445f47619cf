# SPDX-License-Identifier: Apache-2.0
"""Predicted memory: beside what a process really takes, how it grows, and what counts as available."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from rays_as_pixels_model.config import PRESETS, preset
from rays_as_pixels_model.memory import MARGIN, available_memory, free_host_memory, predict_memory
from rays_as_pixels_ros.goal_checks import RefusalError, check_memory


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux: /proc/self/clear_refs")
def test_the_prediction_with_its_margin_covers_what_a_task_takes(repository):
    command = [sys.executable, "-m", "benchmarks.memory", "micro-320x480"]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    ratios = [float(line.split("|")[5]) for line in done.stdout.splitlines()[2:]]
    assert len(ratios) == 3 and min(ratios) * (1 + MARGIN) >= 1.0 and max(ratios) < 2.0, done.stdout


def test_it_follows_frames_size_and_preset():
    micro = preset("micro")
    one = predict_memory(micro, images=2)
    assert one < predict_memory(micro, images=3) < predict_memory(micro, images=0, video=True) * 3
    wide = predict_memory(replace(micro, width=960), images=2)
    assert 5 < wide / (one - 2 * 2**20) < 20, "ten times the pixels"
    windows = [predict_memory(config, images=0, video=True) for config in PRESETS.values()]
    assert windows == sorted(windows) and windows[-1] > 2**30


def test_available_is_the_least_of_machine_and_control_group(tmp_path):
    assert 2**20 < available_memory("cpu") < 2**50
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "meminfo").write_text("MemTotal: 900 kB\nMemAvailable: 600 kB\n")
    assert free_host_memory(tmp_path) == 600 * 1024
    group = tmp_path / "sys" / "fs" / "cgroup"
    group.mkdir(parents=True)
    (group / "memory.current").write_text("1024\n")
    for limit, free in (("max", 600 * 1024), (str(101 * 1024), 100 * 1024), ("512", 0)):
        (group / "memory.max").write_text(limit + "\n")
        assert free_host_memory(tmp_path) == free


def test_the_refusal_names_predicted_and_available():
    check_memory("cpu", 10 * 2**20, 12 * 2**20, 0.2)
    reason = r"does not fit on cpu: 12\.0 MiB \(10\.0 predicted .*than 11\.0 MiB available"
    with pytest.raises(RefusalError, match=reason):
        check_memory("cpu", 10 * 2**20, 11 * 2**20, 0.2)
