from pathlib import Path

import huggingface_hub
import pytest

from evalkit.core.config import CometConfig, MetricsConfig
from evalkit.core.errors import InputError
from evalkit.metrics import fetch_models, get_metric, metric_names, wanted_metrics
from evalkit.metrics.metric import MetricUnavailableError
from evalkit.metrics.model_files import comet_files
from evalkit.services.hub import locate


def find(name: str, *, offline: bool = True) -> Path:
    return locate(
        name,
        ("a|b",),
        ("*",),
        offline=offline,
        option="metrics.x",
        command="fetch it",
        raises=MetricUnavailableError,
    )


def test_local_paths_are_taken_as_they_are(tmp_path: Path) -> None:
    assert find(str(tmp_path)) == tmp_path


@pytest.mark.parametrize("name", ["/no/such/folder", "./there", "one-word"])
def test_a_path_that_is_not_there_is_no_hub_name(name: str) -> None:
    with pytest.raises(MetricUnavailableError, match="no file or folder"):
        find(name, offline=False)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """A hub whose cache is empty and whose network gives a folder with the file `b`, or fails."""
    state: dict[str, object] = {"asked": [], "network": tmp_path}
    (tmp_path / "b").touch()

    def snapshot(name: str, *, allow_patterns: list[str], local_files_only: bool, **_: object) -> str:
        asked = state["asked"]
        assert isinstance(asked, list)
        asked.append(local_files_only)
        if local_files_only:
            raise huggingface_hub.errors.LocalEntryNotFoundError("not cached")
        if isinstance(state["network"], Exception):
            raise state["network"]
        return str(state["network"])

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    return state


def test_offline_asks_the_cache_alone(hub: dict[str, object]) -> None:
    with pytest.raises(MetricUnavailableError) as caught:
        find("owner/model")
    assert hub["asked"] == [True]
    assert caught.value.fix == "fetch it"


def test_online_fetches_what_is_not_cached(hub: dict[str, object], tmp_path: Path) -> None:
    assert find("owner/model", offline=False) == tmp_path
    assert hub["asked"] == [True, False]


@pytest.mark.parametrize("kind", [OSError, *huggingface_hub.errors.HfHubHTTPError.__bases__])
def test_a_failing_connection_is_a_missing_metric(hub: dict[str, object], kind: type[Exception]) -> None:
    hub["network"] = kind("the line is cut\nin two")
    with pytest.raises(MetricUnavailableError, match="the line is cut"):
        find("owner/model", offline=False)


def test_an_incomplete_model_is_named(hub: dict[str, object], tmp_path: Path) -> None:
    (tmp_path / "b").unlink()
    with pytest.raises(MetricUnavailableError, match=r"does not hold a\|b"):
        find("owner/model", offline=False)


def test_the_command_names_a_models_own_options(hub: dict[str, object]) -> None:
    config = MetricsConfig(comet=CometConfig(checkpoint="me/mine"))
    with pytest.raises(MetricUnavailableError) as caught:
        comet_files(config, True)
    assert caught.value.fix == "evalkit prepare suite=mt metrics.comet.checkpoint=me/mine"


def test_fetching_tells_what_could_not_be_had(hub: dict[str, object]) -> None:
    outcome = fetch_models(["exact_match", "bleu_ja", "comet_wmt22"], MetricsConfig(), offline=True)
    assert set(outcome) == {"comet_wmt22"} and outcome["comet_wmt22"] is not None


def test_what_a_task_gets() -> None:
    names = ["bleu_ja", "bert_score_ja_f1", "comet_wmt22"]
    assert wanted_metrics(names, MetricsConfig()) == ["bleu_ja", "sentence_bleu_ja", "comet_wmt22"]
    assert "bert_score_ja_f1" in wanted_metrics(names, MetricsConfig(bert_score=True))
    with pytest.raises(InputError, match="did you mean 'exact_match'"):
        get_metric("exact_macth")
    assert len(metric_names()) == len(set(metric_names()))
