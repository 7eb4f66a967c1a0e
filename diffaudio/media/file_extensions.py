"""File names that are taken for media: videos, and files that can hold one beside their sound."""

__all__ = ["MEDIA_SUFFIXES"]

MEDIA_SUFFIXES = (
    *(".3g2", ".3gp", ".3gpp", ".amv", ".asf", ".avi", ".divx", ".dv", ".f4v", ".flv", ".gxf", ".ismv", ".ivf"),
    *(".m1v", ".m2p", ".m2t", ".m2ts", ".m2v", ".m4a", ".m4b", ".m4v", ".mjpg", ".mka", ".mkv", ".mod", ".mov"),
    *(".mp4", ".mp4v", ".mpe", ".mpeg", ".mpg", ".mpv", ".mts", ".mxf", ".nsv", ".nut", ".ogg", ".ogm", ".ogv"),
    *(".qt", ".rm", ".rmvb", ".tod", ".trp", ".ts", ".vob", ".vro", ".webm", ".wm", ".wmv", ".wtv"),
)
