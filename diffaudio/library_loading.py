"""Loading networks of open_clip, timm, transformers and diffusers: what a folder may tell them, key by key.

All else is refused. These libraries act on configs in ways that a folder from anywhere must not decide: they run
code that comes with it (`auto_map`, `trust_remote_code`, `tokenizer_kwargs`), fetch from a hub (`hf-hub:`, pretrained
towers, kernels for attention), or read files elsewhere.
"""

import dataclasses
import inspect
import re
from pathlib import Path
from typing import Any

from diffaudio.errors import UserError
from diffaudio.safe_loading import (
    LIBRARY_NOTES,
    Weights,
    build_within,
    check_folder,
    check_keys,
    load_weights,
    loading_errors,
    read_json,
    refuse_remote_code,
)

__all__ = [
    "check_open_clip_config",
    "check_tokenizer",
    "check_transformers_config",
    "load_library_network",
    "load_open_clip",
    "read_scheduler",
]

MAX_TRAIN_TIMESTEPS = 100_000  # a table of noise levels is made of so many; 1000 is usual
MAX_IMAGE_SIZE = 4096
MAX_CONTEXT_LENGTH = 65536
LIBRARY_SLACK = 4.0  # these libraries register a tensor when the network is built and again when it is read

OPEN_CLIP_KEYS = {
    "embed_dim", "vision_cfg", "text_cfg", "custom_text", "quick_gelu", "init_logit_scale", "init_logit_bias",
    "nonscalar_logit_scale",
}  # fmt: skip
TOKENIZER_ARGUMENTS = {"clean": (str, type(None)), "strip_sep_token": (bool,)}  # of open_clip, which it acts on itself

# Keys of older transformers that stand in many configs and that nothing acts on any more.
LEGACY_TRANSFORMERS_KEYS = {
    "_commit_hash", "_name_or_path", "add_cross_attention", "architectures", "bad_words_ids", "begin_suppress_tokens",
    "bos_token_id", "chunk_size_feed_forward", "classifier_dropout", "cross_attention_hidden_size",
    "decoder_start_token_id", "diversity_penalty", "do_sample", "dtype", "early_stopping",
    "encoder_no_repeat_ngram_size", "eos_token_id", "exponential_decay_length_penalty", "finetuning_task",
    "forced_bos_token_id", "forced_eos_token_id", "gradient_checkpointing", "id2label", "is_decoder",
    "is_encoder_decoder", "label2id", "length_penalty", "max_length", "min_length", "model_max_length", "model_type",
    "no_repeat_ngram_size", "num_beam_groups", "num_beams", "num_return_sequences", "output_attentions",
    "output_hidden_states", "output_past", "output_scores", "pad_token_id", "position_embedding_type", "prefix",
    "problem_type", "pruned_heads", "remove_invalid_values", "repetition_penalty", "return_dict",
    "return_dict_in_generate", "sep_token_id", "suppress_tokens", "task_specific_params", "temperature",
    "tf_legacy_loss", "tie_encoder_decoder", "tie_word_embeddings", "tokenizer_class", "top_k", "top_p", "torch_dtype",
    "torchscript", "transformers_version", "type_vocab_size", "typical_p", "use_bfloat16", "use_cache",
}  # fmt: skip
# Keys of a tokenizer_config.json that name its files, or are handed on to libraries that open files.
TOKENIZER_FILE_KEYS = {"merges", "vocab"}
TOKENIZER_FILE_ENDINGS = ("_file", "_files", "_kwargs", "_spm")
DTYPES = (None, "float32", "float16", "bfloat16")


def load_open_clip(folder: Path) -> tuple[Any, Any, dict[str, Any]]:
    """Read a CLIP from a folder in open_clip's format: open_clip_config.json, open_clip_model.safetensors, tokenizer.

    Returns:
        The network, float32 on the CPU; its tokenizer; and the whole of open_clip_config.json.

    Raises:
        UserError: names the file and what is wrong with it.
    """
    from open_clip.model import CLIP, CustomTextCLIP, set_model_preprocess_cfg
    from open_clip.tokenizer import HFTokenizer, SimpleTokenizer
    from open_clip.transform import PreprocessCfg

    file = folder / "open_clip_config.json"
    content = read_json(file)
    check_folder(folder)
    _refuse_adapter(folder)
    config, preprocessing = content.get("model_cfg"), content.get("preprocess_cfg") or {}
    if not isinstance(config, dict) or not isinstance(preprocessing, dict):
        raise UserError(f"{file}: model_cfg is missing, or preprocess_cfg holds no settings")
    check_open_clip_config(config, file)
    _check_preprocessing(preprocessing, file)
    text, settings = dict(config["text_cfg"]), dict(config)
    by_transformers = bool(text.get("hf_model_name"))
    if by_transformers:
        from open_clip.hf_configs import arch_dict

        check_transformers_config(folder / "config.json", set(arch_dict))
        text |= {"hf_model_name": str(folder.resolve()), "hf_model_pretrained": False}
    network_class = CustomTextCLIP if settings.pop("custom_text", False) or by_transformers else CLIP
    weights = Weights.of(folder, "open_clip_model")
    settings["text_cfg"] = text
    with loading_errors(file), build_within(weights, file, slack=LIBRARY_SLACK):
        network: Any = network_class(**settings)
    load_weights(network, weights)
    with loading_errors(folder):
        preprocessing = dataclasses.asdict(PreprocessCfg()) | preprocessing
        preprocessing["size"] = getattr(network.visual, "image_size", None) or preprocessing["size"]
        set_model_preprocess_cfg(network, preprocessing)
        length = text.get("context_length", 77)
        if not text.get("hf_tokenizer_name"):
            return network, SimpleTokenizer(context_length=length, **text.get("tokenizer_kwargs") or {}), content
        for name in ("tokenizer.json", "tokenizer_config.json"):  # without, transformers makes one that knows no word
            if not (folder / name).is_file():
                raise UserError(f"{folder}: not a complete CLIP folder, {name} is missing")
        check_tokenizer(folder)
        tokenizer = HFTokenizer(
            str(folder),
            context_length=length,
            tokenizer_mode=text.get("tokenizer_mode"),
            trust_remote_code=False,
            local_files_only=True,
            **text.get("tokenizer_kwargs") or {},
        )
    return network, tokenizer, content


def check_open_clip_config(config: dict[str, Any], file: Path | str, *, local: bool = True) -> None:
    """Check what open_clip is to build a CLIP from, its `model_cfg`.

    Args:
        config: with vision_cfg and text_cfg.
        file: where it stands, for the message.
        local: whether it is that of a folder, which may name no tower or tokenizer elsewhere; the configs of
            open_clip itself, and of the hub, name those of the Hugging Face hub.

    Raises:
        UserError: names the key that is refused, and why.
    """
    from open_clip.model import CLIPTextCfg, CLIPVisionCfg

    refuse_remote_code(config, file)
    check_keys(config, OPEN_CLIP_KEYS, file, "model_cfg: ")
    for part, known in (("vision_cfg", CLIPVisionCfg), ("text_cfg", CLIPTextCfg)):
        settings = config.get(part)
        if not isinstance(settings, dict):
            raise UserError(f"{file}: model_cfg: {part} is missing")
        check_keys(settings, {field.name for field in dataclasses.fields(known)}, file, f"model_cfg: {part}: ")
    _check_vision(config["vision_cfg"], file)
    text = config["text_cfg"]
    for key in ("hf_model_name", "hf_tokenizer_name"):
        if local and text.get(key) not in (None, "", "."):
            raise UserError(f"{file}: {key} is {text[key]!r}; in a folder it may only be '.', the folder itself")
    if local and text.get("hf_model_name") and text.get("hf_model_pretrained"):
        raise UserError(f"{file}: hf_model_pretrained is refused: the weights of the text tower lie in the folder")
    _check_range(text, "context_length", MAX_CONTEXT_LENGTH, file)
    arguments = text.get("tokenizer_kwargs") or {}
    if not isinstance(arguments, dict):
        raise UserError(f"{file}: tokenizer_kwargs is {arguments!r}; expected settings by name")
    for key, value in arguments.items():
        if key not in TOKENIZER_ARGUMENTS or not isinstance(value, TOKENIZER_ARGUMENTS[key]):
            raise UserError(f"{file}: tokenizer_kwargs: {key} is refused; allowed: {', '.join(TOKENIZER_ARGUMENTS)}")


def _check_vision(vision: dict[str, Any], file: Path | str) -> None:
    if vision.get("timm_model_pretrained"):
        raise UserError(f"{file}: timm_model_pretrained is refused: the weights of the picture tower lie in the folder")
    name = vision.get("timm_model_name")
    if name is not None and not (isinstance(name, str) and re.fullmatch(r"\w+(\.\w+)?", name)):
        raise UserError(f"{file}: timm_model_name is {name!r}; only names of timm's own models are allowed")
    size = vision.get("image_size", 224)
    for side in size if isinstance(size, list) else [size]:
        _check_range({"image_size": side}, "image_size", MAX_IMAGE_SIZE, file)


def _check_preprocessing(config: dict[str, Any], file: Path | str) -> None:
    """Check how open_clip is to prepare pictures, its `preprocess_cfg`."""
    from open_clip.transform import PreprocessCfg

    check_keys(config, {field.name for field in dataclasses.fields(PreprocessCfg)}, file, "preprocess_cfg: ")
    size = config.get("size", 224)
    for side in size if isinstance(size, list) else [size]:
        _check_range({"size": side}, "size", MAX_IMAGE_SIZE, file)


def check_transformers_config(file: Path, model_types: set[str]) -> dict[str, Any]:
    """Read a config.json that transformers is to build a network from.

    Args:
        file: the config.
        model_types: which networks are expected there.

    Raises:
        UserError: another network, or a key that it does not take.
    """
    from transformers import CONFIG_MAPPING

    config = read_json(file)
    check_folder(file.parent)
    refuse_remote_code(config, file)
    model_type = config.get("model_type")
    if model_type not in model_types:
        raise UserError(f"{file}: model_type is {model_type!r}; expected {' or '.join(sorted(model_types))}")
    _check_transformers_keys(config, CONFIG_MAPPING[model_type], file)
    return config


def _check_transformers_keys(config: dict[str, Any], config_class: Any, file: Path, where: str = "") -> None:
    known = set(config_class().to_dict()) | set(inspect.signature(config_class).parameters) | LEGACY_TRANSFORMERS_KEYS
    check_keys(config, known, file, where)
    for key in ("dtype", "torch_dtype"):
        if config.get(key) not in DTYPES:
            raise UserError(f"{file}: {where}{key} is {config[key]!r}; choose from float32, float16, bfloat16")
    for name, part_class in (getattr(config_class, "sub_configs", None) or {}).items():
        if isinstance(config.get(name), dict) and hasattr(part_class, "to_dict"):
            _check_transformers_keys(config[name], part_class, file, f"{where}{name}: ")


def load_library_network(network: Any, folder: Path, *, may_hold_more: bool = False) -> Any:
    """Read a network of diffusers or transformers from its folder, in evaluation mode and float32.

    Args:
        network: its class.
        may_hold_more: whether weights that the network has no use for are ignored.

    Raises:
        UserError: there are no safetensors, config.json holds what the class does not take, or weights are missing,
            too many, of another shape, or not finite.
    """
    if not any(folder.glob("*.safetensors")):
        raise UserError(f"{folder}: has no weights as *.safetensors; pickles are not read, convert them first")
    _refuse_adapter(folder)
    file = folder / "config.json"
    if network.__module__.startswith("transformers."):
        check_transformers_config(file, {network.config_class.model_type})
        weights = Weights.of(folder, "model")
    else:
        config = read_json(file)
        check_folder(folder)
        refuse_remote_code(config, file)
        check_keys(config, set(inspect.signature(network).parameters) | LIBRARY_NOTES, file)
        weights = Weights.of(folder)
    weights.check_values()
    with loading_errors(folder), build_within(weights, file, slack=LIBRARY_SLACK):
        loaded, info = network.from_pretrained(
            folder,
            use_safetensors=True,
            output_loading_info=True,
            local_files_only=True,
            ignore_mismatched_sizes=True,  # they are in the info, and told below by their names
        )
    too_many = [] if may_hold_more else info["unexpected_keys"]
    mismatched = [key[0] for key in info.get("mismatched_keys") or ()]
    wrong = sorted([*info["missing_keys"], *too_many, *mismatched])
    if wrong:
        raise UserError(f"{folder}: {len(wrong)} weights do not fit config.json, such as {wrong[0]}")
    return loaded.eval().requires_grad_(False).float()


def _refuse_adapter(folder: Path) -> None:
    """Refuse a folder that makes transformers read the weights of another place, where peft is installed."""
    adapter = folder / "adapter_config.json"
    if adapter.exists() or adapter.is_symlink():
        raise UserError(f"{adapter}: is refused: it names another model to be read; merge the adapter into the weights")


def check_tokenizer(folder: Path) -> None:
    """Check the files from which transformers' `AutoTokenizer` makes a tokenizer.

    Raises:
        UserError: one is damaged, or would read elsewhere or run code.
    """
    check_folder(folder)
    for name in ("tokenizer_config.json", "tokenizer.json", "special_tokens_map.json", "added_tokens.json"):
        file = folder / name
        if not file.exists():
            continue
        config = read_json(file)
        if name == "tokenizer.json":  # a vocabulary, whose words may be anything; it is read by `tokenizers` alone
            continue
        refuse_remote_code(config, file)
        for key, value in config.items():
            names_files = key in TOKENIZER_FILE_KEYS or key.endswith(TOKENIZER_FILE_ENDINGS)
            if name == "tokenizer_config.json" and names_files and key != "special_tokens_map_file" and value:
                raise UserError(f"{file}: {key} is refused: the tokenizer's files lie beside it, under their own names")
        kind = config.get("tokenizer_class")
        if kind is not None and not (isinstance(kind, str) and re.fullmatch(r"\w+", kind)):
            raise UserError(f"{file}: tokenizer_class is {kind!r}; expected the name of a class of transformers")


def read_scheduler(file: Path) -> Any:
    """Make a scheduler of diffusers from its scheduler_config.json.

    Raises:
        UserError: the class is none of diffusers' schedulers, or does not take the settings.
    """
    import diffusers
    from diffusers.configuration_utils import ConfigMixin

    config = read_json(file, may_be_infinite=True)
    refuse_remote_code(config, file)
    name = str(config.get("_class_name"))
    scheduler: Any = getattr(diffusers, name, None) if re.fullmatch(r"\w+Scheduler", name) else None
    if not (isinstance(scheduler, type) and issubclass(scheduler, ConfigMixin) and hasattr(scheduler, "set_timesteps")):
        raise UserError(f"{file}: scheduler '{name}' is unknown to diffusers {diffusers.__version__}")
    _check_range(config, "num_train_timesteps", MAX_TRAIN_TIMESTEPS, file)
    known = set(inspect.signature(scheduler).parameters)
    check_keys(config, known | LIBRARY_NOTES, file)
    try:
        return scheduler(**{key: value for key, value in config.items() if key in known})
    except Exception as error:
        raise UserError(f"{file}: {name} does not take these settings: {' '.join(str(error).split())}") from error


def _check_range(config: dict[str, Any], key: str, largest: int, file: Path | str) -> None:
    value = config.get(key, 1)
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= largest:
        raise UserError(f"{file}: {key} is {value!r}; choose a whole number from 1 to {largest}")
