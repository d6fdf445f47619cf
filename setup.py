# SPDX-License-Identifier: Apache-2.0
"""Package rays_as_pixels_ros for pip and colcon; folders get import names that cannot collide in a shared workspace.

`model/` is imported as rays_as_pixels_model, `training/` and `benchmarks/` likewise. There is no identity entry for
rays_as_pixels_ros in package_dir: colcon's symlink installs fail on one.
"""

from glob import glob
from os.path import isdir

from setuptools import find_packages, setup

NAME = "rays_as_pixels_ros"
MAPPED = {
    "rays_as_pixels_model": "model",
    "rays_as_pixels_training": "training",
    "rays_as_pixels_benchmarks": "benchmarks",
}
# The .action and .srv texts travel inside embedded_ros, so that a plain `pip install .` finds them and nothing is
# written to share/rays_as_pixels_interfaces, which belongs to the real interfaces package. A colcon symlink install
# runs this file in a folder of links without that one; embedded_ros then reads the texts in the checkout.
INTERFACE_TEXTS = {"embedded_ros.interfaces": "rays_as_pixels_interfaces"} if isdir("rays_as_pixels_interfaces") else {}

# What only some users need: methods and metrics to compare with, curves of a training run, the Wan 2.1 backbone.
PEERS = ["evo", "pycolmap"]
TRAINING = ["tensorboard"]
WAN = ["diffusers"]
# Exported models: onnx writes them, onnxruntime (or onnxruntime-gpu in its place) runs them.
ONNX = ["onnx", "onnxruntime"]


def mapped_packages(name, folder):
    """List the package `name` that lives in `folder`, with its subpackages."""
    return [name] + [f"{name}.{found}" for found in find_packages(folder)]


def node(module):
    """Name the function that runs a node: it puts rclpy in place first where no ROS 2 is sourced."""
    return f"{module} = {NAME}.entry_points:{module}"


setup(
    name=NAME,
    version="0.1.0",
    description="Camera stream to trajectory and novel views on request: one joint diffusion model, as ROS 2 nodes",
    license="Apache-2.0",
    maintainer="Rays as Pixels maintainers",
    maintainer_email="maintainers@rays-as-pixels.example",
    python_requires=">=3.10",
    packages=find_packages(include=[NAME, f"{NAME}.*", "embedded_ros", "embedded_ros.*"])
    + [package for name, folder in MAPPED.items() for package in mapped_packages(name, folder)]
    + list(INTERFACE_TEXTS),
    package_dir={**MAPPED, **INTERFACE_TEXTS},
    package_data={
        "rays_as_pixels_model": ["weights/*", "weights/*/*"],
        "embedded_ros.interfaces": ["action/*.action", "srv/*.srv", "msg/*.msg"],
    },
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{NAME}"]),
        (f"share/{NAME}", ["package.xml"]),
        (f"share/{NAME}/launch", sorted(glob("launch/*.launch.py"))),
        (f"share/{NAME}/config", sorted(glob("config/*"))),
    ],
    zip_safe=False,
    install_requires=[
        "cyclonedds==11.0.1",
        "einops",
        "imageio-ffmpeg",
        "matplotlib",
        "numpy",
        "opencv-python-headless",
        "pillow",
        "pyyaml",
        "rich",
        "rosbags",
        "safetensors",
        "scikit-image",
        "scipy",
        "torch",
        "transforms3d",
        "tyro",
    ],
    extras_require={
        "test": ["colcon-common-extensions", "hypothesis", "mcap", "pytest", "pytest-timeout", "pytest-xdist", "ruff"]
        + ["webdataset"]  # another reader of the shards that we write
        + PEERS
        + TRAINING
        + WAN
        + ONNX,
        "eval": PEERS,
        "train": TRAINING,
        "wan": WAN,
        "onnx": ONNX,
        "gpu": ["onnxruntime-gpu"],
    },
    entry_points={
        "console_scripts": [
            f"rays-as-pixels = {NAME}.cli:main",
            node("trajectory_node"),
            node("view_synthesis_node"),
            node("camera_player"),
            node("render_client"),
            node("rays_as_pixels"),
        ],
    },
)
