# SPDX-License-Identifier: Apache-2.0
"""Exported models: the answers of torch on all three tasks, without torch, and nothing is read outside their folder."""

import hashlib
import json
import logging
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from rays_as_pixels_model.calibration import Calibration, read_calibration, write_calibration
from rays_as_pixels_model.checkpoint import CheckpointError, read_config, save_checkpoint
from rays_as_pixels_model.config import preset
from rays_as_pixels_model.engine import MersenneNormal
from rays_as_pixels_model.geometry import Intrinsics
from rays_as_pixels_model.joint import RaysAsPixels
from rays_as_pixels_model.layout import Layout
from rays_as_pixels_model.pipeline import Pipeline
from rays_as_pixels_ros import cli

CAMERA = Intrinsics.from_fov(65, 160, 120)


@pytest.mark.parametrize("seed", [0, 7, 2**40 + 3])
@pytest.mark.parametrize("shape", [(16,), (1, 5, 4, 6, 48), (33,), (3, 37)])
def test_noise_is_that_of_torch(seed, shape):
    ours, theirs = MersenneNormal(seed), torch.Generator().manual_seed(seed)
    for _ in range(2):
        np.testing.assert_allclose(ours(shape), torch.randn(shape, generator=theirs).numpy(), atol=1e-6)


@pytest.fixture(scope="module")
def onnx():
    """The module onnx, where it and onnxruntime are installed."""
    pytest.importorskip("onnxruntime", reason="needs onnxruntime: pip install '.[onnx]'")
    return pytest.importorskip("onnx", reason="needs onnx: pip install '.[onnx]'")


def model_of(name):
    """A model of a preset's widths with random weights, small enough in pixels, frames and depth for a test."""
    config = preset(name)
    transformer = replace(config.transformer, depth=2)
    step = 16 * transformer.patch
    torch.manual_seed(0)
    model = RaysAsPixels(replace(config, frames=5, height=step, width=2 * step, transformer=transformer)).eval()
    with torch.no_grad():
        for parameter in model.transformer.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape))
    return model


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = save_checkpoint(tmp_path_factory.mktemp("model") / "micro", model_of("micro"), "card", {"step": 7})
    write_calibration(folder, Calibration(translation=2.0, rotation=3.0, max_residual=0.1, samples=8, windows=9))
    return folder


@pytest.fixture(scope="module")
def exported(onnx, checkpoint):
    """An export, by the command, to a folder that is given as a link: it stays one."""
    folder = checkpoint.with_name("onnx")
    folder.with_name("real").mkdir()
    folder.symlink_to("real")
    facts = folder.with_name("facts.json")
    arguments = ["export", "--checkpoint", str(checkpoint), "--out", str(folder), "--preset", "micro"]
    assert cli.main([*arguments, "--json", str(facts)]) == 0
    assert json.loads(facts.read_text()) == json.loads((folder / "config.json").read_text())["onnx"]
    assert folder.is_symlink()
    return folder


@pytest.fixture()
def copied(exported, tmp_path):
    """A copy of the exported folder to spoil."""
    folder = tmp_path / "onnx"
    folder.mkdir()
    for path in exported.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def answers(pipe):
    """Numbers of each task and of one metric, of one seeded recording."""
    frames = np.random.default_rng(0).integers(0, 255, (5, 120, 160, 3), dtype=np.uint8)
    pose = pipe.estimate_trajectory(frames, CAMERA, steps=2, samples=2, reference=1, solver="midpoint")
    T = np.tile(np.eye(4), (2, 1, 1))
    T[1, 0, 3] = 0.1
    views = pipe.render_views(frames[:3], np.tile(T[:1], (3, 1, 1)), CAMERA, T, steps=2, guidance=1.5)
    joint = pipe.imagine(frames[:2], CAMERA, steps=2, ray_steps=1)
    return {"raxels": pose.raxels, "draws": pose.draws, "views": views.frames, "frames": joint.frames}


@pytest.mark.slow
def test_the_tasks_are_those_of_torch(checkpoint, exported):
    ours, theirs = (answers(Pipeline.from_checkpoint(folder, device="cpu")) for folder in (exported, checkpoint))
    for name, value in ours.items():
        limit = 1 if value.dtype == np.uint8 else 1e-3  # a pixel may be rounded to its neighbour
        assert np.abs(value.astype(float) - theirs[name].astype(float)).max() <= limit, name
        assert value.std() > 0


@pytest.mark.parametrize("layout", [Layout.window(0, 9), Layout.window(2, 5, (3.0, 1.0)), Layout.window(3, 0), (1, 4)])
def test_windows_of_any_length_and_number(checkpoint, exported, layout):
    models = [Pipeline.from_checkpoint(folder, device="cpu").model for folder in (exported, checkpoint)]
    generator = torch.Generator().manual_seed(1)
    for batch in (1, 2, 3, 1, 4):  # the first shapes have sessions of their own, the last does not
        shapes = models[1].latent_shapes(batch, layout)
        assert models[0].latent_shapes(batch, layout) == shapes
        z, r = (torch.randn(shape, generator=generator) for shape in shapes)
        t_z, t_r = (0.9 * torch.rand(shape[:2], generator=generator) for shape in shapes)
        state = z, r, t_z, t_r, torch.full((batch,), shapes[1][1] - 1)
        theirs = models[1].velocity(*state, layout)
        ours = models[0].velocity(*(x.numpy() for x in state), layout)
        for a, b in zip(ours, theirs, strict=True):
            assert float(b.abs().max()) > 0.1
            np.testing.assert_allclose(a, b.numpy(), atol=1e-3)


def test_a_padded_window_is_refused(exported):
    engine = Pipeline.from_checkpoint(exported, device="cpu").model
    z, r = (np.zeros(shape, np.float32) for shape in engine.latent_shapes(1, (1, 1)))
    layout = Layout((1, 1), exists=torch.tensor([[True, False]]))
    with pytest.raises(ValueError, match="without padding"):
        engine.velocity(z, r, z[..., 0, 0, 0], r[..., 0, 0, 0], np.zeros(1, np.int64), layout)


@pytest.mark.slow
@pytest.mark.parametrize("name, precision", [("tiny", "fp32"), ("small", "fp32"), ("micro", "fp16"), ("micro", "int8")])
def test_presets_and_precisions(onnx, tmp_path, name, precision):
    from rays_as_pixels_model.export import LIMITS, write_export

    about = write_export(model_of(name), tmp_path / "out", {"preset": name, "precision": precision})
    assert LIMITS["fp32"] == 1e-3 and set(about["parity"]) == {"codec", "pose", "joint", "views"}
    assert all(value <= LIMITS[precision] for value in about["parity"].values()) and about["parity"]["pose"] > 0
    if precision != "fp32":
        assert about["parity"]["pose"] > 1e-5  # it is another precision


@pytest.mark.slow
def test_it_runs_without_torch(exported):
    """Frames to a stitched trajectory, views, the joint task and the loop, where torch cannot be imported."""
    code = """
import json, sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ImportError("torch is not to be imported here")
sys.meta_path.insert(0, Refuse())
import numpy as np
from rays_as_pixels_model.geometry import Intrinsics
from rays_as_pixels_model.pipeline import Pipeline
from rays_as_pixels_ros.stitching import Stitcher
pipe = Pipeline.from_checkpoint(sys.argv[1])
frames = np.random.default_rng(0).integers(0, 255, (7, 120, 160, 3), dtype=np.uint8)
camera, stitcher = Intrinsics.from_fov(65, 160, 120), Stitcher()
for start in (0, 2):
    found = pipe.estimate_trajectory(frames[start:start + 5], camera)
    stitcher.add(range(start, start + 5), found.T_reference_camera)
T = stitcher.pose(6)
views = pipe.render_views(frames[:1], np.eye(4)[None], camera, T[None], steps=1)
loop = pipe.close_the_loop(frames[:5], camera)
pipe.imagine(frames[0], camera, steps=1)
assert "torch" not in sys.modules
print(json.dumps({"T": T.tolist(), "view": float(views.frames.mean()), "psnr": loop.psnr}))
"""
    done = subprocess.run([sys.executable, "-c", code, str(exported)], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    T = np.array(json.loads(done.stdout)["T"])
    assert T.shape == (4, 4) and np.isfinite(T).all() and np.abs(T - np.eye(4)).max() > 1e-4


def refused(folder, match):
    """Loading the folder fails with one line that matches."""
    with pytest.raises(CheckpointError, match=match) as caught:
        Pipeline.from_checkpoint(folder, device="cpu")
    assert "\n" not in str(caught.value)


def relist(folder, name, checksum=None, old=None):
    """Let config.json list a file with its checksum; `old` is the file that it stands for."""
    about = json.loads((folder / "config.json").read_text())
    about["onnx"]["files"].pop(old or name)
    about["onnx"]["files"][name] = checksum or hashlib.sha256((folder / name).read_bytes()).hexdigest()
    (folder / "config.json").write_text(json.dumps(about))


def test_nothing_is_read_outside_the_folder(copied, onnx):
    outside = copied.parent / "outside.onnx"
    velocity = copied / "velocity.onnx"
    outside.write_bytes(velocity.read_bytes())
    relist(copied, "../outside.onnx", old="velocity.onnx")
    refused(copied, "must list velocity")
    relist(copied, "velocity.onnx", old="../outside.onnx")
    velocity.unlink()
    velocity.symlink_to(outside)
    refused(copied, "link")
    velocity.unlink()
    os.mkfifo(velocity)
    refused(copied, "plain file")
    velocity.unlink()
    refused(copied, "No such file")
    velocity.write_bytes(outside.read_bytes())
    Pipeline.from_checkpoint(copied, device="cpu")  # whole again
    (copied.parent / "config.json").write_text((copied / "config.json").read_text())
    (copied / "config.json").unlink()
    (copied / "config.json").symlink_to(copied.parent / "config.json")
    refused(copied, "link")


@pytest.mark.parametrize("name", ["decode_rays.onnx", "velocity.onnx"])
def test_a_graph_with_external_data_is_refused(copied, onnx, name):
    """Weights in another file, as an attacker would have them: the graph is well formed and its checksum is right."""
    graph = onnx.load(copied / name)
    tensor = max(graph.graph.initializer, key=lambda x: x.ByteSize())
    secret = copied.parent / "secret"
    secret.write_bytes(tensor.raw_data)
    onnx.external_data_helper.set_external_data(tensor, location=str(secret))
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    (copied / name).write_bytes(graph.SerializeToString())
    relist(copied, name)
    refused(copied, "files outside of itself")


def test_a_changed_graph_and_a_broken_one_are_refused(copied):
    path = copied / "decode_rays.onnx"
    path.write_bytes(path.read_bytes()[:-100])
    refused(copied, "sha256")
    relist(copied, "decode_rays.onnx")
    refused(copied, "no graph that onnxruntime can run")


@pytest.mark.slow
def test_an_export_that_differs_leaves_nothing(onnx, checkpoint, tmp_path, monkeypatch):
    from rays_as_pixels_model import export as room

    monkeypatch.setattr(room, "_convert", _spoiled(room._convert, onnx))
    with pytest.raises(room.ExportError, match="differs from torch"):
        room.export(checkpoint, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def _spoiled(convert, onnx):
    """A conversion that changes one weight of the velocity's graph."""

    def spoil(path, precision, about):
        graph = onnx.load(path)
        if path.stem == "velocity":
            tensor = next(x for x in graph.graph.initializer if "head_rays.bias" in x.name)
            tensor.raw_data = (np.frombuffer(tensor.raw_data, np.float32) + 0.05).tobytes()
            onnx.save(graph, path)
        convert(path, precision, about)

    return spoil


def test_what_is_not_exported(onnx, checkpoint, exported, tmp_path):
    from rays_as_pixels_model.export import ExportError, export

    with pytest.raises(CheckpointError, match="'tiny' was asked for"):
        export(checkpoint, tmp_path / "out", preset="tiny")
    with pytest.raises(CheckpointError, match="export already"):
        export(exported, tmp_path / "out")
    with pytest.raises(ValueError, match="fp32, fp16, int8, got 'fp8'"):
        export(checkpoint, tmp_path / "out", "fp8")
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ExportError, match="thesis.txt"):
        export(checkpoint, tmp_path)
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "config.json").write_text((checkpoint / "config.json").read_text())
    (linked / "model.safetensors").symlink_to(checkpoint / "model.safetensors")
    with pytest.raises(CheckpointError, match="link"):
        export(linked, tmp_path / "out")
    mixed = tmp_path / "mixed"
    other = save_checkpoint(mixed, model_of("micro"), "card")
    about = json.loads((other / "config.json").read_text())
    about["model"]["transformer"]["width"] = 64
    (other / "config.json").write_text(json.dumps(about))
    with pytest.raises(CheckpointError, match="does not fit"):
        export(other, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_graphs_say_where_they_come_from(exported, onnx, checkpoint):
    facts = {x.key: x.value for x in onnx.load(exported / "velocity.onnx").metadata_props}
    weights = hashlib.sha256((checkpoint / "model.safetensors").read_bytes()).hexdigest()
    assert facts["preset"] == "micro" and facts["precision"] == "fp32" and facts["weights_sha256"] == weights
    assert len(facts["commit"]) == 40 or facts["commit"].startswith("version ")
    assert read_config(exported)[2] == {"step": 7} and read_calibration(exported) == read_calibration(checkpoint)
    assert read_calibration(exported).rotation == 3


def test_providers_come_in_their_order(onnx, monkeypatch, caplog):
    import onnxruntime

    from rays_as_pixels_model.onnx_engine import choose_providers

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [
        "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"])  # fmt: skip
    chosen, skipped = choose_providers("cuda:1")
    assert [name[:4] for name, _ in chosen] == ["Tens", "CUDA", "CPUE"] and skipped == {}
    assert chosen[0][1] == {"device_id": 1} and choose_providers("cpu")[0] == [("CPUExecutionProvider", {})]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with caplog.at_level(logging.INFO):
        chosen, skipped = choose_providers("auto")
    assert [name for name, _ in chosen] == ["CPUExecutionProvider"]
    assert list(skipped) == ["TensorrtExecutionProvider", "CUDAExecutionProvider"]
    assert all(name in caplog.text and why in caplog.text for name, why in skipped.items())
    for device, match in (("cuda", "built without"), ("tpu", "'auto', 'cpu'"), ("cuda:x", "cuda:N")):
        with pytest.raises(ValueError, match=match):
            choose_providers(device)


def test_a_provider_that_fails_is_skipped_with_its_reason(exported, caplog, monkeypatch):
    from rays_as_pixels_model import onnx_engine

    real = onnx_engine.choose_providers
    monkeypatch.setattr(
        onnx_engine, "choose_providers", lambda device: ([("CUDAExecutionProvider", {}), *real("cpu")[0]], {})
    )
    engine = onnx_engine.OnnxEngine(exported)
    if engine.provider == "CUDAExecutionProvider":
        pytest.skip("needs a machine without CUDA")
    assert engine.provider == "CPUExecutionProvider" and engine.device == "cpu"
    assert "CUDAExecutionProvider" in engine.skipped and "CUDAExecutionProvider is skipped" in caplog.text
