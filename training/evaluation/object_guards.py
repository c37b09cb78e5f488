"""False objects and missed ones: what would be counted on a denoised lattice, against what is there.

On every site of a known lattice a matched filter measures the difference from the perfect one, in units of one whole
atom: 0 where nothing is wrong, 1 where the defect is. Beyond a half is an object. On perfect sites such an object is
false; a defect that stays below a half is missed. Which of the two a denoiser errs towards depends on how much noise it
removes, so a rival is compared at equal noise: of the two, the one that leaves less is blended with its raw image.
"""

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from math import sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from daemon.micrograph import Image
from training.data.exposure import expose
from training.evaluation import spectrum
from training.evaluation.defect_specimens import Sheet, sheet
from training.evaluation.guard import Denoise, Guard, Real, counts_from

EXPOSURES = ((2.0, 1.0), (15.0, 0.3), (500.0, 0.05))
"""(mean counts per pixel, contrast): a whole atom stands 6.5 to 7.5 σ above the noise, where BM3D begins to keep
vacancies. In the raw image the same filter finds all of them there."""

HALF = 0.5
"""Difference from the perfect lattice, in atoms, from which a site is an object: as far from none as from one."""

SIGNIFICANT = 3.0
"""Standard errors by which a rate must exceed the rival's: with three exposures and two rates, two denoisers of the
same rates differ so much by chance in one of 120 runs."""

_DENOISED = 0.5
"""Largest share of the noise that may be left: whoever leaves more has not denoised, and is not compared."""

_FALSE_LIMIT = 0.005
"""Without a rival: perfect sites that may look like defects. Crystals worth counting defects in have them on half a
percent of their sites and more; with more false ones than that, most of what is counted does not exist."""

_MISSED_LIMIT = 0.1
"""Without a rival: defects that may be missed. A number of defects that is short by a tenth is as good as its own
counting error where a hundred are in view. In the raw image the same filter misses next to none; BM3D loses 7 to 20 %
of them."""

CALIBRATIONS = 8


@dataclass(frozen=True, slots=True)
class DefectCounts:
    """Of one image: perfect sites, defects, and how many of them are taken for the other."""

    perfect: int
    defects: int
    false: int
    missed: int


def objects(
    denoise: Denoise,
    seeds: int = 200,
    side: int = 96,
    exposures: Sequence[tuple[float, float]] = EXPOSURES,
    rival: Denoise | None = None,
) -> tuple[Guard, Guard]:
    """Are there more false objects, or missed ones, than `rival` makes of the same counts at equal noise?"""
    rows = [_row(denoise, rival, seeds, side, dose, contrast) for dose, contrast in exposures]
    comparable = all(row["noise_left"]["denoised"] <= _DENOISED for row in rows)
    guards = []
    for kind, sites, absolute in (("false", "perfect sites", _FALSE_LIMIT), ("missed", "defects", _MISSED_LIMIT)):
        worst = max(row["excess"][kind] if rival else row["rates"]["denoised"][kind] for row in rows)
        statistic = (
            f"excess of {kind} objects over the rival's at equal noise, in standard errors of {seeds} paired lattices"
            if rival
            else f"share of {sites} that are {kind} objects, on {seeds} lattices"
        )
        guards.append(
            Guard(
                f"no more {kind} objects than the rival's" if rival else f"few {kind} objects",
                worst if comparable else float("nan"),
                "<=",
                SIGNIFICANT if rival else absolute,
                f"largest, over the exposures, {statistic}; not a number where more than {_DENOISED:.0%} of the noise "
                "is left: that is no denoising",
                {"seeds": seeds, "side": side, "exposures": rows},
            )
        )
    return guards[0], guards[1]


def _row(
    denoise: Denoise, rival: Denoise | None, seeds: int, side: int, dose: float, contrast: float
) -> dict[str, Any]:
    methods = {"denoised": denoise} | ({"rival": rival} if rival else {})
    left = {name: noise_left(method, side, dose, contrast) for name, method in methods.items()}
    equal = max(noise.share for noise in left.values())
    found: dict[str, list[DefectCounts]] = {}
    visible = []
    for seed in range(seeds):
        lattice, counts, scale = _exposed(seed, 8, side, dose, contrast)
        truth = dose + scale * (lattice.scene - lattice.scene.mean())
        perfect = truth + scale * (lattice.perfect - lattice.scene)
        visible.append(scale * lattice.atom / np.sqrt(lattice.variance(perfect)).mean())
        images = {"raw": counts}
        for name, method in methods.items():
            images[name] = counts_from(method, counts)
            share = left[name].raw_share(equal)
            images[f"{name}, equal noise"] = (1 - share) * images[name] + share * counts
        for name, image in images.items():
            score = lattice.brightness(image - perfect) / (scale * lattice.atom)
            found.setdefault(name, []).append(count(score, lattice.defect))
    row: dict[str, Any] = {
        "dose": dose,
        "contrast": contrast,
        "visible": spectrum.short(np.mean(visible)),
        "noise_left": {name: spectrum.short(noise.share) for name, noise in left.items()},
        "rates": {name: rates(counted) for name, counted in found.items()},
    }
    if rival:
        both = zip(found["denoised, equal noise"], found["rival, equal noise"], strict=True)
        pairs = [(ours.false - theirs.false, ours.missed - theirs.missed) for ours, theirs in both]
        row["excess"] = {
            kind: spectrum.short(excess(difference))
            for kind, difference in zip(("false", "missed"), np.array(pairs).T, strict=True)
        }
    return row


def count(score: Real, defect: Real) -> DefectCounts:
    """`score` (sites,) in atoms, `defect` (sites,) -1, 0 or 1 → what is taken for what."""
    perfect = defect == 0
    false = perfect & (np.abs(score) > HALF)
    missed = ~perfect & (score * defect < HALF)
    return DefectCounts(int(perfect.sum()), int((~perfect).sum()), int(false.sum()), int(missed.sum()))


def rates(counted: Sequence[DefectCounts]) -> dict[str, float]:
    """Shares of perfect sites that are false objects, and of defects that are missed."""
    perfect, defects, false, missed = (sum(values) for values in zip(*map(astuple, counted), strict=True))
    return {"false": spectrum.short(false / perfect), "missed": spectrum.short(missed / defects)}


def excess(difference: NDArray[np.int64]) -> float:
    """Paired differences → their sum in standard errors, if either sign were as likely."""
    spread = sqrt(float(np.square(difference).sum()))
    return float(difference.sum()) / spread if spread else 0.0


@dataclass(frozen=True, slots=True)
class NoiseLeft:
    """Variances that repeated exposures give: of the result, of the raw image, and what the two have in common."""

    result: float
    raw: float
    common: float

    @property
    def share(self) -> float:
        """Of the raw noise's standard deviation, what is left."""
        return sqrt(self.result / self.raw)

    def raw_share(self, share: float) -> float:
        """Of the raw image, how much to blend in for `share` of the noise to be left; between 0 and 1."""
        square = self.result - 2 * self.common + self.raw
        if square <= 1e-9 * self.raw:
            return 0.0  # the result is the raw image
        half, rest = self.common - self.result, self.result - share**2 * self.raw
        return float(np.clip((sqrt(max(half**2 - square * rest, 0)) - half) / square, 0, 1))


def noise_left(denoise: Denoise, side: int, dose: float, contrast: float) -> NoiseLeft:
    """From two exposures each of the same lattices: the results differ by the noise that is left, by nothing else."""
    sums = np.zeros(3)
    for seed in range(CALIBRATIONS):
        first, second = (_exposed(seed, 9, side, dose, contrast, exposure)[1] for exposure in range(2))
        raw = (first - second).astype(np.float64)
        result = (counts_from(denoise, first) - counts_from(denoise, second)).astype(np.float64)
        sums += [np.square(result).mean(), np.square(raw).mean(), (result * raw).mean()]
    result_variance, raw_variance, common = (sums / (2 * CALIBRATIONS)).tolist()
    return NoiseLeft(result_variance, raw_variance, common)


def _exposed(
    seed: int, family: int, side: int, dose: float, contrast: float, exposure: int = 0
) -> tuple[Sheet, Image, float]:
    """A lattice, counts of it, and the counts that 1 of its scene stands for."""
    key = [seed, family, int(dose * 10), int(contrast * 100)]
    lattice = sheet(np.random.default_rng(key), side)
    counts, _ = expose(np.random.default_rng([*key, 1 + exposure]), lattice.scene, dose, contrast)
    return lattice, counts, dose * contrast / float(lattice.scene.mean())
