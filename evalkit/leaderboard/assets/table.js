const sortedRows = (table) => {
  const places = table.rows.map((row, place) => place);
  if (!state.sort[table.id]) return places;
  const { column, down } = state.sort[table.id];
  const key = (place) => (column === "model" ? rowName(table.rows[place]) : table.cells[column][place][0]);
  return places.sort((one, other) => {
    const [a, b] = [key(one), key(other)];
    if (a === null || b === null) return (a === null) - (b === null);
    const order = typeof a === "string" ? a.localeCompare(b, state.lang, { numeric: true }) : a - b;
    return down ? -order : order;
  });
};

// The column a table is sorted by; as it comes, the first one, best first.
const sorting = (table) => state.sort[table.id] || { column: table.columns[0], down: true };

const ABOUT = {
  AVG: () => t("mean of the nine categories"), EL: () => t("entity linking"), FA: () => t("fundamental analysis"),
  HE: () => t("human examination"), MC: () => t("multiple choice"), MR: () => t("mathematical reasoning"),
  MT: () => t("machine translation"), NLI: () => t("natural language inference"), QA: () => t("question answering"),
  RC: () => t("reading comprehension"), AVG_without_MT: () => t("average of the eight others"),
};
const explained = (column) => {
  if (!Object.hasOwn(ABOUT, column)) return null;
  const members = data.categories[column];
  return `${ABOUT[column]()}${members ? ` (${members.join(", ")})` : ""}`;
};

const sortHeader = (table, column, label, redraw) => {
  const now = sorting(table);
  const direction = now.column === column ? (now.down ? "descending" : "ascending") : "none";
  const sort = () => {
    const down = direction === "none" ? column !== "model" : direction === "ascending";
    state.sort[table.id] = { column, down };
    redraw();
    const heads = document.querySelectorAll(`#table-${table.id} thead button`);
    [...heads].find((head) => head.dataset.column === column)?.focus();
  };
  return el("th", { scope: "col", "aria-sort": direction, title: table.id === "jaster" ? explained(column) : null },
    el("button", { type: "button", onclick: sort, "data-column": column }, label));
};

const modelCell = (table, row, note, redraw) => {
  const { model, url, kind, reasons, remarks } = data.rows[row];
  const whole = el("bdi", { dir: "ltr" }, model);
  const name = url ? el("a", { href: url, rel: "noreferrer" }, whole) : whole;
  const chosen = state.charted[table.id];
  const place = charted(table).indexOf(row);
  const box = table.columns.length < 2 ? null : el("input", { type: "checkbox", checked: chosen.has(row), "aria-label": `${model}: ${t("in the chart")}`,
    style: place < 0 ? null : `accent-color: ${hue(place)}`, onchange: () => { if (!chosen.delete(row)) chosen.add(row); redraw(); } });
  return el("th", { scope: "row", title: [model, ...[...reasons, ...remarks].map(shown)].join("\n") },
    el("div", { class: "name" }, box, el("span", { class: "long" }, name), note ? el("sup", {}, String(note))
      : kind === "run" ? null : el("span", { class: "kind" }, t(kind))));
};

const openCell = (table, column, row) => {
  if (table.id.startsWith("mt")) return go("mt", [row], column === "average" ? {} : { category: column });
  const members = data.categories[column];
  const datasets = Object.keys(data.rows[row].datasets);
  // Where a task was measured in several ways, its columns say which behind its name.
  const own = { instructions: "mifeval-ja", pfgen: "pfgen", own: column.split(" ")[0] }[table.id];
  const dataset = own || (members || datasets).find((name) => datasets.includes(name));
  return go("samples", [dataset], { a: row });
};

// Half an interval, or its two sides, one below the other, where they differ much.
const spread = (value, low, high, digits) => {
  const [down, up] = [value - low, high - value];
  const uneven = Math.min(down, up) >= 0 && Math.max(down, up) > (high - low) * 0.75;
  return uneven ? `+${number(up, digits)}\n−${number(down, digits)}` : `±${number((high - low) / 2, digits)}`;
};
const exact = (low, high, digits, n) => (low === null ? `n=${n}` : `${t("95 % interval")} ${number(low, digits)}–${number(high, digits)}, n=${n}`);

const figureText = ([value, , , , partial], digits = 4) => number(value, digits) + (partial && value !== null ? "*" : "");

const figureCell = (table, column, place) => {
  const [value, low, high, n, , mark] = table.cells[column][place];
  const row = table.rows[place];
  const classes = [mark === "best" && "best", sorting(table).column === column && "sorted"].filter(Boolean).join(" ");
  if (value === null) return el("td", { class: classes, title: data.rows[row].reasons.map(shown).join("\n") || null });
  const text = figureText(table.cells[column][place], table.digits) + (mark === "tie" ? "≈" : "");
  const has = table.id.startsWith("mt") ? mtRuns().includes(row) : Object.keys(data.rows[row].datasets).length > 0;
  const label = `${rowName(row)}, ${column}: ${t("samples")}`;
  return el("td", { class: classes, title: n ? exact(low, high, table.digits, n) : null },
    has ? el("button", { type: "button", class: "cell", "aria-label": label, onclick: () => openCell(table, column, row) }, text) : text,
    state.intervals && low !== null ? el("span", { class: "range" }, spread(value, low, high, table.digits)) : null);
};

// Buttons that copy a table: a head and rows of texts.
const copyBar = (lines) => {
  const csv = (text) => (/[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
  const formula = (text) => (/^\s*[=+@-]/.test(text) && Number.isNaN(Number(text.replace(/\*$/, ""))) ? `'${text}` : text);
  const cell = (text) => text.replace(/[\\`*_[\]<>|&~]/g, "\\$&");
  const as = {
    Markdown: () => lines().map((line, index) => `| ${line.map(cell).join(" | ")} |${index ? "" : `\n|:---|${"---:|".repeat(line.length - 1)}`}`).join("\n"),
    CSV: () => lines().map((line) => line.map((text) => csv(formula(text))).join(",")).join("\n"),
  };
  const copy = async (event, text) => {
    const button = event.currentTarget;
    try { await navigator.clipboard.writeText(text); } catch {
      const area = el("textarea", { value: text });
      document.body.append(area);
      area.select();
      document.execCommand("copy");
      area.remove();
    }
    button.textContent = t("copied");
  };
  return el("div", { class: "bar small copy" }, Object.entries(as).map(([name, make]) =>
    el("button", { type: "button", onclick: (event) => copy(event, `${make()}\n`) }, t("copy as {form}", { form: name }))));
};

const rulesNotes = (table) => {
  const kinds = [...new Set(table.rules)];
  return new Map(kinds.map((rule, index) => [rule, kinds.length > 1 ? index + 1 : 0]));
};

const matches = (row) => {
  const { model, kind, rules } = data.rows[row];
  return `${model} ${kind} ${rules}`.toLowerCase().includes(state.filter.toLowerCase());
};

const drawTable = (table, redraw) => {
  const notes = rulesNotes(table);
  const head = el("tr", {}, sortHeader(table, "model", t("model"), redraw),
    table.columns.map((column) => sortHeader(table, column, column, redraw)));
  const places = () => sortedRows(table).filter((place) => matches(table.rows[place]));
  const body = places().map((place) => el("tr", { "data-row": table.rows[place] },
    modelCell(table, table.rows[place], notes.get(table.rules[place]), redraw),
    table.columns.map((column) => figureCell(table, column, place))));
  const any = (test) => table.columns.some((column) => table.cells[column].some(test));
  const legend = [
    any((cell) => cell[5] === "best") ? t("**Bold**: best of its protocol. {tie}: not told from it by the 95 % intervals.", { tie: "≈" }).replaceAll("**", "") : null,
    any((cell) => cell[4]) ? t("\\*: partial, not comparable with complete figures.").replace("\\", "") : null,
    ...[...notes].map(([rule, note]) => (note ? `${note}: ${shown(rule)}` : shown(rule))),
    table.id === "jaster" ? table.columns.filter(explained).map((column) => `${column}: ${ABOUT[column]()}`).join(" · ") : null,
  ].filter(Boolean);
  const lines = () => [[t("model"), ...table.columns], ...places().map((place) => [rowName(table.rows[place]),
    ...table.columns.map((column) => figureText(table.cells[column][place], table.digits))])];
  return [
    el("h2", {}, t(table.title)),
    el("div", { class: "beside" },
      el("div", {},
        el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": t(table.title) },
          el("table", { id: `table-${table.id}` }, el("thead", {}, head), el("tbody", {}, body))),
        places().length ? null : el("p", { class: "empty" }, t("no row fits")),
        el("ul", { class: "soft small legend" }, legend.map((line) => el("li", {}, line))), copyBar(lines)),
      table.columns.length > 1 && charted(table).length ? dots(table) : null),
  ];
};

const datasetCell = (row, name) => {
  const cell = data.rows[row].datasets[name];
  if (!cell) return el("td", {});
  const [value, low, high, n] = cell;
  const rates = data.rows[row].rates[name] || [];
  const thoughts = data.rows[row].thoughts[name];
  const said = [
    ...(thoughts ? [t("unclosed"), t("empty"), t("cut off")] : [t("empty"), t("cut off")]).map((what, index) => `${what} ${percent((thoughts || rates)[index])}`),
    `${t("malformed")} ${percent(rates[2])}`,
    thoughts && thoughts[3] !== null ? t("median thought {n} tokens", { n: thoughts[3] }) : null,
  ].filter(Boolean).join(", ");
  return el("td", { title: `${exact(low, high, 4, n)}; ${said}` },
    el("button", { type: "button", class: "cell", "aria-label": `${rowName(row)}, ${name}: ${t("samples")}`, onclick: () => go("samples", [name], { a: row }) },
      figureText(cell)),
    state.intervals && low !== null ? el("span", { class: "range" }, spread(value, low, high, 4)) : null);
};

const drawDatasets = () => {
  const rows = data.rows.map((row, index) => index).filter((row) => Object.keys(data.rows[row].datasets).length && matches(row));
  if (!rows.length) return [];
  const groups = Object.groupBy(Object.keys(data.datasets), (name) => data.datasets[name].category || "");
  const ordered = [...Object.keys(data.categories), ""].filter((category) => groups[category]);
  const body = ordered.map((category) => el("tbody", {},
    el("tr", { class: "group" }, el("th", { scope: "colgroup", colspan: rows.length + 1 },
      category ? `${category} · ${ABOUT[category]()}` : t("not in a category"))),
    groups[category].map((name) => el("tr", {},
      el("th", { scope: "row" }, name, " ", el("span", { class: "soft small" }, data.datasets[name].metric || "")),
      rows.map((row) => datasetCell(row, name))))));
  const lines = () => [[t("dataset"), ...rows.map(rowName)], ...ordered.flatMap((category) => groups[category]).map((name) =>
    [name, ...rows.map((row) => figureText(data.rows[row].datasets[name] || []))])];
  return [el("h2", {}, t("Datasets")), el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": t("Datasets") },
    el("table", { id: "table-datasets" },
      el("thead", {}, el("tr", {}, el("th", { scope: "col" }, t("dataset")), rows.map((row) => el("th", { scope: "col" }, rowName(row))))),
      body)), copyBar(lines)];
};

views.table = (view) => {
  const holder = el("div", {});
  const redraw = () => {
    dropCharts();
    holder.replaceChildren(
      ...data.tables.filter((table) => table.rows.length).flatMap((table) => drawTable(table, redraw)).filter(Boolean),
      ...drawDatasets());
    startCharts();
  };
  const search = el("input", { type: "search", id: "filter", placeholder: t("filter models"), value: state.filter, "aria-label": t("filter models"),
    oninput: (event) => { state.filter = event.target.value; redraw(); } });
  view.append(el("div", { class: "bar" }, search,
    tick(t("intervals"), state.intervals, (on) => { state.intervals = on; redraw(); }),
    el("span", { class: "soft small" }, t("Click a figure to see its samples."))), holder);
  redraw();
};
