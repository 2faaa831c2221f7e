import json

import pytest

from revolve.schedules import count_forwards, count_slots, revolve, sequential


def test_json_holds_the_schedule(invoke):
    document = json.loads(invoke("steps", 40, "--slots", 4, "--json").stdout)
    assert document["format"] == "revolve.steps/1"
    assert (document["strategy"], document["length"], document["slots"]) == ("revolve", 40, 4)
    assert document["extra_forwards"] == count_forwards(40, 4)
    assert document["actions"] == [action.to_json() for action in revolve(40, 4)]


@pytest.mark.parametrize(("length", "segments", "balanced"), [(9, 5, False), (9, 5, True), (7, 1, False), (4, 4, True)])
def test_segments(invoke, length, segments, balanced):
    flags = ["--balanced"] if balanced else []
    document = json.loads(invoke("steps", length, "--segments", segments, *flags, "--json").stdout)
    actions = [action.to_json() for action in sequential(length, segments, balanced=balanced)]
    assert document["actions"] == actions
    assert document["forwards"] == sum(kind in ("forward", "save", "rebuild") for kind, *_ in actions)


def test_json_is_streamed_in_batches(invoke, monkeypatch):
    monkeypatch.setattr("revolve.cli.stepping.BATCH", 7)
    document = json.loads(invoke("steps", 20, "--slots", 3, "--json").stdout)
    assert document["actions"] == [action.to_json() for action in revolve(20, 3)]


def test_short_schedules_are_written_out(invoke):
    output = invoke("steps", 6, "--slots", 2).stdout
    assert "forward 0..2; store 3; forward 3..4; save 5; loss; backward 5" in " ".join(output.split())
    assert all(len(line) <= 100 for line in output.splitlines())


@pytest.mark.parametrize(("length", "slots"), [(1, 1), (2, 2), (5, 3), (5, 5), (5, 9), (40, 4)])
def test_the_number_of_stored_activations(invoke, length, slots):
    stored = count_slots(revolve(length, slots)) - 1
    assert f"at most {stored} activations at a time" in invoke("steps", length, "--slots", slots).stdout


def test_long_schedules_are_summarised_at_once(invoke):
    output = invoke("steps", 10**30, "--slots", 50).stdout
    assert "--json" in output
    assert f"{count_forwards(10**30, 50)} beyond" in output


def test_picture(invoke, tmp_path):
    out = tmp_path / "steps.svg"
    document = json.loads(invoke("steps", 12, "--slots", 3, "--json", "--out", out).stdout)
    assert document["length"] == 12
    assert b"<svg" in out.read_bytes()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["5"], "--slots"),
        (["5", "--slots", "2", "--segments", "2"], "--segments"),
        (["0", "--slots", "2"], "length=0"),
        (["5", "--slots", "0"], "slots=0"),
        (["5", "--segments", "6"], "segments=6"),
        (["5", "--slots", "2", "--balanced"], "--balanced"),
        (["five", "--slots", "2"], "LENGTH"),
        (["5", "--slots", "2", "--out", "steps.gif"], ".gif"),
        (["100000", "--slots", "2", "--out", "steps.png"], "cannot be drawn"),
        (["5", "--sluts", "2"], "--sluts"),
    ],
)
def test_bad_input(invoke, arguments, words):
    assert words in invoke.fail("steps", *arguments)
