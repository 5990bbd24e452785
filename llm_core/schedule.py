"""When a served pipeline runs by itself, as written under `schedule` in pipeline.yaml."""

from datetime import UTC, datetime
from difflib import get_close_matches
from typing import Any, Self
from zoneinfo import available_timezones

from cronsim import CronSim, CronSimError
from pydantic import Field, field_validator, model_validator

from llm_core.documents import Document


class ScheduleSpec(Document):
    """A cron expression or an interval, and what is asked each time."""

    cron: str | None = Field(None, description="such as '0 7 * * 1-5': minute, hour, day, month, weekday")
    interval_s: float | None = Field(None, ge=1, description="seconds between two runs")
    timezone: str = Field("UTC", description="such as Europe/Berlin")
    parameters: dict[str, Any] = Field(description="of the flow: the question to ask")
    active: bool = True

    @field_validator("cron")
    @classmethod
    def _can_be_read(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                CronSim(value, datetime.now(UTC))
            except CronSimError as error:
                raise ValueError(f"'{value}' is no cron expression ({error}); expected five fields") from None
        return value

    @field_validator("timezone")
    @classmethod
    def _is_known(cls, value: str) -> str:
        if value not in available_timezones():
            close = get_close_matches(value, available_timezones(), n=1)
            raise ValueError(
                f"unknown time zone '{value}'; " + (f"did you mean '{close[0]}'?" if close else "see tzdata")
            )
        return value

    @field_validator("parameters")
    @classmethod
    def _asks_something(cls, value: dict[str, Any]) -> dict[str, Any]:
        if list(value) != ["question"] or not isinstance(value["question"], str):
            raise ValueError("expected the one parameter 'question', a text")
        if not value["question"].strip():
            raise ValueError("question: it is empty; give some text to answer")
        return value

    @model_validator(mode="after")
    def _either_or(self) -> Self:
        if (self.cron is None) == (self.interval_s is None):
            raise ValueError("needs either 'cron' or 'interval_s'")
        return self
