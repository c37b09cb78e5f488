"""Averages the eight orientations of a micrograph, above any backend, which processes eight images instead of one.

The network's errors differ somewhat between orientations, so the mean has a smaller error.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from daemon.backends.protocol import Backend
from daemon.counts.plane import Denoised, Plane, Prepared, Spikes, Survey
from daemon.formats import turned
from daemon.micrograph import Image

_ORIENTATIONS = range(1, 9)
"""TIFF's numbers; the first is upright."""


@dataclass(slots=True, eq=False)
class _Group:
    """A micrograph in the backend, and the mean of its results so far."""

    waiting: deque[int]
    """Orientations without a result so far."""
    prepared: Prepared | None = None
    """Spikes, dose and scaling of the upright image; the other orientations use them, too."""
    mean: Image | None = None

    def add(self, done: Denoised) -> Denoised | None:
        """Add the next result; returns that of the micrograph once it is complete."""
        number = self.waiting.popleft()
        image = turned.undone(done.image, [number])
        if self.mean is None:
            self.mean = done.image if not self.waiting else np.array(image)
        else:
            self.mean += (image - self.mean) / number  # on a pedestal a sum loses digits
        return None if self.waiting else replace(done, image=self.mean, prepared=self.prepared or done.prepared)


class Passes:
    """`Backend` above `inner` that averages as many orientations as each plane's `passes` states."""

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
            del done  # frees its memory before the next micrograph
            if whole is not None:
                groups.popleft()
                yield whole
                del whole

    def close(self) -> None:
        """See `Backend`."""
        self.inner.close()


def _oriented(planes: Iterable[Plane | None], groups: deque[_Group]) -> Iterator[Plane | None]:
    """The stream for the backend; `groups` gets one entry for each micrograph."""
    for plane in planes:
        if plane is None:
            yield None
            continue
        group = _Group(deque(_ORIENTATIONS[: plane.passes]))
        groups.append(group)
        if plane.passes == 1:
            yield plane
            continue
        yield replace(plane, prepare=_kept(plane, group))
        for number in _ORIENTATIONS[1:]:
            yield _turned(plane, group, number)


def _kept(plane: Plane, group: _Group) -> Callable[[Survey], Prepared]:
    def prepare(survey: Survey) -> Prepared:
        group.prepared = plane.prepare(survey)
        return group.prepared

    return prepare


def _turned(plane: Plane, group: _Group, number: int) -> Plane:
    """The plane in another orientation, prepared like the upright one, which backends prepare first."""
    pixels = turned.turned(plane.pixels, [number])

    def prepare(_: Survey) -> Prepared:
        upright = group.prepared
        assert upright is not None
        rows, columns = turned.places(upright.spikes.rows, upright.spikes.columns, plane.pixels.shape, number)
        order = np.lexsort((columns, rows))
        spikes = Spikes(rows[order], columns[order], upright.spikes.values[order])
        return Prepared(pixels, spikes, upright.scaling, upright.dose)

    return Plane(pixels, 1.0, 0.0, 0.0, prepare, live=plane.live)
