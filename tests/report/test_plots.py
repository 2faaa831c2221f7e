import pytest

from revolve.report.exceptions import ReportError
from revolve.report.plots import draw_schedule
from revolve.schedules import Chain, Plan, RevolveError, revolve, sequential, solve


@pytest.fixture
def plan():
    chain = Chain.uniform(8, forward=1e-3, backward=2e-3, output_bytes=1000, saved_bytes=3000)
    return solve(chain).plan("20kB")


@pytest.mark.parametrize(("suffix", "start"), [(".png", b"\x89PNG"), (".svg", b"<?xml"), (".pdf", b"%PDF")])
def test_the_extension_tells_the_format(plan, tmp_path, suffix, start):
    path = tmp_path / f"plan{suffix}"
    draw_schedule(plan, path)
    assert path.read_bytes().startswith(start)


def test_pictures_say_what_they_show(plan, tmp_path):
    draw_schedule(plan, tmp_path / "plan.svg", title="A title & more")
    text = (tmp_path / "plan.svg").read_text()
    for words in ("A title &amp; more", "forward, saving", "backward", "budget 20 kB", "plain training", "memory"):
        assert words in text


def test_formats_are_named_and_hatched_where_they_are_used(plan, tmp_path):
    costs = {"stored_bytes": [1] * 4, "store_time": [0.5] * 4, "load_time": [0.5] * 4, "saved_bytes": [1] * 3}
    costs |= {name: [0] * 3 for name in ("encode_time", "decode_time", "save_extra", "backward_extra")}
    document = Chain.uniform(3, output_bytes=2).to_json() | {"loss_time": 1.0}
    document["formats"] = {"bitmap": costs, "half": costs}
    actions = [["save", 0, "bitmap"], ["store", 1, "half"], ["forward", 1], ["save", 2], ["loss"], ["backward", 2]]
    actions += [["load", 1], ["drop", 1], ["save", 1, "half"], ["backward", 1], ["backward", 0]]
    encoded = Plan.from_actions(Chain.from_json(document), actions)
    draw_schedule(encoded, tmp_path / "encoded.svg")
    draw_schedule(plan, tmp_path / "dense.svg")
    text, dense = ((tmp_path / name).read_text() for name in ("encoded.svg", "dense.svg"))
    for words in ("stored activation, half<", "saved tensors held<", "saved tensors held, bitmap<"):
        assert words in text
        assert (words in dense) == ("," not in words)
    assert "stored activation<" not in text
    assert "<pattern" in text
    assert "<pattern" not in dense


@pytest.mark.parametrize("length", [1, 2, 30, 200])
def test_chains_of_any_length(tmp_path, length):
    plan = Plan.from_actions(Chain.uniform(length), revolve(length, 4), "revolve")
    draw_schedule(plan, tmp_path / "plan.png", unit_costs=True)
    draw_schedule(plan, str(tmp_path / "plan.png"))


def test_costless_and_dropless_chains(tmp_path):
    chain = Chain.uniform(3, forward=0, backward=0, output_bytes=0)
    draw_schedule(Plan.from_actions(chain, sequential(3, 2)), tmp_path / "zero.png")
    kept = [
        ["forward", 0],
        ["store", 1],
        ["save", 1],
        ["loss"],
        ["backward", 1],
        ["load", 0],
        ["rebuild", 0],
        ["backward", 0],
    ]
    draw_schedule(Plan.from_actions(Chain.uniform(2), kept), tmp_path / "kept.png")


@pytest.mark.parametrize("name", ["plan.gif", "plan", "no/such/folder/plan.png", "folder.png"])
def test_impossible_targets(plan, tmp_path, name):
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(ReportError, match=r"plan|folder"):
        draw_schedule(plan, tmp_path / name)
    assert issubclass(ReportError, RevolveError)


def test_endless_schedules_are_refused(tmp_path):
    plan = Plan.from_actions(Chain.uniform(30_000), sequential(30_000, 1))
    with pytest.raises(ReportError, match="60001 actions cannot be drawn"):
        draw_schedule(plan, tmp_path / "plan.png")
