"""Chooses a micrograph's dose profile (first that fits), and gain and offset from profile, camera, file or image."""

from dataclasses import dataclass, field, replace
from math import sqrt
from pathlib import Path, PurePath
from typing import Any, Literal

import numpy as np

from daemon.counts import no_specimen
from daemon.counts.gain import NEGATIVE, NO_COUNTS, Measured, finite_mean, measure
from daemon.counts.no_specimen import NoSpecimen
from daemon.counts.noise import CORRELATED
from daemon.counts.reason import Reason
from daemon.counts.scaling import Noise, sharing
from daemon.errors import MicrographError
from daemon.micrograph import Micrograph
from daemon.settings import camera_file
from daemon.settings.config import Config
from daemon.settings.profile import Profile

_AGREE = 1.2
"""A gain stated by the file is used if the image's noise agrees with it within this factor."""
_DISAGREE = 1.5
"""Factor between measured and stated noise from which on a warning is due, if nothing explains it."""
_EFFICIENCY = 0.4
"""Detective quantum efficiency of a poor camera: its noise is that of this share of the incident electrons."""
_SAME_VOLTAGE = 1.0
"""Difference of high tensions, kV, that is ignored."""
SATURATED = 1e-3
"""Share of pixels in the highest value from which on a warning is due."""
_MUCH_SATURATED = 1e-2
"""Share from which on the result should be checked; from the same share on a patch is left out of the measurement
(`noise.MOST_MISSING`). Below it, as with bright edges in an SEM image, the other pixels are denoised as usual."""


@dataclass(frozen=True, slots=True)
class DoseEvidence:
    """Everything known of a micrograph's counts, and its source; None: unknown."""

    gain_from: Literal["profile", "camera", "file", "image"] = "profile"
    measured: Measured | None = None
    unmeasured: str | None = None
    """Why nothing was measured."""
    units_per_electron: float | None = None
    """Gain for each incident electron, units, as the file states it; `Measured.gain` is for each count."""
    stated_dose: float | None = None
    """Mean incident electrons per pixel, as the file states them."""
    no_specimen: NoSpecimen = field(default_factory=NoSpecimen, compare=False, repr=False)
    """Pixels without specimen, which are left out of the measurement."""

    def as_json(self) -> dict[str, Any]:
        """Plain JSON types; null: unknown."""
        return {
            "gain_from": self.gain_from,
            "measured": None if self.measured is None else self.measured.as_json(),
            "unmeasured": self.unmeasured,
            "stated_gain": self.units_per_electron,
            "stated_dose": self.stated_dose,
        }


@dataclass(frozen=True, slots=True)
class Choice:
    """The profile of one micrograph, the reason in words (`why`), and the camera it is taken to be from.

    `gain` and `offset` turn the mean into counts; the effective ones of `noise` describe the noise of single pixels.
    """

    profile: Profile
    why: str
    gain: float
    """Units per count, at frequency zero."""
    offset: float
    """Value at zero counts."""
    doubts: tuple[Reason, ...] = ()
    """Reasons to check the result."""
    remarks: tuple[Reason, ...] = ()
    """Remarks on the counts."""
    dose_known: bool = True
    """False if gain and offset are stand-ins, because only the noise was measured."""
    dose_evidence: DoseEvidence = field(default_factory=DoseEvidence)
    readout: float = 0.0
    """Read-out noise, counts rms."""
    psf: float = 0.0
    """Standard deviation, in pixels, of the Gaussian over which counts are smeared."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """For the microscopist: remarks, then doubts."""
        return tuple(reason.text for reason in (*self.remarks, *self.doubts))

    @property
    def noise(self) -> Noise:
        """The camera; the scaling uses its effective gain and offset."""
        return Noise(self.gain, self.offset, self.readout, self.psf)

    def counts(self, value: float) -> float:
        """A value in the micrograph's units → detected counts."""
        return (value - self.offset) / self.gain

    def effective_counts(self, value: float) -> float:
        """A value in the micrograph's units → the Poisson counts that would have its noise."""
        noise = self.noise
        return (value - noise.effective_offset) / noise.effective_gain


ASKED_FOR = "asked for"
"""The reason for a profile that the caller names."""


def choose(config: Config, relative: PurePath, micrograph: Micrograph, named: str | None = None) -> Choice:
    """The first profile whose rules fit the file at `relative` (to the drop folder), else the default.

    `named` overrides the rules. The image is measured once. Raises MicrographError if the profile's gain is to be
    measured and cannot be.
    """
    seen = dose_evidence(micrograph)
    if named is not None:
        return scaled(config.profiles[named], f"{named}: {ASKED_FOR}", micrograph, seen)
    for profile in config.profiles.values():
        rules = profile.match
        if not rules.states_a_rule or not rules.path_fits(relative):
            continue
        stated = [f"{key} {value}" for key, value in (("folder", rules.folder), ("name", rules.name)) if value]
        why = f"{profile.name}: {', '.join(stated)}"
        if not rules.measured:
            return scaled(profile, why, micrograph, seen)
        if profile.dose is None or (profile.gain == "auto" and seen.measured is None):
            continue
        choice = scaled(profile, why, micrograph, seen)
        dose = choice.counts(finite_mean(no_specimen.measurable(micrograph.pixels, seen.no_specimen)))
        if choice.dose_known and profile.dose[0] <= dose <= profile.dose[1]:
            stated.append(f"measured {dose:.3g} counts per pixel")
            return replace(choice, why=f"{profile.name}: {', '.join(stated)}")
    name = config.default_profile
    return scaled(config.profiles[name], f"{name}: default, no rule fits", micrograph, seen)


def dose_evidence(micrograph: Micrograph, separate: NoSpecimen | None = None) -> DoseEvidence:
    """What image and file alone show of the counts, without any profile.

    `separate`: the pixels without specimen; None: they are found here. Raises MicrographError if no pixel was recorded.
    """
    taken = micrograph.acquisition
    separate = no_specimen.find(micrograph) if separate is None else separate
    per_unit = taken.electrons_per_unit
    measured, unmeasured = None, None
    try:
        whole = np.issubdtype(micrograph.pixels.dtype, np.integer)
        measured = measure(no_specimen.measurable(micrograph.pixels, separate), whole)
    except MicrographError as error:
        unmeasured = str(error)
    return DoseEvidence(
        measured=measured,
        unmeasured=unmeasured,
        units_per_electron=None if per_unit is None else 1 / per_unit,
        stated_dose=taken.electrons_per_pixel,
        no_specimen=separate,
    )


def scaled(profile: Profile, why: str, micrograph: Micrograph, seen: DoseEvidence) -> Choice:
    """The profile with gain and offset as it states them, or (gain: auto) as file or image do.

    `seen`: what `dose_evidence` returned for the micrograph. Raises MicrographError if the gain is to be measured and
    cannot be.
    """
    measured, by_file = seen.measured, seen.units_per_electron
    if profile.camera is not None:
        choice, doubts = _calibrated(profile, why, micrograph, seen)
        remarks: list[Reason] = []
    elif profile.gain != "auto":
        # A sum of frames has the offset of each.
        summed = profile.offset * int(micrograph.metadata.get("frames", 1))
        choice = _spread(Choice(profile, why, profile.gain, summed, dose_evidence=seen), measured)
        remarks = []
        doubts = [] if measured is None else _against_profile(choice, measured)
    elif measured is None:
        raise MicrographError(seen.unmeasured or "the counts of the image cannot be measured")
    elif by_file is not None and (offset := _offset_by_file(by_file, measured)) is not None:
        stated = Choice(profile, why, by_file, offset, dose_evidence=replace(seen, gain_from="file"))
        choice = _spread(stated, measured)
        remarks, doubts = [], []
    else:
        camera = measured.noise
        choice = Choice(
            profile,
            why,
            camera.gain,
            camera.offset,
            dose_known=measured.dose_known,
            dose_evidence=replace(seen, gain_from="image"),
            readout=camera.readout,
            psf=camera.psf,
        )
        remarks, doubts = [Reason("gain", measured.remark)] if measured.remark else [], []
    if measured is not None:
        doubts += _against_file(choice, seen, measured)
        (doubts if measured.saturated >= _MUCH_SATURATED else remarks).extend(saturation(measured))
    return replace(choice, doubts=tuple(doubts), remarks=tuple(remarks))


def _calibrated(profile: Profile, why: str, micrograph: Micrograph, seen: DoseEvidence) -> tuple[Choice, list[Reason]]:
    """The profile with the camera that it names, and warnings if the micrograph cannot be from that camera."""
    assert profile.camera is not None
    path = Path(profile.camera)
    camera = camera_file.load(path)
    frames = int(micrograph.metadata.get("frames", 1))  # a sum has the offset and the read-out of each
    choice = Choice(
        profile,
        why,
        camera.gain,
        camera.offset * frames,
        dose_evidence=replace(seen, gain_from="camera"),
        readout=camera.readout * sqrt(frames),
        psf=camera.psf,
    )
    doubts = []
    if micrograph.pixels.shape != camera.size:
        size, own = (f"{width} x {height}" for height, width in (camera.size, micrograph.pixels.shape))
        doubts.append(
            Reason(
                "camera-size",
                f"it is {own} pixels and camera {path.stem} was calibrated at {size}: with another binning its gain "
                "and point spread differ; calibrate it so, or correct the profile",
            )
        )
    volts = micrograph.acquisition.voltage_kv
    if volts is not None and camera.voltage_kv is not None and abs(volts - camera.voltage_kv) > _SAME_VOLTAGE:
        doubts.append(
            Reason(
                "camera-voltage",
                f"it was taken at {volts:g} kV and camera {path.stem} was calibrated at {camera.voltage_kv:g} kV: an "
                "electron gives another signal; calibrate it so, or correct the profile",
            )
        )
    if seen.measured is not None:
        doubts += _against_profile(choice, seen.measured)
    return choice, doubts


def _spread(stated: Choice, measured: Measured | None) -> Choice:
    """A stated gain and offset, with the point spread of the image added if its noise agrees with all three."""
    if measured is None or measured.smear is None:
        return stated
    choice = replace(stated, readout=sqrt(measured.readout.value) / stated.gain, psf=measured.psf)
    expected = choice.noise.effective_gain * (measured.mean - choice.noise.effective_offset)
    agrees = expected > 0 and 1 / _DISAGREE <= measured.variance / expected <= _DISAGREE
    return choice if agrees else stated


def _offset_by_file(gain: float, measured: Measured) -> float | None:
    """The value at zero counts if the file's `gain` is right; None if the image contradicts it."""
    effective = gain * sharing(measured.psf)
    counted = measured.variance - measured.readout.value
    offset = measured.mean - counted / effective  # the one that gives an average pixel its noise
    if measured.determines_gain:
        if not 1 / _AGREE <= measured.gain / gain <= _AGREE:
            return None
        return offset if measured.offset else 0.0
    if measured.mean > 0 and 1 / _AGREE <= counted / (effective * measured.mean) <= _AGREE:
        return 0.0
    # Little noise may mean a pedestal, or noise that was smoothed; much of it a subtracted background.
    possible = measured.unexplained < CORRELATED if offset > 0 else measured.negative > NEGATIVE
    return offset if possible and offset <= measured.darkest and measured.line.fits(effective) else None


def _against_profile(choice: Choice, measured: Measured) -> list[Reason]:
    """A warning if the image's noise does not fit counts with the gain and offset of the profile."""
    expected = choice.noise.effective_gain * (measured.mean - choice.noise.effective_offset)
    if expected <= 0 or 1 / _DISAGREE <= measured.variance / expected <= _DISAGREE:
        return []
    plain = (choice.gain, choice.offset) == (1.0, 0.0)
    subject = NO_COUNTS if plain else "the pixel values do not fit the profile"
    times = f"their noise has {measured.variance / expected:.3g} times the variance of counts with the "
    spread = f", point spread {choice.psf:.2g} pixels" if choice.psf else ""
    owner = f"profile {choice.profile.name}" if choice.profile.camera is None else f"camera {choice.profile.camera}"
    stated = f"gain {choice.gain:g} and offset {choice.offset:g}{spread} of {owner}"
    fits = (
        f"it fits {measured.gain:.3g} units per count and {measured.offset:.3g} units at zero counts"
        if measured.dose_known
        else "nor does it grow as that of counts"
    )
    smoothed = choice.psf == 0 and measured.correlation > CORRELATED and measured.variance < expected
    cause = f", and neighbours are correlated ({measured.correlation:+.2f}), as after interpolation" if smoothed else ""
    remedy = (
        "correct the profile, or state gain: auto in it"
        if choice.profile.camera is None
        else "calibrate the camera again, or correct `camera` in the profile"
    )
    return [Reason("profile", f"{subject}: {times}{stated}; {fits}{cause}; {remedy}")]


def _against_file(choice: Choice, seen: DoseEvidence, measured: Measured) -> list[Reason]:
    """Warnings if stated and measured gain or dose differ by more than a camera explains.

    A camera that detects only some of the electrons, or with unequal signals, shows more noise, as if there were fewer;
    one that spreads them over neighbours, as interpolation does, less noise in fine detail, as if there were more.
    """
    remarks = []
    most = _DISAGREE * _smoothing(measured.unexplained)
    camera = "the calibrated camera's gain was used"
    used = {"profile": "the profile's gain was used", "camera": camera, "image": "the measured gain was used"}
    by_file = seen.units_per_electron
    if by_file is not None and choice.dose_evidence.gain_from != "file" and measured.mean > 0:
        gain = measured.gain if measured.determines_gain else measured.variance / sharing(measured.psf) / measured.mean
        # Without a slope, less noise than stated may as well be a pedestal.
        if gain / by_file > 1 / _EFFICIENCY or (measured.determines_gain and gain / by_file < 1 / most):
            remarks.append(
                f"the file states {by_file:.3g} units per electron, but the noise of its image fits "
                f"{gain:.3g}; {used[choice.dose_evidence.gain_from]}; check the camera's settings"
            )
    dose = choice.counts(measured.mean)
    if seen.stated_dose is not None and choice.dose_known and not _EFFICIENCY <= dose / seen.stated_dose <= most:
        remarks.append(
            f"the file states {seen.stated_dose:.3g} electrons per pixel, but {dose:.3g} counts per pixel were found "
            f"(gain {choice.gain:.3g}, offset {choice.offset:.3g}); if the camera adds a pedestal or scales its "
            "counts, state gain and offset in a profile"
        )
    return [Reason("file", text) for text in remarks]


def _smoothing(correlation: float) -> float:
    """Noise of coarse detail over that of single pixels, for this correlation of neighbours along both axes."""
    return (1 + 2 * correlation) ** 2 if correlation > CORRELATED else 1.0


def saturation(measured: Measured) -> list[Reason]:
    """A warning if the image is saturated."""
    if measured.saturated < SATURATED:
        return []
    return [
        Reason(
            "saturated",
            f"{measured.saturated:.2%} of the pixels share the highest value: the camera or the file is saturated "
            "there, and the dose is a lower limit; expose less, or export it without clipping",
        )
    ]
