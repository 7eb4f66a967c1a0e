"""Libraries: versions, what FFmpeg and libsndfile were built with, and what is optional."""

import importlib.metadata
import importlib.util
import platform
import sys
from collections.abc import Iterator

from diffaudio import __version__
from diffaudio.doctor.findings import Finding

__all__ = ["check_codecs", "check_optional", "check_versions"]

DECODERS = {
    "pictures": ("h264", "hevc", "vp8", "vp9", "av1", "mpeg4", "mpeg2video", "mjpeg"),
    "sound": ("aac", "mp3", "opus", "vorbis", "flac", "ac3", "pcm_s16le", "alac"),
}
ENCODERS = ("aac", "flac", "libmp3lame", "libopus")
OPTIONAL = {
    "peft": "training LoRA adapters; pip install 'diffaudio[lora]'",
    "datasets": "reading corpora with the datasets library; pip install 'diffaudio[datasets]'",
    "wandb": "logging to Weights & Biases; pip install wandb",
    "s3fs": "sources on S3; pip install s3fs",
}


def check_versions() -> Iterator[Finding]:
    """Versions of what matters most, and whether torch and torchaudio belong together."""
    names = ("torch", "torchaudio", "diffusers", "transformers", "open_clip_torch", "accelerate", "av")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
    python = f"Python {platform.python_version()} on {platform.system()} {platform.machine()}"
    yield Finding("versions", "ok", f"diffaudio {__version__}, {python}, {versions}")
    try:
        import torchaudio  # noqa: F401
    except (ImportError, OSError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        advice = "install torch and torchaudio for the same version of CUDA"
        yield Finding("torchaudio", "missing", f"cannot be imported: {reason}", advice)
    if sys.getfilesystemencoding().lower() != "utf-8":
        advice = "set LC_ALL=C.UTF-8 or PYTHONUTF8=1"
        yield Finding("file names", "slow", f"are encoded as {sys.getfilesystemencoding()}, not UTF-8", advice)


def check_codecs() -> Iterator[Finding]:
    """Codecs of the FFmpeg in PyAV, and formats of libsndfile."""
    import av
    import soundfile

    for what, names in DECODERS.items():
        lacking = [name for name in names if not _has_codec(name, "r")]
        text = f"FFmpeg decodes {what}: {', '.join(name for name in names if name not in lacking)}"
        if lacking:
            advice = "such files are dropped; pip install --force-reinstall av takes a build that has them"
            yield Finding("codecs", "missing", f"{text}; not {', '.join(lacking)}", advice)
        else:
            yield Finding("codecs", "ok", f"{text} (PyAV {av.__version__})")
    lacking = [name for name in ENCODERS if not _has_codec(name, "w")]
    if lacking:
        yield Finding("codecs", "missing", f"FFmpeg cannot encode {', '.join(lacking)}", "pip install another av")
    lacking = [name for name in ("WAV", "FLAC", "OGG") if name not in soundfile.available_formats()]
    if lacking:
        text = f"libsndfile cannot write {', '.join(lacking)}"
        yield Finding("sound files", "missing", text, "pip install --force-reinstall soundfile")


def _has_codec(name: str, mode: str) -> bool:
    import av
    from av.codec.codec import UnknownCodecError

    try:
        av.Codec(name, mode)  # type: ignore[arg-type]
    except (UnknownCodecError, ValueError):
        return False
    return True


def check_optional() -> Iterator[Finding]:
    """Packages that some features need."""
    absent = [f"{name} ({what})" for name, what in OPTIONAL.items() if importlib.util.find_spec(name) is None]
    found = [name for name in OPTIONAL if importlib.util.find_spec(name) is not None]
    if found:
        yield Finding("optional", "ok", f"installed: {', '.join(found)}")
    if absent:
        yield Finding("optional", "note", f"not installed: {'; '.join(absent)}")
