const series = () => {
  const found = {};
  data.rows.forEach((row, index) => { if (row.series !== null) (found[row.series] ??= []).push(index); });
  for (const rows of Object.values(found)) rows.sort((a, b) => data.rows[a].step - data.rows[b].step);
  return Object.fromEntries(Object.entries(found).filter(([, rows]) => rows.length > 1));
};

const NO_FIGURE = [null, null, null];
const cellOf = (table, column, row) => table.cells[column][table.rows.indexOf(row)] ?? NO_FIGURE;

views.steps = (view, parts) => {
  const all = series();
  const names = Object.keys(all);
  if (!names.length) return view.append(el("p", { class: "empty" }, t("no model has several checkpoints here")));
  const name = names.includes(parts[0]) ? parts[0] : names[0];
  const rows = all[name];
  // The first table that has figures of these rows; without one, their datasets.
  const figures = (table) => table.columns.filter((column) => rows.some((row) => cellOf(table, column, row)[0] !== null));
  const table = data.tables.find((one) => figures(one).length);
  const columns = table ? figures(table) : [...new Set(rows.flatMap((row) => Object.keys(data.rows[row].datasets)))];
  const cell = (column, row) => (table ? cellOf(table, column, row) : data.rows[row].datasets[column] ?? NO_FIGURE);
  const digits = table ? table.digits : 4;
  const withRanges = (column) => column === "AVG" || columns.length === 1;
  const ranges = (column) => rows.map((row) => cell(column, row).slice(1, 3));
  const steps = rows.map((row) => data.rows[row].step);
  const margin = (Math.max(...steps) - Math.min(...steps)) / 40;
  const chart = { type: "line", plugins: [whiskers], data: { datasets: columns.map((column, index) => ({
    label: column, data: rows.map((row) => ({ x: data.rows[row].step, y: cell(column, row)[0] })), ranges: withRanges(column) ? ranges(column) : undefined,
    borderColor: hue(index), backgroundColor: hue(index), borderWidth: column === "AVG" ? 3 : 1.5, pointRadius: 3 })) },
    options: { plugins: { legend: legend() }, scales: { x: axis({ type: "linear", min: Math.min(...steps) - margin, max: Math.max(...steps) + margin,
        ticks: { color: ink("--soft"), includeBounds: false, precision: 0 }, title: { display: true, text: t("step"), color: ink("--soft") } }),
      y: axis({ grace: "5%", ...around(columns.filter(withRanges).flatMap(ranges)) }) } } };
  view.append(el("div", { class: "bar" }, choice(t("model"), names.map((one) => [one, one || "–"]), name, (one) => go("steps", [one]))),
    chartBox(`${t("step")}: ${name}`, chart, { wide: true }),
    el("div", { class: "scroll fit", tabindex: "0", role: "region", "aria-label": t("step") }, el("table", { id: "table-steps" },
      el("thead", {}, el("tr", {}, el("th", { scope: "col" }, t("step")), columns.map((column) => el("th", { scope: "col" }, column)))),
      el("tbody", {}, rows.map((row) => el("tr", {}, el("th", { scope: "row" }, String(data.rows[row].step)),
        columns.map((column) => {
          const [value, low, high] = cell(column, row);
          return el("td", {}, figureText(cell(column, row), digits), low === null ? null : el("span", { class: "range" }, spread(value, low, high, digits)));
        })))))));
  return startCharts();
};
