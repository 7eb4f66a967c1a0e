"""File names that are taken for media."""

__all__ = ["MEDIA_SUFFIXES"]

MEDIA_SUFFIXES = (
    *(".3gp", ".asf", ".avi", ".f4v", ".flv", ".m2ts", ".m4a", ".m4v", ".mka", ".mkv", ".mov"),
    *(".mp4", ".mpeg", ".mpg", ".mts", ".mxf", ".ogg", ".ogv", ".ts", ".webm", ".wmv"),
)
