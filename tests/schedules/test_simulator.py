"""The judge: every byte of every action by hand, and every error."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from revolve.schedules import Backward, Chain, Forward, Load, Loss, Save, ScheduleError, Store, simulate
from revolve.schedules.actions import Action

# Every size is a power of two of its own, so that a sum tells what is in it. Gradients have the size of
# their activation: 2 * X1 is x_1 together with its gradient.
X1, X2, X0 = 1, 4, 1 << 20
SAVED = (1 << 4, 1 << 5)
FORWARD = (1 << 6, 1 << 7)
SAVE = (1 << 8, 1 << 9)
REBUILD = (1 << 10, 1 << 11)
BACKWARD = (1 << 12, 1 << 13)
GRADS = (1 << 14, 1 << 15)
LOSS, BITMAP = 1 << 16, 1 << 17

FIRST_HALF = [["forward", 0], ["save", 1], ["loss"]]


def two_stages(*, saves_input=False, saves_output=False, input_grad=False) -> Chain:
    sizes = zip((X1, X2), SAVED, FORWARD, SAVE, REBUILD, BACKWARD, GRADS, strict=True)
    extras = ("forward_extra", "save_extra", "rebuild_extra", "backward_extra")
    names = ("output_bytes", "saved_bytes", *extras, "grad_bytes")
    flags = {"saves_input": saves_input, "saves_output": saves_output}
    times = ({"forward": 3.0, "rebuild": 2.0, "backward": 5.0}, {"forward": 7.0, "rebuild": 4.0, "backward": 11.0})
    return Chain.from_json(
        {
            "format": "revolve.chain/1",
            "input_bytes": X0,
            "input_grad": input_grad,
            "loss_time": 13.0,
            "loss_extra": LOSS,
            "stages": [
                {**time, **flags, **dict(zip(names, size, strict=True))}
                for time, size in zip(times, sizes, strict=True)
            ],
            "formats": {
                "bitmap": {"stored_bytes": [0, BITMAP, 0], "store_time": [0, 17.0, 0], "load_time": [0, 19.0, 0]}
            },
        }
    )


GOLDEN = {
    "forward": ({}, [], ["forward", 0], X1 + FORWARD[0], X1, 3),
    "second forward": ({}, [["forward", 0]], ["forward", 1], X1 + X2 + FORWARD[1], X2, 7),
    "save": ({}, [], ["save", 0], X1 + SAVED[0] + SAVE[0], X1 + SAVED[0], 3),
    "save, input kept": (
        {"saves_input": True}, [["forward", 0]], ["save", 1], X1 + X2 + SAVED[1] + SAVE[1], X1 + X2 + SAVED[1], 7,
    ),
    "save, x_0 kept": ({"saves_input": True}, [], ["save", 0], X1 + SAVED[0] + SAVE[0], X1 + SAVED[0], 3),
    "save, output kept by two": (
        {"saves_input": True, "saves_output": True}, [["save", 0]], ["save", 1],
        X1 + X2 + sum(SAVED) + SAVE[1], X1 + X2 + sum(SAVED), 7,
    ),
    "output kept after cursor moved": (
        {"saves_output": True}, [["save", 0]], ["load", 0], X1 + SAVED[0], X1 + SAVED[0], 0,
    ),
    "rebuild": ({}, [["forward", 0]], ["rebuild", 1], X1 + SAVED[1] + REBUILD[1], SAVED[1], 4),
    "rebuild, input kept": (
        {"saves_input": True}, [["forward", 0]], ["rebuild", 1], X1 + SAVED[1] + REBUILD[1], X1 + SAVED[1], 4,
    ),
    "rebuild, output kept": ({"saves_output": True}, [], ["rebuild", 0], X1 + SAVED[0] + REBUILD[0], X1 + SAVED[0], 2),
    "store": ({}, [["forward", 0]], ["store", 1, "dense"], X1, X1, 0),
    "store in a format": ({}, [["forward", 0]], ["store", 1, "bitmap"], X1 + BITMAP, X1 + BITMAP, 17),
    "stored and moved on": (
        {}, [["forward", 0], ["store", 1, "dense"]], ["forward", 1], X1 + X2 + FORWARD[1], X1 + X2, 7,
    ),
    "stored in a format and moved on": (
        {}, [["forward", 0], ["store", 1, "bitmap"]], ["forward", 1], X1 + X2 + BITMAP + FORWARD[1], BITMAP + X2, 7,
    ),
    "load": ({}, [["forward", 0], ["store", 1, "dense"], ["load", 0]], ["load", 1], X1, X1, 0),
    "load from a format": (
        {}, [["forward", 0], ["store", 1, "bitmap"], ["load", 0]], ["load", 1], X1 + BITMAP, X1 + BITMAP, 19,
    ),
    "load x_0 frees the cursor": ({}, [["forward", 0]], ["load", 0], 0, 0, 0),
    "drop": ({}, [["forward", 0], ["store", 1, "dense"], ["load", 0]], ["drop", 1], X1, 0, 0),
    "drop what is the cursor": ({}, [["forward", 0], ["store", 1, "dense"]], ["drop", 1], X1, X1, 0),
    "drop a format": ({}, [["forward", 0], ["store", 1, "bitmap"]], ["drop", 1], X1 + BITMAP, X1, 0),
    "loss": ({}, FIRST_HALF[:2], ["loss"], 2 * X2 + SAVED[1] + LOSS, 2 * X2 + SAVED[1], 13),
    "backward": (
        {}, FIRST_HALF, ["backward", 1], 2 * X2 + SAVED[1] + BACKWARD[1], X2 + X1 + GRADS[1], 11,
    ),
    "backward, input kept": (
        {"saves_input": True}, FIRST_HALF, ["backward", 1],
        X1 + 2 * X2 + SAVED[1] + BACKWARD[1], X2 + X1 + GRADS[1], 11,
    ),
    "backward clears the cursor": (
        {}, [*FIRST_HALF, ["load", 0], ["forward", 0]], ["backward", 1],
        2 * X2 + SAVED[1] + BACKWARD[1], X2 + X1 + GRADS[1], 11,
    ),
    "last backward": (
        {}, [*FIRST_HALF, ["backward", 1], ["load", 0], ["rebuild", 0]], ["backward", 0],
        X1 + X2 + GRADS[1] + SAVED[0] + BACKWARD[0], X2 + sum(GRADS), 5,
    ),
    "last backward, gradient of x_0": (
        {"input_grad": True}, [*FIRST_HALF, ["backward", 1], ["load", 0], ["rebuild", 0]], ["backward", 0],
        X1 + X2 + GRADS[1] + SAVED[0] + BACKWARD[0], X0 + X2 + sum(GRADS), 5,
    ),
    "the output stays with the caller": ({}, [["forward", 0], ["forward", 1]], ["load", 0], X2, X2, 0),
    "the output is held once": (
        {}, [["forward", 0], ["store", 1, "dense"], ["forward", 1], ["load", 1]], ["forward", 1],
        X1 + X2 + FORWARD[1], X1 + X2, 7,
    ),
    "forward past a saved stage": (
        {}, [["save", 0], ["load", 0]], ["forward", 0], SAVED[0] + X1 + FORWARD[0], SAVED[0] + X1, 3,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", GOLDEN)
def test_bytes_and_time_of_an_action(case):
    flags, before, action, peak, held, time = GOLDEN[case]
    last = last_entry(two_stages(**flags), [*before, action])
    assert (last.peak, last.held, last.end - last.start) == (peak, held, time)


def last_entry(chain: Chain, actions: list):
    """Return the timeline's entry of the last of ``actions``, whose schedule is completed somehow."""
    turned = ["loss"] in actions
    rest = [] if turned else [["load", 0], ["forward", 0], ["forward", 1], ["loss"]]
    if not turned and ["save", 1] in actions:
        rest = [["loss"]]
    for index in (1, 0):
        if ["backward", index] not in actions:
            saved = [["save", index], ["rebuild", index]]
            if not any(way in actions for way in saved):
                rest += [["load", 0], *([["forward", 0]] if index else []), ["rebuild", index]]
            rest.append(["backward", index])
    return simulate(chain, [*actions, *rest]).timeline[len(actions) - 1]


def test_a_whole_schedule():
    found = simulate(two_stages(), [*FIRST_HALF, ["backward", 1], ["load", 0], ["rebuild", 0], ["backward", 0]])
    assert found.makespan == 3 + 7 + 13 + 11 + 0 + 2 + 5
    assert found.peak == max(entry.peak for entry in found.timeline) == 2 * X2 + SAVED[1] + LOSS
    assert [entry.action for entry in found.timeline[:3]] == [Forward(0), Save(1), Loss()]
    assert all(a.end == b.start for a, b in zip(found.timeline, found.timeline[1:], strict=False))


def test_lists_and_objects_are_the_same():
    lists = [
        ["save", 0],
        ["store", 1],
        ["load", 1],
        ["save", 1],
        ["drop", 1],
        ["loss"],
        ["backward", 1],
        ["backward", 0],
    ]
    objects = [Action.from_json(entry) for entry in lists]
    assert objects[1] == Store(1, "dense")
    assert simulate(two_stages(), lists) == simulate(two_stages(), iter(objects))


@pytest.mark.parametrize(
    ("actions", "position", "reason"),
    [
        ([["forward", 1]], 0, "the cursor is x_0, not x_1"),
        ([["rebuild", 0], ["save", 0]], 1, "the cursor is empty, not x_0"),
        ([["save", 0], ["load", 0], ["save", 0]], 2, "stage 0 is saved already"),
        ([["save", 0], ["load", 0], ["rebuild", 0]], 2, "stage 0 is saved already"),
        (
            [*FIRST_HALF, ["backward", 1], ["load", 0], ["forward", 0], ["save", 1]],
            6,
            "the cursor is x_1|reversed already",
        ),
        ([["store", 0, "dense"]], 0, "x_0 and the output belong to the caller"),
        ([["forward", 0], ["forward", 1], ["store", 2, "dense"]], 2, "x_0 and the output belong to the caller"),
        ([["forward", 0], ["store", 1, "zip"]], 1, "the chain's formats are dense, bitmap"),
        ([["forward", 0], ["store", 1, "dense"], ["store", 1, "bitmap"]], 2, "x_1 is stored already"),
        ([["forward", 0], ["load", 0], ["store", 1, "dense"]], 2, "the cursor is x_0, not x_1"),
        ([["load", 1]], 0, "x_1 is not stored"),
        ([["drop", 1]], 0, "x_1 is not stored"),
        ([["load", 3]], 0, r"there are stages 0\.\.1"),
        ([["forward", 2]], 0, r"there are stages 0\.\.1"),
        ([["backward", -1]], 0, r"there are stages 0\.\.1"),
        ([["loss"]], 0, "the cursor is x_0, not the output"),
        ([*FIRST_HALF, ["loss"]], 3, "it runs once"),
        ([["save", 0], ["backward", 0]], 1, "the loss has not run"),
        ([*FIRST_HALF, ["backward", 0]], 3, "the next stage to reverse is 1"),
        ([*FIRST_HALF, ["backward", 1], ["backward", 0]], 4, "stage 0 is not saved"),
        ([*FIRST_HALF, ["backward", 1], ["backward", 1]], 4, "the next stage to reverse is 0"),
    ],
)
def test_errors_name_action_and_position(actions, position, reason):
    with pytest.raises(ScheduleError, match=reason) as caught:
        simulate(two_stages(), actions)
    offender = Action.from_json(actions[position])
    assert (caught.value.action, caught.value.position) == (offender, position)
    assert str(caught.value).startswith(f"action {offender.to_json()} at position {position} is not possible: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("actions", "reason"),
    [
        ([], "the loss is missing"),
        ([["save", 0]], "the loss is missing"),
        (FIRST_HALF, r"stages 1\.\.0 are not reversed"),
    ],
)
def test_a_schedule_must_reverse_every_stage(actions, reason):
    with pytest.raises(ScheduleError, match=reason) as caught:
        simulate(two_stages(), actions)
    assert caught.value.position is None


@pytest.mark.parametrize(
    "entry",
    [["jump", 0], ["forward"], ["forward", 0, 1], ["forward", "0"], ["forward", 0.0], ["forward", True], ["loss", 0],
     ["store", 1, 2], [], "loss", None, 3, [["forward"], 0], {"kind": "loss"}],
)  # fmt: skip
def test_what_is_no_action(entry):
    with pytest.raises(ScheduleError, match="at position 1 is no action; write a list such as") as caught:
        simulate(two_stages(), [["forward", 0], entry])
    assert repr(entry) in str(caught.value)
    assert caught.value.position == 1


def test_saves_name_their_format_unless_it_is_dense():
    assert Action.from_json(["save", 3]) == Action.from_json(["save", 3, "dense"]) == Save(3) == Save(3, "dense")
    assert Action.from_json(["save", 3, "bitmap"]) == Save(3, "bitmap") != Save(3)
    assert [Save(3).to_json(), Save(3, "bitmap").to_json()] == [["save", 3], ["save", 3, "bitmap"]]


@given(st.sampled_from([Forward, Load, Save, Backward]), st.integers(0, 10**6))
def test_actions_are_values(kind, index):
    action = kind(index)
    assert Action.from_json(action.to_json()) == action
    assert len({action, kind(index), kind(index + 1)}) == 2
    assert action != Store(index)
