"""The exhaustive search itself: by hand, and against a plain enumeration that the judge steps through."""

from __future__ import annotations

import heapq
import random
from collections import Counter
from copy import copy
from itertools import count

import pytest
from exhaustive import least_makespan
from random_chains import random_chain

from revolve.schedules import Backward, Chain, Drop, Forward, Load, Loss, Rebuild, Save, Store, solve
from revolve.schedules.simulator import State


@pytest.mark.parametrize(
    ("budget", "time"),
    [(13, 8), (12, 9), (10, 9), (9, 10), (8, None)],
    ids=["plain", "less than plain", "one forward again", "two forwards again", "nothing fits"],
)
def test_search_on_a_chain_solved_by_hand(budget, time):
    # Three stages of 1 + 1 s and a loss of 2 s; activations of 2 bytes, saved tensors of 3 and of nothing else. Plain
    # training peaks when the last stage is saved, its input at hand: 3 x 3 + 2 x 2.
    chain = Chain.uniform(3, output_bytes=2, saved_bytes=3, saves_input=False, backward_extra=0)
    document = {**chain.to_json(), "loss_time": 2.0}
    found = least_makespan(Chain.from_json(document), budget)
    assert (found and found[0] / 1e9) == time


def enumerate_everything(chain: Chain, budget: int) -> int | None:
    """Return the least nanoseconds by trying every action in every state, in order of time."""
    order = count()
    heap = [(0, 0, State(chain))]
    seen = set()
    while heap:
        time, _, state = heapq.heappop(heap)
        if state.turned and state.front == 0:
            return time
        key = describe(state)
        if key in seen:
            continue
        seen.add(key)
        for action in possible(state):
            following = copy(state)
            following.stored, following.saved = dict(state.stored), dict(state.saved)
            following.holders = Counter(state.holders)
            cost, peak = following.perform(action)
            if peak <= budget:
                heapq.heappush(heap, (time + cost, next(order) + 1, following))
    return None


def describe(state: State) -> tuple:
    """Return what distinguishes a state from others."""
    stored, produced = frozenset(state.stored.items()), state.holders[state.length, "dense"] > 0
    return state.cursor, stored, frozenset(state.saved.items()), produced, state.turned, state.front


def possible(state: State) -> list:
    """Return every action whose precondition holds."""
    cursor, length = state.cursor, state.length
    actions = [Load(0), *map(Load, state.stored), *map(Drop, state.stored)]
    if cursor is not None and 0 < cursor < length and cursor not in state.stored:
        actions += [Store(cursor, name) for name in ("dense", *state.chain.formats)]
    if cursor is not None and cursor < min(state.front, length):
        actions.append(Forward(cursor))
        if cursor not in state.saved:
            modes = ["dense", *(name for name, costs in state.chain.formats.items() if costs.saves)]
            actions += [*(Save(cursor, name) for name in modes), Rebuild(cursor)]
    if cursor == length and not state.turned:
        actions.append(Loss())
    if state.turned and state.front - 1 in state.saved:
        actions.append(Backward(state.front - 1))
    return actions


@pytest.mark.parametrize("modes", [False, True])
@pytest.mark.parametrize("seed", range(12))
def test_search_finds_what_plain_enumeration_finds(seed, modes):
    rng = random.Random(seed)
    length = rng.choice((1, 2, 2, 3) if modes else (1, 2, 2, 3, 3))
    chain = random_chain(rng, length, formats=1 + seed % 2 if modes else None, modes=modes, consistent=seed % 2 == 0)
    frontier = solve(chain, formats=tuple(chain.formats))
    low, high = frontier.smallest, int(frontier.peaks[-1])
    for budget in {low // 2, low - 1, low, rng.randint(low, high), rng.randint(low, high), high}:
        found = least_makespan(chain, budget)
        assert (found and found[0]) == enumerate_everything(chain, budget)
