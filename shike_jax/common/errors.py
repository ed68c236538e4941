"""The one kind of error that a user can mend."""

from __future__ import annotations


class UserError(Exception):
    """Bad input: one line that names the thing, its value and what is expected."""
