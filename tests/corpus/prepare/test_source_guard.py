"""Failures of the place, told apart from failures of the file."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from diffaudio.corpus.prepare import source_guard
from diffaudio.corpus.prepare.source_guard import SourceGuard, SourceUnavailableError, is_place_failure

PLACE = ["EIO", "ESTALE", "ENOTCONN", "ENODEV", "ENXIO", "ETIMEDOUT", "EHOSTDOWN", "ENETUNREACH", "EMFILE", "ENFILE"]
SIZE = 12 << 20  # of which the first and the last 4 MB are always read


def check(
    path: Path, read_to: int | None = None, *, existed: bool = True, meanwhile: Callable[[], None] = lambda: None
):
    guard = SourceGuard(str(path), existed=existed)
    try:
        meanwhile()
        guard.check(read_to, lambda: None)
    finally:
        guard.close()


@pytest.fixture
def film(tmp_path):
    (tmp_path / "share").mkdir()
    path = tmp_path / "share" / "film.mp4"
    path.write_bytes(bytes(SIZE))
    return path


def failing_from(offset: int, code: int):
    """os.pread of a disk that cannot be read from an offset on."""
    pread = os.pread

    def read(descriptor: int, size: int, start: int) -> bytes:
        if start + size > offset:
            raise OSError(code, os.strerror(code))
        return pread(descriptor, size, start)

    return read


def test_a_file_that_can_be_read_passes(film):
    check(film)
    check(film, 0)


@pytest.mark.parametrize("name", PLACE)
def test_what_a_failing_place_answers_is_no_failure_of_the_file(film, monkeypatch, name):
    monkeypatch.setattr(source_guard.os, "pread", failing_from(0, getattr(errno, name)))
    with pytest.raises(SourceUnavailableError, match=os.strerror(getattr(errno, name))):
        check(film)
    assert is_place_failure(OSError(getattr(errno, name), "x"), str(film), existed=False)


def test_a_read_error_that_the_demuxer_took_for_the_end_of_the_file_is_found(film, monkeypatch):
    pread = os.pread

    def read(descriptor: int, size: int, start: int) -> bytes:
        if start <= 6 << 20 < start + size:  # one bad block in the middle
            raise OSError(errno.EIO, "Input/output error")
        return pread(descriptor, size, start)

    monkeypatch.setattr(source_guard.os, "pread", read)
    check(film, SIZE)  # it was read past the block all the same
    with pytest.raises(SourceUnavailableError, match="Input/output error"):
        check(film, 5 << 20)


def test_a_network_share_that_disappears_is_distinguished_from_a_file_that_never_existed(film, tmp_path):
    with pytest.raises(SourceUnavailableError, match="its folder .* is not there"):
        check(film, meanwhile=lambda: film.parent.rename(tmp_path / "away"))
    with pytest.raises(SourceUnavailableError, match="its folder .* is not there"):
        check(film, existed=False)
    film.parent.mkdir()  # as where nothing is mounted
    with pytest.raises(SourceUnavailableError, match="No such file"):
        check(film, existed=False)
    (film.parent / "other.mp4").touch()
    check(film, existed=False)  # cut_clips says that there is no such file
    with pytest.raises(SourceUnavailableError, match="No such file"):
        check(film, existed=True)


def test_a_file_that_changes_or_vanishes_while_it_is_read_is_tried_again(film):
    with pytest.raises(SourceUnavailableError, match="it changed while it was read"):
        check(film, meanwhile=lambda: film.write_bytes(bytes(SIZE + 1)))
    with pytest.raises(SourceUnavailableError, match="it changed while it was read"):
        check(film, meanwhile=lambda: os.truncate(film, 100))
    (film.parent / "other.mp4").touch()
    with pytest.raises(SourceUnavailableError, match="No such file"):
        check(film, meanwhile=film.unlink)


def test_a_file_that_may_not_be_read_is_to_blame_unless_its_folder_is_closed_too(film, tmp_path):
    denied = PermissionError(errno.EACCES, "Permission denied")
    assert not is_place_failure(denied, str(film), existed=True)
    assert is_place_failure(denied, str(tmp_path / "closed" / "film.mp4"), existed=True)


def test_a_pipe_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "film.mp4")
    check(tmp_path / "film.mp4")
