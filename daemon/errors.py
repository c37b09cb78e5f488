"""Errors, one class for each reaction.

Every message names the file, the cause and the remedy, in words for a microscopist.
"""


class EmdenoisedError(Exception):
    """Base of every error that this project raises."""


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


class ServerError(BackendError):
    """The server that runs the network cannot be used now: everything waits for it, and no attempt is counted."""


class WeightsError(EmdenoisedError):
    """A weights folder is missing, damaged or does not belong to this version."""
