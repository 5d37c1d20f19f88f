// Longest common subsequence over characters, after common ends are cut off; long texts stay whole.
const differing = (own, another) => {
  if (own === another) return [own];
  const a = [...own];
  const b = [...another];
  let start = 0;
  while (start < a.length && start < b.length && a[start] === b[start]) start += 1;
  let end = 0;
  while (end < a.length - start && end < b.length - start && a[a.length - 1 - end] === b[b.length - 1 - end]) end += 1;
  const x = a.slice(start, a.length - end);
  const y = b.slice(start, b.length - end);
  const join = (part) => part.join("");
  const frame = (middle) => [join(a.slice(0, start)), ...middle, join(a.slice(a.length - end))];
  if (x.length * y.length > 1500000) return frame([el("ins", {}, join(x))]);
  const width = y.length + 1;
  const table = new Uint16Array((x.length + 1) * width);
  for (let i = x.length - 1; i >= 0; i -= 1) for (let j = y.length - 1; j >= 0; j -= 1)
    table[i * width + j] = x[i] === y[j] ? table[(i + 1) * width + j + 1] + 1 : Math.max(table[(i + 1) * width + j], table[i * width + j + 1]);
  // Texts that share little are no variants of each other: then all of it is marked.
  if (table[0] < 0.4 * Math.max(x.length, y.length)) return frame([el("ins", {}, join(x))]);
  const parts = [];
  let i = 0;
  let j = 0;
  let run = "";
  const flush = () => { if (run) parts.push(el("ins", {}, run)); run = ""; };
  while (i < x.length) {
    if (j < y.length && x[i] === y[j]) { flush(); parts.push(x[i]); i += 1; j += 1; }
    else if (j < y.length && table[i * width + j + 1] > table[(i + 1) * width + j]) j += 1;
    else { run += x[i]; i += 1; }
  }
  flush();
  return frame(parts);
};

const pairOf = (a, b) => {
  const straight = data.pairs[`${a}-${b}`];
  if (straight) return { pair: straight, sign: 1 };
  const turned = data.pairs[`${b}-${a}`];
  return turned ? { pair: turned, sign: -1 } : null;
};
const pairRows = () => [...new Set(Object.keys(data.pairs).flatMap((key) => key.split("-").map(Number)))].sort((a, b) => a - b);

views.pair = (view, parts) => {
  const rows = pairRows();
  if (rows.length < 2) return view.append(el("p", { class: "empty" }, t("two runs are needed to compare")));
  const a = rows.includes(Number(parts[0])) && parts[0] !== undefined ? Number(parts[0]) : rows[0];
  const b = rows.includes(Number(parts[1])) && parts[1] !== undefined && Number(parts[1]) !== a ? Number(parts[1])
    : rows.find((row) => row !== a && !pairOf(a, row).pair.refused) ?? rows.find((row) => row !== a);
  view.append(el("div", { class: "bar" },
    choice("A", rows.map((row) => [row, rowName(row)]), a, (row) => go("pair", [row, b])),
    choice("B", rows.filter((row) => row !== a).map((row) => [row, rowName(row)]), b, (row) => go("pair", [a, row])),
    el("button", { type: "button", onclick: () => go("pair", [b, a]) }, "A ⇄ B")));
  const { pair, sign } = pairOf(a, b);
  if (pair.refused) {
    view.append(el("div", { class: "card" }, el("p", {}, t("These two runs do not compare:")), el("ul", {}, pair.refused.map((why) => el("li", {}, shown(why))))));
    return undefined;
  }
  view.append(el("div", { class: "card", id: "sentences" }, pair.sentences[state.lang].map((sentence) => el("p", {}, sentence)),
    pair.remarks.length ? el("p", { class: "soft small" }, pair.remarks.map(shown).join(" · ")) : null));
  const flip = (line) => (sign > 0 ? line : [-line[0], line[2] === null ? null : -line[2], line[1] === null ? null : -line[1], ...line.slice(3)]);
  const lines = Object.entries(pair.lines).map(([name, line]) => [name, flip(line)]);
  const chart = { type: "bar", plugins: [whiskers], data: { labels: lines.map(([name]) => name), datasets: [{
    label: `${rowName(a)} − ${rowName(b)}`, data: lines.map(([, line]) => line[0]), ranges: lines.map(([, line]) => line.slice(1, 3)),
    backgroundColor: lines.map(([, line]) => (["a", "b"].includes(line[5]) ? (line[0] > 0 ? hue(a) : hue(b)) : ink("--soft"))) }] },
    options: { plugins: { legend: legend() }, scales: { x: axis(), y: axis(around(lines.map(([, line]) => line.slice(1, 3)))) } } };
  view.append(chartBox(`${t("difference")}: ${rowName(a)} − ${rowName(b)}`, chart, { wide: true }));
  const verdictOf = (line) => ({ a: 1, b: -1 }[line[5]] ?? 0) * sign;
  view.append(el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": t("difference") }, el("table", { id: "table-pair" },
    el("thead", {}, el("tr", {}, ["", t("difference"), t("95 % interval"), "p", "p (Holm)", t("better")].map((head) => el("th", { scope: "col" }, head)))),
    el("tbody", {}, lines.map(([name, line]) => el("tr", {},
      el("th", { scope: "row" }, name in data.datasets
        ? el("a", { href: link("samples", [name], { a, b, only: "differ" }) }, name) : name),
      el("td", {}, signed(line[0])), el("td", {}, line[1] === null ? "" : `${signed(line[1])} – ${signed(line[2])}`),
      el("td", {}, pText(line[3])), el("td", {}, name === "AVG" ? "" : pText(line[4])),
      el("td", {}, verdictOf(line) === 0 ? (line[5] === "hint" ? t("a hint") : "–") : rowName(verdictOf(line) > 0 ? a : b))))))));
  view.append(el("p", { class: "soft small" }, t("Paired on the same samples: Newcombe's interval or the bootstrap, McNemar or permutation test, Holm's correction over the lines of one kind.")));
  return startCharts();
};
