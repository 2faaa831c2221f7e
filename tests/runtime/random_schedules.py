"""Random valid schedules: any actions that the simulator's state allows, not only those of optimal plans."""

from __future__ import annotations

from random import Random
from typing import Any

from revolve import Action, Backward, Chain, Drop, Forward, Load, Loss, Plan, Rebuild, Save, Store
from revolve.schedules.simulator import State


class Writer:
    """Appends actions to a schedule, each judged when it is written."""

    def __init__(self, chain: Chain, random: Random) -> None:
        self.state = State(chain)
        self.random = random
        self.formats = ["dense", *chain.formats]
        self.actions: list[Action] = []

    def write(self, action: Action) -> None:
        self.state.perform(action)
        self.actions.append(action)

    def format(self) -> str:
        """Return one of the chain's formats."""
        return self.random.choice(self.formats)

    def possible(self) -> list[Action]:
        """Return what may be done after the loss, but for backward."""
        state = self.state
        actions: list[Action] = [Load(0), *map(Load, state.stored), *map(Drop, state.stored)]
        cursor = state.cursor
        if cursor is not None and cursor < state.front:
            actions.append(Forward(cursor))
            if cursor not in state.saved:
                actions += [Save(cursor, self.format()), Rebuild(cursor)]
        if cursor is not None and 0 < cursor < state.length and cursor not in state.stored:
            actions.append(Store(cursor, self.format()))
        return actions

    def reverse(self) -> None:
        """Reverse the next stage, whatever is at hand."""
        stage = self.state.front - 1
        if stage not in self.state.saved:
            nearest = max([0, *(index for index in self.state.stored if index <= stage)])
            self.write(Load(nearest))
            for index in range(nearest, stage):
                self.write(Forward(index))
            self.write(Rebuild(stage))
        self.write(Backward(stage))


def random_plan(chain: Chain, random: Random) -> Plan:
    """Return a plan with a random first sweep and random detours between the backwards."""
    writer = Writer(chain, random)
    state = writer.state
    for index in range(len(chain)):
        if index and random.random() < 0.3:
            writer.write(Store(index, writer.format()))
        writer.write(Save(index, writer.format()) if random.random() < 0.3 else Forward(index))
        if state.stored and random.random() < 0.1:
            writer.write(Drop(random.choice(list(state.stored))))
    writer.write(Loss())
    while state.front:
        for _ in range(random.randrange(4)):
            writer.write(random.choice(writer.possible()))
        if state.front - 1 in state.saved or random.random() < 0.7:
            writer.reverse()
    return Plan.from_actions(chain, writer.actions)


def describe(plan: Plan) -> list[Any]:
    """Return the actions for a failure report."""
    return [action.to_json() for action in plan.actions]
