"""What can go wrong, divided by what has to happen next.

Every message names the file, the cause and the remedy, because the person who reads it
is at a microscope and not at a debugger.
"""


class EmdenoisedError(Exception):
    """Base of every error this project raises on purpose."""


class ConfigError(EmdenoisedError):
    """The settings cannot be used; the service exits with 78 (EX_CONFIG) and is not restarted."""


class UsageError(EmdenoisedError):
    """The command line asks for something that cannot be done; the command exits with 2."""


class MicrographError(EmdenoisedError):
    """This file can never be processed as it is; it is quarantined until it changes."""


class TransientError(EmdenoisedError):
    """This file cannot be processed now (locked, share gone, disk full); it is tried again later."""


class ReaderMissingError(TransientError):
    """This file needs a reader that is not installed: it waits for that, and no attempt is counted."""


class StorageError(TransientError):
    """Results cannot be written now (disk full or read-only, share gone): work pauses, and no attempt is counted."""


class BackendError(EmdenoisedError):
    """The process can no longer denoise; it exits non-zero so that the service manager restarts it."""


class WeightsError(EmdenoisedError):
    """A weights folder is missing, damaged or does not belong to this version."""
