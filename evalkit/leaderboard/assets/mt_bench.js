const talks = () => read("mt-bench");
const mtRuns = () => data.talks;
// The turns of a question as a row was asked it.
const askedOf = (row, entry) => talks().questions[talks().asked[row]]?.[entry.question] || [];

const judgmentBox = (judgment) => el("details", { class: "judgment" },
  el("summary", {}, `${judgment.judge}: `, el("strong", {}, judgment.rating === null ? judgment.status : String(judgment.rating))),
  el("pre", { lang: "ja" }, judgment.text ?? t("no text")));

const talkBox = (row, entry, q) => {
  const asked = askedOf(row, entry);
  return el("article", { class: "card", "data-question": entry.question },
    el("h3", {}, `${entry.category} · ${entry.question}` + (entry.answer ? ` · ${t("answer")} ${entry.answer + 1}` : "")),
    Object.entries(entry.turns).map(([turn, said]) => el("div", {},
      el("div", { class: "label" }, `${t("turn")} ${turn}${asked[turn - 1] === undefined ? "" : `: ${t("question")}`}`),
      asked[turn - 1] === undefined ? null : el("pre", { lang: "ja" }, asked[turn - 1]),
      el("div", { class: "label" }, `${t("answer")}${said.finish === "length" ? ` (${t("cut off")})` : ""}`, " ", statusLabel(said.status)),
      thoughtBox(said.thought, q), el("pre", { lang: "ja", class: "completion" }, said.text),
      said.judgments.map(judgmentBox))));
};

views.mt = (view, parts, query) => {
  const runs = mtRuns();
  if (!runs.length) return view.append(el("p", { class: "empty" }, t("there are no MT-Bench conversations")));
  if (isPacked("mt-bench")) {
    unpack("mt-bench").then(draw);
    return view.append(el("p", { class: "empty", role: "status" }, t("reading the samples …")));
  }
  const row = runs.includes(Number(parts[0])) && parts[0] !== undefined ? Number(parts[0]) : runs[0];
  const other = parts[1] !== undefined && runs.includes(Number(parts[1])) && Number(parts[1]) !== row ? Number(parts[1]) : null;
  const categories = [...new Set(talks().runs[row].map((entry) => entry.category))];
  const category = query.get("category") || "";
  const q = (query.get("q") || "").toLowerCase();
  const fits = (entry) => (!category || entry.category === category)
    && (!q || JSON.stringify([entry.turns, askedOf(row, entry)]).toLowerCase().includes(q));
  const entries = talks().runs[row].filter(fits);
  const beside = (entry) => (other === null ? null : talks().runs[other].find((theirs) => theirs.question === entry.question && theirs.answer === entry.answer));
  view.append(el("div", { class: "bar" },
    choice(t("model"), runs.map((run) => [run, rowName(run)]), row, (run) => go("mt", [run], { category })),
    choice(t("beside"), [["", "–"], ...runs.filter((run) => run !== row).map((run) => [run, rowName(run)])], other ?? "", (run) => go("mt", run === "" ? [row] : [row, run], { category })),
    choice(t("category"), [["", t("all")], ...categories.map((name) => [name, name])], category, (name) => go("mt", other === null ? [row] : [row, other], { category: name })),
    el("input", { type: "search", value: query.get("q") || "", placeholder: t("search in conversations"), "aria-label": t("search in conversations"),
      onchange: (event) => go("mt", other === null ? [row] : [row, other], { category, q: event.target.value }) }),
    el("span", { class: "soft small", role: "status" }, t("{n} conversations", { n: entries.length }))));
  if (entries.some((entry) => !askedOf(row, entry).length)) {
    view.append(el("p", { class: "soft small" }, t("The question file was not at hand when the page was made (mirror=DIR).")));
  }
  for (const entry of entries) {
    const theirs = beside(entry);
    view.append(other === null ? talkBox(row, entry, q) : el("div", { class: "two" }, talkBox(row, entry, q), theirs ? talkBox(other, theirs, q) : el("p", { class: "soft" }, t("not answered in this run"))));
  }
  return undefined;
};
