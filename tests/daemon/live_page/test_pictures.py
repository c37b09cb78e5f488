"""Values along a line, and power spectra, from arrays."""

import numpy as np

from daemon.live_page import pictures


def test_values_between_pixels_are_between_them_and_what_is_not_finite_is_left_out() -> None:
    ramp = np.add.outer(10.0 * np.arange(8), np.arange(9.0))
    np.testing.assert_allclose(pictures.along(ramp, (1.5, 0.25), (1.5, 3.25), 1), 15.25 + np.arange(4))
    np.testing.assert_allclose(pictures.along(ramp, (1, 1), (4, 5), 1), np.linspace(11, 45, 6))
    ramp[2, 2] = np.nan
    assert np.isnan(pictures.along(ramp, (2, 1), (2, 3), 1)).tolist() == [False, True, False]
    np.testing.assert_allclose(pictures.along(ramp, (2, 1), (2, 3), 3), [21, 22, 23])


def test_the_spectrum_of_white_noise_is_its_variance_and_a_lattice_lies_where_it_should() -> None:
    noise = np.random.default_rng(0).normal(100, 3, (700, 600))
    flat = pictures.spectrum(noise)
    assert (flat.side, flat.factor, flat.power.shape) == (600, 2, (300, 300))
    assert abs(np.mean(10.0**flat.power) / 9 - 1) < 0.03
    y, x = np.mgrid[:1024, :1024]
    lattice = pictures.spectrum(np.cos(2 * np.pi * (x * 0.2 + y * 0.05)))
    zero, per_step = (lattice.side / 2 + 0.5) / lattice.factor, lattice.factor / lattice.side
    row, column = np.unravel_index(int(lattice.power.argmax()), lattice.power.shape)
    frequency = [abs(place + 0.5 - zero) * per_step for place in (row, column)]
    np.testing.assert_allclose(frequency, [0.05, 0.2], atol=per_step)


def test_x_ray_hits_do_not_cover_the_spectrum() -> None:
    noise = np.random.default_rng(0).poisson(20, (512, 512)).astype(np.float64)
    clean = pictures.spectrum(noise).power
    hit = noise.copy()
    hit[200, 300] = hit[10, 17] = 60_000
    assert np.median(pictures.spectrum(hit).power) > np.median(clean) + 1
    filled = pictures.spectrum(hit, [(200, 300, 20.0), (10, 17, 20.0), (5000, 5, 1.0)]).power
    assert abs(np.median(filled) - np.median(clean)) < 0.01
