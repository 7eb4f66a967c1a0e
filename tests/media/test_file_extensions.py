from diffaudio.media.file_extensions import MEDIA_SUFFIXES


def test_suffixes_of_cameras_discs_and_recorders_are_media():
    wanted = {".mp4", ".mkv", ".webm", ".avi", ".vob", ".3g2", ".3gp", ".m2t", ".mts", ".dv", ".mod", ".tod"}
    assert wanted <= set(MEDIA_SUFFIXES)
    assert all(suffix == suffix.lower() and suffix.startswith(".") for suffix in MEDIA_SUFFIXES)
    assert len(set(MEDIA_SUFFIXES)) == len(MEDIA_SUFFIXES)
