"""Fourier ring correlation from half a spectrum is that of the whole one."""

import numpy as np
import pytest

from daemon.verdict.rings import RINGS, all_terms, frc, free_terms


@pytest.mark.parametrize("shape", [(64, 64), (75, 90), (80, 81)])
def test_rings_of_half_a_spectrum_are_those_of_the_whole(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(9)
    scene = rng.normal(size=shape)
    one, two = (scene + rng.normal(size=shape) for _ in range(2))
    window = np.outer(*(np.hanning(side + 2)[1:-1] for side in shape))
    first, second = (np.fft.fft2((image - image.mean()) * window) for image in (one, two))
    frequency = np.hypot(np.fft.fftfreq(shape[0])[:, None], np.fft.fftfreq(shape[1]))
    inside = [(frequency >= ring / 2 / RINGS) & (frequency < (ring + 1) / 2 / RINGS) for ring in range(RINGS)]
    plain = [
        (first * second.conj())[ring].sum().real
        / np.sqrt(np.square(abs(first[ring])).sum() * np.square(abs(second[ring])).sum())
        for ring in inside
    ]
    assert frc(one, two) == pytest.approx(np.array(plain), abs=1e-9)
    assert list(all_terms(shape)) == [ring.sum() for ring in inside]
    assert list(free_terms(shape)) == [ring[:, : shape[1] // 2 + 1].sum() for ring in inside]


def test_images_without_signal_do_not_correlate() -> None:
    assert not frc(np.zeros((32, 48)), np.ones((32, 48))).any()
