const sortedRows = (table) => {
  const { column, down } = state.sort[table.id] || { column: null };
  const places = table.rows.map((row, place) => place);
  if (column === null) return places;
  const key = (place) => (column === "model" ? rowName(table.rows[place]) : table.cells[column][place][0]);
  return places.sort((one, other) => {
    const [a, b] = [key(one), key(other)];
    if (a === null || b === null) return (a === null) - (b === null);
    const order = typeof a === "string" ? a.localeCompare(b, state.lang, { numeric: true }) : a - b;
    return down ? -order : order;
  });
};

const sortHeader = (table, column, label, redraw) => {
  const now = state.sort[table.id];
  const direction = now && now.column === column ? (now.down ? "descending" : "ascending") : "none";
  const sort = () => {
    const down = direction === "none" ? column !== "model" : direction === "ascending";
    state.sort[table.id] = { column, down };
    redraw();
    const heads = document.querySelectorAll(`#table-${table.id} thead button`);
    [...heads].find((head) => head.dataset.column === column)?.focus();
  };
  return el("th", { scope: "col", "aria-sort": direction },
    el("button", { type: "button", onclick: sort, "data-column": column }, label));
};

const modelCell = (row, note) => {
  const { model, url, kind, reasons, remarks } = data.rows[row];
  const name = url ? el("a", { href: url, rel: "noreferrer" }, model) : model;
  return el("th", { scope: "row", title: [...reasons, ...remarks].map(shown).join("\n") || null },
    name, " ", kind === "run" ? null : el("span", { class: "kind" }, t(kind)),
    note ? el("sup", {}, String(note)) : null);
};

const openCell = (table, column, row) => {
  if (table.id === "mt") return go("mt", [row], column === "average" ? {} : { category: column });
  const members = data.categories[column];
  const datasets = Object.keys(data.rows[row].datasets);
  const dataset = (members || datasets).find((name) => datasets.includes(name));
  return go("samples", [dataset], { a: row });
};

const figureCell = (table, column, place) => {
  const [value, low, high, n, partial, mark] = table.cells[column][place];
  const row = table.rows[place];
  if (value === null) return el("td", {});
  const text = number(value, table.digits) + (partial ? "*" : "") + (mark === "tie" ? "≈" : "");
  const range = low === null ? null : `${number(low, table.digits)}–${number(high, table.digits)}`;
  const has = table.id === "mt" ? mtRuns().includes(row) : Object.keys(data.rows[row].datasets).length > 0;
  const label = `${rowName(row)}, ${column}: ${t("samples")}`;
  return el("td", { class: mark === "best" ? "best" : null, title: range ? `${t("95 % interval")} ${range}, n=${n}` : null },
    has ? el("button", { type: "button", class: "cell", "aria-label": label, onclick: () => openCell(table, column, row) }, text) : text,
    state.intervals && range ? el("span", { class: "range" }, range) : null);
};

const rulesNotes = (table) => {
  const kinds = [...new Set(table.rules)];
  return kinds.length > 1 ? new Map(kinds.map((rule, index) => [rule, index + 1])) : new Map();
};

const matches = (row) => {
  const { model, kind, rules } = data.rows[row];
  return `${model} ${kind} ${rules}`.toLowerCase().includes(state.filter.toLowerCase());
};

const drawTable = (table, redraw) => {
  const notes = rulesNotes(table);
  const head = el("tr", {}, sortHeader(table, "model", t("model"), redraw),
    table.columns.map((column) => sortHeader(table, column, column, redraw)));
  const places = sortedRows(table).filter((place) => matches(table.rows[place]));
  const body = places.map((place) => el("tr", { "data-row": table.rows[place] },
    modelCell(table.rows[place], notes.get(table.rules[place])),
    table.columns.map((column) => figureCell(table, column, place))));
  const any = (test) => table.columns.some((column) => table.cells[column].some(test));
  const legend = [
    any((cell) => cell[5] === "best") ? t("**Bold**: best of its protocol. {tie}: not told from it by the 95 % intervals.", { tie: "≈" }).replaceAll("**", "") : null,
    any((cell) => cell[4]) ? t("\\*: partial, not comparable with complete figures.").replace("\\", "") : null,
    ...[...notes].map(([rule, note]) => `${note}: ${shown(rule)}`),
  ].filter(Boolean);
  return [
    el("h2", {}, table.title),
    el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": table.title },
      el("table", { id: `table-${table.id}` }, el("thead", {}, head), el("tbody", {}, body))),
    places.length ? null : el("p", { class: "empty" }, t("no row fits")),
    el("ul", { class: "soft small legend" }, legend.map((line) => el("li", {}, line))),
  ];
};

const drawDatasets = () => {
  const rows = data.rows.map((row, index) => index).filter((row) => Object.keys(data.rows[row].datasets).length && matches(row));
  if (!rows.length) return [];
  const body = Object.entries(data.datasets).map(([name, about]) => el("tr", {},
    el("th", { scope: "row" }, name, " ", el("span", { class: "soft small" }, [about.category, about.metric].filter(Boolean).join(", "))),
    rows.map((row) => {
      const cell = data.rows[row].datasets[name];
      if (!cell) return el("td", {});
      const range = cell[1] === null ? null : `${number(cell[1])}–${number(cell[2])}`;
      const rates = data.rows[row].rates[name] || [];
      const thoughts = data.rows[row].thoughts[name];
      const said = [
        ...(thoughts ? [t("unclosed"), t("empty"), t("cut off")] : [t("empty"), t("cut off")]).map((what, index) => `${what} ${percent((thoughts || rates)[index])}`),
        `${t("malformed")} ${percent(rates[2])}`,
        thoughts && thoughts[3] !== null ? t("median thought {n} tokens", { n: thoughts[3] }) : null,
      ].filter(Boolean).join(", ");
      return el("td", { title: `n=${cell[3]}; ${said}` },
        el("button", { type: "button", class: "cell", "aria-label": `${rowName(row)}, ${name}: ${t("samples")}`, onclick: () => go("samples", [name], { a: row }) },
          number(cell[0]) + (cell[4] ? "*" : "")),
        state.intervals && range ? el("span", { class: "range" }, range) : null);
    })));
  return [el("h2", {}, t("Datasets")), el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": t("Datasets") },
    el("table", { id: "table-datasets" },
      el("thead", {}, el("tr", {}, el("th", { scope: "col" }, t("dataset")), rows.map((row) => el("th", { scope: "col" }, rowName(row))))),
      el("tbody", {}, body)))];
};

views.table = (view) => {
  const holder = el("div", {});
  const redraw = () => {
    dropCharts();
    holder.replaceChildren(
      ...data.tables.filter((table) => table.rows.length).flatMap((table) => drawTable(table, redraw)).filter(Boolean),
      ...drawCharts(), ...drawDatasets());
    startCharts();
  };
  const search = el("input", { type: "search", id: "filter", placeholder: t("filter models"), value: state.filter, "aria-label": t("filter models"),
    oninput: (event) => { state.filter = event.target.value; redraw(); } });
  view.append(el("div", { class: "bar" }, search,
    tick(t("intervals"), state.intervals, (on) => { state.intervals = on; redraw(); }),
    el("span", { class: "soft small" }, t("Click a figure to see its samples."))), holder);
  redraw();
};
