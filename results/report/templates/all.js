// The table of all evaluations. It sorts and filters columns of data; only one page of rows is in the document.
(function () {
  "use strict";
  const PAGE = 25;
  const root = document.getElementById("all");
  const data = JSON.parse(document.getElementById("all-data").textContent);
  const count = data.number.length;
  if (!count) return;
  root.hidden = false;

  const percent = (share) => (share === null ? "–" : (100 * share).toFixed(2));
  const columns = [
    { key: "number", title: "No.", show: (i) => (data.number[i] < 0 ? "–" : String(data.number[i] + 1)) },
    { key: "state", title: "State", text: true, show: (i) => data.state[i] },
    { key: "top1", title: `${data.score}, %`, first: "descending", show: (i) => percent(data.top1[i]) },
    { key: "low", title: "95 %", wide: true, first: "descending", show: (i) => (data.low[i] === null ? "–" : `${(100 * data.low[i]).toFixed(1)}–${(100 * data.high[i]).toFixed(1)}`) },
    { key: "tuned", title: "Fine-tuned", wide: true, first: "descending", show: (i) => percent(data.tuned[i]) + (data.tuned_on[i] === null ? "" : ` (${data.tuned_on[i]})`) },
    { key: "share", title: "Share", show: (i) => data.share[i].toFixed(3) },
    { key: "images", title: "Images", wide: true, first: "descending", show: (i) => data.images[i].toLocaleString("en") },
    { key: "origin", title: "Origin", text: true, wide: true, show: (i) => data.origin[i] },
    { key: "schedule", title: "Schedule", text: true, name: "schedule", mono: true, show: (i) => data.schedule[i] || "dense" },
  ].filter(({ key }) => key !== "tuned" || data.tuned.some((value) => value !== null));

  const haystack = data.schedule.map((text, i) => `${text} ${data.state[i]} ${data.origin[i]} ${data.hash[i]}`.toLowerCase());
  const [head, body] = [root.querySelector("thead tr"), root.querySelector("tbody")];
  const [filter, told] = [document.getElementById("all-filter"), document.getElementById("all-count")];
  const [back, on] = [document.getElementById("all-back"), document.getElementById("all-on")];
  let [sorted, rows, page, found] = [{ key: "number", descending: false }, [], 0, null];

  function element(name, className, text) {
    const made = document.createElement(name);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    return made;
  }

  for (const column of columns) {
    const cell = element("th", [column.text ? "text" : "", column.wide ? "wide" : "", column.name || ""].join(" ").trim());
    cell.scope = "col";
    cell.setAttribute("role", "columnheader");
    const button = element("button", "", column.title);
    button.type = "button";
    button.addEventListener("click", () => {
      const again = sorted.key === column.key;
      sorted = { key: column.key, descending: again ? !sorted.descending : column.first === "descending" };
      arrange();
    });
    cell.append(button);
    head.append(cell);
    column.cell = cell;
  }

  // Sets `rows` to the sorted indices of what passes the filter; missing values come last, ties stay in recorded order.
  function arrange() {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    const values = data[sorted.key];
    const sign = sorted.descending ? -1 : 1;
    rows = [];
    for (let i = 0; i < count; i++) if (words.every((word) => haystack[i].includes(word))) rows.push(i);
    rows.sort((a, b) => {
      const [one, other] = [values[a], values[b]];
      if (one === null || other === null) return (one === null) - (other === null) || a - b;
      return (one < other ? -sign : one > other ? sign : 0) || a - b;
    });
    page = 0;
    for (const { key, cell } of columns) {
      if (key === sorted.key) cell.setAttribute("aria-sort", sorted.descending ? "descending" : "ascending");
      else cell.removeAttribute("aria-sort");
    }
    show();
  }

  function show() {
    const shown = rows.slice(page * PAGE, (page + 1) * PAGE);
    body.replaceChildren(...shown.map((i) => {
      const row = element("tr", data.hash[i] === found ? "found" : "");
      row.setAttribute("role", "row");
      row.dataset.hash = data.hash[i];
      row.append(...columns.map((column) => {
        const cell = element("td", column.cell.className + (column.mono ? " mono" : ""), column.show(i));
        cell.setAttribute("role", "cell");
        if (column.key === "state") cell.dataset.state = data.state[i];
        return cell;
      }));
      return row;
    }));
    const from = rows.length ? page * PAGE + 1 : 0;
    const total = rows.length === count ? "" : ` of ${count.toLocaleString("en")}`;
    told.textContent = `${from.toLocaleString("en")}–${(page * PAGE + shown.length).toLocaleString("en")} of ${rows.length.toLocaleString("en")} ${total && `(filtered${total})`}`;
    back.disabled = page === 0;
    on.disabled = (page + 1) * PAGE >= rows.length;
  }

  filter.addEventListener("input", arrange);
  back.addEventListener("click", () => { page -= 1; show(); });
  on.addEventListener("click", () => { page += 1; show(); });
  document.getElementById("all-copy").addEventListener("click", (event) => {
    const quote = (value) => (value === null ? "" : /[",\n]/.test(value) ? `"${String(value).replace(/"/g, '""')}"` : String(value));
    const keys = Object.keys(data).filter((key) => Array.isArray(data[key])); // columns
    const lines = rows.map((i) => keys.map((key) => quote(data[key][i])).join(","));
    copyText([keys.join(","), ...lines].join("\n") + "\n", event.currentTarget);
  });
  document.addEventListener("evaluation", (event) => {
    found = event.detail;
    filter.value = "";
    arrange();
    page = Math.max(0, Math.floor(rows.findIndex((i) => data.hash[i] === found) / PAGE));
    show();
    const row = body.querySelector("tr.found");
    if (row) row.scrollIntoView({ block: "center" });
  });
  arrange();
})();
