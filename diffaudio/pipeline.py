"""The pipeline: text, a picture or a video -> sound.

    text ──CLIP──▶ bridge ──┐
    picture, video ──CLIP───┴▶ embedding ──U-Net, sampler, guidance──▶ latents ──autoencoder──▶ waveform

It is called like diffusers' audio pipelines. Noise is drawn on the CPU, from one generator for each sound where they
come as a list, so that a seed means the same noise on every device and in every batch. What is computed from it agrees
up to rounding, since sums are taken in another order for each size of batch: on a CPU the latents of a sound alone and
in a batch of four differ by 107 to 120 dB, and the waveforms, whose phase is estimated from them, by 43 to 86 dB.
"""

import copy
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffaudio.checkpoint import bundled_model, find_model, load_parts, save_parts
from diffaudio.diffusion.samplers import draw_noise, make_sampler, num_steps, sample
from diffaudio.diffusion.settings import GenerationSettings, Guidance, check_loudness, check_prompt
from diffaudio.errors import UserError
from diffaudio.file_names import shorten
from diffaudio.media.pictures import Picture, Video, read_image, read_video
from diffaudio.models.autoencoders import Autoencoder
from diffaudio.models.bridge.closed_form import Bridge
from diffaudio.models.clip import Clip
from diffaudio.models.unet import UNet1D
from diffaudio.pipeline_call import (
    AudioPipelineOutput,
    CountedUNet,
    at_loudness,
    check_numbers,
    check_weak_unet,
    one_generator_each,
    with_rescale,
)

__all__ = ["DiffAudioPipeline", "bundled_model"]

logger = logging.getLogger(__name__)

OUT_OF_RANGE_WARNING = 0.01  # of the spectrogram


class DiffAudioPipeline:
    """Text-to-audio with the call, `from_pretrained` and `save_pretrained` of diffusers' pipelines.

    Attributes:
        unet, scheduler, autoencoder, clip, bridge: the parts.
        name_or_path: the argument of `from_pretrained`.
        num_timesteps: of the current call, how often `callback_on_step_end` is called.
    """

    def __init__(self, *, unet: UNet1D, scheduler: Any, autoencoder: Autoencoder, clip: Clip, bridge: Bridge) -> None:
        for part, size, other, fitting in (
            ("autoencoder", autoencoder.latent_channels, "in_channels", unet.config["in_channels"]),
            ("clip", clip.embedding_dim, "embedding_dim", unet.config["embedding_dim"]),
            ("bridge", bridge.config["embedding_dim"], "embedding_dim", unet.config["embedding_dim"]),
        ):
            if size != fitting:
                raise UserError(f"{part} gives {size} values where the unet's {other} is {fitting}; they do not fit")
        self.unet, self.scheduler, self.autoencoder, self.clip, self.bridge = unet, scheduler, autoencoder, clip, bridge
        self.name_or_path = ""
        self.num_timesteps = 0

    @property
    def components(self) -> dict[str, Any]:
        """The parts by name, as `__init__` takes them."""
        return {name: getattr(self, name) for name in ("unet", "scheduler", "autoencoder", "clip", "bridge")}

    @property
    def device(self) -> torch.device:
        return next(self.unet.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Of the U-Net."""
        return next(self.unet.parameters()).dtype

    @classmethod
    def from_pretrained(
        cls, model: str | Path, *, dtype: torch.dtype | None = None, torch_dtype: torch.dtype | None = None, **hub: Any
    ) -> "DiffAudioPipeline":
        """Load a model folder, or a model from the hub.

        Args:
            model: folder, or hub id such as `owner/name`.
            dtype: of the U-Net, float32 where unset; the other parts stay float32.
            torch_dtype: diffusers' older name for `dtype`.
            hub: `revision`, `token`, `cache_dir`, `local_files_only`.

        Raises:
            ValueError: no such model, a file is missing or damaged, or the format is newer than this version reads.
        """
        pipe = cls(**load_parts(find_model(model, **hub), dtype or torch_dtype or torch.float32))
        pipe.name_or_path = str(model)
        return pipe

    def save_pretrained(self, folder: str | Path, *, dtype: torch.dtype | None = None) -> None:
        """Write a model folder, whole; one that is there already is replaced.

        Args:
            dtype: for the weights of U-Net and CLIP on disk, such as float16; None keeps what they have.
        """
        save_parts(Path(folder), self.components, dtype=dtype)

    def to(
        self,
        *device_and_dtype: str | torch.device | torch.dtype | None,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> "DiffAudioPipeline":
        """Move all parts to a device, and the U-Net to a dtype: `to("cuda")`, `to(torch.float16)`, or both.

        Raises:
            UserError: a device or a dtype is given twice, or is neither.
        """
        for each in device_and_dtype:
            if isinstance(each, torch.dtype) and dtype is None:
                dtype = each
            elif isinstance(each, str | torch.device) and device is None:
                device = each
            elif each is not None:
                raise UserError(f"to() takes one device and one dtype; {each!r} is neither, or one too many")
        torch.nn.Module.to(self.unet, device=device, dtype=dtype)  # diffusers' own warns of layers it does not have
        for part in (self.autoencoder, self.clip, self.bridge):
            torch.nn.Module.to(part, device=device)
        return self

    @torch.no_grad()
    def encode_prompt(self, prompts: str | list[str], *, warn_if_far: bool = False) -> Tensor:
        """The condition of the U-Net for each text: CLIP's embedding, mapped by the bridge.

        Args:
            prompts: one text or several.
            warn_if_far: log a warning for a prompt that lies far from everything the model was trained on.

        Returns:
            [prompts, embedding_dim]

        Raises:
            UserError: a prompt is empty, or there is none.
        """
        prompts = [prompts] if isinstance(prompts, str) else prompts
        if not prompts:
            raise UserError("the list of prompts is empty")
        for prompt in prompts:
            check_prompt(prompt)
        texts = self.clip.encode_text(prompts)
        threshold = self.bridge.config.get("familiarity_threshold")
        if warn_if_far and threshold is not None:
            for prompt, familiarity in zip(prompts, self.bridge.familiarity(texts).tolist(), strict=True):
                if familiarity < threshold:
                    logger.warning(
                        "%r lies far from everything this model was trained on (familiarity %.2f, usually above %.2f); "
                        "the sound may have little to do with it",
                        shorten(prompt),
                        familiarity,
                        threshold,
                    )
        return self.bridge(texts)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        *,
        negative_prompt: str | list[str] | None = None,
        image: Picture | list[Picture] | None = None,
        video: Video | None = None,
        num_inference_steps: int = GenerationSettings.steps,
        guidance_scale: float = GenerationSettings.guidance_scale,
        guidance_rescale: float = 0.0,
        guidance: Guidance = GenerationSettings.guidance,
        weak_unet: UNet1D | None = None,
        audio_length_in_s: float = GenerationSettings.duration_s,
        num_waveforms_per_prompt: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        sampler: str | None = GenerationSettings.sampler,
        spacing: str | None = None,
        eta: float | None = None,
        loudness: float | None = GenerationSettings.loudness,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        latents: Tensor | None = None,
        callback_on_step_end: Callable[["DiffAudioPipeline", int, Any, dict[str, Tensor]], Any] | None = None,
        output_type: str = "pt",
        return_dict: bool = True,
    ) -> Any:
        """Generate sounds from texts, pictures, a video or embeddings: one of the four.

        Args:
            prompt: one text or several.
            negative_prompt: what to steer away from, one for all or one a prompt; needs a guidance scale above 1.
            image: PIL pictures or files; each is a prompt.
            video: frames, or a video file, of which 8 frames are looked at; one prompt.
            guidance_scale: 0 ignores the prompt, 1 follows the conditional model, above 1 exaggerates it.
            guidance_rescale: diffusers' name for `guidance.rescale`.
            guidance: how the scale is applied: interval, schedule, projection …
            weak_unet: of a weaker model, for autoguidance: the sound is guided away from its predictions.
            num_waveforms_per_prompt: sounds for each prompt; they follow one another in the result.
            generator: on the CPU; a list gives each sound its own, a single one draws them one after another.
            sampler: a name out of `diffaudio.diffusion.samplers.SAMPLERS`; None takes `scheduler` as it is.
            spacing: of the sampler's noise levels: trailing, linear, karras, exponential; None is what suits it.
            eta: how much fresh noise the sampler draws in each step, for samplers that have an eta.
            loudness: in LUFS (ITU-R BS.1770), to which each sound is brought as far as its peak stays below 0.99;
                None leaves levels as generated, and only turns down what would pass 0.99.
            prompt_embeds: [prompts, embedding_dim], as `encode_prompt` gives them.
            negative_prompt_embeds: the same, [1 or prompts, embedding_dim].
            latents: noise to start from, [sounds, latent_channels, frames], instead of drawn noise.
            callback_on_step_end: called as (pipeline, step, timestep, {"latents": …}) after each step.
            output_type: "pt" for a tensor, "np" for an array, "latent" for the latents before decoding.

        Returns:
            `.audios` [sounds, channels, samples] float32 at `autoencoder.sample_rate`, with a peak of 0.99 at most;
            gains are those of a whole sound, nothing is clipped. `.num_passes` says how often the U-Net was run over
            each, `.out_of_range` how much of each was louder than a recording can be.

        Raises:
            UserError: an argument out of range, of another shape, or without effect; or latents or sounds that are
                not finite.
        """
        check_numbers(num_inference_steps, audio_length_in_s, num_waveforms_per_prompt, output_type)
        check_loudness(loudness)
        chosen = self._sampler(sampler, spacing, eta)
        guidance = with_rescale(guidance, guidance_rescale)
        if weak_unet is not None:
            check_weak_unet(weak_unet, self.unet)
        embedding = self._conditions(prompt, image, video, prompt_embeds)
        negative = self._negative(negative_prompt, negative_prompt_embeds, len(embedding))
        embedding = embedding.repeat_interleave(num_waveforms_per_prompt, dim=0)
        if negative is not None:
            negative = negative.repeat_interleave(num_waveforms_per_prompt, dim=0)
        generators = one_generator_each(generator, len(embedding))
        unet, weak = CountedUNet(self.unet), None if weak_unet is None else CountedUNet(weak_unet)

        self.num_timesteps = num_steps(chosen, num_inference_steps, guidance)

        def on_step(step: int, timestep: float, latents: Tensor) -> None:
            if not latents.isfinite().all():
                raise UserError(
                    f"step {step + 1} of {self.num_timesteps}: the latents are no longer finite (NaN or infinity); "
                    f"lower the guidance scale ({guidance_scale:g}), use dtype float32 (now {self.dtype}), "
                    "or check the model's weights"
                )
            if callback_on_step_end is not None:
                callback_on_step_end(self, step, timestep, {"latents": latents})

        latents = sample(
            unet,
            chosen,
            self._noise(latents, len(embedding), audio_length_in_s, generators),
            embedding,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            guidance=guidance,
            negative_embedding=negative,
            weak_unet=weak,
            generators=generators,
            on_step=on_step,
        )
        audios, out_of_range = latents.float(), []
        if output_type != "latent":
            audios, out_of_range = self._decode(audios, audio_length_in_s, loudness)
        if output_type == "np":
            audios = audios.cpu().numpy()
        passes_made = (unet.items + (weak.items if weak else 0)) // len(embedding)
        return (
            AudioPipelineOutput(audios=audios, num_passes=passes_made, out_of_range=out_of_range)
            if return_dict
            else (audios,)
        )

    def _sampler(self, sampler: str | None, spacing: str | None, eta: float | None) -> Any:
        if sampler is not None:
            return make_sampler(sampler, self.scheduler.config, spacing=spacing, eta=eta)
        if spacing is not None or eta is not None:
            raise UserError("spacing and eta have no effect without a sampler; name one")
        return copy.deepcopy(self.scheduler)

    def _conditions(self, prompt: Any, image: Any, video: Any, prompt_embeds: Tensor | None) -> Tensor:
        """[prompts, embedding_dim]"""
        conditions = {"prompt": prompt, "image": image, "video": video, "prompt_embeds": prompt_embeds}
        names = [name for name, value in conditions.items() if value is not None]
        if len(names) != 1:
            raise UserError(f"give one of {', '.join(conditions)}, not {' and '.join(names) or 'none'}")
        if prompt_embeds is not None:
            return self._embeddings("prompt_embeds", prompt_embeds)
        if video is not None:
            return self.clip.encode_video(read_video(video))
        if image is not None:
            pictures = [read_image(each) for each in (image if isinstance(image, list) else [image])]
            if not pictures:
                raise UserError("the list of pictures is empty")
            if all(len(frames) == 1 for frames in pictures):
                return self.clip.encode_image([frames[0] for frames in pictures])
            return torch.cat([self.clip.encode_video(frames) for frames in pictures])
        return self.encode_prompt([prompt] if isinstance(prompt, str) else list(prompt), warn_if_far=True)

    def _negative(self, text: Any, embeds: Tensor | None, count: int) -> Tensor | None:
        """[prompts, embedding_dim]"""
        if text is None and embeds is None:
            return None
        if text is not None and embeds is not None:
            raise UserError("give one of negative_prompt and negative_prompt_embeds, not both")
        if embeds is not None:
            negative = self._embeddings("negative_prompt_embeds", embeds)
        else:
            negative = self.encode_prompt([text] if isinstance(text, str) else list(text or []))
        if len(negative) not in (1, count):
            raise UserError(f"{len(negative)} negative prompts for {count} prompts; give one for all or one a prompt")
        return negative.expand(count, -1)

    def _embeddings(self, name: str, embeds: Tensor) -> Tensor:
        dim = self.clip.embedding_dim
        if embeds.ndim != 2 or embeds.shape[1] != dim:
            raise UserError(f"{name} is {list(embeds.shape)}; expected [prompts, {dim}]")
        return embeds.to(self.device, torch.float32)

    def _noise(
        self, latents: Tensor | None, count: int, duration_s: float, generators: list[torch.Generator]
    ) -> Tensor:
        shape = (self.autoencoder.latent_channels, self.autoencoder.num_latent_frames(duration_s))
        if latents is None:
            latents = draw_noise(shape, generators)
        elif latents.shape != (count, *shape):
            raise UserError(f"latents are {list(latents.shape)}; expected {[count, *shape]}")
        return latents.to(self.device)

    def _decode(self, latents: Tensor, duration_s: float, loudness: float | None) -> tuple[Tensor, list[float]]:
        num_samples = round(duration_s * self.autoencoder.sample_rate)
        audios, share = self.autoencoder.decode_bounded(latents, num_samples=num_samples)
        out_of_range = share.tolist()
        if not audios.isfinite().all():
            raise UserError("the autoencoder made samples that are not finite (NaN or infinity); check its weights")
        if (most := max(out_of_range)) > OUT_OF_RANGE_WARNING:
            logger.warning(
                "%.0f %% of a sound's spectrogram was louder than any recording can be and was brought down to that; "
                "lower the guidance scale",
                100 * most,
            )
        sample_rate = self.autoencoder.sample_rate
        return torch.stack([at_loudness(audio, loudness, sample_rate) for audio in audios]), out_of_range
