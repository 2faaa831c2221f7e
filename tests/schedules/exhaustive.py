"""The slow, obvious twin of the solver: least makespan over all schedules of a tiny chain.

A best-first search over everything a schedule can hold, with its own account of bytes. Three facts keep
it small without losing the optimum:

- Storing the dense cursor costs neither time nor bytes while it is the cursor, so every activation is
  stored as soon as it is produced. Then the cursor need not be part of a state: any activation at hand
  can be loaded for nothing. Only next to its own copy in another format a dense activation is just the
  cursor, gone when the cursor moves unless it takes the place of that copy.
- Dropping is free and takes no time, so it can wait until some action does not fit otherwise.
- What cannot lead to a stage that is still to be saved, or to the loss, is dropped at once; not so a copy
  that the last such stage would have to make if it is saved in that format.

A state is ``(at_hand, saved, front)``: for each activation one of the codes below (from ``COPIES`` on,
even: stored in a format; odd: also the dense cursor), for each stage ``ABSENT``, ``DENSE`` or, if saved in a
format, ``COPIES`` and its number, and the stages still to reverse, where L + 1 means that the loss, as
stage L, is among them.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator

from revolve.schedules import Chain

ABSENT, DENSE, COPIES = 0, 1, 2
RETIRED_OUTPUT = 2  # x_L was produced; its cursor is gone, the caller still holds it
State = tuple[tuple[int, ...], tuple[int, ...], int]
Step = tuple[State, int, list[list]]  # next state, nanoseconds, actions
PeakedStep = tuple[int, State, int, list[list]]


def least_makespan(chain: Chain, budget: int, below: float = math.inf) -> tuple[int, list[list]] | None:
    """Return nanoseconds and actions of the fastest schedule within ``budget`` bytes, None if there is none.

    Schedules that take ``below`` nanoseconds or more are not searched.
    """
    search = Search(chain, budget)
    start: State = ((ABSENT,) * (len(chain) + 1), (ABSENT,) * len(chain), len(chain) + 1)
    best, parents = {start: 0}, {start: None}
    heap, closed = [(search.least_remaining(start), 0, start)], set()
    while heap:
        _, negative_time, state = heapq.heappop(heap)
        if state in closed:
            continue
        closed.add(state)
        if state[2] == 0:
            return -negative_time, spell(parents, state)
        for following, cost, actions in search.expand(state):
            time = cost - negative_time
            if time < best.get(following, math.inf):
                least = time + search.least_remaining(following)
                if least < below:
                    best[following], parents[following] = time, (state, actions)
                    heapq.heappush(heap, (least, -time, following))
    return None


class Search:
    """Steps between states of one chain that fit in a budget."""

    def __init__(self, chain: Chain, budget: int) -> None:
        self.chain, self.budget, self.length = chain, budget, len(chain)
        self.stages, self.formats = chain.stages, list(chain.formats)
        self.costs = [chain.formats[name] for name in self.formats]
        self.x = [0, *(stage.output_bytes for stage in self.stages)]  # x_0 is the caller's
        self.gradient = [chain.input_bytes if chain.input_grad else 0, *self.x[1:], 0]
        self.held_by: dict[State, int] = {}
        self.modes = {COPIES + f: name for f, name in enumerate(self.formats) if chain.formats[name].saves}
        self.loss_time = nanoseconds(chain.loss_time)
        self.forward = [nanoseconds(stage.forward) for stage in self.stages]
        self.rebuild = [nanoseconds(stage.rebuild) for stage in self.stages]
        self.backward = [nanoseconds(stage.backward) for stage in self.stages]
        self.names = {DENSE: "dense", **self.modes}
        every = [(i, code) for i in range(self.length) for code in self.names]
        self.kept = {(i, code): self.retained(i, code) for i, code in every}
        self.mode = {(i, code): chain.save_mode(self.names[code], i) for i, code in every}
        self.size = {(j, DENSE): size for j, size in enumerate(self.x)}
        self.size |= {(j, COPIES + f): size for f, c in enumerate(self.costs) for j, size in enumerate(c.stored_bytes)}
        self.left = [sum(stage.grad_bytes for stage in self.stages[front:]) for front in range(self.length + 2)]
        self.hands: dict[tuple[int, ...], frozenset] = {}
        self.keeps: dict[tuple[int, ...], frozenset] = {}
        self.store_time = [[nanoseconds(time) for time in costs.store_time] for costs in self.costs]

    def retained(self, i: int, code: int) -> set[tuple[int, int]]:
        """Return what a saved stage keeps of its input and output: activations, dense or the code of a format."""
        stage = self.stages[i]
        kept = ([i] if stage.saves_input else []) + ([i + 1] if stage.saves_output else [])
        if code == DENSE:
            return {(j, DENSE) for j in kept}
        stored = self.costs[code - COPIES].stored_bytes
        return {(j, code if 0 < j < self.length and stored[j] < self.x[j] else DENSE) for j in kept}

    def at_hand_as(self, at_hand: tuple[int, ...]) -> frozenset[tuple[int, int]]:
        """Return the activations at hand, dense or the code of a format."""
        if at_hand not in self.hands:
            found = {(j, DENSE) for j, code in enumerate(at_hand) if code % 2 or (code and j == self.length)}
            found |= {(j, self.form(code)) for j, code in enumerate(at_hand[:-1]) if code >= COPIES}
            self.hands[at_hand] = frozenset(found)
        return self.hands[at_hand]

    def retained_by(self, saved: tuple[int, ...]) -> frozenset[tuple[int, int]]:
        """Return the activations that saved stages keep, dense or the code of a format."""
        if saved not in self.keeps:
            kept = (self.kept[i, code] for i, code in enumerate(saved) if code)
            self.keeps[saved] = frozenset().union(*kept)
        return self.keeps[saved]

    def held(self, state: State) -> int:
        """Return the bytes a state holds, each storage once."""
        if state not in self.held_by:
            at_hand, saved, front = state
            total = self.gradient[front] + self.left[front]
            total += sum(self.mode[i, code].saved_bytes for i, code in enumerate(saved) if code)
            total += sum(self.size[form] for form in self.at_hand_as(at_hand) | self.retained_by(saved))
            self.held_by[state] = total
        return self.held_by[state]

    def making(self, before: State, after: State) -> int:
        """Return the nanoseconds that making the forms takes which only the second state holds."""
        old, new = (self.at_hand_as(at_hand) | self.retained_by(saved) for at_hand, saved, _ in (before, after))
        return sum(self.store_time[code - COPIES][j] for j, code in new - old if code >= COPIES)

    def least_remaining(self, state: State) -> int:
        """Return a time that no schedule from here can beat; no step lowers it by more than the step takes.

        An activation that is needed and not at hand takes one more run of the stage before it, which may as
        well save that stage; so downwards from the front.
        """
        at_hand, saved, front = state
        before_loss = front > self.length
        total = self.loss_time if before_loss else 0
        output_needed = before_loss and at_hand[self.length] != DENSE
        for i in range(min(front, self.length) - 1, -1, -1):
            unsaved = not saved[i]
            total += self.backward[i]
            if output_needed:
                total += self.forward[i]
            elif unsaved:
                total += self.rebuild[i]
            output_needed = (output_needed or unsaved) and not at_hand[i]
        return total

    def expand(self, state: State) -> Iterator[Step]:
        """Yield every step worth taking: those that fit, and drops if some step does not."""
        all_fit = True
        for peak, following, cost, actions in self.steps(state):
            if peak > self.budget:
                all_fit = False
                continue
            kept = self.discard_useless(following)
            yield kept, cost, actions + drops(following, kept)
        if not all_fit:
            for kept in self.with_one_less(state):
                yield kept, 0, drops(state, kept)

    def steps(self, state: State) -> Iterator[PeakedStep]:
        """Yield peak, next state, nanoseconds and actions of all steps but drops."""
        at_hand, saved, front = state
        length = self.length
        if front > length and at_hand[length] == DENSE:
            following = (replaced(at_hand, length, RETIRED_OUTPUT), saved, length)
            peak = self.held(following) + self.chain.loss_extra
            yield peak, following, nanoseconds(self.chain.loss_time), [["loss"]]
        moved = tuple(without_cursor(code, j == length) for j, code in enumerate(at_hand))
        if front <= length and saved[front - 1]:
            mode = self.mode[front - 1, saved[front - 1]]
            following = (moved, replaced(saved, front - 1, ABSENT), front - 1)
            peak = self.held((moved, saved, front)) + mode.backward_extra
            if front > 1:  # whatever comes next starts from what this one leaves
                peak = max(peak, self.held(following))
            time = self.backward[front - 1] + nanoseconds(mode.decode_time)
            yield peak, following, time, [["backward", front - 1]]
        for i in range(min(front, length)):
            if i == 0 or at_hand[i] % 2:
                yield from self.runs(i, moved, state)
                if i:
                    yield from self.copyings(i, moved, state)
            elif at_hand[i]:
                following = (replaced(moved, i, at_hand[i] + 1), saved, front)
                time = nanoseconds(self.costs[(at_hand[i] - COPIES) // 2].load_time[i])
                yield self.held(following), following, time, [["load", i]]

    def runs(self, i: int, moved: tuple[int, ...], state: State) -> Iterator[PeakedStep]:
        """Yield the ways to run stage i, whose input is at hand."""
        at_hand, saved, front = state
        stage = self.stages[i]
        source = replaced(moved, i, at_hand[i]) if i else moved  # x_i is there until the run is over
        output = DENSE if i + 1 == self.length else moved[i + 1] | DENSE
        arrived = replaced(moved, i + 1, output)
        both = replaced(source, i + 1, output)
        keep = [["store", i + 1, "dense"]] if moved[i + 1] == ABSENT and i + 1 < self.length else []
        if arrived != moved:
            peak = self.held((both, saved, front)) + stage.forward_extra - stage.passed_bytes
            yield peak, (arrived, saved, front), nanoseconds(stage.forward), [["forward", i], *keep]
        if saved[i]:
            return
        for code, name in self.names.items():
            mode, saving = self.mode[i, code], replaced(saved, i, code)
            peak = self.held((both, saving, front)) + mode.save_extra
            following = (arrived, saving, front)
            time = self.forward[i]
            if code != DENSE:
                time += nanoseconds(mode.encode_time) + self.making(state, following)
            yield peak, following, time, [["save", i, name], *keep]
        saving = replaced(saved, i, DENSE)
        peak = self.held((source, saving, front)) + stage.rebuild_extra
        yield peak, (moved, saving, front), nanoseconds(stage.rebuild), [["rebuild", i]]

    def copyings(self, i: int, moved: tuple[int, ...], state: State) -> Iterator[PeakedStep]:
        """Yield the ways to hold x_i, which is dense at hand, in another format than now."""
        at_hand, saved, front = state
        release = [["drop", i]] if at_hand[i] > COPIES else [["load", i], ["drop", i]]
        if at_hand[i] > COPIES:
            yield self.held(state), (replaced(at_hand, i, DENSE), saved, front), 0, [*release, ["store", i, "dense"]]
        for f, name in enumerate(self.formats):
            code = COPIES + 2 * f + 1
            if at_hand[i] != code:
                following = (replaced(moved, i, code), saved, front)
                dropped = (replaced(moved, i, DENSE), saved, front)
                time = self.making(dropped, following)
                yield self.held(following), following, time, [*release, ["store", i, name]]

    def with_one_less(self, state: State) -> Iterator[State]:
        """Yield the states with one thing less at hand."""
        at_hand, saved, front = state
        for j in range(1, self.length):
            if at_hand[j] >= COPIES and at_hand[j] % 2:
                yield replaced(at_hand, j, at_hand[j] - 1), saved, front
            elif at_hand[j]:
                yield replaced(at_hand, j, ABSENT), saved, front

    def discard_useless(self, state: State) -> State:
        """Return the state without what leads neither to an unsaved stage nor to the loss."""
        at_hand, saved, front = state
        needed = max((k for k in range(front) if not (*saved, ABSENT)[k]), default=-1)
        kept = tuple(
            code if j <= needed or j == self.length or (j == needed + 1 and self.form(code) in self.modes) else ABSENT
            for j, code in enumerate(at_hand)
        )
        return kept, saved, front

    @staticmethod
    def form(code: int) -> int:
        """Return the code of the format that an activation is stored in, ABSENT for none."""
        return COPIES + (code - COPIES) // 2 if code >= COPIES else ABSENT


def replaced(codes: tuple[int, ...], index: int, code: int) -> tuple[int, ...]:
    """Return the codes with one changed."""
    return (*codes[:index], code, *codes[index + 1 :])


def without_cursor(code: int, is_output: bool) -> int:
    """Return the code of an activation once the cursor moved elsewhere."""
    if is_output:
        return RETIRED_OUTPUT if code else ABSENT
    return code - 1 if code > COPIES and code % 2 else code


def drops(before: State, after: State) -> list[list]:
    """Return the actions that free what ``before`` has at hand and ``after`` has not."""
    actions: list[list] = []
    for j, (old, new) in enumerate(zip(before[0][:-1], after[0][:-1], strict=True)):
        if old != new:
            actions += [["leave", j]] if new else [["leave", j], ["drop", j]]
    return actions


def spell(parents: dict, state: State) -> list[list]:
    """Return the actions that led to a state, with the free loads that move the cursor."""
    steps = []
    while parents[state]:
        state, actions = parents[state]
        steps.append(actions)
    spelled: list[list] = []
    cursor: int | None = 0
    for kind, *arguments in (action for actions in reversed(steps) for action in actions):
        i = arguments[0] if arguments else -1
        if kind == "leave":  # not an action: only makes sure that x_i is not the cursor
            if cursor == i:
                spelled.append(["load", 0])
                cursor = 0
            continue
        if kind in ("forward", "save", "rebuild") and cursor != i:
            spelled.append(["load", i])
        spelled.append([kind, *arguments])
        if kind in ("forward", "save", "load"):
            cursor = i if kind == "load" else i + 1
        elif kind in ("rebuild", "backward", "loss"):
            cursor = None
    return spelled


def nanoseconds(seconds: float) -> int:
    """Return whole nanoseconds."""
    return round(seconds * 1e9)
