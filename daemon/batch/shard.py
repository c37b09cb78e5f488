"""A shard: one of several parts of a batch, the same whenever and wherever it is run."""

import re
from dataclasses import dataclass

from daemon.errors import EmdenoisedError


class EndedError(EmdenoisedError):
    """The shard was asked to end; the same command continues it."""


@dataclass(frozen=True, slots=True)
class Shard:
    """Part `number`, from 0, of `of` parts."""

    number: int = 0
    of: int = 1

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """From "I/N". Raises ValueError in words."""
        found = re.fullmatch(r"([0-9]{1,7})/([0-9]{1,7})", text)
        if found is None:
            raise ValueError(f"{text!r}: write I/N, such as 0/8 for the first of eight shards")
        number, of = int(found[1]), int(found[2])
        if number >= of:
            raise ValueError(f"{text}: shards are counted from 0; the last of {of} is {of - 1}/{of}" if of else text)
        return cls(number, of)

    def has(self, index: int) -> bool:
        """Whether the entry `index` of a manifest belongs to it. Neighbours go to different shards."""
        return index % self.of == self.number

    def share(self, entries: int) -> int:
        """How many of so many entries belong to it."""
        return len(range(self.number, entries, self.of))

    @property
    def file_name(self) -> str:
        """For its own files."""
        return f"{self.number}-of-{self.of}"

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"
