"""`diffaudio encode`: a corpus of clips -> latents and embeddings to train on."""

import sys
from pathlib import Path

from diffaudio.commandline import Parser, between

__all__ = ["run"]


def run(arguments: list[str]) -> None:
    parser = Parser(
        prog="diffaudio encode",
        description="Turn a corpus of clips into latents and CLIP embeddings to train on. Running it again continues.",
    )
    parser.add_argument("corpus", type=Path, help="folder that `diffaudio prepare` made")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder of the encoded corpus")
    parser.add_argument(
        "--model", metavar="FOLDER|ID", help="whose autoencoder and CLIP to use (default: the one that comes along)"
    )
    parser.add_argument(
        "--autoencoder",
        metavar="FOLDER|ID",
        help="instead of the model's: ours, or in the format of its library, such as facebook/encodec_24khz",
    )
    parser.add_argument(
        "--clip",
        metavar="FOLDER|NAME",
        help="instead of the model's: a folder, an hf-hub: id, or open_clip's name and tag, such as ViT-B-32/openai",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (default: %(default)s)")
    parser.add_argument("--batch-size", type=between(int, 1), default=16, help="clips at a time (default: %(default)s)")
    given = parser.parse_args(arguments)

    from diffaudio.corpus.encode import encode
    from diffaudio.model_folder import load_encoders
    from diffaudio.rendering import choose_device

    device = choose_device(given.device)
    autoencoder, clip = load_encoders(given.model, autoencoder=given.autoencoder, clip=given.clip)
    manifest = encode(
        given.corpus,
        given.output,
        autoencoder=autoencoder,
        clip=clip,
        device=device,
        batch_size=given.batch_size,
        progress=sys.stderr.isatty(),
    )
    print(f"{given.output}: {manifest['clips']} clips, {manifest['seconds'] / 60:.1f} minutes")
