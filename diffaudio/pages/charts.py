"""Charts on pages: their colours, and writing them as SVG."""

from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure

from diffaudio.atomic_io import atomic_file

__all__ = ["COLOURS", "write_svg"]

# Okabe & Ito's colours, told apart also by those who do not see red and green apart
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#B8860B", "#000000", "#7F7F7F")


def write_svg(path: Path, figure: Figure) -> None:
    """Write a picture, whole: letters stay letters, and nothing in the file changes from one drawing to the next."""
    with atomic_file(path) as temporary, rc_context({"svg.fonttype": "none", "svg.hashsalt": ""}):
        figure.savefig(temporary, metadata={"Date": None})
