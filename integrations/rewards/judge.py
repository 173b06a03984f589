"""LLM as a judge: a TRL reward function that asks a language model for a score from 1 to 5."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .correctness import completion_text, extract_answer, split_blocks
from .judge_prompt import (
    LOWEST,
    Case,
    encode_case,
    parse_score,
    render_prompt,
)
from .reader import Reader

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Verdict:
    """What the judge said about one completion."""

    score: float | None  # 1..5 (the paper's: any); None where the text has no score
    text: str
    cut: bool  # whether the completion was too long for the judge and lost its end


def case_of(question: str, solution: str, completion: str) -> Case:
    """Take reasoning and answer out of a completion; without the tags all of it is reasoning."""
    blocks = split_blocks(completion)
    if blocks is not None:
        return Case(blocks.reasoning, blocks.answer, solution, question)
    answer = extract_answer(completion)
    reasoning = completion if answer is None else completion.partition("<answer>")[0]
    return Case(reasoning, answer or "", solution, question)


class JudgeReward(Reader):
    """Reward in [0, 2]: the judge's score 1..5, as (score - 1) / 2.

    A verdict without a score gives `unparsed`, by default 0, the reward of the lowest score. It is
    not None, because TRL then adds 0 for it anyway in a sum of rewards but leaves it out of the
    reported mean; and not a middle value, because confusing the judge would then pay.

    Logged through TRL's `log_metric`: `judge/unparsed` and `judge/cut`, fractions of the batch; and
    through `log_extra` the verdicts, into the table of completions.

    Each process holds its own copy of the judge; decoding is greedy, so it uses no random numbers.
    """

    asked_for = "begin with 'Score: N'"  # for the messages

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        batch_size: int = 16,
        max_new_tokens: int = 64,
        max_input_tokens: int | None = None,
        unparsed: float | None = 0.0,
        patience: int = 3,
    ) -> None:
        super().__init__(
            model,
            tokenizer,
            batch_size=batch_size,
            max_new_tokens=max_new_tokens,
            max_input_tokens=max_input_tokens,
            patience=patience,
        )
        self.__name__ = "judge"  # TRL names its metrics by it: rewards/judge/mean
        self.unparsed = unparsed
        self.batches = self.seen = self.parsed = 0

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        question: Sequence[str] | None = None,
        solution: Sequence[str] | None = None,
        log_metric: Callable[[str, float], None] | None = None,
        log_extra: Callable[[str, list[Any]], None] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """Return one reward per completion; raise where no score could ever be read."""
        if question is None or solution is None:
            missing = "question" if question is None else "solution"
            raise ValueError(
                f"The data set has no column '{missing}', which the judge reads. Build it with\n"
                "    dataset = prompt_dataset(load_questions(path), tokenizer)\n"
                "of integrations.data, which adds 'question', 'solution' and 'reference'."
            )
        texts = [completion_text(completion) for completion in completions]
        verdicts = self.judge(question, solution, texts)
        self._count(verdicts)
        if verdicts and log_metric is not None:
            count = len(verdicts)
            log_metric("judge/unparsed", sum(v.score is None for v in verdicts) / count)
            log_metric("judge/cut", sum(v.cut for v in verdicts) / count)
        if log_extra is not None:
            log_extra("judge_verdict", [v.text for v in verdicts])
        return [self.unparsed if v.score is None else (v.score - LOWEST) / 2 for v in verdicts]

    def encode(self, case: Case) -> tuple[list[int], bool]:
        """The token ids of the prompt for one case, and whether text was cut."""
        return encode_case(case, self.tokenizer, self.forbidden, self.limit)

    def read(self, verdict: str) -> float | None:
        """The score that a verdict gives; None where it gives none."""
        return parse_score(verdict)

    def judge(
        self, questions: Sequence[str], solutions: Sequence[str], completions: Sequence[str]
    ) -> list[Verdict]:
        """Ask for a verdict on each completion; equal ones are asked once."""
        cases = [case_of(*row) for row in zip(questions, solutions, completions, strict=True)]
        distinct = list(dict.fromkeys(cases))
        encoded = [self.encode(case) for case in distinct]
        # Batches of similar length need the least padding.
        order = sorted(range(len(distinct)), key=lambda i: len(encoded[i][0]))
        verdicts: dict[Case, Verdict] = {}
        for start in range(0, len(order), self.batch_size):
            batch = order[start : start + self.batch_size]
            for i, text in zip(batch, self._generate([encoded[i][0] for i in batch]), strict=True):
                verdicts[distinct[i]] = Verdict(self.read(text), text, encoded[i][1])
        return [verdicts[case] for case in cases]

    def check(self, question: str, solution: str, reference: str) -> Verdict:
        """Judge one row's own reference solution; raise at once where the judge gives no score."""
        work = f"<reasoning>\n{solution}\n</reasoning>\n<answer>\n{reference}\n</answer>"
        verdict = self.judge([question], [solution], [work])[0]
        if verdict.score is None:
            raise ValueError(self._no_score("on a test case", verdict.text))
        return verdict

    def _count(self, verdicts: list[Verdict]) -> None:
        parsed = sum(v.score is not None for v in verdicts)
        self.seen += len(verdicts)
        self.parsed += parsed
        self.batches += bool(verdicts)
        if parsed or not verdicts:
            return
        if not self.parsed and self.batches >= self.patience:
            where = f"in the first {self.batches} batches ({self.seen} verdicts)"
            raise RuntimeError(self._no_score(where, verdicts[0].text))
        logger.warning("The judge gave no readable score in this batch of %d.", len(verdicts))

    def _no_score(self, where: str, text: str) -> str:
        return (
            f"The judge gave no readable score {where}, so there is nothing to train on. It must "
            f"{self.asked_for}; it wrote {text[:120]!r}. Give an instruction-tuned one, e.g.\n"
            "    --judge-model Qwen/Qwen2.5-1.5B-Instruct"
        )

    def frame(self) -> list[int]:
        """The tokens of the prompt with nothing filled in."""
        frame = render_prompt(Case("", "", "", ""), self.tokenizer, ())
        return self.tokenizer(frame)["input_ids"]  # pyright: ignore
