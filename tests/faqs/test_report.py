import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from faqs.config import SearchConfig
from faqs.errors import RunError
from faqs.ledger import Entry, Ledger
from faqs.report import build_report, write_report
from faqs.runs import RUN_VERSION
from hwcost import BlockChoice, CostModel, LookupTable, SearchSpace, build_table, fit_profile
from hwcost.profiles import Profile, Source
from hwcost.testing import plausible_profile

CHROMIUM = Path("/usr/bin/chromium")
SPACE = SearchSpace.for_image((1, 8, 8), 10)
DEVICES: dict[str, Source] = {"host": "measured", "rpi4": "estimated"}
NETWORKS = (
    ("k3e3b2", "k3e6b4", "skip", "k5e6b8", "k3e3b2"),
    ("k5e6b8", "k5e6b8", "k3e3b4", "k3e6b4", "skip"),
    ("k3e3b4", "k3e3b4", "k3e3b2", "k3e3b2", "skip"),
)


@cache
def profile_of(device: str) -> Profile:
    profile = plausible_profile(SPACE.operators(), source=DEVICES[device])
    return profile.model_copy(update={"device": device})


@cache
def table_of(device: str) -> LookupTable:
    return build_table(SPACE, CostModel(profile_of(device)))


def write_run(run: Path, clients: int = 4, rounds: int = 6, checked: bool = True, refused: bool = True) -> Path:
    """The documents of a finished search: costs, tables, ledger by the real classes; accuracies by a plain curve."""
    profiles = [f"profiles/{device}.json" for device in DEVICES]
    config = SearchConfig(clients=clients, rounds=rounds, seed=7, profiles=profiles, budget={"latency": "5ms"})
    texts = {"config.json": json.dumps({"run_version": RUN_VERSION, **config.model_dump()})}
    texts["devices.json"] = json.dumps(
        {
            f"profiles/{name}.json": {
                "device": name,
                "digest": profile_of(name).digest,
                "fingerprint": profile_of(name).machine.fingerprint,
                "int8_form": profile_of(name).int8_form,
                "sources": list(profile_of(name).sources),
                "noise_floor": profile_of(name).noise_floor,
            }
            for name in DEVICES
        }
    )
    ledger, lines = Ledger(), []
    for client in range(clients):
        ledger.append(Entry(0, client, "down", "setup", 0, 9000, 9100, 9300))
        ledger.append(Entry(0, client, "up", "setup", 0, 3, 60, 200))
    for number in range(rounds):
        lost = {1: "no reply within 3600 s <script>alert(1)</script>"} if refused and number == 2 else {}
        for client in range(clients):
            ledger.append(Entry(number, client, "down", "train", 9000.5 - 300 * number, 8000, 8100, 8300))
            size = 7000 - 400 * number + 100 * client
            ledger.append(Entry(number, client, "up", "train", 9000.5, size, size + 90, size + 300, client in lost))
        present = [client for client in range(clients) if client not in lost]
        line = {
            "round": number,
            "loss": 2.3 / (number + 1),
            "coverage": 1.0 - 0.05 * number,
            "accuracy": {str(c): 1 - 0.9 / (number + 1.5 + 0.3 * (c % 5)) for c in present},
            "decisions": {str(c): NETWORKS[c % 3] for c in present},
            "refused": lost,
            "bytes": {"payload_up": 1, "payload_down": 1, "wire_up": 1, "wire_down": 1},
        }
        lines.append(json.dumps(line))
    for client in range(clients):
        ledger.append(Entry(rounds, client, "down", "final", 6000, 5000, 5100, 5300))
        ledger.append(Entry(rounds, client, "up", "final", 0, 40, 140, 340))
    texts |= {"rounds.jsonl": "\n".join(lines) + "\n", "ledger.json": json.dumps(ledger.to_json())}
    texts["timing.json"] = json.dumps({"round_s": [1.5] * rounds, "total_s": 1.5 * rounds})
    for client in range(clients):
        device, names = list(DEVICES)[client % 2], NETWORKS[client % 3]
        table, architecture = table_of(device), tuple(BlockChoice.parse(name) for name in names)
        cost, interval = table.cost(architecture), table.latency_interval(architecture)
        budget: dict[str, float] = {} if client == 3 else {"latency": 1.2 * cost["latency_s"], "size": 100e3}
        texts[f"clients/{client}/table.json"] = table.to_json()
        texts[f"clients/{client}/architecture.json"] = json.dumps(
            {
                "client": client,
                "device": device,
                "profile": f"profiles/{device}.json",
                "budget": budget,
                "weights": {},
                "architecture": names,
                "cost": cost,
                "latency_interval_s": interval,
                "latency_sources": table.sources,
                "accuracy": 0.93 + 0.01 * (client % 5),
                "samples": {"train": 300, "held_out": 100},
            }
        )
        here = device == "host"
        check = {
            "onnx_bytes": 41_000 + client,
            "accuracy_torch": 0.93 + 0.01 * (client % 5),
            "accuracy_onnx": 0.92 + 0.01 * (client % 5),
            "agreement": 0.98,
            "tolerance": 0.02,
            "agrees": True,
            "predicted_latency_s": cost["latency_s"],
            "interval_s": interval,
            "measured_latency_s": cost["latency_s"] * 1.05 if here else None,
            "samples_s": [cost["latency_s"] * 1.05] if here else [],
            "within_interval": True if here else None,
            "within_budget": True if here and budget else None,
            "int8_form": "u8u8",
            "executed": {"QLinearConv": 12, "QGemm": 1},
        }
        if checked:
            texts[f"clients/{client}/check.json"] = json.dumps(check)
    for name, text in texts.items():
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text(text, encoding="utf-8")
    return run


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "digits-7")


@pytest.fixture(scope="module")
def page(stored: Path) -> str:
    return build_report(stored)


@pytest.fixture
def run(stored: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(stored, tmp_path / "digits-7"))


class Elements(HTMLParser):
    """Tags with their attributes, the words of the page, and that every element is closed in order."""

    VOID = ("meta", "br", "hr", "img", "link", "input")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.words, self._open = "", list[str]()
        self.feed(text)
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self._open:
            self.words += "".join(f" {word}" for word in data.split())


def test_the_page_loads_nothing_and_runs_nothing(page: str) -> None:
    elements = Elements(page)
    assert not {tag for tag, _ in elements.found} & {"script", "link", "img", "iframe", "object", "image"}
    references = [
        value for _, attrs in elements.found for name, value in attrs.items() if name.endswith(("href", "src"))
    ]
    assert references
    assert all(value and value.startswith("#") for value in references)
    assert "http" not in page
    assert "@import" not in page
    assert page.count("url(") == page.count("url(#")


def test_every_reference_inside_the_page_has_one_target(page: str) -> None:
    elements = Elements(page)
    ids = [attrs["id"] for _, attrs in elements.found if "id" in attrs]
    assert len(ids) == len(set(ids))
    for _, attrs in elements.found:
        for name in ("aria-labelledby", "aria-describedby"):
            assert attrs.get(name) is None or attrs[name] in ids
        target = attrs.get("xlink:href")
        assert target is None or target[1:] in ids


def test_the_same_folder_gives_the_same_bytes_in_another_process(page: str, stored: Path, run: Path) -> None:
    code = "import sys, pathlib, faqs.report; print(faqs.report.write_report(pathlib.Path(sys.argv[1])))"
    environment = {**os.environ, "PYTHONHASHSEED": "12345"}
    done = subprocess.run([sys.executable, "-c", code, str(run)], env=environment, capture_output=True, check=True)
    path = run / "report.html"
    assert done.stdout.decode().strip() == str(path)
    assert path.read_bytes() == page.encode()
    assert sorted(entry.name for entry in run.iterdir()) == sorted([*(e.name for e in stored.iterdir()), "report.html"])


def test_the_head_says_what_was_searched_and_what_came_of_it(page: str, stored: Path) -> None:
    words = Elements(page).words
    ledger = Ledger.from_json(json.loads((stored / "ledger.json").read_text()))
    wire = sum(entry.wire_bytes for entry in ledger)
    for text in ("digits-7", "data digits", "clients 4", "rounds 6", "seed 7", "devices host, rpi4"):
        assert text in words
    assert "reach a mean accuracy of 0.935 on their own held-out shares" in words
    assert f"{wire / 1e3:.3g} kB on the wire" in words
    assert "3 of 3 clients with a budget are within it, 1 by prediction only" in words


def test_fedavg_is_computed_from_the_weights_that_the_supernet_shares(page: str) -> None:
    from faqs.supernet import new_supernet, shared_tensors

    shared = sum(value.numel() for value in shared_tensors(new_supernet(SPACE, 0)).values())
    assert f"computed, not run: {4 * shared * 2 * 4 * 6 / 1e6:.3g} MB" in Elements(page).words


def test_what_was_not_measured_is_said_before_any_number_in_a_table(page: str) -> None:
    words = Elements(page).words
    notice = words.index("rpi4: the latencies are not measured")
    assert notice < words.index("Clients and their networks")
    assert "computed by a formula from data-sheet figures of the processor; nothing was timed" in words
    assert "clients 1, 3" in words
    assert "host: " not in words[: words.index("Clients and their networks")]
    assert words.count("not this machine") == 2


def test_predictions_from_measured_rows_are_noticed_too(run: Path) -> None:
    larger = SearchSpace.for_image((1, 8, 8), 12)
    profile = profile_of("host")
    table = build_table(larger, CostModel(profile, fit_profile(profile, names=["linear"])))
    path = run / "clients/0/architecture.json"
    document = json.loads(path.read_text())
    architecture = tuple(BlockChoice.parse(name) for name in document["architecture"])
    document |= {"cost": table.cost(architecture), "latency_interval_s": table.latency_interval(architecture)}
    path.write_text(json.dumps(document))
    (run / "clients/0/table.json").write_text(table.to_json())
    words = Elements(build_report(run)).words
    assert "host: not all latencies are measured" in words
    assert "Their sources: predicted from measured rows." in words
    assert "fitted on other operators" in words


def test_every_client_is_shown_with_its_network_costs_and_verdict(page: str) -> None:
    elements = Elements(page)
    drawn = [
        attrs["aria-label"] or "" for tag, attrs in elements.found if "blocks" in (attrs.get("class") or "").split()
    ]
    assert len(drawn) == 4
    assert "block 0: kernel 3, expansion 3, 2 bits" in drawn[0]
    assert "block 2: skipped" in drawn[0]
    words = elements.words
    for text in (
        "0.920 ONNX",
        "0.930 torch",
        "file 41 kB",
        "met, measured",
        "met, by the table; not measured",
        "no budget",
    ):
        assert text in words
    assert "12 x QLinearConv" in words


def test_a_missed_budget_is_called_missed(run: Path) -> None:
    path = run / "clients/0/check.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"within_budget": False, "within_interval": False}))
    words = Elements(build_report(run)).words
    assert "missed, as measured" in words
    assert "outside the interval" in words
    assert "2 of 3" in words


def test_an_exported_model_that_differs_too_much_is_said_so(page: str, run: Path) -> None:
    assert "differs by more" not in page
    path = run / "clients/0/check.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"agrees": False}))
    assert "differs by more" in build_report(run)


def test_bytes_are_shown_at_four_levels_and_refusals_with_their_reasons(page: str, stored: Path) -> None:
    words = Elements(page).words
    totals = Ledger.from_json(json.loads((stored / "ledger.json").read_text())).totals()
    for level, name in (("ideal", "L0"), ("payload", "L1"), ("flower", "L2"), ("wire", "L3")):
        assert name in words
        assert f"{totals[f'{level}_up'] / 1e3:.3g} kB" in words
    assert "no reply within 3600 s <script>alert(1)</script>" in words
    assert "<script>" not in page


def test_every_plot_has_a_title_and_words(page: str) -> None:
    elements = Elements(page)
    plots = [attrs for tag, attrs in elements.found if tag == "svg"]
    names = ["accuracy", "loss", "coverage", "bytes", "cumulative", "latency", "bits"]
    assert [plot["aria-labelledby"] for plot in plots] == [f"{name}-title" for name in names]
    assert all(plot["role"] == "img" for plot in plots)
    assert "of 4 models were measured on this machine" in elements.words
    assert "from 0.930 to 0.960" in elements.words
    assert "least in round 5: 75%" in elements.words


def test_a_run_that_is_not_exported_or_timed_yet_is_shown_so(tmp_path: Path) -> None:
    run = write_run(tmp_path / "early", clients=2, checked=False, refused=False)
    (run / "timing.json").unlink()
    words = Elements(build_report(run)).words
    assert "The personalised networks of 2 clients" in words
    assert "not exported yet" in words
    assert "No model was measured" in words
    assert "None: every message of every round was used." in words


def test_many_clients_and_a_single_round_are_drawn(tmp_path: Path) -> None:
    many = build_report(write_run(tmp_path / "many", clients=60))
    assert "range over clients" in many
    assert "Weight bits per block" in build_report(write_run(tmp_path / "one", clients=1, rounds=1))


DAMAGES: list[tuple[str, Any, str]] = [
    ("config.json", None, "a run folder has a config.json, got .* without"),
    ("config.json", {"run_version": 9}, f"config.json is not a run of version {RUN_VERSION}"),
    ("devices.json", None, "devices.json, and it is missing: finish the run with `faqs search --resume RUN`"),
    ("config.json", {"clients": 0}, "config.json: clients: Input should be greater than or equal to 1, got 0"),
    ("devices.json", "[]", "devices.json: the document: Input should be an object, got"),
    (
        "devices.json",
        {"profiles/host.json": {"device": "host"}},
        r"devices.json: profiles/host.json.digest: Field req",
    ),
    ("rounds.jsonl", "", r"rounds.jsonl: round: rounds are one or more and rise, got \[\]"),
    ("rounds.jsonl", "{", "rounds.jsonl, line 1: the document: Invalid JSON"),
    ("rounds.jsonl", {"round": 0, "coverage": 2.0}, "rounds.jsonl, line 1: loss: Field required"),
    ("ledger.json", "nonsense", "ledger.json: the document: Invalid JSON"),
    ("ledger.json", {"version": 9}, "ledger.json: this is version 1 of the ledger, got 9"),
    ("clients/2/table.json", None, "clients/2/table.json, and it is missing"),
    ("clients/2/table.json", {"version": 5}, "clients/2/table.json: not a lookup table of version 1: version"),
    (
        "clients/2/architecture.json",
        {"accuracy": "high"},
        "2/architecture.json: accuracy: .* a valid number, got 'high'",
    ),
    ("clients/2/architecture.json", {"accuracy": 1.5}, "2/architecture.json: accuracy: .* less than or equal to 1"),
    ("clients/2/architecture.json", {"architecture": ["skip"] * 5}, "architecture: block 1 cannot be skip"),
    ("clients/2/architecture.json", {"architecture": ["k9"] * 5}, "architecture: a block is written `skip` or like"),
    ("clients/2/architecture.json", {"cost": {}}, "cost.latency_s: its folder and table say .*, got None; restore"),
    ("clients/2/architecture.json", {"client": 1}, "client: its folder and table say 2, got 1; restore the file"),
    ("clients/2/architecture.json", {"device": "rpi4"}, "device: its folder and table say 'host', got 'rpi4'"),
    ("clients/2/architecture.json", {"profile": "p.json"}, "profile: it is one of devices.json .*, got 'p.json'"),
    (
        "clients/2/architecture.json",
        {"budget": {"beauty": 1.0}},
        "budget: a budget is one of latency, .*, got 'beauty'",
    ),
    ("clients/2/check.json", {"onnx_bytes": -1}, "clients/2/check.json: onnx_bytes: .* greater than 0, got -1"),
    ("timing.json", {"total_s": None}, "timing.json: total_s: .* valid number, got None"),
]


@pytest.mark.parametrize(("name", "damage", "message"), DAMAGES)
def test_a_damaged_document_is_named_with_its_field(run: Path, name: str, damage: Any, message: str) -> None:
    path = run / name
    if damage is None:
        path.unlink()
    elif isinstance(damage, str):
        path.write_text(damage)
    else:
        whole = {} if name == "rounds.jsonl" else json.loads(path.read_text())
        path.write_text(json.dumps(whole | damage))
    with pytest.raises(RunError, match=message) as caught:
        write_report(run)
    assert str(run) in str(caught.value)
    assert path.name in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (run / "report.html").exists()


def test_a_folder_that_is_not_there_or_not_text_is_refused(run: Path) -> None:
    with pytest.raises(RunError, match=r"a run is read from its folder, got .*nowhere: no such folder"):
        build_report(run / "nowhere")
    (run / "rounds.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(RunError, match=r"rounds\.jsonl is not a text in UTF-8"):
        build_report(run)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not CHROMIUM.exists():
        pytest.skip(f"no browser at {CHROMIUM}")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(
            executable_path=str(CHROMIUM), args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        )
        yield chromium
        chromium.close()


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (375, "light"), (375, "dark")])
def test_a_browser_shows_it_wide_and_narrow_light_and_dark(
    browser: Any, stored: Path, page: str, tmp_path: Path, width: int, scheme: str
) -> None:
    path = tmp_path / "report.html"
    path.write_text(page, encoding="utf-8")
    tab = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    requests, complaints = list[str](), list[str]()
    tab.on("request", lambda request: requests.append(request.url))
    tab.on("console", lambda message: complaints.append(message.text))
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.goto(path.as_uri())
    assert requests == [path.as_uri()]
    assert not complaints
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    assert tab.evaluate(
        "[...document.querySelectorAll('figure svg')].every(s => s.getBoundingClientRect().height > 80)"
    )
    smallest = (
        "Math.min(...[...document.querySelectorAll('figure svg text')].map(t => t.getBoundingClientRect().height))"
    )
    assert tab.evaluate(smallest) >= 8
    ink = tab.evaluate("getComputedStyle(document.querySelector('figure svg text')).fill")
    assert ink == tab.evaluate("getComputedStyle(document.body).color")
    assert tab.get_by_role("img", name="Accuracy over rounds").is_visible()
    assert tab.get_by_role("heading", name="rpi4: the latencies are not measured").is_visible()
    box = tab.locator("tbody tr").first.bounding_box()
    assert box and box["width"] <= width
    tab.close()
