# SPDX-License-Identifier: Apache-2.0
"""Buffers: overlap is never broken, memory never grows, drops are counted."""

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rays_as_pixels_ros.window import RecentFrames, StampMatcher, WindowBuffer, spans_pause


@given(length=st.integers(2, 9), data=st.data(), stride=st.integers(1, 4), total=st.integers(0, 80))
def test_windows_overlap_and_cover_the_stream_when_the_consumer_keeps_up(length, data, stride, total):
    hop = data.draw(st.integers(1, length - 1))
    buffer = WindowBuffer(length, hop, stride)
    windows = []
    for number in range(total):
        buffer.push(number)
        window = buffer.take(timeout=0)
        if window:
            windows.append(window)
    kept = list(range(0, total, stride))
    assert buffer.dropped == 0
    for index, window in enumerate(windows):
        start = index * hop
        assert list(window.items) == kept[start : start + length]
        assert window.ids == tuple(range(start, start + length))
        assert window.common == (0 if index == 0 else length - hop)
    assert len(windows) == (0 if len(kept) < length else 1 + (len(kept) - length) // hop)


@given(length=st.integers(2, 9), data=st.data(), bursts=st.lists(st.integers(0, 60), max_size=8))
def test_a_slow_consumer_loses_the_oldest_frames_and_no_overlap(length, data, bursts):
    hop = data.draw(st.integers(1, length - 1))
    buffer = WindowBuffer(length, hop, queue_size=length + 3)
    before, taken, pushed = None, 0, 0
    for burst in bursts:
        for _ in range(burst):
            buffer.push(pushed)
            pushed += 1
            assert len(buffer) <= buffer.queue_size
        window = buffer.take(timeout=0)
        if window is None:
            continue
        assert list(window.ids) == sorted(set(window.ids)) and len(window.ids) == length
        if before is not None:
            assert window.ids[: window.common] == before.ids[hop:]
        taken += length - window.common
        before = window
    left = buffer.ready() - (length - hop if before else 0)
    assert pushed == taken + buffer.dropped + len(buffer) + left


def test_take_waits_for_a_frame_and_wakes():
    buffer = WindowBuffer(2, 1)
    buffer.push("a")
    threading.Timer(0.05, buffer.push, args=("b",)).start()
    assert buffer.take(timeout=5.0).items == ("a", "b")
    threading.Timer(0.05, buffer.wake).start()
    assert buffer.take(timeout=5.0) is None


def test_frames_are_prepared_once_and_refused_ones_leave_no_hole_in_the_overlap():
    seen = []

    def prepare(item):
        seen.append(item)
        return None if item % 5 == 3 else item * 10

    buffer = WindowBuffer(4, 2, prepare=prepare)
    windows = []
    for number in range(12):
        buffer.push(number)
        windows += [window] if (window := buffer.take()) else []
    assert seen == list(range(12))
    assert [window.items for window in windows] == [
        (0, 10, 20, 40),
        (20, 40, 50, 60),
        (50, 60, 70, 90),
        (70, 90, 100, 110),
    ]


@pytest.mark.parametrize("ids, stamps, wanted", [
    ((0, 1, 2, 3, 4), (0, 10, 20, 30, 40), False),
    ((0, 1, 2, 3, 4), (0, 10, 20, 90, 100), True),
    ((0, 1, 2, 3, 4), (0, 10, 80, 90, 160), True),  # pairs of images
    ((0, 1, 2, 3, 4), (0, 13, 20, 47, 60), False),  # an image lost in transit
    ((0, 1, 9, 10, 18), (0, 10, 90, 100, 180), False),  # the model is slow: seven were dropped
    ((0, 1, 9, 10, 18), (0, 10, 990, 1000, 1080), True),  # and the camera stopped as well
])  # fmt: skip
def test_a_pause_of_the_camera_is_told_from_dropped_frames(ids, stamps, wanted):
    assert spans_pause(ids, [stamp * 10**6 for stamp in stamps]) == wanted


def test_frame_numbers_go_on_after_clear():
    buffer = WindowBuffer(2, 1)
    buffer.push("a")
    buffer.push("b")
    buffer.take(0)
    buffer.clear()
    buffer.push("c")
    buffer.push("d")
    window = buffer.take(0)
    assert window.ids == (2, 3) and window.common == 0 and window.life == buffer.life == 1


@pytest.mark.parametrize("length, hop, stride", [(1, 1, 1), (5, 5, 1), (5, 0, 1), (5, 2, 0)])
def test_impossible_windows_are_refused(length, hop, stride):
    with pytest.raises(ValueError, match="must be"):
        WindowBuffer(length, hop, stride)


def test_recent_frames_are_newest_first_and_bounded():
    frames = RecentFrames(3, stride=2)
    for number in range(20):
        frames.push(number)
    assert frames.newest(3) == [19, 17, 15]
    assert frames.newest(1) == [19]
    assert len(frames) == 5


@given(st.permutations([(side, stamp) for side in (0, 1) for stamp in range(5)]))
def test_stamps_meet_in_any_order(arrivals):
    matcher = StampMatcher(limit=10)
    pairs = [matcher.push(side, stamp, (side, stamp)) for side, stamp in arrivals]
    assert sorted(pair for pair in pairs if pair) == [((0, stamp), (1, stamp)) for stamp in range(5)]
    assert matcher.unmatched == [0, 0]


def test_halves_without_partner_are_counted_and_forgotten():
    matcher = StampMatcher(limit=3)
    for stamp in range(10):
        assert matcher.push(0, stamp, stamp) is None
    assert matcher.unmatched == [7, 0]
    assert matcher.push(1, 0, "info") is None
    assert matcher.push(1, 9, "info") == (9, "info")
