"""What each rule gives for completions that try to look better than they are, row by row."""

from typing import Any

import pytest

from integrations.rewards import REWARD_RANGES, RULES
from integrations.rewards.form import REASONING_KEYWORDS, completion_text
from integrations.rewards.math_answer import check_reference
from integrations.rewards.verifier import VERIFIER


def work(answer: str, reasoning: str = "6 * 12 is 72.") -> str:
    return f"<reasoning>{reasoning}</reasoning><answer>{answer}</answer>"


def give(rule: str, completion: Any, reference: str = "") -> float:
    columns = {"reference": [reference]} if reference else {}
    (reward,) = RULES[rule](prompts=[""], completions=[completion], **columns)
    low, high = REWARD_RANGES[rule]
    assert low <= reward <= high
    return reward


# answer, reference, right or not
ANSWERS = [
    ("72", "72", True),
    ("72.0", "72", True),
    ("$72", "72", True),
    ("\\$72", "72", True),
    ("$72$", "72", True),
    ("$$72$$", "72", True),
    ("\\(72\\)", "72", True),
    ("\\[72.\\]", "72", True),
    ("1,000", "1000", True),
    ("1{,}000", "1000", True),
    ("1,\\!000", "1000", True),
    ("1\\,000", "1000", True),
    ("1000", "1,000", True),
    ("1/2", "0.5", True),
    (".5", "1/2", True),
    ("\\frac{1}{2}", "0.5", True),
    ("\\dfrac12", "0.5", True),
    ("\\frac{-1}{2}", "-0.5", True),
    ("-\\frac{1}{2}", "-0.5", True),
    ("1 1/2", "1.5", True),
    ("1\\frac{1}{2}", "1.5", True),
    ("8.64 \\times 10^{4}", "86400", True),
    ("\\boxed{72}", "72", True),
    ("\\boxed{\\text{72}}", "72", True),
    ("x = 72", "72", True),
    ("72\\text{ cm}^2", "72", True),
    ("90^\\circ", "90", True),
    ("{12}", "12", True),
    ("{\\frac12}", "0.5", True),
    ("(12)", "12", True),
    ("(1,000)", "1000", False),
    ("72€", "72", True),
    ("72\\ ", "72", True),
    ("50%", "50", True),
    ("50\\%", "50", True),
    ("50%", "0.5", False),
    ("0.5", "50%", False),
    ("72 or 73", "72", False),
    ("72, 73", "72", False),
    ("72 73", "72", False),
    ("72/73", "72", False),
    ("72 = 73", "72", False),
    ("73 = 72", "72", False),
    ("x = 73 = 72", "72", False),
    ("72 \\approx 73", "72", False),
    ("72 \\pm 1", "72", False),
    ("72\\text{ or }73", "72", False),
    ("72\\text{ or seventy}", "72", False),
    ("60+12", "72", False),
    ("10^6", "1000000", False),
    ("x=72, x=73", "72", False),
    ("x=1,x=000", "1000", False),
    ("6 \\cdot 12", "72", False),
    ("8^2+8", "72", False),
    ("\\sqrt{5184}", "72", False),
    ("72_8", "72", False),
    ("72 clips", "72", False),
    ("seventy-two", "72", False),
    ("72!", "72", False),
    ("[71, 73]", "72", False),
    ("x > 71", "72", False),
    ("7e1", "70", False),
    ("\uff17\uff12", "72", False),
    ("\u0667\u0662", "72", False),
    ("0.333333", "1/3", False),
    ("71.9999999", "72", False),
    ("1/0", "72", False),
    ("nan", "72", False),
    ("inf", "72", False),
    ("", "72", False),
    ("\x00", "72", False),
    ("\ud800", "72", False),
    ("9" * 5000, "72", False),
    ("(" * 100_000, "72", False),
]


@pytest.mark.parametrize("rule", ["correctness", "boxed_correctness"])
@pytest.mark.parametrize(("answer", "reference", "right"), ANSWERS)
def test_answers_that_are_numbers(rule: str, answer: str, reference: str, right: bool) -> None:
    text = work(answer) if rule == "correctness" else f"So it is \\boxed{{{answer}}}."
    for completion in (text, [{"role": "assistant", "content": text}], {"content": text}):
        assert give(rule, completion, reference) == (2 if right else 0)


# answer, reference, right or not: mathematics of the kinds that MATH has
FORMULAS = [
    ("\\frac{1}{\\sqrt{3}}", "\\frac{\\sqrt{3}}{3}", True),
    ("2\\cdot\\pi", "2\\pi", True),
    ("sqrt(2)", "\\sqrt{2}", True),
    ("1.41421356", "\\sqrt{2}", True),
    ("1.41", "\\sqrt{2}", False),
    ("0.0", "10^{-8}", False),
    ("3 = \\sqrt{2}", "\\sqrt{2}", False),
    ("\\sqrt{2} \\approx 3", "\\sqrt{2}", False),
    ("\\sqrt{2}\\text{ but maybe }3\\text{ cm}", "\\sqrt{2}", False),
    ("\\sqrt{2}, 3", "\\sqrt{2}", False),
    ("\\sqrt{2} or 3", "\\sqrt{2}", False),
    ("\\max(4, 3\\pi)", "3\\pi", False),
    ("3\\pi\\text{ cm}", "3\\pi", True),
    ("(1, 2]", "(1,2]", True),
    ("[1,2]", "(1,2]", False),
    ("(2,\\infty)\\cup(-\\infty,1)", "(-\\infty,1)\\cup(2,\\infty)", True),
    ("2, 1", "1,2", True),
    ("\\{1, 2\\}", "1,2", True),
    ("1 \\text{ and } 2", "1,2", True),
    ("1", "1,2", False),
    ("(3, \\pi/2)", "\\left( 3, \\frac{\\pi}{2} \\right)", True),
    ("(2, 1)", "(1, 2)", False),
    ("(x+1)^2", "x^2+2x+1", True),
    ("x^2+1", "x^2+2x+1", False),
    ("2t", "2", False),
    ("9i+6", "6+9i", True),
    (r"\begin{bmatrix}1&2\\3&4\end{bmatrix}", r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", True),
    (r"\begin{bmatrix}1&2\\4&3\end{bmatrix}", r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", False),
    ("2x+3", "y=2x+3", True),
    ("x=2y+3", "y=2x+3", False),
    ("y=y", "y=2x+3", False),
    ("1024", "2^{10}", True),
    ("2516", "2516_8", True),
    ("2516_{8}", "2516_8", True),
    ("2516_7", "2516_8", False),
    ("evelyn", "\\text{Evelyn}", True),
    ("nylevE", "\\text{Evelyn}", False),
    ("\\text{(B)}", "B", True),
    ("C", "\\text{(B)}", False),
    ("Odd", "odd", True),
    ("No", "no", True),
    ("on", "no", False),
    ("on", "\\text{no}", False),
    ("ann", "Ann", True),
    ("ba", "ab", True),  # a product
    ("cab", "\\text{abc}", False),
    ("{\\sqrt{2}}", "\\sqrt{2}", True),
    ("72.0", "\\text{72}", True),
    ("12 inches", "12 \\text{ inches}", True),
    ("12 cm^2", "12\\text{ cm}^{2}", True),
    ("12 feet", "12 \\text{ inches}", False),
    ("12 min", "12 \\text{ in}", False),
    ("x=2, x=3", "2,3", True),
    ("x=2\\text{ or }x=3", "2,3", True),
    ("x=2,3", "2,3", True),
    ("x=2, y=3", "2,3", False),
    ("x=2=4, x=3", "2,3", False),
    ("x=2, x=3", "(2,3)", False),
    ("x=\\sqrt{2}, x=3", "\\sqrt{2}", False),
    ("\\sqrt{2} \\approxeq \\sqrt{3}", "\\sqrt{2}", False),
    ("\\sqrt{2} \\thickapprox 3", "\\sqrt{2}", False),
    ("\\frac{d}{dx}(x^3/3+x)", "x^2+1", False),
    ("\\frac d{dx}(x^3/3+x)", "x^2+1", False),
    ("\\frac{\\partial}{\\partial x}(x^3/3+x)", "x^2+1", False),
    ("\\frac{d}{2}", "d/2", True),
    ("X", "x", False),
    ("X^2+1", "x^2+1", False),
    ("0", "R-r", False),
    ("-r+R", "R-r", True),
    ("r\\in\\mathbb{R}", "\\mathbb{R}", True),
]


@pytest.mark.parametrize(("answer", "reference", "right"), FORMULAS)
def test_answers_that_are_formulas(answer: str, reference: str, right: bool) -> None:
    assert give("boxed_correctness", f"\\boxed{{{answer}}}", reference) == (2 if right else 0)


# completion, right answer 72: boxed_correctness, string_equality
PLACES = [
    ("\\boxed{72}", 2, 0),
    ("\\boxed {72}", 2, 0),
    ("\\fbox{72}", 2, 0),
    ("\\boxed{3}, so \\boxed{72}", 0, 0),
    ("\\boxed{72} \\boxed{72.0} \\boxed{$72$}", 2, 0),
    ("\\boxed{\\boxed{72}}", 2, 0),
    ("\\boxed{71 \\boxed{72}}", 0, 0),
    ("\\boxed{72", 0, 0),
    ("\\boxed{72} \\boxed{", 0, 0),
    ("\\boxed72", 0, 0),
    ("\\boxed 72", 0, 0),
    ("\\boxed 7 \\boxed{72}", 0, 0),
    ("\\boxed{}", 0, 0),
    ("\\boxed{72\\}", 0, 0),
    ("boxed{72}", 0, 0),
    ("".join(f"\\boxed{{{n}}}" for n in range(60, 90)), 0, 0),
    ("\\boxed{" * 20_000, 0, 0),
    ("72", 0, 2),
    ("<answer>72</answer>", 0, 2),
    ("<answer>71</answer><answer>72</answer>", 0, 2),
    ("<answer>72.0</answer>", 0, 0),
    ("72</answer>73", 0, 2),
]


@pytest.mark.parametrize(("text", "boxed", "string"), PLACES)
def test_where_an_answer_may_stand(text: str, boxed: float, string: float) -> None:
    assert give("boxed_correctness", text, "72") == boxed
    assert give("string_equality", text, "72") == string


# completion; strict, soft, tag count, keywords
FORMS = [
    (work("72"), 1, 1, 0.5, 0),
    (f"\n{work('72')}\n", 1, 1, 0.5, 0),
    (work("72") + ".", 0, 1, 0.499, 0),
    ("." + work("72"), 0, 1, 0.5, 0),
    (work("72", reasoning=""), 0, 0, 0.5, 0),
    (work("72", reasoning="  \n"), 0, 0, 0.5, 0),
    (work("..."), 0, 0, 0.5, 0),
    (work("72") * 2, 0, 0, 0, 0),
    (work("72").replace("<", "&lt;"), 0, 0, 0, 0),
    (work("72").upper(), 0, 0, 0, 0),
    ("<answer>72</answer><reasoning>6 * 12</reasoning>", 0, 0, 0.471, 0),
    ("<reasoning>6<answer>72</answer></reasoning>", 0, 0, 0.488, 0),
    (work("72") + " " * 100_000, 1, 1, 0.5, 0),
    (work("72") + "x" * 100_000, 0, 1, 0, 0),
    ("First we add 1. Then we add 2. Therefore it is 3.", 0, 0, 0, 1),
    ("FIRST we add 1! then we add 2?\nthus it is 3", 0, 0, 0, 1),
    ("First we add 1. First we add 2. First we add 3.", 0, 0, 0, 1 / 3),
    ("first second third next then finally therefore thus", 0, 0, 0, 1 / 3),
    ("First. Then. Therefore.", 0, 0, 0, 0),
    ("Firstly we thenceforth add 1 and 2.", 0, 0, 0, 0),
    ("\n".join(f"{word} we add a number" for word in REASONING_KEYWORDS), 0, 0, 0, 1),
]


@pytest.mark.parametrize(("text", "strict", "soft", "tags", "keywords"), FORMS)
def test_forms(text: str, strict: float, soft: float, tags: float, keywords: float) -> None:
    assert give("strict_format", text) == strict
    assert give("soft_format", text) == soft
    assert give("tag_count", text) == pytest.approx(tags)
    assert give("reasoning_keywords", text) == pytest.approx(keywords)


@pytest.mark.parametrize(
    ("completion", "text"),
    [
        (None, ""),
        (3, ""),
        ([], ""),
        ([None, ["a", {"text": "b"}]], "ab"),
        ([{"role": "assistant", "content": [{"type": "text", "text": "a"}]}], "a"),
        ([{"role": "tool", "content": "72"}, {"role": "assistant", "content": "a"}], "a"),
    ],
)
def test_text_of_a_completion(completion: Any, text: str) -> None:
    assert completion_text(completion) == text


def test_text_of_lists_without_end() -> None:
    itself: list[Any] = ["a"]
    itself.append(itself)
    deep: Any = "a"
    for _ in range(100_000):
        deep = [deep]
    assert completion_text(itself) == completion_text(deep) == "a"
    while isinstance(deep, list):  # freeing it in one go would recurse
        deep = deep.pop()


def test_references_that_cannot_be_used() -> None:
    for rule in ("correctness", "boxed_correctness", "string_equality"):
        with pytest.raises(ValueError, match=r"no column 'reference'(.|\n)*prompt_dataset"):
            RULES[rule]([""], ["72"])
    with pytest.raises(ValueError, match="'seven' is not a number"):
        give("correctness", "72", "seven")
    with pytest.raises(ValueError, match="0 characters; it must have 1 to 300"):
        RULES["boxed_correctness"]([""], ["72"], reference=[""])
    with pytest.raises(ValueError, match="Give the final answer alone"):
        give("boxed_correctness", "72", "9" * 301)


@pytest.mark.parametrize("text", ["$\\boxed 7$", "\\boxed7.", "\\(\\boxed 7\\)", "\\boxed{ {7} }"])
def test_boxes_of_one_sign_and_of_two_braces(text: str) -> None:
    assert give("boxed_correctness", f"So {text}", "7") == 2
    assert give("boxed_correctness", "\\boxed{7.0}", text) == 2  # as a reference, too


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        (" ", "1 characters; it must have 1 to 300"),
        ("x+" * 200, "Give the final answer alone"),
        ("\\boxed{1} \\boxed{2}", "several boxes"),
        ("it is \\boxed{1}", "text around it"),
        ("\\frac{1}{2", "a brace without its partner"),
        ("1}", "a brace without its partner"),
        ("$$", "no letter and no digit"),
        ("\\text{}", "no letter and no digit"),
        ("{}", "no letter and no digit"),
    ],
)
def test_references_that_no_answer_equals(reference: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        check_reference(reference)
    with pytest.raises(ValueError, match=said):
        give("boxed_correctness", "\\boxed{1}", reference)


def test_references_that_can_be_used() -> None:
    before = VERIFIER.comparisons
    for _, reference, _ in (*ANSWERS, *FORMULAS):
        check_reference(reference)
    for reference in ("[0,1)", "\\{1\\}", "\\emptyset", "-\\infty", "\\boxed{3}", "\\$5", "A"):
        check_reference(reference)
    assert VERIFIER.comparisons == before  # no process is asked


def test_registry_and_ranges_name_the_same_rules() -> None:
    assert RULES.keys() == REWARD_RANGES.keys()
    assert all(name == rule.__name__ for name, rule in RULES.items())
