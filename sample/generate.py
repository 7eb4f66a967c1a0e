"""Generate the sounds of a prompt list, shared over any number of processes and GPUs.

    accelerate launch sample/generate.py --prompts prompts.txt --out sounds
    accelerate launch --num_processes 4 sample/generate.py --prompts prompts.txt --out sounds --model runs/demo/model

A line of the list is a prompt, or `prompt|name` with the name of its file; others are named after their place
in the list and their words. Process p of P makes items p, p + P, p + 2 P, … The seed of an item is a function
of --seed and its place, so it sounds the same however many processes there are and however large the batches.
Run again, the script makes only what is missing.
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path

import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from diffaudio.commandline import Parser, add_settings, between, report_errors, slug
from diffaudio.launch import join_processes
from diffaudio.rendering import Item, Settings, choose_device, choose_dtype, load_pipeline, render
from diffaudio.training import seeded_generator


def read_prompts(file: Path, folder: Path, seed: int) -> list[Item]:
    """What to make: an item for each line of the list that is not blank.

    Raises:
        ValueError: the list is missing or empty, a prompt is empty, or a name cannot be one or comes twice.
    """
    if not file.is_file():
        raise ValueError(f"{file}: there is no such prompt list")
    items, stems = [], dict[str, int]()
    for number, line in enumerate(file.read_text(encoding="utf-8-sig").splitlines(), start=1):
        if not line.strip():
            continue
        prompt, _, name = (part.strip() for part in line.partition("|"))
        name = name or f"{len(items):05d}-{slug(prompt)}"
        path = folder / (name if name.endswith((".wav", ".flac")) else f"{name}.wav")
        if path.parent != folder or name.startswith("."):
            raise ValueError(f"{file}, line {number}: '{name}' cannot name a file; leave out slashes and leading dots")
        if path.stem in stems:
            raise ValueError(f"{file}: lines {stems[path.stem]} and {number} are both named '{path.stem}'")
        stems[path.stem] = number
        try:
            items.append(Item(prompt, seeded_generator(seed, len(items)).initial_seed(), path))
        except ValueError as error:
            raise ValueError(f"{file}, line {number}: {error}") from error
    if not items:
        raise ValueError(f"{file}: the prompt list is empty")
    return items


def is_made(item: Item, settings: Settings, model: str | None) -> bool:
    """Whether the item's sound is there.

    Raises:
        ValueError: something else is there: another file, or a sound made with other settings.
    """
    if not item.path.exists():
        return False
    companion = item.path.with_suffix(".json")
    if not companion.is_file():
        raise ValueError(f"{item.path}: is there without its {companion.name}; remove it, or write to another folder")
    made = json.loads(companion.read_text(encoding="utf-8"))
    wanted = {"prompt": item.prompt, "seed": item.seed, **asdict(settings)}
    if model is not None:
        wanted["model"] = model
    changed = [f"{key} was {made.get(key)}, now {value}" for key, value in wanted.items() if made.get(key) != value]
    if changed:
        raise ValueError(
            f"{item.path}: was made with other settings ({'; '.join(changed)}); use the same, or another folder"
        )
    return True


def main() -> None:
    parser = Parser(description="Generate the sounds of a prompt list; shared over processes by `accelerate launch`.")
    parser.add_argument("--prompts", type=Path, required=True, help="a text file, a line `prompt` or `prompt|name`")
    parser.add_argument("--out", type=Path, required=True, help="folder for the sounds, made where it is missing")
    parser.add_argument("--seed", type=between(int, 0, 2**63 - 1), default=0, help="of the run (default: %(default)s)")
    add_settings(parser)
    given = parser.parse_args()
    settings = Settings(given.steps, given.guidance_scale, given.sampler, given.duration, given.negative_prompt)
    items = read_prompts(given.prompts, given.out, given.seed)

    state = join_processes()
    if state.num_processes > 1 and given.device not in ("auto", "cpu"):
        raise ValueError(f"device '{given.device}' is one for {state.num_processes} processes; leave --device at auto")
    device = torch.device(state.device or "cpu") if given.device == "auto" else choose_device(given.device)
    dtype = choose_dtype(given.dtype, device)
    mine = items[state.process_index :: state.num_processes]
    missing = [item for item in mine if not is_made(item, settings, given.model)]
    if missing:
        pipe = load_pipeline(given.model, device, dtype)
        given.out.mkdir(parents=True, exist_ok=True)
        quiet = not (sys.stderr.isatty() and state.is_local_main_process)
        made = render(pipe, missing, settings, batch_size=given.batch_size, plot=given.plot)
        for _ in tqdm(made, total=len(missing), unit="sound", disable=quiet):
            pass
    state.wait_for_everyone()
    if state.is_main_process:
        print(f"{given.out}: {len(items)} sounds")
    state.destroy_process_group()


if __name__ == "__main__":
    sys.exit(report_errors(main))
