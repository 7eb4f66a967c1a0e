"""`diffaudio merge`: a model and LoRA adapters -> a model folder."""

from dataclasses import dataclass
from pathlib import Path

from diffaudio.adapter_names import parse_adapter
from diffaudio.cli.options import check_adapters, check_model
from diffaudio.config import parse_command
from diffaudio.errors import UserError

__all__ = ["run"]


@dataclass(kw_only=True)
class Options:
    """The options of `diffaudio merge`.

    Attributes:
        lora: one or more adapters, FOLDER or FOLDER::STRENGTH.
        model: model folder or hub id that they were trained on (default: the bundled model).
        output: folder for the model.
    """

    lora: list[str]
    output: Path
    model: str | None = None


def run(arguments: list[str]) -> None:
    given = parse_command(
        Options,
        arguments,
        program="diffaudio merge",
        description="Add LoRA adapters to the weights of a model, and write the result as a model of its own.",
        epilog="It generates what `diffaudio generate --lora …` would, and can itself be fine-tuned.",
        flags={"lora": ("lora",), "output": ("-o", "--output")},
    )
    check_model(given.model)
    check_adapters(given.lora)
    if given.output.exists() and (not given.output.is_dir() or any(given.output.iterdir())):
        raise UserError(f"{given.output}: holds something already; name a folder that is new or empty")

    import torch

    from diffaudio.pipeline import DiffAudioPipeline, bundled_model

    pipe = DiffAudioPipeline.from_pretrained(given.model or bundled_model())
    for text in given.lora:
        pipe.load_lora(*parse_adapter(text))
    pipe.save_pretrained(given.output, dtype=torch.float16)
    print(f"{given.output}: {len(given.lora)} adapter{'s' * (len(given.lora) > 1)} merged")
