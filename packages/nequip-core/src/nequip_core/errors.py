"""The errors that a user can cause. Each message says what was wrong, what was expected, what was received, what to do.

Anything else that escapes is our fault and shows its traceback (exit code 1).
"""

from __future__ import annotations

from typing import ClassVar


class NequipError(Exception):
    """Base of all errors that a user can cause; the command line prints the message without a traceback."""

    exit_code: ClassVar[int] = 2


class InputError(NequipError):
    """A structure, label, file or argument can not be used."""


class ConfigError(NequipError):
    """A configuration has an unknown key, a wrong type or a value that is not allowed."""


class PluginError(NequipError):
    """A plugin can not be loaded, is of another API, or collides with another one."""


class ArtifactError(NequipError):
    """A checkpoint, package or compiled file can not be read: truncated, foreign, or of another schema."""


class CheckError(NequipError):
    """A comparison failed: a verification, a compiled model against eager, a data check."""

    exit_code: ClassVar[int] = 3
