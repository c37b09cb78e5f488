"""No detail lost, nothing invented: tests of any denoiser on simulations, where the truth is known.

A denoiser here is a callable: counts (H, W) float32 → counts (H, W) float32. So weights, BM3D, a filter and the
identity are judged by the same rules; the identity and a constant must fail, or the rules are worth nothing.
Every test is seeded: the same denoiser gets the same verdict.
"""

from collections.abc import Sequence
from math import sqrt
from typing import Any

import numpy as np

from daemon.counts.scaling import Noise
from daemon.micrograph import Image
from daemon.verdict.rings import frc
from training.data import simulate
from training.data.exposure import Detector, expose, paper_ordinary_dose
from training.evaluation import defect_guards, metrics, object_guards, spectrum
from training.evaluation.guard import Denoise, Guard, Real, counts_from

_FLAT_MEANS = (1.0, 10.0, 100.0, 1000.0)
"""Counts per pixel of the flat fields."""

_NOISE_LEFT = 0.05
"""Largest standard deviation of a denoised flat field, as a share of the noisy one's."""

COUNTING_ERRORS = 4.0
BLOCK = 64

UNNOTICED = 1e-3
"""Change of a correlation that nobody would see, however sure it is."""

CAMERAS = ((0.5, 0.5), (0.8, 1.0), (1.1, 2.0))
"""(σ of the point spread in pixels, read-out noise in counts rms) of the cameras that record flat fields."""


def run_all(denoise: Denoise, quick: bool = False, rival: Denoise | None = None) -> tuple[Guard, ...]:
    """Every test, on specimens of the families held out from training.

    `rival` (BM3D) says at which exposures a vacancy can be kept at all, and how many false objects are too many.
    `quick` takes fewer and smaller images: minutes become seconds, and only gross faults are found.
    """
    count, side = (8, 128) if quick else (24, 256)
    scenes = simulate.bank(2018, count, side, simulate.HELD_OUT)
    kinds = [list(simulate.HELD_OUT)[index % len(simulate.HELD_OUT)] for index in range(count)]
    return (
        rings(denoise, scenes, kinds),
        *flat_fields(denoise, seeds=4 if quick else 16, side=side),
        camera_fields(denoise, seeds=2 if quick else 8, side=side),
        defect_guards.vacancy(denoise, seeds=6 if quick else 50, rival=rival),
        defect_guards.added_atoms(denoise, seeds=2 if quick else 20, rival=rival),
        defect_guards.foreign_atoms(denoise, seeds=2 if quick else 20, rival=rival),
        *defect_guards.edges(denoise, seeds=2 if quick else 20, rival=rival),
        *object_guards.objects(denoise, seeds=6 if quick else 200, rival=rival),
        *block_bias(denoise, scenes),
    )


# No detail lost


def rings(denoise: Denoise, scenes: Sequence[Image], kinds: Sequence[str], exposures: int = 4, seed: int = 0) -> Guard:
    """Does any detail correlate less with the truth after denoising than before? At the paper's ordinary doses.

    `scenes` (H, W) in [0, 1], of `kinds`; each is exposed several times to one peak of 200 to 2500 counts per pixel, so
    that what noise does can be told from what the denoiser does to a scene.
    """
    before, after = [], []
    for number, scene in enumerate(scenes):
        rng = np.random.default_rng([seed, 1, number])
        dose = paper_ordinary_dose(rng) * max(float(scene.mean()), 1e-3)
        pairs = [expose(rng, scene, dose, 1.0) for _ in range(exposures)]
        before.append([frc(counts, truth) for counts, truth in pairs])
        after.append([frc(counts_from(denoise, counts), truth) for counts, truth in pairs])
    return judge_rings(np.array(before), np.array(after), kinds)


def judge_rings(before: Real, after: Real, kinds: Sequence[str]) -> Guard:
    """The ring test on correlations with the truth: (scenes, exposures, rings); `kinds`: of each scene.

    Per kind and ring below half of Nyquist's frequency: the mean change over the scenes, in standard errors that come
    from the repeated exposures alone. So damage to one kind of specimen is neither averaged away by the others nor
    hidden by how much specimens differ. Changes of less than `UNNOTICED` count as none. Raises ValueError for fewer
    than two exposures.
    """
    if before.shape[1] < 2:
        raise ValueError("the ring test needs two exposures of each scene or more, to know what noise does")
    below = metrics.frequencies() < 0.25
    gain = (after - before)[..., below]
    named = np.array(kinds)
    mean, error = (np.zeros((len(set(kinds)), int(below.sum()))) for _ in range(2))
    order = sorted(set(kinds))
    for index, kind in enumerate(order):
        mine = gain[named == kind]
        mean[index] = mine.mean((0, 1))
        error[index] = np.sqrt((mine.var(1, ddof=1) / mine.shape[1]).sum(0)) / len(mine)
    score = np.divide(mean, error, out=np.where(mean < 0, -np.inf, 0.0), where=error > 0)
    score[np.abs(mean) < UNNOTICED] = 0.0
    row, column = np.unravel_index(int(np.argmin(score)), score.shape)
    frequencies = metrics.frequencies()[below]
    return Guard(
        "detail kept in every ring",
        float(score[row, column]),
        ">=",
        -2.0,
        "lowest, over kinds of specimen and rings below half of Nyquist's frequency, of the mean change in Fourier "
        f"ring correlation with the truth at ordinary dose, in standard errors of repeated exposures; changes under "
        f"{UNNOTICED:g} count as none",
        {
            "scenes": len(gain),
            "exposures": gain.shape[1],
            "frequency_per_px": frequencies.round(4).tolist(),
            "before": {kind: before[named == kind][..., below].mean((0, 1)).round(6).tolist() for kind in order},
            "after": {kind: after[named == kind][..., below].mean((0, 1)).round(6).tolist() for kind in order},
            "worst_kind": order[row],
            "worst_ring_per_px": float(frequencies[column]),
            "worst_change": spectrum.short(mean[row, column]),
            "rings_worse": {kind: int((score[index] < -2).sum()) for index, kind in enumerate(order)},
        },
    )


# Nothing invented


def flat_fields(
    denoise: Denoise, seeds: int = 16, side: int = 256, means: Sequence[float] = _FLAT_MEANS
) -> tuple[Guard, Guard, Guard]:
    """Poisson noise and nothing else: how much of it is left, and is there any structure in what is left?

    `side` is even. The spectrum is that of the largest image of odd sides, Hann-windowed, for then no frequency but
    zero is its own mirror image, and every power is a sum of two squares.
    """
    left: dict[str, float] = {}
    spots: dict[str, dict[str, Any]] = {}
    bumps: dict[str, dict[str, Any]] = {}
    for mean in means:
        ratios, power = [], np.zeros((side - 1, side - 1))
        for seed in range(seeds):
            rng = np.random.default_rng([seed, 3, int(mean * 10)])
            counts = rng.poisson(mean, (side, side)).astype(np.float32)
            result = counts_from(denoise, counts)
            ratios.append(float(result.std(dtype=np.float64) / counts.std(dtype=np.float64)))
            power += spectrum.periodogram(result[:-1, :-1]) / mean / seeds
        left[f"{mean:g}"] = spectrum.short(max(ratios))
        spots[f"{mean:g}"] = spectrum.spot(power, seeds)
        bumps[f"{mean:g}"] = spectrum.bump(power, seeds)
    threshold = spectrum.spot_threshold(seeds, side - 1, len(means))
    return (
        Guard(
            "noise of a flat field removed",
            max(left.values()),
            "<=",
            _NOISE_LEFT,
            f"largest, over fields of {', '.join(left)} counts per pixel and {seeds} seeds, of the output's standard "
            "deviation over the input's",
            {"seeds": seeds, "side": side, "noise_left": left},
        ),
        Guard(
            "no spot in the spectrum of a flat field",
            max(value["over_trend"] for value in spots.values()),
            "<=",
            threshold,
            f"largest power at one frequency, mean periodogram of {seeds} fields, over the smooth trend around it; the "
            f"limit is passed by chance in {spectrum.FALSE_ALARM:.1%} of all runs",
            {"seeds": seeds, "side": side, "fields": spots},
        ),
        Guard(
            "no ring in the spectrum of a flat field",
            max(value["over_valley"] for value in bumps.values()),
            "<=",
            2.0,
            "largest median power of a ring over the least of all rings at lower frequencies: at 2 a ring begins to "
            "have a width at half of its height",
            {"seeds": seeds, "side": side, "fields": bumps},
        ),
    )


def camera_fields(denoise: Denoise, seeds: int = 8, side: int = 256, means: Sequence[float] = _FLAT_MEANS[1:]) -> Guard:
    """Flat fields of cameras that smear counts over pixels and read them out: how much of their noise is left?

    The denoiser is given what it is served: effective counts (`daemon.counts.scaling.Noise`), whose variance in a pixel
    is its mean. What is left is compared with the noise of the same counts and read-out unsmeared: smearing hides noise
    from single pixels, and all of it that is slow is still there, up to four times as strong as a pixel's own noise
    suggests. So the limit is the one of plain counts.
    """
    left: dict[str, float] = {}
    for psf, readout in CAMERAS:
        noise = Noise(readout=readout, psf=psf)
        for mean in means:
            ratios = []
            for seed in range(seeds):
                rng = np.random.default_rng([seed, 10, int(mean * 10), int(psf * 10)])
                flat = np.ones((side, side), np.float32)
                pixels, _ = expose(rng, flat, mean, 1.0, Detector(readout=readout, psf=psf))
                counts = np.asarray((pixels - noise.effective_offset) / noise.effective_gain, np.float32)
                result = counts_from(denoise, counts)
                unsmeared = sqrt(mean + readout**2)
                ratios.append(float(result.std(dtype=np.float64)) * noise.effective_gain / unsmeared)
            left[f"psf {psf:g} px, read-out {readout:g}, {mean:g} counts"] = spectrum.short(max(ratios))
    return Guard(
        "noise of a camera's flat field removed",
        max(left.values()),
        "<=",
        _NOISE_LEFT,
        f"largest, over cameras of {', '.join(f'{psf:g}' for psf, _ in CAMERAS)} pixels of point spread, fields of "
        f"{', '.join(f'{mean:g}' for mean in means)} counts per pixel and {seeds} seeds, of the output's standard "
        "deviation over that of the same counts and read-out unsmeared",
        {"seeds": seeds, "side": side, "noise_left": left},
    )


def block_bias(
    denoise: Denoise,
    scenes: Sequence[Image],
    exposures: Sequence[tuple[float, float]] = ((1, 1.0), (10, 0.2), (100, 1.0), (1000, 0.2)),
) -> tuple[Guard, Guard]:
    """Are counts kept where they were? Of every 64 × 64 block the mean, against the truth's; and of all of them.

    `scenes` (H, W) in [0, 1], exposed to each (mean counts per pixel, contrast). The limit of 4 counting errors of a
    block's own truth is Bonferroni's: with 1000 blocks, a denoiser that keeps every block's counts exactly fails it
    by chance in 6 % of all runs. A bias of all blocks alike is far smaller than that; it shows in their mean.
    """
    scores: dict[str, list[float]] = {}
    for number, scene in enumerate(scenes):
        for dose, contrast in exposures:
            rng = np.random.default_rng([number, 4, int(dose * 10)])
            counts, truth = expose(rng, scene, dose, contrast)
            change, expected = (_block_sums(image) for image in (counts_from(denoise, counts) - truth, truth))
            errors = change / np.sqrt(np.maximum(expected, 1.0))
            scores.setdefault(f"{dose:g} counts, contrast {contrast:g}", []).extend(errors.ravel().tolist())
    every = [abs(value) for values in scores.values() for value in values]
    together = {name: abs(float(np.mean(values))) * sqrt(len(values)) for name, values in scores.items()}
    blocks = Guard(
        "no bias in any 64 × 64 block",
        max(every),
        "<=",
        COUNTING_ERRORS,
        "largest change of a block's mean from the truth's, in counting errors of that block",
        {
            "blocks": len(every),
            "largest": {name: spectrum.short(max(map(abs, values))) for name, values in scores.items()},
            "mean": {name: spectrum.short(np.mean(values)) for name, values in scores.items()},
            "rms": {name: spectrum.short(np.sqrt(np.mean(np.square(values)))) for name, values in scores.items()},
        },
    )
    overall = Guard(
        "no bias of all blocks together",
        max(together.values()),
        "<=",
        COUNTING_ERRORS,
        "largest, over the exposures, of the mean change of all blocks in counting errors of that mean",
        {"blocks": len(every), "mean": {name: spectrum.short(value) for name, value in together.items()}},
    )
    return blocks, overall


def _block_sums(image: Image) -> Real:
    rows, columns = (extent // BLOCK for extent in image.shape)
    cut = image[: rows * BLOCK, : columns * BLOCK].astype(np.float64)
    sums: Real = cut.reshape(rows, BLOCK, columns, BLOCK).sum((1, 3))
    return sums
