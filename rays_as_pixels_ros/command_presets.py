# SPDX-License-Identifier: Apache-2.0
"""`rays-as-pixels presets`: the sizes that a model can have, counted without making their weights."""

from __future__ import annotations

import json

from .arguments import command_parser


def main(argv: list[str]) -> int:
    """Print the table of presets, and write it as JSON if asked to."""
    parser = command_parser("presets", "List the presets: parameters of the transformer, tokens and size of a window.")
    parser.add_argument("--json", metavar="FILE", help="write {NAME: {parameters, video_tokens, ...}} to FILE as well")
    args = parser.parse_args(argv)
    facts = preset_facts()
    rows = [("preset", *(key.replace("_", " ") for key in next(iter(facts.values()))))]
    rows += [(name, *(f"{value:,}" for value in fact.values())) for name, fact in facts.items()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for name, *values in rows:
        print("  ".join([f"{name:<{widths[0]}}", *(f"{v:>{w}}" for v, w in zip(values, widths[1:], strict=True))]))
    if args.json:
        from rays_as_pixels_model.files import write_text

        write_text(args.json, json.dumps(facts, indent=1) + "\n")
    return 0


def preset_facts() -> dict[str, dict[str, int]]:
    """Return what the JSON file holds; the transformers are made on the meta device."""
    import torch

    from rays_as_pixels_model.config import PRESETS
    from rays_as_pixels_model.joint import build_transformer

    facts = {}
    for name, config in PRESETS.items():
        with torch.device("meta"):
            parameters = sum(p.numel() for p in build_transformer(config).parameters())
        video, rays = config.tokens
        facts[name] = {
            "parameters": parameters,
            "video_tokens": video,
            "ray_tokens": rays,
            "frames": config.frames,
            "height": config.height,
            "width": config.width,
        }
    return facts
