"""Whether a corpus was encoded by the models that go into the checkpoint."""

from diffaudio.corpus.datasets.latents import LatentDataset
from diffaudio.corpus.weights_digest import has_same_weights
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
    for kind, described, model in (("autoencoder", encoder, autoencoder), ("clip", dataset.clip, clip)):
        if not has_same_weights(described, model):
            raise UserError(
                f"{dataset.folders[0]}: was encoded by another {'CLIP' if kind == 'clip' else kind} of the name "
                f"'{model.name}', with other weights; encode the corpus again with that of the checkpoint as --{kind}"
            )
