"""At which batches the trainer reports, validates or saves."""

from collections.abc import Container
from dataclasses import dataclass


@dataclass(frozen=True)
class StepInterval(Container):
    """The batch numbers at which a period ends, and the last batch of the run.

    Determined's trainer tests each batch number for membership. After a resume without a cluster it
    counts from 0 again: `offset` is the number of batches trained before.
    """

    period: int  # batches; 0 means never
    offset: int
    last: int

    def __contains__(self, batch: object) -> bool:
        if not isinstance(batch, int):
            return False
        done = batch + self.offset
        return done == self.last or (self.period > 0 and done % self.period == 0)
