# SPDX-License-Identifier: Apache-2.0
"""Model configuration and the table of presets. A new size is one entry in `PRESETS`."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields


class ConfigError(ValueError):
    """A configuration that cannot be built; the message holds the value and what would be right."""


def _check_counts(config, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if type(value) is not int or value < 1:
            raise ConfigError(f"{name} must be a whole number of at least 1, got {value!r}")


@dataclass(frozen=True)
class CodecConfig:
    """The linear space-time codec (`codec.py`): layout 1 + 4k frames, 8x8 pixels to a cell."""

    channels: int = 48
    cell: int = 8
    group: int = 4

    def __post_init__(self) -> None:
        _check_counts(self, "channels", "cell", "group")
        if not 18 <= self.channels <= 3 * self.cell**2:
            raise ConfigError(f"channels must be 18 (the polynomials) to {3 * self.cell**2}, got {self.channels}")


@dataclass(frozen=True)
class TransformerConfig:
    """The joint transformer (`transformer.py`).

    Attributes:
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

    def __post_init__(self) -> None:
        _check_counts(self, "width", "depth", "heads", "ffn_width", "patch")
        if self.width % self.heads or (self.width // self.heads) % 2:
            raise ConfigError(f"width {self.width} must split into {self.heads} heads of even size")
        if self.prediction not in ("data", "velocity"):
            raise ConfigError(f"prediction must be 'data' or 'velocity', got {self.prediction!r}")


@dataclass(frozen=True)
class ModelConfig:
    """One preset: window size, codec and transformer.

    Attributes:
        frames: window length T of a video, 1 + 4k.
        height, width: pixels of a frame; raxel images have half of each.
    """

    preset: str
    frames: int
    height: int
    width: int
    codec: CodecConfig
    transformer: TransformerConfig

    def __post_init__(self) -> None:
        _check_counts(self, "frames", "height", "width")
        step = 2 * self.codec.cell * self.transformer.patch
        if self.height % step or self.width % step:
            raise ConfigError(f"height and width must be multiples of {step}, got {self.height}x{self.width}")
        if (self.frames - 1) % self.codec.group:
            raise ConfigError(f"frames must be 1 + {self.codec.group} k, got {self.frames}")

    @property
    def groups(self) -> tuple[int, ...]:
        """Frames per latent frame of a video window: the first frame alone, then 4 to 1."""
        return (1,) + (self.codec.group,) * ((self.frames - 1) // self.codec.group)

    def to_dict(self) -> dict:
        """Return the nested dict that config.json holds."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict) -> ModelConfig:
        """Build from `to_dict`'s form; raises ConfigError naming an unknown or missing field."""
        if not isinstance(data, dict):
            raise ConfigError(f"model config must be a JSON object, got {type(data).__name__}")
        parts = {"codec": CodecConfig, "transformer": TransformerConfig}
        return _build(cls, {k: _build(parts[k], v, k) if k in parts else v for k, v in data.items()}, "model config")


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
    ),
    # 1,776 tokens a window (960 video, 816 ray): for a GPU
    "tiny": ModelConfig(
        "tiny",
        frames=17,
        height=96,
        width=128,
        codec=CodecConfig(channels=48),
        transformer=TransformerConfig(width=256, depth=8, heads=4, ffn_width=768, patch=1),
    ),
}


def preset(name: str) -> ModelConfig:
    """Return a preset by name; raises ConfigError that lists the names."""
    if name not in PRESETS:
        raise ConfigError(f"preset {name!r} is not known, use one of {', '.join(PRESETS)}")
    return PRESETS[name]
