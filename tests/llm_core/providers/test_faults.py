"""How long to wait, and what a fault says."""

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from llm_core.errors import ModelCrashed, ProviderUnavailable
from llm_core.providers.faults import Faults, retry_after_s, wait_s
from llm_core.providers.streamed_answer import on_one_line


@pytest.mark.parametrize(("written", "seconds"), [("7", 7.0), ("0.5", 0.5), ("-3", 0.0), ("soon", None), ("nan", None)])
def test_retry_after_in_seconds(written: str, seconds: float | None) -> None:
    assert retry_after_s({"retry-after": written}) == seconds


def test_retry_after_as_a_date() -> None:
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    assert retry_after_s({"retry-after": soon}) == pytest.approx(60, abs=2)
    assert retry_after_s({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0.0
    assert retry_after_s({}) is None


def test_wait_is_as_asked_for_else_it_doubles() -> None:
    asked = Faults("x").passing("busy", 12.0)
    assert wait_s(asked, 1) == 12.0
    busy = ProviderUnavailable("busy")
    for attempt, least in [(1, 1.0), (2, 2.0), (4, 8.0), (9, 30.0)]:
        assert least <= wait_s(busy, attempt) <= 1.5 * least
    assert wait_s(ModelCrashed("killed"), 3) == 0.0, "a dead process can be started at once"


def test_message_is_one_line_without_secrets() -> None:
    said = Faults("acme (m)", "sk-1", None).one_line("no\nkey  sk-1 " + "x" * 1000)
    assert said.startswith("acme (m): no key … xxx")
    assert len(said) == len("acme (m): ") + 400


def test_beginning_of_json_on_one_line() -> None:
    assert on_one_line('{\n "a" : [1,\n2], "b, c:\\" d": "x') == '{"a": [1, 2], "b, c:\\" d": "x'
