"""Mixture of agents (Wang et al. 2024, arXiv 2406.04692): a stage in layers, whose members see all answers of the
layer before and answer anew.
"""

from collections.abc import Mapping

ALL_ANSWERS = "all answers"
"""The aggregation of a layer that another one follows."""

LAYER_INSTRUCTIONS = (
    "Below are the answers that several models gave to the question, without their names. Some of them may be wrong, "
    "one-sided or incomplete. Weigh them against each other, do not merely repeat them, and write one better answer "
    "of your own, which stands without them."
)
"""What members are told from the second layer on, after their own instructions, unless the stage says otherwise."""


def layer_id(stage: str, layer: int) -> str:
    """Of a layer that another one follows; the last one has the id of the stage."""
    return f"{stage} (layer {layer})"


def layer_instructions(own: str | None, of_layer: str | None) -> str:
    """A member's own instructions, which may say what form an answer takes, then what to do with those of others."""
    return "\n\n".join(filter(None, (own, LAYER_INSTRUCTIONS if of_layer is None else of_layer)))


def all_answers(answers: Mapping[str, str]) -> str:
    """What the next layer's members see: numbered, so that none goes by its name or knows its own by it."""
    return "\n\n".join(f"Answer {number}:\n{text}" for number, text in enumerate(answers.values(), 1))
