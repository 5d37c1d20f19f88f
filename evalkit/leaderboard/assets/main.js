const LABELS = {
  suite: () => t("suite"), folder: () => t("folder"), seconds: () => t("seconds of generating"), tokens: () => t("tokens generated"), speed: () => t("tokens per second"),
  engine: () => t("engine"), dtype: () => "dtype", versions: () => t("versions"), machine: () => t("machine"),
};
const runFacts = (row, { config, ...facts }) => el("details", { class: "small facts" }, el("summary", {}, `${row.model} · ${facts.suite || facts.folder}`),
  el("dl", {}, Object.entries(facts).filter(([, value]) => value !== null).flatMap(([name, value]) =>
    [el("dt", {}, LABELS[name]()), el("dd", {}, value.toLocaleString(state.lang))])),
  config ? el("details", {}, el("summary", {}, t("configuration")), el("pre", {}, config)) : null);

views.notes = (view) => {
  const list = (items) => el("ul", { class: "notes" }, items.map((item) => el("li", {}, item)));
  const of = (models, note) => (models.length > 1 ? t("{n} models ({names}): {note}", { n: models.length, names: models.join(", "), note: shown(note) })
    : [...models, shown(note)].join(": "));
  const rules = {};
  for (const table of data.tables) {
    table.rows.forEach((row, place) => {
      if (table.rules[place]) (rules[`${t(table.title)}: ${shown(table.rules[place])}`] ??= []).push(data.rows[row].model);
    });
  }
  view.append(el("h2", {}, t("Rows")), list([...Object.entries(rules).map(([rule, models]) => of(models, rule)),
    ...data.notes.map(([models, note]) => of(models, note))]));
  if (data.leftOut.length) view.append(el("h2", {}, t("Not shown")), list(data.leftOut.map(([models, paths, reason]) =>
    [of(models, reason), el("div", { class: "soft small" }, paths.join(", "))])));
  if (data.rows.some((row) => row.facts.length)) view.append(el("h2", {}, t("Runs")), ...data.rows.flatMap((row) => row.facts.map((one) => runFacts(row, one))));
  const licences = Object.entries(data.datasets).map(([name, about]) => `${name}: ${[about.license, about.citation].filter(Boolean).join("; ") || "–"}`);
  if (licences.length) view.append(el("h2", {}, t("Data")), list(licences));
  view.append(el("p", { class: "soft small" }, "Chart.js (MIT), https://www.chartjs.org"));
};

const TABS = [["table", "Leaderboard"], ["samples", "Samples"], ["pair", "Two models"], ["mt", "MT-Bench"], ["steps", "Checkpoints"], ["notes", "Notes"]];
const hasView = {
  samples: () => Object.keys(data.datasets).length > 0,
  pair: () => pairRows().length > 1,
  mt: () => mtRuns().length > 0,
  steps: () => Object.keys(series()).length > 0,
};

const wantedTheme = () => {
  try { return localStorage.getItem("evalkit-theme"); } catch { return null; }
};
const setTheme = (theme) => {
  document.documentElement.dataset.theme = theme;
  const button = document.getElementById("theme");
  button.textContent = theme === "dark" ? "☀" : "☾";
  button.setAttribute("aria-label", theme === "dark" ? t("light") : t("dark"));
};

// What is used of a view without a mouse, so that drawing it anew does not lose the place.
const controls = () => [...document.querySelectorAll("main .bar :is(select, input, button)")];
let drawn = null;

const draw = () => {
  const { view, parts, query } = route();
  const main = document.getElementById("view");
  const used = controls().indexOf(document.activeElement);
  dropCharts();
  main.replaceChildren();
  document.documentElement.lang = state.lang;
  document.title = t("Leaderboard");
  document.getElementById("title").textContent = t("Leaderboard");
  document.getElementById("tabs").replaceChildren(...TABS.filter(([name]) => (hasView[name] || (() => true))()).map(([name, label]) =>
    el("a", { href: `#${name}`, "aria-current": name === view ? "page" : null }, t(label))));
  const other = state.lang === "ja" ? "en" : "ja";
  const language = document.getElementById("language");
  language.textContent = other === "ja" ? "日本語" : "English";
  language.lang = other;
  document.getElementById("foot").textContent = `evalkit ${data.version} · ${t("keys: / search, j k next and previous sample, Esc back")}`;
  document.getElementById("skip").textContent = t("to the content");
  document.getElementById("tabs").setAttribute("aria-label", t("views"));
  setTheme(document.documentElement.dataset.theme);
  views[view](main, parts, query);
  if (view === drawn) controls()[used]?.focus({ preventScroll: true });
  else if (drawn !== null) {
    main.focus({ preventScroll: true });
    scrollTo(0, 0);
  }
  drawn = view;
};

document.getElementById("language").addEventListener("click", () => {
  state.lang = state.lang === "ja" ? "en" : "ja";
  draw();
});
document.getElementById("theme").addEventListener("click", () => {
  const theme = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
  try { localStorage.setItem("evalkit-theme", theme); } catch { /* a page without storage keeps no choice */ }
  setTheme(theme);
  draw();
});
document.getElementById("skip").addEventListener("click", (event) => {
  event.preventDefault();
  document.getElementById("view").focus();
});
window.addEventListener("hashchange", draw);
document.addEventListener("keydown", (event) => {
  const typing = ["INPUT", "SELECT", "TEXTAREA"].includes(document.activeElement?.tagName);
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "Escape") {
    if (typing) document.activeElement.blur();
    else if (route().view !== "table") go("table");
  }
  if (typing) return;
  if (event.key === "/") {
    const search = document.querySelector("main input[type=search]");
    if (search) { event.preventDefault(); search.focus(); }
  } else if (["j", "k"].includes(event.key) && route().view === "samples") {
    const list = document.getElementById("sample-list");
    if (!list.contains(document.activeElement)) list.querySelector("[aria-current]")?.focus();
    else return;
    document.activeElement.dispatchEvent(new KeyboardEvent("keydown", { key: event.key, bubbles: true }));
  }
});
setTheme(wantedTheme() || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light"));
draw();
document.documentElement.dataset.ready = "true";
