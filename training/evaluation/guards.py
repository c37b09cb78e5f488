"""No detail lost, nothing invented: tests of any denoiser on simulations, where the truth is known.

A denoiser here is a callable: counts (H, W) float32 → counts (H, W) float32. So weights, BM3D, a filter and the
identity are judged by the same rules; the identity and a constant must fail, or the rules are worth nothing.
Every test is seeded: the same denoiser gets the same verdict.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from daemon.micrograph import Image
from training import simulate
from training.evaluation import metrics, spectrum
from training.exposure import expose, paper_ordinary_dose

Denoise = Callable[[Image], Image]
Real = NDArray[np.float64]

FLAT_MEANS = (1.0, 10.0, 100.0, 1000.0)
"""Counts per pixel of the flat fields."""

NOISE_LEFT = 0.05
"""Largest standard deviation of a denoised flat field, as a share of the noisy one's."""

VACANCY_KEPT = 0.7
COUNTING_ERRORS = 4.0
BLOCK = 64

UNNOTICED = 1e-3
"""Change of a correlation that nobody would see, however sure it is."""

VISIBLE = 6.5
"""Signal-to-noise ratio of a vacancy, measured with full knowledge of where it is, from which a denoiser is expected to
keep it where no rival says so. BM3D keeps it from about there on."""

VACANCY_EXPOSURES = (
    (1.0, 1.0), (10.0, 1.0), (10.0, 0.2), (30.0, 0.2), (100.0, 0.2), (100.0, 0.05), (300.0, 0.05), (1000.0, 0.05),
)  # fmt: skip
"""(mean counts per pixel, contrast) of the lattices with a vacancy; the faintest are beyond BM3D."""


@dataclass(frozen=True, slots=True)
class Guard:
    """The verdict of one test: `worst` must be `sense` the `limit`. `numbers` holds plain JSON types only."""

    name: str
    worst: float
    sense: Literal["<=", ">="]
    limit: float
    statistic: str
    """What `worst` is, in words."""
    numbers: Mapping[str, Any]

    @property
    def ok(self) -> bool:
        """False also where `worst` is not a number."""
        return bool(self.worst <= self.limit if self.sense == "<=" else self.worst >= self.limit)

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "ok": self.ok,
            "worst": self.worst if np.isfinite(self.worst) else None,
            "sense": self.sense,
            "limit": self.limit,
            "statistic": self.statistic,
            "numbers": dict(self.numbers),
        }


def run_all(denoise: Denoise, quick: bool = False, rival: Denoise | None = None) -> tuple[Guard, ...]:
    """Every test, on specimens of the families held out from training.

    `rival` (BM3D) says at which exposures a vacancy can be kept at all. `quick` takes fewer and smaller images:
    minutes become seconds, and only gross faults are found.
    """
    count, side = (8, 128) if quick else (24, 256)
    scenes = simulate.bank(2018, count, side, simulate.HELD_OUT)
    kinds = [list(simulate.HELD_OUT)[index % len(simulate.HELD_OUT)] for index in range(count)]
    return (
        rings(denoise, scenes, kinds),
        *flat_fields(denoise, seeds=4 if quick else 16, side=side),
        vacancy(denoise, seeds=6 if quick else 50, rival=rival),
        *block_bias(denoise, scenes),
    )


def counts_from(denoise: Denoise, counts: Image) -> Image:
    """Run a denoiser. Raises ValueError if what comes back is not a finite image of the same shape."""
    result = np.asarray(denoise(counts.copy()), np.float32)
    if result.shape != counts.shape or not np.isfinite(result).all():
        raise ValueError(f"the denoiser gave {result.shape}, or pixels that are not finite, for {counts.shape}")
    return result


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
        before.append([metrics.frc(counts, truth) for counts, truth in pairs])
        after.append([metrics.frc(counts_from(denoise, counts), truth) for counts, truth in pairs])
    return judge_rings(np.array(before), np.array(after), kinds)


def judge_rings(before: Real, after: Real, kinds: Sequence[str]) -> Guard:
    """The ring test on correlations with the truth: (scenes, exposures, rings), `metrics.frc`'s; a kind for each scene.

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


@dataclass(frozen=True, slots=True, eq=False)
class Lattice:
    """A sheet of atoms with one missing. `scene` (side, side) in [0, 1]; `profiles` (sites, side * side) sum to 1."""

    scene: Image
    profiles: Real
    """Where every site's brightness is measured; the first is the vacancy, the others are whole."""

    def contrast(self, image: Image) -> float:
        """Mean brightness of the whole sites less that of the vacancy, in the image's units."""
        brightness = self.profiles @ image.ravel().astype(np.float64)
        return float(brightness[1:].mean() - brightness[0])


def lattice(rng: np.random.Generator, side: int, spacing: float = 9.0, width: float = 1.9) -> Lattice:
    """A hexagonal sheet of Gaussian atoms (σ `width` px) at `spacing` px, turned and shifted at random."""
    turn = rng.uniform(0, 2 * np.pi)
    a = spacing * np.array([np.cos(turn), np.sin(turn)])
    b = spacing * np.array([np.cos(turn + np.pi / 3), np.sin(turn + np.pi / 3)])
    reach = np.arange(-2 * side // int(spacing), 2 * side // int(spacing) + 1)
    i, j = (grid.ravel()[:, None] for grid in np.meshgrid(reach, reach))
    site = i * a + j * b + side / 2 + rng.uniform(-0.5, 0.5, 2) * spacing
    site = site[((site > -spacing) & (site < side + spacing)).all(1)]
    site = site[np.argsort(np.hypot(*(site - side / 2).T))]  # the vacancy is the one nearest to the centre
    pixel = np.arange(side)
    rows, columns = (np.exp(-0.5 * ((pixel - site[:, axis, None]) / width) ** 2) for axis in (0, 1))
    scene = np.einsum("sy,sx->yx", rows[1:], columns[1:])
    scene = 0.1 + 0.9 * scene / scene.max()
    inner = ((site > 1.5 * spacing) & (site < side - 1.5 * spacing)).all(1)
    profiles = np.einsum("sy,sx->syx", rows[inner], columns[inner]).reshape(int(inner.sum()), -1)
    return Lattice(scene.astype(np.float32), profiles / profiles.sum(1, keepdims=True))


def vacancy(
    denoise: Denoise,
    seeds: int = 50,
    side: int = 96,
    exposures: Sequence[tuple[float, float]] = VACANCY_EXPOSURES,
    rival: Denoise | None = None,
) -> Guard:
    """Is a missing atom still missing after denoising, at those exposures where `rival` keeps it, or it is visible?

    `exposures`: (mean counts per pixel, contrast). Kept = contrast of the result over that of the truth, each the
    mean brightness of the whole atoms less that of the vacancy; mean over `seeds` lattices.
    """
    rows = []
    for dose, contrast in exposures:
        found: dict[str, list[float]] = {"kept": [], "rival": [], "visible": []}
        for seed in range(seeds):
            rng = np.random.default_rng([seed, 2, int(dose * 10), int(contrast * 100)])
            sheet = lattice(rng, side)
            counts, truth = expose(rng, sheet.scene, dose, contrast)
            whole = sheet.contrast(truth)
            found["visible"].append(whole / sqrt(float(np.square(sheet.profiles[0]) @ truth.ravel())))
            found["kept"].append(sheet.contrast(counts_from(denoise, counts)) / whole)
            if rival:
                found["rival"].append(sheet.contrast(counts_from(rival, counts)) / whole)
        means = {name: spectrum.short(np.mean(values)) if values else None for name, values in found.items()}
        row: dict[str, Any] = {
            "dose": dose,
            "contrast": contrast,
            **means,
            "spread": spectrum.short(np.std(found["kept"])),
        }
        row["required"] = bool(row["rival"] >= VACANCY_KEPT if rival else row["visible"] >= VISIBLE)
        rows.append(row)
    required = [row["kept"] for row in rows if row["required"]]
    where = "the rival keeps it" if rival else f"it stands {VISIBLE:g} σ above the noise"
    return Guard(
        "a vacancy stays a vacancy",
        min(required, default=float("nan")),
        ">=",
        VACANCY_KEPT,
        f"lowest, over the exposures at which {where}, of the share of a vacancy's contrast that is kept, mean over "
        f"{seeds} lattices",
        {"seeds": seeds, "side": side, "exposures": rows},
    )


# Nothing invented


def flat_fields(
    denoise: Denoise, seeds: int = 16, side: int = 256, means: Sequence[float] = FLAT_MEANS
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
            NOISE_LEFT,
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
