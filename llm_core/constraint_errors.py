"""What llguidance says when it fails, as one line; also where its native code panics."""

from collections.abc import Iterator
from contextlib import contextmanager

from llm_core.errors import ConstraintError, GgufFlowError


@contextmanager
def guarded(doing: str) -> Iterator[None]:
    """Turn whatever goes wrong inside into a `ConstraintError`, so that no answer goes on without its constraint."""
    try:
        yield
    except (GgufFlowError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic in native code is no Exception
        raise ConstraintError(f"{doing}: {type(error).__name__}: {one_line(str(error))}") from None


def one_line(message: str) -> str:
    """The gist of a message that may have many lines, and the grammar's whole state behind them."""
    return " ".join(message.partition("\n<state>")[0].split())[:300]
