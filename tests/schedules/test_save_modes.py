"""The judge on stages saved in a format: every byte and second by hand, and forms that have several holders."""

from __future__ import annotations

import pytest

from revolve.schedules import Chain, Plan, ScheduleError, simulate
from revolve.schedules.actions import read_actions
from revolve.schedules.simulator import State

# A size of its own for everything: sums tell what is in them. Gradients have the size of their activation.
F1, F2 = 1 << 3, 1 << 4  # the forms of x_1 and x_2
SAVED = (1 << 6, 1 << 7, 1 << 8)
MODE_SAVED = (1 << 9, 1 << 10, 1 << 11)
MODE_SAVE = (1 << 12, 1 << 13, 1 << 14)
MODE_BACKWARD = (1 << 15, 1 << 16, 1 << 17)
X1, X2, X3 = 1 << 18, 1 << 19, 1 << 20


def network(*flags: tuple[str, ...], sizes=(X1, X2, X3), modes=True) -> Chain:
    """Return three stages whose input and output are saved as ``flags`` say, with one format."""
    stages = [
        {
            "forward": 2.0**i,
            "backward": 10.0 * 2**i,
            "output_bytes": sizes[i],
            "saved_bytes": SAVED[i],
            "saves_input": "in" in flags[i],
            "saves_output": "out" in flags[i],
            "backward_extra": 0,
        }
        for i in range(3)
    ]
    costs = {"stored_bytes": [0, F1, F2, 0], "store_time": [0, 100.0, 200.0, 0], "load_time": [0, 1e3, 2e3, 0]}
    if modes:
        costs |= {"saved_bytes": MODE_SAVED, "save_extra": MODE_SAVE, "backward_extra": MODE_BACKWARD}
        costs |= {"encode_time": [0.25, 0.5, 0.75], "decode_time": [0.125, 0.375, 0.625]}
    document = {"format": "revolve.chain/1", "input_bytes": 1 << 21, "stages": stages, "formats": {"bitmap": costs}}
    return Chain.from_json(document)


NOTHING, IN, OUT = (), ("in",), ("out",)
ENCODED = [["save", i, "bitmap"] for i in range(3)]
CASES = {
    "nothing of input and output": (
        (NOTHING, NOTHING, NOTHING), [["forward", 0]], ["save", 1, "bitmap"],
        X1 + X2 + MODE_SAVED[1] + MODE_SAVE[1], X2 + MODE_SAVED[1], 2 + 0.5,
    ),
    "input as form": (
        (NOTHING, IN, NOTHING), [["forward", 0]], ["save", 1, "bitmap"],
        X1 + X2 + F1 + MODE_SAVED[1] + MODE_SAVE[1], X2 + F1 + MODE_SAVED[1], 2 + 0.5 + 100,
    ),
    "output as form": (
        (NOTHING, OUT, NOTHING), [["forward", 0]], ["save", 1, "bitmap"],
        X1 + X2 + F2 + MODE_SAVED[1] + MODE_SAVE[1], X2 + F2 + MODE_SAVED[1], 2 + 0.5 + 200,
    ),
    "x_0 is the caller's": (
        (IN, NOTHING, NOTHING), [], ["save", 0, "bitmap"],
        X1 + MODE_SAVED[0] + MODE_SAVE[0], X1 + MODE_SAVED[0], 1 + 0.25,
    ),
    "the output stays dense": (
        (NOTHING, NOTHING, OUT), [["forward", 0], ["forward", 1]], ["save", 2, "bitmap"],
        X2 + X3 + MODE_SAVED[2] + MODE_SAVE[2], X3 + MODE_SAVED[2], 4 + 0.75,
    ),
    "a form is counted and made once": (
        (OUT, IN, NOTHING), [["save", 0, "bitmap"]], ["save", 1, "bitmap"],
        X1 + X2 + F1 + sum(MODE_SAVED[:2]) + MODE_SAVE[1], X2 + F1 + sum(MODE_SAVED[:2]), 2 + 0.5,
    ),
    "a form beside the dense output": (
        (OUT, IN, NOTHING), [["save", 0]], ["save", 1, "bitmap"],
        X1 + X2 + F1 + SAVED[0] + MODE_SAVED[1] + MODE_SAVE[1], X1 + X2 + F1 + SAVED[0] + MODE_SAVED[1], 2 + 0.5 + 100,
    ),
    "storing what a stage holds": (
        (OUT, NOTHING, NOTHING), [["save", 0, "bitmap"]], ["store", 1, "bitmap"],
        X1 + F1 + MODE_SAVED[0], X1 + F1 + MODE_SAVED[0], 0,
    ),
    "saving what is stored": (
        (NOTHING, IN, NOTHING), [["forward", 0], ["store", 1, "bitmap"]], ["save", 1, "bitmap"],
        X1 + X2 + F1 + MODE_SAVED[1] + MODE_SAVE[1], X2 + F1 + MODE_SAVED[1], 2 + 0.5,
    ),
    "dropping what a stage holds": (
        (NOTHING, IN, NOTHING), [["forward", 0], ["store", 1, "bitmap"], ["save", 1, "bitmap"]], ["drop", 1],
        X2 + F1 + MODE_SAVED[1], X2 + F1 + MODE_SAVED[1], 0,
    ),
    "loading beside a stage that holds the form": (
        (OUT, NOTHING, NOTHING), [["save", 0, "bitmap"], ["store", 1, "bitmap"], ["load", 0]], ["load", 1],
        X1 + F1 + MODE_SAVED[0], X1 + F1 + MODE_SAVED[0], 1000,
    ),
    "backward": (
        (NOTHING, IN, NOTHING), [["forward", 0], ["save", 1, "bitmap"], ["save", 2], ["loss"], ["backward", 2]],
        ["backward", 1],
        X3 + X2 + F1 + MODE_SAVED[1] + MODE_BACKWARD[1], X3 + X1, 20 + 0.375,
    ),
    "backward leaves the form to the stage before": (
        (OUT, IN, NOTHING), [*ENCODED[:2], ["save", 2], ["loss"], ["backward", 2]], ["backward", 1],
        X3 + X2 + F1 + sum(MODE_SAVED[:2]) + MODE_BACKWARD[1], X3 + X1 + F1 + MODE_SAVED[0], 20 + 0.375,
    ),
    "last backward": (
        (OUT, IN, NOTHING), [*ENCODED, ["loss"], ["backward", 2], ["backward", 1]], ["backward", 0],
        X3 + X1 + F1 + MODE_SAVED[0] + MODE_BACKWARD[0], X3, 10 + 0.125,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_bytes_and_time_of_an_action(case):
    flags, before, last, peak, held, time = CASES[case]
    state = State(network(*flags))
    found = [state.perform(action) for action in read_actions([*before, last])][-1]
    assert (found, state.held) == ((round(time * 1e9), peak), held)


def test_a_form_that_is_no_smaller_is_not_made():
    # x_1 takes what its form would: stage 0 keeps it dense, and a stored form beside it is a second one.
    state = State(network(OUT, IN, NOTHING, sizes=(F1, X2, X3)))
    for action in read_actions([["save", 0, "bitmap"], ["store", 1, "bitmap"], ["save", 1, "bitmap"]]):
        state.perform(action)
    assert state.held == 2 * F1 + X2 + sum(MODE_SAVED[:2])


def test_a_relu_and_a_convolution_share_a_bitmap():
    # conv, relu, conv: the relu saves its output, the second convolution its input, which is the same tensor of 64
    # bytes, 10 as a bitmap. It is encoded once (1 s) and counted once, from the relu's save to its backward.
    stages = [
        {"forward": 4.0, "backward": 8.0, "output_bytes": 64, "saved_bytes": 0, "backward_extra": 0},
        {"forward": 1.0, "backward": 1.0, "output_bytes": 64, "saved_bytes": 0, "backward_extra": 0,
         "saves_input": False, "saves_output": True},
        {"forward": 4.0, "backward": 8.0, "output_bytes": 16, "saved_bytes": 0, "backward_extra": 0},
    ]  # fmt: skip
    costs = {"stored_bytes": [32, 32, 10, 8], "store_time": [1.0] * 4, "load_time": [1.0] * 4, "saved_bytes": [0] * 3}
    costs |= {"encode_time": [0.0] * 3, "decode_time": [0.0, 0.5, 0.5], "save_extra": [0] * 3}
    costs |= {"backward_extra": [32, 64, 64]}  # where the dense tensor is decoded
    document = {"format": "revolve.chain/1", "input_bytes": 32, "stages": stages, "formats": {"bitmap": costs}}
    actions = [["save", 0], ["save", 1, "bitmap"], ["save", 2, "bitmap"], ["loss"]]
    plan = Plan.from_actions(Chain.from_json(document), [*actions, *(["backward", i] for i in (2, 1, 0))])
    assert [entry.held for entry in plan.simulation.timeline] == [
        64,  # x_1
        64 + 10,  # x_2, its bitmap
        10 + 16,  # the bitmap, x_3
        10 + 2 * 16,
        10 + 16 + 64,  # and the gradient of x_2
        16 + 64,
        16,
    ]
    peaks = [64, 64 + 64 + 10, 64 + 10 + 16, 10 + 32, 10 + 32 + 64, 10 + 16 + 64 + 64, 16 + 64]
    assert [entry.peak for entry in plan.simulation.timeline] == peaks
    assert plan.makespan == plan.plain_makespan + 1.0 + 2 * 0.5
    assert plan.plain_peak == 64 + 16 + 64  # x_2, x_3 and the gradient of x_2
    assert (plan.formats(), plan.plain) == (("bitmap",), False)
    assert plan.stage_counts()[1] == {"save": 1, "backward": 1}
    assert Plan.from_json(plan.to_json()) == plan
    assert plan.to_json()["actions"][:2] == [["save", 0], ["save", 1, "bitmap"]]


@pytest.mark.parametrize(
    ("actions", "modes", "reason"),
    [
        (
            [["save", 0, "zip"]],
            True,
            r"action \['save', 0, 'zip'\] at position 0 .* stages can be saved in dense, bitmap$",
        ),
        ([["save", 0, "bitmap"]], False, r"stages can be saved in dense$"),
        ([["save", 0, "bitmap"], ["load", 0], ["save", 0]], True, "stage 0 is saved already"),
        ([["save", 0, "bitmap"], ["load", 0], ["rebuild", 0]], True, "stage 0 is saved already"),
        ([["save", 0, "bitmap"], ["load", 1]], True, "x_1 is not stored"),
        ([["save", 1, "bitmap"]], True, "the cursor is x_0, not x_1"),
    ],
)
def test_what_cannot_be_saved(actions, modes, reason):
    with pytest.raises(ScheduleError, match=reason):
        simulate(network(OUT, IN, NOTHING, modes=modes), actions)
