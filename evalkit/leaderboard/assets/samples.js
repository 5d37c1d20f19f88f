const sampleRuns = (dataset) => Object.keys(samplesOf(dataset).runs).map(Number);

// The answers of a row to a dataset, by the sample's place; built once.
const answersOf = (() => {
  const kept = {};
  return (dataset, row) => (kept[`${row} ${dataset}`] ??= (() => {
    const run = samplesOf(dataset).runs[row];
    const found = new Map();
    if (run) run.at.forEach((place, index) => found.set(place, index));
    return { run, found };
  })());
})();

const scoreOf = (dataset, row, place) => {
  const { run, found } = answersOf(dataset, row);
  const scores = run && run.metric ? run.scores[run.metric] : null;
  const index = found.get(place);
  return scores && index !== undefined ? scores[index] : null;
};
// Of a question that was asked several times, the first prediction.
const predictionOf = (dataset, row, place) => {
  const { run, found } = answersOf(dataset, row);
  const index = found.get(place);
  return index === undefined ? null : run.prediction[run.start[index]];
};
// "right", "partly", "wrong", or null without an answer; "scored" where no score is right or wrong, or the
// answer has none: its metric could not be computed, or is a correlation.
const verdictOf = (dataset, row, place) => {
  if (predictionOf(dataset, row, place) === null) return null;
  const score = scoreOf(dataset, row, place);
  if (data.datasets[dataset].scored || score === null) return "scored";
  return score >= 1 ? "right" : score > 0 ? "partly" : "wrong";
};
const SIGNS = { right: "✓", partly: "△", wrong: "✗", scored: "" };
const differ = (dataset, row, other, place) => {
  const scores = [row, other].map((who) => scoreOf(dataset, who, place));
  const said = scores.includes(null) ? [row, other].map((who) => predictionOf(dataset, who, place)) : scores;
  return said[0] !== said[1];
};

const marked = (text, query) => {
  if (!query) return [text];
  const parts = [];
  const low = text.toLowerCase();
  const wanted = query.toLowerCase();
  let from = 0;
  for (let at = low.indexOf(wanted); at >= 0 && parts.length < 2000; at = low.indexOf(wanted, from)) {
    parts.push(text.slice(from, at), el("mark", {}, text.slice(at, at + wanted.length)));
    from = at + wanted.length;
  }
  return [...parts, text.slice(from)];
};

const found = (dataset, place, rows, query) => {
  if (!query) return true;
  const { ids, inputs, golds } = samplesOf(dataset);
  const texts = [ids[place], inputs[place], golds[place]];
  for (const row of rows) {
    const { run, found: at } = answersOf(dataset, row);
    const index = at.get(place);
    if (index === undefined) continue;
    for (let one = run.start[index]; one < run.start[index] + run.each[index]; one += 1) {
      texts.push(run.text[one] || "", run.prediction[one], run.thought?.[one] || "");
    }
  }
  return texts.some((text) => text.toLowerCase().includes(query.toLowerCase()));
};

const promptOf = (dataset, row, place) => {
  const { around, inputs } = samplesOf(dataset);
  const { run } = answersOf(dataset, row);
  return run && run.prompt !== null ? around[run.prompt][0] + inputs[place] + around[run.prompt][1] : null;
};

const STATUSES = {
  answered: () => t("answered"), no_thought: () => t("no thought"), late_thought: () => t("late thought"), unclosed: () => t("unclosed"),
  empty: () => t("empty"), cut_off: () => t("cut off"), tool_call: () => t("tool call"),
};
const statusLabel = (status) => (status && STATUSES[status] ? el("span", { class: `kind status ${status}` }, STATUSES[status]()) : null);
// A thought stays folded, and is drawn when it is opened: it may be very long.
const thoughtBox = (thought, query) => {
  if (!thought) return null;
  const box = el("details", { class: "thought" }, el("summary", {}, t("thought, {n} characters", { n: [...thought].length })));
  const fill = () => { if (!box.querySelector("pre")) box.append(el("pre", { lang: "ja" }, marked(thought, query))); };
  box.addEventListener("toggle", () => { if (box.open) fill(); });
  if (query && thought.toLowerCase().includes(query.toLowerCase())) { fill(); box.open = true; }
  return box;
};
const instructionsAsked = (gold) => {
  try { return JSON.parse(gold).kwargs; } catch { return []; }
};
const verdictList = (dataset, run, index, place) => {
  const verdicts = run.verdicts ? run.verdicts[index] : null;
  if (!verdicts) return [];
  const said = (text) => (Object.hasOwn(run.reasons, text) ? filled(run.reasons[text]) : t(text));
  const asked = instructionsAsked(samplesOf(dataset).golds[place]);
  const line = (one, at) => {
    const sign = one.strict ? "right" : one.loose ? "partly" : "wrong";
    const given = Object.entries(asked[at] || {}).map(([name, value]) => `${name}=${Array.isArray(value) ? value.join(", ") : value}`);
    return el("li", {}, el("span", { class: sign }, SIGNS[sign]), " ", el("code", {}, one.kind), " ",
      el("span", { class: "soft", lang: "ja" }, given.join(" ")), el("br"), said(one.reason),
      one.loose && !one.strict ? `; ${t("passes loosely without {what}", { what: t(one.removed) })}` : null,
      one.unsatisfiable ? el("b", {}, el("br"), `${t("no answer can pass")}: ${said(one.unsatisfiable)}`) : null);
  };
  return [el("div", { class: "label" }, t("instructions")), el("ul", { class: "small" }, verdicts.map(line))];
};

// How often each label is the gold answer and was answered, each of several answers to a question counting
// for its share; null where answers are free texts, of which none is malformed.
const MOST_LABELS = 12;
const distribution = (dataset, rows) => {
  const { golds } = samplesOf(dataset);
  const malformed = data.rows[rows[0]].rates[dataset]?.[2];
  if (malformed === null || malformed === undefined) return null;
  const labels = [...new Set(golds)].sort((a, b) => a.localeCompare(b, undefined, { numeric: true }));
  if (labels.length < 2 || labels.length > MOST_LABELS || labels.length * 2 > golds.length || labels.some((label) => label.length > 40)) return null;
  const count = (questions) => {
    const found = new Map();
    for (const texts of questions) for (const text of texts) {
      const label = labels.includes(text) ? text : null;
      found.set(label, (found.get(label) || 0) + 1 / texts.length);
    }
    return found;
  };
  const asked = [...answersOf(dataset, rows[0]).found.keys()];
  const answers = ({ prediction, start, each }) => start.map((from, index) => prediction.slice(from, from + each[index]));
  const columns = [[t("gold answer"), count(asked.map((place) => [golds[place]]))],
    ...rows.map((row) => [rowName(row), count(answers(samplesOf(dataset).runs[row]))])];
  const lines = [...labels, ...(columns.some(([, found]) => found.has(null)) ? [null] : [])];
  const most = Math.max(...columns.flatMap(([, found]) => [...found.values()]));
  return el("details", { class: "small", id: "distribution" }, el("summary", {}, t("answers by label")),
    el("div", { class: "scroll" }, el("table", {},
      el("thead", {}, el("tr", {}, [t("label"), ...columns.map(([name]) => name)].map((head) => el("th", { scope: "col" }, head)))),
      el("tbody", {}, lines.map((label) => el("tr", {}, el("th", { scope: "row", lang: "ja" }, label ?? t("anything else")),
        columns.map(([, found]) => el("td", {}, String(Number((found.get(label) || 0).toFixed(2))), " ",
          el("progress", { max: most, value: found.get(label) || 0, "aria-hidden": "true" })))))))));
};

const answerBox = (dataset, row, place, query, other) => {
  const { run, found: at } = answersOf(dataset, row);
  const index = at.get(place);
  if (index === undefined) return el("div", {}, el("h3", {}, rowName(row)), el("p", { class: "soft" }, t("not answered in this run")));
  const verdict = verdictOf(dataset, row, place);
  const scores = Object.entries(run.scores).filter(([, values]) => values[index] !== null).map(([name, values]) => `${name} ${number(values[index], 3)}`);
  const theirs = other === null ? null : answersOf(dataset, other);
  const otherIndex = theirs ? theirs.found.get(place) : undefined;
  const each = run.each[index];
  const show = (own, another) => (another === undefined || another === null ? marked(own, query) : differing(own, another));
  const one = (repeat) => {
    const at = run.start[index] + repeat;
    const beside = (kind) => (otherIndex === undefined || repeat >= theirs.run.each[otherIndex] ? null : theirs.run[kind][theirs.run.start[otherIndex] + repeat]);
    const text = run.text[at];
    const own = each === 1 ? scores : Object.entries(run.own).filter(([, values]) => values[at] !== null).map(([name, values]) => `${name} ${number(values[at], 3)}`);
    return [
      each === 1 ? null : el("h4", {}, t("answer {n} of {all}", { n: repeat + 1, all: each })),
      run.rule ? el("p", { class: "small" }, statusLabel(run.status[at]), " ", el("span", { class: "soft" }, t("rule: {rule}", { rule: run.rule }))) : null,
      run.rule ? thoughtBox(run.thought[at], query) : null,
      ...verdictList(dataset, run, at, place),
      text === null && data.datasets[dataset].scored ? null : el("div", { class: "label" }, run.rule && !run.anew ? t("answer") : t("completion")),
      text === null ? data.datasets[dataset].scored ? null : el("p", { class: "soft small" }, t("not kept in this run")) : el("pre", { class: "completion", lang: "ja" }, show(text, beside("text"))),
      el("div", { class: "label" }, text === null ? t("answer") : t("prediction")),
      el("pre", { class: "prediction", lang: "ja" }, show(run.prediction[at], beside("prediction"))),
      run.missing?.[at]?.length ? el("p", { class: "small" }, t("missing keywords: {names}", { names: run.missing[at].join(", ") })) : null,
      el("p", { class: "small" }, [...own, run.finish[at] ? `${t("finish reason")}: ${run.finish[at]}` : null, run.tokens[at] === null ? null : t("{n} tokens", { n: run.tokens[at] })].filter(Boolean).join(" · ")),
    ];
  };
  return el("div", { class: "answer" },
    el("h3", {}, rowName(row), " ", verdict === "scored" ? null
      : el("span", { class: verdict }, `${SIGNS[verdict]} ${{ right: t("right"), partly: t("partly right"), wrong: t("wrong") }[verdict]}`)),
    each === 1 ? null : el("p", { class: "small" }, t("mean of {n} answers", { n: each }), ": ", scores.join(" · ")),
    Array.from({ length: each }, (_, repeat) => one(repeat)).flat());
};

const sampleDetail = (dataset, place, row, other, query) => {
  const { ids, inputs, golds } = samplesOf(dataset);
  const prompt = promptOf(dataset, row, place);
  const whole = el("details", {}, el("summary", {}, t("whole prompt")),
    prompt !== null ? null : el("p", { class: "soft small" }, answersOf(dataset, row).run.chat
      ? t("A chat: the model's template made the prompt of this input; the verb prompts writes it.")
      : t("The prepared data was not at hand when the page was made (data_dir=DIR); the input is above.")));
  if (prompt !== null) whole.addEventListener("toggle", () => { if (whole.open && !whole.querySelector("pre")) whole.append(el("pre", { class: "prompt", lang: "ja" }, prompt)); });
  return el("section", { class: "detail", "aria-label": ids[place] },
    el("div", { class: "soft small" }, ids[place]),
    el("div", { class: "label" }, t("input")),
    inputs[place] === "" ? el("p", { class: "soft small" }, t("not kept in this run")) : el("pre", { class: "input", lang: "ja" }, marked(inputs[place], query)), whole,
    // Instructions are listed with what came of them.
    ...(data.datasets[dataset].scored || answersOf(dataset, row).run.verdicts ? [] : [el("div", { class: "label" }, t("gold answer")), el("pre", { class: "gold", lang: "ja" }, marked(golds[place], query))]),
    el("div", { class: other === null ? "" : "two" }, answerBox(dataset, row, place, query, other), other === null ? null : answerBox(dataset, other, place, query, row)));
};

views.samples = (view, parts, query) => {
  const names = Object.keys(data.datasets).filter((name) => has(`samples-${name}`));
  if (!names.length) return view.append(el("p", { class: "empty" }, t("there are no samples")));
  const dataset = names.includes(parts[0]) ? parts[0] : names[0];
  const block = `samples-${dataset}`;
  if (isPacked(block)) {
    unpack(block).then(draw);
    return view.append(el("p", { class: "empty", role: "status" }, t("reading the samples …")));
  }
  const runs = sampleRuns(dataset);
  const row = runs.includes(Number(query.get("a") ?? NaN)) ? Number(query.get("a")) : runs[0];
  const other = query.get("b") !== null && runs.includes(Number(query.get("b"))) && Number(query.get("b")) !== row ? Number(query.get("b")) : null;
  const options = { q: query.get("q") || "", only: query.get("only") || "all", order: query.get("order") || "" };
  const answered = [...answersOf(dataset, row).found.keys()];
  const verdicts = new Set(answered.map((at) => verdictOf(dataset, row, at)));
  const graded = ["right", "partly", "wrong"].some((verdict) => verdicts.has(verdict));
  const hasScores = answered.some((at) => scoreOf(dataset, row, at) !== null);
  if (options.only === "differ" ? other === null : !graded) options.only = "all";
  if (!hasScores) options.order = "";
  let place = null;
  let shown = state.list;
  const list = el("div", { class: "list", role: "group", "aria-label": t("samples"), id: "sample-list" });
  const detail = el("div", { id: "sample-detail" });
  const count = el("span", { class: "soft small", role: "status" });
  let places = [];

  const keep = (at) => found(dataset, at, other === null ? [row] : [row, other], options.q) && (
    options.only === "all" || (options.only === "wrong" && ["partly", "wrong"].includes(verdictOf(dataset, row, at)))
    || (options.only === "differ" && other !== null && answersOf(dataset, other).found.has(at) && differ(dataset, row, other, at)));
  const open = (at, focus = false) => {
    place = at;
    replaceQuery({ id: samplesOf(dataset).ids[at] });
    detail.replaceChildren(sampleDetail(dataset, at, row, other, options.q));
    for (const button of list.querySelectorAll("button[data-place]")) {
      const here = Number(button.dataset.place) === at;
      if (here) button.setAttribute("aria-current", "true"); else button.removeAttribute("aria-current");
      if (here && focus) button.focus();
    }
  };
  const verdictSign = (who, at) => {
    const verdict = verdictOf(dataset, who, at);
    const score = scoreOf(dataset, who, at);
    if (verdict === null || (verdict === "scored" && score === null)) return "– ";
    return el("span", { class: verdict }, SIGNS[verdict], ["partly", "scored"].includes(verdict) ? ` ${number(score, 2)}` : null, " ");
  };
  const fill = () => {
    const { ids, inputs } = samplesOf(dataset);
    places = ids.map((id, at) => at).filter((at) => answersOf(dataset, row).found.has(at) && keep(at));
    if (options.order) {
      const score = (at) => scoreOf(dataset, row, at) ?? 0;
      places.sort((one, two) => (options.order === "low" ? 1 : -1) * (score(one) - score(two)));
    }
    count.textContent = t("{shown} of {all} samples", { shown: places.length, all: answersOf(dataset, row).found.size });
    list.replaceChildren(...places.slice(0, shown).map((at) => el("button", { type: "button", "data-place": at, onclick: () => open(at) },
      el("span", { class: "id" }, ids[at], el("span", {}, verdictSign(row, at), other === null ? null : verdictSign(other, at))),
      el("span", { class: "line", lang: "ja" }, inputs[at].slice(0, 120)))));
    if (places.length > shown) list.append(el("button", { type: "button", onclick: () => { shown += 500; fill(); } }, t("show more")));
    if (!places.length) { list.append(el("p", { class: "empty" }, t("no sample fits"))); detail.replaceChildren(); }
    else open(places.includes(place) ? place : places[0]);
  };
  const asked = samplesOf(dataset).ids.indexOf(query.get("id"));
  if (asked >= 0) place = asked;
  const move = (by) => {
    const next = places[places.indexOf(place) + by];
    if (next !== undefined) open(next, true);
  };
  list.addEventListener("keydown", (event) => {
    const by = { ArrowDown: 1, ArrowUp: -1, j: 1, k: -1 }[event.key];
    if (by) { event.preventDefault(); move(by); }
  });
  const search = el("input", { type: "search", id: "sample-search", value: options.q, placeholder: t("search in samples"), "aria-label": t("search in samples"),
    oninput: (event) => { options.q = event.target.value; replaceQuery({ q: options.q }); fill(); } });
  const about = data.datasets[dataset];
  view.append(
    el("div", { class: "bar" },
      choice(t("dataset"), names.map((name) => [name, name]), dataset, (name) => go("samples", [name], { a: row, b: other, q: options.q, only: options.only, order: options.order })),
      choice(t("model"), runs.map((run) => [run, rowName(run)]), row, (run) => go("samples", [dataset], { a: run, b: other, q: options.q, only: options.only, order: options.order })),
      choice(t("beside"), [["", "–"], ...runs.filter((run) => run !== row).map((run) => [run, rowName(run)])], other ?? "", (run) => go("samples", [dataset], { a: row, b: run, q: options.q, only: options.only, order: options.order })),
      choice(t("show"), [["all", t("all")], ...(graded ? [["wrong", verdicts.has("partly") ? t("not fully right") : t("wrong only")]] : []), ...(other === null ? [] : [["differ", t("only where they differ")]])], options.only,
        (only) => { options.only = only; replaceQuery({ only }); fill(); }),
      choice(t("order"), [["", t("as asked")], ...(hasScores ? [["low", t("lowest score first")], ["high", t("highest score first")]] : [])], options.order,
        (order) => { options.order = order; replaceQuery({ order }); fill(); }),
      search, count),
    el("p", { class: "soft small" }, [about.category, samplesOf(dataset).runs[row].metric, about.license, about.citation].filter(Boolean).join(" · ")),
    el("div", { class: "split" }, list, el("div", {}, detail, distribution(dataset, other === null ? [row] : [row, other]))));
  fill();
};
