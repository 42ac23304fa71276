"""The threat balls: start, step, projection and distance."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from method_helpers import pixels, seeded

from aalp.errors import OptionError
from aalp.method.threat import L2, Linf

BOTH = pytest.mark.parametrize("ball", [Linf, L2])


def exact_distance(ball, candidates, images):
    """The distance in float64, written apart from the package."""
    change = (candidates.double() - images.double()).flatten(1)
    return change.abs().amax(1) if ball is Linf else change.square().sum(1).sqrt()


@pytest.mark.parametrize(
    ("threat", "image", "candidate", "projected"),
    [
        # Each pixel moves at most 0.1: 0.7 comes back to 0.5 + 0.1; 0.45 is inside.
        (Linf(0.1), [0.5, 0.5], [0.7, 0.45], [0.6, 0.45]),
        # The ball reaches from -0.05 to 0.15 and from 0.85 to 1.05; [0, 1] cuts it.
        (Linf(0.1), [0.05, 0.95], [-0.2, 1.2], [0.0, 1.0]),
        # The change (0.6, 0.8) is 1 long: half of it remains.
        (L2(0.5), [0.0, 0.0], [0.6, 0.8], [0.3, 0.4]),
        # The change (0.3, 0.4) is 0.5 long, just on the ball.
        (L2(0.5), [0.1, 0.2], [0.4, 0.6], [0.4, 0.6]),
        # The change (-0.6, 0.8) shrinks to (-0.3, 0.4); the first pixel would be -0.2 and is cut to 0.
        (L2(0.5), [0.1, 0.2], [-0.5, 1.0], [0.0, 0.6]),
    ],
)
def test_projection_by_hand(threat, image, candidate, projected):
    torch.testing.assert_close(threat.project(pixels(candidate), pixels(image)), pixels(projected))


@pytest.mark.parametrize(
    ("threat", "gradient", "step"),
    [
        (Linf(0.1), [-3.0, 0.0, 1e-30], [-1.0, 0.0, 1.0]),
        # (3, 0, 4) is 5 long.
        (L2(0.1), [3.0, 0.0, 4.0], [0.6, 0.0, 0.8]),
        (L2(0.1), [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]),
    ],
)
def test_steepest_step_by_hand(threat, gradient, step):
    torch.testing.assert_close(threat.steepest_step(pixels(gradient)), pixels(step))


@pytest.mark.parametrize("size", [1e-35, 1e-25, 1e-20, 1.0, 1e15, 1e25])
def test_the_l2_step_has_unit_length_whatever_the_size_of_the_gradient(size):
    # A confident network's gradients are this small; squared they underflow in float32.
    step = L2(1.0).steepest_step(pixels([3.0, 0.0, -4.0]) * size)
    torch.testing.assert_close(step, pixels([0.6, 0.0, -0.8]))


@pytest.mark.parametrize(
    ("threat", "distance"),
    # The changes are (0.3, -0.4) and (0, 0.1): largest 0.4 and 0.1; lengths 0.5 and 0.1.
    [(Linf(0.1), [0.4, 0.1]), (L2(0.1), [0.5, 0.1])],
)
def test_distance_by_hand(threat, distance):
    images = pixels([0.2, 0.6], [0.5, 0.5])
    candidates = pixels([0.5, 0.2], [0.5, 0.6])
    torch.testing.assert_close(threat.distance(candidates, images), torch.tensor(distance))


@pytest.mark.parametrize(
    ("threat", "candidate", "inside"),
    [
        (Linf(0.2), [0.2, 0.9], True),
        (Linf(0.2), [0.21, 0.9], False),
        (Linf(0.2), [0.0, 1.0001], False),
        (Linf(0.2), [-0.0001, 0.9], False),
        (L2(0.5), [0.3, 0.5], True),
        (L2(0.5), [0.3, 0.49], False),
        (L2(0.5), [0.0, 1.0001], False),
        (Linf(0.2), [float("nan"), 0.9], False),
        (L2(0.5), [float("nan"), 0.9], False),
    ],
)
def test_contains_checks_the_ball_and_the_pixel_range(threat, candidate, inside):
    # From (0, 0.9): (0.3, -0.4) is 0.5 long, (0.3, -0.41) is 0.508 long.
    assert threat.contains(pixels(candidate), pixels([0.0, 0.9])).tolist() == [inside]


@BOTH
@given(
    eps=st.floats(1e-3, 10.0),
    size=st.sampled_from([(1, 1, 1), (1, 2, 3), (3, 8, 8)]),
    spread=st.floats(0.0, 8.0),
    seed=st.integers(0, 10_000),
)
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
def test_every_projection_lands_in_the_ball_and_stays_there(ball, eps, size, spread, seed):
    eps = min(eps, 1.0) if ball is Linf else eps
    threat, random = ball(eps), seeded(seed)
    # Half of the pixels lie on an edge of the range.
    images = torch.rand(4, *size, generator=random).mul(2).sub(0.5).clamp(0, 1)
    candidates = images + torch.randn(images.shape, generator=random) * spread
    projected = threat.project(candidates, images)
    assert (projected >= 0).all()
    assert (projected <= 1).all()
    assert (exact_distance(ball, projected, images) <= eps + 1e-6).all()
    assert threat.contains(projected, images).all()
    torch.testing.assert_close(threat.project(projected, images), projected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("eps", [0.5, 3.0, 10.0, 100.0])
def test_a_large_image_projects_into_the_l2_ball_in_spite_of_rounding(eps):
    # Away from the edges of [0, 1], which would shorten the change.
    images, threat = 0.2 + 0.6 * torch.rand(8, 3, 224, 224, generator=seeded()), L2(eps)
    projected = threat.project(threat.random_start(images, seeded(1), 3.0), images)
    assert threat.contains(projected, images).all()
    distance = threat.distance(projected, images)
    assert distance.dtype == projected.dtype == torch.float32
    torch.testing.assert_close(distance.double(), exact_distance(L2, projected, images), atol=0, rtol=1e-7)


@BOTH
def test_operations_leave_their_arguments_alone(ball):
    images, candidates = torch.rand(3, 1, 2, 2), torch.rand(3, 1, 2, 2) * 3 - 1
    before = images.clone(), candidates.clone()
    threat = ball(0.1)
    threat.random_start(images)
    threat.steepest_step(candidates)
    threat.project(candidates, images)
    assert torch.equal(images, before[0])
    assert torch.equal(candidates, before[1])


def test_the_linf_start_is_uniform_in_the_cube():
    count, eps = 40_000, 0.25
    start = Linf(eps).random_start(torch.zeros(count, 1, 1, 2), seeded()).flatten(1)
    assert start.abs().max() <= eps
    # Uniform on [-eps, eps]: mean 0 and variance eps^2 / 3, here within five standard errors; the pixels are independent.
    deviation = eps / 3**0.5
    assert start.mean(0).abs().max() < 5 * deviation / count**0.5
    assert (start.square().mean(0) / deviation**2 - 1).abs().max() < 5 * 0.9 / count**0.5
    assert abs((start[:, 0] * start[:, 1]).mean()) < 5 * deviation**2 / count**0.5
    # A quarter of them in each quarter of the range.
    for quarter in range(4):
        low = eps * (quarter / 2 - 1)
        share = ((start >= low) & (start < low + eps / 2)).float().mean(0)
        assert (share - 0.25).abs().max() < 5 * (0.25 * 0.75 / count) ** 0.5


@pytest.mark.parametrize("dimensions", [1, 2, 3, 12])
def test_the_l2_start_is_uniform_in_the_ball(dimensions):
    count, eps = 20_000, 0.5
    start = L2(eps).random_start(torch.zeros(count, 1, 1, dimensions), seeded()).flatten(1)
    radius = start.norm(dim=1) / eps
    assert radius.max() <= 1 + 1e-6
    # The volume within r grows as r^d, so E[r] = d / (d + 1) and E[r^2] = d / (d + 2).
    mean, mean_square = dimensions / (dimensions + 1), dimensions / (dimensions + 2)
    error = ((mean_square - mean**2) / count) ** 0.5
    assert abs(radius.mean() - mean) < 5 * error
    # Inside half the radius lies 2^-d of the volume.
    half = 0.5**dimensions
    assert abs((radius < 0.5).float().mean() - half) < 5 * (half * (1 - half) / count) ** 0.5
    # No direction is preferred: each coordinate has mean 0 and the variance eps^2 / (d + 2).
    assert start.mean(0).abs().max() < 5 * eps * (1 / (dimensions + 2) / count) ** 0.5


@BOTH
def test_a_start_of_another_scale_has_another_radius(ball):
    images = torch.full((2_000, 1, 2, 2), 0.5)
    threat = ball(0.1)
    once, twice = (threat.random_start(images, seeded(), scale) - images for scale in (1.0, 2.0))
    torch.testing.assert_close(twice, 2 * once, atol=1e-6, rtol=1e-4)
    assert torch.equal(threat.random_start(images, seeded(), 0.0), images)


@BOTH
def test_a_start_depends_on_the_generator_alone(ball):
    images, threat = torch.rand(3, 1, 4, 4), ball(0.1)
    state = torch.get_rng_state()
    first, again, other = (threat.random_start(images, seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@BOTH
def test_float64_images_stay_float64(ball):
    images, threat = torch.rand(2, 1, 2, 2, dtype=torch.float64), ball(0.1)
    start = threat.random_start(images)
    assert start.dtype == threat.steepest_step(start).dtype == threat.project(start, images).dtype == torch.float64


@BOTH
@pytest.mark.parametrize("eps", [0.0, -0.1, float("nan"), float("inf"), "8/255", None])
def test_a_radius_that_makes_no_sense_is_refused(ball, eps):
    with pytest.raises(OptionError, match=rf"eps is {eps}: .*positive number in pixel units, such as 8/255"):
        ball(eps)


def test_a_radius_in_steps_of_255_is_refused_where_no_image_is_that_far():
    with pytest.raises(OptionError, match=r"eps is 8: .*of 0\.\.255 give 8/255"):
        Linf(8.0)
    assert Linf(1.0).eps == 1.0
    assert L2(8.0).eps == 8.0


@BOTH
def test_a_threat_names_its_norm_and_cannot_be_changed(ball):
    threat = ball(0.1)
    assert threat.norm == ball.__name__
    with pytest.raises(dataclasses.FrozenInstanceError):
        threat.eps = 0.2
