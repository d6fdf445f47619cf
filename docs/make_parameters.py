# SPDX-License-Identifier: Apache-2.0
"""Write docs/parameters.md from the tables in rays_as_pixels_ros/parameters.py: python docs/make_parameters.py"""

from pathlib import Path

import embedded_ros

embedded_ros.install()

from rays_as_pixels_model.files import write_text  # noqa: E402
from rays_as_pixels_ros import parameters  # noqa: E402

PAGE = Path(__file__).with_name("parameters.md")
TABLES = {
    "trajectory_node": parameters.TRAJECTORY,
    "view_synthesis_node": parameters.VIEW_SYNTHESIS,
    "camera_player": parameters.CAMERA_PLAYER,
}
HEAD = """# Parameters of the nodes

Made by `python docs/make_parameters.py`; the source is `rays_as_pixels_ros/parameters.py`. `config/*.yaml` holds the
same defaults, `ros2 param describe NODE NAME` tells the same on a running node, and `rays-as-pixels node NODE --help`
without one. Values are read by the transition `configure`: a bad one fails there, with the reason, and after
`ros2 param set` the transition can be tried again. `rays_as_pixels` runs the first two nodes in one process.
"""


def page() -> str:
    """Make the text of the page."""
    parts = [HEAD]
    for node, table in TABLES.items():
        parts.append(f"\n## {node}\n\n| parameter | default | may be | meaning |\n|---|---|---|---|\n")
        parts += [_row(parameter) for parameter in table]
    return "".join(parts)


def _row(parameter: parameters.Parameter) -> str:
    default = str(parameter.default).lower() if isinstance(parameter.default, bool) else str(parameter.default)
    if parameter.choices:
        may = ", ".join(f"`{choice}`" if choice else "empty" for choice in parameter.choices)
    elif parameter.low is not None:
        may = f"{_number(parameter.low)} to {_number(parameter.high)}"
    else:
        may = {bool: "true, false", str: "text"}[type(parameter.default)]
    return f"| `{parameter.name}` | {f'`{default}`' if default else 'empty'} | {may} | {parameter.description} |\n"


def _number(value: float) -> str:
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:g}"


if __name__ == "__main__":
    write_text(PAGE, page())
