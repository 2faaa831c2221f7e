"""One module call of a chain, so that it can be made again: on another value, with the same side inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from revolve.storage.boundary import cut_tensor, map_tensors, tensors_of

from .exceptions import RecomputeError
from .samples import Arguments

__all__ = ["PartCall", "fresh_outputs", "main_inputs"]


@dataclass(frozen=True, slots=True)
class Slot:
    """Where an argument goes that the call before gave."""

    number: int


class PartCall:
    """A function of the value that the call before gave, once it is bound; without binding, an error.

    Attributes
    ----------
    name
        Path of the module.
    side
        The tensors among its arguments that come from elsewhere (masks, rotary tables, encoder states): the same
        storages, outside of any graph.
    picks
        Which of its output's tensors the next call takes; None for all of it.
    extras
        Which others it gives besides, to be measured: what leaves the chain for an auxiliary loss.
    inherited
        How many values at the end of its own are such extras of the call before, in the same stage.
    """

    __slots__ = ("extras", "forward", "inherited", "name", "picks", "side", "template")

    def __init__(self, name: str) -> None:
        self.name = name
        self.forward: Callable[..., Any] | None = None
        self.template: Arguments = ((), {})
        self.side: list[torch.Tensor] = []
        self.picks: list[int] | None = None
        self.extras: list[int] = []
        self.inherited = 0

    def bind(
        self, forward: Callable[..., Any], arguments: Arguments, linked: Mapping[int, int]
    ) -> tuple[Any, list[int]]:
        """Note how a call is made.

        Parameters
        ----------
        forward
            What is called.
        arguments
            Its arguments.
        linked
            For the tensors that the call before gave: their position in its output, by ``id``.

        Returns
        -------
        value
            The tensors that come from the call before: one, or a tuple of them.
        picks
            Their positions in its output.
        """
        values: list[torch.Tensor] = []
        picks: list[int] = []

        def place(tensor: torch.Tensor) -> Any:
            position = linked.get(id(tensor))
            if position is None:
                self.side.append(cut_tensor(tensor))
                return self.side[-1]
            if position not in picks:
                picks.append(position)
                values.append(tensor)
            return Slot(picks.index(position))

        self.forward = forward
        self.template = map_tensors(place, arguments)
        return values[0] if len(values) == 1 else tuple(values), picks

    def arguments(self, value: Any) -> Arguments:
        """Return the arguments of a call on a value."""
        values = value if isinstance(value, tuple) else (value,)
        filled: Arguments = map_tensors(lambda slot: values[slot.number], self.template, Slot)
        return filled

    def __call__(self, value: Any) -> Any:
        """Make the call; return what the next one takes of its output."""
        if self.forward is None:
            raise RecomputeError(f"the forward pass ended before {self.name!r}, in the middle of a stage")
        args, kwargs = self.arguments(value)
        output = self.forward(*args, **kwargs)
        inherited = value[len(value) - self.inherited :] if self.inherited else ()
        if self.picks is None:
            return (output, *inherited) if inherited else output
        tensors = tensors_of(output)
        given = (*(tensors[pick] for pick in (*self.picks, *self.extras)), *inherited)
        return given[0] if len(given) == 1 else given


def main_inputs(arguments: Arguments) -> dict[int, int]:
    """Return the tensors that a chain begins with, numbered by ``id``: those that require a gradient, or the first."""
    tensors = tensors_of(arguments)
    main = [tensor for tensor in tensors if tensor.requires_grad] or tensors[:1]
    return {id(tensor): number for number, tensor in enumerate(main)}


def fresh_outputs(arguments: Arguments, output: Any) -> list[tuple[int, torch.Tensor]]:
    """Return the tensors of an output with their positions, without those passed on; all if there are no others."""
    taken = {id(tensor) for tensor in tensors_of(arguments)}
    given = list(enumerate(tensors_of(output)))
    return [(number, tensor) for number, tensor in given if id(tensor) not in taken] or given
