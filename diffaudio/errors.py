"""What the user got wrong, as a class of its own, so that a bug is never mistaken for bad input."""

__all__ = ["UserError"]


class UserError(ValueError):
    """Bad input: the message says what was given, what is allowed, where, and what to do.

    The commands and scripts show it as one line and exit with status 2; any other exception is a bug of ours.
    """
