"""Check a model folder or hub name and load its tokenizer, before any long work."""

import re
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def check_model_folder(name: str, option: str) -> None:
    """Raise an error that says what to change where `name` is no model that can be loaded.

    A hub name passes: what it holds is known only once transformers has fetched it.
    """
    folder = Path(name).expanduser()
    if folder.is_file():
        raise ValueError(f"{option} {name}: a file. Give the folder that holds config.json.")
    if not folder.exists():
        if HUB_NAME.fullmatch(name):
            return
        raise ValueError(
            f"{option} {name}: no such folder. Give a folder written by save_pretrained, or a hub "
            "name such as Qwen/Qwen2.5-0.5B-Instruct."
        )
    if (folder / "adapter_config.json").exists() and not (folder / "config.json").exists():
        raise ValueError(
            f"{option} {name}: the folder holds only a PEFT adapter. Merge it into its base:\n"
            "    model = AutoPeftModelForCausalLM.from_pretrained(folder).merge_and_unload()\n"
            "    model.save_pretrained(merged); tokenizer.save_pretrained(merged)"
        )
    if not (folder / "config.json").exists():
        raise ValueError(
            f"{option} {name}: no config.json in this folder. Write one with\n"
            "    model.save_pretrained(folder)"
        )
    if not any(folder.glob("*.safetensors")):
        raise ValueError(
            f"{option} {name}: no *.safetensors in this folder (pickled weights are not loaded). "
            "Convert once, where you trust the file:\n"
            "    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(folder)"
        )
    if not any((folder / file).exists() for file in TOKENIZER_FILES):
        raise ValueError(
            f"{option} {name}: no tokenizer in this folder. Put the model's own tokenizer there:\n"
            "    AutoTokenizer.from_pretrained(base_model_name).save_pretrained(folder)"
        )


def load_tokenizer(name: str, option: str) -> PreTrainedTokenizerBase:
    """Load the tokenizer of `name`, left-padded, with a pad token; errors name `option`."""
    check_model_folder(name, option)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            name, trust_remote_code=False, padding_side="left"
        )
    except Exception as error:  # many kinds are raised here; all mean "no usable tokenizer"
        raise ValueError(
            f"{option} {name}: the tokenizer cannot be loaded ({_first_line(error)}). Check the "
            "name; without network give a folder that holds model and tokenizer. A model that "
            "needs trust_remote_code is not supported."
        ) from error
    if tokenizer.eos_token_id is None:
        raise ValueError(
            f"{option} {name}: the tokenizer has no end-of-text token, so no completion could end. "
            "Set and save it:\n    tokenizer.eos_token = '</s>'; tokenizer.save_pretrained(folder)"
        )
    if tokenizer.pad_token_id is None:
        # Padding is masked wherever it is used, so the end-of-text token can serve.
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_config(name: str, tokenizer: PreTrainedTokenizerBase, option: str) -> Any:
    """Load the text config of `name`; error where the tokenizer has ids the model does not know."""
    config = AutoConfig.from_pretrained(name, trust_remote_code=False).get_text_config()
    size = getattr(config, "vocab_size", None)
    if size is not None and len(tokenizer) > size:
        raise ValueError(
            f"{option} {name}: the tokenizer has {len(tokenizer)} tokens, the model knows {size}. "
            "Save the tokenizer that belongs to this model, or enlarge the model:\n"
            "    model.resize_token_embeddings(len(tokenizer)); model.save_pretrained(folder)"
        )
    return config


def max_positions(config: Any) -> int | None:
    """The longest input that a text config declares, or None where it declares none."""
    value = getattr(config, "max_position_embeddings", None)
    return value if isinstance(value, int) and value > 0 else None


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
