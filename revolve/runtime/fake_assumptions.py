"""Answers that libraries look for in the values of tensors, for tensors that have none.

Some libraries take another way when they see a fake tensor, which saves other tensors than training does. Where the
answer of ordinary training is known, it is given here.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

__all__ = ["assumed_answers"]


def no_packed_sequences(position_ids: Any) -> None:
    """Return what transformers finds for position ids that count from 0 once in each row."""


# By module and function. transformers, where it sees fake position ids, makes a mask in case that sequences are packed,
# and attention with a mask saves more: repeated keys and values, and the mask.
ANSWERS: dict[tuple[str, str], Callable[..., Any]] = {
    ("transformers.masking_utils", "find_packed_sequence_indices"): no_packed_sequences,
}


@contextmanager
def assumed_answers() -> Iterator[None]:
    """Let libraries that are imported be given the answers, until the block ends."""
    with ExitStack() as stack:
        for (name, function), answer in ANSWERS.items():
            module = sys.modules.get(name)
            if module is not None and hasattr(module, function):
                stack.callback(setattr, module, function, getattr(module, function))
                setattr(module, function, answer)
        yield
