# SPDX-License-Identifier: Apache-2.0
"""Windows to places with covariances: the one way of the node and the bag."""

from dataclasses import replace

import numpy as np
import pytest
from pixel_pipeline import PixelPipeline, path, picture

from rays_as_pixels_model.geometry import Intrinsics, invert
from rays_as_pixels_ros.placing import WindowPlacer
from rays_as_pixels_ros.stitching import Stitcher
from rays_as_pixels_ros.uncertainty import UNKNOWN

CAMERA = Intrinsics.from_fov(70.0, 72, 48)


def placed(windows, paused=(), refine=False, **calibration):
    """Places of the frames of windows (frame numbers each), of which some are paused (their indices)."""
    pipe = PixelPipeline()
    measured = replace(pipe.calibration.of(refine), **calibration)
    placer, found = WindowPlacer(Stitcher(), measured, samples=6, every=4), {}
    for index, ids in enumerate(windows):
        frames = np.stack([picture(number) for number in ids])
        estimate = pipe.estimate_trajectory(frames, CAMERA, refine=refine)
        covariances = placer.spreads.of(pipe, frames, CAMERA, estimate, index in paused)
        for place in placer.place(ids, estimate.T_reference_camera, covariances):
            assert ids[place.index] == place.stitched.frame
            found[place.stitched.frame] = place
        placer.spreads.refresh(pipe, frames, CAMERA, estimate, index in paused)
    return found


@pytest.mark.parametrize("refine", [False, True])
def test_places_are_on_the_path_and_known_worse_and_worse(refine):
    windows = [list(range(start, start + 5)) for start in range(0, 21, 2)]
    found = placed(windows, refine=refine)
    true = invert(path()[0]) @ path()[:25]
    true[:, :3, 3] *= 0.7  # the unit of the first window
    np.testing.assert_allclose([found[k].stitched.T_map_camera for k in range(25)], true, atol=1e-9)
    spread = [np.trace(found[k].covariance[3:, 3:]) for k in (4, 8, 12, 16, 20, 24)]
    assert spread == sorted(spread) and not found[0].covariance[:3, 3:].any()
    independent = placed(windows, refine=refine, correlation_frames=0.0)
    np.testing.assert_allclose(independent[4].covariance, found[4].covariance, atol=1e-12)
    assert np.trace(independent[24].covariance[3:, 3:]) < 0.7 * spread[-1]


def test_after_a_gap_neither_the_place_nor_the_motion_to_it_is_known():
    found = placed([range(0, 5), range(10, 15)])
    np.testing.assert_array_equal(found[10].step_covariance, UNKNOWN)
    assert np.all(np.diag(found[10].covariance) >= np.diag(UNKNOWN))
    assert np.trace(found[11].step_covariance) < 1.0, "from there on the window tells"


def test_a_window_with_a_pause_has_samples_of_its_own_and_they_serve_no_other():
    """The pipeline draws further apart where frames are missing: here those that the camera did not take in a pause."""
    windows = [range(0, 5), range(2, 7), (4, 5, 6, 20, 21), (6, 20, 21, 22, 23), range(20, 25), range(22, 27)]
    calibration = dict(translation_motion=0.0, rotation_motion=0.0, correlation_frames=0.0)
    shared, own = placed(windows, **calibration), placed(windows, (2, 3), **calibration)

    def step(found, number):
        return np.trace(found[number].step_covariance)

    assert step(own, 20) > 50 * step(shared, 20), "14 times as far apart as the draws of the windows before"
    assert step(own, 5) == step(shared, 5)
    for number in (24, 26):
        assert step(own, number) < 3 * step(own, 5) < step(shared, number) / 10
