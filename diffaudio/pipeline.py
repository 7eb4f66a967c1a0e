"""The pipeline: text, a picture or a video -> sound.

    text ──CLIP──▶ bridge ──┐
    picture, video ──CLIP───┴▶ embedding ──U-Net, sampler, guidance──▶ latents ──autoencoder──▶ waveform

It has the call signature of diffusers' audio pipelines. Noise is drawn on the CPU, from one generator per sound if a
list is given, so that a seed yields the same noise on every device and in every batch. Results computed from it agree
up to rounding, since the order of summation depends on the batch size: on a CPU, the difference between the latents of
a sound generated alone and in a batch of four is 107 to 120 dB below them; for the waveforms, whose phase is estimated
from the latents, it is 43 to 86 dB.
"""

import copy
import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from diffaudio.adapters import add_adapter
from diffaudio.checkpoint import bundled_model, find_model, load_parts, save_parts
from diffaudio.diffusion.latent_edit import LatentEdit
from diffaudio.diffusion.sampling import make_sampler, num_steps, sample
from diffaudio.diffusion.settings import GenerationSettings, Guidance, check_loudness
from diffaudio.errors import UserError
from diffaudio.media.images import Picture, Video
from diffaudio.models.autoencoders import Autoencoder
from diffaudio.models.bridge.bridges import Bridge
from diffaudio.models.clip import Clip
from diffaudio.models.unet import UNet1D
from diffaudio.pipeline_inputs import (
    AudioPipelineOutput,
    CountedUNet,
    at_loudness,
    check_numbers,
    check_only_embeds,
    check_weak_unet,
    embedding_noise_level,
    one_generator_each,
    with_rescale,
)
from diffaudio.queries.embedding import QueryEncoder
from diffaudio.queries.query import Query, queries_of
from diffaudio.sound_design.edit import (
    SoundEdit,
    Timeline,
    block_ranges,
    check_ranges,
    decode_edit,
    plan_edit,
    sample_blocks,
    stream_edit,
)
from diffaudio.sound_design.recordings import Recording

__all__ = ["DiffAudioPipeline", "bundled_model"]

logger = logging.getLogger(__name__)

OUT_OF_RANGE_WARNING = 0.01  # share of the spectrogram


class DiffAudioPipeline:
    """Text-to-audio pipeline with the call signature, `from_pretrained` and `save_pretrained` of diffusers' pipelines.

    Attributes:
        unet, scheduler, autoencoder, clip, bridge: the parts of the model.
        name_or_path: the model given to `from_pretrained`.
        num_timesteps: number of times the current call invokes `callback_on_step_end`.
    """

    def __init__(self, *, unet: UNet1D, scheduler: Any, autoencoder: Autoencoder, clip: Clip, bridge: Bridge) -> None:
        for part, size, other, fitting in (
            ("autoencoder", autoencoder.latent_channels, "in_channels", unet.config["in_channels"]),
            ("clip", clip.embedding_dim, "embedding_dim", unet.config["embedding_dim"]),
            ("bridge", bridge.config["embedding_dim"], "embedding_dim", unet.config["embedding_dim"]),
        ):
            if size != fitting:
                raise UserError(f"{part} gives {size} values where the unet's {other} is {fitting}; they do not fit")
        made_for = bridge.config.get("clip_name")
        if made_for is not None and made_for != clip.name:
            raise UserError(f"the bridge was made for CLIP '{made_for}', the model's is '{clip.name}'; they do not fit")
        self.unet, self.scheduler, self.autoencoder, self.clip, self.bridge = unet, scheduler, autoencoder, clip, bridge
        self.name_or_path = ""
        self._has_lora = False
        self.num_timesteps = 0

    @property
    def components(self) -> dict[str, Any]:
        """The parts by name, as arguments of `__init__`."""
        return {name: getattr(self, name) for name in ("unet", "scheduler", "autoencoder", "clip", "bridge")}

    @property
    def device(self) -> torch.device:
        return next(self.unet.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the U-Net."""
        return next(self.unet.parameters()).dtype

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path,
        *,
        dtype: torch.dtype | None = None,
        torch_dtype: torch.dtype | None = None,
        text_only: bool = False,
        **hub: Any,
    ) -> "DiffAudioPipeline":
        """Load a model from a folder or from the hub.

        Args:
            model: folder, or hub id such as `owner/name`.
            dtype: dtype of the U-Net, float32 by default; the other parts stay in float32.
            torch_dtype: diffusers' older name for `dtype`.
            text_only: load CLIP without its image tower, which takes a fraction of the time; such a pipeline takes no
                pictures or videos and cannot be saved.
            hub: options for downloading: `revision`, `token`, `cache_dir`, `local_files_only`.

        Raises:
            ValueError: no such model, a file is missing or damaged, or the format is newer than this version reads.
        """
        dtype = dtype or torch_dtype or torch.float32
        pipe = cls(**load_parts(find_model(model, **hub), dtype, text_only=text_only))
        pipe.name_or_path = str(model)
        return pipe

    def load_lora(self, adapter: str | Path, strength: float = 1.0) -> None:
        """Add a LoRA adapter to the weights of the U-Net; several, one after the other, add up.

        A retrieval bridge also remembers the pictures of the sounds that the adapter was trained on. `save_pretrained`
        then writes the model with the adapter in it.

        Args:
            adapter: folder or hub id.
            strength: factor of the change; 1 is as trained, negative values do the opposite.

        Raises:
            UserError: there is no such adapter, it is damaged, or for another model, or the strength is 0.
        """
        add_adapter(self.components, str(adapter), strength, is_first=not self._has_lora)
        self._has_lora = True

    def save_pretrained(self, folder: str | Path, *, dtype: torch.dtype | None = None) -> None:
        """Write a model folder atomically, replacing an existing one.

        Args:
            dtype: dtype of the U-Net's, CLIP's and the bridges' weights on disk, such as float16; None keeps theirs.
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
            UserError: a device or a dtype is given twice, or an argument is neither.
        """
        for each in device_and_dtype:
            if isinstance(each, torch.dtype) and dtype is None:
                dtype = each
            elif isinstance(each, str | torch.device) and device is None:
                device = each
            elif each is not None:
                raise UserError(f"to() takes one device and one dtype; {each!r} is neither, or one too many")
        torch.nn.Module.to(self.unet, device=device, dtype=dtype)  # diffusers' `to` warns about layers it does not have
        for part in (self.autoencoder, self.clip, self.bridge):
            torch.nn.Module.to(part, device=device)
        return self

    def query_encoder(
        self, *, bridge: str | None = None, templates: Sequence[str] | None = None, image_bridge: str | None = None
    ) -> QueryEncoder:
        """What computes the embeddings of queries; see `__call__` for the arguments."""
        return QueryEncoder.choose(
            self.clip, self.bridge, bridge=bridge, templates=templates, image_bridge=image_bridge
        )

    @torch.no_grad()
    def encode_prompt(
        self,
        prompts: str | list[str],
        *,
        warn_if_far: bool = False,
        bridge: str | None = None,
        templates: Sequence[str] | None = None,
    ) -> Tensor:
        """The condition of the U-Net for each text: the CLIP text embedding, mapped by the bridge.

        Args:
            prompts: one text or several.
            warn_if_far: log a warning for a prompt that is far from all training data.
            bridge, templates: see `__call__`.

        Returns:
            [prompts, embedding_dim]

        Raises:
            UserError: a prompt is empty, or there are no prompts.
        """
        prompts = [prompts] if isinstance(prompts, str) else prompts
        if not prompts:
            raise UserError("the list of prompts is empty")
        return self.query_encoder(bridge=bridge, templates=templates).encode_texts(prompts, warn_if_far=warn_if_far)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Query | list[str | Query] | None = None,
        *,
        negative_prompt: str | Query | list[str | Query] | None = None,
        negative_image: Picture | list[Picture] | None = None,
        image: Picture | list[Picture] | None = None,
        video: Video | None = None,
        weights: Sequence[float] | None = None,
        bridge: str | None = None,
        templates: Sequence[str] | None = None,
        image_bridge: str | None = None,
        num_inference_steps: int = GenerationSettings.steps,
        guidance_scale: float = GenerationSettings.guidance_scale,
        guidance_rescale: float = 0.0,
        guidance: Guidance = GenerationSettings.guidance,
        weak_unet: UNet1D | None = None,
        audio_length_in_s: float | None = None,
        init_audio: Recording | None = None,
        strength: float | None = None,
        mask: Sequence[tuple[float, float]] = (),
        continue_audio: Recording | None = None,
        lead_in_audio: Recording | None = None,
        loop: bool = False,
        resamples: int | None = None,
        prompt_ranges: Sequence[tuple[float, float]] | None = None,
        num_waveforms_per_prompt: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        sampler: str | None = GenerationSettings.sampler,
        spacing: str | None = None,
        eta: float | None = None,
        loudness: float | Literal["auto"] | None = "auto",
        embedding_noise: float | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        latents: Tensor | None = None,
        callback_on_step_end: Callable[["DiffAudioPipeline", int, Any, dict[str, Tensor]], Any] | None = None,
        output_type: str = "pt",
        return_dict: bool = True,
    ) -> Any:
        """Generate sounds from exactly one of texts, images, a video or embeddings, or from one mixture of them.

        Args:
            prompt: one text or several; a `Query` may stand in place of a text.
            negative_prompt: what to guide away from, one for all prompts or one per prompt; needs a guidance scale
                above 1.
            negative_image: the same, as images.
            image: PIL images, files, arrays or tensors; each is one prompt.
            video: frames, or a video file, from which 8 frames are used; one prompt.
            weights: of each text, each image and the video, in this order, which together then are one prompt: the
                weighted mean of their embeddings.
            bridge: the bridge that texts cross: the name of one of the model's, 'none', a folder or a hub id; None is
                the model's own.
            templates: sentences with {} in place of the text, such as "the sound of {}"; the embedding of a text is the
                mean over them. None is the model's own.
            image_bridge: name of a retrieval bridge through whose training images the embeddings of images and videos
                pass; None leaves them unchanged.
            guidance_scale: 0 ignores the prompt, 1 uses the conditional prediction, and values above 1 extrapolate
                beyond it.
            guidance_rescale: diffusers' name for `guidance.rescale`.
            guidance: how the scale is applied: interval, schedule, projection …
            weak_unet: U-Net of a weaker model, for autoguidance: the sound is guided away from its predictions.
            audio_length_in_s: any duration; None is that of the init audio, or 5 s. Longer sounds than 30 s are made in
                windows, see `sound_design.edit`.
            init_audio: sound to start from, a file or samples [channels, samples] at the autoencoder's rate.
            strength: how much of the init audio is replaced, 0 to 1; None is 0.6, with masks 1.
            mask: ranges (start, end) in seconds to generate; outside of them, and of crossfades of 20 ms beside them,
                the init audio comes back sample for sample.
            continue_audio: sound that the result begins with, and goes on from; like the init audio.
            lead_in_audio: sound that the result ends with.
            loop: make a sound whose end continues with its beginning.
            resamples: how often each part of the noise levels is gone through, for what is generated to fit what is
                kept; None is 1.
            prompt_ranges: (start, end) in seconds for each prompt, which together describe one sound.
            num_waveforms_per_prompt: number of sounds per prompt; they are consecutive in the result.
            generator: CPU generators; a list gives each sound its own, a single one draws noise for the sounds in
                order.
            sampler: a name from `diffaudio.diffusion.sampling.SAMPLERS`; None uses `scheduler` unchanged.
            spacing: spacing of the sampler's noise levels: trailing, linear, karras, exponential; None is its default.
            eta: amount of fresh noise that the sampler adds in each step, for samplers with an eta.
            loudness: target loudness of each sound in LUFS (ITU-R BS.1770), reached as far as a peak of 0.99 allows;
                None keeps the generated level, and only attenuates sounds whose peak would exceed 0.99; "auto" is -23,
                or the level of the recording that a sound is made from.
            embedding_noise: noise level of the embeddings, which a U-Net may be conditioned on; None is the bridge's
                for texts and `prompt_embeds`, and 0 for pictures.
            prompt_embeds: [prompts, embedding_dim], as returned by `encode_prompt`.
            negative_prompt_embeds: the same, [1 or prompts, embedding_dim].
            latents: initial noise, [sounds, latent_channels, frames]; None draws it from `generator`.
            callback_on_step_end: called as (pipeline, step, timestep, {"latents": …}) after each step.
            output_type: "pt" for a tensor, "np" for an array, "latent" for the latents before decoding, "stream" for an
                iterator over pieces [sounds, channels, samples] of a long sound, in bounded memory and at the level
                as generated; the other results are there when it has ended.

        Returns:
            `.audios` [sounds, channels, samples] float32 at `autoencoder.sample_rate`, with a peak of at most 0.99;
            each sound has a single constant gain, and nothing is clipped. `.num_passes` is the number of U-Net passes
            per sound, `.out_of_range` the share of each spectrogram that was louder than a recording can be.

        Raises:
            UserError: an argument is out of range, has the wrong shape, or has no effect; or latents or sounds are not
                finite.
        """
        check_numbers(num_inference_steps, audio_length_in_s, num_waveforms_per_prompt, output_type)
        if loudness != "auto":
            check_loudness(loudness)
        if audio_length_in_s is None and init_audio is None:
            audio_length_in_s = GenerationSettings.duration_s
        edit = plan_edit(
            self.autoencoder,
            duration_s=audio_length_in_s,
            init_audio=init_audio,
            strength=strength,
            mask=mask,
            continue_audio=continue_audio,
            lead_in_audio=lead_in_audio,
            loop=loop,
            resamples=resamples,
        )
        if output_type == "stream" and (edit.recording is not None or edit.loop or loudness != "auto"):
            raise UserError("a stream has no recording, loop or loudness; take output_type 'pt'")
        chosen = self._sampler(sampler, spacing, eta)
        guidance = with_rescale(guidance, guidance_rescale)
        if weak_unet is not None:
            check_weak_unet(weak_unet, self.unet)
        encoder = self.query_encoder(bridge=bridge, templates=templates, image_bridge=image_bridge)
        has_text = True
        if prompt_embeds is None:
            queries = queries_of(prompt, image, video, weights)
            has_text = any(query.has_text for query in queries)
            embedding = encoder.encode_queries(queries, warn_if_far=True)
        else:
            check_only_embeds(prompt=prompt, image=image, video=video, weights=weights)
            embedding = self._embeddings("prompt_embeds", prompt_embeds)
        negative = encoder.encode_negative(prompt=negative_prompt, image=negative_image)
        num_sounds = len(embedding) if prompt_ranges is None else 1
        negative = self._negative(negative, negative_prompt_embeds, num_sounds)
        ranges = None if prompt_ranges is None else check_ranges(prompt_ranges, len(embedding), edit, self.autoencoder)
        of_ranges = [each.expand(num_waveforms_per_prompt, -1) for each in embedding.split(1)]
        embedding = embedding[:num_sounds].repeat_interleave(num_waveforms_per_prompt, dim=0)
        if negative is not None:
            negative = negative.repeat_interleave(num_waveforms_per_prompt, dim=0)
        generators = one_generator_each(generator, len(embedding))
        level = embedding_noise_level(embedding_noise, encoder.bridge, self.unet, of_text=has_text)
        unet, weak = CountedUNet(self.unet, level), None if weak_unet is None else CountedUNet(weak_unet, level)

        num_frames = self.autoencoder.num_latent_frames(edit.num_samples / self.autoencoder.sample_rate)
        num_blocks = sum(sampled for *_, sampled in block_ranges(edit, self.autoencoder, num_frames))
        steps_per_block = num_steps(chosen, num_inference_steps, guidance, edit.in_latents)
        self.num_timesteps = num_blocks * steps_per_block
        step_counter = itertools.count()

        def on_step(_: int, timestep: float, latents: Tensor) -> None:
            step = next(step_counter)
            if not latents.isfinite().all():
                raise UserError(
                    f"step {step + 1} of {self.num_timesteps}: the latents are no longer finite (NaN or infinity); "
                    f"lower the guidance scale ({guidance_scale:g}), use dtype float32 (now {self.dtype}), "
                    "or check the model's weights"
                )
            if callback_on_step_end is not None:
                callback_on_step_end(self, step, timestep, {"latents": latents})

        def run(noise: Tensor, latent_edit: LatentEdit) -> Tensor:
            return sample(
                unet,
                chosen,
                noise.to(self.device),
                embedding,
                num_inference_steps=num_inference_steps,
                guidance_scale=guidance_scale,
                guidance=guidance,
                negative_embedding=negative,
                weak_unet=weak,
                generators=generators,
                on_step=on_step,
                edit=latent_edit,
            ).float()

        blocks = sample_blocks(
            run,
            edit,
            self.autoencoder,
            num_frames,
            generators=generators,
            latents=None if latents is None else self._checked_noise(latents, len(embedding), num_frames),
            timeline=None if ranges is None else Timeline(of_ranges, ranges),
        )
        if output_type == "stream":
            output = AudioPipelineOutput(audios=None)

            def pieces() -> Iterator[Tensor]:
                shares: list[Tensor] = []
                yield from stream_edit(self.autoencoder, blocks, edit, shares)
                output.out_of_range = torch.stack(shares).mean(dim=0).tolist()
                output.num_passes = (unet.items + (weak.items if weak else 0)) // len(embedding)

            output.audios = pieces()
            return output if return_dict else (output.audios,)
        audios, out_of_range = torch.cat(list(blocks), dim=-1), []
        if output_type != "latent":
            audios, out_of_range = self._decode(audios, edit, loudness)
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

    def _negative(self, encoded: Tensor | None, embeds: Tensor | None, count: int) -> Tensor | None:
        """[prompts, embedding_dim]"""
        if encoded is not None and embeds is not None:
            raise UserError("give one of negative_prompt, negative_image and negative_prompt_embeds")
        negative = encoded if embeds is None else self._embeddings("negative_prompt_embeds", embeds)
        if negative is None:
            return None
        if len(negative) not in (1, count):
            raise UserError(f"{len(negative)} negative prompts for {count} prompts; give one for all or one a prompt")
        return negative.expand(count, -1)

    def _embeddings(self, name: str, embeds: Tensor) -> Tensor:
        dim = self.clip.embedding_dim
        if embeds.ndim != 2 or embeds.shape[1] != dim:
            raise UserError(f"{name} is {list(embeds.shape)}; expected [prompts, {dim}]")
        return embeds.to(self.device, torch.float32)

    def _checked_noise(self, latents: Tensor, count: int, num_frames: int) -> Tensor:
        shape = (count, self.autoencoder.latent_channels, num_frames)
        if latents.shape != shape:
            raise UserError(f"latents are {list(latents.shape)}; expected {list(shape)}")
        return latents

    def _decode(
        self, latents: Tensor, edit: SoundEdit, loudness: float | Literal["auto"] | None
    ) -> tuple[Tensor, list[float]]:
        audios, share = decode_edit(self.autoencoder, latents, edit)
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
        sounds = [edit.finish(audio, sample_rate) for audio in audios]
        if loudness == "auto":
            loudness = GenerationSettings.loudness if edit.recording is None else None
        if edit.spans and loudness is None:  # the recording around what is generated stays as it was
            return torch.stack(sounds), out_of_range
        return torch.stack([at_loudness(sound, loudness, sample_rate) for sound in sounds]), out_of_range
