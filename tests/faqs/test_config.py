from pathlib import Path

import pytest

from faqs.config import DEFAULT_WEIGHTS, parse_config, read_toml
from faqs.errors import ConfigError


def test_a_client_table_wins_over_what_is_said_for_all() -> None:
    config = parse_config(
        {
            "profiles": ["a.json", "b.json"],
            "budget": {"latency": "5ms"},
            "client": [{}, {"budget": {"size": "20kB"}}, {"profile": "c.json", "budget": {"latency": "1ms"}}],
        },
        "test",
    )
    assert config.clients == 3
    assert [config.client_config(k).profile for k in range(3)] == ["a.json", "b.json", "c.json"]
    assert config.client_config(1).preference.budgets == {"latency": 0.005, "size": 20_000.0}
    assert config.client_config(2).preference.budgets == {"latency": 0.001}
    assert config.client_config(2).preference.weights == {}


def test_a_client_without_any_wish_has_a_mild_preference() -> None:
    config = parse_config({"profiles": ["a.json"]}, "test")
    assert config.client_config(0).preference.weights == DEFAULT_WEIGHTS


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"clients": 0}, "clients: Input should be greater than or equal to 1, got 0"),
        ({"round": 3}, "round: Extra inputs are not permitted"),
        ({"training": {"batch_size": 1}}, "training.batch_size"),
        ({"clients": 3, "client": [{}]}, r"clients = 3 but there are 1 \[\[client\]\] tables"),
        ({"budget": {"latency": "5"}}, "a time is a number with a unit"),
        ({"client": [{"budget": {"sise": "5kB"}}]}, "a budget is written NAME=VALUE"),
        ({"alpha": float("nan")}, "alpha"),
    ],
)
def test_a_wrong_field_is_named_with_its_rule(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_config(fields, "file.toml")


def test_no_profile_says_which_option_is_missing() -> None:
    with pytest.raises(ConfigError, match="pass --profile"):
        parse_config({}, "test").client_config(0)


def test_a_space_that_is_not_legal_is_a_configuration_error() -> None:
    config = parse_config({"space": {"stages": [[8, 1, 1]], "kernels": [4]}}, "test")
    with pytest.raises(ConfigError, match=r"in \[space\]: the kernels of a search space are odd"):
        config.search_space((1, 8, 8), 10)


def test_unreadable_toml_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text("rounds = ")
    with pytest.raises(ConfigError, match="is not a TOML file"):
        read_toml(tmp_path / "a.toml")
    with pytest.raises(ConfigError, match="cannot read the configuration"):
        read_toml(tmp_path / "none.toml")


def test_schedule_warms_up_searches_and_freezes_within_the_rounds() -> None:
    for rounds in range(1, 30):
        config = parse_config({"rounds": rounds}, "test")
        assert 0 <= config.warmup <= config.search_end <= rounds
