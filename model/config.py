# SPDX-License-Identifier: Apache-2.0
"""Model configuration and the table of presets. A new size is one entry in `PRESETS`."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields, replace
from typing import ClassVar

_TRACKED_WIDTH = 192  # pixels: half as many track half as exactly, twice as many take longer (docs/model.md)


class ConfigError(ValueError):
    """A configuration that cannot be built; the message holds the value and what would be right."""


def _check_counts(config, *names: str, least: int = 1) -> None:
    for name in names:
        value = getattr(config, name)
        if type(value) is not int or value < least:
            raise ConfigError(f"{name} must be a whole number of at least {least}, got {value!r}")


@dataclass(frozen=True)
class CodecConfig:
    """The linear space-time codec (`codec.py`): layout 1 + 4k frames, 8x8 pixels to a cell."""

    channels: int = 48
    cell: int = 8
    group: int = 4

    ray_scale: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        _check_counts(self, "channels", "cell", "group")
        if not 18 <= self.channels <= 3 * self.cell**2:
            raise ConfigError(f"channels must be 18 (the polynomials) to {3 * self.cell**2}, got {self.channels}")


def _check_transformer(config) -> None:
    """What both transformers need: whole heads of even size, and known switches."""
    if config.width % config.heads or (config.width // config.heads) % 2:
        raise ConfigError(f"width {config.width} must split into {config.heads} heads of even size")
    _check_choice("attention", config.attention, ATTENTIONS)
    _check_choice("projections", config.projections, PROJECTIONS)


ATTENTIONS = ("dsca", "joint")
PROJECTIONS = ("separate", "shared")
CAMERA_ENCODINGS = ("raxel", "pluecker")
VIEWS = ("picture", "warped")


def _check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError(f"{name} must be {' or '.join(map(repr, choices))}, got {value!r}")


@dataclass(frozen=True)
class TransformerConfig:
    """The joint transformer (`transformer.py`).

    Attributes:
        prediction: what the heads give, 'data' or 'velocity'.
        attention: 'dsca', or 'joint': one attention over all tokens of both modalities (the paper's ablation).
        projections: 'separate', or 'shared': z and r, and the self and the cross step, use the same queries, keys,
            values and output projection, as the Wan presets do.
        embed_hidden: width of a gated layer beside the linear embedding of video tokens; 0 has none. A video token of 4
            frames has more numbers than the model has channels: products of its gradients in space and time, which are
            its motion, are best taken before that bottleneck.
    """

    width: int = 128
    depth: int = 6
    heads: int = 4
    ffn_width: int = 256
    patch: int = 2
    prediction: str = "data"
    embed_hidden: int = 0
    attention: str = "dsca"
    projections: str = "separate"

    def __post_init__(self) -> None:
        _check_counts(self, "width", "depth", "heads", "ffn_width", "patch")
        _check_counts(self, "embed_hidden", least=0)
        _check_choice("prediction", self.prediction, ("data", "velocity"))
        _check_transformer(self)


@dataclass(frozen=True)
class WanCodecConfig:
    """The frozen Wan 2.1 VAE (`wan_codec.py`): 1 + 4k frames, 8x8 pixels to a cell.

    Attributes:
        channels: of a latent. base, blocks: width of the first layer and residual blocks per level of the VAE.
        ray_scale: raxels are multiplied by it before the VAE, whose decoder clamps to [-1, 1].
    """

    kind: str = "wan"
    channels: int = 16
    base: int = 96
    blocks: int = 2
    ray_scale: float = 0.5

    cell: ClassVar[int] = 8
    group: ClassVar[int] = 4

    def __post_init__(self) -> None:
        _check_counts(self, "channels", "base", "blocks")
        if type(self.ray_scale) not in (int, float) or not 0 < self.ray_scale < math.inf:
            raise ConfigError(f"ray_scale must be a positive, finite number, got {self.ray_scale!r}")
        _check_choice("kind", self.kind, ("wan",))


@dataclass(frozen=True)
class WanTransformerConfig:
    """The joint transformer around Wan 2.1 (`wan.py`); widths as in Wan's own config.

    Attributes:
        text_width, text_tokens: of the prompt embeddings; shorter prompts are padded with zeros, as Wan was trained.
        time_features: sinusoids of a time.
        attention, projections: see `TransformerConfig`; 'separate' here gives the rays their own copies.
    """

    kind: str = "wan"
    width: int = 5120
    depth: int = 40
    heads: int = 40
    ffn_width: int = 13824
    patch: int = 2
    text_width: int = 4096
    text_tokens: int = 512
    time_features: int = 256
    attention: str = "dsca"
    projections: str = "shared"

    prediction: ClassVar[str] = "velocity"

    def __post_init__(self) -> None:
        counts = ("width", "depth", "heads", "ffn_width", "patch", "text_width", "text_tokens", "time_features")
        _check_counts(self, *counts)
        _check_choice("kind", self.kind, ("wan",))
        _check_transformer(self)


@dataclass(frozen=True)
class ModelConfig:
    """One preset: window size, codec and transformer.

    Attributes:
        frames: window length T of a video, 1 + 4k.
        height, width: pixels of a frame; raxel images have half of each.
        camera_encoding: what of a camera passes through the codec: 'raxel' (d + o, 3 channels), or 'pluecker' (d and
            o x d, two images of 3 channels; the paper's ablation).
        views: what is denoised of a single image: 'picture', itself, from sources as they were taken; or 'warped', its
            latent minus that of what the sources show of it, warped into its camera (`view_sources.py`); in mixed
            sequences, whose targets look in several directions, minus the reference's as it is.
        pose_passes: times a window is estimated by default; before each pass but the first its frames are turned back
            by the rotations found so far (`turning.py`). Above 1 training turns windows, too.
    """

    preset: str
    frames: int
    height: int
    width: int
    codec: CodecConfig | WanCodecConfig
    transformer: TransformerConfig | WanTransformerConfig
    camera_encoding: str = "raxel"
    views: str = "picture"
    pose_passes: int = 1

    def __post_init__(self) -> None:
        _check_counts(self, "frames", "height", "width", "pose_passes")
        _check_choice("camera_encoding", self.camera_encoding, CAMERA_ENCODINGS)
        if self.views == "difference":
            raise ConfigError("views 'difference' (sources turned, not warped) are those of an earlier version: write "
                              "'warped' into config.json; poses stay as they are, views want training (train --init)")
        _check_choice("views", self.views, VIEWS)
        if isinstance(self.codec, WanCodecConfig) != isinstance(self.transformer, WanTransformerConfig):
            raise ConfigError("the Wan transformer goes with the Wan codec, and neither with another")
        if self.views == "warped" and isinstance(self.codec, WanCodecConfig):
            raise ConfigError("views 'warped' need the linear codec (what it leaves out is added back); take 'picture'")
        step = 2 * self.codec.cell * self.transformer.patch
        if self.height % step or self.width % step:
            raise ConfigError(f"height and width must be multiples of {step}, got {self.height}x{self.width}")
        if (self.frames - 1) % self.codec.group:
            raise ConfigError(f"frames must be 1 + {self.codec.group} k, got {self.frames}")

    @property
    def groups(self) -> tuple[int, ...]:
        """Frames per latent frame of a video window: the first frame alone, then 4 to 1."""
        return (1,) + (self.codec.group,) * ((self.frames - 1) // self.codec.group)

    @property
    def picture_size(self) -> tuple[int, int]:
        """(width, height) of pictures that points are tracked in (`refinement.py`): a whole multiple of the model's."""
        times = max(1, round(_TRACKED_WIDTH / self.width))
        return times * self.width, times * self.height

    @property
    def tokens(self) -> tuple[int, int]:
        """Video and ray tokens of a window."""
        cell = self.codec.cell * self.transformer.patch
        per_frame = (self.height // cell) * (self.width // cell)
        return len(self.groups) * per_frame, self.frames * (per_frame // 4)

    @property
    def ray_channels(self) -> int:
        """Channels of a ray latent: those of one image, or of two for Pluecker rays."""
        return self.codec.channels * (2 if self.camera_encoding == "pluecker" else 1)

    def switched(self, **switches: str) -> ModelConfig:
        """Return this config with ablation switches set: attention, projections, camera_encoding.

        Raises:
            ConfigError: no such switch, or no such setting of it.
        """
        known = ("attention", "projections", "camera_encoding")
        if set(switches) - set(known):
            raise ConfigError(f"switches are {', '.join(known)}, got {', '.join(sorted(set(switches) - set(known)))}")
        inner = {k: v for k, v in switches.items() if k != "camera_encoding"}
        encoding = switches.get("camera_encoding", self.camera_encoding)
        return replace(self, transformer=replace(self.transformer, **inner), camera_encoding=encoding)

    def to_dict(self) -> dict:
        """Return the nested dict that config.json holds."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict) -> ModelConfig:
        """Build from `to_dict`'s form; raises ConfigError naming an unknown or missing field."""
        if not isinstance(data, dict):
            raise ConfigError(f"model config must be a JSON object, got {type(data).__name__}")
        parts = {"codec": (CodecConfig, WanCodecConfig), "transformer": (TransformerConfig, WanTransformerConfig)}
        built = {}
        for name, value in data.items():
            if name in parts:
                ours, wan = parts[name]
                value = _build(wan if isinstance(value, dict) and value.get("kind") == "wan" else ours, value, name)
            built[name] = value
        return _build(cls, built, "model config")


def _build(cls: type, data: dict, where: str):
    names = {f.name for f in fields(cls)}
    if not isinstance(data, dict) or set(data) - names:
        unknown = sorted(set(data) - names) if isinstance(data, dict) else data
        raise ConfigError(f"{where} has unknown fields {unknown}; known are {sorted(names)}")
    try:
        return cls(**data)
    except TypeError as error:
        raise ConfigError(f"{where}: {error}") from None


PRESETS: dict[str, ModelConfig] = {
    # 78 tokens a window (48 video, 30 ray): sized for training on two CPU cores, docs/training_log.md
    "micro": ModelConfig(
        "micro",
        frames=5,
        height=64,
        width=96,
        codec=CodecConfig(channels=48),
        transformer=TransformerConfig(width=128, depth=6, heads=4, ffn_width=256, embed_hidden=256),
        views="warped",
        pose_passes=2,
    ),
    # 1,776 tokens a window (960 video, 816 ray): for a GPU
    "tiny": ModelConfig(
        "tiny",
        frames=17,
        height=96,
        width=128,
        codec=CodecConfig(channels=48),
        transformer=TransformerConfig(width=256, depth=8, heads=4, ffn_width=768, patch=1),
        views="warped",
        pose_passes=2,
    ),
    # 4,140 tokens a window (2,160 video, 1,980 ray), 141M parameters: for one large GPU
    "small": ModelConfig(
        "small",
        frames=33,
        height=192,
        width=320,
        codec=CodecConfig(channels=48),
        transformer=TransformerConfig(width=640, depth=10, heads=10, ffn_width=1728),
        views="warped",
        pose_passes=2,
    ),
    # Wan 2.1 text-to-video and a ray stream: 64,350 tokens a window (32,760 video, 31,590 ray)
    "wan-1.3b": ModelConfig(
        "wan-1.3b",
        frames=81,
        height=480,
        width=832,
        codec=WanCodecConfig(),
        transformer=WanTransformerConfig(width=1536, depth=30, heads=12, ffn_width=8960),
    ),
    "wan-14b": ModelConfig(
        "wan-14b", frames=81, height=480, width=832, codec=WanCodecConfig(), transformer=WanTransformerConfig()
    ),
}


def preset(name: str) -> ModelConfig:
    """Return a preset by name; raises ConfigError that lists the names."""
    if name not in PRESETS:
        raise ConfigError(f"preset {name!r} is not known, use one of {', '.join(PRESETS)}")
    return PRESETS[name]
