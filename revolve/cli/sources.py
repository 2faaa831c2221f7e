"""What a command plans: a chain file, or a model that is measured."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from revolve.schedules import Chain

from .demo_models import DEMO_MODELS
from .exceptions import CommandError
from .training import Subject, check_measuring, measure_chain, prepare

__all__ = ["Source"]


@dataclass(frozen=True, slots=True)
class Source:
    """What was typed on the command line.

    Attributes
    ----------
    spec
        Path of a chain file, ``package.module:callable``, or the name of a demo model; a file wins.
    shape, dtype, seed
        How to make a model's batch.
    save_chain
        Where to write a measured chain.
    formats
        Storage formats to measure a model with.
    """

    spec: str
    shape: str | None
    dtype: str
    seed: int
    save_chain: Path | None
    formats: list[str] | None

    @property
    def is_model(self) -> bool:
        """Whether a model has to be measured."""
        return not Path(self.spec).is_file() and (":" in self.spec or self.spec in DEMO_MODELS)

    def check(self) -> None:
        """Check what can be checked before the model is imported or the file is read.

        Raises
        ------
        CommandError, ReportError
            If there is nothing of that name, or an option does not go with it.
        """
        if self.is_model:
            check_measuring(self.spec, self.shape, self.save_chain)
            return
        if not Path(self.spec).is_file():
            known = ", ".join(DEMO_MODELS)
            raise CommandError(
                f"{self.spec!r} is no file; write a chain file, package.module:callable, "
                f"or one of the demo models {known}"
            )
        for option, value in (("--input", self.shape), ("--save-chain", self.save_chain)):
            if value is not None:
                raise CommandError(f"{option} is for a model, but {self.spec!r} is a chain file; leave it out")

    def load(self) -> tuple[Chain, Subject | None]:
        """Return the chain, and the model where one was measured."""
        if not self.is_model:
            return Chain.load(self.spec), None
        subject = prepare(self.spec, self.shape, self.dtype, self.seed)
        return measure_chain(subject, self.save_chain, self.formats), subject
