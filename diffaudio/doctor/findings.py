"""What a check found."""

from dataclasses import dataclass
from typing import Literal

__all__ = ["Finding", "gigabytes"]

Status = Literal["ok", "note", "slow", "missing"]


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        topic: what was looked at, such as "GPU".
        status: ok; note: worth knowing; slow: it works, but slowly; missing: something will not work.
        text: what was found.
        advice: what to do; empty where there is nothing to do.
    """

    topic: str
    status: Status
    text: str
    advice: str = ""


def gigabytes(size: float) -> str:
    """A number of bytes, for people."""
    return f"{size / 1e9:.3g} GB"
