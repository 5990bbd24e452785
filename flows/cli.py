"""The command line. Answers go to stdout, everything else to stderr; `models`, `plan`, `sessions` import no Prefect."""

import logging
import sys

from cyclopts import App, CycloptsError
from pydantic import ValidationError

from flows.console import say
from flows.interrupted import EXIT_CODE, SAID
from llm_core.errors import GgufFlowError

app = App(
    name="gguf-flow",
    help="Several GGUF models answer one question in stages.",
    version_flags=["--version"],
    suppress_keyboard_interrupt=False,
)
_COMMANDS = {
    "flows.run_cli:run": "Answer a question with a pipeline.",
    "flows.run_cli:batch": "Take every question of a dataset through a pipeline, model by model.",
    "flows.run_cli:rerun": "Run a stage of an earlier session again, and all that depends on it.",
    "flows.run_cli:replay": "Ask every step of an earlier session once more, and compare.",
    "flows.sessions_cli:sessions": "The runs so far.",
    "flows.models_cli:models": "The models of models.yaml.",
    "flows.project_cli:plan": "Show what would run. Nothing is loaded.",
    "flows.project_cli:save": "Keep the pipeline of an earlier run in pipeline.yaml.",
    "flows.project_cli:host": "Keep models loaded between runs, behind an OpenAI-compatible API.",
}
# By their paths: each is imported when it is used, so that none waits for what another needs.
for path, summary in _COMMANDS.items():
    app.command(path, name=path.partition(":")[2], help=summary)


def main() -> None:
    """Run the command line; whatever a user can mend is one line on stderr and exit code 2."""
    warnings = logging.StreamHandler()
    warnings.setFormatter(logging.Formatter("gguf-flow: %(message)s"))
    logging.getLogger("llm_core").addHandler(warnings)
    try:
        code = app(exit_on_error=False, print_error=False, result_action="return_value")
    except CycloptsError as error:
        code = _refuse(" ".join(str(error).split()) + "; see --help")
    except GgufFlowError as error:
        code = _refuse(str(error))
    except ValidationError as error:
        from llm_core.documents import describe

        code = _refuse(f"GGUF_FLOW_* settings: {describe(error)}")
    except KeyboardInterrupt:
        say(SAID)
        code = EXIT_CODE
    except BrokenPipeError:
        code = 0
    sys.exit(code if isinstance(code, int) else 0)


def _refuse(message: str) -> int:
    say(f"gguf-flow: {message}")
    return 2
