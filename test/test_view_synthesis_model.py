# SPDX-License-Identifier: Apache-2.0
"""view_synthesis_node over the shipped model: what its feedback shows is what comes back, and goals leave no memory."""

import time
from pathlib import Path

import numpy as np
import pytest
from view_goals import pose_at, render, serving
from wire import module_domain, until

from rays_as_pixels_interfaces.action import RenderViews
from rays_as_pixels_ros import conversions as c

pytestmark = pytest.mark.slow
ENTRY = ("-m", "rays_as_pixels_ros.entry_points")
MIB = 2**20


@pytest.fixture(scope="module")
def ros_domain():
    """One domain for all tests here: the processes live as long as the module."""
    with module_domain() as domain:
        yield domain


@pytest.fixture(scope="module")
def views(peer, tmp_path_factory):
    settings = ["metres_per_unit:=1.0", "max_memory_mib:=64"]
    with serving(peer, tmp_path_factory.mktemp("model"), *settings, command=ENTRY) as process:
        until(lambda: peer.image.get_subscription_count(), "the subscription of view_synthesis_node")

        def served():
            peer.show(12)
            time.sleep(0.2)
            return render(process, RenderViews.Goal(poses=[pose_at()], steps=1)).result.success

        until(served, "a view")
        yield process


def test_the_preview_is_what_the_render_becomes(peer, views):
    seen = []
    rendered = peer.got["view_synthesis_node/rendered/image_raw"]
    rendered.clear()
    goal = RenderViews.Goal(poses=[pose_at(z=0.1), pose_at(x=0.1)], steps=3, seed=5)
    result = render(views, goal, lambda message: seen.append(message.feedback)).result
    assert result.success, result.message
    until(lambda: len(rendered) == 2, "the rendered topic")
    for number, image in enumerate(result.images):
        last = [feedback.preview for feedback in seen if feedback.step == 3 * (number + 1)]
        assert len(last) == 1, "feedback of every view's last step"
        np.testing.assert_array_equal(c.image_to_rgb(last[0]), c.image_to_rgb(image))
        np.testing.assert_array_equal(c.image_to_rgb(rendered[number]), c.image_to_rgb(image))


def test_predicted_memory_that_does_not_fit_is_refused(peer, views):
    image = c.rgb_to_image(np.zeros((1500, 3200, 3), np.uint8), 0, "given")
    pose = pose_at(frame="given")
    goal = RenderViews.Goal(poses=[pose], source_images=[image], source_poses=[pose])
    answer = render(views, goal)
    assert "predicted memory does not fit on cpu: " in answer.result.message
    assert "predicted and 20% for its error) are more than 64.0 MiB available" in answer.result.message
    assert answer.result.message in views.text()


def test_goals_in_a_row_leave_no_memory_behind(peer, views):
    def resident():
        lines = Path(f"/proc/{views.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))

    goal = RenderViews.Goal(poses=[pose_at(z=0.1)], steps=1)
    sizes = []
    for wait in (0.0, 11.0, 11.0):  # the server keeps results for 10 s, of as many goals as come in that time
        time.sleep(wait)
        for _ in range(150):
            result = render(views, goal).result
            assert result.success, result.message
        sizes.append(resident())
    # A goal holds 54 KiB of pictures (its preview, its view, the view that is published): 150 kept ones would be 8 MiB.
    # Buffers of the middleware still fill up by 1 or 2 MiB.
    assert sizes[-1] - sizes[-2] < 4 * MIB, [size / MIB for size in sizes]
