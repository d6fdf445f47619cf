# SPDX-License-Identifier: Apache-2.0
"""A checkpoint to a folder of ONNX graphs that `onnx_engine` runs, checked against torch before it gets its name.

Graphs are traced with any number of windows, images, video frames and times; height and width are the config's. A
folder holds config.json (the model's config; section "onnx": precision, commit, checksums, parity) and the graphs,
which carry the same facts as metadata.

Axes: B batch, T frames, L latent frames, I single images, G groups of frames of the video.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import warnings
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from .checkpoint import load_checkpoint
from .checkpoint_folder import FORMAT, WEIGHTS, CheckpointError, own_bytes, read_config, read_exported
from .config import ModelConfig, WanCodecConfig
from .joint import RaysAsPixels
from .layout import Layout
from .onnx_engine import GRAPHS, OnnxEngine
from .pipeline import Pipeline
from .sampler import Schedule, sample

PRECISIONS = ("fp32", "fp16", "int8")
# Largest difference from torch that an export may have, in raxels (scene depths) and pixels (of a range of 2).
LIMITS = {"fp32": 1e-3, "fp16": 0.02, "int8": 0.2}
_OPSET = 18


class ExportError(RuntimeError):
    """An export that failed or does not agree with torch; nothing was written."""


def export(
    checkpoint: Path | str | None, out: Path | str, precision: str = "fp32", preset: str | None = None,
    whole_window: bool = False,
) -> dict:  # fmt: skip
    """Export a checkpoint (None: the shipped default) to the folder `out`; an existing export is replaced.

    Args:
        precision: 'fp32'; 'fp16' (weights and arithmetic; inputs and outputs stay float32); 'int8' (dynamic: weights of
            the matrix products; activations as they come).
        preset: if given, the preset that the checkpoint must be of.
        whole_window: see `parity`.

    Returns:
        The section "onnx" of the folder's config.json.

    Raises:
        CheckpointError: the checkpoint cannot be used, is of another preset, or reaches out of its folder.
        ExportError: a model that has no graphs, an `out` that holds other files, or outputs that differ from torch's.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    folder, config, training = read_config(checkpoint)
    if read_exported(folder) is not None:
        raise CheckpointError(f"{folder} is an export already; give the checkpoint that it was made from")
    weights = own_bytes(folder, WEIGHTS)
    kept = {"training": training, "calibration": json.loads(own_bytes(folder, "config.json")).get("calibration")}
    if isinstance(config.codec, WanCodecConfig) or config.camera_encoding != "raxel":
        raise ExportError(
            f"preset {config.preset!r} with {config.camera_encoding} rays has no ONNX graphs; those with the built-in "
            "codec and raxels have"
        )
    model = load_checkpoint(folder, preset)
    about = {
        "preset": config.preset, "precision": precision, "commit": _commit(), "opset": _OPSET,
        "torch": torch.__version__, "weights_sha256": hashlib.sha256(weights).hexdigest(),
    }  # fmt: skip
    return write_export(model, Path(out), about, {name: value for name, value in kept.items() if value}, whole_window)


def write_export(
    model: RaysAsPixels, out: Path, about: dict, kept: dict | None = None, whole_window: bool = False
) -> dict:
    """Write the graphs of a model (on the CPU) under a temporary name, check them, and give the folder its name.

    Args:
        about: facts; 'precision' is obeyed. kept: further sections of the checkpoint's config.json.
        whole_window: see `parity`.
    """
    out = out.resolve()  # a link to a folder stays one, and "." has a name
    strangers = {path.name for path in out.iterdir()} - _own_names() if out.is_dir() else set()
    if strangers or out.is_file():
        raise ExportError(f"{out} holds other files ({min(strangers, default='it is one')}); name a new folder")
    temporary = out.with_name(f".{out.name}.{os.getpid()}")
    temporary.mkdir(parents=True)
    try:
        files = {}
        for name in GRAPHS:
            path = temporary / f"{name}.onnx"
            _trace(model, name, path)
            _convert(path, about["precision"] if name == "velocity" else "fp32", about)
            files[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
        about = {**about, "files": files}
        _write_config(temporary, model.config, about, kept)
        found = parity(model, OnnxEngine(temporary, "cpu"), whole_window=whole_window)
        about["parity"] = {name: round(value, 8) for name, value in found.items()}
        worst, limit = max(about["parity"].values()), LIMITS[about["precision"]]
        if not worst <= limit:
            raise ExportError(f"{about['precision']} differs from torch by {worst:.2g}, above {limit:g}; not written")
        _write_config(temporary, model.config, about, kept)
        shutil.rmtree(out, ignore_errors=True)
        os.replace(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return about


def parity(model: RaysAsPixels, engine: OnnxEngine, seed: int = 0, whole_window: bool = False) -> dict[str, float]:
    """Largest absolute difference of an engine's outputs from torch's, {part: difference}.

    All three tasks from the same noise: raxels of 'pose', frames of 'views' (one and two sources), both of 'joint', for
    a batch of two short windows and for a window of the config's length.

    Args:
        whole_window: compare that window also where it is larger than 1,000 tokens and takes minutes on a CPU.
    """
    config, rng = model.config, np.random.default_rng(seed)
    short, whole = 1 + config.codec.group, config.frames
    cases = [(2, short)] + ([(1, whole)] if whole != short and (whole_window or sum(config.tokens) <= 1000) else [])
    worst: dict[str, float] = {}

    def compare(part: str, call) -> None:
        """Run call(Pipeline) -> numbers on both engines."""
        ours, theirs = (call(Pipeline(x)) for x in (model, engine))
        difference = max(float(np.abs(np.asarray(a) - np.asarray(b)).max()) for a, b in zip(ours, theirs, strict=True))
        worst[part] = max(worst.get(part, 0.0), difference if np.isfinite(difference) else float("inf"))

    for batch, frames in cases:
        video = rng.uniform(-1, 1, (batch, frames, config.height, config.width, 3)).astype(np.float32)
        rays = rng.uniform(-1, 1, (batch, frames, config.height // 2, config.width // 2, 3)).astype(np.float32)
        groups = (1,) + (config.codec.group,) * ((frames - 1) // config.codec.group)
        compare("codec", lambda p, v=video, g=groups, r=rays: _codec(p, v, r, g))
        compare("pose", lambda p, v=video, g=groups, r=rays: [_joint(p, v, r, g, Schedule(0, 2))[1]])
        compare("joint", lambda p, v=video, g=groups, r=rays: _joint(p, v, r, g, Schedule(2, 2)))
        for count in (1, 2):
            compare("views", lambda p, v=video, r=rays, n=count: [_views(p, v[:, :n], r[:, : n + 1])])
    return worst


def _codec(pipe: Pipeline, video: np.ndarray, rays: np.ndarray, groups: tuple[int, ...]) -> list:
    m = pipe.model
    z, r = m.encode_frames(m.array(video), groups), m.encode_rays(m.array(rays))
    return [z, r, m.decode_frames(z, groups), m.decode_rays(r)]


def _joint(pipe: Pipeline, video: np.ndarray, rays: np.ndarray, groups: tuple[int, ...], schedule: Schedule) -> list:
    """The pose or the joint task with the first frame and its rays known: frames and raxels."""
    m, generator = pipe.model, pipe.model.generator(3)
    clean = m.encode_frames(m.array(video), groups), m.encode_rays(m.array(rays))
    z, r = (m.noise(x.shape, generator) for x in clean)
    z, r = (clean[0] if schedule.z_steps == 0 else z), r
    z[:, 0], r[:, 0] = clean[0][:, 0], clean[1][:, 0]
    index, known = m.array(np.zeros(len(video), np.int64)), []
    for x in (z, r):
        known.append(m.array(np.tile(np.arange(x.shape[1]) == 0, (len(x), 1))))
    z, r = sample(lambda *state: m.velocity(*state, index, groups), z, r, schedule, *known)
    return [m.decode_frames(z, groups), m.decode_rays(r)]


def _views(pipe: Pipeline, sources: np.ndarray, rays: np.ndarray):
    m = pipe.model
    return pipe.render_batch(m.array(sources), m.array(rays), 2, m.generator(4))


class _Open(Layout):
    """A layout whose number of images is the trace's own and whose times are inputs (B, L) and (B, T)."""

    def __init__(self, images: int, times_z: Tensor, times_r: Tensor) -> None:
        groups = type("Groups", (tuple,), {"count": lambda self, size: images})()
        for name, value in {"groups": groups, "times": times_r, "exists": None, "times_z": times_z}.items():
            object.__setattr__(self, name, value)

    def to(self, device: torch.device) -> Layout:
        return self

    def frame_times(self, device: torch.device | None = None) -> Tensor:
        return self.times

    def latent_mean(self, values: Tensor) -> Tensor:
        return self.times_z


class _LatentFrame(Layout):
    """One latent frame by itself: what the codec's graphs take, and no sequence."""

    def __init__(self, frames: int) -> None:
        for name, value in {"groups": (frames,), "times": None, "exists": None}.items():
            object.__setattr__(self, name, value)


class _Graph(nn.Module):
    """One graph of a model: what its inputs are called, which axes are open, and what it computes."""

    def __init__(self, model: RaysAsPixels, name: str) -> None:
        super().__init__()
        self.model, self.name = model, name

    def forward(self, *args: Tensor):
        if self.name != "velocity":
            call = getattr(self.model, self.name.replace("_image", "_frames").replace("_video", "_frames"))
            group = self.model.config.codec.group if "video" in self.name else 1
            return call(*args, *(() if "rays" in self.name else (_LatentFrame(group),)))
        images, video, r, t_z, t_r, reference, times_z, times_r = args
        layout = _Open(images.shape[1], times_z, times_r)
        return self.model.transformer(torch.cat([images, video], dim=1), r, t_z, t_r, reference, layout)

    def example(self) -> tuple[dict[str, Tensor], dict[str, dict[int, str]]]:
        """Inputs to trace with and the open axes of inputs and outputs."""
        c, generator = self.model.config, torch.Generator().manual_seed(0)
        group = c.codec.group if "video" in self.name else 1
        if self.name != "velocity":
            height, width = (c.height, c.width) if "rays" not in self.name else (c.height // 2, c.width // 2)
            cell = c.codec.cell
            shape = (group, height, width, 3) if "encode" in self.name else (1, height // cell, width // cell)
            shape = shape if "encode" in self.name else (*shape, c.codec.channels)
            return {"x": torch.rand((2, *shape), generator=generator)}, {"x": {0: "N"}, "y": {0: "N"}}
        sizes = {"B": 2, "I": 3, "G": 2, "L": 5, "T": 3 + 2 * c.codec.group}
        (_, _, *cells_z), (_, _, *cells_r) = self.model.latent_shapes(1, c.groups)
        axes = {"images": "BI", "video": "BG", "r": "BT", "t_z": "BL", "t_r": "BT", "reference": "B", "times_z": "BL",
                "times_r": "BT"}  # fmt: skip
        cells = {"images": cells_z, "video": cells_z, "r": cells_r}
        inputs = {
            name: torch.rand([*(sizes[letter] for letter in letters), *cells.get(name, ())], generator=generator)
            for name, letters in axes.items()
        }
        inputs["reference"] = torch.zeros(sizes["B"], dtype=torch.int64)
        opened = {**axes, "v_z": "BL", "v_r": "BT"}
        return inputs, {name: dict(enumerate(letters)) for name, letters in opened.items()}


def _trace(model: RaysAsPixels, name: str, path: Path) -> None:
    """Write one graph.

    Note: by the exporter that records a run, which takes a tenth of the time of the one on torch.export and leaves
        every axis open, also to lengths 0 and 1, which torch.export fixes.
    """
    graph = _Graph(model, name).eval()
    inputs, axes = graph.example()
    outputs = ["v_z", "v_r"] if name == "velocity" else ["y"]
    torch.onnx.register_custom_op_symbolic("aten::rms_norm", _rms_norm, _OPSET)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of the tracer, about comparisons of shapes that are the config's
        torch.onnx.export(
            graph, tuple(inputs.values()), str(path), dynamo=False, opset_version=_OPSET, input_names=list(inputs),
            output_names=outputs, dynamic_axes={k: v for k, v in axes.items() if k in inputs or k in outputs},
        )  # fmt: skip


def _rms_norm(g, x, shape, weight, eps):
    """The root mean square norm in the form that ONNX Runtime fuses."""

    def constant(value):
        return g.op("Constant", value_t=torch.tensor(value))

    eps = float(torch.onnx.symbolic_helper._maybe_get_const(eps, "f"))
    mean = g.op("ReduceMean", g.op("Pow", x, constant(2.0)), constant([-1]), keepdims_i=1)
    if torch.onnx.symbolic_helper._is_none(weight):
        weight = constant([1.0] * torch.onnx.symbolic_helper._maybe_get_const(shape, "is")[0])
    return g.op("Mul", g.op("Div", x, g.op("Sqrt", g.op("Add", mean, constant(eps)))), weight)


def _convert(path: Path, precision: str, about: dict) -> None:
    """Change a graph's precision in place and write the facts into it."""
    import onnx

    if precision == "int8":
        from onnxruntime.quantization import QuantType, quantize_dynamic

        # What enters and leaves the blocks keeps its precision: it is few operations and most of the error.
        nodes = [node.name for node in onnx.load(path, load_external_data=False).graph.node]
        ends = [name for name in nodes if any(part in name for part in ("embed_", "head_", "modulation_", "time_"))]
        # reduce_range: sums of two products of 8 bits overflow 16 bits on processors without VNNI.
        quantize_dynamic(path, path, op_types_to_quantize=["MatMul", "Gemm"], per_channel=True, reduce_range=True,
                         weight_type=QuantType.QInt8, nodes_to_exclude=ends)  # fmt: skip
    graph = onnx.load(path, load_external_data=False)
    if precision == "fp16":
        from onnxruntime.transformers.float16 import convert_float_to_float16

        graph = convert_float_to_float16(graph, keep_io_types=True)
    onnx.helper.set_model_props(graph, {key: str(value) for key, value in about.items()})
    onnx.save(graph, path)


def _write_config(folder: Path, config: ModelConfig, about: dict, kept: dict | None) -> None:
    data = {"format": FORMAT, "model": config.to_dict(), **(kept or {}), "onnx": about}
    (folder / "config.json").write_text(json.dumps(data, indent=1) + "\n")


def _own_names() -> set[str]:
    return {"config.json", *(f"{name}.onnx" for name in GRAPHS)}


def _commit() -> str:
    """The commit of this source, or the version of the installed package."""
    here = Path(__file__).resolve().parent
    try:
        call = ["git", "-C", str(here), "rev-parse", "HEAD"]
        return subprocess.run(call, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return f"version {metadata.version('rays_as_pixels_ros')}"
