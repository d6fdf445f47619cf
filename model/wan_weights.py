# SPDX-License-Identifier: Apache-2.0
"""Wan 2.1 weights from a local path into the video stream; the ray stream starts as a copy of it.

Two layouts of the transformer are read, as safetensors, whole or sharded with an index: that of diffusers and that of
the original release. The VAE is read in the layout of diffusers. Pickles (.pth, .bin) are never read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .checkpoint import CheckpointError
from .config import ConfigError, ModelConfig, WanTransformerConfig
from .joint import RaysAsPixels
from .wan import WanJointTransformer

_DIFFUSERS = {
    r"patch_embedding\.": "z.embed.",
    r"condition_embedder\.time_embedder\.linear_1\.": "z.time.0.",
    r"condition_embedder\.time_embedder\.linear_2\.": "z.time.2.",
    r"condition_embedder\.time_proj\.": "z.time_modulation.",
    r"condition_embedder\.text_embedder\.linear_1\.": "text.0.",
    r"condition_embedder\.text_embedder\.linear_2\.": "text.2.",
    r"proj_out\.": "z.head.",
    r"scale_shift_table$": "z.head_modulation",
    r"blocks\.(\d+)\.attn1\.(?:to_)?": r"blocks.\1.attention.",
    r"blocks\.(\d+)\.attn2\.(?:to_)?": r"blocks.\1.text_attention.",
    r"blocks\.(\d+)\.norm2\.": r"blocks.\1.z.norm_text.",
    r"blocks\.(\d+)\.ffn\.net\.0\.proj\.": r"blocks.\1.z.feed_forward.0.",
    r"blocks\.(\d+)\.ffn\.net\.2\.": r"blocks.\1.z.feed_forward.2.",
    r"blocks\.(\d+)\.scale_shift_table$": r"blocks.\1.z.modulation",
}
_ORIGINAL = {
    r"patch_embedding\.": "z.embed.",
    r"time_embedding\.": "z.time.",
    r"time_projection\.1\.": "z.time_modulation.",
    r"text_embedding\.": "text.",
    r"head\.head\.": "z.head.",
    r"head\.modulation$": "z.head_modulation",
    r"blocks\.(\d+)\.self_attn\.": r"blocks.\1.attention.",
    r"blocks\.(\d+)\.cross_attn\.": r"blocks.\1.text_attention.",
    r"blocks\.(\d+)\.norm3\.": r"blocks.\1.z.norm_text.",
    r"blocks\.(\d+)\.ffn\.": r"blocks.\1.z.feed_forward.",
    r"blocks\.(\d+)\.modulation$": r"blocks.\1.z.modulation",
}


def our_name(wan_name: str) -> str | None:
    """Name in `WanJointTransformer` of a tensor of Wan's transformer, of either layout; None if it has none."""
    name = wan_name.removeprefix("model.diffusion_model.")
    for table in (_DIFFUSERS, _ORIGINAL):
        for pattern, ours in table.items():
            found, count = re.subn(f"^{pattern}", ours, name)
            if count:
                return found.replace("attention.out.0.", "attention.out.").replace("attention.o.", "attention.out.")
    return None


def load_wan(
    config: ModelConfig, folder: Path | str, vae: Path | str | None = None, dtype: torch.dtype = torch.float32
) -> RaysAsPixels:
    """Build a model from Wan 2.1 weights: the video stream loaded, the ray stream a copy of it, the VAE frozen.

    Args:
        config: of a Wan preset.
        folder: with `transformer/` and `vae/` (diffusers), or with the transformer's safetensors itself.
        vae: folder of the VAE if it is not `folder/vae`.
        dtype: of the transformer.

    Raises:
        ConfigError: a config of another preset.
        CheckpointError: files missing, or tensors that do not fit.
        ImportError: diffusers is not installed.
    """
    if not isinstance(config.transformer, WanTransformerConfig):
        raise ConfigError(f"load_wan needs a Wan preset (wan-1.3b, wan-14b), got {config.preset!r}")
    folder = Path(folder)
    with torch.device("meta"):
        transformer = WanJointTransformer(config)
    transformer.to(dtype).to_empty(device="cpu")
    transformer.initialise_added()
    fill_video_stream(transformer, folder / "transformer" if (folder / "transformer").is_dir() else folder)
    copy_to_ray_stream(transformer)
    model = RaysAsPixels(config, transformer)
    _fill_vae(model.codec, Path(vae) if vae else folder / "vae")
    return model.eval()


@torch.no_grad()
def fill_video_stream(transformer: WanJointTransformer, folder: Path) -> None:
    """Copy Wan's tensors into the video stream and what both streams share."""
    wanted = wan_parameters(transformer)
    missing = set(wanted)
    for file, name, tensor in _tensors(folder):
        ours = our_name(name)
        if ours not in wanted:
            raise CheckpointError(f"{file} holds {name}, which Wan 2.1 text-to-video does not have")
        if wanted[ours].shape != tensor.shape:
            raise CheckpointError(
                f"{file}: {name} is {tuple(tensor.shape)}, but preset {transformer.config.preset!r} needs "
                f"{tuple(wanted[ours].shape)}"
            )
        wanted[ours].copy_(tensor)
        missing.discard(ours)
    if missing:
        raise CheckpointError(f"{folder} lacks {len(missing)} tensors of Wan 2.1, the first: {min(missing)}")


def wan_parameters(transformer: WanJointTransformer) -> dict[str, Tensor]:
    """Return the parameters that Wan has too: the video stream's and the shared ones."""
    added = ("cross_modulation", "reference")
    return {
        name: p
        for name, p in transformer.named_parameters()
        if not (name.startswith("r.") or ".r." in name or ".ray_" in name or name.endswith(added))
    }


@torch.no_grad()
def copy_to_ray_stream(transformer: WanJointTransformer) -> None:
    """Set every parameter of the ray stream to the video stream's of the same place.

    The layers in and out of Pluecker rays have twice the channels: the two images each start as a video's.
    """
    own = dict(transformer.named_parameters())
    for name, p in own.items():
        source = re.sub(r"^r\.", "z.", name).replace(".r.", ".z.").replace(".ray_", ".")
        if source == name:
            continue
        x = own[source]
        if p.shape != x.shape:
            images = transformer.config.ray_channels // transformer.config.codec.channels
            if name.startswith("r.embed."):
                x = torch.cat([x / images] * images, dim=1)  # (D, C, 1, p, q)
            else:
                x = torch.cat([x.unflatten(0, (-1, transformer.config.codec.channels))] * images, dim=1).flatten(0, 1)
        p.copy_(x)


def _tensors(folder: Path) -> Iterator[tuple[Path, str, Tensor]]:
    """Yield (file, name, tensor) of a folder of safetensors, one at a time; an index names the shards."""
    if folder.is_file():
        files = [folder]
    else:
        indices = sorted(folder.glob("*.safetensors.index.json"))
        try:
            shards = {name for i in indices for name in json.loads(i.read_text())["weight_map"].values()}
        except (json.JSONDecodeError, KeyError, AttributeError) as error:
            raise CheckpointError(f"{indices[0]} is not an index of shards: {error!r}") from None
        for name in shards:
            if Path(str(name)).name != name:
                raise CheckpointError(f"{indices[0]} names {name!r}, which may lie outside of its folder")
        files = [folder / name for name in sorted(shards)] or sorted(folder.glob("*.safetensors"))
    if not files:
        pickles = [*folder.glob("*.pth"), *folder.glob("*.bin")]
        hint = " (.pth and .bin are pickles, which are never read; save them as safetensors)" if pickles else ""
        raise CheckpointError(f"{folder} holds no .safetensors{hint}; give the folder of Wan 2.1's weights")
    for file in files:
        try:
            with safe_open(file, framework="pt") as opened:
                for name in opened.keys():
                    yield file, name, opened.get_tensor(name)
        except (SafetensorError, OSError) as error:
            reason = f"is missing, truncated or no safetensors file ({error}); copy it again"
            raise CheckpointError(f"{file} {reason}") from None


@torch.no_grad()
def _fill_vae(codec, folder: Path) -> None:
    """Copy the VAE's weights, and the mean and deviation of its latents from its config.json."""
    state = codec.vae.state_dict()
    missing = set(state)
    for file, name, tensor in _tensors(folder):
        if name not in state or state[name].shape != tensor.shape:
            what = f"{name} {tuple(tensor.shape)}"
            raise CheckpointError(f"{file}: {what} is not of the Wan 2.1 VAE in the layout of diffusers")
        state[name].copy_(tensor)
        missing.discard(name)
    if missing:
        raise CheckpointError(f"{folder} lacks {len(missing)} tensors of the VAE, the first: {min(missing)}")
    about = folder / "config.json"
    try:
        facts = json.loads(about.read_text()) if about.is_file() else {}
        given = {name: torch.tensor(facts[name]) for name in ("latents_mean", "latents_std") if name in facts}
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{about} is not a config of the Wan VAE: {error}") from None
    for name, values in given.items():
        least = 0.0 if name == "latents_std" else -torch.inf
        if values.shape != codec.mean.shape or not ((values > least) & (values < torch.inf)).all():
            raise CheckpointError(f"{about}: {name} must be {len(codec.mean)} finite numbers, deviations above 0")
        getattr(codec, name.removeprefix("latents_")).copy_(values)
