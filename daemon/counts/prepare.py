"""Makes the plane that a backend takes, and prepares it after the survey: spikes, dose and scaling."""

import logging
from functools import partial

import numpy as np
from numpy.typing import NDArray

from daemon.counts import lines, spikes, voids
from daemon.counts.plane import SMALLEST, Plane, Prepared, Survey
from daemon.counts.profiles import Choice
from daemon.counts.reason import Reason
from daemon.errors import EmdenoisedError, MicrographError
from daemon.micrograph import Pixels

log = logging.getLogger(__name__)


def require_plane(pixels: Pixels) -> None:
    """Raises MicrographError unless `pixels` are an image plane (H, W) of real numbers, large enough to denoise."""
    if pixels.dtype.kind not in "biuf" or pixels.ndim != 2:
        raise MicrographError(f"an image plane (H, W) of real numbers is needed, not {pixels.dtype} {pixels.shape}")
    if min(pixels.shape) < SMALLEST:
        height, width = pixels.shape
        raise MicrographError(
            f"the image is {width} x {height} pixels; at least {SMALLEST} x {SMALLEST} are needed to denoise it"
        )


def plane(pixels: Pixels, choice: Choice, doses: tuple[float, float], find_spikes: bool = True) -> Plane:
    """The plane of an image (H, W) of any real dtype, which is only read.

    `doses`: lowest and highest mean counts per pixel that the weights were trained for.

    NaN and Inf are filled in even without `find_spikes`: they would spread over the whole result. Only regions of
    them remain in it (`daemon.counts.voids`). So are the pixels of `choice.dose_evidence.no_specimen`. Raises
    MicrographError as `require_plane` does.
    """
    require_plane(pixels)
    false_alarm = spikes.FALSE_ALARM if find_spikes else 0.0
    gain, offset = choice.noise.effective_gain, choice.noise.effective_offset
    prepare = partial(_prepare, pixels, choice, doses, false_alarm)
    return Plane(pixels, gain, offset, false_alarm, prepare, choice.profile.passes)


def _prepare(
    pixels: Pixels, choice: Choice, doses: tuple[float, float], false_alarm: float, survey: Survey
) -> Prepared:
    """Spikes, dose and scaling. Raises MicrographError if the plane cannot be turned into counts."""
    try:
        return _judged(pixels, choice, doses, false_alarm, survey)
    except (EmdenoisedError, MemoryError):
        raise
    except Exception as error:
        # A backend calls this: a defect of ours must not cost more than one micrograph.
        log.debug("traceback", exc_info=True)
        raise MicrographError(f"internal error, please report it: {error!r}") from error


def _judged(pixels: Pixels, choice: Choice, doses: tuple[float, float], false_alarm: float, survey: Survey) -> Prepared:
    noise, apart = choice.noise, choice.dose_evidence.no_specimen
    left = apart.left(*pixels.shape)
    known = np.union1d(left, apart.lines)
    clean = _without_fill(lines.replaced(pixels, apart.lines), apart.filled)
    if clean is not pixels:  # a block with a hot column has hidden its X-ray hits; a fill value may be near infinity
        survey = spikes.survey(clean, noise.effective_gain, noise.effective_offset, false_alarm)
    without = _without(survey, clean, known) if len(known) else survey
    found = spikes.find(pixels, noise.effective_gain, noise.effective_offset, false_alarm=false_alarm, surveyed=without)
    places = found.rows * pixels.shape[1] + found.columns
    counted = (
        places[np.isin(places, without.missing, assume_unique=True, invert=True)] if len(without.missing) else places
    )
    flagged = pixels[np.divmod(counted, pixels.shape[1])].sum(dtype=np.float64)
    mean = (without.total - float(flagged)) / (pixels.size - len(found))
    dose, scaling = choice.counts(mean), noise.scaling(mean)
    doubts, remarks = apart.reasons(pixels.shape)
    doubts, remarks = [*choice.doubts, *doubts], [*choice.remarks, *remarks]
    for owner, limits in ((f"profile {choice.profile.name}", choice.profile.dose), ("the weights", doses)):
        if choice.dose_known and limits is not None and not limits[0] <= dose <= limits[1]:
            text = f"{dose:.3g} counts per pixel are outside the {limits[0]:g} to {limits[1]:g} of {owner}"
            doubts.append(Reason("dose", text))
    void = voids.find(survey.missing, pixels.shape)
    single = len(found) - len(known) - len(np.setdiff1d(void, known))
    if single > 1e-3 * pixels.size:
        text = f"{single} pixels ({single / pixels.size:.1%}) were X-ray hits, hot or not finite"
        doubts.append(Reason("spikes", text))
    if len(void):
        text = f"a region of {len(void)} pixels ({len(void) / pixels.size:.1%}) holds no numbers: it was left as it is"
        remarks.append(Reason("void", text))
    stays = np.union1d(void, left)
    return Prepared(pixels, found, scaling, dose, tuple(doubts), tuple(remarks), stays, apart.lines)


def _without(survey: Survey, pixels: Pixels, known: NDArray[np.intp]) -> Survey:
    """A survey of the same pixels that takes the `known` places (n,), ascending, for missing."""
    values = pixels.reshape(-1)[np.setdiff1d(known, survey.missing, assume_unique=True)].astype(np.float64)
    total = survey.total - float(values[np.isfinite(values)].sum())
    suspects = np.setdiff1d(survey.suspects, known, assume_unique=True)
    return Survey(total, np.union1d(survey.missing, known), suspects)


def _without_fill(pixels: Pixels, filled: NDArray[np.intp]) -> Pixels:
    """The pixels (H, W) with their mean at the `filled` places (n,)."""
    if not len(filled):
        return pixels
    recorded = np.ones(pixels.shape, np.bool_)
    recorded.reshape(-1)[filled] = False
    if pixels.dtype.kind == "f":
        recorded &= np.isfinite(pixels)
    clean = pixels.copy()
    clean.reshape(-1)[filled] = pixels.mean(dtype=np.float64, where=recorded) if recorded.any() else 0
    return clean
