"""`gguf-flow batch`: a dataset through a pipeline in this process, watched on the terminal."""

from pathlib import Path

from rich.console import Console

from flows.batch_progress import watcher
from flows.interrupted import run_until_interrupted
from flows.prefect_start import exit_code, starting_prefect


def run_dataset(
    dataset: Path,
    pipeline: str,
    output: Path | None,
    limit: int | None,
    resume: bool,
    overrides: list[str],
    *,
    stderr: Console,
) -> int:
    """Run, print the path of the results on stdout, and return the exit code."""
    with starting_prefect(stderr):
        from flows.batch import batch
        from flows.result import PipelineFailed
    from tasks.run import progress

    def say(line: str) -> None:
        stderr.print(line, markup=False, highlight=False, soft_wrap=True)

    with watcher(stderr) as watching:
        progress.set(watching)
        try:
            result = run_until_interrupted(batch(dataset, pipeline, output, limit, resume, overrides))
        except PipelineFailed as failure:
            say(f"gguf-flow: {failure}")
            say(f"what is done is saved in {failure.session_path}; go on with --resume")
            return exit_code(failure.cause)
    n_answered = result.n_items - result.n_failed
    failed = f", {result.n_failed} failed: each has its 'error' in its row" if result.n_failed else ""
    say(f"{n_answered} of {result.n_items} questions answered{failed}; session: {result.session_path}")
    print(result.output)
    return 0
