# SPDX-License-Identifier: Apache-2.0
"""The codec keeps cameras, its layout is the paper's, and the latent normalisation is invertible."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rays_as_pixels_model.checkpoint import load_checkpoint
from rays_as_pixels_model.codec import LatentNormaliser, LinearCodec, fit_basis, polynomial_basis
from rays_as_pixels_model.config import CodecConfig
from rays_as_pixels_model.geometry import Intrinsics, make_pose, rotation_angle_deg, so3_exp
from rays_as_pixels_model.raxels import make_raxels, read_cameras


@pytest.fixture(scope="module")
def model():
    return load_checkpoint()


@settings(max_examples=25, deadline=None)
@given(st.floats(35, 90), st.integers(0, 10_000))
def test_cameras_survive_encode_and_decode(model, fov, seed):
    """The bar is 0.1 degrees and 0.005 of the scale, for cameras that no fit has seen."""
    rng = np.random.default_rng(seed)
    camera = Intrinsics.from_fov(fov, model.config.width, model.config.height)
    T = make_pose(so3_exp(rng.normal(size=(5, 3)) * 0.3), rng.normal(size=(5, 3)) * 0.5)
    raxels = make_raxels(T, camera, model.config.height // 2, model.config.width // 2)
    decoded = model.decode_rays(model.encode_rays(torch.from_numpy(raxels)[None]))[0]
    found = read_cameras(decoded.numpy(), camera).T_reference_camera
    assert rotation_angle_deg(np.swapaxes(found[:, :3, :3], 1, 2) @ T[:, :3, :3]).max() < 0.1
    assert np.abs(found[:, :3, 3] - T[:, :3, 3]).max() < 0.005


def test_layout_first_frame_alone_then_four_to_one(model):
    frames = torch.rand(2, 9, 16, 24, 3) * 2 - 1
    latents = model.codec.encode(frames, (1, 4, 4))
    assert latents.shape == (2, 3, 2, 3, model.config.codec.channels)
    assert model.codec.decode(latents, (1, 4, 4)).shape == frames.shape
    alone = model.codec.encode(frames[:, :1], (1,))
    torch.testing.assert_close(latents[:, :1], alone)  # no look ahead
    with pytest.raises(ValueError, match="9 frames, but 5"):
        model.codec.encode(frames[:, :5], (1, 4, 4))


def test_a_full_basis_loses_nothing():
    codec = LinearCodec(CodecConfig(channels=192))
    blocks = torch.randn(500, 192)
    codec.image_basis.copy_(fit_basis(blocks.T @ blocks, 8, 1, 192, 2))
    frames = torch.rand(1, 2, 16, 16, 3)
    torch.testing.assert_close(codec.decode(codec.encode(frames, (1, 1)), (1, 1)), frames, atol=1e-5, rtol=1e-5)


def test_bases_are_orthonormal_and_hold_the_polynomials(model):
    for basis, group, degree in ((model.codec.image_basis, 1, 2), (model.codec.video_basis, 4, 1)):
        torch.testing.assert_close(basis @ basis.T, torch.eye(len(basis)), atol=1e-4, rtol=0)
        fixed = polynomial_basis(8, group, degree).float()
        torch.testing.assert_close(fixed @ basis.T @ basis, fixed, atol=1e-4, rtol=0)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 1000))
def test_normalisation_is_invertible(seed):
    generator = torch.Generator().manual_seed(seed)
    normaliser = LatentNormaliser(6, (2, 3))
    normaliser.fit_frames(*((torch.randn(6, generator=generator), torch.rand(6, generator=generator)) for _ in "ab"))
    normaliser.fit_rays([torch.randn(50, 2, 3, 6, generator=generator) * torch.rand(6, generator=generator)])
    z = torch.randn(2, 2, 2, 3, 6, generator=generator)
    torch.testing.assert_close(normaliser.video_out(normaliser.video_in(z, (1, 4)), (1, 4)), z, atol=1e-4, rtol=1e-4)
    r = torch.randn(2, 5, 2, 3, 6, generator=generator)
    torch.testing.assert_close(normaliser.rays_out(normaliser.rays_in(r)), r, atol=1e-4, rtol=1e-4)


def test_mean_and_deviation_of_rays_have_unit_variance():
    normaliser = LatentNormaliser(4, (2, 3))
    generator = torch.Generator().manual_seed(0)
    offset = torch.randn(4000, 1, 1, 4, generator=generator) * 5
    rays = offset + torch.randn(4000, 2, 3, 4, generator=generator) * 0.3
    normaliser.fit_rays(rays.split([1000, 1, 2999]), floor=0.0)
    out = normaliser.rays_in(rays[:, None])[:, 0]
    mean = out.mean((1, 2))
    assert mean.std().item() == pytest.approx(1, abs=0.05)
    assert (out - mean[:, None, None]).std().item() == pytest.approx(1, abs=0.05)
