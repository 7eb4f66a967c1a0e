"""Generate the sounds of a prompt list, shared over any number of processes and GPUs.

    accelerate launch sample/generate.py --prompts prompts.txt --out sounds
    accelerate launch --num_processes 4 sample/generate.py --prompts prompts.txt --out sounds --model runs/demo/model

The list is a text file, a line `prompt` or `prompt|name` with the name of its file, or a .csv or .jsonl file with the
columns prompt, image, video, label and name; what has no name is named after its place in the list and its words.
Process p of P makes items p, p + P, p + 2 P, … The seed of an item is a function of --seed and its place, so it sounds
the same however many processes there are and however large the batches. Run again, the script makes only what is
missing.
"""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # waiting threads sleep; OpenMP reads it when torch is loaded

from diffaudio.cli.options import GENERATION_FLAGS, GENERATION_GROUPS, GenerationOptions, parse_generation
from diffaudio.config import Seed
from diffaudio.distributed import join_processes
from diffaudio.errors import report_errors
from diffaudio.generation.batch import choose_dtype, is_generated, load_pipeline, process_device, render
from diffaudio.generation.design_checks import check_design
from diffaudio.generation.prompt_list import items_of, read_prompts
from diffaudio.generation.query_media import check_readable, is_text_only
from diffaudio.queries.query import check_settings


@dataclass(kw_only=True)
class Options(GenerationOptions):
    """The options of the script.

    Attributes:
        prompts: a text file, a line `prompt` or `prompt|name`, or .csv or .jsonl.
        out: folder for the sounds, made where it is missing.
        seed: of the run.
    """

    prompts: Path
    out: Path
    seed: Seed = 0


def main() -> None:
    given = parse_generation(
        Options,
        sys.argv[1:],
        program="sample/generate.py",
        description="Generate the sounds of a prompt list; shared over processes by `accelerate launch`.",
        flags=GENERATION_FLAGS | {"out": ("-o", "--out")},
        groups=GENERATION_GROUPS,
    )
    settings = given.settings
    items = items_of(read_prompts(given.prompts), given.out, given.seed)
    check_settings([item.query for item in items], settings)
    check_design(settings, [item.query.prompt for item in items], [item.path for item in items], plot=given.plot)

    state = join_processes()
    device = process_device(given.device, state)
    dtype = choose_dtype(given.dtype, device)
    mine = items[state.process_index :: state.num_processes]
    missing = [item for item in mine if not is_generated(item, settings, given.model, plot=given.plot)]
    if missing:
        queries = [item.query for item in missing]
        check_readable(queries, settings)
        pipe = load_pipeline(given.model, device, dtype, settings.lora, text_only=is_text_only(queries, settings))
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
