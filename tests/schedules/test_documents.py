"""Chain and plan files: defaults, round trips, and errors that name what is wrong."""

from __future__ import annotations

import json
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from random_chains import random_chain

from revolve.schedules import Chain, ChainError, Plan, RevolveError, ScheduleError, Stage, solve

chains = st.builds(
    lambda seed, length, formats, modes: random_chain(random.Random(seed), length, formats=formats, modes=modes),
    st.integers(0, 2**32),
    st.integers(1, 6),
    st.integers(0, 2),
    st.booleans(),
)


def smallest_chain() -> dict:
    stage = {"forward": 2.0, "backward": 3.0, "output_bytes": 5, "saved_bytes": 7}
    return {"format": "revolve.chain/1", "input_bytes": 11, "stages": [stage, {**stage, "grad_bytes": 13}]}


def chain_with_format(**changes) -> dict:
    costs = {"stored_bytes": [1, 1, 1], "store_time": [0.5] * 3, "load_time": [0.5] * 3}
    return {**smallest_chain(), "formats": {"bitmap": {**costs, **changes}}}


SAVE_MODES = {
    "saved_bytes": [3, 4],
    "encode_time": [0.25, 0.5],
    "decode_time": [0.75, 1.0],
    "save_extra": [5, 6],
    "backward_extra": [7, 8],
}


def small_plan(**changes) -> dict:
    plan = solve(Chain.uniform(3, saved_bytes=3)).plan(9)
    return {**json.loads(json.dumps(plan.to_json())), **changes}


def test_defaults_of_a_chain():
    chain = Chain.from_json(smallest_chain())
    first, second = chain.stages
    defaults = {"rebuild": 2.0, "saves_input": True, "saves_output": False, "forward_extra": 0, "save_extra": 0}
    assert first == Stage("0", 2.0, backward=3.0, output_bytes=5, saved_bytes=7, backward_extra=11, **defaults)
    assert second.backward_extra == 5 + 13
    assert (first.rebuild_extra, first.grad_bytes, second.grad_bytes) == (0, 0, 13)
    assert (chain.input_bytes, chain.input_grad, chain.loss_time, chain.loss_extra) == (11, False, 0.0, 0)
    assert dict(chain.formats) == {}
    assert [chain.activation_bytes(j) for j in range(3)] == [11, 5, 5]
    assert [chain.gradient_bytes(j) for j in range(3)] == [0, 5, 5]
    assert chain.plain_makespan == 10.0


@given(chains)
def test_chains_survive_json(chain):
    assert Chain.from_json(json.loads(json.dumps(chain.to_json()))) == chain


def test_save_modes_are_all_there_or_none():
    with_modes, without_modes = (Chain.from_json(chain_with_format(**modes)) for modes in (SAVE_MODES, {}))
    costs = with_modes.formats["bitmap"]
    assert costs.saves
    assert costs.save_mode(1) == (4, 0.5, 1.0, 6, 8) == with_modes.save_mode("bitmap", 1)
    assert with_modes.save_mode("dense", 1) == (7, 0.0, 0.0, 0, 18)
    assert costs.to_json().items() >= SAVE_MODES.items()
    assert not without_modes.formats["bitmap"].saves
    assert without_modes.formats["bitmap"].to_json().keys() == {"stored_bytes", "store_time", "load_time"}


@pytest.mark.parametrize(("stored", "encoded"), [(4, True), (5, False), (0, True)])
def test_what_a_saved_stage_keeps_encoded(stored, encoded):
    chain = Chain.from_json(chain_with_format(stored_bytes=[0, stored, 0], **SAVE_MODES))
    assert [chain.encoded("bitmap", j) for j in range(3)] == [False, encoded, False]
    assert not any(chain.encoded("dense", j) for j in range(3))


def test_chains_survive_a_file(tmp_path):
    chain = Chain.from_json(
        {**chain_with_format(), "name": "résumé", "input_grad": True, "loss_time": 0.1, "loss_extra": 3}
    )
    chain.save(tmp_path / "chain.json")
    assert Chain.load(tmp_path / "chain.json") == chain
    assert Chain.load(str(tmp_path / "chain.json")).name == "résumé"


def in_stage(**changes) -> dict:
    document = smallest_chain()
    document["stages"][1].update(changes)
    return document


def without(document: dict, field: str) -> dict:
    return {name: value for name, value in document.items() if name != field}


def without_in_stage(field: str) -> dict:
    document = smallest_chain()
    del document["stages"][1][field]
    return document


BAD_CHAINS = {
    "no object": ([], "is a JSON object, not list"),
    "no format": (without(smallest_chain(), "format"), "field 'format' is missing; it must be 'revolve.chain/1'"),
    "another format": (small_plan(), "'format' is 'revolve.plan/1'; expected 'revolve.chain/1'"),
    "no input_bytes": (without(smallest_chain(), "input_bytes"), "'input_bytes' is missing"),
    "no stages": (without(smallest_chain(), "stages"), "'stages' is missing"),
    "empty": ({**smallest_chain(), "stages": []}, "at least one stage"),
    "stages no list": ({**smallest_chain(), "stages": "ab"}, "stages is 'ab'"),
    "stage no object": ({**smallest_chain(), "stages": [3]}, "stage 0 is 3; it must be an object"),
    "unknown field": ({**smallest_chain(), "inputs": 3}, "unknown field 'inputs'"),
    "unknown stage field": (in_stage(forwards=3), "stage 1: unknown field 'forwards'"),
    "named stage": (in_stage(name="conv", forward=-1.0), r"stage 1 \(conv\): forward is -1.0"),
    "no forward": (without_in_stage("forward"), "stage 1: field 'forward' is missing"),
    "no saved_bytes": (without_in_stage("saved_bytes"), "stage 1: field 'saved_bytes' is missing"),
    "NaN time": (in_stage(backward=float("nan")), "stage 1: backward is nan; .*finite"),
    "infinite time": (in_stage(backward=float("inf")), "stage 1: backward is inf; .*finite"),
    "endless time": (in_stage(backward=1e12), "stage 1: backward is 1000000000000.0; more than 1e"),
    "NaN bytes": (in_stage(saved_bytes=float("nan")), "stage 1: saved_bytes is nan"),
    "negative bytes": (in_stage(saved_bytes=-1), "stage 1: saved_bytes is -1; .*not negative"),
    "half a byte": (in_stage(saved_bytes=1.5), "stage 1: saved_bytes is 1.5; it must be a whole number"),
    "too many bytes": ({**smallest_chain(), "input_bytes": 2**60}, "input_bytes is .* cannot be planned"),
    "endless bytes": ({**smallest_chain(), "input_bytes": 10**400}, "input_bytes is 1000.*finite"),
    "bytes in words": (in_stage(output_bytes="5"), "stage 1: output_bytes is '5'; it must be a whole number"),
    "null": (in_stage(grad_bytes=None), "stage 1: grad_bytes is None"),
    "flag as number": (in_stage(saves_input=1), "stage 1: saves_input is 1; it must be true or false"),
    "number as flag": (in_stage(forward=True), "stage 1: forward is True; it must be a number"),
    "name": (in_stage(name=3), "name is 3; it must be a string"),
    "rebuild": (in_stage(rebuild=2.5), "stage 1: rebuild 2.5 is more than forward 2.0"),
    "input_grad": ({**smallest_chain(), "input_grad": "no"}, "input_grad is 'no'; it must be true or false"),
    "formats": ({**smallest_chain(), "formats": []}, "formats must be an object"),
    "dense": ({**smallest_chain(), "formats": {"dense": {}}}, "other than 'dense'"),
    "format no object": ({**smallest_chain(), "formats": {"bitmap": 3}}, "format 'bitmap': it must be an object"),
    "format too short": (chain_with_format(store_time=[1.0]), "format 'bitmap': store_time must list 3 values"),
    "format negative": (chain_with_format(stored_bytes=[1, -1, 1]), "format 'bitmap': stored_bytes is -1"),
    "format field": (chain_with_format(speed=[1, 1, 1]), "format 'bitmap': it must .* the fields .*'speed' is unknown"),
    "format lacks": (chain_with_format(save_extra=[1, 1]), "it must .* stages may be saved .*'saved_bytes' is missing"),
    **{
        f"no {name}": (chain_with_format(**without(SAVE_MODES, name)), f"'bitmap': it must .*'{name}' is missing")
        for name in SAVE_MODES
    },
    **{
        f"{name} of activations": (
            chain_with_format(**{**SAVE_MODES, name: [1, 1, 1]}),
            f"format 'bitmap': {name} must list 2 values, one for each of the stages 0 .. 1",
        )
        for name in SAVE_MODES
    },
    "negative encode_time": (
        chain_with_format(**{**SAVE_MODES, "encode_time": [1.0, -1.0]}),
        "format 'bitmap': encode_time is -1.0; it must be a number of seconds",
    ),
    "half a saved byte": (
        chain_with_format(**{**SAVE_MODES, "saved_bytes": [1, 0.5]}),
        "format 'bitmap': saved_bytes is 0.5; it must be a whole number of bytes",
    ),
}


@pytest.mark.parametrize("case", BAD_CHAINS)
def test_bad_chains(case):
    document, reason = BAD_CHAINS[case]
    with pytest.raises(ChainError, match=reason) as caught:
        Chain.from_json(document)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("length", [0, -1, 2.0, "3", True])
def test_impossible_uniform_chains(length):
    with pytest.raises(ChainError, match="length must be an int of 1 or more"):
        Chain.uniform(length)


def test_uniform_chain():
    chain = Chain.uniform(3, forward=2.0, backward=5.0, output_bytes=7, saved_bytes=11, grad_bytes=13)
    assert len(chain) == 3
    assert chain.input_bytes == 7
    assert {(s.forward, s.rebuild, s.backward, s.output_bytes, s.saved_bytes) for s in chain.stages} == {
        (2, 2, 5, 7, 11)
    }
    assert {s.backward_extra for s in chain.stages} == {20}


@given(chains, st.floats(0, 1))
def test_plans_survive_json(chain, share):
    frontier = solve(chain, formats=tuple(chain.formats))
    plan = frontier.plan(int(frontier.smallest + share * (int(frontier.peaks[-1]) - frontier.smallest)))
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


def test_plans_survive_a_file(tmp_path):
    plan = Plan.from_json(small_plan())
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan


def test_what_a_plan_tells():
    actions = [
        ["forward", 0],
        ["store", 1, "dense"],
        ["forward", 1],
        ["save", 2],
        ["loss"],
        ["backward", 2],
        ["load", 1],
    ]
    actions += [["drop", 1], ["rebuild", 1], ["backward", 1], ["load", 0], ["rebuild", 0], ["backward", 0]]
    plan = Plan.from_actions(Chain.uniform(3), actions)
    assert (plan.strategy, plan.budget, plan.tolerance) == ("custom", None, 0.0)
    assert (plan.makespan, plan.plain_makespan, plan.ratio) == (8.0, 6.0, 8 / 6)
    assert (plan.peak, plan.plain_peak) == (plan.simulation.peak, 5)
    assert not plan.plain
    assert plan.counts() == Counter(forward=2, save=1, rebuild=2, backward=3, store=1, load=2, drop=1, loss=1)
    assert plan.stage_counts()[1] == Counter(forward=1, rebuild=1, backward=1, store=1)
    assert plan.formats() == ("dense",)


BAD_PLANS = {
    "another format": ({"format": "revolve.chain/1"}, "expected 'revolve.plan/1'"),
    "peak changed": ({"peak": 3}, "peak is 3, but its actions give 8"),
    "makespan changed": ({"makespan": 1.0}, "makespan is 1.0, but its actions give"),
    "makespan NaN": ({"makespan": float("nan")}, "makespan is nan, but its actions give"),
    "plain_peak changed": ({"plain_peak": 1}, "plain_peak is 1, but"),
    "plain_makespan changed": ({"plain_makespan": 1}, "plain_makespan is 1, but"),
    "chain changed": ({"chain": Chain.uniform(3, saved_bytes=4).to_json()}, "but its actions give"),
    "chain of another length": ({"chain": Chain.uniform(4).to_json()}, "is not possible|ends too early"),
    "bad chain": ({"chain": {**Chain.uniform(3).to_json(), "input_bytes": -1}}, "input_bytes is -1"),
    "actions no list": ({"actions": "save"}, "actions is 'save'; it must be a list of actions"),
    "no action": ({"actions": [["jump", 3]]}, r"\['jump', 3\] at position 0 is no action"),
    "actions cut off": ({"actions": small_plan()["actions"][:-1]}, "ends too early"),
    "unknown field": ({"speed": 3}, "unknown field 'speed'"),
    "strategy": ({"strategy": 3}, "strategy is 3; it must be a string"),
    "budget": ({"budget": "300MB"}, "budget is '300MB'; it must be a whole number of bytes"),
    "negative budget": ({"budget": -1}, "budget is -1; it must be"),
    "budget below the peak": ({"budget": 0}, "budget is 0, but its actions need"),
    "tolerance": ({"tolerance": "1%"}, "tolerance is '1%'; it must be a number"),
    "tolerance NaN": ({"tolerance": float("nan")}, "tolerance is nan; it must be a number"),
}


@pytest.mark.parametrize("case", BAD_PLANS)
def test_bad_plans(case, tmp_path):
    changes, reason = BAD_PLANS[case]
    with pytest.raises((ChainError, ScheduleError), match=reason) as caught:
        Plan.from_json(small_plan(**changes))
    assert "\n" not in str(caught.value)
    file = tmp_path / "plan.json"
    file.write_text(json.dumps(small_plan(**changes)))
    with pytest.raises(ChainError, match=reason) as caught:
        Plan.load(file)
    assert str(caught.value).startswith(f"{file}: ")


@pytest.mark.parametrize("field", sorted(small_plan()))
def test_plans_miss_no_field(field):
    with pytest.raises(ChainError, match=f"'{field}' is (missing|None)"):
        Plan.from_json(without(small_plan(), field))


@pytest.mark.parametrize("kind", [Chain, Plan])
@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]", b"[" * 100_000, None])
def test_unreadable_files(kind, content, tmp_path):
    file = tmp_path / "document.json"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(RevolveError) as caught:
        kind.load(file)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)
