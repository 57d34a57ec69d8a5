"""Every error bigconv raises on purpose.

    BigconvError
    ├── UsageError        (ValueError)       2   an option or argument that makes no sense
    ├── SchemaError       (ValueError)       2   fields, dtypes or shapes that don't fit together
    ├── InputError        (ValueError)       2   a source that can't be read as asked
    ├── OutputError       (OSError)          2   a destination that is refused or can't be written
    ├── StoreError        (OSError)          2   a store that can't be trusted
    │   ├── NotAStore                        2   nothing here that bigconv wrote
    │   ├── IncompleteStore                  2   cut short, damaged or unfinished
    │   └── LaterVersion                     2   written by a later bigconv
    ├── RowError          (IndexError)       2   a row number outside the store
    ├── FindingsError     (ValueError)       1   done, but the data has findings
    ├── MissingPackage    (ImportError)      3   an optional package isn't installed
    └── Interrupted       (Exception)      130   stopped by the user; can be resumed

The number is the command line's exit code. An exception that is not a `BigconvError` is a bug in
bigconv and exits with 70. A message is one to three lines: what, where, what to do next.
"""

from __future__ import annotations

READER_LEFT = 141  # 128 + SIGPIPE, as of any command whose output nobody reads on: bigconv … | head -1


class BigconvError(Exception):
    """Root of all errors that bigconv raises on purpose."""

    exit_code = 2


class UsageError(BigconvError, ValueError):
    """An option or argument that makes no sense."""


class SchemaError(BigconvError, ValueError):
    """Fields, dtypes or shapes that do not fit together."""


class InputError(BigconvError, ValueError):
    """A source that cannot be read as asked."""


class OutputError(BigconvError, OSError):
    """A destination that is refused or cannot be written."""


class StoreError(BigconvError, OSError):
    """A store that cannot be trusted."""


class NotAStore(StoreError):
    """Nothing here that bigconv wrote: no manifest."""


class IncompleteStore(StoreError):
    """A store that is cut short, damaged or was never finished."""


class LaterVersion(StoreError):
    """A store written in a later version of the format than this bigconv knows."""


class RowError(BigconvError, IndexError):
    """A row number outside the store."""


class FindingsError(BigconvError, ValueError):
    """The run is over, but the data has findings: rejects over the limit, a failed verification."""

    exit_code = 1


class MissingPackage(BigconvError, ImportError):
    """An optional package is not installed."""

    exit_code = 3


class Interrupted(BigconvError):
    """Stopped by the user."""

    exit_code = 130
