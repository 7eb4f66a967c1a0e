"""The child process that decodes media files for `subprocess_decoding`."""

import errno
import gc
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from diffaudio.media import dubbing, images
from diffaudio.media.audio_decoder import decode_chunks
from diffaudio.media.container import MediaError
from diffaudio.media.memory_limit import is_machine_short_of_memory, limit_memory

__all__ = ["OPERATIONS", "serve"]

Items = Iterator[tuple[Any, list[np.ndarray]]]


def decode_audio_file(path: Path, **arguments: Any) -> Items:
    """The sample rate and [channels, samples] float32 of each chunk."""
    for rate, x in decode_chunks(path, **arguments):
        yield rate, [np.ascontiguousarray(x)]


def decode_video_file(path: Path, count: int) -> Items:
    """Frames [height, width, 3] uint8 of a video or an animation."""
    yield from _arrays(images.decode_video(path, count))


def decode_picture_file(path: Path, count: int) -> Items:
    """Images [height, width, 3] uint8: one, or several frames of an animation."""
    yield from _arrays(images.decode_picture(path, count))


def dub_video_file(path: Path, output: str, sound: str | None) -> Items:
    """Write a video with another sound; see `dubbing`."""
    yield dubbing.dub_in_this_process(path, output, sound), []


OPERATIONS: dict[str, Callable[..., Items]] = {
    "audio": decode_audio_file,
    "video": decode_video_file,
    "picture": decode_picture_file,
    "dub": dub_video_file,
}


def serve() -> None:
    """Decode what is asked for on the standard input until it ends.

    First comes a line with the parent's process id and the bound of memory in MB; then one for each file. Each reply
    is a line of JSON, followed by the bytes of the arrays that it announces.
    """
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no reply
    start = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with, args=(start["parent"],), daemon=True).start()
    limit_memory(start["max_memory_mb"])
    Image.MAX_IMAGE_PIXELS = None  # `images` looks at the size itself
    gc.freeze()
    for line in sys.stdin.buffer:
        request = json.loads(line)
        _reply(replies, **_answer(replies, request.pop("operation"), Path(request.pop("path")), request))


def _answer(replies: Any, operation: str, path: Path, arguments: dict[str, Any]) -> dict[str, Any]:
    """Send all items; the last reply says how it ended."""
    try:
        for value, arrays in OPERATIONS[operation](path, **arguments):
            _reply(replies, kind="item", value=value, arrays=arrays)
    except MediaError as error:
        return {"kind": "media_error", "message": str(error)}
    except MemoryError:
        if is_machine_short_of_memory():
            return {"kind": "os_error", "errno": errno.ENOMEM, "message": os.strerror(errno.ENOMEM)}
        return {"kind": "memory_error"}
    except BrokenPipeError:
        os._exit(0)  # the parent is gone
    except OSError as error:
        return {"kind": "os_error", "errno": error.errno or errno.EIO, "message": error.strerror or str(error)}
    except Exception:
        return {"kind": "bug", "message": traceback.format_exc()}
    return {"kind": "done"}


def _reply(replies: Any, *, arrays: list[np.ndarray] | None = None, **message: Any) -> None:
    described = [{"shape": x.shape, "dtype": x.dtype.str} for x in arrays or ()]
    replies.write(json.dumps(message | {"arrays": described}).encode() + b"\n")
    for x in arrays or ():
        replies.write(x.reshape(-1).view(np.uint8).data)
    replies.flush()


def _arrays(images: list[Image.Image]) -> Items:
    for image in images:
        yield None, [np.asarray(image)]


def _end_with(parent: int) -> None:
    """End with the parent even in the middle of a decoder's endless loop."""
    while os.name == "nt" or os.getppid() == parent:
        time.sleep(2.0)
    os._exit(1)
