"""File extensions of media: of what is read, and of videos that are written."""

__all__ = ["MEDIA_SUFFIXES", "VIDEO_CONTAINERS"]

MEDIA_SUFFIXES = (
    *(".3g2", ".3gp", ".3gpp", ".amv", ".asf", ".avi", ".divx", ".dv", ".f4v", ".flv", ".gxf", ".ismv", ".ivf"),
    *(".m1v", ".m2p", ".m2t", ".m2ts", ".m2v", ".m4a", ".m4b", ".m4v", ".mjpg", ".mka", ".mkv", ".mod", ".mov"),
    *(".mp4", ".mp4v", ".mpe", ".mpeg", ".mpg", ".mpv", ".mts", ".mxf", ".nsv", ".nut", ".ogg", ".ogm", ".ogv"),
    *(".qt", ".rm", ".rmvb", ".tod", ".trp", ".ts", ".vob", ".vro", ".webm", ".wm", ".wmv", ".wtv"),
)

# Of a video that is written with a new sound: the container, and the encoder of its sound
VIDEO_CONTAINERS = {
    ".mp4": ("mp4", "aac"),
    ".m4v": ("mp4", "aac"),
    ".mov": ("mov", "aac"),
    ".3gp": ("3gp", "aac"),
    ".mkv": ("matroska", "flac"),
    ".webm": ("webm", "libopus"),
    ".ogv": ("ogv", "libopus"),
    ".avi": ("avi", "pcm_s16le"),
    ".flv": ("flv", "aac"),
    ".ts": ("mpegts", "aac"),
    ".mts": ("mpegts", "aac"),
    ".m2ts": ("mpegts", "aac"),
    ".mpg": ("mpeg", "mp2"),
    ".mpeg": ("mpeg", "mp2"),
    ".wmv": ("asf", "wmav2"),
    ".nut": ("nut", "flac"),
}
