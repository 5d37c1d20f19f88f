// The data of the page by id; what is large is packed, and read when a view needs it.
const blocks = {};
const has = (id) => document.getElementById(id) !== null;
const unpacked = (text) => new Response(new Blob([Uint8Array.from(atob(text), (sign) => sign.charCodeAt(0))]).stream()
  .pipeThrough(new DecompressionStream("gzip"))).text();
const isPacked = (id) => has(id) && !(id in blocks) && document.getElementById(id).type === "application/gzip";
const unpack = async (id) => { blocks[id] = JSON.parse(await unpacked(document.getElementById(id).textContent)); };
const read = (id) => {
  const block = document.getElementById(id);
  return block ? (blocks[id] ??= JSON.parse(block.textContent)) : null;
};
const data = read("data");
// More models than this in one chart are hard to tell apart; others join by a tick.
const IN_CHARTS = 3;
const state = {
  lang: data.lang, sort: {}, filter: "", intervals: true, list: 200,
  charted: Object.fromEntries(data.tables.map((table) => [table.id, new Set(table.rows.slice(0, IN_CHARTS))])),
};
const views = {};
const charts = [];

const t = (text, values = {}) => {
  const said = state.lang === "ja" ? (Object.hasOwn(data.words, text) ? data.words[text] : text) : text;
  return said.replace(/\{(\w+)\}/g, (whole, name) => (name in values ? values[name] : whole));
};

// A sentence whose template and fields are known, or a text that has its Japanese whole.
const filled = (part) => {
  if (typeof part === "string") return part;
  if (Array.isArray(part)) return part.map(filled).join("; ");
  return t(part.template, Object.fromEntries(Object.entries(part.fields).map(([name, field]) => [name, filled(field)])));
};
const shown = (text) => (Object.hasOwn(data.reasons, text) ? filled(data.reasons[text]) : t(text));

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

// Texts are kept once, and columns of equal entries as one. The answers to a question stand at `start`.
const column = (value, length) => (Array.isArray(value) ? value : Array(length).fill(value));
const samplesOf = (() => {
  const kept = {};
  return (dataset) => (kept[dataset] ??= (() => {
    const found = read(`samples-${dataset}`);
    for (const run of Object.values(found.runs)) {
      const text = (index) => (index === null ? null : found.texts[index]);
      run.prediction = run.prediction.map(text);
      run.each = column(run.each, run.prediction.length / run.each);
      run.at ??= run.each.map((_, place) => place);
      let before = 0;
      run.start = run.each.map((each) => (before += each) - each);
      for (const name of ["text", "finish", "tokens", "status", "thought"]) if (name in run) run[name] = column(run[name], run.prediction.length);
      run.text = run.text.map(text);
      if (run.thought) run.thought = run.thought.map(text);
    }
    return found;
  })());
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
