"""When a pipeline runs by itself: what can be written, and what is refused while the file is read."""

import pytest

from llm_core.errors import ConfigError
from llm_core.pipeline import load_pipeline
from llm_core.schedule import ScheduleSpec
from tests.conftest import Project


def schedule(project: Project, text: str) -> ScheduleSpec | None:
    path = project.pipeline(f"base_pipeline: {{stages: [{{id: a, model: m}}], schedule: {text}}}")
    return load_pipeline(path).schedule


def test_cron_has_a_time_zone_and_a_question(project: Project) -> None:
    found = schedule(project, "{cron: '0 7 * * 1-5', timezone: Europe/Berlin, parameters: {question: 'News?'}}")
    assert found == ScheduleSpec(cron="0 7 * * 1-5", timezone="Europe/Berlin", parameters={"question": "News?"})


def test_interval_is_in_seconds_and_utc(project: Project) -> None:
    found = schedule(project, "{interval_s: 900, parameters: {question: 'News?'}}")
    assert found
    assert (found.interval_s, found.timezone, found.active) == (900, "UTC", True)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{cron: '61 * * * *', parameters: {question: a}}", "schedule.cron: '61 * * * *' is no cron expression"),
        ("{cron: daily, parameters: {question: a}}", "schedule.cron: 'daily' is no cron expression"),
        ("{parameters: {question: a}}", "schedule: needs either 'cron' or 'interval_s'"),
        ("{cron: '* * * * *', interval_s: 5, parameters: {question: a}}", "needs either 'cron' or 'interval_s'"),
        ("{interval_s: 0, parameters: {question: a}}", "schedule.interval_s: input should be greater"),
        ("{interval_s: 5}", "schedule.parameters: this key is required"),
        ("{interval_s: 5, parameters: {question: ' '}}", "schedule.parameters: question: it is empty"),
        ("{interval_s: 5, parameters: {qestion: a}}", "expected the one parameter 'question'"),
        ("{interval_s: 5, timezone: Europe/Berln, parameters: {question: a}}", "did you mean 'Europe/Berlin'?"),
        ("{crom: '* * * * *', parameters: {question: a}}", "unknown key 'crom'; did you mean 'cron'?"),
    ],
)
def test_wrong_schedule_is_refused_when_the_file_is_read(project: Project, text: str, problem: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        schedule(project, text)
    assert problem in str(refusal.value)
