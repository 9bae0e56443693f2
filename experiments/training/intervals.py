"""When the trainer stops to report, validate or save."""

from collections.abc import Container
from dataclasses import dataclass


@dataclass(frozen=True)
class StepInterval(Container):
    """The batch numbers at which a period ends, and the last batch of the run.

    Determined's trainer asks whether the batch that it just counted is contained. After a resume
    without a cluster it counts from 0 again: `offset` is what was trained before.
    """

    period: int  # batches; 0 is never
    offset: int
    last: int

    def __contains__(self, batch: object) -> bool:
        if not isinstance(batch, int):
            return False
        done = batch + self.offset
        return done == self.last or (self.period > 0 and done % self.period == 0)
