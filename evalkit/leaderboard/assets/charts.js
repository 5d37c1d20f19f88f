// Each at least 3:1 against the cards of its theme.
const HUES = {
  light: ["#1b6ca8", "#c24e00", "#2a7d4f", "#8b4fa0", "#8a6a00", "#c2375f", "#0d7680", "#5f646b", "#0b2f4a", "#7a5230"],
  dark: ["#6db3f2", "#f0924e", "#5fc48c", "#c79be0", "#d8b441", "#f08aa8", "#4fc3cf", "#b3bac2", "#f3f5f6", "#c8a27a"],
};
const hue = (index) => {
  const hues = HUES[document.documentElement.dataset.theme === "dark" ? "dark" : "light"];
  return hues[index % hues.length];
};
let waiting = [];

const dropCharts = () => { while (charts.length) charts.pop().destroy(); waiting = []; };
const startCharts = () => {
  for (const [canvas, config] of waiting) charts.push(new Chart(canvas, config));
  waiting = [];
};
const ink = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

// Draws the 95 % interval of every bar and point whose dataset has `ranges`; `flat`: along x.
const whiskers = {
  id: "whiskers",
  afterDatasetsDraw(chart) {
    const { ctx } = chart;
    const flat = chart.options.flat;
    const scale = flat ? chart.scales.x : chart.scales.y;
    chart.data.datasets.forEach((dataset, index) => {
      if (!dataset.ranges || !chart.isDatasetVisible(index)) return;
      ctx.save();
      const { left, top, width, height } = chart.chartArea;
      ctx.beginPath();
      ctx.rect(left, top, width, height);
      ctx.clip();
      ctx.strokeStyle = flat ? dataset.borderColor : ink("--ink");
      ctx.lineWidth = flat ? 2 : 1.2;
      chart.getDatasetMeta(index).data.forEach((mark, place) => {
        const range = dataset.ranges[place];
        if (!range || range[0] === null) return;
        const [low, high] = range.map((value) => scale.getPixelForValue(value));
        const at = flat ? mark.y : mark.x;
        const line = (a, b, c, d) => { ctx.moveTo(...(flat ? [a, b] : [b, a])); ctx.lineTo(...(flat ? [c, d] : [d, c])); };
        ctx.beginPath();
        line(low, at, high, at); line(low, at - 3, low, at + 3); line(high, at - 3, high, at + 3);
        ctx.stroke();
      });
      ctx.restore();
    });
  },
};

const chartBox = (label, config, { wide = false, height = null } = {}) => {
  const canvas = el("canvas", { role: "img", "aria-label": label });
  config.options = { responsive: true, maintainAspectRatio: false, animation: false, ...config.options };
  waiting.push([canvas, config]);
  return el("div", { class: wide ? "chart wide" : "chart", style: height && `height: ${height}px` }, canvas);
};

// The bounds of an axis that shows every interval whole.
const around = (ranges) => {
  const ends = ranges.flat().filter((end) => end !== null);
  return ends.length ? { suggestedMin: Math.min(...ends), suggestedMax: Math.max(...ends) } : {};
};
const axis = (extra = {}) => ({ ticks: { color: ink("--soft") }, grid: { color: ink("--line") }, ...extra });
const legend = () => ({ labels: { color: ink("--ink"), boxWidth: 8, boxHeight: 8, usePointStyle: true } });

const charted = (table) => table.rows.filter((row) => matches(row) && state.charted[table.id].has(row));

// A dot for each chosen model in each column, with its interval.
const dots = (table) => {
  const rows = charted(table);
  const lane = (index) => (index - (rows.length - 1) / 2) * Math.min(0.22, 0.7 / Math.max(1, rows.length));
  const cells = (row) => table.columns.map((column) => table.cells[column][table.rows.indexOf(row)]);
  const config = { type: "scatter", plugins: [whiskers], data: { datasets: rows.map((row, index) => ({
    label: rowName(row), borderColor: hue(index), backgroundColor: hue(index), pointRadius: 4, pointHoverRadius: 6,
    data: cells(row).map(([value], place) => ({ x: value, y: place + lane(index) })), ranges: cells(row).map((cell) => cell.slice(1, 3)) })) },
    options: { flat: true, plugins: { legend: legend(), tooltip: { callbacks: { label: ({ dataset, dataIndex, parsed }) => {
      const [low, high] = dataset.ranges[dataIndex];
      const range = low === null ? "" : ` (${number(low, table.digits)}–${number(high, table.digits)})`;
      return `${dataset.label}, ${table.columns[dataIndex]}: ${number(parsed.x, table.digits)}${range}`;
    } } } }, scales: {
      x: axis({ position: "top", ...(table.id.startsWith("mt") ? { suggestedMin: 1, suggestedMax: 10 } : { suggestedMin: 0, suggestedMax: 1 }) }),
      y: axis({ reverse: true, min: -0.5, max: table.columns.length - 0.5, afterBuildTicks: (scale) => { scale.ticks = table.columns.map((_, value) => ({ value })); },
        ticks: { color: ink("--ink"), autoSkip: false, callback: (value) => table.columns[value] } }) } } };
  const label = `${t("figures with 95 % intervals")}, ${table.title}: ${rows.map(rowName).join(", ")}`;
  return chartBox(label, config, { height: 90 + 34 * table.columns.length });
};
