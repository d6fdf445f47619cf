# SPDX-License-Identifier: Apache-2.0
"""cv_bridge.CvBridge in numpy and OpenCV: for bare hosts, and where the compiled one does not import."""

import array

import cv2
import numpy as np

_TYPES = {"8U": np.uint8, "8S": np.int8, "16U": np.uint16, "16S": np.int16, "32S": np.int32, "32F": np.float32,
          "64F": np.float64}  # fmt: skip
# encoding: (dtype, channels)
_ENCODINGS = {
    "mono8": (np.uint8, 1), "mono16": (np.uint16, 1), "bgr8": (np.uint8, 3), "rgb8": (np.uint8, 3),
    "bgra8": (np.uint8, 4), "rgba8": (np.uint8, 4), "bgr16": (np.uint16, 3), "rgb16": (np.uint16, 3),
    "bgra16": (np.uint16, 4), "rgba16": (np.uint16, 4),
    "yuv422": (np.uint8, 2), "uyvy": (np.uint8, 2), "yuv422_yuy2": (np.uint8, 2), "yuyv": (np.uint8, 2),
}  # fmt: skip
for _pattern in ("rggb", "bggr", "gbrg", "grbg"):
    _ENCODINGS[f"bayer_{_pattern}8"] = (np.uint8, 1)
    _ENCODINGS[f"bayer_{_pattern}16"] = (np.uint16, 1)
# OpenCV names a Bayer pattern by its second row and column.
_BAYER = {"rggb": "BG", "bggr": "RG", "gbrg": "GR", "grbg": "GB"}
_UYVY, _YUYV = ("yuv422", "uyvy"), ("yuv422_yuy2", "yuyv")


class CvBridgeError(TypeError):
    """An image cannot be converted."""


class CvBridge:
    """Convert between sensor_msgs images and OpenCV arrays."""

    def imgmsg_to_cv2(self, img_msg, desired_encoding="passthrough"):
        """Return the image (height, width[, channels]) in the encoding asked for.

        With 'passthrough', or when nothing needs converting, the array may share (read-only) memory with the message.
        """
        dtype, channels = encoding_type(img_msg.encoding)
        dtype = np.dtype(dtype).newbyteorder(">" if img_msg.is_bigendian else "<")
        row = img_msg.width * channels * dtype.itemsize
        step = img_msg.step or row
        data = _raw_bytes(img_msg)
        if step < row or len(data) < step * img_msg.height:
            raise CvBridgeError(
                f"image {img_msg.width}x{img_msg.height} {img_msg.encoding}: step {step} and {len(data)} bytes of data "
                f"do not fit (a row needs {row})"
            )
        shape = (img_msg.height, img_msg.width) + ((channels,) if channels > 1 else ())
        strides = (step, channels * dtype.itemsize) + ((dtype.itemsize,) if channels > 1 else ())
        image = np.ndarray(shape, dtype, data, strides=strides)
        if not dtype.isnative:
            image = image.astype(dtype.newbyteorder("="))
        if desired_encoding in ("passthrough", img_msg.encoding):
            return image
        return convert(image, img_msg.encoding, desired_encoding)

    def cv2_to_imgmsg(self, cvim, encoding="passthrough", header=None):
        """Return a sensor_msgs Image of an array."""
        from sensor_msgs.msg import Image

        if not isinstance(cvim, np.ndarray):
            raise TypeError("Your input type is not a numpy array")
        if encoding == "passthrough":
            encoding = self.dtype_with_channels_to_cvtype2(cvim.dtype, 1 if cvim.ndim == 2 else cvim.shape[2])
        dtype, channels = encoding_type(encoding)
        if np.dtype(dtype) != cvim.dtype or channels != (1 if cvim.ndim == 2 else cvim.shape[2]):
            raise CvBridgeError(f"encoding specified as {encoding}, but image has shape {cvim.shape} and {cvim.dtype}")
        message = Image()
        if header is not None:
            message.header = header
        message.height, message.width = cvim.shape[:2]
        message.encoding = encoding
        message.is_bigendian = 0
        data = np.ascontiguousarray(cvim, cvim.dtype.newbyteorder("<"))
        message.step = data.nbytes // message.height if message.height else 0
        message.data.frombytes(data.data.cast("B") if data.size else b"")
        return message

    def compressed_imgmsg_to_cv2(self, cmprs_img_msg, desired_encoding="passthrough"):
        """Decode a CompressedImage; colour images come as bgr8 under 'passthrough'."""
        data = np.frombuffer(_raw_bytes(cmprs_img_msg), np.uint8)
        flag = cv2.IMREAD_UNCHANGED if desired_encoding == "passthrough" else cv2.IMREAD_ANYCOLOR | cv2.IMREAD_ANYDEPTH
        image = cv2.imdecode(data, flag) if len(data) else None
        if image is None:
            raise CvBridgeError(f"a CompressedImage of format '{cmprs_img_msg.format}' does not decode")
        if desired_encoding == "passthrough":
            return image
        depth = "16" if image.dtype == np.uint16 else "8"
        found = {1: "mono", 3: "bgr", 4: "bgra"}[1 if image.ndim == 2 else image.shape[2]] + depth
        return image if found == desired_encoding else convert(image, found, desired_encoding)

    def cv2_to_compressed_imgmsg(self, cvim, dst_format="jpg"):
        """Encode a bgr8 or mono8 array."""
        from sensor_msgs.msg import CompressedImage

        if not isinstance(cvim, np.ndarray):
            raise TypeError("Your input type is not a numpy array")
        done, data = cv2.imencode("." + dst_format.lower().lstrip("."), cvim)
        if not done:
            raise CvBridgeError(f"cannot encode an image of shape {cvim.shape} as {dst_format}")
        message = CompressedImage()
        message.format = {"jpg": "jpeg"}.get(dst_format.lower(), dst_format.lower())
        message.data = array.array("B", data.tobytes())
        return message

    def dtype_with_channels_to_cvtype2(self, dtype, n_channels):
        """Return the OpenCV name of a type, such as 8UC3."""
        for name, known in _TYPES.items():
            if np.dtype(known) == dtype:
                return f"{name}C{n_channels}"
        raise CvBridgeError(f"no image type for {dtype}")

    def encoding_to_dtype_with_channels(self, encoding):
        """Return (dtype name, channels) of an encoding."""
        dtype, channels = encoding_type(encoding)
        return np.dtype(dtype).name, channels


def _raw_bytes(message):
    """Return the bytes of `message.data` without a copy where that is possible."""
    data = getattr(message, "_wire_data", None)
    return memoryview(message.data if data is None else data).cast("B")


def encoding_type(encoding):
    """Return (dtype, channels) of an encoding name."""
    known = _ENCODINGS.get(encoding)
    if known is None and "C" in encoding:
        base, _, channels = encoding.partition("C")
        if base in _TYPES and (channels or "1").isdigit():
            known = (_TYPES[base], int(channels or 1))
    if known is None and encoding in _TYPES:
        known = (_TYPES[encoding], 1)
    if known is None:
        raise CvBridgeError(f"Unrecognized image encoding [{encoding}]")
    return known


def _colour(encoding):
    """Return (colour layout, bits) of an encoding: ('bgr', 8), ('bayer_rggb', 16), ('yuv422', 8), ..."""
    if encoding in _UYVY or encoding in _YUYV:
        return encoding, 8
    for bits in (16, 8):
        if encoding.endswith(str(bits)) and encoding in _ENCODINGS:
            return encoding[: -len(str(bits))], bits
    dtype, channels = encoding_type(encoding)
    return {1: "mono", 3: "bgr", 4: "bgra"}.get(channels, encoding), np.dtype(dtype).itemsize * 8


def convert(image, source, target):
    """Convert between encodings; a target such as 32FC1 only names type and channels."""
    target_dtype, target_channels = encoding_type(target)
    if target not in _ENCODINGS:
        channels = 1 if image.ndim == 2 else image.shape[2]
        if channels != target_channels:
            raise CvBridgeError(f"[{source}] has {channels} channels, [{target}] {target_channels}")
        return image.astype(target_dtype)
    (layout, bits), (wanted, wanted_bits) = _colour(source), _colour(target)
    if source not in _ENCODINGS and np.dtype(encoding_type(source)[0]) not in (np.uint8, np.uint16):
        raise CvBridgeError(f"[{source}] is not a color format. but [{target}] is. The conversion does not make sense")
    if layout.startswith("bayer_"):
        image = cv2.cvtColor(image, getattr(cv2, f"COLOR_Bayer{_BAYER[layout[6:]]}2BGR"))
        layout = "bgr"
    elif layout in _UYVY or layout in _YUYV:
        image = cv2.cvtColor(image, cv2.COLOR_YUV2BGR_UYVY if layout in _UYVY else cv2.COLOR_YUV2BGR_YUY2)
        layout = "bgr"
    if layout != wanted:
        names = {"mono": "GRAY", "bgr": "BGR", "rgb": "RGB", "bgra": "BGRA", "rgba": "RGBA"}
        if layout not in names or wanted not in names:
            raise CvBridgeError(f"cannot convert [{source}] to [{target}]")
        image = cv2.cvtColor(np.ascontiguousarray(image), getattr(cv2, f"COLOR_{names[layout]}2{names[wanted]}"))
    if bits != wanted_bits:
        scale = 255.0 / 65535.0 if wanted_bits == 8 else 65535.0 / 255.0
        image = np.round(image * scale).astype(target_dtype)
    return image
