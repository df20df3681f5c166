"""The rules: whose scores, who competes with whom, what they mean."""

import dataclasses

import keras_bayestune as kbt
from benchmarks.quality.methods import FORMS
from benchmarks.transfer.sources import (
    Scores,
    Sources,
    at_anchors,
    bayestune,
    fisher,
    movement_adam,
    movement_descent,
    of_selector,
)
from keras_bayestune import budgets, selectors

FULL, HEAD_ONLY, LORA, BITFIT = "full", "head only", "LoRA", "BitFit"


@dataclasses.dataclass(frozen=True)
class Rule:
    """A row of the table."""

    scores: str  # a name that its source gives
    meaning: str
    source: Sources | None = None  # `None`: it has no mask
    budget: budgets.Budget = budgets.Global()
    kept: tuple[str, ...] = ()  # as of `FORMS`


_STAGE_1 = bayestune("scale")
_WARMED, _NEW_HEAD = at_anchors(warm=True), at_anchors(warm=False)
_MAGNITUDE = of_selector("magnitude", lambda _: selectors.Magnitude())
_LOCAL = budgets.PerTensor()
RULES = {
    **{
        name: Rule("scale", "a form of BayesTune", _STAGE_1, budget, kept)
        for name, (budget, kept) in FORMS.items()
    },
    "movement, Adam": Rule(
        "movement, Adam",
        "distance from the pre-trained value after full fine-tuning by Adam "
        "(lottery-ticket fine-tuning, ACL 2022)",
        movement_adam,
    ),
    "movement, Adam, per tensor": Rule(
        "movement, Adam", "the same, shared out by tensor", movement_adam, _LOCAL
    ),
    "movement, Adam, v^(1/4)": Rule(
        "movement, Adam, v^(1/4)",
        "the same distance times the fourth root of Adam's second moment",
        movement_adam,
    ),
    "movement, SGD": Rule(
        "movement, SGD", "distance after plain descent", movement_descent
    ),
    "gradient sum": Rule(
        "gradient sum",
        "size of the summed gradient at the pre-trained weights, the head warmed up "
        "first (SAM, AAAI 2023)",
        _WARMED,
    ),
    "gradient sum, new head": Rule(
        "gradient sum, new head", "the same with the head as new", _NEW_HEAD
    ),
    "gradient per neuron": Rule(
        "gradient sum",
        "gradient sum, every output neuron with its share (GPS, CVPR 2024)",
        _WARMED,
        budgets.PerNeuron(),
    ),
    "gradient per neuron, new head": Rule(
        "gradient sum, new head",
        "the same with the head as new",
        _NEW_HEAD,
        budgets.PerNeuron(),
    ),
    "SNIP": Rule("SNIP", "|weight x summed gradient|, the head warmed up", _WARMED),
    "SNIP, new head": Rule(
        "SNIP, new head", "the same with the head as new", _NEW_HEAD
    ),
    "Fisher": Rule(
        "Fisher",
        "sum of squared gradients of single examples, the head warmed up "
        "(FISH, NeurIPS 2021)",
        fisher(warm=True),
    ),
    "Fisher, new head": Rule(
        "Fisher", "the same with the head as new", fisher(warm=False)
    ),
    "low-rank magnitude": Rule(
        "low-rank magnitude",
        "size in the rank-32 part of each matrix (LIFT, ICML 2025)",
        of_selector("low-rank magnitude", lambda _: selectors.LowRankMagnitude(32)),
    ),
    "magnitude": Rule(
        "magnitude",
        "size of the pre-trained value",
        _MAGNITUDE,
    ),
    "magnitude per neuron": Rule(
        "magnitude",
        "magnitude, every output neuron with its share (NeuroAda, EMNLP 2025)",
        _MAGNITUDE,
        budgets.PerNeuron(),
    ),
    "small magnitude": Rule(
        "small magnitude",
        "the smallest pre-trained values of each tensor (PaFi, ACL 2023)",
        of_selector("small magnitude", lambda _: selectors.SmallMagnitude()),
        _LOCAL,
    ),
    "Wanda": Rule(
        "Wanda",
        "|weight| x size of its input over 8 batches, every output neuron with its "
        "share (ICLR 2024)",
        of_selector("Wanda", lambda _: selectors.ActivationMagnitude(steps=8)),
        budgets.PerNeuron(),
    ),
    "random": Rule("random", "a random mask", of_selector("random", selectors.Random)),
    BITFIT: Rule(
        BITFIT,
        "all biases, those of norms included (ACL 2022)",
        of_selector(BITFIT, lambda _: selectors.BitFit()),
    ),
    FULL: Rule(FULL, "all weights"),
    HEAD_ONLY: Rule(HEAD_ONLY, "the new head alone"),
    LORA: Rule(LORA, "low-rank factors on query and value, of about as many scalars"),
}
NO_FRACTION = FULL, HEAD_ONLY, BITFIT  # these have a size of their own


def mask_of(rule: Rule, scores: Scores, fraction: float | None, head) -> kbt.SparseMask:
    """Return what a rule selects; the head is always whole."""
    if rule.scores == BITFIT:
        return kbt.SparseMask.from_scores(scores, threshold=0.5, always=head)
    return kbt.SparseMask.from_scores(scores, fraction, budget=rule.budget, always=head)
