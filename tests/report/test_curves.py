import pytest

from revolve.report.curves import draw_frontier
from revolve.report.exceptions import ReportError
from revolve.schedules import Chain, compare, solve


@pytest.fixture
def frontier():
    return solve(Chain.uniform(8, forward=1e-3, backward=2e-3, output_bytes=1000, saved_bytes=3000))


@pytest.mark.parametrize(("suffix", "start"), [(".png", b"\x89PNG"), (".svg", b"<?xml"), (".pdf", b"%PDF")])
def test_the_extension_tells_the_format(frontier, tmp_path, suffix, start):
    path = tmp_path / f"curve{suffix}"
    draw_frontier(frontier, path)
    assert path.read_bytes().startswith(start)


def test_curves_name_their_points_and_strategies(frontier, tmp_path):
    rows = compare(frontier.chain, "60%")
    draw_frontier(frontier, tmp_path / "curve.svg", title="A title & more", comparisons=rows)
    text = (tmp_path / "curve.svg").read_text()
    fitting = [row.plan.strategy for row in rows if row.plan is not None]
    assert len(fitting) > 3
    for words in ("A title &amp; more", "smallest", "knee", "plain 34 kB", "budget 20.4 kB", "peak", *fitting):
        assert words in text
    assert ">plain<" not in text


def test_the_same_frontier_gives_the_same_file(frontier, tmp_path):
    draw_frontier(frontier, tmp_path / "a.pdf")
    draw_frontier(frontier, tmp_path / "b.pdf")
    assert (tmp_path / "a.pdf").read_bytes() == (tmp_path / "b.pdf").read_bytes()


@pytest.mark.parametrize("length", [1, 2, 40])
@pytest.mark.parametrize("tolerance", [0.0, 2.0])
def test_frontiers_of_any_length(tmp_path, length, tolerance):
    chain = Chain.uniform(length, saved_bytes=7)
    draw_frontier(solve(chain, tolerance=tolerance), tmp_path / "curve.png", comparisons=compare(chain, "100%"))


def test_costless_chains(tmp_path):
    chain = Chain.uniform(3, forward=0, backward=0, output_bytes=0)
    draw_frontier(solve(chain), tmp_path / "zero.png", comparisons=compare(chain, 0))


@pytest.mark.parametrize("name", ["curve.gif", "curve", "no/such/folder/curve.png"])
def test_impossible_targets(frontier, tmp_path, name):
    with pytest.raises(ReportError, match=r"curve|folder"):
        draw_frontier(frontier, tmp_path / name)
