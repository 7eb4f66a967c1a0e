"""Training steps beside those of a plain loop around diffusers' UNet2DConditionModel of the same size, in turn.

    uv run pytest tests/benchmarks/test_training_speed.py -m benchmark -s -n0

Both read the same corpus of random latents, in batches of 16 clips of 5 s, with autocast, gradient clipping and an
average of the weights. Times are those of the process' own clock, so that other programs matter less.
"""

import copy
import time
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from diffusers import DDPMScheduler, UNet2DConditionModel
from diffusers.training_utils import EMAModel
from scripts import REPO, load_script

from diffaudio.config import parse
from diffaudio.corpus import latent_shards, store
from diffaudio.corpus.datasets.latents import LatentDataset
from diffaudio.diffusion.training_scheduler import training_scheduler
from diffaudio.training.precision import resolve_precision

CHANNELS, FRAMES, DIM, BATCH, ROUNDS = 128, 125, 384, 16, 6

script = load_script("train/diffusion.py")


def write_corpus(folder):
    generator = torch.Generator().manual_seed(0)
    rows = []
    for index in range(64):
        row = {"id": str(index), "source": f"{index}.mp4", "start_s": 0.0, "duration_s": 6.0, "copy": 0}
        row |= {"num_latent_frames": 150, "num_pictures": 1}
        row["latents"] = torch.randn(CHANNELS * 150, generator=generator).half().tolist()
        rows.append(row | {"embeddings": F.normalize(torch.randn(DIM, generator=generator), dim=0).half().tolist()})
    folder.mkdir()
    latent_shards.write_part(store.part_path(folder, "latents", 0), rows, {})
    autoencoder = {"name": "x", "sample_rate": 24000, "audio_channels": 1, "latent_channels": 128, "latent_rate": 25.0}
    manifest = {"format": "diffaudio-latents", "version": 3, "clip": {"name": "x", "embedding_dim": DIM}}
    store.write_manifest(folder, manifest | {"autoencoder": autoencoder, "clips": 64, "seconds": 1.0, "finished": True})


def our_step(dataset, accelerator):
    arguments = ["--config", str(REPO / "configs/one_cpu/diffusion.yaml"), "--data", "a", "--out", "b"]
    config = parse(script.Config, arguments)
    unet = script.UNet1D(CHANNELS, DIM)
    average = copy.deepcopy(unet).eval().requires_grad_(False)
    averages = script.PowerAverages(unet, config.averages)
    scheduler, optimizer = training_scheduler("flow"), script.make_optimizer(config.train, unet, None)
    network, optimizer = accelerator.prepare(unet, optimizer)
    order = script.ClipOrder(dataset.sizes)
    process = SimpleNamespace(process_index=0, num_processes=1, device=torch.device("cpu"))

    def step(number):
        (batch,) = script.draw_step(config, dataset, order, process, number)
        accelerator.backward(script.batch_loss(network, batch, scheduler, config).total)
        accelerator.clip_grad_norm_(network.parameters(), 1.0)
        script.set_learning_rate(optimizer, 1e-4)
        optimizer.step()
        optimizer.zero_grad()
        script.update_ema(average, unet, 0.999)
        averages.update(unet, number + 1)

    return step, unet


class Images(torch.utils.data.Dataset):
    """Latents as images of 8 channels."""

    def __init__(self, dataset):
        self.dataset = dataset

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, index):
        item = self.dataset[index]
        first = int(torch.randint(item["latents"].shape[1] - FRAMES + 1, ()))
        latents = F.pad(item["latents"][:, first : first + FRAMES], (0, 3))  # 128 is divisible by its downsampling
        return latents.reshape(8, 16, 128).transpose(1, 2), item["embeddings"][0]


def plain_step(dataset, accelerator):
    unet = UNet2DConditionModel(
        sample_size=(128, 16), in_channels=8, out_channels=8, layers_per_block=2, cross_attention_dim=DIM,
        attention_head_dim=8, block_out_channels=(64, 128, 256),
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip
    scheduler, average = DDPMScheduler(1000), EMAModel(unet.parameters(), decay=0.999)
    loader = torch.utils.data.DataLoader(Images(dataset), batch_size=BATCH, shuffle=True)
    network, optimizer, loader = accelerator.prepare(unet, torch.optim.AdamW(unet.parameters(), lr=1e-4), loader)

    def forever():
        while True:
            yield from loader

    batches = forever()

    def step(number):
        latents, embedding = next(batches)
        noise, timestep = torch.randn_like(latents), torch.randint(1000, (BATCH,))
        embedding = torch.where(torch.rand(BATCH, 1) < 0.1, 0.0, embedding)
        noisy = scheduler.add_noise(latents, noise, timestep)
        prediction = network(noisy, timestep, encoder_hidden_states=embedding[:, None]).sample
        accelerator.backward(F.mse_loss(prediction.float(), noise))
        accelerator.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        average.step(unet.parameters())

    return step, unet


@pytest.mark.benchmark
def test_twice_as_many_examples_a_second_as_a_plain_loop_around_a_model_of_the_same_size(tmp_path):
    torch.set_num_threads(1)
    write_corpus(tmp_path / "corpus")
    dataset = LatentDataset(tmp_path / "corpus")
    precision = resolve_precision("auto", torch.device("cpu"))
    accelerator = Accelerator(mixed_precision=precision, cpu=True)
    loops = {"ours": our_step(dataset, accelerator), "plain": plain_step(dataset, accelerator)}
    sizes = {name: sum(parameter.numel() for parameter in unet.parameters()) for name, (_, unet) in loops.items()}
    assert sizes["plain"] == pytest.approx(sizes["ours"], rel=0.05)
    times: dict[str, list[float]] = {name: [] for name in loops}
    for number in range(ROUNDS + 1):  # the first warms up
        for name, (step, _) in loops.items():
            begin = time.process_time()
            step(number)
            times[name].append(time.process_time() - begin)
    median = {name: sorted(values[1:])[ROUNDS // 2] for name, values in times.items()}
    print(f"\nbatches of {BATCH}, {precision}, one thread")
    for name, seconds in median.items():
        print(f"  {name}: {sizes[name] / 1e6:.1f} million weights, {BATCH / seconds:.1f} examples a second")
    assert median["plain"] >= 2 * median["ours"]
