"""A run that takes many items through each stage before the next."""

from llm_core.dataset import Item, row_images
from llm_core.dataset_results import DatasetResults
from llm_core.image_sources import ImageSources
from llm_core.pipeline import QUESTION
from llm_core.plan import StagePlan
from llm_core.session_images import Images
from llm_core.step_log import StepLog
from tasks.run import Run


class DatasetRun(Run):
    """A run that takes many items through each stage before the next."""

    prefetches = False
    """The next stage comes only when this one is through all items; its models would lie idle meanwhile."""

    def __init__(
        self,
        run: Run,
        items: list[Item],
        logs: dict[str, StepLog],
        results: DatasetResults,
        sources: ImageSources,
    ) -> None:
        super().__init__(
            run.plan, run.residency, run.pool, run.remote, run.estimates, run.session, run.answers, run.cores
        )
        self.items, self.logs, self.results, self._sources = items, logs, results, sources

    def images_of(self, stage: StagePlan, item: Item) -> Images:
        """What a stage may look at; an item's own images are read when it is their turn, and kept in the session.

        Raises:
            InputError: one of them cannot be read.
        """
        if QUESTION not in stage.images:
            return self.images
        assert self.session.record.dataset
        seen = tuple(map(self._sources.load, row_images(item, self.session.record.dataset.path)))
        self.session.keep(seen)
        return {**self.images, QUESTION: seen}
