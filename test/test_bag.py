# SPDX-License-Identifier: Apache-2.0
"""rays-as-pixels bag: bags that rosbags wrote, and what rosbags and the mcap library read in the result."""

import importlib.util
import os
import re
import signal
import time

import cv2
import numpy as np
import pytest
from recorded_bag import BARREL, IMAGE, OPTICAL, PERIOD, SIZE, START, STORE, K, frames, recorded, write_bag
from rosbags.highlevel import AnyReader
from rosbags.interfaces import QosDurability, QosReliability
from rosbags.rosbag2 import StoragePlugin
from scipy.spatial.transform import Rotation

from rays_as_pixels_model.bags import BagError
from rays_as_pixels_model.files import read_trajectory, write_png
from rays_as_pixels_model.pipeline import Pipeline
from rays_as_pixels_ros import bag_writer, cli, command_bag, parameters
from rays_as_pixels_ros.conversions import T_REP103_OPTICAL
from rays_as_pixels_ros.interrupts import interrupted_by_signals

ADDED = {
    "/trajectory_node/pose": "geometry_msgs/msg/PoseWithCovarianceStamped",
    "/trajectory_node/odometry": "nav_msgs/msg/Odometry",
    "/trajectory_node/path": "nav_msgs/msg/Path",
    "/trajectory_node/frusta": "visualization_msgs/msg/MarkerArray",
    "/tf": "tf2_msgs/msg/TFMessage",
}
KEEP_ALL = ("--max-residual", "10", "--samples", "2")  # pans over a flat wall are strange windows; few samples: quick


def read(path):
    """Read a bag: {topic: [(time, bytes)]}, {topic: connection}, {topic: [message]}."""
    raw, connections, messages = {}, {}, {}
    with AnyReader([path]) as reader:
        for connection in reader.connections:
            connections[connection.topic] = connection
        for connection, time, data in reader.messages():
            raw.setdefault(connection.topic, []).append((time, bytes(data)))
            messages.setdefault(connection.topic, []).append(reader.deserialize(data, connection.msgtype))
    return raw, connections, messages


def matrix(pose):
    T = np.eye(4)
    q = pose.orientation
    T[:3, :3] = Rotation.from_quat([q.x, q.y, q.z, q.w]).as_matrix()
    T[:3, 3] = pose.position.x, pose.position.y, pose.position.z
    return T


def stamp(header):
    return header.stamp.sec * 10**9 + header.stamp.nanosec


def estimated(folder, images):
    """Run `rays-as-pixels estimate` on images; T_map_camera (T, 4, 4)."""
    for index, picture in enumerate(images):
        write_png(folder / "images" / f"{index:03d}.png", picture)
    given = ["--intrinsics", ",".join(map(str, K)), *KEEP_ALL[:2]]
    assert cli.main(["estimate", str(folder / "images"), "--out", str(folder / "found"), *given]) == 0
    return read_trajectory(folder / "found" / "trajectory.txt")[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    "storage, compressed, out",
    [(StoragePlugin.MCAP, False, "new.mcap"), (StoragePlugin.SQLITE3, True, "new.db3"),
     (StoragePlugin.SQLITE3, False, "new")],
)  # fmt: skip
def test_the_trajectory_lies_beside_the_original_topics(tmp_path, storage, compressed, out):
    """Poses are those of `estimate` on the same frames (its images undistorted by OpenCV), in REP 103 axes."""
    d = BARREL if compressed else (0.0,) * 5
    bag = write_bag(tmp_path / "drive", recorded(compressed, d=d, mount=False), storage)
    assert cli.main(["bag", str(bag), "--out", str(tmp_path / out), "--base-frame", "", *KEEP_ALL]) == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["drive", out])

    before, old, _ = read(bag)
    raw, connections, messages = read(tmp_path / out)
    for topic, content in before.items():
        assert raw[topic] == content, topic
        assert connections[topic].msgtype == old[topic].msgtype
        assert connections[topic].ext.offered_qos_profiles == old[topic].ext.offered_qos_profiles
        assert connections[topic].msgdef.data == old[topic].msgdef.data
        if not out.endswith(".mcap"):  # a single MCAP file holds definitions, from which the hashes follow
            assert connections[topic].digest == old[topic].digest, topic
    assert connections["/tf_static"].ext.offered_qos_profiles[0].durability == QosDurability.TRANSIENT_LOCAL
    assert {t: c.msgtype for t, c in connections.items() if t not in before} == ADDED
    for topic in ADDED:
        (qos,) = connections[topic].ext.offered_qos_profiles
        latched = topic.endswith(("path", "frusta"))
        assert qos.reliability == QosReliability.RELIABLE
        assert (qos.durability == QosDurability.TRANSIENT_LOCAL) == latched, topic

    wanted = [START + i * PERIOD for i in range(8)]
    poses, odometry = messages["/trajectory_node/pose"], messages["/trajectory_node/odometry"]
    assert [stamp(m.header) for m in poses] == [stamp(m.header) for m in odometry] == wanted
    assert [time for time, _ in raw["/trajectory_node/pose"]] == [t + 20_000_000 for t in wanted]
    pictures = frames()
    if compressed:
        k = np.array([[K[0], 0, K[2]], [0, K[1], K[3]], [0, 0, 1]])
        pictures = [cv2.undistort(picture, k, np.array(BARREL)) for picture in pictures]
    T_map_camera = T_REP103_OPTICAL @ estimated(tmp_path, pictures)
    found = np.stack([matrix(m.pose.pose) for m in poses])
    assert np.abs(np.diff(found[:, :3, 3], axis=0)).max() > 1e-3  # it moves
    np.testing.assert_allclose(found, T_map_camera, atol=1e-5)
    path = messages["/trajectory_node/path"][-1]
    np.testing.assert_allclose([matrix(m.pose) for m in path.poses], found, atol=1e-9)
    for pose, transforms, odom in zip(poses, messages["/tf"], odometry, strict=True):
        by_child = {t.child_frame_id: t for t in transforms.transforms}
        assert {c: t.header.frame_id for c, t in by_child.items()} == {"odom": "map", OPTICAL: "odom"}
        assert stamp(by_child["odom"].header) == stamp(pose.header)
        t = by_child["odom"].transform
        q, p = t.rotation, t.translation
        T_map_odom = np.eye(4)
        T_map_odom[:3, :3] = Rotation.from_quat([q.x, q.y, q.z, q.w]).as_matrix()
        T_map_odom[:3, 3] = p.x, p.y, p.z
        np.testing.assert_allclose(T_map_odom @ matrix(odom.pose.pose), matrix(pose.pose.pose), atol=1e-9)


@pytest.mark.slow
def test_the_base_comes_from_the_bags_tf_and_views_and_metres_on_demand(tmp_path, capsys):
    """The base starts at the origin; fixed scale multiplies; views are beside their cameras."""
    bag = write_bag(tmp_path / "drive", recorded())
    assert cli.main(["bag", str(bag), "--out", str(tmp_path / "a.mcap"), *KEEP_ALL]) == 0
    fixed = ["--scale-source", "fixed", "--metres-per-unit", "3", "--views=0.2,0,0.1", "--view-every", "4"]
    assert cli.main(["bag", str(bag), "--out", str(tmp_path / "b.mcap"), *KEEP_ALL, *fixed]) == 0
    assert "unit: metres" in capsys.readouterr().out
    first, second = read(tmp_path / "a.mcap")[2], read(tmp_path / "b.mcap")[2]
    T_base_optical = np.eye(4)
    T_base_optical[:3, :3], T_base_optical[:3, 3] = T_REP103_OPTICAL[:3, :3], (0.3, 0.0, 0.5)

    def cameras(messages):
        found = np.stack([matrix(m.pose.pose) for m in messages["/trajectory_node/pose"]])
        np.testing.assert_allclose(found[0], np.eye(4), atol=1e-9)
        return found @ T_base_optical

    a, b = cameras(first), cameras(second)
    np.testing.assert_allclose(b[:, :3, 3] - b[0, :3, 3], 3 * (a[:, :3, 3] - a[0, :3, 3]), atol=1e-9)
    assert {m.child_frame_id for m in first["/trajectory_node/odometry"]} == {"base_link"}

    images = second["/view_synthesis_node/rendered/image_raw"]
    infos = second["/view_synthesis_node/rendered/camera_info"]
    assert [stamp(m.header) for m in images] == [stamp(m.header) for m in infos] == [START, START + 4 * PERIOD]
    assert all((i.width, i.height) == (m.width, m.height) for i, m in zip(infos, images, strict=True))
    assert np.std(images[0].data) > 1 and not np.array_equal(images[0].data, images[1].data)
    beside = [t for m in second["/tf"] for t in m.transforms if t.child_frame_id == images[0].header.frame_id]
    assert [(t.header.frame_id, t.transform.translation.x) for t in beside] == [(OPTICAL, 0.2)] * 2


@pytest.mark.slow
def test_a_view_is_made_from_what_was_seen_on_the_way(tmp_path, monkeypatch):
    """Sources are the frame itself and every fourth before it, with poses of the trajectory, in its unit."""
    given = []
    rendered = Pipeline.render_views

    def render_views(self, frames, T, intrinsics, *args, **options):
        given.append((frames.shape, np.array(T)))
        return rendered(self, frames, T, intrinsics, *args, **options)

    monkeypatch.setattr(Pipeline, "render_views", render_views)
    bag = write_bag(tmp_path / "bag", recorded())
    options = ["--scale-source", "fixed", "--metres-per-unit", "3", "--views=0.2,0,0", "--view-every", "3"]
    assert cli.main(["bag", str(bag), "--out", str(tmp_path / "new.mcap"), *KEEP_ALL, *options]) == 0
    _, _, messages = read(tmp_path / "new.mcap")
    poses = np.stack([matrix(message.pose.pose) for message in messages["/trajectory_node/pose"]])
    assert [shape[0] for shape, _ in given] == [1, 2, 3]
    optical = np.eye(4)
    optical[:3, :3], optical[:3, 3] = T_REP103_OPTICAL[:3, :3], (0.3, 0.0, 0.5)
    for number, (shape, T) in enumerate(given):
        now = 3 * number
        seen = [now, *(i for i in range(0, now + 1, 4) if i != now)]
        assert shape[1:] == (64, 96, 3)
        T_map = poses[seen] @ optical
        np.testing.assert_allclose(T, np.linalg.inv(T_map[0]) @ T_map, atol=1e-4)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("mcap") is None, reason="needs the mcap package")
def test_the_mcap_library_reads_the_result(tmp_path):
    """What Foxglove needs: the ros2 profile, a schema with its text for each topic, CDR messages, order of time."""
    from mcap.reader import make_reader

    bag = write_bag(tmp_path / "drive", recorded())
    assert cli.main(["bag", str(bag), "--out", str(tmp_path / "new.mcap"), *KEEP_ALL]) == 0
    counts, last = {}, 0
    with open(tmp_path / "new.mcap", "rb") as file:
        reader = make_reader(file, validate_crcs=True)
        assert reader.get_header().profile == "ros2"
        for schema, channel, message in reader.iter_messages():
            assert (schema.encoding, channel.message_encoding) == ("ros2msg", "cdr") and schema.data
            assert message.log_time >= last
            last = message.log_time
            counts[channel.topic, schema.name] = counts.get((channel.topic, schema.name), 0) + 1
    assert {(t, k) for t, k in ADDED.items()} < set(counts)
    assert counts["/trajectory_node/pose", ADDED["/trajectory_node/pose"]] == 8
    assert counts["/camera/image_raw", IMAGE] == 8


@pytest.mark.slow
def test_time_that_goes_back_begins_a_new_trajectory(tmp_path):
    """As in the node: a recording of a bag that looped holds two trajectories that both begin at the origin."""
    once = [START + i * PERIOD for i in range(6)]
    bag = write_bag(tmp_path / "drive", recorded(stamps=once + once))
    assert cli.main(["bag", str(bag), "--out", str(tmp_path / "new.mcap"), *KEEP_ALL]) == 0
    messages = read(tmp_path / "new.mcap")[2]
    poses = [matrix(m.pose.pose) for m in messages["/trajectory_node/pose"]]
    assert len(poses) == 12
    np.testing.assert_allclose(poses[6], poses[0], atol=1e-9)
    assert not np.allclose(poses[5], poses[0], atol=1e-4)
    assert len(messages["/trajectory_node/path"][-1].poses) == 6


@pytest.mark.slow
def test_tf_of_a_robot_is_not_contradicted(tmp_path, capsys):
    """A frame has one parent: where the bag's own TF moves the base, ours is left out, and the command says so."""
    bag = write_bag(tmp_path / "drive", recorded(moving=True))
    assert cli.main(["bag", str(bag), "--out", str(tmp_path / "new.mcap"), *KEEP_ALL]) == 0
    assert "no TF is written: the bag's own TF places base_link already" in capsys.readouterr().out
    raw = read(tmp_path / "new.mcap")[0]
    assert raw["/tf"] == read(bag)[0]["/tf"] and len(raw["/trajectory_node/pose"]) == 8


def cut(path):
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def covered_lens():
    return recorded(pictures=np.full((8, *SIZE[::-1], 3), 7, np.uint8))


def views_recorded_live():
    return recorded() + recorded(topic="/view_synthesis_node/rendered/image_raw", infos=False)


def several_cameras():
    return recorded() + recorded(topic="/left/image_raw")


BAD = {
    "no such file": (None, "nothing.mcap", [], "no such file"),
    "not a bag": (None, "notes.txt", [], r"a bag is a folder with metadata.yaml, or a file .mcap, .db3 or .bag"),
    "no metadata": (None, "empty", [], "no metadata.yaml"),
    "no image topic": (lambda: [m for m in recorded() if m[1] != IMAGE], None, [], "no Image or CompressedImage"),
    "several": (several_cameras, None, [], "--image-topic, one of: /camera/image_raw, /left/image_raw"),
    "wrong topic": (recorded, None, ["--image-topic", "/x"], "Image topic '/x'.*/camera/image_raw"),
    "no info": (lambda: recorded(infos=False), None, [], "no CameraInfo topics.*estimate` takes images without"),
    "zero info": (lambda: recorded(k=(0.0, 0.0, 0.0, 0.0)), None, [], "/camera/camera_info: .*(not calibrated|focal)"),
    "base unknown": (recorded, None, ["--base-frame", "hull"], "to base_frame 'hull' is missing"),
    "covered lens": (covered_lens, None, ["--base-frame", ""], "every window was lost: an image shows nothing: its"),
    "views there": (views_recorded_live, None, ["--image-topic", "/camera/image_raw", "--views=0,0,0"],
                    "holds /view_synthesis_node/rendered/image_raw already; choose another --view-node-name"),
    "too few": (lambda: recorded(stamps=[START, START + PERIOD]), None, [], "2 frames are used.*needs 5"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_leaves_nothing(tmp_path, capsys, case):
    make, name, options, pattern = BAD[case]
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "empty").mkdir()
    bag = tmp_path / name if make is None else write_bag(tmp_path / "drive", make())
    there = sorted(tmp_path.rglob("*"))
    assert cli.main(["bag", str(bag), "--out", str(tmp_path / "new.mcap"), *options]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and str(bag) in said
    assert re.search(pattern, said), said
    assert sorted(tmp_path.rglob("*")) == there


@pytest.mark.parametrize("storage", list(StoragePlugin))
def test_a_bag_that_was_cut_short_is_refused(tmp_path, capsys, storage):
    bag = write_bag(tmp_path / "drive", recorded(), storage)
    cut(next(bag.glob("drive.*")))
    assert cli.main(["bag", str(bag), "--out", str(tmp_path / "new.mcap")]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and ("not a readable bag" in said or "damaged" in said) and "mcap recover" in said
    assert not list(tmp_path.glob(".*")) and not (tmp_path / "new.mcap").exists()


def test_an_unknown_storage_is_named(tmp_path, capsys):
    bag = write_bag(tmp_path / "drive", recorded())
    text = (bag / "metadata.yaml").read_text()
    (bag / "metadata.yaml").write_text(text.replace("storage_identifier: mcap", "storage_identifier: tape"))
    assert cli.main(["bag", str(bag), "--out", str(tmp_path / "new.mcap")]) == 1
    assert "'tape' not supported" in capsys.readouterr().err


def test_a_metadata_yaml_of_something_else_makes_no_bag(tmp_path, capsys):
    """Were it one, --force would replace the folder."""
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "metadata.yaml").write_text("camera: left\n")
    photos, drive = str(tmp_path / "photos"), str(write_bag(tmp_path / "drive", recorded()[:1]))
    assert cli.main(["bag", photos, "--out", str(tmp_path / "new.mcap")]) == 1
    assert "metadata.yaml is not that of a bag" in capsys.readouterr().err
    assert cli.main(["bag", drive, "--out", photos, "--force"]) == 1
    assert "is a folder that holds no bag" in capsys.readouterr().err
    assert (tmp_path / "photos" / "metadata.yaml").read_text() == "camera: left\n"


def test_the_bag_that_is_read_is_never_written_to(tmp_path, capsys):
    bag = write_bag(tmp_path / "drive", recorded()[:1])
    before = sorted((p, p.read_bytes()) for p in bag.iterdir())
    for out in (bag / "drive.mcap", bag / "new.mcap", tmp_path / "drive" / "new"):
        assert cli.main(["bag", str(bag), "--out", str(out), "--force"]) == 1
        assert "lies in the bag that is read" in capsys.readouterr().err
    assert cli.main(["bag", str(bag), "--out", str(bag / "drive.mcap" / "new.mcap")]) == 1
    assert sorted((p, p.read_bytes()) for p in bag.iterdir()) == before


def test_a_place_that_cannot_be_written_is_told_before_any_work(tmp_path, capsys):
    bag = write_bag(tmp_path / "drive", recorded()[:1])  # no image: any work would fail
    (tmp_path / "file").write_text("x")
    assert cli.main(["bag", str(bag), "--out", str(tmp_path / "file" / "new.mcap")]) == 1
    assert capsys.readouterr().err.endswith(f"cannot be written: {tmp_path / 'file'} is no folder\n")


@pytest.mark.parametrize("out", ["new.mcap", "new.db3", "new"])
def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path, out):
    """Files may be no longer than 100 kB here; the same happens where the disk ends."""
    resource = pytest.importorskip("resource", reason="needs limits of a Unix process")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(BagError, match=rf"{out}: cannot be written: .+") as error:
            with bag_writer.replacing_bag(tmp_path / out) as folder:
                with bag_writer.writer(folder, tmp_path / out) as bag:
                    topic = bag.add_connection("/t", "std_msgs/msg/String", typestore=STORE)
                    for time in range(300):
                        bag.write(topic, time, bytes(10_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "\n" not in str(error.value) and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_nothing_half_written(tmp_path, sent):
    before = signal.getsignal(sent)
    with pytest.raises(KeyboardInterrupt):
        with interrupted_by_signals(), bag_writer.replacing_bag(tmp_path / "new.mcap") as folder:
            with bag_writer.writer(folder, tmp_path / "new.mcap"):
                os.kill(os.getpid(), sent)
                time.sleep(1)
    assert list(tmp_path.iterdir()) == [] and signal.getsignal(sent) is before


def test_an_ignored_signal_stays_ignored():
    """As under nohup, whose command goes on when the terminal is closed."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interrupted_by_signals():
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.slow
def test_nothing_is_overwritten_without_force(tmp_path, capsys):
    bag, out = write_bag(tmp_path / "drive", recorded()), tmp_path / "new"
    out.mkdir()
    assert cli.main(["bag", str(bag), "--out", str(out), "--force"]) == 1  # a folder that is no bag, not even then
    assert "holds no bag" in capsys.readouterr().err
    write_bag(tmp_path / "other", recorded()[:1])
    out.rmdir()
    (tmp_path / "other").rename(out)
    before = sorted((p, p.read_bytes()) for p in out.iterdir())
    assert cli.main(["bag", str(bag), "--out", str(out)]) == 1
    assert "exists; --force" in capsys.readouterr().err
    assert cli.main(["bag", str(bag), "--out", str(out), "--force", "--base-frame", "hull"]) == 1  # fails on the way
    assert sorted((p, p.read_bytes()) for p in out.iterdir()) == before
    assert cli.main(["bag", str(bag), "--out", str(bag), "--force"]) == 1
    assert "write another one" in capsys.readouterr().err
    assert cli.main(["bag", str(bag), "--out", str(out), "--force", *KEEP_ALL]) == 0
    assert len(read(out)[0]["/trajectory_node/pose"]) == 8
    # A second run over the result would write topics that are there.
    assert cli.main(["bag", str(out), "--out", str(tmp_path / "again.mcap"), *KEEP_ALL]) == 1
    assert "holds /trajectory_node/pose, /trajectory_node/odometry" in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["drive", "new"]


def test_options_are_the_nodes_parameters():
    """Names and defaults are those of trajectory_node; what a recording has no use for is left out."""
    left_out = {"autostart", "image_transport", "image_qos", "silence_timeout", "queue_size", "publish_raxels",
                "loop_every"}  # fmt: skip
    args = command_bag.build_parser().parse_args(["in", "--out", "out"])
    for parameter in parameters.TRAJECTORY:
        if parameter.name not in left_out:
            assert (getattr(args, parameter.name) or "") == (parameter.default or ""), parameter.name
