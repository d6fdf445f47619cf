# SPDX-License-Identifier: Apache-2.0
"""view_synthesis_node as a process, met over the wire: views, feedback, cancel, and every refusal."""

import time
from contextlib import contextmanager

import numpy as np
import pytest
from action_msgs.msg import GoalStatus
from pixel_pipeline import path, picture
from rclpy.action import ActionClient
from sensor_msgs.msg import CameraInfo
from view_goals import brightness, pose_at, render, result_of, serving
from wire import (
    BAD_FRAMES,
    CAMERA,
    OPTICAL,
    WAIT,
    WORLD,
    bad_image,
    bad_info,
    module_domain,
    play,
    show_until_refused,
    until,
)

from rays_as_pixels_interfaces.action import Imagine, RenderViews
from rays_as_pixels_ros import conversions as c

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ros_domain():
    """One domain for all tests here: the processes live as long as the module."""
    with module_domain() as domain:
        yield domain


@pytest.fixture(scope="module")
def views(peer, tmp_path_factory):
    """A view_synthesis_node, with an action client."""
    arguments = [f"fixed_frame:={WORLD}", "steps:=5", "max_views:=6", "queue_size:=1", "tf_timeout:=0.3"]
    arguments += ["max_memory_mib:=24", "max_total_pixels:=20000000", "max_source_images:=3"]
    with serving(peer, tmp_path_factory.mktemp("views"), *arguments) as process:
        yield process


def test_without_an_image_a_goal_is_refused(peer, views):
    answer = render(views, RenderViews.Goal(poses=[pose_at(z=0.5)]))
    assert answer.status == GoalStatus.STATUS_ABORTED and not answer.result.success
    assert "no source frame yet" in answer.result.message and answer.result.message in views.text()


def test_too_little_motion_aborts_with_that_reason(peer, views):
    until(lambda: peer.image.get_subscription_count(), "the subscription of view_synthesis_node")
    for _ in range(6):
        peer.show(4, truth=True)
        time.sleep(0.05)
    goal = RenderViews.Goal(poses=[pose_at(z=0.5)])
    until(lambda: "hardly moved" in render(views, goal).result.message, "the refusal")
    assert "metres_per_unit cannot be estimated: the camera hardly moved" in views.text()


@pytest.fixture(scope="module")
def moving(peer, views):
    """The stamps of images that were shown, the last one the newest."""
    stamps = list(play(peer, range(10, 34), truth=True))
    time.sleep(0.3)
    return stamps


def test_views_in_order_with_feedback_and_on_topics(peer, views, moving):
    seen = []
    goal = RenderViews.Goal(poses=[pose_at(z=0.2), pose_at(x=0.6), pose_at()], steps=6, seed=3)
    for name in peer.got:
        peer.got[name].clear()
    answer = render(views, goal, lambda message: seen.append(message.feedback))
    assert answer.status == GoalStatus.STATUS_SUCCEEDED and answer.result.success and not answer.result.message
    # The pixel pipeline paints the distance from the source, at 2 metres a unit.
    assert [brightness(image) for image in answer.result.images] == [10, 30, 0]
    assert answer.result.metres_per_unit == 2.0
    info = answer.result.camera_infos[1]
    assert (info.width, info.height) == (96, 64) and info.k[0] == pytest.approx(CAMERA.fx * 96 / 72)
    assert seen and {f.total for f in seen} == {18} and [f.step for f in seen] == sorted({f.step for f in seen})
    assert (seen[-1].preview.width, seen[-1].preview.height) == (96, 64)
    rendered = peer.got["view_synthesis_node/rendered/image_raw"]
    until(lambda: len(rendered) == 3, "the rendered topic")
    assert [brightness(image) for image in rendered] == [10, 30, 0]
    until(lambda: len(peer.got["view_synthesis_node/rendered/camera_info"]) == 3, "its camera_info")


def test_poses_in_any_tf_frame(peer, views, moving):
    newest = path()[33]
    at = newest[:3, 3] + [0.0, 0.8, 0.0]
    answer = render(views, RenderViews.Goal(poses=[pose_at(*at, frame=WORLD)]))
    assert answer.result.success, answer.result.message
    assert brightness(answer.result.images[0]) == 40


def test_a_stamp_names_the_source_image(peer, views, moving):
    """The pose of a camera in the world, asked for from an older image, is measured from that image."""
    answer = render(views, RenderViews.Goal(poses=[pose_at(y=0.4, stamp=moving[-6])]))
    assert answer.result.success, answer.result.message
    assert brightness(answer.result.images[0]) == 20
    assert c.stamp_ns(answer.result.images[0].header.stamp) == moving[-6]
    answer = render(views, RenderViews.Goal(poses=[pose_at(y=0.4, stamp=moving[-6] - 1)]))
    assert not answer.result.success and "no image with stamp" in answer.result.message


def test_source_images_of_the_goal(peer, views, moving):
    count = 5
    goal = RenderViews.Goal(poses=[pose_at(x=1.0, frame=WORLD)], source_camera_info=c.camera_info(CAMERA, 0, ""))
    for number in range(count):
        goal.source_images.append(c.rgb_to_image(picture(number), 0, "given"))
        goal.source_poses.append(pose_at(x=0.2 * number, frame=WORLD))
    answer = render(views, goal)
    assert answer.result.success, answer.result.message
    assert brightness(answer.result.images[0]) == 50
    goal.source_images, goal.source_poses = goal.source_images[:1], goal.source_poses[:1]
    answer = render(views, goal)
    assert not answer.result.success and "1 source images are too few" in answer.result.message


def goal_with(**changes):
    return RenderViews.Goal(**{"poses": [pose_at(z=0.2)], **changes})


def goal_from(image, info=None):
    return goal_with(source_images=[image], source_poses=[pose_at()], source_camera_info=info or CameraInfo())


def huge_image():
    return c.rgb_to_image(np.zeros((1100, 2000, 3), np.uint8), 0, OPTICAL)


def image_of(number, height=48, width=72):
    return c.rgb_to_image(picture(number, height, width), 0, "given")


def goal_of_two_sizes():
    return goal_with(source_images=[bad_image(), image_of(3, 24, 36)], source_poses=[pose_at(), pose_at()])


BAD_GOALS = [
    (lambda: goal_with(poses=[]), "no poses"),
    (lambda: goal_with(poses=[pose_at(x=float("nan"))]), "poses[0]: pose has a value that is not finite"),
    (lambda: goal_with(poses=[pose_at(z=float("inf"))]), "poses[0]: pose has a value that is not finite"),
    (lambda: goal_with(poses=[pose_at(), pose_at(w=2.0)]), "poses[1]: quaternion"),
    (lambda: goal_with(poses=[pose_at(w=0.0)]), "poses[0]: quaternion"),
    (lambda: goal_with(poses=[pose_at(frame="nowhere")]), "no transform from 'nowhere' to 'camera_optical'"),
    (lambda: goal_with(poses=[pose_at(frame="")]), "poses[0]: frame_id is empty"),
    (lambda: goal_with(poses=[pose_at()] * 7), "7 poses asked for; max_views is 6"),
    (lambda: goal_with(steps=100000), "100000 steps asked for; max_steps is 200"),
    (lambda: goal_with(camera_info=bad_info(k=[0.0] * 9)), "K is all zero"),
    (lambda: goal_with(camera_info=bad_info(width=100000, height=100000)), "max_image_pixels"),
    (lambda: goal_with(camera_info=bad_info(k=[float("nan")] * 9)), "camera_info: "),
    (lambda: goal_with(camera_info=bad_info(distortion_model="bent")), "'bent'"),
    (lambda: goal_with(poses=[pose_at()] * 6, camera_info=bad_info(width=2000, height=2000)), "max_total_pixels"),
    (lambda: goal_from(huge_image()), "predicted memory does not fit on cpu: 36.4 MiB (30.3 predicted"),
    (lambda: goal_with(source_images=[bad_image()]), "1 source_images but 0 source_poses"),
    (lambda: goal_from(bad_image(encoding="hsv9")), "source_images[0]: image enc"),
    (lambda: goal_from(bad_image(width=0, height=0)), "source_images[0]: image is 0x0"),
    (lambda: goal_from(bad_image(step=5)), "source_images[0]: image step is 5"),
    (lambda: goal_from(bad_image(data=bytes(100))), "source_images[0]: image has 100 bytes"),
    (lambda: goal_of_two_sizes(), "source_images[1] is 36x24, but source_images[0] is 72x48"),
    (lambda: goal_from(bad_image(), bad_info(width=7)), "camera_info is for 7x48 images, but the image is 72x48"),
]  # fmt: skip


@pytest.mark.parametrize("make, reason", BAD_GOALS, ids=[reason[:28] for _, reason in BAD_GOALS])
def test_bad_goals_are_refused_with_the_reason_in_result_and_log(peer, views, moving, make, reason):
    answer = render(views, make())
    assert answer.status == GoalStatus.STATUS_ABORTED and not answer.result.success
    assert reason in answer.result.message and "\n" not in answer.result.message
    assert answer.result.message in views.text()
    assert views.alive()


BAD_IMAGINE_GOALS = [
    (dict(frames=9), "9 frames asked for; the model makes up to 5"),
    (dict(steps=100000), "100000 steps asked for; max_steps is 200"),
    (dict(source_images=[bad_image(), bad_image(encoding="hsv9")]), "source_images[1]: image encoding"),
    (dict(source_images=[bad_image(width=0)]), "source_images[0]: image is 0x48; it has no pixels"),
    (dict(source_images=[bad_image(data=bytes(100))]), "source_images[0]: image has 100 bytes"),
    (dict(source_images=[bad_image()] * 4), "4 source_images; max_source_images is 3"),
    (dict(source_images=[bad_image(), image_of(3, 24, 36)]), "source_images[1] is 36x24, but source_images[0] is 72x4"),
    (dict(source_images=[huge_image()] * 3), "predicted memory does not fit on cpu"),
    (dict(source_images=[image_of(3, 4000, 4001)]), "source_images[0] is 4001x4000; max_image_pixels is 16000000"),
    (dict(camera_info=bad_info(k=[0.0] * 9)), "K is all zero"),
    (dict(source_images=[bad_image()], camera_info=bad_info(width=7)), "camera_info is for 7x48 images"),
]  # fmt: skip


@contextmanager
def imagining(peer, goal, feedback=None):
    """Send an Imagine goal; gives its handle."""
    client = ActionClient(peer.node, Imagine, "view_synthesis_node/imagine")
    assert client.wait_for_server(timeout_sec=WAIT)
    future = client.send_goal_async(goal, feedback_callback=feedback)
    until(future.done, "the goal's acceptance")
    yield future.result()
    client.destroy()


def imagine(peer, goal):
    with imagining(peer, goal) as handle:
        return result_of(handle)


def poses_of(path):
    return np.stack([c.pose_to_matrix(pose.pose) for pose in path.poses])


def test_bad_imagine_goals_are_refused_with_the_reason_in_result_and_log(peer, views, moving):
    for changes, reason in BAD_IMAGINE_GOALS:
        answer = imagine(peer, Imagine.Goal(**changes))
        assert answer.status == GoalStatus.STATUS_ABORTED and not answer.result.success
        assert reason in answer.result.message and answer.result.message in views.text()


def test_after_all_refusals_the_node_still_answers(peer, views, moving):
    for changes, reason in BAD_FRAMES:
        show_until_refused(peer, views, changes, reason, truth=True)
    play(peer, range(10, 34), truth=True)  # TF forgets where the good images were in 10 s
    time.sleep(0.3)
    answer = render(views, goal_with())
    assert answer.result.success, answer.result.message
    assert "nothing passes" not in views.text(), "every end of its topics here fits"


def test_imagine_gives_video_and_path(peer, views, moving):
    answer = imagine(peer, Imagine.Goal(frames=4))
    assert answer.result.success, answer.result.message
    assert len(answer.result.images) == 4 and answer.result.path.header.frame_id == OPTICAL
    np.testing.assert_allclose(poses_of(answer.result.path), path()[:4], atol=1e-9)
    assert answer.result.metres_per_unit == 0.0, "metres are not known: units of the model"
    newest = answer.result.images[0].header.stamp
    assert newest == answer.result.path.header.stamp and c.stamp_ns(newest) >= moving[-1]
    np.testing.assert_allclose(poses_of(answer.result.source_path), np.eye(4)[None], atol=1e-9)


def test_imagine_from_several_images_tells_where_they_were_taken(peer, views, moving):
    """The video starts at the first image; where the others stand is part of the answer."""
    given = [image_of(number) for number in (20, 12, 31)]
    given[0].header.stamp = c.stamp_message(7_000_000_005)
    rendered = peer.got["view_synthesis_node/rendered/image_raw"]
    rendered.clear()
    answer = imagine(peer, Imagine.Goal(source_images=given, camera_info=c.camera_info(CAMERA, 0, "")))
    assert answer.status == GoalStatus.STATUS_SUCCEEDED and answer.result.success, answer.result.message
    assert len(answer.result.images) == 5 and answer.result.path.header.frame_id == "given"
    assert brightness(answer.result.images[0]) == brightness(image_of(20))
    assert c.stamp_ns(answer.result.path.header.stamp) == 7_000_000_005
    wanted = np.linalg.inv(path()[20]) @ path()[[20, 12, 31]]
    np.testing.assert_allclose(poses_of(answer.result.source_path), wanted, atol=1e-9)
    until(lambda: len(rendered) == 5, "the frames on the rendered topic")


def test_imagine_is_cancelled_within_a_step(peer, views, moving):
    seen = []
    goal = Imagine.Goal(source_images=[image_of(20), image_of(12)], steps=100)
    with imagining(peer, goal, lambda message: seen.append(message.feedback.step)) as handle:
        until(lambda: seen, "feedback")
        until(handle.cancel_goal_async().done, "the answer to cancel")
        assert result_of(handle).status == GoalStatus.STATUS_CANCELED
    assert seen[-1] < 60, "it went on after it was cancelled"


def test_images_that_tf_cannot_place_yet_are_passed_over(peer, views, moving):
    """A trajectory node publishes a pose a window later than its image: the newest placed image is the source."""
    placed = list(play(peer, range(34, 40), truth=True))
    time.sleep(0.3)
    for number in range(40, 43):
        peer.show(number)
        time.sleep(0.1)
    at = path()[39][:3, 3] + [0.0, 0.8, 0.0]
    answer = render(views, RenderViews.Goal(poses=[pose_at(*at, frame=WORLD)]))
    assert answer.result.success, answer.result.message
    assert c.stamp_ns(answer.result.images[0].header.stamp) == placed[-1]
    assert brightness(answer.result.images[0]) == 40


def test_a_bag_that_loops_brings_its_own_tf(peer, views, moving):
    """TF takes nothing that is much older than what it holds, so it begins anew with the images."""
    begin, stamps = peer.node.get_clock().now().nanoseconds - 3600 * 10**9, []
    for step, number in enumerate(range(10, 34)):
        stamps.append(peer.show(number, stamp=begin + step * 10**8, truth=True))
        time.sleep(0.05)
    time.sleep(0.3)
    at = path()[33][:3, 3] + [0.0, 0.8, 0.0]
    answer = render(views, RenderViews.Goal(poses=[pose_at(*at, frame=WORLD)]))
    assert answer.result.success, answer.result.message
    assert c.stamp_ns(answer.result.images[0].header.stamp) in stamps
    assert "time went back (a bag that loops?): the image buffer was emptied" in views.text()
