"""A stage's answers become one: which models are asked what on the way, and what is kept."""

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import pytest

from llm_core.call_params import Constraint
from llm_core.errors import AggregationError, ContextOverflow
from llm_core.merge import merged
from llm_core.pipeline import load_pipeline
from llm_core.plan import Call, StagePlan
from llm_core.planner import make_plan
from llm_core.ranking import RANKING_INSTRUCTIONS
from llm_core.registry import load_registry
from llm_core.session_records import StepRecord
from llm_core.settings import Settings
from tests.conftest import Project
from tests.llm_core.tiny_gguf import write_tiny_gguf

NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)
ANSWERS = {"a": "Paris", "b": "Lyon", "c": "paris."}


def stage(project: Project, aggregation: str, models: str = "[a, b, c]") -> StagePlan:
    project.models("models: {a: {file: m.gguf}, b: {file: m.gguf}, c: {file: m.gguf}, w: {file: m.gguf}}")
    write_tiny_gguf(project.path / "models" / "m.gguf", few=[1])
    path = project.pipeline(f"base_pipeline: {{stages: [{{id: panel, models: {models}, aggregation: {aggregation}}}]}}")
    (planned,) = make_plan(load_pipeline(path, "base"), load_registry(Settings()), source=path).stages
    return planned


def answered(member: str, text: str, tokens: int = 5) -> StepRecord:
    return StepRecord(
        id=f"1 panel: {member}",
        number=1,
        stage="panel",
        member=member,
        text=text,
        completion_tokens=tokens,
        started=NOON,
        ended=NOON,
    )


class Models:
    """Says what it was told to in each step, and remembers what it was asked."""

    def __init__(self, replies: Mapping[str, str], longest: int = 10_000) -> None:
        self.replies, self.longest = replies, longest
        self.asked: dict[str, str] = {}

    def __call__(self, call: Call, step: str, message: str, constraint: Constraint | None) -> StepRecord:
        if len(message) > self.longest:
            raise ContextOverflow("too long")
        self.asked[step] = message
        return answered(call.member, self.replies[step])


def merge(planned: StagePlan, models: Models, answers: Mapping[str, str] = ANSWERS) -> StepRecord:
    return merged(planned, "Capital?", [answered(*answer) for answer in answers.items()], {}, models)


def test_vote_keeps_counts_and_who_agreed(project: Project) -> None:
    step = merge(stage(project, "majority_vote"), Models({}))
    assert (step.text, step.model, step.completion_tokens) == ("Paris", None, None)
    assert step.aggregation == {
        "kind": "majority_vote",
        "counts": {"paris": 2, "lyon": 1},
        "agreed": ["a", "c"],
        "candidates": ANSWERS,
    }


def test_weights_are_by_model_or_by_member(project: Project) -> None:
    planned = stage(
        project, "{type: weighted_vote, weights: {b: 2.5, a_2: 0}}", "[a, b, {model: a, generation: {seed: 1}}]"
    )
    step = merge(planned, Models({}), {"a": "Paris", "b": "Lyon", "a_2": "Paris"})
    assert step.text == "Lyon"
    assert step.aggregation
    assert step.aggregation["counts"] == {"paris": 1.0, "lyon": 2.5}


def test_members_rank_each_others_answers_but_not_their_own(project: Project) -> None:
    replies = {"panel: ranked by a": "A > B", "panel: ranked by b": "I say B > A", "panel: ranked by c": "Both."}
    models = Models(replies)
    step = merge(stage(project, "ranked"), models)
    listed = "Question:\nCapital?\n\nAnswer A:\nparis.\n\nAnswer B:\nParis\n\nRanking:"
    assert models.asked["panel: ranked by b"] == f"{RANKING_INSTRUCTIONS}\n\n{listed}"
    assert step.text == "Paris"
    assert step.aggregation == {
        "kind": "ranked",
        "points": {"a": 1.0, "b": 1.0, "c": 0.0},
        "rankings": {"a": ["b", "c"], "b": ["a", "c"], "c": []},
        "agreed": ["b"],
        "replies": replies,
        "reply_tokens": 15,
        "candidates": ANSWERS,
    }


def test_judges_choice_is_the_answer_and_its_words_are_kept(project: Project) -> None:
    models = Models({"panel: judge": "2"})
    step = merge(stage(project, "{type: judge, judge_model: w, instructions: Choose.}"), models)
    assert models.asked["panel: judge"].startswith("Choose.\n\nQuestion:\nCapital?\n\nAnswer 1:\nParis\n\n")
    assert (step.text, step.completion_tokens) == ("Lyon", 5)
    assert step.aggregation
    assert step.aggregation["chosen"] == "b"
    assert step.aggregation["replies"] == {"panel: judge": "2"}


def test_candidates_that_do_not_fit_are_refused_and_never_cut(project: Project) -> None:
    with pytest.raises(ContextOverflow):
        merge(stage(project, "{type: synthesis, synthesis_model: w}"), Models({}, longest=100))


def test_candidates_that_do_not_fit_are_summarised_where_that_is_wanted(project: Project) -> None:
    long = {"a": "word " * 100, "b": "text " * 100, "c": "so"}
    replies = {f"panel: summary of {member}": f"{member} in short" for member in long}
    models = Models(replies | {"panel: synthesis": "All in all."}, longest=1000)
    planned = stage(project, "{type: synthesis, synthesis_model: w, on_overflow: summarise}")
    step = merge(planned, models, long)
    assert "Candidate 1 (a):\na in short\n\nCandidate 2 (b):\nb in short\n\n" in models.asked["panel: synthesis"]
    assert step.text == "All in all."
    assert step.aggregation
    assert step.aggregation["summaries"] == {"a": "a in short", "b": "b in short", "c": "c in short"}
    assert step.aggregation["reply_tokens"] == 15
    assert step.aggregation["candidates"] == long


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_aggregations.py").write_text(
        "def longest(question, answers):\n"
        "    return max(answers.values(), key=len), {'asked': question}\n"
        "def wrong(question, answers):\n"
        "    return 7\n"
        "def failing(question, answers):\n"
        "    return answers['nobody']\n"
        "constant = 1\n"
    )
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.usefixtures("own_module")
def test_function_of_ones_own_merges(project: Project) -> None:
    step = merge(stage(project, "own_aggregations:longest"), Models({}))
    assert step.text == "paris."
    assert step.aggregation == {
        "kind": "own_aggregations:longest",
        "asked": "Capital?",
        "agreed": ["c"],
        "candidates": ANSWERS,
    }


@pytest.mark.usefixtures("own_module")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("wrong", "must give text, or text and evidence, not int"),
        ("failing", "aggregation 'own_aggregations:failing': KeyError: 'nobody'"),
    ],
)
def test_function_of_ones_own_that_fails_is_one_line(project: Project, name: str, message: str) -> None:
    with pytest.raises(AggregationError) as failed:
        merge(stage(project, f"own_aggregations:{name}"), Models({}))
    assert message in str(failed.value)
    assert "\n" not in str(failed.value)
