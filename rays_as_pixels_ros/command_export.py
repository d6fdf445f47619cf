# SPDX-License-Identifier: Apache-2.0
"""`rays-as-pixels export`: a checkpoint to a folder of ONNX graphs, which the nodes and commands take as `checkpoint`.

The folder runs with numpy and onnxruntime alone; writing it needs torch and onnx.
"""

from __future__ import annotations

import json

from .arguments import command_parser


def main(argv: list[str]) -> int:
    """Run the command."""
    parser = command_parser(
        "export",
        "Write a checkpoint as ONNX graphs, compare them with torch on all three tasks, and print the largest "
        "differences. Give the folder as --checkpoint, or as the nodes' parameter `checkpoint`.",
    )
    parser.add_argument("--checkpoint", metavar="DIR", help="checkpoint folder; without it, the one that is shipped")
    parser.add_argument("--out", default="out/onnx", metavar="DIR", help="folder for the graphs")
    parser.add_argument("--precision", choices=("fp32", "fp16", "int8"), default="fp32",
                        help="of the transformer; int8: weights, activations as they come")
    parser.add_argument("--preset", metavar="NAME", help="fail if the checkpoint is of another preset")
    parser.add_argument("--whole-window", action="store_true",
                        help="compare a window of the preset's full length also where it takes minutes")
    parser.add_argument("--json", metavar="FILE", help="write what the folder says of itself to FILE as well")
    args = parser.parse_args(argv)
    # Heavy imports only now: --help must answer at once.
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
    except ImportError as error:
        cure = "pip install 'rays_as_pixels_ros[onnx]'"
        raise RuntimeError(f"export needs onnx and onnxruntime ({error}); {cure}") from None
    from rays_as_pixels_model.export import LIMITS, export
    from rays_as_pixels_model.files import write_text

    about = export(args.checkpoint, args.out, args.precision, args.preset, args.whole_window)
    parity = ", ".join(f"{part} {value:.2g}" for part, value in about["parity"].items())
    print(f"largest differences from torch (allowed: {LIMITS[args.precision]:g}): {parity}")
    print(f"wrote preset {about['preset']} in {args.precision} to {args.out}")
    if args.json:
        write_text(args.json, json.dumps(about, indent=1) + "\n")
    return 0
