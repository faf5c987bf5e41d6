"""The baselines of `benchmarks/communication.py`: what they average, send, keep, and how they are judged."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from federations import arms, baselines, comparison, searches
from federations.codec import LEVELS, decode, encode, feed_back
from federations.judge import Judgement, packed, unpacked, with_statistics
from federations.networks import FloatNet, MultiPathNet, path_choices
from federations.regime import QUICK, Place, Regime, generator, place_data
from hypothesis import given, settings
from hypothesis import strategies as st

from faqs.config import parse_config
from faqs.data import load_dataset
from faqs.ledger import Ledger
from hwcost import SKIP, BlockChoice, SearchSpace

ROOT = Path(__file__).resolve().parent.parent
SPACE = QUICK.space((1, 8, 8), 10)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return place_data("digits", QUICK, 0, tmp_path_factory.mktemp("data"))


def task(place: Place, arm: str) -> baselines.Task:
    return baselines.Task(arm, QUICK, 0, place, SPACE, () if arm == "B" else QUICK.fixed(SPACE))


def test_averaging_is_the_mean_of_the_clients_weighted_by_their_images(place: Place) -> None:
    server = baselines.Server(task(place, "A"))
    state = server.start()
    first = {name: value.copy() for name, value in state.weights.items()}
    server.run_round(state)
    shares = [place.client(QUICK, 0, client).train for client in range(QUICK.clients)]
    samples = [len(share.labels) for share in shares]
    assert len(set(samples)) > 1
    expected = {name: np.zeros(value.shape) for name, value in first.items()}
    for client, share in enumerate(shares):
        network = task(place, "A").network()
        baselines.load(network, first)
        baselines.train_locally(network, share, QUICK, 0, generator(0, client, 0))
        for name, value in baselines.travelling(network).items():
            expected[name] += samples[client] / sum(samples) * value
    for name, value in expected.items():
        np.testing.assert_allclose(state.weights[name], value, rtol=1e-4, atol=1e-6)
    assert any(np.abs(state.weights[name] - first[name]).max() > 1e-3 for name in first)


def test_momentum_carries_the_last_step_of_the_weights_and_not_of_statistics(place: Place) -> None:
    plain, heavy = (baselines.Server(task(place, arm)) for arm in ("A", "AM"))
    straight, state = plain.start(), heavy.start()
    first = {name: value.copy() for name, value in state.weights.items()}
    plain.run_round(straight)
    heavy.run_round(state)
    after = {name: value.copy() for name, value in state.weights.items()}
    for name, value in after.items():  # the first step has no step before it
        np.testing.assert_allclose(value, straight.weights[name], rtol=1e-5, atol=1e-7)
    same = baselines.Server(task(place, "A"))
    straight = same.start()
    straight.weights, straight.curve = dict(after), list(state.curve)
    same.run_round(straight)  # the same second round without momentum
    heavy.run_round(state)
    for name, value in state.weights.items():
        carried = 0 if "running_" in name else baselines.MOMENTUM * (after[name] - first[name])
        np.testing.assert_allclose(value, straight.weights[name] + carried, rtol=1e-4, atol=1e-6)


def test_every_byte_of_a_round_is_in_the_ledger(place: Place) -> None:
    for arm, width in (("A", 4), ("B", 4)):
        server = baselines.Server(task(place, arm))
        state = server.start()
        server.run_round(state)
        numbers = sum(value.size for value in state.weights.values())
        totals = state.ledger.totals()
        assert totals["messages_up"] == totals["messages_down"] == QUICK.clients
        for way in ("up", "down"):
            assert totals[f"payload_{way}"] == width * numbers * QUICK.clients
            assert totals[f"payload_{way}"] < totals[f"flower_{way}"] < totals[f"wire_{way}"]
        assert state.curve[0]["wire"] == totals["wire_up"] + totals["wire_down"]


def test_alphas_are_trained_sent_and_averaged(place: Place) -> None:
    server = baselines.Server(task(place, "B"))
    state = server.start()
    names = [name for name in state.weights if name.endswith(".alphas")]
    assert len(names) == len(SPACE.blocks) and not any(state.weights[name].any() for name in names)
    server.run_round(state)
    assert all(state.weights[name].any() for name in names)


def test_quantised_differences_reach_the_server_and_the_clients_alike(place: Place) -> None:
    server, one = baselines.Server(task(place, "A2")), task(place, "A2")
    state = server.start()
    for _ in range(2):
        server.run_round(state)
    first = baselines.travelling(one.network())
    for client in range(QUICK.clients):
        held = server._grid.state_of(server._grid.get_node_ids()[client])
        reference, residual = baselines._known(one, held, first)
        assert all(np.array_equal(reference[name], state.known[name]) for name in first)
        assert any(value.any() for value in residual.values())
    # What the clients were told lies within half a step of what the server had when it told them.
    told = {name: value - first[name] for name, value in state.known.items()}
    assert any(value.any() for value in told.values())


@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.floats(1e-6, 1e3))
@settings(max_examples=50, deadline=None)
def test_what_rounding_leaves_out_is_sent_later(seed: int, rounds: int, size: float) -> None:
    draw = np.random.default_rng(seed)
    shapes = {"weight": (3, 4), "bias": (5,), "empty": (0,), "still": (2,)}
    residual = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    said = {name: np.zeros(shape) for name, shape in shapes.items()}
    wished = {name: np.zeros(shape) for name, shape in shapes.items()}
    for _ in range(rounds):
        wanted = dict(residual)
        for name, shape in shapes.items():
            difference = (size * draw.standard_normal(shape)).astype(np.float32) * (name != "still")
            wished[name] += difference
            wanted[name] = residual[name] + difference
        blob, residual = feed_back(wanted)
        for name, value in decode(blob, wanted).items():
            said[name] += value
            largest = np.abs(wanted[name]).max(initial=0)
            assert np.abs(residual[name]).max(initial=0) <= 0.501 * largest / LEVELS
    for name in shapes:
        np.testing.assert_allclose(said[name], wished[name] - residual[name], rtol=1e-4, atol=1e-4 * size)


@pytest.mark.parametrize("damage", [lambda blob: b"", lambda blob: blob[:-1], lambda blob: b"x" + blob])
def test_a_damaged_blob_is_refused(damage: "pytest.FixtureRequest") -> None:
    like = {"weight": np.ones((3, 4), np.float32)}
    with pytest.raises(ValueError, match="blob"):
        decode(damage(encode(like)), like)  # type: ignore[operator]
    with pytest.raises(ValueError, match="blob"):
        decode(encode(like), {"weight": np.ones((4, 4), np.float32)})


def test_a_killed_federation_goes_on_to_the_same_bytes(place: Place, tmp_path: Path) -> None:
    for arm in ("A2", "AM", "B"):
        one = task(place, arm)
        whole, server = baselines.Server(one), baselines.Server(one)
        straight = whole.start()
        whole.run_round(straight)
        whole.run_round(straight)
        broken = server.start()
        server.run_round(broken)
        kept = broken.to_bytes(one)
        again = baselines.Server(one)
        resumed = baselines.State.from_bytes(kept, one, tmp_path)
        again.go_on(resumed)
        again.run_round(resumed)
        for state in (straight, resumed):
            state.seconds, state.cpu_seconds = [], []
        assert resumed.to_bytes(one) == straight.to_bytes(one)
    with pytest.raises(ValueError, match="another regime"):
        baselines.State.from_bytes(kept, task(place, "A"), tmp_path)


def test_the_derived_network_is_the_path_with_the_largest_alpha() -> None:
    space = SearchSpace((1, 8, 8), 10, 8, QUICK.space((1, 8, 8), 10).stages)
    torch.manual_seed(0)
    network = MultiPathNet(space).eval()
    with torch.no_grad():
        for block, alphas in enumerate(network.alphas()):
            alphas.fill_(-100.0)
            alphas[block % len(alphas)] = 100.0
    images = torch.rand(4, 1, 8, 8)
    derived = network.derived().eval()
    expected = tuple(choices[block % len(choices)] for block, choices in enumerate(network.choices))
    assert derived.architecture == expected
    torch.testing.assert_close(derived(images), network(images))
    assert SKIP not in path_choices(space, space.blocks[1]) and SKIP in path_choices(space, space.blocks[2])


def test_widths_and_skips_of_a_plain_network() -> None:
    architecture = (BlockChoice(5, 3, 2), BlockChoice(3, 6, 8), SKIP)
    network = FloatNet(SPACE, architecture)
    assert list(network.blocks) == ["0", "1"]
    assert network(torch.rand(2, 1, 8, 8)).shape == (2, 10)


def test_statistics_are_those_of_the_images_given(place: Place) -> None:
    network = FloatNet(SPACE, QUICK.fixed(SPACE))
    before = copy.deepcopy(network.state_dict())
    images = place.everyone(QUICK, 0)
    judged = with_statistics(network, images)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    stem = network.stem[0](torch.from_numpy(images))
    torch.testing.assert_close(
        judged.state_dict()["stem.1.running_mean"], stem.mean(dim=(0, 2, 3)), rtol=0.05, atol=0.02
    )


@given(st.lists(st.booleans(), min_size=1, max_size=40))
def test_hits_survive_packing(values: list[bool]) -> None:
    hits = np.array(values)
    assert np.array_equal(unpacked(packed(hits)), hits)


def test_intervals_are_of_paired_differences() -> None:
    draw = np.random.default_rng(1)
    hard = draw.random((5, 2000))
    first, second = hard < 0.70, hard < 0.68  # the same images are hard for both
    found = comparison.crossed_interval(first.astype(float) - second)
    assert 0 < found["low"] < found["mean"] < found["high"] < 0.035
    nested = comparison.nested_interval([a.astype(float) - b for a, b in zip(first, second, strict=True)])
    assert 0 < nested["low"] < nested["mean"] < nested["high"] < 0.035
    unpaired = first.astype(float) - second[:, ::-1]
    wide = comparison.crossed_interval(unpaired)
    assert wide["high"] - wide["low"] > 2 * (found["high"] - found["low"])


def test_a_result_of_another_regime_is_refused(tmp_path: Path) -> None:
    document = {"version": arms.RESULT_VERSION, "regime": Regime().to_json()}
    (tmp_path / "A-0.json").write_text(json.dumps(document))
    assert arms.read_result(tmp_path, "A", 0, Regime()) == json.loads(json.dumps(document))
    assert arms.read_result(tmp_path, "A", 1, Regime()) is None
    with pytest.raises(ValueError, match=r"rounds 30, not 31.*remove it"):
        arms.read_result(tmp_path, "A", 0, Regime(rounds=31))


def test_every_ablation_is_the_search_with_something_else(tmp_path: Path) -> None:
    standard = searches.search_options("C2", QUICK)
    seen = [standard]
    for arm in arms.ABLATIONS:
        found = searches.search_options(arms.check_arm(arm), QUICK)
        assert found not in seen
        seen.append(found)
        parse_config({**found, "profiles": ["rpi4"]}, arm)
    (tmp_path / "C2-norms-0.json").write_text(
        json.dumps({"version": arms.RESULT_VERSION, "regime": QUICK.to_json(), "options": standard})
    )
    with pytest.raises(ValueError, match=r"training .*remove it"):
        comparison.read_results(tmp_path, QUICK)
    with pytest.raises(ValueError, match=r"an arm is one of .*C2-norms.*, got 'norms'"):
        arms.check_arm("norms")


def test_the_regime_survives_json() -> None:
    for regime in (Regime(), QUICK):
        assert Regime.from_json(json.loads(json.dumps(regime.to_json()))) == regime


def test_only_one_process_works_on_an_arm(tmp_path: Path) -> None:
    with arms.alone(tmp_path / "lock") as first, arms.alone(tmp_path / "lock") as second:
        assert first and not second
    with arms.alone(tmp_path / "lock") as third:
        assert third


def test_bytes_are_means_per_client_and_round(place: Place) -> None:
    server = baselines.Server(task(place, "A"))
    state = server.start()
    server.run_round(state)
    server.run_round(state)
    sent = arms.bytes_per_round(state.ledger, QUICK)
    assert sent["payload_up"] == 4 * sum(value.size for value in state.weights.values())
    assert sent["first_round"]["payload_up"] == sent["last_round"]["payload_up"] == sent["payload_up"]
    assert sent["messages"] == 2 * 2 * QUICK.clients
    assert sent["wire_up"] * QUICK.clients * QUICK.rounds == state.ledger.totals()["wire_up"]


def test_the_data_of_a_seed_is_the_same_wherever_it_is_drawn(place: Place, tmp_path: Path) -> None:
    again, other = (place_data("digits", QUICK, seed, tmp_path) for seed in (0, 1))
    assert again.train.read_bytes() == place.train.read_bytes() != other.train.read_bytes()
    train, test = load_dataset(str(place.train)), load_dataset(str(place.test))
    assert (len(train.labels), len(test.labels)) == (QUICK.train_images, QUICK.test_images)
    assert not {image.tobytes() for image in train.images} & {image.tobytes() for image in test.images}


def judgement(overall: list[bool], after: list[list[bool]]) -> Judgement:
    return Judgement([np.array(overall)], [np.array(part) for part in after], [np.array(part) for part in after])


def test_personal_accuracy_is_weighted_and_plain() -> None:
    found = judgement([True, False], [[True, True, True], [False]])
    assert found.personal() == (0.75, 0.5) and found.accuracy_global == 0.5
    again = Judgement.from_json(json.loads(json.dumps(found.to_json())))
    assert again.personal("before") == (0.75, 0.5)


def test_an_empty_ledger_of_results_gives_an_empty_table() -> None:
    document = comparison.compare({"A": {}, "C2": {}}, QUICK)
    assert document["arms"]["A"] is None and document["arms"]["B2"]["computed"]
    assert len(comparison.rows(document)) == len(comparison.ARMS)
    assert Ledger().totals()["messages_up"] == 0
