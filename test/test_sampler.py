# SPDX-License-Identifier: Apache-2.0
"""The asymmetric schedule and its solvers, against a flow whose end is known in closed form."""

import numpy as np
import pytest
import torch

from rays_as_pixels_model.sampler import Schedule, guided, sample

MEAN, SPREAD = 0.7, 0.3


def gaussian_velocity(x, t):
    """Velocity of the flow from N(0, 1) to N(MEAN, SPREAD^2); it takes x_0 to MEAN + SPREAD x_0."""
    t = t.reshape(*t.shape, *[1] * (x.ndim - t.ndim))
    variance = (1 - t) ** 2 + (t * SPREAD) ** 2
    return MEAN + (t * SPREAD**2 - (1 - t)) / variance * (x - t * MEAN)


def flow(z, r, t_z, t_r):
    return gaussian_velocity(z, t_z), gaussian_velocity(r, t_r)


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def curved(z, r, t_z, t_r):
    """x' = -(1 + t) x^2, not linear as Gaussian flows are (on those the midpoint rule has order 3)."""
    return tuple(-(1 + t[..., None]) * x**2 for x, t in ((z, t_z), (r, t_r)))


def error(solver, z_steps, r_steps):
    z, r = noise(2, 2, 3).abs() + 0.5, noise(2, 4, 3, seed=1).abs() + 0.5
    found = sample(curved, z, r, Schedule(z_steps, r_steps, solver))
    return [float((a - 1 / (1 / x + 1.5)).abs().max()) for a, x in zip(found, (z, r), strict=True)]


@pytest.mark.parametrize("solver, order", [("euler", 1), ("heun", 2), ("midpoint", 2)])
def test_solvers_have_their_order(solver, order):
    coarse, fine = error(solver, 32, 32), error(solver, 128, 128)
    for a, b in zip(coarse, fine, strict=True):
        assert np.log(a / b) / np.log(4) == pytest.approx(order, abs=0.25)


def test_each_modality_has_its_own_count_and_error():
    coarse, fine = error("midpoint", 8, 64)
    assert coarse == pytest.approx(error("midpoint", 8, 8)[0], rel=1e-5) and fine < coarse / 20


def test_a_gaussian_flow_arrives_at_its_gaussian():
    z = noise(200, 50, 1)
    end, _ = sample(flow, z, noise(200, 1, 1), Schedule(32, 0, "midpoint"))
    torch.testing.assert_close(end, MEAN + SPREAD * z, atol=1e-4, rtol=0)


@pytest.mark.parametrize("solver, per_step", [("euler", 1), ("heun", 2), ("midpoint", 2)])
def test_evaluations_of_a_second_order_step(solver, per_step):
    calls = []

    def counting(*arguments):
        calls.append(1)
        return flow(*arguments)

    sample(counting, noise(1, 2, 3), noise(1, 2, 3), Schedule(4, 4, solver))
    assert len(calls) == 4 * per_step - (solver == "heun")  # Heun's last step is Euler's


def test_the_staircase_moves_the_shorter_side_first():
    t_z, t_r = Schedule(6, 2).times()
    np.testing.assert_allclose(t_z, np.linspace(0, 1, 7))
    np.testing.assert_allclose(t_r, [0, 0.5, 0.5, 0.5, 1, 1, 1])
    t_z, t_r = Schedule(0, 3, shift=2.0).times()
    assert (t_z == 1).all() and t_r[1] == pytest.approx(0.2)
    for z_steps, r_steps in ((7, 3), (3, 7), (5, 5), (1, 9)):
        for t, own in zip(Schedule(z_steps, r_steps).times(), (z_steps, r_steps), strict=True):
            assert t[0] == 0 and t[-1] == 1 and int((np.diff(t) > 0).sum()) == own


@pytest.mark.parametrize("solver", ["euler", "heun", "midpoint"])
@pytest.mark.parametrize("corner", [(0, 3), (3, 0), (3, 3)])
def test_corners_equal_the_masks(solver, corner):
    """A count of 0 is the same as a mask that says clean everywhere; what is clean keeps time 1 and does not move."""
    z, r = noise(2, 3, 4), noise(2, 5, 4, seed=1)
    clean_z = torch.full((2, 3), corner[0] == 0)
    clean_r = torch.full((2, 5), corner[1] == 0)
    clean_z[:, 0] = True
    seen = []

    def velocity(z, r, t_z, t_r):
        seen.append((bool((t_z[clean_z] == 1).all()), bool((t_r[clean_r] == 1).all())))
        return gaussian_velocity(z, t_z) + 0.1 * r.mean(), gaussian_velocity(r, t_r) + 0.1 * z.mean()

    by_count = sample(velocity, z, r, Schedule(*corner, solver), clean_z, None)
    by_mask = sample(velocity, z, r, Schedule(3, 3, solver), clean_z, clean_r)
    for a, b in zip(by_count, by_mask, strict=True):
        torch.testing.assert_close(a, b)
    assert all(a and b for a, b in seen)
    assert torch.equal(by_count[0][:, 0], z[:, 0]) and not torch.equal(by_count[corner[0] == 0], (z, r)[corner[0] == 0])


def test_samples_of_one_batch_are_those_drawn_one_by_one():
    z, r = noise(1, 2, 3).expand(5, -1, -1), noise(5, 4, 3, seed=1)

    def velocity(z, r, t_z, t_r):
        return torch.zeros_like(z), gaussian_velocity(r, t_r) + 0.2 * z.mean((1, 2), keepdim=True)

    together = sample(velocity, z, r, Schedule(0, 2, "midpoint"))[1]
    for k in range(5):
        alone = sample(velocity, z[:1], r[k : k + 1], Schedule(0, 2, "midpoint"))[1]
        torch.testing.assert_close(together[k : k + 1], alone)
    assert (together.std(0) > 0.01).all()


def test_guidance_moves_from_the_dropped_branch_through_the_conditional_one():
    z, r = noise(1, 3, 4), noise(1, 3, 4, seed=1)
    source = torch.tensor([[True, False, False]])
    dropped = noise(1, 3, 4, seed=2)
    times = []

    def velocity(z, r, t_z, t_r):
        times.append(t_z[0].tolist())
        return z[:, :1].expand_as(z), r

    t_z, t_r = torch.where(source, 1.0, 0.25), torch.ones(1, 3)
    none, one, two = (guided(velocity, source, dropped, w)(z, r, t_z, t_r) for w in (0.0, 1.0, 2.0))
    assert times[:2] == [[1, 0.25, 0.25], [0, 0.25, 0.25]] and len(times) == 5
    torch.testing.assert_close(none[0][:, 0], dropped[:, 0])
    torch.testing.assert_close(one[0][:, 0], z[:, 0])
    torch.testing.assert_close(two[0][:, 0], 2 * z[:, 0] - dropped[:, 0])
    torch.testing.assert_close(two[1], r)


@pytest.mark.parametrize(
    "arguments, words",
    [((0, 0), "0 of z and 0 of r"), ((-1, 2), "-1"), ((1, 1, "rk4"), "'rk4'"), ((1, 1, "euler", 0.0), "0.0")],
)
def test_bad_schedules_are_named(arguments, words):
    with pytest.raises(ValueError, match=words):
        Schedule(*arguments)


@pytest.mark.parametrize("weight", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_refused(weight):
    with pytest.raises(ValueError, match=f"finite weight, got {weight}"):
        guided(flow, torch.ones(1, 2, dtype=torch.bool), noise(1, 2, 3), weight)
