"""The contract of policy files: what they describe, and an error for each mistake that says where it is."""

from dataclasses import replace
from pathlib import Path

import pytest

from trajectory_pipeline.errors import SettingsError
from trajectory_pipeline.judge.config import JudgeConfig
from trajectory_pipeline.judge.policy_file import load_policy_file, with_policy
from trajectory_pipeline.schema.enums import CombineBy, EscalateWhen

BASE = JudgeConfig("", "https://api.example/v1", "sk-of-the-settings")


def loaded(folder: Path, text: str, name: str = "policy.toml", **environment: str) -> JudgeConfig:
    path = folder / name
    path.write_text(text)
    return with_policy(BASE, load_policy_file(path), environment)


def test_single_judge_has_the_policy_of_the_settings(tmp_path: Path) -> None:
    config = loaded(tmp_path, '[[judges]]\nmodel = "m"\n')
    assert config == replace(BASE, model="m")
    assert config.policy.definition["model"] == "m"


def test_policy_file_names_judges_samples_and_steps(tmp_path: Path) -> None:
    text = """
        combine = "requirements"
        escalate_when = ["abstains", "unsure"]
        unsure_below = 0.5
        [[judges]]
        model = "cheap"
        samples = 3
        temperature = 0.7
        [[judges]]
        model = "strong"
        base_url = "https://other.example/v1"
        api_key_env = "OTHER_KEY"
        escalated = true
    """
    config = loaded(tmp_path, text, OTHER_KEY="sk-other")
    cheap, strong = config.voters
    assert (cheap.judge.model, cheap.samples, cheap.judge.temperature, cheap.escalated) == ("cheap", 3, 0.7, False)
    assert (strong.judge.base_url, strong.judge.api_key) == ("https://other.example/v1", "sk-other")
    assert (strong.escalated, config.policy.model) == (True, "cheap ×3 + strong")
    assert config.rule.combine == CombineBy.REQUIREMENTS
    assert config.rule.escalate_when == (EscalateWhen.ABSTAINS, EscalateWhen.UNSURE)
    assert "sk-" not in repr(config)


def test_key_of_the_settings_goes_to_their_endpoint_alone(tmp_path: Path) -> None:
    text = '[[judges]]\nmodel = "a"\n[[judges]]\nmodel = "b"\nbase_url = "https://other.example/v1"\n'
    first, second = loaded(tmp_path, text).voters
    assert (first.judge.api_key, second.judge.api_key) == ("sk-of-the-settings", "not-needed")


def test_decision_endpoint_takes_the_requirements_of_the_text_judge(tmp_path: Path) -> None:
    text = '[[judges]]\nmodel = "m"\n[[judges]]\nmodel = "d"\nkind = "decisions"\n'
    first, second = loaded(tmp_path, text).voters
    assert second.judge.statements_from == first
    assert second.judge.policy.definition["statements_from"] == first.judge.policy.policy_id
    assert "decisions" not in first.judge.policy.definition


def test_json_means_the_same_as_toml(tmp_path: Path) -> None:
    toml = loaded(tmp_path, '[[judges]]\nmodel = "m"\nsamples = 2\n')
    assert loaded(tmp_path, '{"judges": [{"model": "m", "samples": 2}]}', "policy.json") == toml


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "judges: Field required"),
        ("judges = []", "judges: List should have at least 1 item"),
        ('[[judges]]\nmodel = "m"\nsample = 2', "judges.0.sample: Extra inputs are not permitted"),
        ('[[judges]]\nmodel = "m"\nsamples = 0', "judges.0.samples: .*greater than or equal to 1"),
        ('[[judges]]\nmodel = "m"\ntemperature = nan', "judges.0.temperature: .*finite number"),
        ('[[judges]]\nmodel = "m"\nbase_url = "api.example"', "judges.0.base_url: "),
        ('[[judges]]\nmodel = "m"\nescalated = true', "at least one must be asked first"),
        ('escalate_when = ["abstains"]\n[[judges]]\nmodel = "m"', "belong together"),
        ('unsure_below = 0.5\n[[judges]]\nmodel = "m"', "unsure_below belongs to 'unsure'"),
        ('combine = "mean"\n[[judges]]\nmodel = "m"', "combine: Input should be 'outcome' or 'requirements'"),
        ('[[judges]]\nmodel = "m"\n[[judges]]\nmodel = "m"', "names m twice"),
        ('[[judges]]\nmodel = "m"\napi_key_env = "NO_SUCH"', "NO_SUCH, which is not set"),
        ('[[judges]]\nmodel = "m"\nkind = "decisions"', "needs a text judge before it"),
        ('[[judges]]\nmodel = "m"\n[[judges]]\nmodel = "d"\nkind = "decisions"\nsamples = 2', "votes once"),
        ("[[judges", "cannot be read"),
    ],
)
def test_wrong_policy_file_names_the_mistake(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        loaded(tmp_path, text)


def test_policy_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"must be a \.json or a \.toml file"):
        loaded(tmp_path, "", "policy.yaml")
    with pytest.raises(SettingsError, match="cannot be read: No such file"):
        load_policy_file(tmp_path / "none.toml")
