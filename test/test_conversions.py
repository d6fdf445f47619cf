# SPDX-License-Identifier: Apache-2.0
"""Messages to arrays and back; every bad message is refused in one clear line."""

import numpy as np
import pytest
from builtin_interfaces.msg import Time
from geometry_msgs.msg import Pose
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from rays_as_pixels_model.geometry import Intrinsics, fit_frames
from rays_as_pixels_ros import conversions as c


def picture(height=6, width=8, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def image(encoding="rgb8", height=6, width=8, step=None, data=None):
    step = width * c.BYTES_PER_PIXEL.get(encoding, 3) if step is None else step
    message = Image(height=height, width=width, encoding=encoding, step=step)
    message.data = bytes(step * height) if data is None else data
    return message


@given(ns=st.integers(0, 2**31 * 10**9 - 1))
def test_stamps_there_and_back(ns):
    assert c.stamp_ns(c.stamp_message(ns)) == ns


def test_stamp_of_a_message():
    assert c.stamp_ns(Time(sec=3, nanosec=5)) == 3_000_000_005


@settings(max_examples=20, deadline=None)
@given(height=st.integers(1, 40), width=st.integers(1, 40), seed=st.integers(0, 99))
def test_rgb_there_and_back(height, width, seed):
    rgb = picture(height, width, seed)
    message = c.rgb_to_image(rgb, 7, "camera")
    assert (message.header.frame_id, c.stamp_ns(message.header.stamp)) == ("camera", 7)
    np.testing.assert_array_equal(c.image_to_rgb(message), rgb)


def test_channel_order_and_row_padding():
    rgb = picture()
    padded = np.zeros((6, 30), dtype=np.uint8)
    padded[:, :24] = rgb[..., ::-1].reshape(6, 24)
    message = image("bgr8", step=30, data=padded.tobytes())
    np.testing.assert_array_equal(c.image_to_rgb(message), rgb)


def test_grey_becomes_three_equal_channels():
    grey = picture()[..., 0]
    rgb = c.image_to_rgb(image("mono8", data=grey.tobytes()))
    np.testing.assert_array_equal(rgb, np.repeat(grey[..., None], 3, axis=2))


def test_jpeg():
    import cv2

    flat = np.full((32, 48, 3), (200, 100, 50), dtype=np.uint8)
    good, data = cv2.imencode(".jpg", flat[..., ::-1])
    message = CompressedImage(format="jpeg", data=data.tobytes())
    assert good and np.abs(c.image_to_rgb(message).astype(int) - flat).max() <= 4


@pytest.mark.parametrize("message, reason", [
    (image(height=0, width=0, step=0), "0x0"),
    (image(step=5), "step is 5; 8 pixels of rgb8 need at least 24"),
    (image(data=bytes(10)), "has 10 bytes"),
    (image(data=bytes(145)), "has 145 bytes"),
    (image(encoding="hsv9"), "encoding is 'hsv9'"),
    (image(encoding="8UC3"), "encoding is '8UC3'"),
    (image(encoding="32FC1"), "encoding is '32FC1'"),
    (CompressedImage(format="jpeg", data=b"not a picture"), "cannot be decoded"),
    (CompressedImage(format="jpeg", data=b""), "cannot be decoded"),
])  # fmt: skip
def test_bad_images_are_refused_in_one_line(message, reason):
    with pytest.raises(c.ConversionError, match=reason) as caught:
        c.image_to_rgb(message)
    assert "\n" not in str(caught.value)


def info(**changes):
    message = CameraInfo(width=8, height=6, distortion_model="plumb_bob", d=[0.0] * 5,
                         k=[10.0, 0.0, 3.5, 0.0, 11.0, 2.5, 0.0, 0.0, 1.0])  # fmt: skip
    for name, value in changes.items():
        setattr(message, name, value)
    return message


def test_half_a_pixel_is_added_once():
    intrinsics, distortion = c.camera_from_info(info())
    assert intrinsics == Intrinsics(10.0, 11.0, 4.0, 3.0, 8, 6) and distortion.is_none


@given(f=st.floats(1, 1e4), cx=st.floats(-10, 1e4), cy=st.floats(-10, 1e4))
def test_camera_there_and_back(f, cx, cy):
    camera = Intrinsics(f, f * 1.1, cx, cy, 640, 480)
    found, _ = c.camera_from_info(c.camera_info(camera, 0, "camera"))
    assert (found.fx, found.fy, found.width, found.height) == (camera.fx, camera.fy, 640, 480)
    assert (found.cx, found.cy) == pytest.approx((cx, cy), abs=1e-9)


@pytest.mark.parametrize("changes, reason", [
    (dict(k=[0.0] * 9), "not calibrated: K is all zero"),
    (dict(k=[float("nan")] * 9), "finite"),
    (dict(width=0), "size"),
    (dict(distortion_model="bent"), "bent"),
    (dict(d=[0.1, 0.2]), "coefficients"),
])  # fmt: skip
def test_bad_cameras_are_refused(changes, reason):
    with pytest.raises(c.ConversionError, match=reason):
        c.camera_from_info(info(**changes))


@given(
    x=st.integers(0, 40), y=st.integers(0, 40), width=st.integers(8, 120), height=st.integers(8, 80),
    bins=st.tuples(st.integers(1, 4), st.integers(1, 4)), rectified=st.booleans(),
)  # fmt: skip
def test_a_region_and_its_binning_leave_every_ray_where_it_was(x, y, width, height, bins, rectified):
    """The centre of a binned pixel is the middle of the sensor's pixels in it; a rectified image is P's, else K's."""
    full, other = Intrinsics(200.0, 210.0, 83.0, 64.0, 160, 120), Intrinsics(90.0, 95.0, 70.0, 50.0, 160, 120)
    message = c.camera_info(full, 0, "camera")
    message.p = c.camera_info(other, 0, "camera").p
    message.d = [-0.2, 0.1, 0.0, 0.0, 0.0]
    message.roi.x_offset, message.roi.y_offset, message.roi.width, message.roi.height = x, y, width, height
    message.binning_x, message.binning_y = bins
    found, lens = c.camera_from_info(message, rectified)
    assert (found.width, found.height) == (width // bins[0], height // bins[1]) and lens.is_none == rectified
    sensor = other if rectified else full
    for u, v in ((0, 0), (found.width - 1, found.height - 1)):
        middle = x + bins[0] * (u + 0.5), y + bins[1] * (v + 0.5)  # on the sensor, its corner at (0, 0)
        assert (u + 0.5 - found.cx) / found.fx == pytest.approx((middle[0] - sensor.cx) / sensor.fx, abs=1e-9)
        assert (v + 0.5 - found.cy) / found.fy == pytest.approx((middle[1] - sensor.cy) / sensor.fy, abs=1e-9)


def test_a_binned_image_of_a_region_is_undistorted_as_the_whole_one():
    import cv2

    rgb = cv2.resize(picture(24, 32), (320, 240), interpolation=cv2.INTER_CUBIC)
    whole = c.camera_info(Intrinsics.from_fov(80, 320, 240), 0, "camera")
    whole.d = [-0.28, 0.07, 0.0002, 0.0001, 0.0]
    part = c.camera_info(Intrinsics.from_fov(80, 320, 240), 0, "camera")
    part.d, part.binning_x, part.binning_y = whole.d, 2, 2
    part.roi.x_offset, part.roi.y_offset, part.roi.width, part.roi.height = 40, 30, 200, 160
    binned = cv2.resize(rgb[30:190, 40:240], (100, 80), interpolation=cv2.INTER_AREA)
    straight, camera = c.pinhole_frame(c.rgb_to_image(rgb, 0, "camera"), whole)
    found, own = c.pinhole_frame(c.rgb_to_image(binned, 0, "camera"), part)
    expected = cv2.resize(straight[30:190, 40:240], (100, 80), interpolation=cv2.INTER_AREA)
    assert own == camera.cropped(40, 30, 200, 160).binned(2, 2)
    inner = np.s_[12:-12, 12:-12]  # the whole image knows what lies beyond the region's edge
    assert np.abs(found[inner].astype(float) - expected[inner]).mean() < 2
    assert np.abs(binned[inner].astype(float) - expected[inner]).mean() > 4


@pytest.mark.parametrize("topic, choice, wanted", [
    ("/camera/image_rect", "auto", True), ("/camera/image_rect_color/compressed", "auto", True),
    ("/camera/image_raw", "auto", False), ("/image_rect/image_raw", "auto", False),
    ("/camera/image_raw", "always", True), ("/camera/image_rect", "never", False),
])  # fmt: skip
def test_rectified_images_are_told_by_their_topic_or_by_choice(topic, choice, wanted):
    assert c.is_rectified(choice, topic) is wanted


def region(**changes):
    message = info()
    for name, value in changes.items():
        setattr(message.roi, name, value)
    return message


@pytest.mark.parametrize("message, rectified, reason", [
    (region(x_offset=4, width=8, height=6), False, r"its roi, 8x6 at \(4, 0\), is not within the 8x6 of the camera"),
    (region(x_offset=4), False, r"its roi, 0x0 at \(4, 0\)"),
    (info(binning_x=9), False, "image size must be positive, got 0x6"),
    (info(), True, "not calibrated: P is all zero"),
])  # fmt: skip
def test_bad_regions_and_projections_are_refused(message, rectified, reason):
    with pytest.raises(c.ConversionError, match=reason):
        c.camera_from_info(message, rectified)


def test_a_camera_of_another_size_is_refused():
    with pytest.raises(c.ConversionError, match="camera_info is for 640x480 images, but the image is 8x6"):
        c.pinhole_frame(image(), info(width=640, height=480))


@pytest.mark.parametrize("model, d", [
    ("plumb_bob", [-0.25, 0.08, 0.001, -0.002, 0.0]),
    ("rational_polynomial", [-0.2, 0.05, 0.001, 0.0, 0.01, 0.02, 0.0, 0.0]),
    ("equidistant", [0.05, -0.01, 0.002, 0.0]),
])  # fmt: skip
def test_distortion_is_undone(model, d):
    """A grid of points drawn where the lens puts them comes out where a pinhole camera would see them."""
    import cv2

    width, height, f = 240, 180, 160.0
    k = np.array([[f, 0, 119.5], [0, f, 89.5], [0, 0, 1.0]])
    points = np.array([[x, y, 1.0] for x in (-0.4, -0.2, 0.0, 0.2, 0.4) for y in (-0.3, 0.0, 0.3)])
    if model == "equidistant":
        seen = cv2.fisheye.distortPoints(points[:, None, :2], k, np.array(d))[:, 0]
    else:
        seen = cv2.projectPoints(points, np.zeros(3), np.zeros(3), k, np.array(d))[0][:, 0]
    yy, xx = np.mgrid[:height, :width]
    rgb = np.zeros((height, width, 3), dtype=np.uint8)
    for x, y in seen:
        rgb[np.hypot(xx - x, yy - y) < 3] = 255
    message = CameraInfo(width=width, height=height, distortion_model=model, d=d, k=k.reshape(-1))
    out, camera = c.pinhole_frame(c.rgb_to_image(rgb, 0, "camera"), message)
    blobs = cv2.connectedComponentsWithStats((out[..., 0] > 127).astype(np.uint8))[3][1:]
    pinhole = points[:, :2] * f + (camera.cx - 0.5, camera.cy - 0.5)
    for point in pinhole:
        assert np.hypot(*(blobs - point).T).min() < 0.7


def test_a_large_image_shrunk_before_its_distortion_is_undone_is_the_same_picture():
    import cv2

    small = np.random.default_rng(0).integers(0, 255, (27, 41, 3), dtype=np.uint8)
    message = c.rgb_to_image(cv2.resize(small, (801, 603), interpolation=cv2.INTER_CUBIC), 0, "camera")
    bent, straight = (c.camera_info(Intrinsics.from_fov(80, 801, 603), 0, "camera") for _ in range(2))
    bent.d = [-0.28, 0.07, 0.0002, 0.0001, 0.0]
    cases = (message, bent), (message, bent, (48, 36)), (message, straight)
    pictures = [c.pinhole_frame(*case) for case in cases]
    whole, first, flat = (fit_frames(frame[None], camera, 48, 36) for frame, camera in pictures)
    assert pictures[1][0].shape == (150, 200, 3)
    np.testing.assert_allclose(first[1].matrix(), whole[1].matrix(), rtol=0.01)
    difference, undone = (np.abs(x[0].astype(float) - whole[0]).mean() for x in (first, flat))
    assert difference < 4 and undone > 10 * difference, (difference, undone)  # of a picture of noise


@given(seed=st.integers(0, 999))
def test_poses_there_and_back(seed):
    rng = np.random.default_rng(seed)
    T = np.eye(4)
    T[:3, :3], T[:3, 3] = Rotation.random(random_state=rng).as_matrix(), rng.normal(0, 5, 3)
    np.testing.assert_allclose(c.pose_to_matrix(c.matrix_to_pose(T)), T, atol=1e-12)
    message = c.transform_message(T, 5, "map", "base")
    assert (message.header.frame_id, message.child_frame_id) == ("map", "base")
    np.testing.assert_allclose(c.transform_to_matrix(message.transform), T, atol=1e-12)


def test_bad_poses_are_refused():
    pose = Pose()
    pose.orientation.w = 2.0
    with pytest.raises(c.ConversionError, match="norm"):
        c.pose_to_matrix(pose)
    pose.orientation.w = 1.0
    pose.position.y = float("nan")
    with pytest.raises(c.ConversionError, match="finite"):
        c.pose_to_matrix(pose)


def test_optical_axes_in_rep103():
    forward, right, down = np.eye(3)[[2, 0, 1]]
    turn = c.T_REP103_OPTICAL[:3, :3]
    np.testing.assert_array_equal(turn @ forward, [1, 0, 0])
    np.testing.assert_array_equal(turn @ right, [0, -1, 0])
    np.testing.assert_array_equal(turn @ down, [0, 0, -1])


@pytest.mark.parametrize("width, height", [(384, 256), (389, 262)])
def test_a_large_jpeg_decoded_to_a_part_is_the_picture_that_the_whole_makes(width, height):
    import cv2

    small = np.random.default_rng(1).integers(0, 255, (16, 24, 3), dtype=np.uint8)
    rgb = cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)
    jpeg = CompressedImage(format="jpeg", data=cv2.imencode(".jpg", rgb[..., ::-1])[1].tobytes())
    camera = c.camera_info(Intrinsics.from_fov(70, width, height), 0, "camera")
    whole, part = c.pinhole_frame(jpeg, camera), c.pinhole_frame(jpeg, camera, (24, 16))
    assert whole[0].shape == (height, width, 3) and part[0].shape == (height // 4, width // 4, 3)
    # A point of the scene lies at a quarter of its position, to the last bit, also where pixels were cut off.
    k = np.diag([0.25, 0.25, 1.0]) @ whole[1].matrix()
    np.testing.assert_allclose(part[1].matrix(), k, rtol=1e-12)
    fitted = [fit_frames(frame[None], camera, 24, 16)[0][0].astype(float) for frame, camera in (whole, part)]
    assert np.abs(fitted[0] - fitted[1]).mean() < 3


def test_a_jpeg_of_another_size_than_its_camera_is_refused_before_it_is_decoded_to_a_part():
    import cv2

    jpeg = CompressedImage(format="jpeg", data=cv2.imencode(".jpg", np.zeros((256, 385, 3), np.uint8))[1].tobytes())
    with pytest.raises(c.ConversionError, match="for 384x256 images, but the image is 385x256"):
        c.pinhole_frame(jpeg, c.camera_info(Intrinsics.from_fov(70, 384, 256), 0, "camera"), (24, 16))
