"""Distances of colour and texture, which know nothing of what an image shows."""

import numpy as np
import pytest

from styledrop_jax.metrics.statistics import colour_distance, texture_distance


def _stripes(width, dark, light, size=64):
    rows = (np.arange(size) // width % 2).astype(bool)
    image = np.empty((size, size, 3), np.uint8)
    image[rows] = dark
    image[~rows] = light
    return image


INK = _stripes(4, (20, 20, 60), (240, 230, 200))


@pytest.mark.parametrize("distance", [colour_distance, texture_distance])
def test_an_image_is_at_no_distance_from_itself(distance):
    assert distance(INK, INK) == 0


def test_colour_knows_no_places_and_texture_no_colours():
    turned = np.swapaxes(INK, 0, 1)
    assert colour_distance(INK, turned) == 0
    brighter = (INK + 15).astype(np.uint8)
    assert colour_distance(INK, brighter) > 0.04
    assert texture_distance(INK, brighter) == pytest.approx(0, abs=1e-6)


def test_what_is_farther_is_at_a_larger_distance():
    near = _stripes(4, (30, 30, 80), (240, 230, 200))
    far = _stripes(4, (200, 20, 20), (20, 200, 20))
    assert colour_distance(near, INK) < colour_distance(far, INK)
    flat = np.full((64, 64, 3), 128, np.uint8)
    fine = _stripes(2, (20, 20, 60), (240, 230, 200))
    assert texture_distance(INK, fine) < texture_distance(INK, flat)


def test_images_of_other_sizes_and_aspects_compare():
    large = _stripes(16, (20, 20, 60), (240, 230, 200), size=256)
    assert colour_distance(large, INK) == pytest.approx(0, abs=1e-6)
    assert np.isfinite(texture_distance(np.zeros((10, 300, 3), np.uint8), INK))
