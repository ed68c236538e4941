"""How long each stage of a run is, in steps: computed once, from the configuration and the number of examples."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from ml_collections import ConfigDict

from shike_jax.data.sampling import steps_per_epoch


@dataclasses.dataclass(frozen=True)
class StagePlan:
    """One stage of a run and its length."""

    index: int  # its place in `config.run`
    name: str
    settings: ConfigDict  # the fields of `config.stages.NAME`
    examples: int  # of the training split
    steps_per_epoch: int
    steps: int
    steps_before: int  # of all earlier stages; logs and checkpoints count over the whole run

    def examples_until(self, step: int) -> int:
        """Training examples that the first `step` steps process."""
        batch = self.settings.batch_size
        epochs, rest = divmod(step, self.steps_per_epoch)
        of_epoch = min(self.steps_per_epoch * batch, self.examples)  # the last batch may be padded, or left out
        return epochs * of_epoch + min(rest * batch, of_epoch)


def plan_stages(config: ConfigDict, examples: int) -> tuple[StagePlan, ...]:
    """The stages of `config.run` in order, for a training split of so many examples."""
    plans, before = [], 0
    for index, name in enumerate(config.run):
        settings = config.stages[name]
        each = steps_per_epoch(examples, settings.batch_size, settings.keep_last)
        steps = min(each * settings.epochs, settings.max_steps or each * settings.epochs)
        plans.append(StagePlan(index, name, settings, examples, each, steps, before))
        before += steps
    return tuple(plans)


def examples_left(plans: Sequence[StagePlan], index: int, step: int) -> int:
    """Training examples still to be processed from a step of stage `index` on."""
    return sum(plan.examples_until(plan.steps) for plan in plans[index:]) - plans[index].examples_until(step)
