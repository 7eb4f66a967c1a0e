"""Errors of the user as a class of their own, and how a command or script ends when anything is raised.

0     all went well
1     a bug of ours: the traceback is shown
2     the user can mend it (`UserError`, a full disk, a missing file, too little memory): one line
130   stopped by Ctrl-C: one line
"""

import errno
import logging
import os
import re
import sys
import traceback
from collections.abc import Callable

__all__ = ["UserError", "is_out_of_memory", "printable", "report_errors"]

# Failures of the place, not of the program. All else that the operating system refuses (EINVAL, EBADF, …) is a bug.
ENVIRONMENT_ERRORS = {
    errno.EACCES, errno.EBUSY, errno.ECONNREFUSED, errno.ECONNRESET, errno.EDQUOT, errno.EEXIST, errno.EFBIG,
    errno.EHOSTUNREACH, errno.EIO, errno.EISDIR, errno.ELOOP, errno.EMFILE, errno.ENAMETOOLONG, errno.ENETUNREACH,
    errno.ENFILE, errno.ENODEV, errno.ENOENT, errno.ENOMEM, errno.ENOSPC, errno.ENOTCONN, errno.ENOTDIR,
    errno.ENOTEMPTY, errno.ENXIO, errno.EPERM, errno.EROFS, errno.ESTALE, errno.ETIMEDOUT, errno.ETXTBSY,
}  # fmt: skip


class UserError(ValueError):
    """Bad input: the message says what was given, what is allowed, where, and what to do.

    The commands and scripts show it as one line and exit with status 2; any other exception is a bug of ours.
    """


def printable(text: str) -> str:
    """A text on one line, safe for a terminal: control characters and broken Unicode are shown as escapes."""
    text = " ".join(text.split())
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def report_errors(run: Callable[[], None], program: str = "diffaudio") -> int:
    """Run a command or script, with warnings and the errors of the user shown as one line each on stderr.

    Args:
        run: the command, without arguments.
        program: the name that each line begins with.

    Returns:
        The exit status, see the module.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_OneLine(f"{program}: warning: %(message)s"))
    if not logging.root.handlers:  # libraries that log there would make it print; what is wrong, the error says
        logging.root.addHandler(logging.NullHandler())
    logger = logging.getLogger("diffaudio")
    logger.handlers, logger.propagate = [handler], False  # open_clip gives the root logger a handler of its own
    try:
        run()
        sys.stdout.flush()
        return 0
    except KeyboardInterrupt as interrupt:
        _print_error(f"{program}: stopped" + (f": {interrupt}" if str(interrupt) else ""))
        return 130
    except BrokenPipeError:  # `diffaudio … | head`: the reader has gone, and Python would complain at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + 13  # as a shell reports SIGPIPE
    except Exception as error:
        message = _explain(error)
        if message is not None:
            _print_error(f"{program}: error: {message}")
            return 2
        traceback.print_exc()
        _print_error(f"{program}: this is a bug in diffaudio; please report it with the lines above")
        return 1
    finally:
        logger.propagate = True


def _explain(error: Exception) -> str | None:
    """What to tell the user; None where it is a bug."""
    if isinstance(error, UserError):
        return str(error)
    if is_out_of_memory(error):
        return "not enough memory; make batches smaller (--batch-size, --workers, train.batch_size) or sounds shorter"
    if isinstance(error, OSError) and error.errno in ENVIRONMENT_ERRORS:
        places = [os.fsdecode(place) for place in (error.filename, error.filename2) if isinstance(place, str | bytes)]
        return f"{' -> '.join(places)}: {error.strerror}" if places else str(error.strerror or error)
    if type(error).__name__ == "SafetensorError":  # it wraps what the system says while weights are written
        code = re.search(r"\(os error (\d+)\)", str(error))
        if code and int(code[1]) in ENVIRONMENT_ERRORS:
            return f"writing weights: {os.strerror(int(code[1]))}"
    return None


def is_out_of_memory(error: Exception) -> bool:
    """Also of torch, which is not imported here: on a GPU a class of its own, on a CPU only a message."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error))
    )


def _print_error(line: str) -> None:
    sys.stderr.write(printable(line) + "\n")


class _OneLine(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))
