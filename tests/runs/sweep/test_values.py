from pathlib import Path

import pytest

from evalkit.__main__ import main
from evalkit.cli.command import VERBS
from evalkit.core.errors import InputError
from evalkit.core.options import load_config, parse
from evalkit.runs.sweep.launchers import SlurmOptions, check_launcher, launcher_options
from evalkit.runs.sweep.values import expand, values_of


@pytest.mark.parametrize(
    ("word", "values"),
    [
        ("limit=10,20", ["10", "20"]),
        ("limit=range(1,4)", ["1", "2", "3"]),
        ("model=1.8b,3.7b-instruct,13b", ["1.8b", "3.7b-instruct", "13b"]),
        ("model=glob(3.7b*)", ["3.7b", "3.7b-instruct"]),
        ("protocol.strip=true,false", ["True", "False"]),
        ("protocol.bos=auto,none", ["auto", "none"]),
        ("export=llm-jp-eval,none", ["llm-jp-eval", "none"]),
        ("suite.tasks=[jamp,janli]", ["[jamp,janli]"]),
        ("suite.tasks=[jamp],[janli,jsts]", ["[jamp]", "[janli,jsts]"]),
        ("judge.parameters.top_p=0.5,1", ["0.5", "1"]),
        # Texts: commas outside quotes and brackets.
        ("model.path=/a,/b c, /日本語", ["/a", "/b c", "/日本語"]),
        ("model.path='/a,b',\"/c,d\", /e", ["/a,b", "/c,d", "/e"]),
        ("model.path=/it's=a b", ["/it's=a b"]),
        (r"protocol.answer_regex=答えは([0-9,.]+)", [r"答えは([0-9,.]+)"]),
        (r"protocol.answer_regex=(a{1,2}),[b,c]", ["(a{1,2})", "[b,c]"]),
        ("model.path=/x/${y},/z", ["/x/${y}", "/z"]),
        ("model.path=/a(b", ["/a(b"]),
        ("out=", [""]),
        ("out=null,a", ["null", "a"]),
        ("out='',a", ["", "a"]),
        ("model.path='/only, one'", ["/only, one"]),
    ],
)
def test_the_values_of_a_word(word: str, values: list[str]) -> None:
    assert values_of(word) == values


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("limit=1,,2", "not a list of values"),
        ("metrics.resamples=interval(0,1)", "interval()"),
        ("model=glob(nothing*)", "list models"),
        ("limit=glob(*)", "glob()"),
        ("model.path=/a,,/b", "empty value"),
        ("model.path=/a,", "empty value"),
        ("model.path='/a,/b", "quoted value"),
        ("model.path='/a'b,/c", "quoted value"),
        ("model.path='/a", "quoted value"),
        ("model.path=/a(b,/c", "bracket"),
        ("modle=1.8b,13b", "'model'"),
    ],
)
def test_mistakes_in_lists_are_named(word: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        values_of(word)
    assert message in str(caught.value)


def test_an_existing_path_with_a_comma_is_asked_about(tmp_path: Path) -> None:
    (tmp_path / "a,b").mkdir()
    with pytest.raises(InputError) as caught:
        values_of(f"model.path={tmp_path}/a,b")
    assert values_of(f"model.path='{tmp_path}/a,b'") == [f"{tmp_path}/a,b"]
    assert f"model.path='{tmp_path}/a,b'" in str(caught.value)


def test_every_combination_is_one_command_line() -> None:
    line = parse(["-m", "model=1.8b,13b", "suite=nli", "limit=10,20", "--partial"], VERBS)
    jobs = expand(line)
    assert [job.overrides for job in jobs] == [
        ("model=1.8b", "suite=nli", "limit=10"),
        ("model=1.8b", "suite=nli", "limit=20"),
        ("model=13b", "suite=nli", "limit=10"),
        ("model=13b", "suite=nli", "limit=20"),
    ]
    configs = [load_config(job) for job in jobs]
    assert [config.limit for config in configs] == [10, 20, 10, 20]
    assert all(config.partial and not job.multirun for config, job in zip(configs, jobs, strict=True))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-m", "model=1.8b,13b-instrct", "suite=nli"], "'13b-instruct'"),
        (["-m", "model=1.8b", "suite=nli,jastr"], "'jaster'"),
        (["--multirun", "model=1.8b", "limit=1,x"], "limit=x"),
        (["-m", "model=1.8b", "hydra/launcher=slrum"], "'slurm'"),
        (["-m", "model=1.8b", "hydra/launcher=joblib"], "list launchers"),
        (["-m", "model=1.8b", "hydra.launcher.n_jobs=2"], "hydra.launcher.n_jobs"),
        (["-m", "model=1.8b", "hydra.run.dir=x"], "hydra/launcher="),
        (["-m", "model=1.8b", "hydra/launcher=slurm", "hydra.launcher.partiton=x"], "'partition'"),
        (["-m", "model=1.8b", "hydra/launcher=slurm", "hydra.launcher.timeout_min=long"], "timeout_min"),
        (["-m", "model=1.8b", "hydra/launcher=slurm", "hydra.launcher.timeout_min=1,2"], "one value"),
        (["-m", "model=1.8b", "hydra/launcher=slurm", "hydra.launcher.setup=[a"], "launcher.setup"),
        (["-m", "list", "models"], "no -m"),
        (["-m", "model=1.8b", "suite=nli", "samples=1,2"], "greedy search"),
        (["-m", "model=1.8b", "suite=nli", "metrics.pass_at=[2]"], "pass@2 of 1 samples"),
        (["-m", "model=1.8b", "suite=nli", "protocol.answer_regex=(("], "regular expression"),
        (["-m", "watch=.", "suite=nli"], "without -m"),
        (
            ["-m", "model=1.8b,13b", "suite=nli", "engine=api", "engine.base_url=http://a/v1"],
            "for different models: llm-jp-3-1.8b and llm-jp-3-13b",
        ),
        (["--multirnu", "model=1.8b"], "'--multirun'"),
        (["model=1.8b", "hydra/launcher=slurm"], "-m"),
        (["model=1.8b,13b", "suite=nli"], "-m model=1.8b,13b"),
        (["model=1.8b", "limit=1,2"], "-m limit=1,2"),
    ],
)
def test_mistakes_are_refused_before_anything_runs(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    message: str,
) -> None:
    pytest.importorskip("submitit")
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    printed = capsys.readouterr()
    assert message in printed.err and "Traceback" not in printed.err and not printed.out
    assert not list(tmp_path.iterdir())


def test_a_launcher_that_is_not_installed_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evalkit.runs.sweep.launchers.importlib.util.find_spec", lambda module: None)
    for name in ("slurm", "submitit_local"):
        with pytest.raises(InputError, match=r"evalkit\[slurm\]"):
            check_launcher([f"hydra/launcher={name}"])


def test_the_documented_options_of_slurm_are_there() -> None:
    pytest.importorskip("submitit")
    documented = {"partition", "gpus_per_node", "timeout_min", "array_parallelism", "setup", "account"}
    assert documented <= set(launcher_options("slurm"))
    words = [
        "hydra.launcher.setup=['module load cuda','ulimit -n 4096']",
        "hydra.launcher.gres=gpu:a100:2",
        "hydra.launcher.partition='a,b'",
        "hydra.launcher.cpus_per_task=null",
        "hydra.launcher.additional_parameters={mail-type: END}",
        "hydra.launcher.additional_parameters.mail-user=me",
    ]
    assert check_launcher(["hydra/launcher=slurm", *words]) == (
        "slurm",
        SlurmOptions(
            setup=["module load cuda", "ulimit -n 4096"],
            gres="gpu:a100:2",
            partition="a,b",
            cpus_per_task=None,
            additional_parameters={"mail-type": "END", "mail-user": "me"},
        ),
    )
