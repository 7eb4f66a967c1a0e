"""Train a small CLIP: an image tower against a fixed sentence encoder, with open_clip's contrastive loss.

    accelerate launch train/clip.py --config configs/mini/clip.yaml --out runs/clip

The text tower is a Hugging Face sentence encoder, kept as it is but for the words of its vocabulary that
are dropped, so that the model understands what the encoder understands, and not only the captions seen here
(locked-image tuning the other way round; Zhai et al. 2022, arXiv:2111.07991). No two pictures of a batch
share a caption: the loss would otherwise push a chihuahua away from "a dog barking".
"""

import io
import json
import math
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from open_clip.loss import ClipLoss
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from diffaudio.atomic_io import atomic_folder
from diffaudio.distributed import join_processes, run_script
from diffaudio.errors import UserError
from diffaudio.models.clip import Clip, prune_vocabulary
from diffaudio.training.run_folder import (
    RunLog,
    latest_state,
    learning_rate,
    load_state,
    save_state,
    seeded_generator,
)

MEAN = torch.tensor(open_clip.OPENAI_DATASET_MEAN).view(1, 3, 1, 1)
DEVIATION = torch.tensor(open_clip.OPENAI_DATASET_STD).view(1, 3, 1, 1)


@dataclass
class Config:
    """Settings of `train/clip.py`.

    Attributes:
        images: folder of Parquet files with columns `image` (JPEG bytes) and `captions` (strings).
        text_model: folder of a Hugging Face sentence encoder with mean pooling (BERT or alike).
        vocabulary_texts: text files, one sentence a line, whose words stay in the vocabulary.
        vocabulary_size: how many tokens to keep; the commonest ones fill up what the texts leave.
        image_model: a timm model, trained from random weights.
        image_size: pixels a side.
        templates: sentences that a caption is put into, one drawn at random a picture.
        start_from: a CLIP folder made by this script, to go on from instead of a random image tower.
        sounding_weight: how much more often pictures with several captions are drawn; in the image set those are
            the ones whose captions also say what is heard.
        min_crop: smallest part of a picture's area that a training crop shows.
    """

    out: Path
    images: Path
    text_model: Path
    vocabulary_texts: list[Path]
    vocabulary_size: int = 12000
    image_model: str = "regnety_002"
    image_size: int = 64
    templates: tuple[str, ...] = ("{}", "a photo of {}", "the sound of {}", "a recording of {}", "{} can be heard")
    start_from: Path | None = None
    sounding_weight: float = 20.0
    steps: int = 1800
    batch_size: int = 128
    learning_rate: float = 1.5e-3
    weight_decay: float = 0.05
    warmup_steps: int = 60
    min_crop: float = 0.35
    seed: int = 0
    save_every: int = 100
    log_every: int = 10


def load_pictures(folder: Path, size: int) -> tuple[Tensor, list[tuple[str, ...]]]:
    """All pictures as [number, 3, size, size] uint8, and their captions."""
    pictures, captions = [], []
    for path in sorted(folder.glob("*.parquet")):
        for row in tqdm(pq.read_table(path).to_pylist(), desc=path.name, leave=False):
            picture = Image.open(io.BytesIO(row["image"])).convert("RGB").resize((size, size), Image.Resampling.BICUBIC)
            pictures.append(torch.from_numpy(np.array(picture)).permute(2, 0, 1))
            captions.append(tuple(row["captions"]))
    if not pictures:
        raise UserError(f"{folder}: no Parquet file with pictures; expected columns 'image' and 'captions'")
    return torch.stack(pictures), captions


def draw_batch(
    groups: list[tuple[tuple[str, ...], list[int]]], size: int, sounding_weight: float, generator: torch.Generator
) -> tuple[list[int], list[str]]:
    """Pictures of which no two could bear the same caption; those with n alike are drawn in proportion to sqrt(n)."""
    weights = torch.tensor(
        [len(members) ** 0.5 * (sounding_weight if len(names) > 1 else 1.0) for names, members in groups]
    )
    order = torch.multinomial(weights, min(len(groups), 3 * size), generator=generator)
    pictures: list[int] = []
    captions: list[str] = []
    taken: set[str] = set()
    for group in order.tolist():
        names, members = groups[group]
        if taken.isdisjoint(names):
            taken.update(names)
            pictures.append(members[int(torch.randint(len(members), (), generator=generator))])
            captions.append(names[int(torch.randint(len(names), (), generator=generator))])
        if len(pictures) == size:
            break
    return pictures, captions


def augment(pictures: Tensor, min_crop: float, size: int, generator: torch.Generator) -> Tensor:
    """Random crop of at least `min_crop` of the area, aspect 3/4 to 4/3, mirror, brightness and contrast.

    Args:
        pictures: [batch, 3, height, width] in [0, 1].

    Returns:
        [batch, 3, size, size]
    """
    batch = len(pictures)

    def uniform(low: float, high: float) -> Tensor:
        return torch.rand(batch, generator=generator) * (high - low) + low

    side, aspect = uniform(min_crop, 1.0).sqrt(), uniform(math.log(3 / 4), math.log(4 / 3)).div(2).exp()
    width, height = (side * aspect).clamp(max=1), (side / aspect).clamp(max=1)
    mirror = torch.where(uniform(0, 1) < 0.5, -1.0, 1.0)
    boxes = torch.zeros(batch, 2, 3)
    boxes[:, 0, 0], boxes[:, 1, 1] = width * mirror, height
    boxes[:, 0, 2], boxes[:, 1, 2] = uniform(-1, 1) * (1 - width), uniform(-1, 1) * (1 - height)
    crops = F.grid_sample(
        pictures, F.affine_grid(boxes, [batch, 3, size, size], align_corners=False), align_corners=False
    )
    contrast, brightness = uniform(0.7, 1.3).view(-1, 1, 1, 1), uniform(-0.2, 0.2).view(-1, 1, 1, 1)
    return ((crops - 0.5) * contrast + 0.5 + brightness).clamp(0, 1)


def initial_folder(config: Config, folder: Path) -> None:
    """Write the untrained model in open_clip's format: the pruned sentence encoder and a random image tower."""
    prune_vocabulary(config.text_model, folder, texts=config.vocabulary_texts, size=config.vocabulary_size)
    model_config: dict[str, Any] = {
        "embed_dim": json.loads((folder / "config.json").read_text(encoding="utf-8"))["hidden_size"],
        "vision_cfg": {
            "timm_model_name": config.image_model,
            "timm_model_pretrained": False,
            "timm_pool": "avg",
            "timm_proj": "linear",
            "image_size": config.image_size,
        },
        "text_cfg": {
            "hf_model_name": ".",
            "hf_tokenizer_name": ".",
            "hf_model_pretrained": False,
            "hf_pooler_type": "mean_pooler",
            "hf_proj_type": None,
            "context_length": 64,
        },
        "custom_text": True,
    }
    text_config = model_config["text_cfg"] | {"hf_model_name": str(folder.resolve()), "hf_model_pretrained": True}
    open_clip_config = {
        "name": f"{config.image_model}-{config.text_model.name}",
        "model_cfg": model_config,
        "preprocess_cfg": {"resize_mode": "squash", "interpolation": "bicubic"},
    }
    (folder / "open_clip_config.json").write_text(json.dumps(open_clip_config, indent=2), encoding="utf-8")
    model = open_clip.create_model(f"local-dir:{folder}", text_cfg=text_config, load_weights=False)
    (folder / "model.safetensors").unlink()  # the sentence encoder's own file; its weights are in the model's now
    write_weights(model, folder)


def write_weights(model: torch.nn.Module, folder: Path) -> None:
    """Write open_clip_model.safetensors in half precision."""
    halves = {
        name: (value.half() if value.is_floating_point() else value).contiguous()
        for name, value in model.state_dict().items()
    }
    save_file(halves, folder / "open_clip_model.safetensors")


def save_model(clip: Clip, initial: Path, target: Path) -> None:
    """Write the folder for inference: what `initial` says, with the weights as they are now."""
    with atomic_folder(target) as folder:
        for file in initial.iterdir():
            if file.name != "open_clip_model.safetensors":
                shutil.copy(file, folder)
        write_weights(clip.model, folder)


class Tower(torch.nn.Module):
    """What is trained of a CLIP: the image tower and the loss' scale (the inverse of its temperature).

    pixels [batch, 3, size, size] -> embeddings [batch, dim] of unit norm, and the scale.
    """

    def __init__(self, model: Any, initial_scale: float = 30.0) -> None:
        super().__init__()
        self.visual = model.visual.to(memory_format=torch.channels_last)
        self.logit_scale = model.logit_scale
        torch.nn.init.constant_(self.logit_scale, math.log(initial_scale))

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        seen = self.visual(pixels.contiguous(memory_format=torch.channels_last))
        return F.normalize(seen, dim=-1), self.logit_scale.exp().clamp(max=100)


def embed_sentences(clip: Clip, sentences: list[str]) -> dict[str, Tensor]:
    """The fixed side of the loss: an embedding [dim] a sentence."""
    batches = [sentences[i : i + 64] for i in range(0, len(sentences), 64)]
    embeddings = torch.cat([clip.encode_text(batch) for batch in tqdm(batches, desc="sentences", leave=False)])
    return dict(zip(sentences, embeddings, strict=True))


def main(config: Config) -> None:
    join_processes()
    accelerator = Accelerator(mixed_precision="no")
    initial = config.out / "initial"
    if accelerator.is_main_process and not initial.is_dir():
        torch.manual_seed(config.seed)
        with atomic_folder(initial) as folder:
            if config.start_from:
                shutil.copytree(config.start_from, folder, dirs_exist_ok=True)
            else:
                initial_folder(config, folder)
    accelerator.wait_for_everyone()
    clip = Clip.from_pretrained(initial)
    pictures, captions = load_pictures(config.images, config.image_size * 5 // 4)
    members: dict[tuple[str, ...], list[int]] = {}
    for index, names in enumerate(captions):
        members.setdefault(names, []).append(index)
    groups = sorted(members.items())
    sentences = {template.format(caption) for names in members for caption in names for template in config.templates}
    targets = embed_sentences(clip, sorted(sentences))

    tower = Tower(clip.model).to(accelerator.device)
    loss_function = ClipLoss(
        local_loss=True, gather_with_grad=True, rank=accelerator.process_index, world_size=accelerator.num_processes
    )
    optimizer = torch.optim.AdamW(tower.parameters(), weight_decay=config.weight_decay, betas=(0.9, 0.98))
    state = latest_state(config.out / "state")
    done = load_state(state, optimizer=optimizer, tower=tower) if state else 0
    network, optimizer = accelerator.prepare(tower.train(), optimizer)
    log = RunLog(config.out, done) if accelerator.is_main_process else None

    for step in tqdm(range(done, config.steps), initial=done, total=config.steps, disable=log is None):
        generator = seeded_generator(config.seed, accelerator.process_index, step)
        chosen, texts = draw_batch(groups, config.batch_size, config.sounding_weight, generator)
        wordings = torch.randint(len(config.templates), (len(texts),), generator=generator).tolist()
        target = torch.stack([targets[config.templates[w].format(t)] for w, t in zip(wordings, texts, strict=True)])
        pixels = augment(pictures[chosen].float() / 255, config.min_crop, config.image_size, generator)
        pixels = (pixels - MEAN) / DEVIATION
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(
                step, peak=config.learning_rate, warmup_steps=config.warmup_steps, total_steps=config.steps
            )
        seen, scale = network(pixels.to(accelerator.device))
        loss = loss_function(seen, target.to(seen), scale)
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        if log and (step + 1) % config.log_every == 0:
            matched = (seen @ target.to(seen).T).argmax(dim=1).cpu() == torch.arange(len(seen))
            values = {"loss": loss.item(), "matched": matched.float().mean().item(), "scale": scale.item()}
            log.scalars(step + 1, values)
        if log and ((step + 1) % config.save_every == 0 or step + 1 == config.steps):
            save_state(config.out / "state", step + 1, optimizer=optimizer, tower=tower)
            save_model(clip, initial, config.out / "model")
    if log:
        log.close()
    accelerator.end_training()


if __name__ == "__main__":
    run_script(main, Config)
