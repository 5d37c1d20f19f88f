"""leaderboard.html in a real browser: Debian's Chromium, driven headless."""

import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from evalkit.__main__ import main
from evalkit.core.durable import CHECK, read_log, write_checked_json, write_lines_atomic
from evalkit.leaderboard import page_samples
from evalkit.leaderboard.board import Board, build_board
from evalkit.leaderboard.collect import collect
from evalkit.leaderboard.page import PageOptions, embedded_json, page_html
from evalkit.leaderboard.rows import jaster_row
from evalkit.leaderboard.runs import FinishedRun
from evalkit.records.results import DatasetRates, Figure, Partial, ProtocolRecord, Results, read_results
from tests.conftest import ROOT
from tests.leaderboard.conftest import World
from tests.leaderboard.made import SCRIPT, Made, make_run
from tests.mtbench.little_bench import make_bench, write_jsonl

pytest.importorskip("selenium")
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import Select, WebDriverWait

Browser = webdriver.Chrome
CLIPBOARD = "navigator.clipboard.writeText = (text) => { window.said = text; return Promise.resolve(); }"
MT_MODEL = "weak"
# Roles of what takes a click.
CLICKED = {"button", "checkbox", "combobox", "link", "radio", "region", "searchbox", "spinbutton", "textbox"}


def make_conversations(folder: Path, out: Path, said: str = SCRIPT, per_category: int = 1) -> Path:
    """A judged MT-Bench run of the model `weak` on a little bench of our own; returns the mirror.

    `said` is part of every answer and every judgment. The preset lies in the mirror too.
    """
    bench = make_bench(folder, per_category=per_category)
    preset = shutil.copy(bench.preset, bench.mirror)
    answers = bench.answers(folder / "answers.jsonl", MT_MODEL, said + "{id}番の答え{turn}")
    rows = [
        {
            "question_id": number,
            "model": MT_MODEL,
            "judge": ["gpt-4", "single-v1" if turn == 1 else "single-v1-multi-turn"],
            "user_prompt": "",
            "judgment": f"{said}講評 <b>{number}-{turn}</b> Rating: [[{number % 10 + 1}]]",
            "score": number % 10 + 1,
            "turn": turn,
            "tstamp": 0.0,
        }
        for number in range(1, bench.questions + 1)
        for turn in (1, 2)
    ]
    log = write_jsonl(folder / "judgments.jsonl", rows)
    words = [f"judgments={log}", f"answers={answers}", f"preset={preset}", f"mirror={bench.mirror}"]
    assert main(["replay", *words, f"out={out}"]) == 0
    return bench.mirror


@pytest.fixture(scope="module")
def page(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of two comparable runs, one of another protocol, published rows and conversations."""
    folder = tmp_path_factory.mktemp("page")
    results = Path(shutil.copytree(world.results, folder / "results"))
    make_run(Made("other", 0.5, 3), world.data, results, "protocol.strip=true")
    for step in (100, 200):
        make_run(Made(f"m-step-{step}", step / 400, step), world.data, results, "suite=nli")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EVALKIT_CACHE", str(folder / "cache"))
        mirror = make_conversations(folder / "bench", results / MT_MODEL / "mt" / "run")
        command = ["leaderboard", str(results), f"mirror={mirror}", f"out={folder}", "metrics.resamples=1000"]
        assert main([*command, "--reference", "llm-jp-3-1.8b"]) == 0
    return folder / "leaderboard.html"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        reason = "no Chromium here (Debian: apt-get install chromium chromium-driver)"
        if os.environ.get("EVALKIT_REQUIRE_BROWSER") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for word in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1300,900"):
        options.add_argument(word)
    # What costs time and shows nothing: a graphics card in software, extensions, updates.
    for word in ("gpu", "extensions", "background-networking", "component-update", "default-apps"):
        options.add_argument(f"--disable-{word}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    opened = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        yield opened
    finally:
        opened.quit()


@pytest.fixture
def at(browser: Browser, page: Path) -> Iterator[Any]:
    """Opens a view of the page anew; afterwards nothing may stand on the console."""

    def go(where: str = "", of: Path = page) -> Browser:
        browser.get("about:blank")
        browser.get(f"{of.as_uri()}{where}")
        ready = "return document.documentElement.dataset.ready === 'true'"
        WebDriverWait(browser, 10, 0.02).until(lambda b: b.execute_script(ready))
        return browser

    browser.get_log("browser")
    yield go
    browser.set_window_size(1300, 900)
    assert browser.get_log("browser") == []


def all_of(browser: Browser, selector: str) -> list[WebElement]:
    return list(browser.find_elements(By.CSS_SELECTOR, selector))


def one(browser: Browser, selector: str) -> WebElement:
    return browser.find_element(By.CSS_SELECTOR, selector)


def embedded(browser: Browser, block: str) -> Any:
    script = "return JSON.parse(document.getElementById(arguments[0]).textContent)"
    return browser.execute_script(script, block)


def models(browser: Browser) -> list[str]:
    return [cell.text.split("\n")[0] for cell in all_of(browser, "#table-jaster tbody th")]


def test_sorting(at: Any) -> None:
    browser = at()
    one(browser, "#table-jaster button[data-column=NLI]").click()
    head = one(browser, "#table-jaster th[aria-sort=descending]")
    assert head.text == "NLI"
    figures = all_of(browser, "#table-jaster tbody td:nth-child(9)")
    values = [float(re.match(r"[\d.]+", figure.text)[0]) for figure in figures if figure.text]  # type: ignore[index]
    assert len(values) > 4 and values == sorted(values, reverse=True)
    browser.switch_to.active_element.send_keys(Keys.ENTER)
    assert one(browser, "#table-jaster th[aria-sort=ascending]").text == "NLI"
    one(browser, "#table-jaster button[data-column=model]").click()
    assert models(browser) == sorted(models(browser), key=str.lower)


def test_filtering(at: Any) -> None:
    browser = at()
    every = models(browser)
    one(browser, "body").send_keys("/")
    browser.switch_to.active_element.send_keys("step")
    assert len(every) > 2
    assert [name.split(" ")[0] for name in models(browser)] == ["m-step-200", "m-step-100"]
    one(browser, "#filter").send_keys("xyz")
    assert "no row fits" in one(browser, "main").text


def test_figures_are_those_of_the_results(at: Any, world: World) -> None:
    browser = at()
    content = json.loads((world.strong / "results.json").read_text(encoding="utf-8"))
    row = next(r for r in all_of(browser, "#table-jaster tbody tr") if r.text.startswith("strong-モデル"))
    cells = [cell.text.split("\n")[0] for cell in row.find_elements(By.CSS_SELECTOR, "td")]
    names = ["EL", "FA", "HE", "MC", "MR", "MT", "NLI", "QA", "RC"]
    expected = [content["average"]["AVG"]["value"], *(content["categories"][n]["value"] for n in names)]
    assert [cell.rstrip("≈*") for cell in cells] == [f"{value:.4f}" for value in expected]
    low, high = content["average"]["AVG"]["ci95"]
    assert f"±{(high - low) / 2:.4f}" in row.text
    average = row.find_element(By.CSS_SELECTOR, "td")
    assert f"{low:.4f}–{high:.4f}" in (average.get_attribute("title") or "")
    one(browser, "main .bar input[type=checkbox]").click()
    assert "±" not in one(browser, "#table-jaster").text


def test_a_cell_opens_its_samples_and_model_text_stays_text(at: Any) -> None:
    browser = at()
    title = browser.title
    row = next(r for r in all_of(browser, "#table-jaster tbody tr") if r.text.startswith("weak"))
    row.find_elements(By.CSS_SELECTOR, "button.cell")[7].click()
    assert browser.current_url.split("#")[1].startswith("samples/jamp")
    Select(all_of(browser, "main select")[3]).select_by_value("wrong")
    one(browser, "#sample-search").send_keys("document.title")
    assert all_of(browser, ".list button .wrong") and not all_of(browser, ".list button .right")
    shown = one(browser, "pre.completion")
    assert shown.text == SCRIPT
    assert shown.find_elements(By.CSS_SELECTOR, "mark")
    assert not all_of(browser, "pre img") and not all_of(browser, "pre script")
    assert browser.title == title
    details = one(browser, "#sample-detail").text
    for word in (
        "input",
        "gold answer",
        "completion",
        "prediction",
        "exact_match 0.000",
        "finish reason: stop",
    ):
        assert word in details


def test_the_whole_prompt_is_the_prompt(at: Any, world: World) -> None:
    browser = at("#samples/mawps?id=mawps%2Fdev%2F3")
    one(browser, "summary").click()
    shown = WebDriverWait(browser, 10, 0.02).until(lambda b: all_of(b, "pre.prompt"))
    prompt = shown[0].get_attribute("textContent") or ""
    assert prompt.startswith("以下は、タスクを説明する指示") and prompt.endswith("（3）\n\n### 応答:\n")
    assert prompt.count("### 入力:") == 5


def test_wrong_only_shows_just_the_wrong(at: Any, world: World) -> None:
    rows, _ = read_log(world.strong / "scores" / "jnli.jsonl")
    wrong = sum(row["values"]["exact_match"] < 1 for row in rows.values())
    browser = at("#samples/jnli?a=0&only=wrong")
    assert len(all_of(browser, ".list button[data-place]")) == wrong
    assert f"{wrong} of 24 samples" in one(browser, "main").text


def test_an_answer_that_is_partly_right_is_neither_right_nor_wrong(at: Any) -> None:
    browser = at("#samples/wiki_reading?a=0")
    scores = embedded(browser, "samples-wiki_reading")["runs"]["0"]["scores"]["char_f1"]
    partly = {place: score for place, score in enumerate(scores) if 0 < score < 1}
    assert partly
    for place, score in partly.items():
        assert f"△ {score:.2f}" in one(browser, f"button[data-place='{place}'] .id").text
    Select(all_of(browser, "main select")[3]).select_by_visible_text("not fully right")
    assert len(all_of(browser, ".list button[data-place]")) == sum(score < 1 for score in scores)


def test_keys_walk_through_samples(at: Any) -> None:
    browser = at("#samples/jnli?a=0")
    body = one(browser, "body")
    for key, expected in (("j", 1), ("j", 2), ("k", 1), (Keys.ARROW_DOWN, 2)):
        (browser.switch_to.active_element if key == Keys.ARROW_DOWN else body).send_keys(key)
        assert one(browser, ".list [aria-current]").get_attribute("data-place") == str(expected)
    assert one(browser, ".detail").text.startswith("jnli/dev/2")


def test_without_a_mouse(at: Any) -> None:
    browser = at()
    active = "return document.activeElement.id || document.activeElement.tagName"
    # The first stop leads past the tabs and stays on the view.
    one(browser, "body").send_keys(Keys.TAB)
    skip = browser.switch_to.active_element
    assert skip.text == "to the content" and skip.location["x"] >= 0 and skip.location["y"] >= 0
    skip.send_keys(Keys.ENTER)
    assert browser.execute_script(active) == "view" and "#" not in browser.current_url
    # From there Tab reaches the filter, then the first figure; Enter opens it, Escape leads back.
    browser.switch_to.active_element.send_keys(Keys.TAB)
    assert browser.execute_script(active) == "filter"
    outline = browser.execute_script("return getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    one(browser, "button.cell").send_keys(Keys.ENTER)
    assert "#samples/" in browser.current_url
    assert browser.execute_script(active) == "view"
    # A choice made with the keyboard keeps its place, though the view is drawn anew.
    select = all_of(browser, "main select")[0]
    select.send_keys(Keys.ARROW_DOWN)
    WebDriverWait(browser, 10, 0.02).until(lambda b: "samples/alt-j-to-e" in b.current_url)
    assert browser.switch_to.active_element == all_of(browser, "main select")[0]
    browser.switch_to.active_element.send_keys(Keys.ESCAPE)
    assert browser.execute_script(active) == "BODY"
    one(browser, "body").send_keys(Keys.ESCAPE)
    assert browser.current_url.endswith("#table") and models(browser)
    # Everything that takes a click has a name for those who do not see it.
    for where in ("#table", "#samples", "#pair", "#mt", "#steps", "#notes"):
        browser = at(where)
        there = all_of(browser, "button, select, input, a[href], [role=region]")
        tree = browser.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
        named = [node for node in tree if not node["ignored"] and node["role"]["value"] in CLICKED]
        assert len(named) >= len(there)
        assert all(node["name"]["value"] for node in named), named


def test_two_models_side_by_side_with_their_difference(at: Any) -> None:
    # Without a second model nothing can differ: the address then shows all.
    browser = at("#samples/jemhopqa?a=0&only=differ")
    assert len(all_of(browser, ".list button[data-place]")) == 24
    Select(all_of(browser, "main select")[2]).select_by_index(1)
    Select(all_of(browser, "main select")[3]).select_by_value("differ")
    index = {row["model"]: place for place, row in enumerate(embedded(browser, "data")["rows"])}
    asked = Select(all_of(browser, "main select")[1]).first_selected_option.text
    beside = Select(all_of(browser, "main select")[2]).first_selected_option.text
    runs = embedded(browser, "samples-jemhopqa")["runs"]
    scores = [runs[str(index[name])]["scores"]["char_f1"] for name in (asked, beside)]
    flipped = [place for place, (a, b) in enumerate(zip(*scores, strict=True)) if a != b]
    buttons = all_of(browser, ".list button[data-place]")
    assert [int(button.get_attribute("data-place") or "") for button in buttons] == flipped
    assert len(all_of(browser, ".two .answer")) == 2
    assert all_of(browser, ".two ins")


def test_the_pair_view_says_what_compare_says(
    at: Any, world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    strong, weak = str(world.strong), str(world.weak)
    assert main(["compare", strong, weak, "metrics.resamples=1000"]) == 0
    said = capsys.readouterr().out
    browser = at()
    names = browser.execute_script("return JSON.parse(document.getElementById('data').textContent).rows")
    index = {row["model"]: place for place, row in enumerate(names)}
    browser = at(f"#pair/{index['strong-モデル']}/{index['weak']}")
    for sentence in all_of(browser, "#sentences p"):
        assert sentence.text in said
    assert len(all_of(browser, "#table-pair tbody tr")) == 33
    browser = at(f"#pair/{index['strong-モデル']}/{index['other']}")
    assert "protocol.strip differs" in one(browser, "main").text
    # As it comes, the view shows a pair that compares.
    browser = at(f"#pair/{index['strong-モデル']}")
    assert all_of(browser, "#sentences p")


def test_conversations(at: Any) -> None:
    browser = at()
    row = next(r for r in all_of(browser, "#table-mt tbody tr") if r.text.startswith("weak"))
    row.find_elements(By.CSS_SELECTOR, "button.cell")[3].click()
    (talk,) = all_of(browser, "article")
    assert "humanitiesの問い3、一つ目" in talk.text and "humanitiesの問い3、二つ目" in talk.text
    assert f"{SCRIPT}3番の答え2" in talk.text
    for judgment in all_of(browser, ".judgment summary"):
        assert judgment.text == "gpt-4 (log): 4"
        judgment.click()
    assert f"{SCRIPT}講評 <b>3-2</b> Rating: [[4]]" in talk.text


def test_every_run_has_the_questions_of_its_preset(tmp_path: Path) -> None:
    """The same id is another question in another version of the questions."""
    for number in (1, 2):
        make_conversations(tmp_path / str(number), tmp_path / "runs" / str(number), "", number)
    benches = dict(enumerate(collect([tmp_path / "runs"]).mt_bench))
    found = page_samples.conversations(benches, None, None)
    asked = {len(found["runs"][row]): found["questions"][key] for row, key in found["asked"].items()}
    assert {n: len(turns) for n, turns in asked.items()} == {8: 8, 16: 16}
    assert asked[8][2] != asked[16][2] and asked[8][1] == asked[16][1]
    preset = tmp_path / "1" / "mirror" / "little.yaml"
    preset.write_text(preset.read_text(encoding="utf-8").replace("tokens: 16", "tokens: 17"))
    found = page_samples.conversations(benches, None, None)
    assert sorted(map(len, found["questions"].values())) == [0, 16]


def test_checkpoints(at: Any) -> None:
    browser = at("#steps")
    assert [row.text.split()[0] for row in all_of(browser, "#table-steps tbody tr")] == ["100", "200"]
    assert one(browser, "canvas").is_displayed()
    # Steps stand where their numbers are, not at equal distances.
    assert browser.execute_script(
        "return Chart.getChart(document.querySelector('canvas')).scales.x.type"
    ) == ("linear")


def test_every_field_that_a_model_its_data_or_a_judge_fills_stays_text(
    world: World, tmp_path: Path, at: Any
) -> None:
    """Names, texts, ids, reasons, rules: whatever a file of a run says is shown as it is."""
    evil = "</script><script>document.title='gone'</script><img src=x onerror=\"document.title='gone'\">"
    folder = Path(shutil.copytree(world.weak, tmp_path / "results" / "evil"))
    content = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    content["run"]["model"] = evil
    content["run"]["identity"]["model"] = {"hub": f"a/{evil}"}
    content["protocol"]["name"] = evil
    content["partial"] = {"partial": True, "reasons": [evil], "categories": {"NLI": [evil]}, "datasets": {}}
    for facts in content["run"]["datasets"].values():
        facts |= {"license": evil, "citation": evil}
    write_checked_json(folder / "results.json", {key: v for key, v in content.items() if key != CHECK})
    for kind, change in {
        "samples": {"input": evil, "completion": evil, "gold": evil, "finish_reason": evil},
        "scores": {"prediction": evil},
    }.items():
        rows, _ = read_log(folder / kind / "jamp.jsonl")
        write_lines_atomic(folder / kind / "jamp.jsonl", [{**row, **change} for row in rows.values()])
    damaged = tmp_path / "results" / "damaged <img src=x onerror=alert(1)>"
    damaged.mkdir()
    (damaged / "results.json").write_text(json.dumps({"schema_version": evil}), encoding="utf-8")
    mirror = make_conversations(tmp_path / "bench", tmp_path / "results" / "talks", evil)
    command = ["leaderboard", str(tmp_path / "results"), str(world.strong), "--partial", f"out={tmp_path}"]
    assert main([*command, f"mirror={mirror}", "metrics.resamples=100"]) == 0
    text = (tmp_path / "leaderboard.html").read_text(encoding="utf-8")
    assert text.count("</script>") == text.count("<script") and "<img" not in text
    for view in ("", "#samples/jamp?a=0&b=1", "#samples/jamp?a=1&b=0", "#pair/0/1", "#mt", "#notes"):
        browser = at(view, tmp_path / "leaderboard.html")
        assert evil in one(browser, "body").text or view.startswith("#pair")
        assert browser.title == "Leaderboard" and not all_of(browser, "img")
        if not view:
            copies_the_datasets(browser)


def test_charts_are_drawn(at: Any) -> None:
    browser = at()
    script = """return [...document.querySelectorAll('canvas')].map((canvas) => {
      const pixels = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
      return new Set(pixels).size; })"""
    colours = browser.execute_script(script)
    assert len(colours) == 2 and all(count > 20 for count in colours)
    labels = [canvas.get_attribute("aria-label") or "" for canvas in all_of(browser, "canvas")]
    assert all("95 %" in label for label in labels)
    # The first three are drawn; a tick in a row adds its model, with the colour of its dots.
    assert labels[0].count(", ") == 3
    all_of(browser, "#table-jaster tbody input")[3].click()
    assert (one(browser, "canvas").get_attribute("aria-label") or "").count(", ") == 4
    hues = [box.get_attribute("style") for box in all_of(browser, "#table-jaster tbody input")]
    assert len(set(hues[:4])) == 4


def contrast(one: str, other: str) -> float:
    """WCAG's contrast ratio of two colours `#rrggbb`."""

    def luminance(colour: str) -> float:
        parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def test_charts_can_be_seen_in_both_themes() -> None:
    assets = ROOT / "evalkit" / "leaderboard" / "assets"
    script, style = ((assets / name).read_text(encoding="utf-8") for name in ("charts.js", "page.css"))
    cards = re.findall(r"--card: (#\w{6})", style)
    hues = [re.findall(r"#\w{6}", found) for found in re.findall(r"(?:light|dark): \[(.*?)\]", script)]
    assert len(cards) == len(hues) == 2
    for card, colours in zip(cards, hues, strict=True):
        assert len(set(colours)) == 10 and all(contrast(card, colour) >= 3 for colour in colours)


def test_samples_by_score_and_by_label(at: Any) -> None:
    browser = at("#samples/wiki_reading?a=0&order=low")
    scores = embedded(browser, "samples-wiki_reading")["runs"]["0"]["scores"]["char_f1"]
    for order, sign in (("low", 1), ("high", -1)):
        Select(all_of(browser, "main select")[4]).select_by_value(order)
        places = [
            int(b.get_attribute("data-place") or "") for b in all_of(browser, ".list button[data-place]")
        ]
        shown = [sign * scores[place] for place in places]
        assert len(shown) == 24 and shown == sorted(shown)
    assert not all_of(browser, "#distribution")
    browser = at("#samples/jnli?a=0&b=1")
    one(browser, "#distribution summary").click()
    rows = [row.text.split() for row in all_of(browser, "#distribution tbody tr")]
    counts = [list(map(int, row[-3:])) for row in rows]
    assert {row[0] for row in rows} >= {"contradiction", "entailment", "neutral"}
    assert [sum(column) for column in zip(*counts, strict=True)] == [24, 24, 24]
    # What differs between two answers is marked, and not in the colour of what is right.
    colours = browser.execute_script("""const colour = (name) => {
      const box = document.body.appendChild(document.createElement(name));
      return getComputedStyle(box).backgroundColor; };
      return [colour('ins'), colour('mark')]""")
    assert colours[0] == colours[1]


def copies_the_datasets(browser: Browser) -> None:
    """What is copied is what is shown, the mark of partial figures too."""
    browser.execute_script(CLIPBOARD)
    all_of(browser, ".copy")[-1].find_elements(By.CSS_SELECTOR, "button")[1].click()
    figures = [line.split(",") for line in browser.execute_script("return window.said").splitlines()]
    shown = [row.text for row in all_of(browser, "#table-datasets tbody tr:not(.group)")]
    assert len(figures) == 1 + len(shown) == 24
    for (name, *values), row in zip(figures[1:], shown, strict=True):
        assert row.startswith(name) and all(value in row for value in values)
        assert [value.endswith("*") for value in values].count(True) == row.count("*") == 1


def test_tables_are_copied_and_explained(at: Any) -> None:
    browser = at()
    browser.execute_script(CLIPBOARD)
    for button in all_of(browser, ".copy")[0].find_elements(By.CSS_SELECTOR, "button"):
        button.click()
        text = browser.execute_script("return window.said")
        assert len(text.splitlines()) == len(models(browser)) + (2 if "|" in text else 1)
        assert "strong-モデル" in text and button.text == "copied"
    assert "NLI: natural language inference" in one(browser, ".legend").text
    assert one(browser, "#table-jaster th[aria-sort=descending]").text == "AVG"
    groups = [row.text for row in all_of(browser, "#table-datasets .group")]
    assert groups[:2] == ["EL · entity linking", "FA · fundamental analysis"] and len(groups) == 10
    names = all_of(browser, "#table-jaster tbody th")
    assert all(name.size["height"] < 60 for name in names)
    assert one(browser, ".range").text.startswith("±")
    browser = at("#notes")
    assert f"{MT_MODEL}: Japanese MT-Bench: " in one(browser, ".notes").text
    one(browser, ".facts summary").click()
    assert (
        "tokens per second" in one(browser, ".facts").text and "configuration" in one(browser, ".facts").text
    )


def make_pfgen(folder: Path, model: str) -> None:
    """Three answers to each of five questions, to the second two, with their parts and lacking keywords."""
    parts = ("score", "fluency", "truthfulness", "helpfulness", "length")
    rows = []
    for number in range(1, 6):
        answers = [
            {
                "id": f"Q{number:02}/{trial}",
                "prediction": f"答え{number}の{trial}",
                "values": dict(zip(parts, (0.1 * number, 0.7, 0.9, 0.3, 40.0), strict=True)),
                "missing": ["鍵"] if trial == 2 else [],
            }
            for trial in ((1, 3) if number == 2 else (1, 2, 3))
        ]
        rows.append({**answers[0], "id": f"Q{number:02}", "repeats": answers})
    write_lines_atomic(folder / "scores" / "pfgen.jsonl", rows)
    results = Results(
        scores={f"pfgen_{name}": Figure(0.3, 5, 0.02, (0.2, 0.4), "1") for name in parts},
        categories={},
        average={},
        datasets={"pfgen": DatasetRates([*parts], 5, 0.0, None, None)},
        partial=Partial(False),
        missing_metrics=[],
        protocol=ProtocolRecord("pfgen-bench", {"suite.pfgen": "completion"}, {}),
        run={"model": model, "suite": "pfgen"},
    )
    write_checked_json(folder / "results.json", results.to_json())


def test_an_answer_without_a_score_and_every_answer_of_pfgen(at: Any, world: World, tmp_path: Path) -> None:
    make_pfgen(tmp_path / "pfgen", "weak")
    (row,) = build_board([world.weak, tmp_path / "pfgen"]).rows
    assert "joined of 2 runs: jaster, pfgen" in row.remarks
    results = read_results(world.weak / "results.json")
    translations = replace(results.datasets["alt-e-to-j"], metrics=["bleu_ja"])
    datasets = {"jsts": results.datasets["jsts"], "alt-e-to-j": translations}
    results = replace(results, datasets=datasets, categories={}, average={})
    lacking = [jaster_row(FinishedRun(world.weak, results, 0, label=f"m-step-{step}")) for step in (1, 2)]
    page = tmp_path / "page.html"
    page.write_text(page_html(Board((row, *lacking), ()), PageOptions(resamples=100)), encoding="utf-8")
    # Without COMET a translation is neither right nor wrong, as is a single sample of a correlation.
    for dataset in ("alt-e-to-j", "jsts"):
        browser = at(f"#samples/{dataset}?a=1&only=wrong&order=low", page)
        buttons = all_of(browser, ".list button[data-place]")
        assert [button.get_attribute("data-place") for button in buttons] == [*map(str, range(24))]
        assert not re.search("[✓△✗]", one(browser, "main").text)
        assert [choice.text for choice in Select(all_of(browser, "main select")[3]).options] == ["all"]
    # Checkpoints without a figure in a table are shown by their datasets.
    browser = at("#steps", page)
    lines = [line.text.split("\n")[0] for line in all_of(browser, "#table-steps tr")]
    assert lines == ["step jsts", *(f"{step} {results.scores['jsts_pearson'].value:.4f}" for step in (1, 2))]
    points = "return Chart.getChart(document.querySelector('canvas')).data.datasets[0].data.length"
    assert browser.execute_script(points) == 2
    browser = at("#samples/pfgen?a=0&order=high", page)
    assert all_of(browser, ".list button")[0].text.split()[:2] == ["Q05", "0.50"]
    text = one(browser, "#sample-detail").text
    assert text.count("fluency 0.700 · truthfulness 0.900 · helpfulness 0.300") == 4
    assert all(f"答え5の{trial}" in text for trial in (1, 2, 3)) and text.count("missing keywords: 鍵") == 1
    assert "right" not in text and "wrong" not in text
    # Fewer answers to one question leave those to the others where they are.
    all_of(browser, ".list button")[3].click()
    text = one(browser, "#sample-detail").text
    assert text.startswith("Q02") and [*re.findall("答え.の.", text)] == ["答え2の1", "答え2の3"]


def test_a_large_board_is_packed_and_reads_its_data_once(
    at: Any, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[object] = []
    read = page_samples.load_suite
    monkeypatch.setattr(page_samples, "load_suite", lambda *a, **k: (calls.append(a), read(*a, **k))[1])
    monkeypatch.setattr("evalkit.leaderboard.page._PACKED_FROM", 1000)
    results = read_results(world.weak / "results.json")
    runs = [
        FinishedRun(world.weak, replace(results, run={**results.run, "model": f"m-{number}"}), number)
        for number in range(12)
    ]
    board = Board(tuple(map(jaster_row, runs)), ())
    text = page_html(board, PageOptions(resamples=100))
    # A further model costs little: its texts are those of the others.
    small = page_html(Board(board.rows[:1], ()), PageOptions(resamples=100))
    packed = r'(?s)<script type="application/gzip" id="samples-[^"]+">(.*?)</script>'
    sizes = [sum(map(len, re.findall(packed, page))) for page in (small, text)]
    assert len(calls) == 2 and 0 < sizes[0] < sizes[1] < 1.6 * sizes[0]
    page = tmp_path / "page.html"
    page.write_text(text, encoding="utf-8")
    browser = at("#samples/jamp?a=3", page)
    WebDriverWait(browser, 10, 0.02).until(lambda b: all_of(b, ".list button[data-place]"))
    assert len(all_of(browser, ".list button[data-place]")) == 24 and "前提" in one(browser, "pre.input").text


def test_dark_and_japanese(at: Any) -> None:
    browser = at()
    back = "return getComputedStyle(document.body).backgroundColor"
    before = browser.execute_script(back)
    one(browser, "#theme").click()
    assert browser.execute_script(back) != before
    one(browser, "#theme").click()
    one(browser, "#language").click()
    assert "リーダーボード" in one(browser, "header").text and "データセット" in one(browser, "main").text
    assert browser.execute_script("return document.documentElement.lang") == "ja"
    english = re.compile(r"\b[a-z]{2,} [a-z]{2,} [a-z]{2,}\b")
    for view in ("#table", "#samples", "#pair/0/1", f"#pair/0/{len(models(browser)) - 1}", "#mt", "#notes"):
        browser.execute_script("location.hash = arguments[0]", view)
        WebDriverWait(browser, 10, 0.02).until(lambda b, view=view: view in b.current_url)
        text = one(browser, "main").text.split("\nデータ\n")[0]
        ours = [line for line in text.splitlines() if english.search(line)]
        # Names of columns, and texts of the data.
        # One question for hundreds of texts.
        texts = "return [...document.querySelectorAll(arguments[0])].map(node => node.innerText).join(' ')"
        data = " ".join(browser.execute_script(texts, "pre, .list .line, thead, p.soft").split())
        assert not [line for line in ours if " ".join(line.split()) not in data], view


@pytest.mark.parametrize("view", ["", "#samples/jamp?a=0&b=1", "#pair", "#mt", "#steps", "#notes"])
def test_a_phone_needs_no_sideways_scrolling(at: Any, view: str, page: Path, tmp_path: Path) -> None:
    browser, text = at(), page.read_text(encoding="utf-8")
    named = tmp_path / "named.html"
    assert '"model":"other"' in text
    long = text.replace('"model":"other"', f'"model":"other{"-long" * 15}"')
    named.write_text(long, encoding="utf-8")
    # Headless Chromium has no window narrower than 500 pixels; a phone's width is emulated.
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": 390, "height": 800, "deviceScaleFactor": 2, "mobile": True},
    )
    try:
        browser = at(view, named)
        assert browser.execute_script("return document.documentElement.clientWidth") == 390
        assert browser.execute_script("return document.documentElement.scrollWidth") <= 390
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_nothing_is_fetched(at: Any, page: Path) -> None:
    for view in ("", "#samples", "#pair", "#mt", "#notes"):
        browser = at(view)
        assert browser.execute_script("return performance.getEntriesByType('resource').length") == 0
    text = page.read_text(encoding="utf-8")
    assert not re.search(r"<(?:script|link|img|iframe)[^>]+(?:src|href)\s*=", text)
    assert "default-src 'none'" in text


def test_a_script_that_got_in_would_not_run_and_the_console_would_tell(
    at: Any, page: Path, tmp_path: Path
) -> None:
    changed = tmp_path / "changed.html"
    script = "<script>document.title = 'gone'</script><img src='https://example.org/x.png'>"
    changed.write_text(page.read_text(encoding="utf-8").replace("<main", f"{script}<main"), encoding="utf-8")
    browser = at(of=changed)
    assert browser.title == "Leaderboard"
    said = [entry["message"] for entry in browser.get_log("browser")]
    assert len(said) == 2 and all("Content Security Policy" in line for line in said)


def test_the_page_is_small_and_its_data_cannot_leave_their_element(page: Path, world: World) -> None:
    text = page.read_text(encoding="utf-8")
    samples = sum(len(m[0]) for m in re.finditer(r'(?s)<script type="application/json".*?</script>', text))
    assert len(text.encode()) - samples < 5e6
    assert SCRIPT not in text and "document.title='gone'" in text
    blocks = re.findall(r'(?s)<script type="application/json" id="[^"]+">(.*?)</script>', text)
    assert len(blocks) == 2 + 23
    assert all(json.loads(block) for block in blocks)
    odd = {"text": "</script><!--<script>]]>&\u2028\ud800", "number": 0.5}
    made = embedded_json(odd)
    assert json.loads(made) == odd and not set("<>&") & set(made)
    made.encode("utf-8")


def test_the_command_speaks_japanese(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from evalkit.core import words
    from evalkit.core.config import Lang

    try:
        assert (
            main(
                ["leaderboard", str(world.results), f"out={tmp_path}", "lang=ja", "--format", "markdown,html"]
            )
            == 0
        )
        assert "モデル" in capsys.readouterr().out
        assert "# リーダーボード" in (tmp_path / "leaderboard.md").read_text(encoding="utf-8")
        assert '<html lang="ja">' in (tmp_path / "leaderboard.html").read_text(encoding="utf-8")
        assert main(["compare", str(world.strong), str(world.weak), "lang=ja", "metrics.resamples=200"]) == 0
        assert "平均では strong-モデル の方が優れている" in capsys.readouterr().out
    finally:
        words.use(Lang.en)


def test_a_thought_is_folded_and_every_answer_is_shown(
    at: Any, world: World, tmp_path: Path, browser: Browser
) -> None:
    results, evil = tmp_path / "results", f"{SCRIPT}よく考える。"
    words = ("suite=task", "suite.tasks=[jcommonsenseqa]", "suite.chat=true", "reasoning.parser=think")
    make_run(Made("once", 0.9, 1, thought=evil), world.data, results, *words)
    sampled = ("generation.do_sample=true", "samples=2")
    make_run(Made("twice", 0.1, 2, thought="もう一度。"), world.data, results, *words, *sampled)
    assert main(["leaderboard", str(results), f"out={tmp_path}", "metrics.resamples=100"]) == 0
    for model, answers in (("once", 1), ("twice", 2)):
        at("", tmp_path / "leaderboard.html")
        row = [one["model"] for one in embedded(browser, "data")["rows"]].index(model)
        at(f"#samples/jcommonsenseqa?a={row}", tmp_path / "leaderboard.html")
        shown = one(browser, "#sample-detail")
        thoughts = all_of(browser, "details.thought")
        assert len(thoughts) == len(all_of(browser, "pre.completion")) == answers
        assert "answered rule: think" in shown.text and "考える" not in shown.text
        assert ("answer 2 of 2" in shown.text) is (answers == 2)
        one(browser, "#distribution summary").click()
        counts = [re.findall(r"[\d.]+$", line.text)[0] for line in all_of(browser, "#distribution tbody tr")]
        assert sum(map(float, counts)) == 24
        thoughts[0].find_element(By.CSS_SELECTOR, "summary").click()
        text = WebDriverWait(browser, 10, 0.02).until(lambda b: all_of(b, "details.thought pre"))[0].text
        assert text == (evil if answers == 1 else "もう一度。")
        assert not all_of(browser, "pre img")
