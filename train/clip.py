"""Train a small CLIP: an image tower against a fixed sentence encoder, with open_clip's contrastive loss.

    accelerate launch train/clip.py --config configs/mini/clip.yaml --out runs/clip

The text tower is a Hugging Face sentence encoder, kept as it is but for the words of its vocabulary that
are dropped, so that the model understands what the encoder understands, and not only the captions seen here
(locked-image tuning the other way round; Zhai et al. 2022, arXiv:2111.07991). A batch holds no caption
twice: the loss would otherwise push pictures of the same thing apart.
"""

import io
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

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
from diffaudio.config import parse
from diffaudio.files import replaced_whole
from diffaudio.models.clip import Clip, prune_vocabulary
from diffaudio.training import (
    RunLog,
    latest_state,
    learning_rate,
    load_state,
    save_state,
    seeded_generator,
)


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
    """

    out: Path
    images: Path
    text_model: Path
    vocabulary_texts: list[Path]
    vocabulary_size: int = 12000
    image_model: str = "regnety_002"
    image_size: int = 80
    templates: tuple[str, ...] = ("{}", "a photo of {}", "the sound of {}", "a recording of {}", "{} can be heard")
    steps: int = 1500
    batch_size: int = 256
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    warmup_steps: int = 100
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
        raise ValueError(f"{folder}: no Parquet file with pictures; expected columns 'image' and 'captions'")
    return torch.stack(pictures), captions


def draw_batch(groups: list[tuple[tuple[str, ...], list[int]]], size: int, generator: torch.Generator) -> tuple[list[int], list[str]]:
    """Pictures of `size` different captions; a caption with n pictures is drawn in proportion to sqrt(n)."""
    weights = torch.tensor([len(members) ** 0.5 for _, members in groups])
    order = torch.multinomial(weights, min(len(groups), 2 * size), generator=generator)
    pictures, captions = [], []
    for group in order.tolist():
        choices, members = groups[group]
        caption = choices[int(torch.randint(len(choices), (), generator=generator))]
        if caption not in captions:
            pictures.append(members[int(torch.randint(len(members), (), generator=generator))])
            captions.append(caption)
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

    side, aspect = uniform(min_crop, 1.0).sqrt(), uniform(np.log(3 / 4), np.log(4 / 3)).div(2).exp()
    width, height = (side * aspect).clamp(max=1), (side / aspect).clamp(max=1)
    mirror = torch.where(uniform(0, 1) < 0.5, -1.0, 1.0)
    boxes = torch.zeros(batch, 2, 3)
    boxes[:, 0, 0], boxes[:, 1, 1] = width * mirror, height
    boxes[:, 0, 2], boxes[:, 1, 2] = uniform(-1, 1) * (1 - width), uniform(-1, 1) * (1 - height)
    crops = F.grid_sample(pictures, F.affine_grid(boxes, [batch, 3, size, size], align_corners=False), align_corners=False)
    contrast, brightness = uniform(0.7, 1.3).view(-1, 1, 1, 1), uniform(-0.2, 0.2).view(-1, 1, 1, 1)
    return ((crops - 0.5) * contrast + 0.5 + brightness).clamp(0, 1)


def initial_folder(config: Config, folder: Path) -> None:
    """Write the untrained model in open_clip's format: the pruned sentence encoder and a random image tower."""
    prune_vocabulary(config.text_model, folder, texts=config.vocabulary_texts, size=config.vocabulary_size)
    text_width = json.loads((folder / "config.json").read_text())["hidden_size"]
    model_config = {
        "embed_dim": text_width,
        "vision_cfg": {"timm_model_name": config.image_model, "timm_model_pretrained": False, "timm_pool": "avg", "timm_proj": "linear", "image_size": config.image_size},
        "text_cfg": {"hf_model_name": ".", "hf_tokenizer_name": ".", "hf_model_pretrained": False, "hf_pooler_type": "mean_pooler", "hf_proj_type": None, "context_length": 64},
        "custom_text": True,
    }
    preprocess = {"resize_mode": "squash", "interpolation": "bicubic"}
    name = f"{config.image_model}-{config.text_model.name}"
    (folder / "open_clip_config.json").write_text(json.dumps({"name": name, "model_cfg": model_config, "preprocess_cfg": preprocess}, indent=2))


def main(config: Config) -> None:
    accelerator = Accelerator(mixed_precision="no")
    config.out.mkdir(parents=True, exist_ok=True)
    initial = config.out / "initial"
    if accelerator.is_main_process and not (initial / "open_clip_model.safetensors").is_file():
        torch.manual_seed(config.seed)
        with replaced_whole(initial) as folder:
            initial_folder(config, folder)
            write_weights(new_model(folder), folder)
    accelerator.wait_for_everyone()
    clip = Clip.from_pretrained(initial)
    pictures, captions = load_pictures(config.images, 96)
    members: dict[tuple[str, ...], list[int]] = {}
    for index, names in enumerate(captions):
        members.setdefault(names, []).append(index)
    groups = sorted(members.items())
    sentences = sorted({template.format(caption) for names in members for caption in names for template in config.templates})
    rows = {sentence: row for row, sentence in enumerate(sentences)}
    embeddings = torch.cat([clip.encode_text(sentences[i : i + 64]) for i in tqdm(range(0, len(sentences), 64), desc="sentences")])

    visual, loss_function = clip.model.visual, ClipLoss(rank=accelerator.process_index, world_size=accelerator.num_processes, gather_with_grad=True, local_loss=True)
    log_scale = torch.nn.Parameter(torch.tensor(np.log(1 / 0.07), dtype=torch.float32))
    tower = torch.nn.ModuleDict({"visual": visual.to(memory_format=torch.channels_last)})
    tower.register_parameter("logit_scale", log_scale)
    optimizer = torch.optim.AdamW(tower.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, betas=(0.9, 0.98))
    done = 0
    if (state := latest_state(config.out / "state")) is not None:
        done = load_state(state, optimizer=optimizer, tower=tower)
    network, optimizer = accelerator.prepare(tower["visual"].train(), optimizer)
    log = RunLog(config.out) if accelerator.is_main_process else None
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD))

    for step in tqdm(range(done, config.steps), initial=done, total=config.steps, disable=not accelerator.is_main_process):
        generator = seeded_generator(config.seed, accelerator.process_index, step)
        chosen, texts = draw_batch(groups, config.batch_size, generator)
        templates = torch.randint(len(config.templates), (len(texts),), generator=generator).tolist()
        target = embeddings[[rows[config.templates[t].format(text)] for t, text in zip(templates, texts, strict=True)]]
        pixels = (augment(pictures[chosen].float() / 255, config.min_crop, config.image_size, generator) - mean) / std
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, peak=config.learning_rate, warmup_steps=config.warmup_steps, total_steps=config.steps)
        seen = F.normalize(network(pixels.to(memory_format=torch.channels_last)), dim=-1)
        loss = loss_function(seen, target, log_scale.exp().clamp(max=100))
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        if log and step % config.log_every == 0:
            matched = (seen @ target.T).argmax(1).eq(torch.arange(len(seen))).float().mean()
            log.scalars(step, {"loss": loss.item(), "matched": matched.item(), "scale": log_scale.exp().item()})
        if accelerator.is_main_process and ((step + 1) % config.save_every == 0 or step + 1 == config.steps):
            save_state(config.out / "state", step + 1, optimizer=optimizer, tower=tower)
            with replaced_whole(config.out / "model") as folder:
                for file in initial.iterdir():
                    if file.name != "open_clip_model.safetensors":
                        (folder / file.name).write_bytes(file.read_bytes())
                clip.model.logit_scale.data.copy_(log_scale.data)
                write_weights(clip.model, folder)


def new_model(folder: Path) -> torch.nn.Module:
    """The text tower's pretrained weights beside a random image tower."""
    config = json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]
    model = open_clip.create_model(f"local-dir:{folder}", text_cfg=config["text_cfg"] | {"hf_model_name": str(folder.resolve()), "hf_model_pretrained": True}, load_weights=False)
    (folder / "model.safetensors").unlink()  # the sentence encoder's own file; its weights are in the model's now
    return model


def write_weights(model: torch.nn.Module, folder: Path) -> None:
    state = {name: value.half() if value.is_floating_point() else value for name, value in model.state_dict().items()}
    save_file({name: value.contiguous() for name, value in state.items()}, folder / "open_clip_model.safetensors")


if __name__ == "__main__":
    main(parse(Config))
