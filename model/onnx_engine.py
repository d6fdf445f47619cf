# SPDX-License-Identifier: Apache-2.0
"""An exported folder as an engine: the same velocity and codec as ONNX Runtime sessions. Imports no torch.

Of the execution providers TensorRT, CUDA, CPU the first that works is taken. The folder may come from anyone: its files
are read as bytes after a check that they lie in it, and graphs that name other files are refused.

Axes: B batch, T frames, L latent frames, I single images, G groups of frames of the video, H W pixels, C channels.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .checkpoint_folder import CheckpointError, own_bytes, read_config, read_exported
from .engine import MersenneNormal, latent_shapes

GRAPHS = ("velocity", "encode_image", "encode_video", "decode_image", "decode_video", "encode_rays", "decode_rays")
PROVIDERS = ("TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider")
# What a graph needs to make ONNX Runtime read another file: the key of external data, and nodes with compiled parts.
_REACHES_OUT = (b"location", b"EPContext")
# A session made for one shape has no arithmetic on shapes left: a fifth less time for a window of 78 tokens. Each holds
# the weights again, so only small graphs get them, and only the first shapes that come.
_SMALL, _SHAPES = 64 * 2**20, 3
_log = logging.getLogger(__name__)


class OnnxEngine:
    """See `engine.Engine`. Arrays are numpy's; what it computes is float32 in and out whatever the graphs' precision.

    Attributes:
        provider: the execution provider in use.
        skipped: {provider: why it is not used}, of those that come before it.
        about: what the exporter wrote: precision, commit, checksums, parity.
    """

    def __init__(self, folder: Path | str, device: str = "auto") -> None:
        """Load a folder that `export` wrote.

        Args:
            device: 'auto' (the first provider that works), 'cpu', 'cuda' or 'cuda:1'.

        Raises:
            CheckpointError: no such folder, a file is missing, changed or reaches out of it, or no onnxruntime.
            ValueError: no such device here.
        """
        folder, self.config, _ = read_config(folder)
        about = read_exported(folder)
        if about is None:
            raise CheckpointError(f"{folder} holds no ONNX graphs; write them with: rays-as-pixels export")
        self.about: dict = about
        if set(about["files"]) != {f"{name}.onnx" for name in GRAPHS}:
            raise CheckpointError(f"{folder} must list {', '.join(GRAPHS)}, got {', '.join(sorted(about['files']))}")
        chosen, self.skipped = choose_providers(device)
        graphs = {name: _graph(folder, f"{name}.onnx", about["files"][f"{name}.onnx"]) for name in GRAPHS}
        # The smallest graph finds the provider that works; the others then take it.
        self._sessions, self._shapes, self._lock = {}, {}, threading.Lock()
        for name in dict.fromkeys(("decode_rays", *GRAPHS[1:])):
            self._sessions[name], skipped = _session(folder / f"{name}.onnx", graphs[name], chosen)
            self.skipped.update(skipped)
            chosen = [provider for provider in chosen if provider[0] not in skipped]
        self.provider: str = self._sessions["decode_rays"].get_providers()[0]
        self._velocity = (folder / "velocity.onnx", graphs["velocity"], chosen)
        self._small = self.provider == PROVIDERS[-1] and len(graphs["velocity"]) < _SMALL
        # That of a window is made at once: nobody waits for it later, and a bad graph shows here.
        self._velocity_session(_sizes(1, self.config.groups))
        if not self._small:
            self._velocity = None  # its one session is made: the bytes are no longer needed
        self.device = "cpu" if self.provider == PROVIDERS[-1] else f"cuda:{_device_id(device)}"

    def on(self, device: Any) -> OnnxEngine:
        """Return itself: a session stays where it was made."""
        return self

    def array(self, values: np.ndarray) -> np.ndarray:
        """Return the values: its arrays are numpy's."""
        return values

    def generator(self, seed: int) -> MersenneNormal:
        """Make a source of randomness."""
        return MersenneNormal(seed)

    def noise(self, shape: Sequence[int], generator: MersenneNormal) -> np.ndarray:
        """Draw float32 numbers from N(0, 1)."""
        return generator(shape)

    def latent_shapes(self, batch: int, layout: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Shapes of z and r."""
        groups = _groups(layout)
        return latent_shapes(self.config, batch, len(groups), sum(groups))

    def encode_frames(self, frames: np.ndarray, layout: Any) -> np.ndarray:
        """(B, T, H, W, 3) in [-1, 1] to z: (B, L, h, w, C)."""
        groups = _groups(layout)
        if sum(groups) != frames.shape[1]:
            raise ValueError(f"groups {groups} hold {sum(groups)} frames, but {frames.shape[1]} were given")
        images = groups.count(1)
        parts = [self._each("encode_image", frames[:, :images], 1)]
        parts.append(self._each("encode_video", frames[:, images:], self.config.codec.group))
        return _joined(parts)

    def decode_frames(self, z: np.ndarray, layout: Any) -> np.ndarray:
        """z (B, L, h, w, C) to (B, T, H, W, 3), clamped to [-1, 1]."""
        groups = _groups(layout)
        if len(groups) != z.shape[1]:
            raise ValueError(f"groups {groups} do not fit {z.shape[1]} latent frames")
        images = groups.count(1)
        return _joined([self._each("decode_image", z[:, :images], 1), self._each("decode_video", z[:, images:], 1)])

    def encode_rays(self, raxels: np.ndarray) -> np.ndarray:
        """Raxels (B, T, H/2, W/2, 3) to r: (B, T, h/2, w/2, C)."""
        return self._each("encode_rays", raxels, 1)

    def decode_rays(self, r: np.ndarray) -> np.ndarray:
        """Invert `encode_rays`."""
        return self._each("decode_rays", r, 1)

    def velocity(self, z: np.ndarray, r: np.ndarray, t_z: np.ndarray, t_r: np.ndarray, reference: np.ndarray,
                 layout: Any) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
        """Velocities of z and r, see `transformer.JointTransformer.forward`; windows without padding only."""
        groups = _groups(layout)
        if getattr(layout, "exists", None) is not None:
            raise ValueError("an exported model takes windows without padding, got a layout with some")
        images, frames = groups.count(1), sum(groups)
        times = getattr(layout, "times", None)
        times = np.arange(frames) if times is None else np.asarray(times)
        times = np.broadcast_to(times, (len(z), frames)).astype(np.float32)
        grouped = times[:, images:].reshape(len(z), -1, self.config.codec.group).mean(-1)
        feed = {
            "images": z[:, :images], "video": z[:, images:], "r": r, "t_z": t_z, "t_r": t_r, "reference": reference,
            "times_z": np.concatenate([times[:, :images], grouped], axis=1), "times_r": times,
        }  # fmt: skip
        session = self._velocity_session(_sizes(len(z), groups))
        v_z, v_r = session.run(None, {name: _plain(x) for name, x in feed.items()})
        return v_z, v_r

    def _velocity_session(self, sizes: dict[str, int]) -> Any:
        """The session made for a shape, or the one for all."""
        key = tuple(sizes.values())
        with self._lock:
            if key not in self._shapes:
                if not self._small or len(self._shapes) >= _SHAPES:
                    if "velocity" not in self._sessions:
                        self._sessions["velocity"] = _session(*self._velocity, several=True)[0]
                    return self._sessions["velocity"]
                self._shapes[key] = _session(*self._velocity, several=True, sizes=sizes)[0]
            return self._shapes[key]

    def _each(self, graph: str, x: np.ndarray, group: int) -> np.ndarray | None:
        """Run a graph of one latent frame on every `group` frames of x (B, n, ...); None where there are none."""
        if x.shape[1] == 0:
            return None
        one = x.reshape(-1, group, *x.shape[2:])
        out = self._sessions[graph].run(None, {"x": _plain(one)})[0]
        return out.reshape(len(x), -1, *out.shape[2:])


def choose_providers(device: str) -> tuple[list[tuple[str, dict]], dict[str, str]]:
    """Return the execution providers to try, best first, with their options; and {provider: why it is left out}.

    Raises:
        ValueError: no such device; CheckpointError: no onnxruntime.
    """
    available = _onnxruntime().get_available_providers()
    kind = str(device).partition(":")[0]
    if kind not in ("auto", "cpu", "cuda") or (":" in str(device) and kind != "cuda"):
        raise ValueError(f"device must be 'auto', 'cpu' or 'cuda', got {device!r}")
    gpu, chosen, skipped = {"device_id": _device_id(device)}, [], {}
    for provider in PROVIDERS[-1:] if kind == "cpu" else PROVIDERS:
        if provider in available:
            chosen.append((provider, {} if provider == PROVIDERS[-1] else gpu))
        else:
            skipped[provider] = "this onnxruntime is built without it (onnxruntime-gpu has it)"
            _log.info("%s is skipped: %s", provider, skipped[provider])
    if kind == "cuda" and not any(provider == PROVIDERS[1] for provider, _ in chosen):
        raise ValueError(f"device {device!r} is not here: {skipped[PROVIDERS[1]]}; use 'cpu' or 'auto'")
    return chosen, skipped


def _onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise CheckpointError(
            f"an exported model needs onnxruntime ({error}); pip install 'rays_as_pixels_ros[onnx]' or [gpu]"
        ) from None
    return onnxruntime


def _device_id(device: str) -> int:
    index = str(device).partition(":")[2] or "0"
    if not index.isdecimal():
        raise ValueError(f"device must be 'auto', 'cpu', 'cuda' or 'cuda:N', got {device!r}")
    return int(index)


def _graph(folder: Path, name: str, checksum: str) -> bytes:
    """Read one graph of a folder, whole and not reaching out of it."""
    data = own_bytes(folder, name)
    if hashlib.sha256(data).hexdigest() != checksum:
        raise CheckpointError(f"{folder / name} is not the file that was exported (its sha256 differs); copy it again")
    # Protobuf keeps strings as they are, so a graph without these bytes cannot name a file.
    if any(word in data for word in _REACHES_OUT):
        raise CheckpointError(f"{folder / name} names files outside of itself, which are never read; export it again")
    return data


def _session(path: Path, data: bytes, providers: list[tuple[str, dict]], several: bool = False,
             sizes: dict[str, int] | None = None) -> tuple[Any, dict[str, str]]:  # fmt: skip
    """Make a session on the first provider that takes the graph; {provider: why not} for those before it.

    Args:
        several: use more than one thread; sizes: of the graph's open axes, where it is for one shape.
    """
    onnxruntime, skipped = _onnxruntime(), {}
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # The codec's graphs are one product each; the velocity keeps to the threads that torch and OpenMP would take.
    options.intra_op_num_threads = int(os.environ.get("OMP_NUM_THREADS") or 0) if several else 1
    for axis, size in (sizes or {}).items():
        options.add_free_dimension_override_by_name(axis, size)
    for number, (name, _) in enumerate(providers):
        try:
            session = onnxruntime.InferenceSession(data, options, providers=providers[number:])
        except Exception as error:  # each provider has errors of its own
            skipped[name] = " ".join(str(error).split())[:300]
        else:
            if session.get_providers()[0] == name:
                return session, skipped
            skipped[name] = "it could not be started; onnxruntime says why on stderr"
        _log.warning("%s is skipped: %s", name, skipped[name])
    raise CheckpointError(f"{path} is no graph that onnxruntime can run: {next(reversed(skipped.values()))}")


def _groups(layout: Any) -> tuple[int, ...]:
    return tuple(getattr(layout, "groups", layout))


def _sizes(batch: int, groups: tuple[int, ...]) -> dict[str, int]:
    """Sizes of the open axes of the velocity's graph."""
    images = groups.count(1)
    return {"B": batch, "I": images, "G": len(groups) - images, "L": len(groups), "T": sum(groups)}


def _plain(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x, np.int64 if x.dtype.kind == "i" else np.float32)


def _joined(parts: list[np.ndarray | None]) -> np.ndarray:
    parts = [part for part in parts if part is not None]
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)
