"""Peaks of training steps, as the allocator sees them."""

from __future__ import annotations

import torch

from revolve.runtime.allocations import trace_allocations


class Peaks:
    """Peaks of steps in bytes over the level before each; the first, which plans, is left out, and so are late ones."""

    def __init__(self):
        self.steps = 0
        self.values = []
        self.context = None

    def begin(self):
        self.steps += 1
        if 1 < self.steps <= 4:
            self.context = trace_allocations(torch.device("cpu"))
            self.tracer = self.context.__enter__()

    def end(self):
        if self.context is not None:
            self.tracer.mark()
            self.context.__exit__(None, None, None)
            self.context = None
            self.values.append(self.tracer.phases[0].peak)
