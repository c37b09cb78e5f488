"""The average over the eight orientations of a micrograph, above any backend, which only sees eight images instead.

A network that is no exact symmetry of the square errs a little differently in each; the mean errs less.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from daemon.backends.protocol import Backend
from daemon.counts.plane import Denoised, Plane, Prepared, Spikes, Survey
from daemon.formats import turned
from daemon.micrograph import Image

ORIENTATIONS = range(1, 9)
"""TIFF's numbers; the first is upright."""


@dataclass(slots=True, eq=False)
class _Group:
    """A micrograph on its way through the backend, and the mean of its results that are back."""

    waiting: deque[int]
    """Orientations that are not back yet."""
    prepared: Prepared | None = None
    """Spikes, dose and scaling, found in the upright image; the others take them over."""
    mean: Image | None = None

    def add(self, done: Denoised) -> Denoised | None:
        """Take in the next result; returns the micrograph's once it is complete."""
        number = self.waiting.popleft()
        image = turned.undone(done.image, [number])
        if self.mean is None:
            self.mean = done.image if not self.waiting else np.array(image)
        else:
            self.mean += (image - self.mean) / number  # a sum would lose digits on a pedestal
        return None if self.waiting else replace(done, image=self.mean, prepared=self.prepared or done.prepared)


class Passes:
    """`Backend` that averages as many orientations as each plane's `passes` asks for; all else is `inner`'s."""

    def __init__(self, inner: Backend) -> None:
        self.inner = inner

    @property
    def name(self) -> str:
        """See `Backend`."""
        return self.inner.name

    def denoise(self, planes: Iterable[Plane | None]) -> Iterator[Denoised]:
        """See `Backend`."""
        groups: deque[_Group] = deque()
        for done in self.inner.denoise(_oriented(planes, groups)):
            whole = groups[0].add(done)
            del done  # or its pixels would stay in memory until the next ones are there
            if whole is not None:
                groups.popleft()
                yield whole
                del whole

    def close(self) -> None:
        """See `Backend`."""
        self.inner.close()


def _oriented(planes: Iterable[Plane | None], groups: deque[_Group]) -> Iterator[Plane | None]:
    """What the backend is given, and in `groups` what belongs together."""
    for plane in planes:
        if plane is None:
            yield None
            continue
        group = _Group(deque(ORIENTATIONS[: plane.passes]))
        groups.append(group)
        if plane.passes == 1:
            yield plane
            continue
        yield replace(plane, prepare=_kept(plane, group))
        for number in ORIENTATIONS[1:]:
            yield _turned(plane, group, number)


def _kept(plane: Plane, group: _Group) -> Callable[[Survey], Prepared]:
    def prepare(survey: Survey) -> Prepared:
        group.prepared = plane.prepare(survey)
        return group.prepared

    return prepare


def _turned(plane: Plane, group: _Group, number: int) -> Plane:
    """The plane in another orientation, with what was found in the upright one: backends prepare in order."""
    pixels = turned.turned(plane.pixels, [number])

    def prepare(_: Survey) -> Prepared:
        upright = group.prepared
        assert upright is not None
        rows, columns = turned.places(upright.spikes.rows, upright.spikes.columns, plane.pixels.shape, number)
        order = np.lexsort((columns, rows))
        spikes = Spikes(rows[order], columns[order], upright.spikes.values[order])
        return Prepared(pixels, spikes, upright.scaling, upright.dose)

    return Plane(pixels, 1.0, 0.0, 0.0, prepare)
