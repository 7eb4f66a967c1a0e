"""Whether a corpus was encoded by the models that go into the checkpoint."""

from diffaudio.corpus.datasets.latents import LatentDataset
from diffaudio.errors import UserError
from diffaudio.models.autoencoders import Autoencoder
from diffaudio.models.clip import Clip

__all__ = ["check_encoders"]


def check_encoders(dataset: LatentDataset, autoencoder: Autoencoder, clip: Clip) -> None:
    """Refuse a corpus that other models encoded.

    Raises:
        ValueError: the autoencoder or CLIP of the corpus is another one.
    """
    encoder = dataset.autoencoder
    if encoder["name"] != autoencoder.name:
        raise UserError(
            f"{dataset.folders[0]}: latents were made by autoencoder '{encoder['name']}' "
            f"({encoder['latent_rate']:g} Hz, {encoder['latent_channels']} channels), the checkpoint wants "
            f"'{autoencoder.name}' ({autoencoder.latent_rate:g} Hz, {autoencoder.latent_channels} channels); "
            "encode the corpus again with that one as --autoencoder"
        )
    if dataset.clip["name"] != clip.name:
        raise UserError(
            f"{dataset.folders[0]}: embeddings were made by CLIP '{dataset.clip['name']}', "
            f"the checkpoint wants '{clip.name}'; encode the corpus again with that one as --clip"
        )
