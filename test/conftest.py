# SPDX-License-Identifier: Apache-2.0
"""What every test shares: rclpy (real or embedded), a DDS domain of its own on loopback, the paths of this checkout."""

import functools
import os
import threading
from pathlib import Path

import pytest
from domains import next_domain

import embedded_ros

LOOPBACK = (
    "<CycloneDDS><Domain><General><Interfaces><NetworkInterface name='lo'/></Interfaces>"
    "<AllowMulticast>false</AllowMulticast></General><Discovery><ParticipantIndex>auto</ParticipantIndex>"
    "<MaxAutoParticipantIndex>32</MaxAutoParticipantIndex><Peers><Peer address='127.0.0.1'/></Peers></Discovery>"
    "</Domain></CycloneDDS>"
)
# Tests never talk to a network; the processes that they start inherit this. A setting of the user's own wins.
os.environ.setdefault("CYCLONEDDS_URI", LOOPBACK)
os.environ.setdefault("RMW_IMPLEMENTATION", "rmw_cyclonedds_cpp")

# The real rclpy where ROS 2 is sourced, else the embedded one; before any test file imports it.
RUNTIME = embedded_ros.install()


def _hold_answers_until_goals_are_registered():
    """Lock rclpy's ActionClient: up to 7.1 it registers a goal after it has sent it, and where another thread spins,
    as in these tests, an answer that comes in between is dropped."""
    from rclpy.action import ActionClient

    lock = threading.RLock()

    def locked(function):
        @functools.wraps(function)
        def call(*args, **kwargs):
            with lock:
                return function(*args, **kwargs)

        return call

    for name in ("send_goal_async", "_get_result_async", "_cancel_goal_async", "take_data"):
        setattr(ActionClient, name, locked(getattr(ActionClient, name)))


if RUNTIME == "rclpy":
    _hold_answers_until_goals_are_registered()

@pytest.fixture(autouse=True)
def ros_domain(monkeypatch):
    """Give each test a DDS domain of its own, for itself and the processes it starts; returns its number."""
    domain = next_domain()
    monkeypatch.setenv("ROS_DOMAIN_ID", str(domain))
    return domain


@pytest.fixture
def node(ros_domain):
    """A node of the test's own process."""
    import rclpy
    from rclpy.node import Node

    rclpy.init(args=[])
    made = Node("tester")
    yield made
    made.destroy_node()
    rclpy.try_shutdown()


@pytest.fixture(scope="module")
def peer(ros_domain):
    """A camera and a listener beside the node processes of a module, which has one `ros_domain` for all its tests."""
    from wire import Peer

    peer = Peer()
    yield peer
    peer.close()


@pytest.fixture(scope="session")
def repository():
    """The root of this checkout."""
    return Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_data(repository):
    """The folder of shared test data (RAP_DATA, or ../shared/data beside the checkout); skips where there is none."""
    folder = Path(os.environ.get("RAP_DATA", repository.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"needs the shared clips and textures: set RAP_DATA (looked in {folder})")
    return folder


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    """A pool of six rendered clips."""
    import torch

    from rays_as_pixels_training.data.procedural import ClipConfig, ClipPool, fill

    folder = tmp_path_factory.mktemp("pool")
    threads = torch.get_num_threads()
    fill(folder, slots=6, first_seed=0, stride=1, offset=0, textures=None, config=ClipConfig(), limit=6)
    torch.set_num_threads(threads)
    return ClipPool(folder)
