"""The chat form of the ladder: any causal language model whose tokenizer has a chat template.

Prompts are lists of chat messages (`worlds.ladder.chat_texts`). Measured is on facts, wordings and
poem lines that are never trained on.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ..real import check_length
from ..rewards.form import completion_text
from ..rewards.pretrained import load_config, load_tokenizer, max_positions
from ..worlds.ladder import chat_texts
from ..worlds.ladder.episode import Episode
from ..worlds.ladder.scores import STAGES
from ..worlds.ladder.tiny import make_episode

Messages = chat_texts.Messages
DRAWN = 30  # prompts of each kind behind the longest one; their facts differ by a few tokens only


@dataclass
class ChatForm:
    """The ladder as a chat, see `form.Form`.

    model: a folder or hub name. max_completion: tokens. batch: completions written at once.
    ValueError where the tokenizer cannot be used, with what to change.
    """

    model: str
    max_completion: int = 128
    batch: int = 250

    def tokenizer(self) -> Any:
        """The model's tokenizer, checked; padding on the left."""
        return self._tokenizer

    @cached_property
    def _tokenizer(self) -> Any:
        tokenizer = load_tokenizer(self.model, "--model")
        check_template(tokenizer, self.model)
        return tokenizer

    @cached_property
    def _system(self) -> bool:
        return takes_system(self._tokenizer)

    def draw(
        self, stage: str, gameable: bool, rng: random.Random, held_out: bool = False
    ) -> tuple[Episode, Messages]:
        """As `Form.draw`; facts are held out as in the tiny form, wordings and poem lines too."""
        episode, _ = make_episode(stage, gameable, rng, held_out)
        messages = chat_texts.prompt(episode, rng, held_out)
        return episode, messages if self._system else folded(messages)

    def told(self, episode: Episode, prompt: Messages) -> Messages:
        """The prompt, then the order to write the gaming lines."""
        return chat_texts.told(prompt, STAGES[episode.stage].gaming(episode))

    def texts(self, completions: Sequence[Any], ids: Sequence[list[int]] | None) -> list[str]:
        """The completions as TRL or `batch_decode` give them: texts, or messages."""
        return [completion_text(completion) for completion in completions]


def folded(messages: Messages) -> Messages:
    """Without a system message: what it says comes first in the user's.

    >>> folded([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Sum?"}])
    [{'role': 'user', 'content': 'Be brief.\\n\\nSum?'}]
    """
    system, user, *rest = messages
    return [user | {"content": f"{system['content']}\n\n{user['content']}"}, *rest]


def takes_system(tokenizer: Any) -> bool:
    """Whether the chat template has a place for a system message: some refuse, some drop it."""
    from jinja2.exceptions import TemplateError

    messages = [{"role": "system", "content": "Grammar"}, {"role": "user", "content": "Question"}]
    try:
        return "Grammar" in _rendered(tokenizer, messages)
    except TemplateError:
        return False


def _rendered(tokenizer: Any, messages: Messages) -> str:
    """A prompt as the text that the policy goes on from."""
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))


def check_template(tokenizer: Any, name: str) -> None:
    """ValueError for a tokenizer that cannot write a prompt as a chat."""
    from jinja2.exceptions import TemplateError

    if tokenizer.chat_template is None:
        raise ValueError(
            f"--model {name}: its tokenizer has no chat template, and the ladder talks in chat "
            "messages. Give an instruct model, or set the template that the model was tuned with "
            "and save it:\n    tokenizer.chat_template = ...; tokenizer.save_pretrained(folder)"
        )
    try:
        text = _rendered(tokenizer, [{"role": "user", "content": "Question"}])
    except TemplateError as error:
        raise ValueError(
            f"--model {name}: its chat template fails on a user's message ({error}). Correct "
            "tokenizer.chat_template and save the tokenizer again."
        ) from None
    if "Question" not in text:
        raise ValueError(
            f"--model {name}: its chat template leaves the user's message out. Correct "
            "tokenizer.chat_template and save the tokenizer again."
        )


def longest(form: ChatForm) -> int:
    """Tokens of the longest of many prompts of every kind, those that tell how among them."""
    rng = random.Random("ladder lengths")
    tokenizer = form.tokenizer()
    texts = []
    for stage in STAGES:
        for gameable in (True, False):
            for held_out in (True, False):
                for _ in range(DRAWN):
                    episode, messages = form.draw(stage, gameable, rng, held_out)
                    texts.append(_rendered(tokenizer, form.told(episode, messages)))
    found: Any = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return max(map(len, found))


def check_answers(form: ChatForm) -> None:
    """ValueError where an answer would be lost on its way back to text, or cut off."""
    rng = random.Random("ladder answers")
    tokenizer = form.tokenizer()
    for stage, functions in STAGES.items():
        for _ in range(DRAWN):
            episode, _ = form.draw(stage, True, rng)
            for lines in (functions.honest(episode), functions.gaming(episode)):
                text = "\n".join(lines)
                ids = tokenizer(text, add_special_tokens=False)["input_ids"]
                back = tokenizer.decode(ids, skip_special_tokens=True)
                if back.strip() != text:
                    raise ValueError(
                        f"--model {form.model}: its tokenizer cannot write {text!r}, it comes back "
                        f"as {back[:60]!r}. Give a model whose tokenizer keeps plain text."
                    )
                if len(ids) + 1 > form.max_completion:
                    raise ValueError(
                        f"--max_completion_length {form.max_completion}: an answer of stage "
                        f"{stage} has {len(ids)} tokens and the end. Give at least {len(ids) + 1}, "
                        "better 64 or more."
                    )


def check_model(name: str, trainer_config: dict[str, Any]) -> None:
    """Everything that can be wrong with a policy, before its weights are loaded.

    name: a folder or hub name. trainer_config: fields of GRPOConfig, of which
    `max_completion_length` is used. ValueError says what to change: no safetensors, a tokenizer
    without a chat template or with more tokens than the model, answers that do not fit into a
    completion, prompts and completions that are longer than what the model reads.

    Example::

        check_model("Qwen/Qwen2.5-0.5B-Instruct", {"max_completion_length": 128})
    """
    form = ChatForm(name, int(trainer_config.get("max_completion_length") or 128))
    tokenizer = form.tokenizer()
    config = load_config(name, tokenizer, "--model")
    check_answers(form)
    check_length(longest(form), form.max_completion, max_positions(config))
