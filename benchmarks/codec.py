# SPDX-License-Identifier: Apache-2.0
"""Measure the choice of the codec and of the ray latent normalisation; remakes the tables and picture of docs/codec.md.

    python benchmarks/codec.py                                   # renders its own clips, prints the tables
    python benchmarks/codec.py --pool FOLDER --textures FOLDER --out docs/codec.md --image docs/images/codec.png

Fits and trains on clips of the training seeds, measures on clips of held-out seeds and textures. One thread.
"""
from __future__ import annotations

import argparse
import itertools
import json
import platform
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from causal_vae import train_vae
from torch import Tensor

from rays_as_pixels_model.codec import LatentNormaliser, LinearCodec, fit_basis
from rays_as_pixels_model.comparison import psnr
from rays_as_pixels_model.geometry import Intrinsics, make_pose, rotation_angle_deg, so3_exp
from rays_as_pixels_model.raxels import make_raxels, read_cameras
from rays_as_pixels_training.data.procedural import Clip, ClipConfig, ClipPool, first_clip
from rays_as_pixels_training.data.windows import WindowBatch, cut_windows
from rays_as_pixels_training.fit_codec import blocks_of
from rays_as_pixels_training.held_out import held_out_clips

GROUPS = (1, 4)
BARS = (0.1, 0.005)          # degrees, model units


def stack(clips: list[Clip]) -> SimpleNamespace:
    """Clips in the form that `cut_windows` reads."""
    k = [(c.intrinsics.fx, c.intrinsics.fy, c.intrinsics.cx, c.intrinsics.cy) for c in clips]
    return SimpleNamespace(frames=np.stack([c.frames for c in clips]), intrinsics=np.array(k, np.float32),
                           poses=np.stack([c.T_world_camera for c in clips]),
                           scales=np.stack([c.scene_scale for c in clips]))


def training_clips(count: int, pool: Path | None, textures: str | None) -> SimpleNamespace:
    """Up to `count` clips of a filled pool, or that many rendered from the first training seeds."""
    if pool is not None:
        stored = ClipPool(pool)
        slots = stored.ready()[:count]
        return SimpleNamespace(**{name: np.array(getattr(stored, name)[slots])
                                  for name in ("frames", "poses", "intrinsics", "scales")})
    from rays_as_pixels_model.scenes import TextureBank

    bank, clips, seed = TextureBank.default(split="train", folder=textures), [], 0
    while len(clips) < count:
        seed, clip = first_clip(itertools.count(seed), bank, ClipConfig())
        clips.append(clip)
        seed += 1
    return stack(clips)


def principal_components(blocks: Tensor, channels: int) -> Tensor:
    """Plain PCA of colour blocks (n, d), not centred: (channels, d) float32."""
    x = blocks.double()
    return torch.linalg.eigh(x.T @ x / len(x))[1].flip(1)[:, :channels].T.float()


def linear_codec(channels: int, train: WindowBatch, degrees: tuple[int, int] | None) -> LinearCodec:
    """Fit a linear codec: `degrees` of the image and video polynomials, None for plain PCA."""
    # not a CodecConfig: that refuses 16 channels, which cannot hold the quadratic polynomials
    codec = LinearCodec(SimpleNamespace(channels=channels, cell=8, group=4))
    parts = ((codec.image_basis, blocks_of(train.frames[:, :1], 8, 1), 1),
             (codec.video_basis, blocks_of(train.frames[:, 1:], 8, 4), 4))
    for index, (basis, blocks, group) in enumerate(parts):
        basis.copy_(principal_components(blocks, channels) if degrees is None else
                    fit_basis(blocks.double().T @ blocks.double(), 8, group, channels, degrees[index]))
    return codec


def to_uint8(frames: Tensor) -> np.ndarray:
    """[-1, 1] to uint8."""
    return ((frames.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).numpy()


def reconstruct(codec, frames: Tensor, groups: tuple[int, ...]) -> Tensor:
    """Encode and decode (B, T, H, W, 3)."""
    return codec.decode(codec.encode(frames, groups), groups)


def frame_quality(codec, frames: Tensor) -> tuple[float, float]:
    """Mean PSNR over frames through the image path and, from the second frame on, through the video path."""
    truth = to_uint8(frames)
    image, video = (to_uint8(reconstruct(codec, frames, g)) for g in ((1,) * 5, GROUPS))
    values = [(psnr(image[b, t], truth[b, t]), psnr(video[b, t], truth[b, t])) for b, t in np.ndindex(truth.shape[:2])]
    table = np.array(values).reshape(*truth.shape[:2], 2)
    return float(table[..., 0].mean()), float(table[:, 1:, 1].mean())


def unseen_cameras(held_out: WindowBatch, count: int, seed: int = 1) -> list:
    """List (intrinsics, T_reference_camera (5, 4, 4), raxels (5, h, w, 3)): held-out windows, then random ones."""
    rng = np.random.default_rng(seed)
    height, width = held_out.frames.shape[2:4]
    cases = [(Intrinsics(*map(float, k), width, height), T)
             for k, T in zip(held_out.intrinsics.numpy(), held_out.T_reference_camera.numpy(), strict=True)]
    for _ in range(count):
        T = make_pose(so3_exp(rng.normal(size=(5, 3)) * 0.3), rng.normal(size=(5, 3)) * 0.5)
        cases.append((Intrinsics.from_fov(rng.uniform(40, 85), width, height), T))
    return [(k, T, make_raxels(T, k, height // 2, width // 2)) for k, T in cases]


def camera_errors(decoded: np.ndarray, cameras: list) -> tuple[np.ndarray, np.ndarray]:
    """Read cameras from (N, 5, h, w, 3): rotation errors (N 5,) in degrees, position errors (N 5,) in model units."""
    rotation, position = [], []
    for images, (intrinsics, T, _) in zip(decoded, cameras, strict=True):
        found = read_cameras(images, intrinsics).T_reference_camera
        rotation.append(rotation_angle_deg(np.swapaxes(found[:, :3, :3], 1, 2) @ T[:, :3, :3]))
        position.append(np.linalg.norm(found[:, :3, 3] - T[:, :3, 3], axis=1))
    return np.concatenate(rotation), np.concatenate(position)


def cpu_seconds(codecs: dict, window: Tensor, repeats: int = 15) -> dict[str, float]:
    """Median CPU time to encode and decode one window, the codecs in turn so that all meet the same machine."""
    times: dict[str, list[float]] = {name: [] for name in codecs}
    for _ in range(repeats + 2):
        for name, codec in codecs.items():
            start = time.process_time()
            reconstruct(codec, window, GROUPS)
            times[name].append(time.process_time() - start)
    return {name: float(np.median(t[2:])) for name, t in times.items()}


def parameters(codec) -> int:
    """Count the fitted or trained numbers."""
    return sum(p.numel() for p in [*codec.parameters(), *codec.buffers()])


class Whitening:
    """The obvious ray latent normalisation: zero mean and unit variance per channel (or per channel and cell mean)."""

    def __init__(self, rays: Tensor, per_cell_mean: bool) -> None:
        self.shift = rays.mean(0) if per_cell_mean else rays.flatten(0, -2).mean(0)
        self.scale = 1.0 / (rays - self.shift).flatten(0, -2).std(0).clamp(min=1e-8)

    def rays_in(self, latents: Tensor) -> Tensor:
        return (latents - self.shift) * self.scale

    def rays_out(self, r: Tensor) -> Tensor:
        return r / self.scale + self.shift


def normalisations(codec: LinearCodec, train: WindowBatch) -> dict:
    """Fit each candidate to the ray latents of the training windows."""
    rays = codec.encode(train.raxels(), (1,) * 5).flatten(0, 1)
    out = {"whitened per channel": Whitening(rays, False),
           "whitened per channel, per-cell mean camera removed": Whitening(rays, True)}
    for floor in (0.0, 0.05):
        split = LatentNormaliser(codec.config.channels, tuple(rays.shape[1:3]))
        split.fit_rays([rays], floor=floor)
        out[f"mean and deviation split, floor {floor:g}" + (" (used)" if floor else "")] = split
    return out


def measure_normalisation(codec: LinearCodec, train: WindowBatch, cameras: list, variances=(0.14, 0.005)) -> dict:
    """Median camera errors after noise on normalised ray latents, the same noise for every candidate."""
    raxels = torch.from_numpy(np.stack([r for _, _, r in cameras]))
    latents = codec.encode(raxels, (1,) * 5)
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(2))
    out = {}
    for name, way in normalisations(codec, train).items():
        for variance in variances:
            noisy = way.rays_out(way.rays_in(latents) + variance**0.5 * noise)
            rotation, position = camera_errors(codec.decode(noisy, (1,) * 5).numpy(), cameras)
            out.setdefault(name, {})[str(variance)] = {"rotation_deg": float(np.median(rotation)),
                                                       "position": float(np.median(position))}
    return out


def best_rate(train_stack, rates: list[float], steps: int) -> float:
    """The learning rate with the lowest training loss after a short run of its own, if there are several."""
    if len(rates) == 1:
        return rates[0]
    losses = {lr: train_vae(48, train_stack, steps=steps, with_raxels=True, lr=lr)[1]["loss"] for lr in rates}
    print(f"loss after {steps} steps by learning rate: {losses}", flush=True)
    return min(losses, key=losses.get)


def measure(train_stack, held_stack, steps: int, rates: list[float], random_windows: int) -> tuple:
    """Fit, train and measure every candidate: the report, the codecs, the held-out windows and their cameras."""
    rng = np.random.default_rng(0)
    fit_slots = rng.permutation(len(train_stack.frames))[:256]
    train = cut_windows(train_stack, fit_slots, rng, 5, augment=True)
    held_out = cut_windows(held_stack, np.arange(len(held_stack.frames)), rng, 5, augment=False)
    cameras = unseen_cameras(held_out, random_windows)
    codecs = {f"linear, C={c}": linear_codec(c, train, (1 if c < 18 else 2, 1)) for c in (16, 32, 48, 64)}
    codecs["linear without polynomials, C=48"] = linear_codec(48, train, None)
    trained, lr = {}, best_rate(train_stack, rates, steps // 6)
    for channels, with_raxels in ((48, True), (16, True), (48, False)):
        name = f"causal VAE, C={channels}" + ("" if with_raxels else ", never saw raxels")
        codecs[name], trained[name] = train_vae(channels, train_stack, steps=steps, with_raxels=with_raxels, lr=lr)
        print(f"{name}: {trained[name]}", flush=True)
    raxels = torch.from_numpy(np.stack([r for _, _, r in cameras]))
    seconds, report = cpu_seconds(codecs, held_out.frames[:1]), {}
    for name, codec in codecs.items():
        image, video = frame_quality(codec, held_out.frames)
        rotation, position = camera_errors(reconstruct(codec, raxels, (1,) * 5).numpy(), cameras)
        report[name] = {"psnr_image": image, "psnr_video": video, "parameters": parameters(codec),
                        "rotation_deg_median": float(np.median(rotation)), "rotation_deg_max": float(rotation.max()),
                        "position_median": float(np.median(position)), "position_max": float(position.max()),
                        "cpu_ms": 1e3 * seconds[name], "cpu_ratio": seconds[name] / seconds["linear, C=48"]}
    normalisation = measure_normalisation(codecs["linear, C=48"], train, cameras)
    about = {"held_out_frames": 5 * len(held_out.frames), "cameras": 5 * len(cameras), "torch": torch.__version__,
             "machine": platform.machine(), "training_clips": len(train_stack.frames), "lr": lr}
    return {"about": about, "codecs": report, "vae": trained, "normalisation": normalisation}, codecs, held_out, cameras


def tables(report: dict) -> str:
    """The report in Markdown."""
    about, base = report["about"], report["codecs"]["linear, C=48"]["cpu_ms"]
    lines = [f"{about['held_out_frames']} held-out frames, {about['cameras']} cameras never seen, torch "
             f"{about['torch']} on one {about['machine']} thread; linear C=48 takes {base:.2f} ms for one window of 5 "
             "frames, the time column is relative to it.", "",
             "| codec | PSNR dB, image path | PSNR dB, video path | rotation deg, median (max) | "
             "position, median (max) | bar met | time | parameters |", "|---|---|---|---|---|---|---|---|"]
    for name, r in report["codecs"].items():
        met = r["rotation_deg_median"] <= BARS[0] and r["position_median"] <= BARS[1]
        lines.append(f"| {name} | {r['psnr_image']:.1f} | {r['psnr_video']:.1f} | {r['rotation_deg_median']:.3f} "
                     f"({r['rotation_deg_max']:.3f}) | {r['position_median']:.4f} ({r['position_max']:.4f}) | "
                     f"{'yes' if met else 'no'} | {r['cpu_ratio']:.1f} | {r['parameters']:,} |")
    lines += ["", f"| VAE trained (Adam, rate {about['lr']:g}, {about['training_clips']} clips) | steps | windows | "
              "raxel images | CPU minutes |", "|---|---|---|---|---|"]
    lines += [f"| {name} | {v['steps']:,} | {v['windows']:,} | {v['raxel_images']:,} | {v['cpu_seconds'] / 60:.1f} |"
              for name, v in report["vae"].items()]
    variances = list(next(iter(report["normalisation"].values())))
    lines += ["", "| ray latents | " + " | ".join(f"noise {v}: rotation deg | position" for v in variances) + " |",
              "|---" * (1 + 2 * len(variances)) + "|"]
    lines += [f"| {name} | " + " | ".join(f"{e['rotation_deg']:.2f} | {e['position']:.3f}" for e in row.values()) + " |"
              for name, row in report["normalisation"].items()]
    return "\n".join(lines)


def picture(path: Path, codecs: dict, held_out: WindowBatch, cameras: list) -> None:
    """Held-out frames (video path) and a raxel image before and after, with the raxel error enlarged."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from PIL import Image

    shown = ("linear, C=48", "causal VAE, C=48", "causal VAE, C=16")
    rows = list(range(0, len(held_out.frames), max(1, len(held_out.frames) // 3)))[:3]
    raxels = torch.from_numpy(cameras[rows[-1]][2])[None]
    low, high = raxels.amin((0, 1, 2, 3)), raxels.amax((0, 1, 2, 3))
    figure, axes = plt.subplots(5, 1 + len(shown), figsize=(8, 7.2), squeeze=False)
    for row, b in enumerate(rows):
        images = [held_out.frames[b:b + 1], *(reconstruct(codecs[n], held_out.frames[b:b + 1], GROUPS) for n in shown)]
        for axis, image in zip(axes[row], images, strict=True):
            axis.imshow(to_uint8(image)[0, -1])
    decoded = [raxels, *(reconstruct(codecs[n], raxels, (1,) * 5) for n in shown)]
    for column, image in enumerate(decoded):
        axes[3, column].imshow(((image - low) / (high - low)).clamp(0, 1)[0, -1].numpy())
        axes[4, column].imshow((0.5 + 20 * (image - raxels)).clamp(0, 1)[0, -1].numpy())
    for axis, title in zip(axes[0], ("original", *shown), strict=True):
        axis.set_title(title, fontsize=9)
    for axis, label in zip(axes[:, 0], ("frame 5", "frame 5", "frame 5", "raxels", "raxel error x 20"), strict=True):
        axis.set_ylabel(label, fontsize=9)
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
    figure.tight_layout(pad=0.4)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.set_dpi(75)
    figure.canvas.draw()
    drawn = Image.fromarray(np.asarray(figure.canvas.buffer_rgba())[..., :3])
    # a palette is a third of the size; undithered it cuts the smooth raxels into patches that no codec made
    drawn.quantize(palette=drawn.quantize(200), dither=Image.Dither.FLOYDSTEINBERG).save(path, optimize=True)


def main() -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pool", type=Path, help="filled pool of training clips (default: render them)")
    parser.add_argument("--textures", help="folder of photos for the clips that are rendered")
    parser.add_argument("--train-clips", type=int, default=600)
    parser.add_argument("--held-out-clips", type=int, default=48)
    parser.add_argument("--random-windows", type=int, default=52, help="windows of random cameras beside these")
    parser.add_argument("--vae-steps", type=int, default=600)
    parser.add_argument("--vae-lr", type=float, nargs="+", default=[1e-3, 2e-3, 4e-3], help="the best of these is used")
    parser.add_argument("--out", type=Path, help="put the tables between the marks <!-- measured --> of this file")
    parser.add_argument("--image", type=Path)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    report, codecs, held_out, cameras = measure(
        training_clips(args.train_clips, args.pool, args.textures),
        stack(held_out_clips(args.held_out_clips, ClipConfig(), args.textures)), args.vae_steps, args.vae_lr,
        args.random_windows)
    text = tables(report)
    print(text)
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n")
    if args.out:
        before, _, after = args.out.read_text().split("<!-- measured -->")
        args.out.write_text(f"{before}<!-- measured -->\n{text}\n<!-- measured -->{after}")
    if args.image:
        picture(args.image, codecs, held_out, cameras)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
