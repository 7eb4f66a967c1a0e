"""Loading networks of transformers and diffusers: which keys a folder's configs may contain.

All others are refused. These libraries act on configs in ways that a folder from an unknown source must not decide:
they run code that comes with it (`auto_map`, `trust_remote_code`), fetch from a hub (`hf-hub:`, kernels for attention),
or read files elsewhere. `models.clip.loading` does the same for CLIP.
"""

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
    loading_errors,
    read_json,
    refuse_remote_code,
)

__all__ = [
    "LIBRARY_SLACK",
    "check_range",
    "check_tokenizer",
    "check_transformers_config",
    "load_library_network",
    "read_scheduler",
    "refuse_adapter",
]

MAX_TRAIN_TIMESTEPS = 100_000  # a table of noise levels is made of so many; 1000 is usual
LIBRARY_SLACK = 4.0  # these libraries register a tensor when the network is built and again when it is read

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
# Keys of a BERT's config.json, listed so that it is checked without importing transformers; a test compares them.
BERT_KEYS = {
    "attention_probs_dropout_prob", "hidden_act", "hidden_dropout_prob", "hidden_size", "initializer_range",
    "intermediate_size", "layer_norm_eps", "max_position_embeddings", "num_attention_heads", "num_hidden_layers",
    "vocab_size",
}  # fmt: skip
DTYPES = (None, "float32", "float16", "bfloat16")


def check_transformers_config(file: Path, model_types: set[str]) -> dict[str, Any]:
    """Read a config.json that transformers is to build a network from.

    Args:
        file: the config.
        model_types: which networks are expected there.

    Raises:
        UserError: another network, or a key that it does not take.
    """
    config = read_json(file)
    check_folder(file.parent)
    refuse_remote_code(config, file)
    model_type = config.get("model_type")
    if model_type not in model_types:
        raise UserError(f"{file}: model_type is {model_type!r}; expected {' or '.join(sorted(model_types))}")
    if model_type == "bert":
        check_keys(config, BERT_KEYS | LEGACY_TRANSFORMERS_KEYS, file)
        _check_dtypes(config, file)
    else:
        from transformers import CONFIG_MAPPING

        _check_transformers_keys(config, CONFIG_MAPPING[model_type], file)
    return config


def _check_transformers_keys(config: dict[str, Any], config_class: Any, file: Path, where: str = "") -> None:
    known = set(config_class().to_dict()) | set(inspect.signature(config_class).parameters) | LEGACY_TRANSFORMERS_KEYS
    check_keys(config, known, file, where)
    _check_dtypes(config, file, where)
    for name, part_class in (getattr(config_class, "sub_configs", None) or {}).items():
        if isinstance(config.get(name), dict) and hasattr(part_class, "to_dict"):
            _check_transformers_keys(config[name], part_class, file, f"{where}{name}: ")


def _check_dtypes(config: dict[str, Any], file: Path, where: str = "") -> None:
    for key in ("dtype", "torch_dtype"):
        if config.get(key) not in DTYPES:
            raise UserError(f"{file}: {where}{key} is {config[key]!r}; choose from float32, float16, bfloat16")


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
    refuse_adapter(folder)
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


def refuse_adapter(folder: Path) -> None:
    """Refuse a folder that makes transformers read weights from elsewhere, which it does where peft is installed.

    Raises:
        UserError: names the adapter's config.
    """
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
    check_range(config, "num_train_timesteps", MAX_TRAIN_TIMESTEPS, file)
    known = set(inspect.signature(scheduler).parameters)
    check_keys(config, known | LIBRARY_NOTES, file)
    try:
        return scheduler(**{key: value for key, value in config.items() if key in known})
    except Exception as error:
        raise UserError(f"{file}: {name} does not take these settings: {' '.join(str(error).split())}") from error


def check_range(config: dict[str, Any], key: str, largest: int, file: Path | str) -> None:
    """Refuse a setting that is not a whole number from 1 to `largest`; one that is absent passes.

    Raises:
        UserError: names the setting and the range.
    """
    value = config.get(key, 1)
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= largest:
        raise UserError(f"{file}: {key} is {value!r}; choose a whole number from 1 to {largest}")
