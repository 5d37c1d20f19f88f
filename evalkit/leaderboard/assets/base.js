const read = (id) => {
  const block = document.getElementById(id);
  return block ? JSON.parse(block.textContent) : null;
};
const data = read("data");
// More rows than this in one chart cannot be told apart; the rest waits for a tick.
const IN_CHARTS = 8;
const state = {
  lang: data.lang, sort: {}, filter: "", intervals: true, list: 200,
  off: new Set(data.rows.map((row, index) => index).filter((row) => !data.tables.some((table) => table.rows.slice(0, IN_CHARTS).includes(row)))),
};
const views = {};
const charts = [];

const t = (text, values = {}) => {
  const said = state.lang === "ja" ? (Object.hasOwn(data.words, text) ? data.words[text] : text) : text;
  return said.replace(/\{(\w+)\}/g, (whole, name) => (name in values ? values[name] : whole));
};

// A finished English sentence, or several with semicolons between: its key is found by the fixed words.
const sentencePatterns = Object.entries(data.words).filter(([english]) => /\{\w+\}/.test(english)).map(([english, japanese]) => {
  const fixed = english.split(/\{\w+\}/).map((text) => text.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"));
  const names = [...english.matchAll(/\{(\w+)\}/g)].map((match) => match[1]);
  // Only an explanation can be several sentences.
  const field = (name) => (["reason", "reasons", "why", "error", "fix"].includes(name) ? "([^]+?)" : "([^;]+?)");
  const source = fixed[0] + names.map((name, index) => field(name) + fixed[index + 1]).join("");
  return { size: fixed.join("").length, names, pattern: new RegExp(`^${source}$`), japanese };
}).sort((a, b) => b.size - a.size);
const said = (text) => {
  // A single word is a name rather than a sentence.
  if (state.lang !== "ja" || !text.includes(" ")) return text;
  if (Object.hasOwn(data.words, text)) return data.words[text];
  for (const { pattern, names, japanese } of sentencePatterns) {
    const match = pattern.exec(text);
    if (match) {
      const fields = Object.fromEntries(names.map((name, index) => [name, said(match[index + 1])]));
      return japanese.replace(/\{(\w+)\}/g, (whole, name) => fields[name]);
    }
  }
  const parts = text.split("; ");
  return parts.length > 1 ? parts.map(said).join("; ") : text;
};

// The only way text gets onto the page: as text nodes and attributes, never as markup.
const el = (tag, properties = {}, ...children) => {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "value" || name === "checked") node[name] = value;
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== ""));
  return node;
};

const number = (value, digits = 4) => (value === null || value === undefined ? "" : value.toFixed(digits));
const signed = (value, digits = 4) => (value > 0 ? "+" : "") + value.toFixed(digits);
const pText = (p) => (p === null ? "" : p < 0.001 ? "<0.001" : p.toFixed(3));
const percent = (share) => (share === null || share === undefined ? "–" : `${Math.round(share * 100)} %`);
const rowName = (row) => data.rows[row].model;

const samplesOf = (() => {
  const kept = {};
  return (dataset) => (kept[dataset] ??= read(`samples-${dataset}`));
})();

// Addresses: #view/part?key=value. A change of address draws the view again.
const route = () => {
  const [path, query = ""] = location.hash.slice(1).split("?");
  const [view, ...parts] = path.split("/").map(decodeURIComponent);
  return { view: Object.hasOwn(views, view) ? view : "table", parts, query: new URLSearchParams(query) };
};
const link = (view, parts = [], query = {}) => {
  const kept = Object.entries(query).filter(([, value]) => value !== "" && value !== null && value !== undefined);
  const tail = new URLSearchParams(kept).toString();
  return "#" + [view, ...parts].map(encodeURIComponent).join("/") + (tail ? `?${tail}` : "");
};
const go = (...where) => { location.hash = link(...where); };
const replaceQuery = (changes) => {
  const { view, parts, query } = route();
  const merged = { ...Object.fromEntries(query), ...changes };
  history.replaceState(null, "", link(view, parts, merged));
};

const choice = (label, options, value, onchange) => {
  const select = el("select", { onchange: (event) => onchange(event.target.value) });
  for (const [key, text] of options) select.append(el("option", { value: String(key) }, text));
  select.value = String(value);
  return el("label", {}, label, select);
};
const tick = (label, checked, onchange) =>
  el("label", {}, el("input", { type: "checkbox", checked, onchange: (event) => onchange(event.target.checked) }), label);
