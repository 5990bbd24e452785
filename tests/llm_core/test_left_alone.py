"""Work is left alone when it is not wanted any more, and its own end is passed on when it is."""

import threading
from contextvars import ContextVar

import pytest

from llm_core.errors import ContextOverflow, NotWaitedFor
from llm_core.left_alone import wait_while

kept: ContextVar[str] = ContextVar("kept")


def test_what_work_returns_is_returned_and_it_sees_the_callers_context() -> None:
    kept.set("here")
    assert wait_while(lambda: None, kept.get) == "here"


def test_what_work_raises_is_raised() -> None:
    def fail() -> None:
        raise ContextOverflow("too long")

    with pytest.raises(ContextOverflow, match="too long"):
        wait_while(lambda: None, fail)


def test_nobody_waits_for_work_that_is_not_wanted_any_more() -> None:
    begun, over = threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        over.wait(60)

    def wanted() -> None:
        if begun.is_set():
            raise NotWaitedFor("enough")

    with pytest.raises(NotWaitedFor, match="enough"):
        wait_while(wanted, work)
    assert not over.is_set()
    over.set()


def test_unwanted_work_does_not_begin() -> None:
    def wanted() -> None:
        raise NotWaitedFor("enough")

    with pytest.raises(NotWaitedFor):
        wait_while(wanted, lambda: pytest.fail("begun"))
