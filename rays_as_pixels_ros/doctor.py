# SPDX-License-Identifier: Apache-2.0
"""`rays-as-pixels doctor`: what this machine has, and whether it is enough to run.

Each check returns a `Finding`; the command fails when one of them is `bad`. What only limits (no GPU, small socket
buffers, no ROS 2) is a note.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from .arguments import command_parser

OK, NOTE, BAD = "ok", "note", "bad"
RMEM_WANTED = 4 * 1024 * 1024  # loses no 640x480 image when quiet; 212,992 loses most


@dataclass(frozen=True)
class Finding:
    """One line of the table: what was looked at, how it is (OK, NOTE or BAD), and what was found."""

    what: str
    state: str
    text: str


def main(argv: list[str]) -> int:
    """Print the table; 0 when the machine can run this, 1 with the reason otherwise."""
    parser = command_parser("doctor", "Show what this machine has. Exit status 0: usable; 1: not, and why.")
    parser.add_argument("--checkpoint", metavar="DIR", help="checkpoint folder; without it, the one that is shipped")
    args = parser.parse_args(argv)
    findings = []
    checks = (_python, _ros, _dds, _buffers, _torch, _onnxruntime, _opencv, _video)
    for check in (*checks, lambda: _checkpoint(args.checkpoint)):
        for finding in _guarded(check):
            print(f"{finding.what:<12} {finding.state:<5} {finding.text}", flush=True)
            findings.append(finding)
    bad = [finding for finding in findings if finding.state == BAD]
    if bad:
        print(f"rays-as-pixels: error: not usable: {bad[0].what}: {bad[0].text}", file=sys.stderr)
        return 1
    print("usable")
    return 0


def _guarded(check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """Turn a missing or broken library into a finding: the doctor must not fall ill."""
    try:
        yield from check()
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        yield Finding(getattr(check, "__name__", "check").strip("_<>"), BAD, " ".join(str(error).split()))


def _python() -> Iterator[Finding]:
    state = OK if sys.version_info >= (3, 10) else BAD
    yield Finding("python", state, f"{platform.python_version()} on {platform.machine()}, {os.cpu_count()} CPUs")


def _ros() -> Iterator[Finding]:
    spec = importlib.util.find_spec("rclpy")
    distro = os.environ.get("ROS_DISTRO")
    if spec is not None:
        import rclpy  # noqa: F401  a broken rclpy must show here, not when the first node starts

        rmw = os.environ.get("RMW_IMPLEMENTATION", "the default middleware")
        yield Finding("ros", OK, f"ROS 2 {distro or 'without ROS_DISTRO'}, {rmw}; rclpy in {Path(spec.origin).parent}")
        if importlib.util.find_spec("rays_as_pixels_interfaces") is None:
            yield Finding("interfaces", BAD, "rays_as_pixels_interfaces is not built or not sourced (README)")
        if "cyclonedds" not in rmw:
            yield Finding("middleware", NOTE, "hosts without ROS 2 can be reached with rmw_cyclonedds_cpp only")
        yield _cv_bridge()
        return
    why = "no ROS 2 is sourced"
    if distro:
        why = (
            f"ROS_DISTRO is {distro}, but this Python ({sys.executable}) cannot import rclpy: make the venv with the "
            "system's python3 and --system-site-packages"
        )
    yield Finding("ros", NOTE if distro else OK, f"embedded_ros on Cyclone DDS: {why}")
    from embedded_ros.definitions import own_texts

    names = [name for _, name, _ in own_texts()]
    yield Finding("interfaces", OK if names else BAD, ", ".join(names) or "no .action or .srv text is installed")


def _cv_bridge() -> Finding:
    try:
        import cv_bridge

        return Finding("cv_bridge", OK, str(Path(cv_bridge.__file__).parent))
    except Exception as error:  # a compiled half may raise anything
        text = " ".join(str(error).split())
        return Finding("cv_bridge", NOTE, f"does not import ({text}); a numpy CvBridge takes its place")


def _dds() -> Iterator[Finding]:
    if importlib.util.find_spec("rclpy") is None:
        import cyclonedds.core  # noqa: F401  loads the shared library

        yield Finding("cyclonedds", OK, metadata.version("cyclonedds"))
    domain = os.environ.get("ROS_DOMAIN_ID", "0")
    valid = domain.isdecimal() and int(domain) <= 232
    text = f"ROS_DOMAIN_ID {domain}" + (", CYCLONEDDS_URI is set" if os.environ.get("CYCLONEDDS_URI") else "")
    yield Finding("domain", OK if valid else BAD, text if valid else f"{text} is not a number from 0 to 232")


def _buffers() -> Iterator[Finding]:
    path = Path("/proc/sys/net/core/rmem_max")
    if not path.exists():
        return
    size = int(path.read_text())
    if size >= RMEM_WANTED:
        yield Finding("buffers", OK, f"net.core.rmem_max {size}")
    else:
        cure = f"sudo sysctl -w net.core.rmem_max={RMEM_WANTED}"
        yield Finding("buffers", NOTE, f"net.core.rmem_max {size}: large images get lost; {cure}")


def _torch() -> Iterator[Finding]:
    if importlib.util.find_spec("torch") is None and importlib.util.find_spec("onnxruntime") is not None:
        yield Finding("torch", NOTE, "not installed: exported models run, checkpoints do not")
        return
    import torch

    yield Finding("torch", OK, f"{torch.__version__}, {torch.get_num_threads()} threads")
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            about = torch.cuda.get_device_properties(index)
            yield Finding("gpu", OK, f"cuda:{index} {about.name}, {about.total_memory / 2**30:.0f} GiB")
    else:
        built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "torch is a CPU build"
        yield Finding("gpu", NOTE, f"none usable ({built}): models run on the CPU")


def _onnxruntime() -> Iterator[Finding]:
    if importlib.util.find_spec("onnxruntime") is None:
        text = "not installed: exported models do not run; pip install 'rays_as_pixels_ros[onnx]', or [gpu]"
        yield Finding("onnxruntime", NOTE, text)
        return
    import onnxruntime

    from rays_as_pixels_model.onnx_engine import choose_providers

    chosen, skipped = choose_providers("auto")
    yield Finding("onnxruntime", OK, f"{onnxruntime.__version__}, tries {', '.join(name for name, _ in chosen)}")
    for name, why in skipped.items():
        yield Finding("provider", NOTE, f"{name} is skipped: {why}")


def _opencv() -> Iterator[Finding]:
    import cv2

    yield Finding("opencv", OK, cv2.__version__)


def _video() -> Iterator[Finding]:
    try:
        import imageio_ffmpeg

        versions = f"{imageio_ffmpeg.get_ffmpeg_version()} (imageio-ffmpeg {imageio_ffmpeg.__version__})"
        yield Finding("ffmpeg", OK, versions)
    except (ImportError, RuntimeError):
        found = shutil.which("ffmpeg")
        text = "imageio-ffmpeg is missing: videos are written as MPEG-4 by OpenCV, which browsers do not play"
        yield Finding("ffmpeg", NOTE, f"{text}; {found} is not used" if found else text)


def _checkpoint(folder: str | None) -> Iterator[Finding]:
    from rays_as_pixels_model.checkpoint_folder import CheckpointError, read_config, read_exported

    try:
        place, config, _ = read_config(folder)
        exported = read_exported(folder)
        if exported is None:
            from rays_as_pixels_model.checkpoint import load_checkpoint

            count = sum(parameter.numel() for parameter in load_checkpoint(folder).parameters())
            digest = hashlib.sha256()
            for file in sorted(place.glob("*.safetensors")):
                digest.update(file.read_bytes())
            about = f"{count / 1e6:.2f} M parameters, sha256 {digest.hexdigest()[:12]}"
        else:
            from rays_as_pixels_model.onnx_engine import OnnxEngine

            about = f"ONNX {exported['precision']} on {OnnxEngine(folder).provider}"
    except CheckpointError as error:
        yield Finding("checkpoint", BAD, str(error))
        return
    size = f"{config.frames} frames of {config.width}x{config.height}"
    yield Finding("checkpoint", OK, f"{place.name}, preset {config.preset}, {size}, {about}")
