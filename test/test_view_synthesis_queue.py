# SPDX-License-Identifier: Apache-2.0
"""Goals of view_synthesis_node in time: cancelled, waiting, of two clients, ended by a transition or a signal."""

import os
import signal
import subprocess
import sys
import time

import pytest
from action_msgs.msg import GoalStatus
from diagnostic_msgs.msg import DiagnosticArray
from lifecycle_msgs.srv import ChangeState
from view_goals import brightness, pose_at, render, result_of, send, serving
from wire import OPTICAL, START, WORLD, module_domain, play, until

from rays_as_pixels_interfaces.action import RenderViews

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ros_domain():
    """One domain for all tests here: the processes live as long as the module."""
    with module_domain() as domain:
        yield domain


def node(peer, folder, **how):
    settings = [f"fixed_frame:={WORLD}", "metres_per_unit:=2.0", "steps:=5", "queue_size:=1"]
    return serving(peer, folder, *settings, **how)


def show_camera(peer, views):
    """Show images until the node serves."""
    until(lambda: peer.image.get_subscription_count(), "the subscription of view_synthesis_node")
    goal = RenderViews.Goal(poses=[pose_at(z=0.2)], steps=1)
    until(lambda: play(peer, range(3), truth=True) and render(views, goal).result.success, "a view")


@pytest.fixture(scope="module")
def views(peer, tmp_path_factory):
    with node(peer, tmp_path_factory.mktemp("views")) as process:
        show_camera(peer, process)
        yield process


def long_goal(steps=100, **changes):
    return RenderViews.Goal(poses=[pose_at(z=0.2)], steps=steps, **changes)


def denoised(views):
    """Steps that the model has made so far, whether or not anybody was told."""
    return views.text().count("denoised")


def running(views, goal):
    """Send a goal and wait until it runs."""
    seen = []
    handle = send(views, goal, lambda message: seen.append(message.feedback))
    until(lambda: seen, "the goal to run")
    return handle, seen


def start_client(folder, *more):
    """Start render_client, as a process, for one view."""
    (folder / "path.txt").write_text("0 0 0 0.4 0 0 0 1\n")
    command = [sys.executable, "-m", "rays_as_pixels_ros.entry_points", "render_client", "tum"]
    command += ["--tum", str(folder / "path.txt"), "--frame", OPTICAL, "--out", str(folder / "out"), *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def cancel(handle):
    asked = handle.cancel_goal_async()
    until(asked.done, "the answer to the cancel request")
    assert len(asked.result().goals_canceling) == 1


@pytest.mark.parametrize("view", [0, 1])
def test_cancel_takes_effect_within_one_denoising_step(peer, views, view):
    goal = RenderViews.Goal(poses=[pose_at(z=0.2), pose_at(z=0.4)], steps=4 if view else 60)
    if view:
        goal.poses = [pose_at(z=0.2)] * 30
    handle, seen = running(views, goal)
    until(lambda: len(seen) >= (6 if view else 3), "some steps")
    cancel(handle)
    at_most = denoised(views) + 1  # the one that was in work when the cancellation was accepted
    done = result_of(handle)
    assert done.status == GoalStatus.STATUS_CANCELED and done.result.message == "canceled"
    assert not done.result.success and not done.result.images
    assert denoised(views) <= at_most
    time.sleep(0.3)
    assert denoised(views) <= at_most and seen[-1].step < seen[-1].total / 2
    assert render(views, long_goal(1)).result.success


def test_a_waiting_goal_is_cancelled_at_once_and_the_running_one_goes_on(peer, views):
    first, _ = running(views, long_goal())
    waiting = send(views, long_goal())
    cancel(waiting)
    assert result_of(waiting).status == GoalStatus.STATUS_CANCELED
    asked = first.get_result_async()
    assert not asked.done()
    cancel(first)
    until(asked.done, "the result")


def test_views_are_published_as_they_finish(peer, views):
    rendered = peer.got["view_synthesis_node/rendered/image_raw"]
    infos = peer.got["view_synthesis_node/rendered/camera_info"]
    rendered.clear(), infos.clear()
    handle, seen = running(views, RenderViews.Goal(poses=[pose_at(z=0.2), pose_at(x=0.6)], steps=30))
    until(lambda: rendered and infos, "the first view")
    assert seen[-1].step < 60, "the goal still runs"
    assert brightness(rendered[0]) == 10 and (infos[0].width, infos[0].header) == (96, rendered[0].header)
    assert result_of(handle).result.success and [brightness(image) for image in rendered] == [10, 30]


def test_two_clients_at_once_one_waits_and_the_third_is_refused(peer, views, tmp_path):
    first, seen = running(views, long_goal(200, seed=400))
    other = start_client(tmp_path)
    told = peer.listen(DiagnosticArray, "/diagnostics")

    def goals():
        return [v.value for m in told for s in m.status for v in s.values if v.key == "goals in work or waiting"]

    until(lambda: "2" in goals(), "the goal of render_client to wait", START)
    refused = render(views, long_goal(1))
    assert refused.status == GoalStatus.STATUS_ABORTED
    assert refused.result.message == "2 goals are already running or waiting; queue_size is 1"
    assert refused.result.message in views.text() and seen[-1].step < 200, "the first still runs"
    assert {f.total for f in seen} == {200}, "its own feedback"
    cancel(first)
    out, error = other.communicate(timeout=START)
    assert other.returncode == 0, error
    assert (tmp_path / "out" / "view_000.png").exists() and "1 views" in out


def test_deactivating_ends_the_running_and_the_waiting_goal_with_the_reason(peer, views):
    first, _ = running(views, long_goal())
    waiting = send(views, long_goal())
    answers = [first.get_result_async(), waiting.get_result_async()]
    for name, label in ((4, "deactivate"), (3, "activate")):
        request = ChangeState.Request()
        request.transition.id = name
        assert peer.call(ChangeState, "view_synthesis_node/change_state", request).success, label
    for answer in answers:
        until(answer.done, "the result of an ended goal")
        assert answer.result().status == GoalStatus.STATUS_ABORTED
        assert answer.result().result.message == "the node is stopping"
    show_camera(peer, views)


def test_a_client_that_is_interrupted_cancels_its_goal(peer, views, tmp_path):
    before, canceled = denoised(views), views.text().count("goal canceled")
    client = start_client(tmp_path, "--steps", "200", "--seed", "200")
    until(lambda: denoised(views) > before + 2 or client.poll() is not None, "the goal to run", START)
    client.send_signal(signal.SIGINT)
    _, error = client.communicate(timeout=START)
    assert client.returncode == 130 and "Traceback" not in error, error
    until(lambda: views.text().count("goal canceled") > canceled, "the cancellation")
    assert denoised(views) < before + 150 and not (tmp_path / "out").exists()
    assert render(views, long_goal(1)).result.success


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_the_middle_of_a_goal_leaves_nothing_behind(peer, tmp_path, monkeypatch, number):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))
    shared = set(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else set()
    with node(peer, tmp_path, name="mortal", session=True) as process:
        show_camera(peer, process)
        _, seen = running(process, long_goal(200, seed=100))
        os.kill(process.pid, number)
        assert process.wait() == 0, process.text()
        with pytest.raises(ProcessLookupError):
            os.killpg(process.pid, 0)  # no process of its session is left
        assert "Traceback" not in process.text() and seen[-1].step < 200
    assert not list(scratch.iterdir())
    if shared:
        assert not {name for name in set(os.listdir("/dev/shm")) - shared if str(process.pid) in name}
    until(lambda: "mortal" not in peer.node.get_node_names(), "the node to leave the graph")


def test_a_client_notices_that_its_server_was_killed(peer, tmp_path):
    """Long before its time is up; other processes hold a dead one for alive for some ten seconds."""
    more = ["--action", "doomed/render_views", "--steps", "200", "--seed", "400", "--timeout", "600"]
    with node(peer, tmp_path, name="doomed") as process:
        show_camera(peer, process)
        before, client = denoised(process), start_client(tmp_path, *more)
        until(lambda: denoised(process) > before + 2 or client.poll() is not None, "the goal to run", START)
        process.kill()
        _, error = client.communicate(timeout=START)
    assert client.returncode == 1, error
    assert "the views will not come: the action server at 'doomed/render_views' is gone" in error
